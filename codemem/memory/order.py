"""Which documents the kept indexes cover, and whether too much has changed since. Needs neither torch nor FAISS."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from codemem.memory.manifest import Manifest

# Entries up to which search is exact on a CPU, and no index is kept.
EXACT_ENTRIES = 32_768
# Share of entries that may be missing from the kept indexes, or dead in them, before they are made again: what is
# missing is added by every process that opens the bank.
DRIFT = 0.05
_KEY = "snapshot"


def snapshot_order(manifest: Manifest) -> tuple[Path | None, list[tuple[str, str, int]]]:
    """The snapshot's folder, and its order of (path, blob, entries); nothing where there is none that can be read."""
    name = manifest.get(_KEY)
    if not name:
        return None, []
    folder = manifest.folder / "index" / name
    try:
        return folder, [(path, blob, count) for path, blob, count in json.loads((folder / "order.json").read_text())]
    except (OSError, TypeError, ValueError):
        return None, []


def drifted(manifest: Manifest) -> bool:
    """Whether the indexes should be made again."""
    records = manifest.documents()
    total = sum(record.entries for record in records)
    folder, order = snapshot_order(manifest)
    if total <= EXACT_ENTRIES:
        return folder is not None
    covered = {(path, blob) for path, blob, _ in order}
    alive = {(record.path, record.blob) for record in records}
    missing = sum(record.entries for record in records if (record.path, record.blob) not in covered)
    dead = sum(count for path, blob, count in order if (path, blob) not in alive)
    return missing + dead > DRIFT * total


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
