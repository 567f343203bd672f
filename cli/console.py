"""What commands show to people while they work: on stderr, so that stdout holds results only."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from indexer.pipeline import Progress as Step

stderr = Console(stderr=True)


class IndexBar:
    """A progress bar of indexing, with tokens per second and the time left."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=stderr,
            transient=True,
        )

    def __enter__(self) -> IndexBar:
        self._progress.start()
        self._task = self._progress.add_task("reading", total=None, rate="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, step: Step) -> None:
        """Draw how far indexing is."""
        elapsed = self._progress.tasks[self._task].elapsed
        rate = f"{step.tokens / elapsed:,.0f} tokens/s" if elapsed and step.tokens else ""
        self._progress.update(
            self._task, completed=step.done, total=max(step.total, 1), description=step.path[-48:], rate=rate
        )


class StageBar:
    """A progress bar of work in stages, each with a number of equal steps."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeRemainingColumn(),
            console=stderr,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> StageBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, stage: str, done: int, total: int) -> None:
        """Draw how far a stage is; the bar of a finished one goes away."""
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total)
        self._progress.update(self._tasks[stage], completed=done, total=total, visible=done < total)
