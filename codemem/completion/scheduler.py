"""Many who ask, one model, one thread: completions in a fair order and of a document only the newest, changes of memory
between them, and encoding, which gives way before every forward pass.

Whatever computes with the model runs here, so that no two ever do at once. What waits is taken in this order: changes
of memory, completions, typed text that is encoded, files that are encoded. An encoding that is under way asks before
every forward pass whether something that comes before it waits, and lets that run first, inside of it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Literal, TypeVar

from codemem.completion.request import Completion, Underway
from codemem.errors import CodememError

_Result = TypeVar("_Result")
# Asked before every forward pass of a completion; called before every one of encoding.
Cancelled = Callable[[], bool]
Pause = Callable[[], None]
# What is encoded, the more urgent first.
Urgency = Literal["typed", "files"]
_URGENCIES: tuple[Urgency, ...] = ("typed", "files")


class Closed(CodememError):
    """The scheduler has ended."""

    def __init__(self) -> None:
        super().__init__("codemem is ending", "start it again: codemem serve")


class Job:
    """A completion that waits or runs. work: what computes it; underway: what that is, if it is known; future: the
    completion; of one that was cancelled an empty one with that reason."""

    def __init__(self, path: str, work: Callable[[Cancelled], Completion], underway: Underway | None = None) -> None:
        self.path, self.work, self.underway = path, work, underway
        self.future: Future[Completion] = Future()
        self._cancelled = threading.Event()
        self._newer: Job | None = None

    def cancel(self) -> None:
        """Take no further step for it. Nothing where it is done."""
        self._cancelled.set()

    def overtake(self, newer: Job) -> None:
        """Take a further step only while that leads to what a newer job asks for, which then has it at once."""
        self._newer = newer

    def cancelled(self) -> bool:
        newer = self._newer
        return self._cancelled.is_set() or (newer is not None and not self._leads_to(newer))

    def _leads_to(self, newer: Job) -> bool:
        if self.underway is None or newer.underway is None or newer.cancelled():
            return False
        return self.underway.leads_to(newer.underway.request)


class Scheduler:
    """Runs completions, changes of memory and encoding in a thread of its own, which ends with `close`. name: what the
    model is called in answers.

    Clients take turns; a client's documents wait in the order in which they first asked. A request for a document
    cancels the one before it, also where that is running, but for one that is on the way to the same: who types what is
    being written would else never see it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._changed = threading.Condition()
        self._waiting: OrderedDict[str, OrderedDict[str, Job]] = OrderedDict()  # client -> path -> job
        self._actions: deque[Callable[[], None]] = deque()
        self._encodings: dict[Urgency, deque[Callable[[], None]]] = {urgency: deque() for urgency in _URGENCIES}
        self._running: tuple[str, Job] | None = None
        self._closed = self._ended = False
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def submit(
        self,
        path: str,
        work: Callable[[Cancelled], Completion],
        *,
        client: str = "",
        underway: Underway | None = None,
    ) -> Job:
        """Ask for a completion in a document. work: called in the scheduler's thread with what `Engine.complete` takes
        as `cancelled`; underway: told by it what is written."""
        job = Job(path, work, underway)
        with self._changed:
            if self._closed:
                self._drop(job)
                return job
            waiting = self._waiting.setdefault(client, OrderedDict())
            before = waiting.get(path)
            waiting[path] = job  # in the place of the one before, if there is one
            if self._running and (self._running[0], self._running[1].path) == (client, path):
                self._running[1].overtake(job)
            self._changed.notify()
        if before is not None:
            self._drop(before)
        return job

    def between(self, action: Callable[[], _Result]) -> Future[_Result]:
        """Run something that no completion may run beside, such as a change of memory: after the one that is running,
        before those that wait. Its future raises Closed where it never runs."""
        return self._add(self._actions, action)

    def encode(self, work: Callable[[Pause], _Result], urgency: Urgency) -> Future[_Result]:
        """Run something that encodes, when nothing else is wanted. work: gets the `pause` for `MemorizingModel.encode`;
        its forward passes are what others wait for at most. Its future raises Closed where it does not end."""
        return self._add(self._encodings[urgency], partial(work, partial(self._give_way, urgency)))

    def busy(self) -> bool:
        """Whether a completion runs or waits, so that others should leave the processor alone."""
        return bool(self._running or self._waiting)

    def close(self) -> None:
        """Cancel all that waits and runs, and end."""
        with self._changed:
            self._closed = True
            jobs = [job for waiting in self._waiting.values() for job in waiting.values()]
            self._waiting.clear()
            if self._running:
                self._running[1].cancel()
            self._changed.notify()
        for job in jobs:
            self._drop(job)
        self._thread.join()

    def _add(self, queue: deque[Callable[[], None]], action: Callable[[], _Result]) -> Future[_Result]:
        future: Future[_Result] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                if self._closed:
                    raise Closed
                future.set_result(action())
            except BaseException as error:  # whoever waits for it gets it
                future.set_exception(error)

        with self._changed:
            if self._ended:
                future.set_exception(Closed())
                return future
            queue.append(run)
            self._changed.notify()
        return future

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._something())
                step = self._next(_URGENCIES)
                self._ended = step is None  # closed, and nothing is left
            if step is None:
                return
            step()

    def _give_way(self, urgency: Urgency) -> None:
        """Let run what comes before an encoding of this urgency. Raises Closed where the scheduler was closed."""
        before = _URGENCIES[: _URGENCIES.index(urgency)]
        while True:
            with self._changed:
                if self._closed:
                    raise Closed
                step = self._next(before)
            if step is None:
                return
            step()

    def _something(self) -> bool:
        return bool(self._actions or self._waiting or any(self._encodings.values()))

    def _next(self, urgencies: tuple[Urgency, ...]) -> Callable[[], None] | None:
        """What is to be done now, encoding of these urgencies included; None for nothing."""
        if self._actions:
            return self._actions.popleft()
        if self._waiting:
            self._running = self._turn()
            return partial(self._complete, self._running[1])
        return next((self._encodings[urgency].popleft() for urgency in urgencies if self._encodings[urgency]), None)

    def _turn(self) -> tuple[str, Job]:
        """The oldest request of the client whose turn it is; then it is that of the others."""
        client, waiting = next(iter(self._waiting.items()))
        _, job = waiting.popitem(last=False)
        self._waiting.move_to_end(client)
        if not waiting:
            del self._waiting[client]
        return client, job

    def _complete(self, job: Job) -> None:
        try:
            if job.cancelled():
                self._drop(job)
            elif job.future.set_running_or_notify_cancel():
                job.future.set_result(job.work(job.cancelled))
        except Exception as error:  # whoever asked gets it, and the others are served
            job.future.set_exception(error)
        finally:
            with self._changed:
                self._running = None

    def _drop(self, job: Job) -> None:
        job.cancel()
        if job.future.set_running_or_notify_cancel():
            job.future.set_result(Completion("", self._name, None, "cancelled", 0, {}))
