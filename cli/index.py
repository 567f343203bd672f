"""`codemem index`: read a repository into its memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer


def index(
    repository: Annotated[Path, typer.Argument(help="The repository, or any folder of source files.")] = Path("."),
    model: Annotated[
        Optional[str],  # noqa: UP045 - typer reads it at run time, on Python 3.10 too
        typer.Option(help="A catalog name, hub id, local directory or .gguf file.", show_default="the one used before"),
    ] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Forget all first, also what another model read.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Fill the memory of a repository, or bring it up to date.

    Only new and changed files are read. Ctrl-C keeps what is done; the next run goes on from there.
    """
    from cli.console import index_bar, stderr
    from codemem.memory.store import Store, model_of
    from codemem.models.pretrained import load_memorizing
    from indexer import pipeline
    from indexer.walk import walk

    root = repository.resolve()
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
        store.bind(pretrained.fingerprint, replace=rebuild)
        local = spec is not None and Path(spec).exists()
        store.set("model", str(Path(spec).resolve()) if spec and local else pretrained.name)
        try:
            with index_bar() as show:
                summary = pipeline.index(pretrained.model, store, show)
        except KeyboardInterrupt:
            stderr.print("interrupted; what is done is kept, and the same command goes on from there")
            raise
    if as_json:
        typer.echo(json.dumps(summary.as_json()))
        return
    skipped = ", ".join(f"{number} {reason}" for reason, number in summary.skipped.items()) or "nothing"
    typer.echo(
        f"{summary.documents} documents, {summary.entries:,} entries, {summary.bytes / 1e6:,.0f} MB on disk\n"
        f"encoded {summary.tokens:,} tokens in {summary.seconds:.1f} s ({summary.tokens_per_second:,.0f} tokens/s)\n"
        f"skipped: {skipped}"
    )
