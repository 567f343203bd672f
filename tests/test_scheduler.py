"""Several requests at one model: fair turns, the newest of a document, cancellation, and changes of memory between."""

from __future__ import annotations

import threading
from itertools import count

import pytest
import torch

from codemem.completion.engine import Engine
from codemem.completion.request import Request, Underway, typed_on
from codemem.completion.scheduler import Closed, Job, Scheduler
from codemem.completion.scripted import scripted_model
from codemem.texts import Text

TEXT = "value = first + second + third\n"


class Asking(Scheduler):
    """A scheduler with one engine."""

    def __init__(self) -> None:
        super().__init__("scripted")
        self.model = scripted_model(TEXT)
        self.engine = Engine(self.model, "scripted")

    def ask(self, request: Request, *, client: str = "", show=lambda _: None) -> Job:
        def work(cancelled):
            return self.engine.complete(request, cancelled=cancelled, show=show)

        return self.submit(request.path, work, client=client)

    def ask_typing(self, request: Request, show=lambda _: None) -> Job:
        """As the daemon asks for an editor."""
        underway = Underway(request)

        def both(text):
            underway.show(text)
            show(text)

        def work(cancelled):
            return self.engine.complete(request, cancelled=cancelled, show=both)

        return self.submit(request.path, work, underway=underway)


@pytest.fixture
def scheduler():
    scheduler = Asking()
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
    completion = scheduler.ask(asked(), show=seen.append).future.result(10)
    assert completion.text == "first + second + third"
    assert seen and completion.text.startswith(seen[-1])


def test_clients_take_turns(scheduler):
    gate, order, number = Gate(scheduler), {}, count()

    def ask(client: str, path: str):
        job = scheduler.ask(asked(path), client=client)
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
    jobs = [scheduler.ask(asked(end=end)) for end in (8, 9, 10)]
    other = scheduler.ask(asked(), client="another editor")
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

    first = scheduler.ask(asked(), show=hold)
    assert running.wait(10)
    second = scheduler.ask(asked(end=10))
    go.set()
    assert first.future.result(10).reason == "cancelled"
    assert second.future.result(10).text == TEXT[10:].rstrip()


@pytest.mark.parametrize(("typed", "goes_on"), [("f", True), ("first + s", True), ("other", False), ("firm", False)])
@pytest.mark.parametrize("shown", ["f", "first"])
def test_what_leads_to_the_newest_request_goes_on(scheduler, typed, goes_on, shown):
    """What was typed is compared with what is written, as far as both go, until the newest request has its answer."""
    running, go = threading.Event(), threading.Event()
    before, after = asked(), Request("a.py", TEXT[:8] + typed, 8 + len(typed))

    def hold(text: str) -> None:
        if text.startswith(shown):
            running.set()
            go.wait(10)

    first = scheduler.ask_typing(before, hold)
    assert running.wait(10)
    second = scheduler.ask_typing(after)
    go.set()
    assert first.future.result(10).reason == ("line" if goes_on else "cancelled")
    answer = second.future.result(10)
    if goes_on:
        assert answer.text == TEXT[8 + len(typed) :].rstrip()
        assert answer.ms["total"] == 0.0, "nothing was computed for it"


def test_it_stops_when_the_newer_request_is_cancelled(scheduler):
    running, go = threading.Event(), threading.Event()
    first = scheduler.ask_typing(asked(), lambda _: (running.set(), go.wait(10)))
    assert running.wait(10)
    scheduler.ask_typing(asked(end=9)).cancel()
    go.set()
    assert first.future.result(10).reason == "cancelled"


def test_what_was_typed_between_two_requests():
    before = Request("a.py", "x = fo\ny", 6)
    assert typed_on(before, before) == ""
    assert typed_on(before, Request("a.py", "x = foo(\ny", 8)) == "o("
    assert typed_on(before, Request("b.py", "x = foo(\ny", 8)) is None
    assert typed_on(before, Request("a.py", "x = foo()\ny", 8)) is None, "something came behind the cursor"
    assert typed_on(before, Request("a.py", "x = f\ny", 5)) is None
    assert typed_on(before, Request("a.py", "z = foo\ny", 7)) is None


