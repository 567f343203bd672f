"""What commands show to people while they work: on stderr, so that stdout holds results only."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

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
