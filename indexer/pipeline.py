"""The repository into memory: walk, read, encode in batches, store, and an index over it all.

What is finished is in the store after every batch, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from codemem.memory.bank import Bank
from codemem.memory.snapshot import open_bank, save_snapshot
from codemem.memory.store import Record, Store
from codemem.models.encode import Text, grouped
from codemem.models.memorizing import MemorizingModel
from codemem.syntax import outline
from indexer.changes import compare
from indexer.documents import Document, read_document
from indexer.walk import SkipReason, SourceFile


@dataclass(frozen=True)
class Progress:
    """How far a run is. done, total: bytes of source; tokens: encoded so far; path: the document just finished, or what
    is being done after the last one."""

    done: int
    total: int
    tokens: int
    path: str


@dataclass(frozen=True)
class Summary:
    """What memory holds after a run, and what the run did. docs/json.md has the JSON form.

    documents, entries: alive; tokens: encoded by this run; seconds: from the walk to the finished index, without
    loading the model; bytes: on disk; skipped: reason -> number of paths; dropped: documents that are gone; bank: the
    memory itself.
    """

    documents: int
    entries: int
    tokens: int
    seconds: float
    tokens_per_second: float
    bytes: int
    skipped: dict[str, int]
    dropped: int
    bank: Bank

    def as_json(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in _JSON_KEYS}


_JSON_KEYS = ("documents", "entries", "tokens", "seconds", "tokens_per_second", "bytes", "skipped")


def index(model: MemorizingModel, store: Store, report: Callable[[Progress], None] = lambda _: None) -> Summary:
    """Make the store hold what the working tree holds now, as the model reads it, and build the index over it.

    The store must be bound to the model's fingerprint. Raises CodememError where another process is indexing, or the
    store cannot be written; everything stored until then stays.
    """
    start = time.perf_counter()
    with store.writing():
        changes = compare(store.root, store)
        skipped = {path: reason.value for path, reason in changes.walked.skipped.items()}
        store.set_documents([], changes.gone)
        # What was refused is read again, since another version of codemem may find it worth remembering.
        waiting = changes.new + changes.changed + changes.refused
        tokens, done, total = 0, 0, sum(file.size for file in waiting)
        for files in grouped(waiting, lambda file: file.size):
            documents = _read(files, skipped)
            tokens += _remember(model, store, documents, [file.path for file in files if file.path in skipped])
            done += sum(file.size for file in files)
            report(Progress(done, total, tokens, files[-1].path))
        refused = {file.path: (file.size, file.mtime_ns) for file in waiting if file.path in skipped}
        store.set_skipped(skipped, refused)
        report(Progress(done, total, tokens, "building the index"))
        bank = open_bank(store, model.new_bank())
        save_snapshot(store, bank)
    seconds = time.perf_counter() - start
    return Summary(
        documents=len(bank.documents),
        entries=len(bank),
        tokens=tokens,
        seconds=seconds,
        tokens_per_second=tokens / seconds,
        bytes=store.nbytes,
        skipped=dict(sorted(Counter(skipped.values()).items())),
        dropped=len(changes.gone),
        bank=bank,
    )


def outlined(document: Document) -> Text:
    """The document with what its syntax tree says, as it is encoded."""
    shape = outline(document.text, document.language)
    return Text(document.path, document.text, shape.boundaries, shape.symbols)


def _read(files: list[SourceFile], skipped: dict[str, str]) -> list[Document]:
    """The documents among the files; the reasons of the others go into `skipped`."""
    documents = []
    for file in files:
        document = read_document(file)
        if isinstance(document, SkipReason):
            skipped[file.path] = document.value
        else:
            documents.append(document)
    return documents


def _remember(model: MemorizingModel, store: Store, documents: list[Document], refused: list[str]) -> int:
    """Encode and store documents whose entries are not stored yet, and commit all of them; forget the refused ones.
    Returns the number of tokens encoded."""
    blobs = {document.path: store.blob_name(document.path, document.content_hash) for document in documents}
    fresh = [document for document in documents if not store.has(blobs[document.path])]
    texts = [outlined(document) for document in fresh]
    counts = {}
    for document, entries in zip(fresh, model.encode(texts), strict=True):
        store.write(blobs[document.path], entries)
        counts[document.path] = len(entries)
    encoded = sum(counts.values())
    counts |= {d.path: len(store.read(blobs[d.path])) for d in documents if d.path not in counts}
    store.set_documents(
        [
            Record(d.path, d.content_hash, d.size, d.mtime_ns, d.language, blobs[d.path], counts[d.path])
            for d in documents
        ],
        refused,
    )
    return encoded
