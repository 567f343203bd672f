"""What all clients of a daemon share: the model, the scheduler, and the repositories that are open."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from os import getpid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codemem.completion.scheduler import Closed, Scheduler
from codemem.errors import CodememError
from codemem.memory.manifest import FOLDER, find_root
from codemem.server.indexing import Encoder, Indexer
from codemem.server.repository import Repository, Status
from codemem.server.statistics import Counted, Statistics
from codemem.server.workspace import Folder

if TYPE_CHECKING:
    from codemem.models.pretrained import Pretrained
    from codemem.server.language_server import Session

# Seconds for which the memory of a repository that nobody has open any more stays: a window that is loaded anew, and
# the next command, find it there.
RELEASE = 300.0
# What the whole is, where the parts differ: the first of these that one of them is.
_WORST_FIRST = ("error", "starting", "indexing", "ready", "off")


class Hub:
    """load: gives the model, called once, in a thread; name: of the model, until it is loaded; indexer: reads working
    trees; statistics: where it is counted what completions are worth. Use inside of a running event loop."""

    def __init__(self, load: Callable[[], Pretrained], name: str, indexer: Indexer, statistics: Statistics) -> None:
        self.name, self.indexer, self._statistics = name, indexer, statistics
        self.model: Future[Pretrained] = Future()
        self.scheduler = Scheduler(name)
        self.sessions: set[Session] = set()
        self.repositories: dict[Path, Repository] = {}
        self._wanted_at: dict[Path, float] = {}
        self._loop = asyncio.get_running_loop()
        self.loader = threading.Thread(target=self._load, args=(load,), name="loader", daemon=True)
        self.loader.start()

    def _load(self, load: Callable[[], Pretrained]) -> None:
        try:
            pretrained = load()
            self.name = pretrained.name
            with suppress(InvalidStateError):  # the daemon ends already
                self.model.set_result(pretrained)
        except BaseException as error:  # whoever waits for the model gets it
            if not isinstance(error, CodememError):
                error = CodememError(f"the model {self.name} cannot be loaded: {error}", "codemem doctor")
            with suppress(InvalidStateError):
                self.model.set_exception(error)
        self.changed()

    @property
    def failed(self) -> bool:
        """Whether the model could not be loaded."""
        return self.model.done() and self.model.exception() is not None

    def changed(self) -> None:
        """Tell all clients how things are; may be called in any thread."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._poke)

    def _poke(self) -> None:
        for session in self.sessions:
            session.poke()

    # Repositories.

    def refresh(self) -> None:
        """Open the repositories that clients have in their folders and that have a memory, and close those that have
        none any more, or that nobody has had open for a while."""
        now = time.monotonic()
        for session in self.sessions:
            for folder in session.folders:
                if root := find_root(folder.path):
                    self._wanted_at[root] = now
        for root in self._wanted_at.keys() - self.repositories.keys():
            self.repositories[root] = Repository(root, self.model, self.scheduler, self.indexer, self.changed)
            self.changed()
        for root, repository in tuple(self.repositories.items()):
            if now - self._wanted_at[root] > RELEASE or not (root / FOLDER / "manifest.db").is_file():
                del self.repositories[root], self._wanted_at[root]
                threading.Thread(target=repository.close, daemon=True).start()
                self.changed()

    def repository(self, folder: Folder) -> Repository | None:
        """The repository that a folder is in, None where it has no memory."""
        root = find_root(folder.path)
        if root is not None and root not in self.repositories:
            self.refresh()
        return self.repositories.get(root) if root else None

    def status(self, folders: list[Folder]) -> dict[str, Any]:
        """What codemem/status answers about these folders."""
        found = [self._status(folder) for folder in folders]
        states = [folder["state"] for folder in found] or ["error" if self.failed else "ready"]
        return {
            "folders": found,
            "model": self.name,
            "version": version("codemem"),
            "pid": getpid(),
            "state": next(state for state in _WORST_FIRST if state in states),
        }

    def _status(self, folder: Folder) -> dict[str, Any]:
        repository = self.repository(folder)
        if repository is None:
            status = Status("off", message=f"{folder.path} has no memory", hint=f"codemem index {folder.path}")
        else:
            status = repository.status
        whole = {"uri": folder.uri, **vars(status)}
        return {key: value for key, value in whole.items() if value is not None}

    async def index(self, folder: Folder, rebuild: bool) -> dict[str, Any]:
        """Fill the memory of a folder's repository, or bring it up to date; codemem/index. Raises CodememError."""
        root, stop = find_root(folder.path) or folder.path, threading.Event()

        def progress(done: int, total: int) -> None:
            if repository := self.repositories.get(root):
                repository.progress(done, total)

        def rest() -> None:
            if stop.is_set():
                raise Closed
            if repository := self.repositories.get(root):
                repository.rest()

        def work() -> dict[str, Any]:
            pretrained = self.model.result()
            encoder = Encoder(pretrained.model, self.scheduler, stop)
            return self.indexer.index(root, pretrained, encoder, rebuild, progress, rest)

        thread = ThreadPoolExecutor(1)  # one that ends, and with it the helpers with which an index is made
        try:
            return await asyncio.get_running_loop().run_in_executor(thread, work)
        finally:
            thread.shutdown(wait=False)
            stop.set()  # where the client has cancelled it, the thread ends at its next step
            progress(1, 1)
            self.refresh()
            if repository := self.repositories.get(root):
                repository.look()

    # Counting.

    async def tick(self) -> None:
        """What is to be done every second or so."""
        self.refresh()
        await asyncio.to_thread(self.count, self._news())

    def _news(self) -> list[Counted]:
        return [row for session in self.sessions for row in session.ledger.news()]

    def count(self, rows: list[Counted]) -> None:
        """Write statistics; that they cannot be written must not keep anybody from completing."""
        try:
            if rows:
                self._statistics.write(rows)
        except CodememError as error:
            print(f"codemem: {error}", file=sys.stderr)

    def close(self) -> None:
        """End everything; what is being encoded is given up. Nothing may be asked after that."""
        with suppress(InvalidStateError):
            self.model.set_exception(Closed())
        self.scheduler.close()
        for repository in self.repositories.values():
            repository.close()
        self.count(self._news())
