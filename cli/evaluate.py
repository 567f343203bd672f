"""`codemem eval`: what memory is worth on a repository, against honest baselines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from codemem.errors import CodememError

if TYPE_CHECKING:
    from codemem.memory.entries import Entries
    from codemem.memory.store import Store
    from codemem.models.pretrained import Pretrained

SIZES = (8_192, 65_536, 524_288, 2_097_152)
PARTS = ("lines", "likelihood", "eviction")
_WIDTH = 120  # characters
_VERSION = 4  # of what the outcomes kept between runs mean


def evaluate(
    target: Annotated[str, typer.Argument(help="A repository's folder, or a published package, name==version.")] = ".",
    model: Annotated[
        Optional[str],  # noqa: UP045 - typer reads it at run time, on Python 3.10 too
        typer.Option(help="A catalog name, hub id, local directory or .gguf file.", show_default="that of the memory"),
    ] = None,
    part: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help=f"Only this: {', '.join(PARTS)}. Repeat for several.", show_default="all"),
    ] = None,
    tasks: Annotated[int, typer.Option(min=2, help="Lines to complete: half cross-file uses, half random.")] = 200,
    held_out: Annotated[float, typer.Option(min=0.001, max=0.5, help="Share of documents out of memory.")] = 0.1,
    size: Annotated[
        Optional[list[int]],  # noqa: UP045
        typer.Option(min=1, help="Entries in memory, for the likelihood.", show_default="8K, 64K, 512K, 2M"),
    ] = None,
    distractor: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="A folder or package that fills memory up to the sizes. Repeat for several."),
    ] = None,
    pieces: Annotated[int, typer.Option(min=1, help="Pieces of 256 tokens a document, for the likelihood.")] = 2,
    seed: Annotated[int, typer.Option(help="Of the draw of documents and lines.")] = 0,
    restart: Annotated[bool, typer.Option("--restart", help="Compute again what an earlier run has.")] = False,
    plot: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Draw the results into this folder, as PNG and SVG."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Measure what memory is worth: completed lines, likelihood by size of memory, and ways to evict.

    A share of the documents leaves memory, and the lines to complete are in them. Ctrl-C keeps what is done.
    """
    from cli.console import stage_bar, stderr
    from codemem.evaluation.evaluate import Source, complete_lines, evict_half, likelihood_by_size, split
    from codemem.evaluation.plots import draw
    from codemem.memory.manifest import model_of
    from codemem.memory.snapshot import open_bank
    from codemem.models.pretrained import load_memorizing
    from indexer.packages import documents as read_documents
    from indexer.packages import target as named

    wanted = tuple(part or PARTS)
    if unknown := [name for name in wanted if name not in PARTS]:
        raise CodememError(f"{unknown[0]} is no part of an evaluation", f"--part {' | '.join(PARTS)}")
    name, root = named(target)
    read = read_documents(root)
    found = [Source(document.path, document.text, document.language) for document in read]
    divided = split(found, held_out, tasks, seed)
    with stderr.status("loading the model"):
        pretrained = load_memorizing(model or model_of(root))
    memorizing = pretrained.model
    with _synced(pretrained, root) as store:
        memorizing.bank = bank = open_bank(store, memorizing.new_bank())
    inside = {document.path for document in divided.held_out}
    for path in inside:
        bank.drop(path)
    results: dict[str, Any] = {
        "target": name,
        "model": pretrained.name,
        "calibrated": pretrained.calibrated,
        "layers": list(memorizing.adapter.layers),
        "documents": len(bank.documents),
        "entries": len(bank),
        "held_out": len(inside),
        "seed": seed,
    }
    settings = [_VERSION, pretrained.fingerprint.digest, _adapter_hash(pretrained), name, held_out, seed]
    content = [(document.path, document.content_hash) for document in read]
    file = _kept(hashlib.sha256(json.dumps([settings, content]).encode()).hexdigest(), restart)
    try:
        with stage_bar() as show:
            if "lines" in wanted:
                remembered = [d for d in found if d.path not in inside]
                results["outcomes"] = str(file)
                results["lines"] = complete_lines(memorizing, bank, remembered, divided.tasks, file, show)
            if "eviction" in wanted:
                results["eviction"] = evict_half(memorizing, bank, divided.held_out, pieces, seed, show)
            if "likelihood" in wanted:
                others = _entries(pretrained, distractor or [])
                results["likelihood"] = likelihood_by_size(
                    memorizing, bank, others, divided.held_out, size or SIZES, pieces, seed, show
                )
    except KeyboardInterrupt:
        stderr.print("interrupted; completed lines are kept, and the same command goes on from there")
        raise
    for drawn in draw(results, plot) if plot else ():
        stderr.print(f"drawn: {drawn}", style="dim")
    if as_json:
        typer.echo(json.dumps(results))
    else:
        _show(results)


