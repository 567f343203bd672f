"""Which documents the kept indexes cover, and whether too much has changed since. Needs neither torch nor FAISS."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from codemem.memory.manifest import Manifest

# Entries up to which search is exact on a CPU, and no index is kept.
EXACT_ENTRIES = 32_768
# Share of entries that may be missing from the kept indexes before they are brought up to date: what is missing is
# added by every process that opens the bank.
DRIFT = 0.05
# Share of rows that may be dead, in a bank or in the kept indexes, before they are made without them.
COMPACT_ABOVE = 0.3
_KEY = "snapshot 2"  # another number with every change of its files
# Path, blob and number of entries of each document, in the order of their rows.
Order = list[tuple[str, str, int]]


def snapshot_folder(manifest: Manifest) -> Path | None:
    """Where the kept indexes are, if there are any."""
    name = manifest.get(_KEY)
    return manifest.folder / "index" / name if name else None


def snapshot_order(manifest: Manifest) -> tuple[Path | None, Order]:
    """The snapshot's folder, and its order, with the documents that are gone; nothing where there is none that can be
    read."""
    folder = snapshot_folder(manifest)
    if folder is None:
        return None, []
    try:
        return folder, [(path, blob, count) for path, blob, count in json.loads((folder / "order.json").read_text())]
    except (OSError, TypeError, ValueError):
        return None, []


def living(order: Order, blobs: Mapping[str, str]) -> list[bool]:
    """For each document of an order whether its rows are those of one that is alive; blobs: path -> blob of these."""
    left = dict(blobs)
    return [left.get(path) == blob and bool(left.pop(path)) for path, blob, _ in order]


def dead_rows(order: Order, alive: list[bool]) -> int:
    """Rows of an order that are of no living document."""
    return sum(count for (_, _, count), lives in zip(order, alive, strict=True) if not lives)


def mostly_dead(order: Order, alive: list[bool], total: int) -> bool:
    """Whether so much of an order is dead that a bank of `total` entries should not begin with it."""
    dead = dead_rows(order, alive)
    return dead > COMPACT_ABOVE * (dead + total)


def drifted(manifest: Manifest) -> bool:
    """Whether the kept indexes should be brought up to date."""
    records = manifest.documents()
    total = sum(record.entries for record in records)
    folder, order = snapshot_order(manifest)
    if total <= EXACT_ENTRIES:
        return folder is not None
    alive = living(order, {record.path: record.blob for record in records})
    held = sum(count for _, _, count in order) - dead_rows(order, alive)
    return total - held > DRIFT * total or mostly_dead(order, alive, total)


def keep_snapshot(manifest: Manifest, name: str) -> None:
    """Make the snapshot in the folder of this name the one that is read, and delete the others."""
    manifest.set(_KEY, name)
    _delete_all_but(manifest, name)


def forget_snapshots(manifest: Manifest) -> None:
    manifest.set(_KEY, "")
    _delete_all_but(manifest, None)


def _delete_all_but(manifest: Manifest, kept: str | None) -> None:
    folder: Path
    for folder in (manifest.folder / "index").glob("*"):
        if folder.name != kept:
            shutil.rmtree(folder, ignore_errors=True)
