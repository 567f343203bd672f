"""`codemem serve`: one process that has the model and serves every editor and command of this user."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

if TYPE_CHECKING:
    from codemem.completion.engine import Engine
    from codemem.completion.request import Request
    from codemem.memory.banks import Banks
    from codemem.models.pretrained import Pretrained
    from codemem.server.indexing import Encoder
    from codemem.texts import Text

IDLE_MINUTES = 30.0


def serve(
    model: Annotated[
        Optional[str],  # noqa: UP045 - typer reads it at run time, on Python 3.10 too
        typer.Option(help="A catalog name, hub id, local directory or .gguf file.", show_default="the embedded one"),
    ] = None,
    idle: Annotated[float, typer.Option(min=0, help="Minutes without a client after which it leaves.")] = IDLE_MINUTES,
) -> None:
    """Serve editors and commands until Ctrl-C, SIGTERM, or nobody has asked for a while.

    `codemem lsp` starts it by itself. One runs for each user and model; it speaks LSP 3.18 on a socket that only this
    user can open.
    """
    from codemem.server.daemon import serve as be_daemon
    from codemem.server.sockets import address_of
    from codemem.server.statistics import Statistics

    def load() -> Pretrained:
        from codemem.models.pretrained import load_memorizing

        return load_memorizing(model)

    address = address_of(model)
    print(f"codemem: serving {address.model} on {address.socket}", file=sys.stderr)
    be_daemon(address, load, Indexing(), Statistics(), 60 * idle)


def command(model: str, idle: float = IDLE_MINUTES) -> list[str]:
    """How to start it, for who runs this interpreter."""
    start = "from cli.app import main; main()"
    return [sys.executable, "-c", start, "serve", "--model", model, "--idle", str(idle)]


class Indexing:
    """What the daemon needs of the indexer; see `codemem.server.indexing.Indexer`."""

    def watch(
        self,
        root: Path,
        encoder: Encoder,
        stop: threading.Event,
        progress: Callable[[int, int], None],
        rest: Callable[[], None],
    ) -> None:
        from codemem.memory.store import Store
        from indexer.watch import watch

        with Store(root) as store:
            watch(
                store,
                lambda: encoder,
                stop,
                lambda _: progress(1, 1),
                lambda step: progress(step.done, step.total),
                rest=rest,
            )

    def index(
        self,
        root: Path,
        pretrained: Pretrained,
        encoder: Encoder,
        rebuild: bool,
        progress: Callable[[int, int], None],
        rest: Callable[[], None],
    ) -> dict[str, Any]:
        from cli.index import bind
        from codemem.memory.store import Store
        from indexer.sync import sync
        from indexer.walk import walk

        walk(root)  # a folder that cannot be listed gets no memory
        with Store(root, create=True) as store, store.writing(wait=60):  # the watcher may be at it
            bind(store, pretrained, store.get("model"), rebuild=rebuild)
            done = sync(store, lambda: encoder, lambda step: progress(step.done, step.total), rest=rest)
        names = ("documents", "entries", "encoded", "dropped", "kept", "seconds")
        return {name: value for name, value in done.as_json().items() if name in names}

    def sieve(self, root: Path, path: str, text: str) -> Text | None:
        from indexer.buffers import sieved
        from indexer.walk import SkipReason

        found = sieved(root, path, text)
        return None if isinstance(found, SkipReason) else found

    def true_to(self, engine: Engine, banks: Banks, root: Path, request: Request) -> Request:
        from indexer.buffers import true_to

        return true_to(engine, banks, root, request)
