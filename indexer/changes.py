"""What differs between the working tree and memory."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from codemem.memory.manifest import Manifest, Record
from indexer.documents import hash_of, read_raw
from indexer.secrets import SCANNER
from indexer.walk import SourceFile, Walk, walk

# A file that was written so shortly before it was read may be written again without getting another time: times have
# steps, of 2 s on some file systems (git calls this racy).
RACY_NS = 2_000_000_000


@dataclass(frozen=True)
class Changes:
    """new: files to read; changed: those whose content differs from what memory holds, or whose blob is gone, or all
    of them where secrets are looked for by new rules; refused:
    files that were read and not remembered, and are as they were then; touched: records whose content stands, with the
    size and time that the file has now; unchanged: records that stand; gone: paths in memory that the walk no longer
    finds; walked: the walk itself."""

    new: tuple[SourceFile, ...]
    changed: tuple[SourceFile, ...]
    refused: tuple[SourceFile, ...]
    touched: tuple[Record, ...]
    unchanged: tuple[Record, ...]
    gone: tuple[str, ...]
    walked: Walk

    @property
    def waiting(self) -> tuple[SourceFile, ...]:
        """What must be read to know what memory should hold. What was refused is read again, since another version of
        codemem may find it worth remembering."""
        return self.new + self.changed + self.refused


def compare(root: Path, manifest: Manifest) -> Changes:
    """Compare the working tree below root with memory. Only files whose size or time differs are read. Raises
    CodememError for a root that cannot be listed."""
    walked = walk(root)
    records = {record.path: record for record in manifest.documents()}
    seen, whole = manifest.refused(), manifest.whole()
    looked_through_anew = manifest.get("scanner") != SCANNER
    new: list[SourceFile] = []
    changed: list[SourceFile] = []
    refused: list[SourceFile] = []
    touched: list[Record] = []
    unchanged: list[Record] = []
    for file in walked.files:
        record = records.pop(file.path, None)
        if record is None:
            (refused if seen.get(file.path) == (file.size, file.mtime_ns) else new).append(file)
        elif record.blob not in whole or looked_through_anew:
            changed.append(file)
        elif (record.size, record.mtime_ns) == (file.size, file.mtime_ns):
            unchanged.append(record)
        elif (now := _as_it_is(record, file)) is None:
            changed.append(file)
        else:
            touched.append(now)
    return Changes(tuple(new), tuple(changed), tuple(refused), tuple(touched), tuple(unchanged), tuple(records), walked)


def trusted_time(mtime_ns: int) -> int:
    """The time of a file that was read just now, 0 where it says nothing about later writes."""
    return mtime_ns if time.time_ns() - mtime_ns > RACY_NS else 0


def _as_it_is(record: Record, file: SourceFile) -> Record | None:
    """The record with the file's size and time, or None where the content differs."""
    read = read_raw(file)
    if read is None or hash_of(read[0]) != record.content_hash:
        return None
    raw, mtime_ns = read
    return replace(record, size=len(raw), mtime_ns=trusted_time(mtime_ns))
