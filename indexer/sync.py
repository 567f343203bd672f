"""The repository into memory: compare, read, encode in batches, store.

What is finished is in the store after every batch, so that an interrupted run goes on where it stopped. The model is
loaded only if something must be encoded: what a branch had is still there when it comes back.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from codemem.memory.limits import capacity, keep_below, over_the_limit
from codemem.memory.manifest import Record
from codemem.memory.order import drifted
from codemem.texts import grouped
from indexer.changes import compare, trusted_time
from indexer.documents import Document, parsed, read_document
from indexer.secrets import SCANNER
from indexer.walk import SkipReason, SourceFile

if TYPE_CHECKING:
    from codemem.memory.banks import Encoder
    from codemem.memory.store import Store


@dataclass(frozen=True)
class Progress:
    """How far a run is. done, total: bytes of source; tokens: encoded so far; path: the document just finished, or what
    is being done after the last one."""

    done: int
    total: int
    tokens: int
    path: str


@dataclass(frozen=True)
class Synced:
    """What a run did, and what memory holds after it. docs/json.md has the JSON form.

    encoded, dropped, kept: documents that were encoded, that memory held and may not hold any more, and whose entries
    were stored already; restored: those of the kept ones that memory held with another content, or not; documents,
    entries: alive; tokens: encoded; seconds: from the walk to the last commit, without loading the model; bytes: on
    disk; skipped: reason -> number of paths.
    """

    encoded: int
    dropped: int
    kept: int
    restored: int
    documents: int
    entries: int
    tokens: int
    seconds: float
    tokens_per_second: float
    bytes: int
    skipped: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def sync(
    store: Store,
    load: Callable[[], Encoder],
    report: Callable[[Progress], None] = lambda _: None,
    *,
    index: bool = True,
    rest: Callable[[], None] = lambda: None,
    **encoding: Any,
) -> Synced:
    """Make the store hold what the working tree holds now, as the model reads it.

    load: gives the model, to whose fingerprint the store must be bound; called at most once; index: whether the kept
    indexes are brought up to date where that is due; rest: called before every file that is read or searched for
    secrets, and may take its time; encoding: for `MemorizingModel.encode`. Raises CodememError where another process is
    writing, or the store cannot be written; everything stored until then stays.
    """
    with store.writing():
        run = _Run(store, load, rest, encoding)
        start = time.perf_counter()
        store.recover()
        before = {record.path for record in store.documents()}
        if not before:  # nothing was looked through by other rules
            store.set("scanner", SCANNER)
        changes = compare(store.root, store)
        skipped = {path: reason.value for path, reason in changes.walked.skipped.items()}
        if changes.gone or changes.touched:
            store.set_documents(changes.touched, changes.gone)
        modified = {file.path: file.mtime_ns for file in changes.walked.files}
        waiting, most = changes.waiting, capacity(store)
        if most is not None:  # the newest first, and none that would not stay
            waiting = tuple(sorted(waiting, key=lambda file: (-file.mtime_ns, file.path)))
        done, total = 0, sum(file.size for file in waiting)
        for files in grouped(waiting, lambda file: file.size):
            if most is None or _newer(store, files[0], modified) < most:
                documents = _read(files, skipped, rest)
                run.remember(documents, [file.path for file in files if file.path in skipped])
            else:
                skipped |= {file.path: SkipReason.OVER_LIMIT.value for file in files}
            done += sum(file.size for file in files)
            report(Progress(done, total, run.tokens, files[-1].path))
        if most is not None and (over := over_the_limit(store.documents(), most, modified)):
            store.set_documents([], over)
            skipped |= dict.fromkeys(over, SkipReason.OVER_LIMIT.value)
        refused = {f.path: (f.size, f.mtime_ns) for f in changes.walked.files if f.path in skipped}
        if (skipped, refused) != (store.skipped(), store.refused()):
            store.set_skipped(skipped, refused)
        if store.get("scanner") != SCANNER:
            store.set("scanner", SCANNER)
        if index and drifted(store):
            report(Progress(done, total, run.tokens, "building the index"))
            build_index(store)
        keep_below(store)
        seconds = time.perf_counter() - start - run.loading
        records = store.documents()
        return Synced(
            encoded=run.encoded,
            dropped=len(before - {record.path for record in records}),
            kept=len(records) - run.encoded,
            restored=run.restored,
            documents=len(records),
            entries=sum(record.entries for record in records),
            tokens=run.tokens,
            seconds=seconds,
            tokens_per_second=run.tokens / seconds,
            bytes=store.nbytes,
            skipped=dict(sorted(Counter(skipped.values()).items())),
        )


def _newer(store: Store, file: SourceFile, modified: dict[str, int]) -> int:
    """Entries of the documents that were modified after a file."""
    return sum(r.entries for r in store.documents() if modified.get(r.path, 0) > file.mtime_ns)


class _Run:
    """One run's model and counts. encoded, restored: documents; tokens: encoded; loading: seconds that loading the
    model took."""

    def __init__(
        self, store: Store, load: Callable[[], Encoder], rest: Callable[[], None], encoding: dict[str, Any]
    ) -> None:
        self.store, self._load, self._rest, self._encoding = store, load, rest, encoding
        self._model: Encoder | None = None
        self.encoded, self.restored, self.tokens, self.loading = 0, 0, 0, 0.0

    @property
    def model(self) -> Encoder:
        if self._model is None:
            start = time.perf_counter()
            self._model = self._load()
            self.loading = time.perf_counter() - start
        return self._model

    def remember(self, documents: list[Document], refused: list[str]) -> None:
        """Encode and store documents whose entries are not stored yet, and commit all of them; forget the refused
        ones."""
        store = self.store
        blobs = {}
        for document in documents:
            self._rest()  # to look for secrets is the longest that Python does for a document
            blobs[document.path] = store.blob_name(document.path, document.content_hash, document.secrets)
        fresh = [document for document in documents if not store.has(blobs[document.path])]
        if fresh:
            earlier = {record.path: record.blob for record in store.documents()}
            before = [store.read(earlier[d.path]) if store.has(earlier.get(d.path, "")) else None for d in fresh]
            texts = [parsed(d.path, d.text, d.language) for d in fresh]
            for document, entries in zip(fresh, self.model.encode(texts, before=before, **self._encoding), strict=True):
                store.write(blobs[document.path], entries)
                self.tokens += len(entries)
            self.encoded += len(fresh)
        self.restored += len(documents) - len(fresh)
        known = store.known_blobs()
        records = []
        for d in documents:
            blob = blobs[d.path]
            at = trusted_time(d.mtime_ns)
            count = known[blob].entries
            records.append(Record(d.path, d.content_hash, d.size, at, d.language, blob, count, d.secrets))
        if records or refused:
            store.set_documents(records, refused)


def build_index(store: Store) -> None:
    """Bring the kept indexes up to date with the store; nothing where a GPU searches, which does so exactly. Raises
    CodememError where they cannot be written."""
    from codemem.memory.snapshot import empty_bank, has_room, open_bank, save_snapshot
    from codemem.models.loading import best_device

    bank = empty_bank(store, str(best_device()))
    if bank.inverted or not has_room(bank, sum(record.entries for record in store.documents())):
        save_snapshot(store, open_bank(store, bank))


def _read(files: list[SourceFile], skipped: dict[str, str], rest: Callable[[], None]) -> list[Document]:
    """The documents among the files; the reasons of the others go into `skipped`."""
    documents = []
    for file in files:
        rest()
        document = read_document(file)
        if isinstance(document, SkipReason):
            skipped[file.path] = document.value
        else:
            documents.append(document)
    return documents
