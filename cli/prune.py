"""`codemem prune`: delete what memory keeps and does not need now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def prune(
    repository: Annotated[Path, typer.Argument(help="The repository, or any place in it.")] = Path("."),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and delete nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Delete entries of other branches, of other models and of interrupted runs.

    A branch that comes back later is encoded again.
    """
    from cli.sync import root_of
    from codemem.memory import limits
    from codemem.memory.manifest import Manifest

    with Manifest(root_of(repository)) as manifest:
        found = limits.surplus(manifest)
        if not dry_run:
            limits.prune(manifest, [file for file, _ in found])
        answer = {"files": len(found), "bytes": sum(size for _, size in found), "left": manifest.nbytes}
    if as_json:
        typer.echo(json.dumps({**answer, "dry_run": dry_run}))
        return
    if dry_run:
        for file, size in found:
            typer.echo(f"{size / 1e6:10,.1f} MB  {file}")
    verb = "would go" if dry_run else "deleted"
    typer.echo(
        f"{verb}: {answer['files']} files, {answer['bytes'] / 1e6:,.0f} MB; {answer['left'] / 1e6:,.0f} MB on disk"
    )
