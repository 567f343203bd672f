"""What the daemon bears: messages that nobody should send, clients that vanish or never read, SIGKILL under load.

    python -m benchmarks.fuzzing

A daemon of its own, with a model of random weights, which nothing here depends on. One well-behaved editor asks all the
time, and everything it asks must be answered rightly. Counted are the daemon's file descriptors and resident memory
before and after.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.corpus import report
from codemem.errors import CodememError
from codemem.server.client import Client
from codemem.server.sockets import Address, address_of, connected

TEXT = "def area(width, height):\n    return width * height\n\n\nprint(area(\n"
METHODS = (
    "initialize", "initialized", "textDocument/didOpen", "textDocument/didChange", "textDocument/didClose",
    "textDocument/didSave", "textDocument/inlineCompletion", "codemem/status", "codemem/explain", "codemem/index",
    "codemem/didShow", "codemem/didAccept", "codemem/complete", "workspace/didChangeWorkspaceFolders",
    "$/cancelRequest", "$/setTrace", "workspace/executeCommand", "window/workDoneProgress/cancel", "no/such", "",
)  # fmt: skip


def framed(body: bytes) -> bytes:
    return b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


def value(chance: random.Random, depth: int = 0) -> Any:
    """Anything that JSON can say."""
    plain = (None, True, -1, 0, 2**63, 1e308, "", "x" * 2000, "\ud800", "../../etc/passwd", "file:///etc/passwd", "0")
    if depth > 3 or chance.random() < 0.6:
        return chance.choice(plain)
    if chance.random() < 0.5:
        return [value(chance, depth + 1) for _ in range(chance.randrange(4))]
    names = ("uri", "textDocument", "position", "line", "character", "id", "params", "jsonrpc", "type_name", "class")
    return {chance.choice(names): value(chance, depth + 1) for _ in range(chance.randrange(5))}


def request(chance: random.Random, uri: str) -> dict[str, Any]:
    """A request or notification that is right in some places and wrong in others."""
    place = {"line": chance.choice((0, 4, -5, 10**9, 2**40)), "character": chance.choice((0, 11, -1, 10**9))}
    document = {"uri": chance.choice((uri, uri, uri + "x", "file:///etc/passwd", "untitled:1", value(chance)))}
    params: dict[str, Any] = {
        "textDocument": {**document, "languageId": "python", "version": 1, "text": chance.choice((TEXT, "", "\ud83d"))},
        "position": place,
        "context": {"triggerKind": chance.choice((0, 1, 2, 7))},
        "contentChanges": [{"range": {"start": place, "end": place}, "text": chance.choice(("a", "\r", "\udfff"))}],
        "uri": document["uri"],
        "id": chance.choice(("x", 5, "0" * 32)),
        "kind": "all",
        "length": chance.choice((3, -3, 10**12)),
        "event": {"added": [{"uri": document["uri"], "name": "x"}], "removed": []},
    }
    for _ in range(chance.randrange(3)):
        params[chance.choice(list(params))] = value(chance)
    message: dict[str, Any] = {"jsonrpc": "2.0", "method": chance.choice(METHODS), "params": params}
    if chance.random() < 0.7:
        message["id"] = chance.choice((1, 2, "a", 10**20))
    if chance.random() < 0.2:
        message[chance.choice(("jsonrpc", "method", "params", "id"))] = value(chance)
    return message


def hostile(chance: random.Random, uri: str) -> bytes:
    """Bytes that a client should not send, or should not send like that."""
    kind = chance.randrange(10)
    if kind < 6:
        return framed(json.dumps(request(chance, uri)).encode())
    if kind == 6:
        return framed(json.dumps(value(chance)).encode())
    if kind == 7:
        return framed(chance.choice((b"{", b"\xff\xfe\x00", b"[" * 100_000, b'{"a":' * 3000, b"1" * 9000, b"", b"nul")))
    if kind == 8:
        body = json.dumps(request(chance, uri)).encode()
        return framed(body[: chance.randrange(len(body))] + bytes(chance.randrange(256) for _ in range(9)))
    return chance.choice(
        (
            b"Content-Length: -5\r\n\r\n",
            b"Content-Length: 99999999999999999999999\r\n\r\n",
            b"Content-Length: 7 7\r\n\r\n",
            b"X: " + b"y" * 1_000_000 + b"\r\n",
            b"\r\n\r\n",
            b"A: b\r\n" * 50,
            b"Content-Length: 500\r\n\r\n{",
            bytes(chance.randrange(256) for _ in range(300)),
        )
    )


class Attacker:
    """Connections that send what they should not, and are opened anew when the daemon has had enough."""

    def __init__(self, address: Address, folder: Path, seed: int) -> None:
        self.address, self.folder, self.chance = address, folder, random.Random(seed)
        self.sent = self.connections = 0
        self._connection: socket.socket | None = None

    def open(self) -> socket.socket:
        """A connection that has said what comes first, mostly."""
        while (connection := connected(self.address, 20)) is None:
            time.sleep(0.05)
        self.connections += 1
        if self.chance.random() < 0.9:
            folders = [{"uri": self.folder.as_uri(), "name": "x"}]
            first: dict[str, Any] = {
                "processId": None,
                "rootUri": None,
                "capabilities": {},
                "workspaceFolders": folders,
            }
            hello = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": first}
            with suppress(OSError):
                connection.sendall(framed(json.dumps(hello).encode()))
        return connection

    def send(self, data: bytes) -> None:
        """Send, and read what has come, so that the daemon need not give us up for not reading."""
        self._connection = self._connection or self.open()
        self.sent += 1
        try:
            self._connection.sendall(data)
            self._connection.setblocking(False)
            with suppress(BlockingIOError):
                while self._connection.recv(1 << 16):
                    pass
                raise ConnectionError("the daemon has closed")
            self._connection.settimeout(20)
        except OSError:
            self.close()

    def close(self) -> None:
        if self._connection:
            self._connection.close()
        self._connection = None

    def fuzz(self, messages: int) -> None:
        uri = (self.folder / "use.py").as_uri()
        for _ in range(messages):
            self.send(hostile(self.chance, uri))
        self.close()

    def vanish(self) -> None:
        """Begin something, and be gone at any moment."""
        connection = self.open()
        uri = (self.folder / "use.py").as_uri()
        data = b"".join(framed(json.dumps(message).encode()) for message in conversation(uri))
        with suppress(OSError):
            connection.sendall(data[: self.chance.randrange(1, len(data))])
            time.sleep(self.chance.random() * 0.05)
        connection.close()

    def never_read(self, messages: int = 2000) -> None:
        """Ask and ask, and read no answer."""
        connection = self.open()
        connection.settimeout(2)
        ask = framed(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "codemem/status", "params": {}}).encode())
        with suppress(OSError):
            for _ in range(messages):
                connection.sendall(ask)
        connection.close()


def conversation(uri: str) -> Iterator[dict[str, Any]]:
    item = {"uri": uri, "languageId": "python", "version": 1, "text": TEXT}
    yield {"jsonrpc": "2.0", "method": "textDocument/didOpen", "params": {"textDocument": item}}
    for number in range(5):
        yield {"jsonrpc": "2.0", "id": number, "method": "textDocument/inlineCompletion", "params": asked(uri)}


def asked(uri: str) -> dict[str, Any]:
    place = {"line": 4, "character": 11}
    return {"textDocument": {"uri": uri}, "position": place, "context": {"triggerKind": 1}}


class Watchman(threading.Thread):
    """The well-behaved editor. answered: completions; wrong: answers that were not the one that is right; longest:
    seconds that it waited for one."""

    def __init__(self, address: Address, folder: Path) -> None:
        super().__init__(daemon=True)
        self.address, self.folder, self.over = address, folder, threading.Event()
        self.answered = self.wrong = 0
        self.longest = 0.0
        self.right: str | None = None

    def run(self) -> None:
        while not self.over.is_set():
            connection = connected(self.address, 60)
            if connection is None:
                time.sleep(0.05)
                continue
            with suppress(OSError, CodememError), Client(connection, [self.folder]) as editor:
                self.ask(editor)

    def ask(self, editor: Client) -> None:
        uri = (self.folder / "use.py").as_uri()
        while editor.ask("codemem/status", {})["state"] != "ready":
            time.sleep(0.05)
        for message in conversation(uri):
            editor.tell(message["method"], message["params"])
            break
        while not self.over.is_set():
            start = time.perf_counter()
            items = editor.ask("textDocument/inlineCompletion", asked(uri))["items"]
            self.longest = max(self.longest, time.perf_counter() - start)
            text = items[0]["insertText"] if items else ""
            self.right = text if self.right is None else self.right
            self.answered += 1
            self.wrong += text != self.right
            time.sleep(0.05)


def started(model: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "from cli.app import main; main()", "serve", "--model", str(model)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)


def ready(address: Address, folder: Path) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if connection := connected(address, 60):
            with suppress(OSError), Client(connection, [folder]) as client:
                while client.ask("codemem/status", {})["state"] != "ready":
                    time.sleep(0.05)
                return
        time.sleep(0.05)
    raise SystemExit("the daemon does not come up")


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description="What the daemon bears.")
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--disconnects", type=int, default=200)
    parser.add_argument("--kills", type=int, default=3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cm", dir="/tmp") as scratch:
        os.environ |= {"CODEMEM_RUNTIME": f"{scratch}/run", "CODEMEM_STATE": f"{scratch}/state"}
        report("fuzzing", **measured(Path(scratch).resolve(), chosen))


def measured(scratch: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    model, folder = scratch / "model", scratch / "repository"
    make_model(model)
    folder.mkdir()
    (folder / "lib.py").write_text(TEXT)
    (folder / "use.py").write_text(TEXT)
    index = ["index", str(folder), "--model", str(model)]
    command = [sys.executable, "-c", "from cli.app import main; main()", *index]
    subprocess.run(command, check=True, capture_output=True)
    address, process = address_of(str(model)), started(model)
    ready(address, folder)
    watchman = Watchman(address, folder)
    watchman.start()
    attacker = Attacker(address, folder, seed=0)
    attacker.fuzz(max(100, chosen.messages // 50))  # what is imported and cached at first is no leak
    attacker.never_read()
    time.sleep(2)
    before = descriptors(process.pid), resident_mb(process.pid)
    start = time.monotonic()
    attacker.fuzz(chosen.messages)
    fuzzing = time.monotonic() - start
    for _ in range(chosen.disconnects):
        attacker.vanish()
    attacker.never_read()
    time.sleep(3)
    after = descriptors(process.pid), resident_mb(process.pid)
    alive = process.poll() is None
    recovered = []
    for _ in range(chosen.kills):
        threading.Thread(target=attacker.fuzz, args=(200,), daemon=True).start()
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        start = time.monotonic()
        process = started(model)
        ready(address, folder)
        recovered.append(round(time.monotonic() - start, 2))
    watchman.over.set()
    watchman.join(60)
    process.send_signal(signal.SIGTERM)
    said = (process.communicate(timeout=60)[1] or b"").decode()
    return {
        "messages": attacker.sent,
        "messages_per_second": round(chosen.messages / fuzzing),
        "connections": attacker.connections,
        "disconnects": chosen.disconnects,
        "alive": alive,
        "answered": watchman.answered,
        "answered_wrongly": watchman.wrong,
        "longest_wait_s": round(watchman.longest, 3),
        "descriptors": [before[0], after[0]],
        "resident_mb": [round(before[1]), round(after[1])],
        "killed": chosen.kills,
        "ready_again_s": recovered,
        "ended_with": process.returncode,
        "traceback": "Traceback" in said,
        "socket_left": address.socket.exists(),
    }


def make_model(folder: Path) -> None:
    """A tiny model of random weights, as files."""
    from transformers import PreTrainedTokenizerFast

    from codemem.completion.scripted import scripted_model

    model = scripted_model()
    assert isinstance(model.tokenizer, PreTrainedTokenizerFast)
    model.base.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
