"""Whether what is on disk is what was written: checksums of blobs and index files, and SQLite's own check."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from codemem.memory.manifest import FOLDER, Manifest
from codemem.memory.order import forget_snapshots, snapshot_order

_SUMS = "sums.json"


@dataclass(frozen=True)
class Damage:
    """documents: path -> blob of the living documents whose blob is missing or not what was written; index: files of
    the kept index of which the same is true."""

    documents: dict[str, str]
    index: tuple[Path, ...]

    def __bool__(self) -> bool:
        return bool(self.documents or self.index)


def sha256_of(file: Path) -> str:
    """Hexadecimal. Raises OSError."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_sums(folder: Path) -> None:
    """Write down the checksums of the files in a folder, in the folder. Raises OSError."""
    sums = {file.name: sha256_of(file) for file in sorted(folder.iterdir())}
    (folder / _SUMS).write_text(json.dumps(sums))


def find_damage(manifest: Manifest) -> Damage:
    """Read everything that is alive and compare it with what was written."""
    known = manifest.known_blobs()
    documents = {}
    for record in manifest.documents():
        blob = known.get(record.blob)
        if blob is None or _sum(manifest.blob_path(record.blob)) != blob.sha256:
            documents[record.path] = record.blob
    folder, _ = snapshot_order(manifest)
    if folder is None:
        return Damage(documents, ())
    try:
        sums = json.loads((folder / _SUMS).read_text())
    except (OSError, ValueError):
        return Damage(documents, (folder / _SUMS,))
    return Damage(documents, tuple(folder / name for name, digest in sums.items() if _sum(folder / name) != digest))


def discard(manifest: Manifest, damage: Damage) -> None:
    """Delete what is damaged, so that the next sync makes it again, and nothing else."""
    with manifest.writing():
        manifest.forget_blobs(damage.documents.values())
        if damage.index:
            forget_snapshots(manifest)


def set_aside(root: Path) -> Path:
    """Rename a manifest that cannot be read, so that a new one can be made over the same blobs. Returns where it is.
    Raises OSError."""
    folder = root / FOLDER
    aside = folder / f"manifest.damaged-{time.strftime('%Y%m%d-%H%M%S')}.db"
    (folder / "manifest.db").replace(aside)
    for suffix in ("-wal", "-shm"):
        (folder / f"manifest.db{suffix}").unlink(missing_ok=True)
    return aside


def _sum(file: Path) -> str | None:
    with suppress(OSError):
        return sha256_of(file)
    return None
