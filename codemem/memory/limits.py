"""How large a memory may become, and what goes when it is larger.

Documents that were modified last stay: the newest that fit, so that what memory holds depends on the working tree and
not on what happened before. The blobs that no document needs (those of other branches) are kept until the bytes are
needed, and go in the order in which they were left.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from codemem.errors import CodememError
from codemem.memory.manifest import Manifest, Record
from codemem.memory.order import snapshot_folder

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def parse_bytes(text: str) -> int:
    """ "2GB", "500 MB", "1.5g" or a plain number, in bytes. Raises CodememError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)b?\s*", text.lower())
    if match is None:
        raise CodememError(f"{text} is no number of bytes", "codemem index --max-bytes 2GB")
    return int(float(match[1]) * _UNITS[match[2]])


def capacity(manifest: Manifest) -> int | None:
    """Entries at most, from both limits; None for no limit."""
    entries, most = (int(manifest.get(key) or 0) for key in ("max_entries", "max_bytes"))
    limits = [entries] if entries else []
    if most:
        limits.append(most // int(manifest.get("entry_bytes") or 1))
    return min(limits) if limits else None


def over_the_limit(records: Iterable[Record], most: int, modified: Mapping[str, int]) -> list[str]:
    """The paths of the documents that do not fit: all from the first on that is one too many, newest first. modified:
    path -> time."""
    newest_first = sorted(records, key=lambda record: (-modified.get(record.path, 0), record.path))
    total, over = 0, list[str]()
    for record in newest_first:
        total += record.entries
        if total > most:
            over.append(record.path)
    return over


def surplus(manifest: Manifest) -> list[tuple[Path, int]]:
    """The files that nothing alive needs, and their bytes, those first that were left first: blobs of other branches
    and of other models, what killed runs left, indexes that were replaced, manifests that were set aside."""
    needed = {manifest.blob_path(record.blob) for record in manifest.documents()}
    left = {manifest.blob_path(name): blob.left_ns for name, blob in manifest.known_blobs().items()}
    blobs = sorted(set(manifest.blobs.iterdir()) - needed, key=lambda file: (left.get(file, 0), file.name))
    current = snapshot_folder(manifest)
    indexes = [file for file in sorted((manifest.folder / "index").rglob("*")) if file.is_file()]
    others = [file for file in indexes if current not in file.parents]
    aside = sorted(manifest.folder.glob("manifest.damaged-*.db"))
    return [(file, file.stat().st_size) for file in (*others, *aside, *blobs)]


def prune(manifest: Manifest, files: Iterable[Path]) -> None:
    """Delete files that `surplus` named. Raises Busy where another process is writing."""
    with manifest.writing():
        gone = list(files)
        manifest.forget_blobs(file.stem for file in gone if file.parent == manifest.blobs)
        for file in gone:
            file.unlink(missing_ok=True)
            if file.parent.parent == manifest.folder / "index" and not any(file.parent.iterdir()):
                file.parent.rmdir()


def keep_below(manifest: Manifest) -> None:
    """Delete surplus files until the memory has no more bytes than its limit, if it has one."""
    most = int(manifest.get("max_bytes") or 0)
    excess = manifest.nbytes - most if most else 0
    gone = []
    for file, size in surplus(manifest) if excess > 0 else ():
        if excess <= 0:
            break
        gone.append(file)
        excess -= size
    if gone:
        prune(manifest, gone)
