"""Memory follows the working tree while people edit it.

A watchdog observer says that something may have changed; what did, `sync` finds out by comparing. So a missed or a
doubled event does no harm, ignore files are read again every time, and a branch switch is one batch like any other.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from watchdog.events import (
    EVENT_TYPE_CLOSED,
    EVENT_TYPE_CREATED,
    EVENT_TYPE_DELETED,
    EVENT_TYPE_MODIFIED,
    EVENT_TYPE_MOVED,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer

from codemem.errors import CodememError
from codemem.memory.manifest import Busy
from codemem.memory.order import drifted
from indexer.sync import Progress, Synced, build_index, sync
from indexer.walk import OWN

if TYPE_CHECKING:
    from codemem.memory.banks import Encoder
    from codemem.memory.store import Store

# Seconds without an event after which a burst is over, and after which it is dealt with even if it goes on.
QUIET, LONGEST = 0.15, 2.0
# Seconds for which git may hold its index before what it does is looked at all the same.
GIT = 30.0
# What the watcher, and the process that makes an index, ask of the system's scheduler: completions come first.
NICENESS = 10
# Seconds between looks where the system cannot say what changes, and until a busy store is asked again.
POLLING, RETRY = 2.0, 0.5
_CHANGES = (EVENT_TYPE_CLOSED, EVENT_TYPE_CREATED, EVENT_TYPE_DELETED, EVENT_TYPE_MODIFIED, EVENT_TYPE_MOVED)
# What git writes when the rules or the working tree may have changed.
_GIT_FILES = ("HEAD", "index", "info/exclude")
# watchdog warns where it watches a new folder twice; nothing is lost by that, and people should not read it.
warnings.filterwarnings("ignore", category=RuntimeWarning, module="watchdog")


class Bursts(FileSystemEventHandler):
    """Tells when a burst of changes below `root` has ended. polls: whether it only looks now and then, since the
    system has no more watches to give."""

    def __init__(self, root: Path) -> None:
        self._root, self._changed = root, threading.Condition()
        self._first = self._last = 0.0  # of the burst that is going on; 0 for none
        self._observer = Observer()
        self._observer.schedule(self, str(root), recursive=True)
        self.polls = False
        try:
            self._observer.start()
        except OSError:  # more folders than fs.inotify.max_user_watches
            self.polls = True

    def close(self) -> None:
        if not self.polls:
            self._observer.stop()
            self._observer.join()

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type not in _CHANGES or not any(map(self._matters, (event.src_path, event.dest_path))):
            return
        with self._changed:
            self._last = time.monotonic()
            self._first = self._first or self._last
            self._changed.notify_all()

    def _matters(self, path: str | bytes) -> bool:
        try:
            parts = Path(str(path)).relative_to(self._root).parts
        except ValueError:  # "" too, where an event has no destination
            return False
        if ".git" in parts:
            return "/".join(parts[parts.index(".git") + 1 :]) in _GIT_FILES
        return bool(parts) and OWN.isdisjoint(parts)

    def wait(self, stop: threading.Event) -> bool:
        """Return True when a burst has ended, or it is time to look; False when `stop` is set."""
        begun = time.monotonic()
        while not stop.is_set():
            with self._changed:
                self._changed.wait(timeout=QUIET / 3 if self._first else QUIET)
                now, first, last = time.monotonic(), self._first, self._last
                over = first and (now - last > QUIET or now - first > LONGEST)
                if over and not (now - first < GIT and (self._root / ".git" / "index.lock").exists()):
                    self._first = 0.0
                    return True
            if self.polls and now - begun > POLLING:
                return True
        return False


def watch(
    store: Store,
    load: Callable[[], Encoder],
    stop: threading.Event,
    synced: Callable[[Synced], None],
    report: Callable[[Progress], None] = lambda _: None,
    *,
    index: bool = True,
    **encoding: Any,
) -> None:
    """Sync now, and after every burst of changes until `stop` is set; `synced` gets what each sync that changed
    something did, and the first one in any case.

    load: gives the model, which is kept, and made ready for the first edit; index: whether the kept indexes are brought
    up to date where that is due, in a process of its own, since it takes minutes for a million entries and no edit
    should wait for it; encoding: as for `sync`, `rest` among it. A store that another process writes to is waited for.
    Raises CodememError as `sync` does, and where another process watches.
    """
    with store.watching():
        bursts, model, indexing = Bursts(store.root), _once(load), _Indexing(store.root)
        try:
            first = True
            while True:
                done = _sync(store, model, stop, report, encoding)
                if done and (first or done.encoded or done.dropped or done.restored):
                    synced(done)
                if first:
                    model().warm()
                    first = False
                if index and drifted(store):
                    indexing.begin()
                if not bursts.wait(stop):
                    return
        finally:
            bursts.close()
            indexing.end()


class _Indexing:
    """Brings the kept indexes up to date in a process of its own, which ends with this one; what it leaves then is
    deleted by the next."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._process: BaseProcess | None = None

    def begin(self) -> None:
        """Begin, if it is not going on. Raises CodememError if it went wrong the last time."""
        if self._process is not None:
            if self._process.is_alive():
                return
            if self._process.exitcode:
                raise CodememError(f"the index of {self._root} cannot be made", f"codemem sync {self._root}")
        self._process = get_context("spawn").Process(target=_build_index, args=(self._root,), daemon=True)
        self._process.start()

    def end(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.join()


def _build_index(root: Path) -> None:
    from codemem.memory.store import Store

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the watcher, which ends this process
    os.nice(max(0, NICENESS - os.nice(0)))  # the watcher that started it may have asked already
    try:
        with Store(root) as store:
            build_index(store)
    except CodememError:
        sys.exit(1)


def _sync(
    store: Store,
    load: Callable[[], Encoder],
    stop: threading.Event,
    report: Callable[[Progress], None],
    encoding: dict[str, Any],
) -> Synced | None:
    while not stop.is_set():
        try:
            return sync(store, load, report, index=False, **encoding)
        except Busy:
            stop.wait(RETRY)
    return None


def _once(load: Callable[[], Encoder]) -> Callable[[], Encoder]:
    loaded: list[Encoder] = []

    def model() -> Encoder:
        if not loaded:
            loaded.append(load())
        return loaded[0]

    return model