@contextmanager
def _synced(pretrained: Pretrained, root: Path) -> Iterator[Store]:
    """The store of a folder, brought up to date."""
    from cli.console import index_bar
    from codemem.memory.store import Store
    from indexer.sync import sync

    with Store(root, create=True) as store:
        store.bind(pretrained.fingerprint)
        with index_bar() as show:
            sync(store, lambda: pretrained.model, show)
        yield store


def _entries(pretrained: Pretrained, specs: list[str]) -> Iterator[tuple[str, Entries]]:
    """The entries of other repositories, each indexed when it is needed."""
    from indexer.packages import target

    for spec in specs:
        with _synced(pretrained, target(spec)[1]) as store:
            for record in store.documents():
                yield f"{spec}/{record.path}", store.read(record.blob)


def _adapter_hash(pretrained: Pretrained) -> str:
    from codemem.models.adapter import GATE

    adapter = pretrained.model.adapter
    kinds = (*(getattr(adapter, kind) for kind in GATE), adapter.mixture, adapter.low_rank)
    tensors = (tensor for kind in kinds for tensor in kind.values())
    return hashlib.sha256(b"".join(t.float().numpy().tobytes() for t in tensors)).hexdigest()


def _kept(key: str, restart: bool) -> Path:
    """The file with the outcomes of earlier runs of the same evaluation."""
    from codemem.cache import cache_folder

    file = cache_folder("evaluations") / f"{key[:32]}.jsonl"
    if restart:
        file.unlink(missing_ok=True)
    return file


def _show(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.width = max(console.width, _WIDTH)  # a narrower table would break its numbers
    console.print(
        f"{results['target']} with {results['model']}: {results['documents']:,} documents, "
        f"{results['entries']:,} entries in memory, {results['held_out']} documents held out"
    )
    for kind, found in results.get("lines", {}).items():
        table = Table(title=f"{found['tasks']} lines: {kind}")
        for column in ("arm", "exact", "to none", "edit", "identifiers", "nats/token", "to BM25", "tokens", "ms"):
            table.add_column(column, justify="left" if column == "arm" else "right")
        for name, arm in found["arms"].items():
            to_none = arm["against"]["none"]["exact"]
            to_bm25 = arm["against"]["BM25"].get("nats", [0.0, 0.0, 0.0])
            table.add_row(
                name,
                f"{arm['exact']:.1%}",
                f"{to_none[0]:+.1%} ({to_none[1]:+.1%} to {to_none[2]:+.1%})",
                f"{arm['edit']:.3f}",
                f"{arm['identifiers']:.1%}",
                f"{arm['nats']:.3f}",
                f"{to_bm25[0]:+.3f} ({to_bm25[1]:+.3f} to {to_bm25[2]:+.3f})",
                f"{arm['prompt']:.0f}",
                f"{arm['milliseconds']:,.0f}",
            )
        console.print(table)
    if likelihood := results.get("likelihood"):
        table = Table(title=f"nats/token of {likelihood['tokens']:,} tokens in {likelihood['documents']} documents")
        for column in ("entries", "attention memory", "token memory", "both"):
            table.add_column(column, justify="right")
        table.add_row("0", *[f"{likelihood['none']:.4f}"] * 3)
        for row in likelihood["sizes"]:
            table.add_row(
                f"{row['entries']:,}",
                *(f"{row[key]['nats']:.4f} ({row[key]['change'][0]:+.4f})" for key in ("attention", "tokens", "both")),
            )
        console.print(table)
    if eviction := results.get("eviction"):
        table = Table(title=f"nats/token with {eviction['kept']:,} of {eviction['entries']:,} entries")
        for column in ("none", "everything", "fifo", "lru", "importance"):
            table.add_column(column, justify="right")
        table.add_row(*(f"{eviction[key]:.4f}" for key in ("none", "everything", "fifo", "lru", "importance")))
        console.print(table)
