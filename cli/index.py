"""`codemem index`: read a repository into its memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from codemem.memory.store import Store
    from codemem.models.pretrained import Pretrained
    from indexer.sync import Synced


def index(
    repository: Annotated[Path, typer.Argument(help="The repository, or any folder of source files.")] = Path("."),
    model: Annotated[
        Optional[str],  # noqa: UP045 - typer reads it at run time, on Python 3.10 too
        typer.Option(help="A catalog name, hub id, local directory or .gguf file.", show_default="the one used before"),
    ] = None,
    max_entries: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, help="Tokens that memory holds at most; 0 for no limit.", show_default="as before"),
    ] = None,
    max_bytes: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Size on disk at most, like 2GB; 0 for no limit.", show_default="as before"),
    ] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Forget all first, also what another model read.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Fill the memory of a repository, or bring it up to date.

    Only new and changed files are read. Ctrl-C keeps what is done; the next run goes on from there. Where there is more
    than the limits allow, the files that were modified last are remembered.
    """
    from cli.console import index_bar, stderr
    from codemem.memory.limits import parse_bytes
    from codemem.memory.manifest import model_of
    from codemem.memory.store import Store
    from codemem.models.pretrained import load_memorizing
    from indexer.sync import sync
    from indexer.walk import walk

    root, bytes_at_most = repository.resolve(), None if max_bytes is None else parse_bytes(max_bytes)
    walk(root)  # a folder that cannot be listed is told before a model is loaded
    spec = model or model_of(root)
    with stderr.status("loading the model"):
        pretrained = load_memorizing(spec)
    if not pretrained.calibrated:
        stderr.print(
            f"{pretrained.name} has no learned gates; all heads read memory with the same weight. "
            f"They are learned by: codemem adapt {spec or pretrained.name}",
            style="dim",
            markup=False,
            soft_wrap=True,
        )
    with Store(root, create=True) as store:
        bind(store, pretrained, spec, rebuild=rebuild)
        for key, most in (("max_entries", max_entries), ("max_bytes", bytes_at_most)):
            if most is not None:
                store.set(key, str(most))
        try:
            with index_bar() as show:
                synced = sync(store, lambda: pretrained.model, show)
        except KeyboardInterrupt:
            stderr.print("interrupted; what is done is kept, and the same command goes on from there")
            raise
    print_synced(synced, as_json)


def bind(store: Store, pretrained: Pretrained, spec: str | None, *, rebuild: bool) -> None:
    """Make a store one of this model. spec: as the user named it. Raises CodememError as `Store.bind` does."""
    store.bind(pretrained.fingerprint, replace=rebuild)
    local = spec is not None and Path(spec).exists()
    store.set("model", str(Path(spec).resolve()) if spec and local else pretrained.name)
    store.set("entry_bytes", str(pretrained.model.new_bank().entry_bytes))


def print_synced(synced: Synced, as_json: bool) -> None:
    """What a run did, on stdout."""
    if as_json:
        typer.echo(json.dumps(synced.as_json()))
        return
    skipped = ", ".join(f"{number} {reason}" for reason, number in synced.skipped.items()) or "nothing"
    rate = f" ({synced.tokens_per_second:,.0f} tokens/s)" if synced.tokens else ""
    typer.echo(
        f"{synced.documents} documents, {synced.entries:,} entries, {synced.bytes / 1e6:,.0f} MB on disk\n"
        f"encoded {synced.encoded}, dropped {synced.dropped}, kept {synced.kept}: "
        f"{synced.tokens:,} tokens in {synced.seconds:.1f} s{rate}\n"
        f"skipped: {skipped}"
    )
