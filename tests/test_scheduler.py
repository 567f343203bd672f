"""Several requests at one model: fair turns, the newest of a document, cancellation, and changes of memory between."""

from __future__ import annotations

import threading
from itertools import count

import pytest

from codemem.completion.engine import Engine
from codemem.completion.request import Request
from codemem.completion.scheduler import Scheduler
from codemem.completion.scripted import scripted_model

TEXT = "value = first + second + third\n"


@pytest.fixture
def scheduler():
    scheduler = Scheduler(Engine(scripted_model(TEXT), "scripted"))
    yield scheduler
    scheduler.close()


class Gate:
    """Holds the scheduler's thread until it is opened."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._entered, self._open = threading.Event(), threading.Event()
        scheduler.between(lambda: (self._entered.set(), self._open.wait(10)))
        assert self._entered.wait(10)

    def open(self) -> None:
        self._open.set()


def asked(path: str = "a.py", end: int = 8) -> Request:
    return Request(path, TEXT[:end], end)


def test_a_request_is_completed(scheduler):
    seen = []
    completion = scheduler.submit(asked(), show=seen.append).future.result(10)
    assert completion.text == "first + second + third"
    assert seen and completion.text.startswith(seen[-1])


def test_clients_take_turns(scheduler):
    gate, order, number = Gate(scheduler), {}, count()

    def ask(client: str, path: str):
        job = scheduler.submit(asked(path), client=client)
        job.future.add_done_callback(lambda _: order.setdefault((client, path), next(number)))
        return job

    jobs = [ask("one", f"{n}.py") for n in range(3)] + [ask("two", "x.py"), ask("three", "y.py")]
    gate.open()
    assert all(job.future.result(10).text for job in jobs)
    assert sorted(order, key=order.get) == [
        ("one", "0.py"),
        ("two", "x.py"),
        ("three", "y.py"),
        ("one", "1.py"),
        ("one", "2.py"),
    ]


def test_of_a_document_the_newest_request_wins(scheduler):
    gate = Gate(scheduler)
    jobs = [scheduler.submit(asked(end=end)) for end in (8, 9, 10)]
    other = scheduler.submit(asked(), client="another editor")
    for job in jobs[:2]:
        assert (job.future.result(10).text, job.future.result(10).reason) == ("", "cancelled")
    gate.open()
    assert jobs[2].future.result(10).text == TEXT[10:].rstrip()
    assert other.future.result(10).text, "who else has the document open is not disturbed"


def test_the_newest_request_also_cancels_the_one_that_runs(scheduler):
    running, go = threading.Event(), threading.Event()

    def hold(_: str) -> None:
        running.set()
        go.wait(10)

    first = scheduler.submit(asked(), show=hold)
    assert running.wait(10)
    second = scheduler.submit(asked(end=10))
    go.set()
    assert first.future.result(10).reason == "cancelled"
    assert second.future.result(10).text == TEXT[10:].rstrip()


@pytest.mark.parametrize("running", [False, True])
def test_a_cancelled_request_ends_and_others_go_on(scheduler, running):
    gate = None if running else Gate(scheduler)
    begun, go = threading.Event(), threading.Event()
    job = scheduler.submit(asked(), show=lambda _: (begun.set(), go.wait(10)))
    if running:
        assert begun.wait(10)
    other = scheduler.submit(asked("b.py"))
    job.cancel()
    go.set()
    if gate:
        gate.open()
    assert job.future.result(10).reason == "cancelled"
    assert other.future.result(10).text


def test_memory_changes_between_completions_and_before_those_that_wait(scheduler):
    gate = Gate(scheduler)
    job = scheduler.submit(asked())
    model = scheduler._engine.model
    change = scheduler.between(lambda: model.remember(TEXT, "lib.py"))
    gate.open()
    assert change.result(10) == len(TEXT)
    assert job.future.result(10).memory.documents == 1
    with pytest.raises(ZeroDivisionError):
        scheduler.between(lambda: 1 / 0).result(10)


def test_a_fault_reaches_who_asked_and_nobody_else(scheduler):
    def fail(_: str) -> None:
        raise RuntimeError("no")

    broken, fine = scheduler.submit(asked(), show=fail), scheduler.submit(asked("b.py"))
    with pytest.raises(RuntimeError, match="no"):
        broken.future.result(10)
    assert fine.future.result(10).text


def test_closing_cancels_what_waits_and_what_runs():
    scheduler = Scheduler(Engine(scripted_model(TEXT), "scripted"))
    begun, go = threading.Event(), threading.Event()
    running = scheduler.submit(asked(), show=lambda _: (begun.set(), go.wait(10)))
    assert begun.wait(10)
    waiting = scheduler.submit(asked("b.py"))
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    go.set()
    closing.join(10)
    assert not closing.is_alive()
    late = scheduler.submit(asked())
    assert {job.future.result(10).reason for job in (running, waiting, late)} == {"cancelled"}
