"""`codemem adapt`: learn how a model should read memory."""

from __future__ import annotations

import json
import math
import platform
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from codemem.errors import CodememError
from codemem.models.catalog import DEFAULT_MODEL

if TYPE_CHECKING:
    from codemem.models.adapter import Adapter
    from codemem.training.corpus import Budget, Repository
    from indexer.documents import Document

# Packages that are younger than the models, and that no result is reported on.
CORPUS = ("smolagents==1.26.0", "browser-use==0.13.14", "agno==3.1.10")
# Bytes read of a repository, to the bytes that are used of it: some documents are too small or too large.
_SPARE = 1.3
# Steps of training gates beside token memory, to those without it.
_JOINT = 0.6


def adapt(
    model: Annotated[
        str, typer.Argument(help="A catalog name, hub id, local directory or .gguf file.")
    ] = DEFAULT_MODEL,
    corpus: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads it at run time, on Python 3.10 too
        typer.Option(
            help="A folder, or a published package, name==version. Repeat for several.",
            show_default=", ".join(CORPUS),
        ),
    ] = None,
    layers: Annotated[int, typer.Option(min=1, help="Memory layers at most.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Steps of training gates, 256 tokens each.")] = 100,
    lora: Annotated[
        int, typer.Option(min=0, help="Rank of updates of queries and outputs where memory is read; 0 for none.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of the draw of documents and of what is read of them.")] = 0,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write the adapter here, and do not use it by itself.", show_default="where it is found"),
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Compute again what an earlier run has.")] = False,
    plot: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Draw which heads gain from memory into this .png, .svg or .pdf file."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Learn for a model which layers read memory, and how strongly.

    The default model takes less than 30 minutes on two cores. Nothing that memory stores is changed. Ctrl-C keeps what
    is done; the same command goes on from there.
    """
    from cli.console import stage_bar, stderr
    from codemem.cache import cache_dir, locked
    from codemem.models.adapter import own_adapter_path, signature_of
    from codemem.models.loading import load_model
    from codemem.training.adapt import Options
    from codemem.training.adapt import adapt as make
    from codemem.training.gate_report import check_drawable, draw, heads

    start = time.perf_counter()
    if plot is not None:
        check_drawable(plot)
    if out is not None and not out.absolute().parent.is_dir():
        raise CodememError(f"there is no folder {out.absolute().parent}", f"mkdir -p {out.absolute().parent}")
    options = Options(
        layers=layers,
        steps=steps,
        joint_steps=math.ceil(steps * _JOINT),
        rank=lora,
        low_rank_steps=steps,
        seed=seed,
    )
    with stderr.status("reading the corpus"):
        repositories = _repositories(corpus or list(CORPUS), options.budget, seed)
    with stderr.status("loading the model"):
        loaded = load_model(model)
    path = own_adapter_path(loaded.name, signature_of(loaded.config, loaded.weights_hash))
    folder = cache_dir() / "calibrations" / path.stem
    with locked(f"adapt-{path.stem}"):
        if restart:
            shutil.rmtree(folder, ignore_errors=True)
        try:
            with stage_bar() as show:
                adapter = make(loaded, repositories, options, folder, show)
        except KeyboardInterrupt:
            stderr.print("interrupted; what is done is kept, and the same command goes on from there")
            raise
        adapter.save(out or path)
    if plot is not None:
        draw(adapter, plot)
        stderr.print(f"drawn: {plot}", style="dim")
    found: dict[str, Any] = {
        "model": loaded.name,
        "adapter": str((out or path).absolute()),
        "corpus": list(adapter.corpus),
        "entries": int(adapter.recipe["entries"]),
        "layers": list(adapter.layers),
        "heads": heads(adapter),
        "development": {
            name: int(value) if name in ("documents", "scored") else round(value, 4)
            for name, value in sorted(adapter.development.items())
        },
        "seconds": round(time.perf_counter() - start, 1),
    }
    if as_json:
        typer.echo(json.dumps(found))
        return
    _show(adapter, found)
    stderr.print("memories made with other layers are made again by: codemem index --rebuild", style="dim")


def _repositories(specs: list[str], budget: Budget, seed: int) -> list[Repository]:
    """What the specifications name, as much of each as can be used, and the standard library as distractor."""
    from codemem.training.corpus import Repository
    from indexer.packages import documents, stdlib_documents, target

    repositories: list[Repository] = []
    for spec in specs:
        name, root = target(spec)
        if taken := sum(each.name.split(" #")[0] == name for each in repositories):
            name = f"{name} #{taken + 1}"
        texts = _sample(documents(root), budget.of_repository(len(specs)), f"{seed} {name}")
        repositories.append(Repository(name, texts))
    version = ".".join(platform.python_version_tuple()[:2])
    far = _sample(stdlib_documents(), budget.distractors, f"{seed} standard library")
    return [*repositories, Repository(f"standard library of Python {version}", far, distractor=True)]


def _sample(documents: list[Document], wanted: int, seed: str) -> tuple[Any, ...]:
    from codemem.training.corpus import neighbourhood, suitable
    from indexer.documents import parsed

    candidates = sorted((d for d in documents if suitable(d.size)), key=lambda d: d.path)
    chosen = neighbourhood([d.size for d in candidates], int(_SPARE * wanted), seed)
    taken = (candidates[place] for place in chosen)
    return tuple(parsed(d.path, d.text, d.language) for d in taken)


def _show(adapter: Adapter, found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(f"{found['model']}: memory layers {', '.join(map(str, found['layers']))}", highlight=False)
    opened = [head for head in found["heads"] if head["open"]]
    table = Table(title=f"{len(opened)} of {len(found['heads'])} heads open", title_justify="left")
    for column in ("layer", "head", "bias", "temperature", "discount", "gain by the scan", "share of attention"):
        table.add_column(column, justify="right")
    for head in opened:
        table.add_row(
            str(head["layer"]),
            str(head["head"]),
            f"{head['bias']:+.2f}",
            f"{head['temperature']:.2f}",
            f"{head['discount']:.2f}",
            f"{head['gain']:+.4f} ± {head['error']:.4f}",
            f"{head['mass']:.1%}",
        )
    console.print(table)
    figures = adapter.development
    title = f"{figures['scored']:,.0f} tokens of {figures['documents']:.0f} documents, {found['entries']:,} entries"
    table = Table(title=title, title_justify="left")
    for column in ("memory", "nats/token", "change"):
        table.add_column(column, justify="left" if column == "memory" else "right")
    for name, key in (
        ("none", "none"),
        ("attention, gates as they start", "attention_untrained"),
        ("attention", "attention"),
        (f"tokens, constant weight {figures['lambda']:.2f}", "tokens_constant"),
        ("tokens", "tokens"),
        ("both, constant weight", "both_constant"),
        ("both", "both"),
    ):
        change = "" if key == "none" else f"{figures[key] - figures['none']:+.4f}"
        table.add_row(name, f"{figures[key]:.4f}", change)
    console.print(table)
    console.print(f"written: {found['adapter']}", highlight=False, soft_wrap=True)
