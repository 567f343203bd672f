"""What a person at the keyboard gets: a real file typed key by key, beside a repository in memory and beside nothing.

    python -m benchmarks.keystrokes --package mcp==2.3.0

The file is not in memory: it leaves the package before it is typed from its first line on, five keys a second. A key
that starts a line brings its indentation, as editors do. Between the keys happens what the VS Code extension does: a
pause after each key, then a request; an answer that comes after the next key is not shown; ghost text stays while what
it says is typed. A suggestion that was in view for a moment and is what the file has next is accepted, the whole
or its first line.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.corpus import arguments, bars, remember, report
from benchmarks.daemon import Editor, ready, started
from codemem.memory.store import Store
from codemem.models.pretrained import load_memorizing
from codemem.server.sockets import Address, address_of
from indexer.packages import package
from indexer.sync import sync

# Seconds from a key to the next, from a key to the request, and for which a suggestion is in view before it is
# accepted.
KEY, DEBOUNCE, READING = 0.2, 0.075, 0.3
# Characters that a suggestion must save to be worth a key.
WORTH = 3
LEAST_CHARACTERS = 12_000


@dataclass
class Counts:
    """What happened. latencies: milliseconds from a request to its answer, of those that were answered before the next
    key."""

    keys: int = 0
    plain_keys: int = 0
    asked: int = 0
    shown: int = 0
    right: int = 0
    accepted: int = 0
    latencies: list[float] = field(default_factory=list)


class Keyboard(Editor):
    """Types a text into a document, and sees what the daemon suggests."""

    def __init__(self, address: Address, folder: Path, file: Path) -> None:
        super().__init__(address, folder)
        ready(self)
        self.uri, self.text, self.version = file.as_uri(), "", 1
        self.counts = Counts()
        self._ghost, self._since = "", 0.0
        self._answers: dict[int, tuple[float, str]] = {}
        item = {"uri": self.uri, "languageId": "python", "version": 1, "text": ""}
        self.tell("textDocument/didOpen", {"textDocument": item})
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def __exit__(self, *_: object) -> None:
        self._connection.shutdown(socket.SHUT_RDWR)  # the stream may not be closed while somebody reads
        self._listener.join()
        super().__exit__()

    def type_for(self, truth: str, seconds: float) -> None:
        """Type a text from its start for so many seconds, or to its end."""
        begin = time.perf_counter()
        while len(self.text) < len(truth) and (now := time.perf_counter()) - begin < seconds:
            new = self._accepted(truth[len(self.text) :], now) or next(strokes(truth[len(self.text) :]))
            self.counts.keys += 1
            self.counts.plain_keys += sum(1 for _ in strokes(new))
            self._insert(new)
            due = begin + self.counts.keys * KEY
            if not self._ghost:
                _sleep_until(due - KEY + DEBOUNCE)
                self._ask(due, truth[len(self.text) :])
            _sleep_until(due)

    def _accepted(self, rest: str, now: float) -> str:
        """What of the suggestion in view is accepted: all of it, its first line, or nothing."""
        if not self._ghost or now - self._since < READING:
            return ""
        line = self._ghost.split("\n", 1)[0]
        for part in (self._ghost, line):
            if len(part) >= WORTH and rest.startswith(part):
                self.counts.accepted += 1
                return part
        return ""

    def _insert(self, new: str) -> None:
        place = self._place()
        self.version += 1
        self.text += new
        self.tell(
            "textDocument/didChange",
            {
                "textDocument": {"uri": self.uri, "version": self.version},
                "contentChanges": [{"range": {"start": place, "end": place}, "text": new}],
            },
        )
        self._ghost = self._ghost[len(new) :] if self._ghost.startswith(new) else ""

    def _place(self) -> dict[str, int]:
        line = self.text.count("\n")
        return {"line": line, "character": len(self.text) - (self.text.rfind("\n") + 1)}

    def _ask(self, until: float, truth: str) -> None:
        """Ask, and wait for the answer until the next key is due. It is not cancelled then: who types on asks again."""
        self._number += 1
        self.counts.asked += 1
        context = {"triggerKind": 2}
        params = {"textDocument": {"uri": self.uri}, "position": self._place(), "context": context}
        self._send({"id": self._number, "method": "textDocument/inlineCompletion", "params": params})
        asked = time.perf_counter()
        while time.perf_counter() < until:
            if answer := self._answers.pop(self._number, None):
                at, text = answer
                self.counts.latencies.append(1000 * (at - asked))
                self.counts.shown += bool(text)
                self.counts.right += bool(text) and truth.startswith(text)
                self._ghost, self._since = text, at
                return
            time.sleep(0.002)

    def _listen(self) -> None:
        try:
            while True:
                message = self._receive()
                if "id" in message and "method" not in message:
                    items = (message.get("result") or {}).get("items") or []
                    self._answers[message["id"]] = time.perf_counter(), items[0]["insertText"] if items else ""
        except OSError:
            return


def _sleep_until(due: float) -> None:
    time.sleep(max(0.0, due - time.perf_counter()))


def strokes(text: str) -> Iterator[str]:
    """What each key writes."""
    at = 0
    while at < len(text):
        end = at + 1
        if text[at] == "\n":
            while end < len(text) and text[end] == " ":
                end += 1
        yield text[at:end]
        at = end


def main() -> None:
    parser = arguments("What a person at the keyboard gets.")
    parser.add_argument("--minutes", type=float, default=10, help="of typing, with memory and without")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of the file")
    chosen = parser.parse_args()
    pretrained = load_memorizing(chosen.model)
    source = package(chosen.package)
    remember(pretrained, source)
    texts = {file: file.read_text() for file in sorted(source.rglob("*.py"))}
    long = [file for file, text in texts.items() if text.isascii() and len(text) >= LEAST_CHARACTERS]
    typed = random.Random(chosen.seed).choice(long)
    with tempfile.TemporaryDirectory(prefix="cm", dir="/tmp") as scratch:
        os.environ |= {"CODEMEM_RUNTIME": f"{scratch}/run", "CODEMEM_STATE": f"{scratch}/state"}
        folders = {"memory": Path(scratch, "with").resolve(), "none": Path(scratch, "without").resolve()}
        shutil.copytree(source, folders["memory"])
        (folders["memory"] / typed.relative_to(source)).unlink()
        folders["none"].mkdir()
        (folders["none"] / "notes.md").write_text("# Notes\n")
        for folder in folders.values():
            with Store(folder, create=True) as store:
                store.bind(pretrained.fingerprint)
                sync(store, lambda: pretrained.model)
        address = address_of(chosen.model)
        rows: dict[str, Any] = {}
        for name, folder in folders.items():
            file = folder / typed.relative_to(source)
            process = started(chosen.model)
            try:
                rows[name] = typing(address, process.pid, folder, file, texts[typed], 60 * chosen.minutes)
            finally:
                process.terminate()
                process.wait()
    bars(chosen.plot, "keys saved", "share", {name: row["keys_saved"] for name, row in rows.items()})
    report(
        "keystrokes",
        package=chosen.package,
        model=pretrained.name,
        file=typed.relative_to(source).as_posix(),
        minutes=chosen.minutes,
        **rows,
    )


def typing(address: Address, pid: int, folder: Path, file: Path, text: str, seconds: float) -> dict[str, Any]:
    """One person's minutes with a daemon that was just started."""
    with Keyboard(address, folder, file) as keyboard:
        before, begin = processor_seconds(pid), time.perf_counter()
        keyboard.type_for(text, seconds)
        took = time.perf_counter() - begin
        used = processor_seconds(pid) - before
    counts = keyboard.counts
    spread = statistics.quantiles(counts.latencies, n=20) if len(counts.latencies) > 1 else [0.0] * 19
    return {
        "seconds": round(took),
        "characters": len(keyboard.text),
        "keys": counts.keys,
        "asked": counts.asked,
        "answered": len(counts.latencies),
        "shown": counts.shown,
        "right": counts.right,
        "accepted": counts.accepted,
        "keys_saved": round(1 - counts.keys / counts.plain_keys, 3),
        "p50_ms": round(spread[9]),
        "p95_ms": round(spread[18]),
        "processor": round(used / took, 2),
    }


def processor_seconds(pid: int) -> float:
    """Of all threads of a process, in user and kernel mode (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
