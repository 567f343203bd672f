"""One repository in the daemon: its memory in front of the model, kept true to the store and to what is typed.

Two threads: one follows the store, whoever writes to it, and one lets the indexer watch the working tree, where no
other process does. What touches the bank runs in the scheduler's thread, in small steps between completions.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from codemem.completion.request import Underway
from codemem.completion.scheduler import Cancelled, Closed, Job, Scheduler
from codemem.errors import CodememError
from codemem.memory.manifest import Busy, Record
from codemem.server.documents import normal
from codemem.server.indexing import BATCH_TOKENS, Encoder, Indexer, rest
from codemem.texts import Text, grouped

if TYPE_CHECKING:
    from codemem.completion.engine import Engine
    from codemem.completion.request import Completion, Request
    from codemem.memory.banks import Banks
    from codemem.memory.entries import Entries
    from codemem.memory.store import Store
    from codemem.models.memorizing import MemorizingModel
    from codemem.models.pretrained import Pretrained

# Seconds between looks at the store, and until what failed is tried again.
LOOK, RETRY = 0.2, 2.0
# Entries that go into the bank between two completions: some milliseconds.
STEP_ENTRIES = 8192
# Characters of an unsaved text that memory reads: as many as its place for such text has room for.
MOST_TYPED = 131_072
# Characters above the window of a document that memory does not know that are read for a completion: all others wait.
MOST_UNREAD = 4_096

State = Literal["starting", "indexing", "ready", "off", "error"]


@dataclass(frozen=True)
class Status:
    """How a repository's memory is. percent: of indexing; bytes: of entries on disk; message, hint: what is wrong, and
    what to type."""

    state: State
    documents: int = 0
    entries: int = 0
    bytes: int = 0
    percent: int | None = None
    message: str | None = None
    hint: str | None = None


@dataclass(frozen=True)
class _Live:
    """A memory that is loaded, and who completes with it."""

    banks: Banks
    engine: Engine


class Repository:
    """A repository that some client has open. root: the folder that has the memory; model: the future of the one model;
    changed: called, in any thread, whenever the status does."""

    def __init__(
        self,
        root: Path,
        model: Future[Pretrained],
        scheduler: Scheduler,
        indexer: Indexer,
        changed: Callable[[], None],
    ) -> None:
        self.root, self._model, self._scheduler, self._indexer, self._changed = root, model, scheduler, indexer, changed
        self.status = Status("starting")
        self._live: _Live | None = None
        self._records: dict[str, Record] = {}
        # What memory reads of the documents that are open, as far as that is known, and what they are by now.
        self._read: dict[str, str] = {}
        self._typed: dict[str, str] = {}
        self._setting = threading.Lock()
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._typing = ThreadPoolExecutor(1, thread_name_prefix="typing")
        self._threads = [threading.Thread(target=self._follow_store, name=f"memory of {root.name}", daemon=True)]
        self._threads[0].start()

    @property
    def opened(self) -> bool:
        """Whether there is a memory to complete with."""
        return self._live is not None

    def close(self) -> None:
        """Stop following, and wait until nothing more is done here."""
        self._stop.set()
        self._wake.set()
        self._typing.shutdown(cancel_futures=True)
        for thread in self._threads:
            thread.join()
        self._scheduler.between(self._leave)

    def _leave(self) -> None:
        """Let the model hold this memory no longer."""
        live, self._live = self._live, None
        if live is not None and live.engine.model.bank in (live.banks, live.banks.bank):
            live.engine.model.bank = live.engine.model.new_bank()

    # Completing.

    def complete(self, request: Request, client: str) -> Job:
        """Complete in a document that an editor has open, of which memory may read what is above the window where that
        has not changed since it did. Raises CodememError while memory is being loaded."""

        underway = Underway(request)

        def work(cancelled: Cancelled, live: _Live) -> Completion:
            known = self._read.get(request.path)
            start = live.engine.window(request)
            changed = known is None or known[:start] != request.text[:start]
            now = replace(request, changed=changed)
            return live.engine.complete(now, cancelled=cancelled, show=underway.show)

        return self._submit(request.path, work, client, underway)

    def complete_saved(self, request: Request, content_hash: str, memory: bool, client: str) -> Job:
        """Complete in a document as it is on disk, as `codemem complete` does by itself; what an editor has typed in it
        is not read meanwhile. Raises CodememError while memory is being loaded."""

        def work(cancelled: Cancelled, live: _Live) -> Completion:
            path, banks = request.path, live.banks
            typed, record = banks.written(path), self._records.get(path)
            banks.settle(path)
            try:
                now = request
                if memory and record is None and live.engine.window(request) > MOST_UNREAD:
                    now = replace(request, changed=True)
                elif memory and (record is None or record.content_hash != content_hash):
                    now = self._indexer.true_to(live.engine, banks, self.root, request)
                self._give(live)
                return live.engine.complete(now, memory=memory, cancelled=cancelled)
            finally:
                banks.settle(path)
                if typed is not None:
                    banks.write(path, typed)

        return self._submit(request.path, work, client)

    def lines(self, places: list[tuple[str, int]]) -> list[str]:
        """The lines of source that memory has at paths and line numbers, "" where it has none. In the scheduler's
        thread."""
        from codemem.completion.recall import excerpt

        if self._live is None:
            return [""] * len(places)
        self._give(self._live)
        model = self._live.engine.model
        known = set(model.bank.documents)
        found = [excerpt(model, path, line, line, 0.0) if path in known else None for path, line in places]
        return [snippet.text if snippet else "" for snippet in found]

    def _submit(
        self,
        path: str,
        work: Callable[[Cancelled, _Live], Completion],
        client: str,
        underway: Underway | None = None,
    ) -> Job:
        if self._live is None:
            raise CodememError(
                self.status.message or f"the memory of {self.root} is being loaded", self.status.hint or "wait a moment"
            )

        def run(cancelled: Cancelled) -> Completion:
            if self._live is None:
                raise CodememError(f"{self.root} was closed", "ask again")
            self._give(self._live)
            return work(cancelled, self._live)

        return self._scheduler.submit(path, run, client=f"{client} {self.root}", underway=underway)

    def _give(self, live: _Live) -> None:
        """Let the model read this repository's memory: with nothing unsaved, the bank itself."""
        bank = live.banks if live.banks.several else live.banks.bank
        if live.engine.model.bank is not bank:
            live.engine.model.bank = bank

    # Text that is typed.

    def type(self, path: str, text: str) -> None:
        """Let memory read a document as it is in an editor, soon."""
        self._typed[path] = text
        with suppress(RuntimeError):  # closed
            self._typing.submit(self._take_in, path, text)

    def settle(self, path: str) -> None:
        """Let memory read a document as it is on disk again."""
        self._typed.pop(path, None)
        self._read.pop(path, None)
        if self._live is not None:
            self._scheduler.between(lambda: self._settle(path))

    def _settle(self, path: str) -> None:
        if self._live is not None:
            self._live.banks.settle(path)

    def _take_in(self, path: str, text: str) -> None:
        if self._typed.get(path) is not text or self._live is None:
            return  # newer text waits already, or what is open is taken in when memory is loaded
        with suppress(CodememError):
            sieved = None
            if not self._saved(path, text) and len(text) <= MOST_TYPED:
                sieved = self._indexer.sieve(self.root, path, normal(text))
            self._scheduler.encode(lambda pause: self._read_typed(path, text, sieved, pause), "typed").result()

    def _read_typed(self, path: str, text: str, sieved: Text | None, pause: Callable[[], None]) -> None:
        live = self._live
        if live is None:
            return
        if sieved is not None:
            live.banks.encode(live.engine.model, sieved, batch_tokens=BATCH_TOKENS, pause=pause)
        else:
            live.banks.settle(path)
        if sieved is not None or self._saved(path, text):
            self._read[path] = normal(text)
        else:
            self._read.pop(path, None)

    def _saved(self, path: str, text: str) -> bool:
        """Whether the store holds a document as it is in the editor."""
        record = self._records.get(path)
        return record is not None and _holds(record, text)

    # Following.

    def look(self) -> None:
        """Look at the store now."""
        self._wake.set()

    def progress(self, done: int, total: int) -> None:
        """Note how far indexing is, in bytes; where all is done, it is over."""
        if done < total:
            self._set(state="indexing", percent=100 * done // total)
        elif self.opened:
            self._set(state="ready", percent=None, message=None, hint=None)
        self._wake.set()

    def rest(self) -> None:
        """As `indexing.rest`; raises Closed where the repository is closed."""
        rest(self._scheduler, self._stop)

    def _set(self, **changes: Any) -> None:
        with self._setting:
            before, self.status = self.status, replace(self.status, **changes)
        if before != self.status:
            self._changed()

    def _fail(self, error: Exception) -> None:
        """Say what is wrong; it is tried again. A fault of ours must not end a thread, and nobody would see it."""
        if not isinstance(error, CodememError):
            error = CodememError(f"codemem failed unexpectedly: {type(error).__name__}", f"codemem doctor {self.root}")
        self._set(state="error", percent=None, message=str(error), hint=error.hint)

    def _follow_store(self) -> None:
        from codemem.memory.store import Store
        from codemem.threads import compute_alone

        compute_alone()
        while not self._stop.is_set():
            try:
                pretrained = self._model.result()
                with Store(self.root) as store:
                    store.check(pretrained.fingerprint)
                    if self._live is None:
                        self._open(store, pretrained)
                    self._follow(store)
            except Closed:
                return
            except Exception as error:
                self._fail(error)
                self._stop.wait(RETRY)

    def _open(self, store: Store, pretrained: Pretrained) -> None:
        from codemem.completion.engine import Engine
        from codemem.memory.banks import Banks

        records = store.documents()
        banks = Banks(self._opened_bank(store, pretrained.model))
        self._live = _Live(banks, Engine(pretrained.model, pretrained.name))
        self._note(store, records)
        for path, text in tuple(self._typed.items()):
            self.type(path, text)
        watcher = threading.Thread(target=self._watch, args=(pretrained,), name=f"watcher of {self.root.name}")
        watcher.daemon = True
        self._threads.append(watcher)
        watcher.start()

    def _opened_bank(self, store: Store, model: MemorizingModel) -> Any:
        from codemem.memory.snapshot import open_bank

        bank = open_bank(store, model.new_bank())
        bank.build()
        return bank

    def _follow(self, store: Store) -> None:
        """Bring the bank to what the store holds, whenever that changes, and at once when this is called; and tidy it
        while that does not."""
        version = -1
        tidying: Future[None] | None = None
        while not self._stop.is_set():
            now = store.version()
            if now != version:
                version = now
                self._bring(store)
            elif tidying is None or tidying.done():
                tidying = self._scheduler.encode(self._tidy, "files")
            self._wake.wait(LOOK)
            self._wake.clear()

    def _tidy(self, _: Callable[[], None]) -> None:
        if self._live is not None:
            self._live.banks.bank.tidy()

    def _bring(self, store: Store) -> None:
        from codemem.memory.snapshot import differences

        live, records = self._live, store.documents()
        assert live is not None
        bank = live.banks.bank
        gone, added = differences(bank, records)
        if gone:
            self._scheduler.between(lambda: self._drop(live.banks, gone)).result()
        if bank.outgrown(sum(record.entries for record in added)):
            self._replace(store, live)
        else:
            for group in grouped(added, lambda record: record.entries, STEP_ENTRIES):
                read = [(record, store.read(record.blob)) for record in group]
                self._scheduler.between(lambda read=read: self._add(live.banks, read)).result()  # type: ignore[misc]
        self._note(store, records)

    def _drop(self, banks: Banks, gone: list[str]) -> None:
        for path in gone:
            banks.drop(path)

    def _add(self, banks: Banks, read: list[tuple[Record, Entries]]) -> None:
        for record, entries in read:
            path = record.path
            banks.add(path, entries, record.blob)
            typed = self._typed.get(path)
            if typed is None or _holds(record, typed):
                banks.settle(path)
            if typed is not None and banks.written(path) is None:
                self._read.pop(path, None)
        banks.bank.build()

    def _replace(self, store: Store, live: _Live) -> None:
        """Open the memory anew, with other indexes, beside the one that is read, which would make them at the next
        search and let it wait."""
        from codemem.completion.engine import Engine
        from codemem.memory.banks import Banks

        banks = Banks(self._opened_bank(store, live.engine.model))

        def swap(_: Callable[[], None]) -> None:
            for path in live.banks.recent.documents:
                banks.write(path, live.banks.recent.entries(path))
            self._live = _Live(banks, Engine(live.engine.model, live.engine.name))

        self._scheduler.encode(swap, "typed").result()  # never while a text is encoded for the old one

    def _note(self, store: Store, records: list[Record]) -> None:
        """What the store holds, for the status and for what is typed."""
        self._records = {record.path: record for record in records}
        for path, text in tuple(self._typed.items()):
            if self._saved(path, text):
                self._read[path] = normal(text)
        size = sum(blob.bytes for blob in store.known_blobs().values())
        entries = sum(record.entries for record in records)
        state = "indexing" if self.status.state == "indexing" else "ready"
        self._set(state=state, documents=len(records), entries=entries, bytes=size, message=None, hint=None)

    def _watch(self, pretrained: Pretrained) -> None:
        from codemem.threads import compute_alone

        compute_alone()
        encoder = Encoder(pretrained.model, self._scheduler, self._stop)
        while not self._stop.is_set():
            try:
                self._indexer.watch(self.root, encoder, self._stop, self.progress, self.rest)
            except Busy:
                pass  # another process watches, and its commits are followed
            except Closed:
                return
            except Exception as error:
                self._fail(error)
            self._stop.wait(RETRY)


def _holds(record: Record, text: str) -> bool:
    """Whether the store holds a document with this text."""
    return record.content_hash == hashlib.sha256(text.encode()).hexdigest()
