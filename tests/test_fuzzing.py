"""Whatever a client sends, the daemon lives and others are served."""

from __future__ import annotations

import json
import os
import random
import socket
import threading
import time

import pytest
from serving import USE, Daemon, pretrained, repository

from benchmarks.fuzzing import Attacker, framed, hostile

TEXT = "value = first + second + third\n"


@pytest.fixture(scope="module")
def loaded():
    return pretrained(TEXT)


@pytest.fixture
def root(tmp_path, loaded):
    return repository(tmp_path / "repository", loaded)


@pytest.fixture
def daemon(loaded):
    with Daemon(loaded) as daemon:
        yield daemon


@pytest.fixture
def editor(daemon, root):
    with daemon.editor(root) as editor:
        editor.ready()
        editor.open(root / "use.py")
        yield editor


def test_several_hundred_hostile_messages_and_vanishing_clients(daemon, editor, root):
    attacker = Attacker(daemon.address, root, seed=7)
    attacker.fuzz(100)
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(4):
        attacker.fuzz(75)
        for _ in range(5):
            attacker.vanish()
        assert editor.text(root / "use.py", 2, 8) == "first + second + third"
    end = time.monotonic() + 20
    while len(daemon.hub.sessions) > 1:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 3
    assert attacker.sent == 400
    assert {path.name for path in root.iterdir()} == {"lib.py", "use.py", ".codemem"}


def test_a_client_that_never_reads_is_let_go(daemon, editor, root, monkeypatch):
    from codemem.server import wire

    monkeypatch.setattr(wire, "MOST_WAITING", 1 << 17)
    monkeypatch.setattr(wire, "PATIENCE", 0.3)
    silent = daemon.connection()
    silent.settimeout(5)
    ask = framed(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "no/such", "params": {}}).encode())
    with pytest.raises(OSError):
        for _ in range(20_000):
            silent.sendall(ask)
    silent.close()
    assert editor.text(root / "use.py", 2, 8) == "first + second + third"


def answers(connection: socket.socket, *data: bytes) -> list[dict]:
    """What the daemon says to these bytes, until it has nothing more to say or ends the connection."""
    for part in data:
        connection.sendall(part)
    connection.shutdown(socket.SHUT_WR)
    said = b""
    while more := connection.recv(65536):
        said += more
    return [json.loads(part.partition(b"\r\n\r\n")[2]) for part in said.split(b"Content-Length: ")[1:]]


@pytest.mark.parametrize(
    "data, codes",
    [
        (framed(b"{"), [-32700]),
        (framed(b"[]") + framed(b"3"), [-32600, -32600]),
        (framed(b'{"jsonrpc": "1.0", "id": 1, "method": "x"}'), [-32600]),
        (framed(b'{"jsonrpc": "2.0", "id": 1, "method": "codemem/status", "params": {}}'), [-32002]),
        (framed(b'{"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": 5}'), [-32602]),
        (framed(b'{"jsonrpc": "2.0", "id": 1.5, "method": "initialize"}'), [-32600]),
        (framed(b'{"jsonrpc": "2.0", "method": "textDocument/didOpen", "params": {}}'), []),
        (framed(b'{"jsonrpc": "2.0", "id": 9, "result": 3}'), []),
        (b"Content-Length: 1000\r\n\r\nhalf a message", []),
        (b"X: " + b"y" * 1_000_000, [-32700]),
        (b"Content-Length: many\r\n\r\n", [-32700]),
        (b"Content-Length: 9999999999999\r\n\r\n", [-32700]),
        (b"\r\n", [-32700]),
        (b"A: b\r\n" * 40, [-32700]),
    ],
)
def test_faults_are_named_and_harm_nobody(daemon, data, codes):
    with daemon.connection() as connection:
        try:
            found = answers(connection, data)
        except ConnectionError:  # it had said what it had to before it read all
            found = None
    assert found is None or [answer["error"]["code"] for answer in found] == codes
    with daemon.editor() as other:
        assert other.status()["pid"] == os.getpid()


def test_a_message_that_is_too_long_is_passed_over(daemon, editor, monkeypatch):
    from codemem.server import wire

    monkeypatch.setattr(wire, "MOST_BYTES", 10_000)
    body = json.dumps({"jsonrpc": "2.0", "id": 5, "method": "codemem/status", "params": {"uri": "x" * 20_000}}).encode()
    editor._connection.sendall(framed(body))
    assert editor._receive()["error"]["message"].startswith("a message has 20,0")
    assert editor.status()["state"] == "ready"


def test_who_sends_too_much_is_read_more_slowly(monkeypatch):
    from codemem.server.wire import BURST, KIB, RATE, Pace

    pace = Pace()
    waits = [pace.wait(0) for _ in range(int(BURST))]
    assert max(waits[: int(BURST) - 100]) == 0
    assert sum(pace.wait(100 * KIB) for _ in range(3)) > 100 / RATE


def test_no_more_than_so_many_requests_are_under_way(daemon, editor, root):
    gate = threading.Event()
    daemon.hub.scheduler.between(lambda: gate.wait(20))
    files = [root / f"{number}.py" for number in range(70)]
    for number, file in enumerate(files):
        editor.open(file, USE)
        place = editor.place(file, 2, 8)
        editor._send({"id": 1000 + number, "method": "textDocument/inlineCompletion", "params": place})
    codes = []
    while len(codes) < 6:
        answer = editor._receive()
        if "error" in answer:
            codes.append(answer["error"]["code"])
    gate.set()
    assert set(codes) == {-32803}


def test_random_is_reproducible():
    assert hostile(random.Random(3), "file:///a") == hostile(random.Random(3), "file:///a")