@pytest.mark.parametrize("running", [False, True])
def test_a_cancelled_request_ends_and_others_go_on(scheduler, running):
    gate = None if running else Gate(scheduler)
    begun, go = threading.Event(), threading.Event()
    job = scheduler.ask(asked(), show=lambda _: (begun.set(), go.wait(10)))
    if running:
        assert begun.wait(10)
    other = scheduler.ask(asked("b.py"))
    job.cancel()
    go.set()
    if gate:
        gate.open()
    assert job.future.result(10).reason == "cancelled"
    assert other.future.result(10).text


def test_memory_changes_between_completions_and_before_those_that_wait(scheduler):
    gate = Gate(scheduler)
    job = scheduler.ask(asked())
    model = scheduler.model
    change = scheduler.between(lambda: model.remember(TEXT, "lib.py"))
    gate.open()
    assert change.result(10) == len(TEXT)
    assert job.future.result(10).memory.documents == 1
    with pytest.raises(ZeroDivisionError):
        scheduler.between(lambda: 1 / 0).result(10)


def test_a_fault_reaches_who_asked_and_nobody_else(scheduler):
    def fail(_: str) -> None:
        raise RuntimeError("no")

    broken, fine = scheduler.ask(asked(), show=fail), scheduler.ask(asked("b.py"))
    with pytest.raises(RuntimeError, match="no"):
        broken.future.result(10)
    assert fine.future.result(10).text


def test_closing_cancels_what_waits_and_what_runs():
    scheduler = Asking()
    begun, go = threading.Event(), threading.Event()
    running = scheduler.ask(asked(), show=lambda _: (begun.set(), go.wait(10)))
    assert begun.wait(10)
    waiting = scheduler.ask(asked("b.py"))
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    go.set()
    closing.join(10)
    assert not closing.is_alive()
    late = scheduler.ask(asked())
    assert {job.future.result(10).reason for job in (running, waiting, late)} == {"cancelled"}


def test_encoding_gives_way_before_every_pass_to_what_comes_first(scheduler):
    order: list[str] = []
    typed, begun, go = [], threading.Event(), threading.Event()

    def files(pause) -> None:
        for number in range(3):
            pause()
            order.append(f"files {number}")
            if number == 0:
                begun.set()
                go.wait(10)

    def buffer(pause) -> None:
        pause()
        order.append("typed")

    encoded = scheduler.encode(files, "files")
    assert begun.wait(10)
    typed.append(scheduler.encode(buffer, "typed"))
    job = scheduler.ask(asked())
    job.future.add_done_callback(lambda _: order.append("completion"))
    scheduler.between(lambda: order.append("change"))
    assert scheduler.busy()
    go.set()
    encoded.result(10)
    assert order == ["files 0", "change", "completion", "typed", "files 1", "files 2"]


def test_a_completion_inside_of_encoding_changes_neither(scheduler):
    model, text = scheduler.model, "def area(width, height):\n    return width * height\n" * 40
    (plain,) = model.encode([Text("lib.py", text)], batch_tokens=1)
    wanted = scheduler.ask(asked()).future.result(10)
    jobs: list[Job] = []

    def encode(pause):
        def interrupted() -> None:
            jobs.append(scheduler.ask(asked()))
            pause()

        return model.encode([Text("lib.py", text)], batch_tokens=1, pause=interrupted)

    (entries,) = scheduler.encode(encode, "files").result(30)
    assert len(jobs) > 1 and all(job.future.done() for job in jobs), "none waited for more than one pass"
    assert {job.future.result().text for job in jobs} == {wanted.text}
    assert all(torch.equal(entries.layers[layer], plain.layers[layer]) for layer in plain.layers)
    assert torch.equal(entries.states.codes, plain.states.codes)
    assert model.reading.attention and model.reading.trace is None, "how memory is read is as it was"


def test_closing_ends_encoding_at_its_next_pass():
    scheduler = Asking()
    begun, go = threading.Event(), threading.Event()

    def work(pause) -> None:
        begun.set()
        go.wait(10)
        pause()

    running, waiting = scheduler.encode(work, "files"), scheduler.encode(work, "files")
    assert begun.wait(10)
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    go.set()
    closing.join(10)
    late = scheduler.encode(work, "typed")
    for future in (running, waiting, late):
        with pytest.raises(Closed):
            future.result(10)
