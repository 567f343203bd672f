"""`codemem models`: which models there are, and bringing one here."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from codemem.models import locate
from codemem.models.catalog import CATALOG, DEFAULT_MODEL, CatalogEntry, HubSource
from codemem.models.fetch import megabytes

app = typer.Typer(no_args_is_help=True, help="List, fetch and find models.")

_Model = Annotated[str, typer.Argument(metavar="MODEL", help="A catalog name, hub id, local directory or .gguf file.")]


@app.command("list")
def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """List the models that have a name."""
    described = [_describe(entry) for entry in CATALOG]
    if as_json:
        typer.echo(json.dumps(described, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "size", "download", "FIM", "licence", "here"):
        table.add_column(heading, no_wrap=True)
    for model in described:
        name = f"{model['name']}{' *' if model['default'] else ''}"
        fim, here = ("yes" if model[key] else "no" for key in ("fill_in_middle", "path"))
        table.add_row(name, model["parameters"], megabytes(model["download_bytes"]), fim, model["licence"], here)
    console = Console()
    console.print(table)
    console.print("* default.  FIM: trained to fill in the middle.  here: on this machine.", style="dim")


def _describe(entry: CatalogEntry) -> dict[str, Any]:
    here = locate.find_here(entry.name)
    return {
        "name": entry.name,
        "title": entry.title,
        "source": entry.source.repo_id if isinstance(entry.source, HubSource) else entry.source.requirement,
        "parameters": entry.parameters,
        "licence": entry.licence,
        "download_bytes": entry.download_bytes,
        "fill_in_middle": entry.fill_in_middle,
        "default": entry.name == DEFAULT_MODEL,
        "path": str(here.directory) if here else None,
    }


@app.command()
def pull(model: _Model = DEFAULT_MODEL) -> None:
    """Download a model, or convert a .gguf file, and print its directory. Does nothing if it is here
    already."""
    typer.echo(locate.pull(model).directory)


@app.command()
def path(model: _Model = DEFAULT_MODEL) -> None:
    """Print the directory of a model that is on this machine."""
    typer.echo(locate.locate(model).directory)
