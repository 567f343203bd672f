"""Many who ask, one model: one completion at a time, in a fair order, and of a document only the newest request."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from codemem.completion.engine import Engine
from codemem.completion.request import Completion, Request

_Result = TypeVar("_Result")


class Job:
    """A request that waits or runs. future: its completion; of one that was cancelled an empty one with that reason."""

    def __init__(self, request: Request, memory: bool, show: Callable[[str], None]) -> None:
        self.request, self.memory, self.show = request, memory, show
        self.future: Future[Completion] = Future()
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Take no further step for it. Nothing where it is done."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()


class Scheduler:
    """Runs the completions of an engine in a thread of its own, which ends with `close`.

    Clients take turns; a client's documents wait in the order in which they first asked. A request for a document
    cancels the one before it, also where that is running.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._changed = threading.Condition()
        self._waiting: OrderedDict[str, OrderedDict[str, Job]] = OrderedDict()  # client -> path -> job
        self._actions: deque[Callable[[], None]] = deque()
        self._running: tuple[str, Job] | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="completions", daemon=True)
        self._thread.start()

    def submit(
        self,
        request: Request,
        *,
        client: str = "",
        memory: bool = True,
        show: Callable[[str], None] = lambda _: None,
    ) -> Job:
        """Ask for a completion; show: called in the scheduler's thread, see `Engine.complete`."""
        job = Job(request, memory, show)
        with self._changed:
            if self._closed:
                job.future.set_result(self._nothing())
                return job
            waiting = self._waiting.setdefault(client, OrderedDict())
            before = waiting.get(request.path)
            waiting[request.path] = job  # in the place of the one before, if there is one
            if self._running and (self._running[0], self._running[1].request.path) == (client, request.path):
                self._running[1].cancel()
            self._changed.notify()
        if before is not None:
            before.cancel()
            before.future.set_result(self._nothing())
        return job

    def between(self, action: Callable[[], _Result]) -> Future[_Result]:
        """Run something that no completion may run beside, such as a change of memory: after the one that is running,
        before those that wait."""
        future: Future[_Result] = Future()

        def run() -> None:
            try:
                future.set_result(action())
            except BaseException as error:  # whoever waits for it gets it
                future.set_exception(error)

        with self._changed:
            self._actions.append(run)
            self._changed.notify()
        return future

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
            job.future.set_result(self._nothing())
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._actions or self._waiting)
                if self._actions:
                    action, job = self._actions.popleft(), None
                elif self._closed:
                    return
                else:
                    action, job = None, self._next()
            if action:
                action()
            elif job:
                self._complete(job)
            with self._changed:
                self._running = None

    def _next(self) -> Job:
        """The oldest request of the client whose turn it is; then it is that of the others."""
        client, waiting = next(iter(self._waiting.items()))
        _, job = waiting.popitem(last=False)
        self._waiting.move_to_end(client)
        if not waiting:
            del self._waiting[client]
        self._running = client, job
        return job

    def _complete(self, job: Job) -> None:
        if job.cancelled:
            job.future.set_result(self._nothing())
            return
        try:
            job.future.set_result(
                self._engine.complete(job.request, memory=job.memory, cancelled=lambda: job.cancelled, show=job.show)
            )
        except Exception as error:  # whoever asked gets it, and the others are served
            job.future.set_exception(error)

    def _nothing(self) -> Completion:
        return Completion("", self._engine.name, None, "cancelled", 0, {})
