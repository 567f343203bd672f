"""`codemem complete`: what should stand at a place in a file."""

from __future__ import annotations

import gc
import json
import os
import re
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from codemem.errors import CodememError

if TYPE_CHECKING:
    from codemem.completion.request import Completion
    from codemem.memory.bank import Bank
    from codemem.memory.banks import Banks
    from codemem.memory.store import Store
    from codemem.models.pretrained import Pretrained

_EXPLAINED_LINES = 10
# Milliseconds after which a process of its own has read its prompt where it does not wait for snippets: with the start
# of Python and the line itself it then takes less than 3 s.
_PROMPT_READ = 2300.0


def complete(
    cursor: Annotated[
        str,
        typer.Argument(metavar="FILE:LINE[:COL]", help="Where, counted from 1; without COL at the end of the line."),
    ],
    model: Annotated[
        Optional[str],  # noqa: UP045 - typer reads it at run time, on Python 3.10 too
        typer.Option(help="A catalog name, hub id, local directory or .gguf file.", show_default="that of the memory"),
    ] = None,
    memory: Annotated[bool, typer.Option("--memory/--no-memory", help="Read the repository's memory.")] = True,
    beside: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option("--with", help="Read the memory of this repository too. Repeat for several."),
    ] = None,
    attention: Annotated[bool, typer.Option("--attention/--no-attention", help="Memory inside attention.")] = True,
    tokens: Annotated[bool, typer.Option("--tokens/--no-tokens", help="Memory of what came next elsewhere.")] = True,
    recall: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option(
            "--recall/--no-recall",
            help="Snippets of memory in the prompt.",
            show_default="as many as there is time for within 3 s; the daemon waits for all",
        ),
    ] = None,
    deadline: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0, help="Milliseconds; snippets that would take longer are left out, and half lines."),
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="List the lines of memory that weighed most.")] = False,
    max_tokens: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Tokens at most.", show_default="as many as a line or a block may have"),
    ] = None,
    context: Annotated[int, typer.Option(min=64, help="Prompt tokens at most.")] = 512,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the most likely token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="For temperatures above 0.")] = 0,
    daemon: Annotated[bool, typer.Option("--daemon/--no-daemon", help="Ask the daemon where one runs.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Complete the code at a cursor, and say where memory read it."""
    begin = time.perf_counter()
    file, line, column = parse_cursor(cursor)
    raw, text = _read(file)
    offset = offset_of(text, cursor, line, column)
    options: dict[str, Any] = {
        "context": context,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "attention": attention,
        "tokens": tokens,
        "recall": recall is not False,
        "deadline": deadline,
    }

    from codemem.memory.manifest import find_root
    from indexer.documents import hash_of

    root, content_hash = find_root(file.parent), hash_of(raw)
    if daemon and root is not None and not beside:
        params = {"path": str(file), "text": text, "offset": offset, "hash": content_hash, "memory": memory}
        if answer := _from_daemon(root, model, {**params, "options": options}):
            total = 1000 * (time.perf_counter() - begin)
            answer["ms"].update(load=total - answer["ms"]["total"], total=total)
            _print(answer, as_json, explain)
            return

    from cli.console import stderr
    from codemem.completion.request import Request

    gc.disable()  # to look for garbage takes a tenth of the time, and the process ends soon
    if root is None and memory:
        raise CodememError(f"no folder above {file} has a memory", f"codemem index {file.parent}, or add --no-memory")
    path = file.relative_to(root or file.parent).as_posix()
    request = Request(path, text, offset, **options)
    with stderr.status("loading"), ThreadPoolExecutor(1) as aside:
        from codemem.completion.begun import begun_for
        from codemem.memory.manifest import model_of

        model = model or (None if root is None else model_of(root))
        begun = begun_for(model, request)
        opening = _opening(root, aside) if root is not None and memory else None

        from codemem.completion.engine import Engine
        from codemem.memory.store import Store
        from codemem.models.pretrained import load_memorizing
        from indexer.buffers import true_to

        pretrained = load_memorizing(model, tokenizer=None if begun is None else begun.tokenizer)
        engine = Engine(pretrained.model, pretrained.name, begun=begun)
        if root is None or opening is None:
            if begun is not None and engine.infill is None:
                engine.prepare(request)
        else:
            with Store(root) as store:
                store.check(pretrained.fingerprint)
                if request.recall or attention or (begun is not None and engine.infill is None):
                    engine.prepare(request)
                banks = _memory(store, pretrained, opening.result(), beside or [])
                remembered = {record.path: record.content_hash for record in store.documents()}
                if remembered.get(path) != content_hash:
                    # What stands above the prompt's window is read as it is now.
                    request = true_to(engine, banks, root, request)
                pretrained.model.bank = banks if banks.several else banks.bank
    load = time.perf_counter() - begin
    if recall is None and deadline is None:
        request = replace(request, snippets_within=_PROMPT_READ - 1000 * load)
    with stderr.status("completing"):
        completion = engine.complete(request, memory=memory)
    total = time.perf_counter() - begin
    completion = replace(completion, ms={**completion.ms, "load": load * 1000, "total": total * 1000})
    _print(completion_json(completion), as_json, explain)


def _from_daemon(root: Path, model: str | None, params: dict[str, Any]) -> dict[str, Any] | None:
    """What the daemon of a repository's model answers to codemem/complete, None where none runs, or it goes away. Needs
    no torch. Raises CodememError for an error of ours."""
    from codemem.memory.manifest import model_of
    from codemem.server.client import Client
    from codemem.server.sockets import address_of, connected

    try:
        connection = connected(address_of(model or model_of(root)))
    except CodememError:
        return None
    if connection is None:
        return None
    try:
        with Client(connection, [root]) as client:
            answer: dict[str, Any] = client.ask("codemem/complete", params)
            return answer
    except OSError:  # it has gone
        return None


def _print(answer: dict[str, Any], as_json: bool, explain: bool) -> None:
    """An answer's JSON form, for programs or for people."""
    if as_json:
        typer.echo(json.dumps(answer))
        return
    typer.echo(answer["text"])
    if not answer["text"]:
        typer.secho("nothing to complete here", dim=True, err=True)
    if explain:
        _explain(answer)


def _opening(root: Path, aside: Executor) -> Future[Bank]:
    """The bank of a repository, which is opened while the model is loaded."""
    from codemem.memory.snapshot import empty_bank, open_bank
    from codemem.memory.store import Store
    from codemem.models.loading import best_device

    def opened(device: str) -> Bank:
        with Store(root) as store:
            return open_bank(store, empty_bank(store, device))

    return aside.submit(opened, str(best_device()))


def _memory(store: Store, pretrained: Pretrained, own: Bank, beside: list[Path]) -> Banks:
    """The bank of a repository, with those of others that are only read. Raises CodememError where one of these has
    none, or one of another model."""
    from codemem.memory.banks import Banks
    from codemem.memory.snapshot import open_bank
    from codemem.memory.store import Store

    others: dict[str, Bank] = {}
    for place in beside:
        with Store(place.resolve()) as other:
            other.check(pretrained.fingerprint)
            prefix = f"{Path(os.path.relpath(other.root, store.root)).as_posix()}/"
            others[prefix] = open_bank(other, pretrained.model.new_bank())
    # What is written into an empty one has the model's shapes.
    return Banks(own if own.documents else pretrained.model.new_bank(), others)


def parse_cursor(cursor: str) -> tuple[Path, int, int | None]:
    """FILE:LINE[:COL] -> absolute path, line and column from 1. Raises CodememError for anything else."""
    match = re.fullmatch(r"(.+?):(\d+)(?::(\d+))?", cursor)
    if match is None:
        raise CodememError(f"{cursor} is not FILE:LINE or FILE:LINE:COL", "codemem complete src/main.py:120")
    return Path(match[1]).resolve(), int(match[2]), int(match[3]) if match[3] else None


def offset_of(text: str, cursor: str, line: int, column: int | None) -> int:
    """The offset in characters of a line and column from 1; without a column of the line's end. Raises CodememError
    outside."""
    lines = text.split("\n")
    if not 1 <= line <= len(lines):
        raise CodememError(f"{cursor}: the file has {len(lines)} lines", f"give a line between 1 and {len(lines)}")
    content = lines[line - 1]
    if column is None:
        column = len(content) + 1
    if not 1 <= column <= len(content) + 1:
        raise CodememError(
            f"{cursor}: line {line} has {len(content)} characters", f"give a column between 1 and {len(content) + 1}"
        )
    return sum(len(earlier) + 1 for earlier in lines[: line - 1]) + column - 1


def completion_json(completion: Completion) -> dict[str, Any]:
    """The JSON form that docs/json.md describes."""
    return asdict(completion)


def _read(file: Path) -> tuple[bytes, str]:
    from indexer.documents import text_of

    try:
        raw = file.read_bytes()
        return raw, text_of(raw)
    except OSError as error:
        raise CodememError(f"{file} cannot be read: {error.strerror}", "codemem complete FILE:LINE") from error
    except UnicodeDecodeError as error:
        raise CodememError(f"{file} is not UTF-8 text", "codemem complete FILE:LINE") from error


def _explain(answer: dict[str, Any]) -> None:
    use, provenance = answer["memory"], answer["provenance"]
    if use is None or not provenance:
        typer.echo("\nmemory was not read" if use is None else "\nmemory holds nothing that may be read here")
        return
    typer.echo(
        f"\nmemory had {use['share']:.1%} of the attention of its layers and {use['token_share']:.1%} of the next "
        "token's distribution; most of both came from"
    )
    for source in provenance[:_EXPLAINED_LINES]:
        symbol = f" in {source['symbol']}" if source["symbol"] else ""
        typer.echo(f"{source['weight']:6.1%}  {source['path']}:{source['line']}{symbol}")
    if use["snippets"]:
        typer.echo("and these snippets stood in the prompt")
    for snippet in reversed(use["snippets"]):
        lines = f"{snippet['path']}:{snippet['start_line']}-{snippet['end_line']}"
        typer.echo(f"{snippet['weight']:6.1%}  {lines}")
    if use["left_out"]:
        typer.echo("there was no time to read more snippets; --recall waits for them")
