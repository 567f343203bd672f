"""`codemem status`: what a repository's memory holds, and how true it is to the working tree."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.sync import root_of


def status(
    repository: Annotated[Path, typer.Argument(help="The repository, or any place in it.")] = Path("."),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Show what memory holds, where it lies, and what has changed since."""
    from codemem.memory.limits import surplus
    from codemem.memory.manifest import Manifest
    from indexer.changes import compare

    root = root_of(repository)
    with Manifest(root) as store:
        changes = compare(root, store)
        records = store.documents()
        fingerprint = store.fingerprint
        entries = sum(record.entries for record in records)
        found: dict[str, Any] = {
            "repository": str(root),
            "model": fingerprint and fingerprint.model,
            "documents": len(records),
            "entries": entries,
            "entries_per_layer": {str(layer): entries for layer in fingerprint.layers} if fingerprint else {},
            "bytes_on_disk": store.nbytes,
            "bytes_in_memory": store.bank_bytes(),
            "surplus_bytes": sum(size for _, size in surplus(store)),
            "max_bytes": int(store.get("max_bytes") or 0) or None,
            "max_entries": int(store.get("max_entries") or 0) or None,
            "skipped": dict(sorted(Counter(store.skipped().values()).items())),
            "masked": {record.path: record.secrets for record in records if record.secrets},
            "stale": {"new": len(changes.new), "changed": len(changes.changed), "gone": len(changes.gone)},
        }
    if as_json:
        typer.echo(json.dumps(found))
        return
    typer.echo(_for_people(found))


def _for_people(found: dict[str, Any]) -> str:
    layers = ", ".join(found["entries_per_layer"])
    skipped = ", ".join(f"{number} {reason}" for reason, number in found["skipped"].items()) or "nothing"
    stale = ", ".join(f"{number} {kind}" for kind, number in found["stale"].items() if number)
    return "\n".join(
        (
            f"repository  {found['repository']}",
            f"model       {found['model'] or 'none yet'}",
            f"documents   {found['documents']}",
            f"entries     {found['entries']:,} in each of the memory layers {layers}",
            f"on disk     {found['bytes_on_disk'] / 1e6:,.0f} MB{_limits(found)}",
            f"in memory   {found['bytes_in_memory'] / 1e6:,.0f} MB when loaded",
            f"skipped     {skipped}",
            f"masked      {_masked(found['masked'])}",
            f"stale       {f'{stale} files: codemem index' if stale else 'nothing, memory is up to date'}",
        )
    )


def _limits(found: dict[str, Any]) -> str:
    """What is said behind the size: what could go, and what memory may have."""
    words = []
    if found["surplus_bytes"]:
        words.append(f"{found['surplus_bytes'] / 1e6:,.0f} MB of it not needed now: codemem prune")
    if found["max_bytes"]:
        words.append(f"at most {found['max_bytes'] / 1e6:,.0f} MB")
    if found["max_entries"]:
        words.append(f"at most {found['max_entries']:,} entries")
    return "".join(f"; {word}" for word in words)


def _masked(secrets: dict[str, int]) -> str:
    files = ", ".join(secrets)
    return f"{sum(secrets.values())} secret values, in {files}" if secrets else "nothing"
