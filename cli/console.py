"""What commands show to people while they work: on stderr, so that stdout holds results only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from indexer.sync import Progress as Step

stderr = Console(stderr=True)


@contextmanager
def index_bar() -> Iterator[Callable[[Step], None]]:
    """A progress bar of indexing, with tokens per second and the time left; gives the function that moves it."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=stderr,
        transient=True,
    )
    with progress:
        task = progress.add_task("reading", total=None, rate="")

        def show(step: Step) -> None:
            elapsed = progress.tasks[task].elapsed
            rate = f"{step.tokens / elapsed:,.0f} tokens/s" if elapsed and step.tokens else ""
            progress.update(task, completed=step.done, total=max(step.total, 1), description=step.path[-48:], rate=rate)

        yield show


@contextmanager
def stage_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar of work in stages, each with a number of equal steps; gives the function that moves it. The bar of
    a finished stage goes away."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeRemainingColumn(),
        console=stderr,
        transient=True,
    )
    tasks: dict[str, TaskID] = {}
    with progress:

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done, total=total, visible=done < total)

        yield show
