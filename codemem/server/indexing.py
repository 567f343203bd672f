"""What the daemon needs of whoever reads working trees, and what it gives to encode with; `cli` puts both together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from codemem.completion.scheduler import Closed, Pause, Scheduler
from codemem.texts import Text

if TYPE_CHECKING:
    from codemem.completion.engine import Engine
    from codemem.completion.request import Request
    from codemem.memory.banks import Banks
    from codemem.memory.entries import Entries
    from codemem.models.memorizing import MemorizingModel
    from codemem.models.pretrained import Pretrained

# Positions in one forward pass of encoding: what a completion waits for at most.
BATCH_TOKENS = 1024
# Seconds between looks whether a completion that others make way for has ended.
_LOOK = 0.005


class Indexer(Protocol):
    """What the daemon needs of whoever reads working trees. rest: called where a completion should come first."""

    def watch(
        self,
        root: Path,
        encoder: Encoder,
        stop: threading.Event,
        progress: Callable[[int, int], None],
        rest: Callable[[], None],
    ) -> None:
        """Keep the store true to the tree until `stop` is set. progress: bytes done, and in all. Raises Busy where
        another process does that, and CodememError."""

    def index(
        self,
        root: Path,
        pretrained: Pretrained,
        encoder: Encoder,
        rebuild: bool,
        progress: Callable[[int, int], None],
        rest: Callable[[], None],
    ) -> dict[str, Any]:
        """Fill the memory of a folder, or bring it up to date; returns what the protocol says. Raises CodememError."""

    def sieve(self, root: Path, path: str, text: str) -> Text | None:
        """An unsaved text as memory may read it, None where it may not."""

    def true_to(self, engine: Engine, banks: Banks, root: Path, request: Request) -> Request:
        """Let memory read what of a request's document stands above its window, as it is in the request."""


def rest(scheduler: Scheduler, stop: threading.Event) -> None:
    """Wait while completions run: Python runs one thread at a time, and theirs should be it. Raises Closed where `stop`
    is set."""
    while scheduler.busy() and not stop.is_set():
        stop.wait(_LOOK)
    if stop.is_set():
        raise Closed


class Encoder:
    """Encodes files when the model has nothing better to do, until `stop` is set."""

    def __init__(self, model: MemorizingModel, scheduler: Scheduler, stop: threading.Event) -> None:
        self._model, self._scheduler, self._stop = model, scheduler, stop

    def warm(self) -> None:
        """As `MemorizingModel.warm`, beside what the model does meanwhile."""
        rest(self._scheduler, self._stop)
        self._model.warm()

    def encode(self, texts: Sequence[Text], **options: Any) -> list[Entries]:
        """As `MemorizingModel.encode`. Raises Closed where it is stopped, or the daemon ends."""

        def work(pause: Pause) -> list[Entries]:
            def step() -> None:
                if self._stop.is_set():
                    raise Closed
                pause()

            return self._model.encode(texts, batch_tokens=BATCH_TOKENS, pause=step, **options)

        return self._scheduler.encode(work, "files").result()
