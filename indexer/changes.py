"""What differs between the working tree and memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from codemem.memory.store import Record, Store
from indexer.walk import SourceFile, Walk, walk


@dataclass(frozen=True)
class Changes:
    """new, changed: files to read, by size and modification time alone; refused: files that were read and not
    remembered, and are as they were then; unchanged: records that stand; gone: paths in memory that the walk no longer
    finds; walked: the walk itself."""

    new: tuple[SourceFile, ...]
    changed: tuple[SourceFile, ...]
    refused: tuple[SourceFile, ...]
    unchanged: tuple[Record, ...]
    gone: tuple[str, ...]
    walked: Walk


def compare(root: Path, store: Store) -> Changes:
    """Compare the working tree below root with the store. Reads no file. Raises CodememError for a root that cannot be
    listed."""
    walked = walk(root)
    records = {record.path: record for record in store.documents()}
    seen = store.refused()
    new: list[SourceFile] = []
    changed: list[SourceFile] = []
    refused: list[SourceFile] = []
    unchanged: list[Record] = []
    for file in walked.files:
        record = records.pop(file.path, None)
        if record is None:
            (refused if seen.get(file.path) == (file.size, file.mtime_ns) else new).append(file)
        elif (record.size, record.mtime_ns) != (file.size, file.mtime_ns) or not store.has(record.blob):
            changed.append(file)
        else:
            unchanged.append(record)
    return Changes(tuple(new), tuple(changed), tuple(refused), tuple(unchanged), tuple(records), walked)
