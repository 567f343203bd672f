"""A daemon in this process with the scripted model, and editors that talk to it over its socket."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cli.serve import Indexing
from codemem.completion.scripted import scripted_model
from codemem.memory.fingerprint import Fingerprint
from codemem.memory.store import Store
from codemem.models.pretrained import Pretrained
from codemem.server.client import Client
from codemem.server.daemon import _Daemon
from codemem.server.sockets import Address, connected, owned, runtime_dir
from codemem.server.statistics import Statistics
from indexer.sync import sync

MODEL = "scripted"


def pretrained(*script: str) -> Pretrained:
    model = scripted_model(*script)
    fingerprint = Fingerprint(MODEL, "none", "float32", model.adapter.layers, 768, 128)
    return Pretrained(model, MODEL, fingerprint, calibrated=False)


def remember(root: Path, loaded: Pretrained) -> Path:
    """Give a folder a memory."""
    with Store(root, create=True) as store:
        store.bind(loaded.fingerprint)
        store.set("model", MODEL)
        sync(store, lambda: loaded.model)
    return root


LIBRARY = "def area(width, height):\n    return width * height\n"
USE = "from lib import area\n\nvalue = \n"


def repository(folder: Path, loaded: Pretrained) -> Path:
    """A folder with two files and a memory of them."""
    folder.mkdir()
    (folder / "lib.py").write_text(LIBRARY)
    (folder / "use.py").write_text(USE)
    return remember(folder, loaded)


class Daemon:
    """A daemon in a thread. loaded: its model, or what gives it."""

    def __init__(
        self, loaded: Pretrained | Callable[[], Pretrained], idle: float = 60.0, address: Address | None = None
    ) -> None:
        self.address = address or Address(runtime_dir(), MODEL)
        self._load = loaded if callable(loaded) else lambda: loaded
        self._idle, self._begun = idle, threading.Event()
        self.daemon: Any = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Daemon:
        self._thread.start()
        assert self._begun.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self.daemon._stop.set)
        self.ended(20)

    def ended(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        async def run() -> None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_signal_handler = lambda *_: None  # signals are for the main thread
            self.daemon = _Daemon(self.address, Indexing(), Statistics(), self._idle)
            self._loop.call_later(0.05, self._begun.set)
            await self.daemon.run(self._load)

        with owned(self.address):
            asyncio.run(run())

    @property
    def hub(self) -> Any:
        return self.daemon._hub

    def connection(self) -> socket.socket:
        connection = connected(self.address, 60)
        assert connection is not None
        return connection

    def editor(self, *folders: Path, **capabilities: Any) -> Editor:
        return Editor(self.connection(), folders, capabilities)


class Editor(Client):
    """A client that keeps what it is told, and answers what it is asked."""

    def __init__(self, connection: socket.socket, folders: tuple[Path, ...], capabilities: dict[str, Any]) -> None:
        self.told: list[dict[str, Any]] = []
        self.versions: dict[str, int] = {}
        self.capabilities = capabilities
        super().__init__(connection, folders)

    def _send(self, message: dict[str, Any]) -> None:
        if message.get("method") == "initialize":
            message["params"]["capabilities"] = self.capabilities
        super()._send(message)

    def _receive(self) -> dict[str, Any]:
        message = super()._receive()
        if "method" in message:
            self.told.append(message)
            if "id" in message:
                super()._send({"id": message["id"], "result": None})
        return message

    def open(self, file: Path, text: str | None = None) -> None:
        uri = file.as_uri()
        self.versions[uri] = 1
        item = {"uri": uri, "languageId": "python", "version": 1, "text": file.read_text() if text is None else text}
        self.tell("textDocument/didOpen", {"textDocument": item})

    def change(self, file: Path, *changes: dict[str, Any]) -> None:
        uri = file.as_uri()
        self.versions[uri] += 1
        document = {"uri": uri, "version": self.versions[uri]}
        self.tell("textDocument/didChange", {"textDocument": document, "contentChanges": list(changes)})

    def insert(self, file: Path, line: int, character: int, text: str) -> None:
        place = {"line": line, "character": character}
        self.change(file, {"range": {"start": place, "end": place}, "text": text})

    def close(self, file: Path) -> None:
        self.tell("textDocument/didClose", {"textDocument": {"uri": file.as_uri()}})

    def place(self, file: Path, line: int, character: int, kind: int = 1) -> dict[str, Any]:
        return {
            "textDocument": {"uri": file.as_uri()},
            "position": {"line": line, "character": character},
            "context": {"triggerKind": kind},
        }

    def complete(self, file: Path, line: int, character: int) -> dict[str, Any] | None:
        """The item, or None where there is none."""
        items = self.ask("textDocument/inlineCompletion", self.place(file, line, character))["items"]
        assert len(items) <= 1
        return items[0] if items else None

    def text(self, file: Path, line: int, character: int) -> str:
        item = self.complete(file, line, character)
        return item["insertText"] if item else ""

    def status(self) -> dict[str, Any]:
        return self.ask("codemem/status", {})

    def until(self, what: Callable[[dict[str, Any]], bool], seconds: float = 60) -> dict[str, Any]:
        """The status as soon as it is like that."""
        end = time.monotonic() + seconds
        while not what(status := self.status()):
            assert time.monotonic() < end, json.dumps(status)
            time.sleep(0.02)
        return status

    def ready(self, documents: int | None = None) -> dict[str, Any]:
        return self.until(
            lambda status: (
                status["state"] == "ready" and (documents is None or status["folders"][0]["documents"] == documents)
            )
        )
