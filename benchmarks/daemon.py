"""What the daemon costs over the engine alone, and how long people wait for each other.

    python -m benchmarks.daemon --package mcp==2.3.0

First the same requests go to an engine in this process and to a daemon, in turns. Then two windows and a command line
ask that daemon at once, in two repositories, while one of these is indexed from nothing. A wait is the time from a
question to its answer in which no completion ran, neither its own nor another's.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.corpus import arguments, bars, remember, report
from codemem.completion.engine import Engine
from codemem.completion.request import Request
from codemem.memory.manifest import FOLDER
from codemem.models.pretrained import load_memorizing
from codemem.server.client import Client
from codemem.server.sockets import Address, address_of, connected
from indexer.documents import hash_of
from indexer.packages import package

# Requests that are not counted: what is computed at the first ones.
WARMING = 3


@dataclass(frozen=True)
class Place:
    """A cursor in a file, at the end of what stands on its line. line: from 0."""

    file: Path
    text: str
    line: int
    offset: int

    @property
    def position(self) -> dict[str, int]:
        return {"line": self.line, "character": self.offset - (self.text.rfind("\n", 0, self.offset) + 1)}


def places(root: Path, seed: int) -> Iterator[Place]:
    """Ends of lines with code in files of ASCII alone, without end."""
    chosen = random.Random(seed)
    texts = {file: file.read_text() for file in sorted(root.rglob("*.py"))}
    files = [file for file, text in texts.items() if text.isascii() and text.count("\n") > 40]
    while True:
        file = chosen.choice(files)
        lines = texts[file].split("\n")
        number = chosen.randrange(20, len(lines))
        if lines[number].strip():
            yield Place(file, texts[file], number, len("\n".join(lines[: number + 1])))


class Editor(Client):
    """A window."""

    def __init__(self, address: Address, folder: Path) -> None:
        connection = connected(address)
        assert connection is not None
        self._open: set[Path] = set()
        super().__init__(connection, [folder])

    def open(self, place: Place) -> None:
        if place.file not in self._open:
            self._open.add(place.file)
            item = {"uri": place.file.as_uri(), "languageId": "python", "version": 1, "text": place.text}
            self.tell("textDocument/didOpen", {"textDocument": item})

    def complete(self, place: Place) -> dict[str, Any] | None:
        document = {"uri": place.file.as_uri()}
        params = {"textDocument": document, "position": place.position, "context": {"triggerKind": 1}}
        items: list[dict[str, Any]] = self.ask("textDocument/inlineCompletion", params)["items"]
        return items[0] if items else None

    def timed(self, place: Place) -> tuple[float, float, float]:
        """When it was asked and answered, and how many of the last seconds before that the completion took."""
        params = {"path": str(place.file), "text": place.text, "offset": place.offset, "memory": True}
        params |= {"hash": hash_of(place.text.encode()), "options": {}}
        start = time.perf_counter()
        answer = self.ask("codemem/complete", params)
        return start, time.perf_counter(), answer["ms"]["total"] / 1000


def main() -> None:
    parser = arguments("What the daemon costs, and how long people wait for each other.")
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=40, help="for which all ask at once")
    chosen = parser.parse_args()
    pretrained = load_memorizing(chosen.model)
    root = package(chosen.package)
    bank = remember(pretrained, root)
    with tempfile.TemporaryDirectory(prefix="cm", dir="/tmp") as scratch:
        os.environ |= {"CODEMEM_RUNTIME": f"{scratch}/run", "CODEMEM_STATE": f"{scratch}/state"}
        address, process = address_of(chosen.model), started(chosen.model)
        try:
            engine = Engine(pretrained.model, pretrained.name)
            cost = overhead(address, root, engine, chosen.requests)
            waits = together(address, root, Path(scratch).resolve() / "indexed", chosen.seconds)
        finally:
            process.terminate()
            process.wait()
    bars(chosen.plot, "answers of the daemon", "ms", {key: cost[key] for key in ("engine_ms", "daemon_ms")})
    size = {"documents": len(bank.documents), "entries": len(bank)}
    report("daemon", package=chosen.package, model=pretrained.name, **size, **cost, **waits)


def started(model: str | None) -> subprocess.Popen[bytes]:
    words = ["serve", *(["--model", model] if model else [])]
    process = subprocess.Popen([sys.executable, "-c", "from cli.app import main; main()", *words])
    while connected(address_of(model)) is None:
        time.sleep(0.05)
    return process


def ready(client: Client) -> None:
    while client.ask("codemem/status", {})["state"] != "ready":
        time.sleep(0.05)


def overhead(address: Address, root: Path, engine: Engine, count: int) -> dict[str, Any]:
    """What the daemon adds to the time in which the completion is computed, less what the engine does."""
    times: dict[str, list[float]] = {"engine": [], "daemon": []}
    added: list[float] = []
    equal = 0

    def ask_engine(place: Place) -> tuple[str, float, float]:
        path = place.file.relative_to(root).as_posix()
        request, start = Request(path, place.text, place.offset), time.perf_counter()
        engine.window(request)  # the prompt is made by whoever asks first, here as there
        done = engine.complete(request)
        return done.text, time.perf_counter() - start, done.ms["total"] / 1000

    def ask_daemon(place: Place) -> tuple[str, float, float]:
        start = time.perf_counter()
        item = editor.complete(place)
        whole = time.perf_counter() - start
        if item is None:
            return "", whole, whole
        why = editor.ask("codemem/explain", {"id": item["command"]["arguments"][0]})
        return item["insertText"], whole, why["ms"]["total"] / 1000

    with Editor(address, root) as editor:
        ready(editor)
        for number, place in zip(range(count + WARMING), places(root, 0), strict=False):
            editor.open(place)
            time.sleep(0.2)  # the text is compared with memory's
            # Who is asked second finds the model's weights in the processor's caches.
            asked = {ask: ask(place) for ask in ((ask_engine, ask_daemon) if number % 2 else (ask_daemon, ask_engine))}
            (one, alone, own), (two, served, computed) = asked[ask_engine], asked[ask_daemon]
            if number >= WARMING and two:
                times["engine"].append(alone)
                times["daemon"].append(served)
                added.append((served - computed) - (alone - own))
                equal += one == two
    return {
        "answers": len(added),
        "same_text": equal,
        **{f"{name}_ms": round(1000 * statistics.median(seconds), 1) for name, seconds in times.items()},
        "overhead_ms": round(1000 * statistics.median(added), 2),
    }


def together(address: Address, root: Path, fresh: Path, seconds: float) -> dict[str, Any]:
    """Two windows and a command line at once; `fresh` gets the files of `root` and is indexed meanwhile."""
    shutil.copytree(root, fresh, ignore=shutil.ignore_patterns(FOLDER))
    # From question to answer, and how much of its end the completion took.
    asked: dict[str, list[tuple[float, float, float]]] = {
        "window": [], "window_on_what_is_indexed": [], "command": []
    }  # fmt: skip
    end = time.monotonic() + seconds

    def window(folder: Path, name: str, seed: int) -> None:
        with Editor(address, folder) as editor:
            for place in places(folder, seed):
                if time.monotonic() > end:
                    return
                editor.open(place)
                asked[name].append(editor.timed(place))
                time.sleep(0.1)

    def command() -> None:
        for place in places(root, 3):
            if time.monotonic() > end:
                return
            with Editor(address, root) as client:
                asked["command"].append(client.timed(place))

    with Editor(address, fresh) as indexing:
        threads = [
            threading.Thread(target=window, args=(root, "window", 1)),
            threading.Thread(target=window, args=(fresh, "window_on_what_is_indexed", 2)),
            threading.Thread(target=command),
        ]

        def index() -> None:
            with suppress(OSError, ValueError):  # it need not be done when the others are
                indexing.ask("codemem/index", {"uri": fresh.as_uri()})

        threading.Thread(target=index, daemon=True).start()
        time.sleep(3)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        held = indexing_status(address, fresh)
    running = [(end - own, end) for answers in asked.values() for _, end, own in answers]
    waits = {name: [idle(start, end, running) for start, end, _ in answers] for name, answers in asked.items()}
    return {
        "waits_seconds": seconds,
        **{f"{name}_answers": len(times) for name, times in waits.items()},
        **{f"{name}_wait_ms": round(1000 * statistics.median(times or [0])) for name, times in waits.items()},
        "longest_wait_ms": round(1000 * max(wait for times in waits.values() for wait in times)),
        "indexed_meanwhile": held,
    }


def idle(start: float, end: float, running: list[tuple[float, float]]) -> float:
    """Seconds between start and end in which none of the completions ran."""
    left, at = 0.0, start
    for begun, ended in sorted(running):
        if ended > at:
            left += max(0.0, min(begun, end) - at)
            at = min(end, max(at, ended))
    return left + end - at


def indexing_status(address: Address, folder: Path) -> dict[str, Any]:
    with Editor(address, folder) as editor:
        (found,) = editor.ask("codemem/status", {})["folders"]
    return {key: found.get(key) for key in ("state", "percent", "entries")}


if __name__ == "__main__":
    main()
