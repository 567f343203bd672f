"""Who may speak with the daemon, and that there is one."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from serving import Daemon, pretrained

from codemem.errors import CodememError
from codemem.server import daemon as daemon_module
from codemem.server import sockets
from codemem.server.forwarding import forward, read_first
from codemem.server.sockets import Address, address_of, connected, listening, owned, peer_uid, runtime_dir


def mode(path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_the_directory_is_this_users_alone(tmp_path, monkeypatch):
    folder = runtime_dir()
    assert mode(folder) == 0o700
    folder.chmod(0o755)
    assert runtime_dir() == folder and mode(folder) == 0o700
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(CodememError, match="belongs to another user"):
        runtime_dir()


@pytest.mark.parametrize("kind", ["link", "file", "long"])
def test_a_directory_that_cannot_be_trusted_is_refused(tmp_path, monkeypatch, kind):
    place = tmp_path / "place"
    if kind == "link":
        (tmp_path / "elsewhere").mkdir()
        place.symlink_to(tmp_path / "elsewhere")
    elif kind == "file":
        place.write_text("")
    else:
        place = tmp_path / ("x" * 100)
    monkeypatch.setenv("CODEMEM_RUNTIME", str(place))
    said = "too long" if kind == "long" else "cannot hold the daemon's socket"
    with pytest.raises(CodememError, match=said) as error:
        runtime_dir()
    assert "CODEMEM_RUNTIME" in error.value.hint


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.delenv("CODEMEM_RUNTIME")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert str(sockets._place()) == "/run/user/7/codemem"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "not/absolute")
    assert sockets._place().name == f"codemem-{os.getuid()}"


def test_each_model_and_version_has_its_own(monkeypatch, tmp_path):
    assert address_of(None).socket == address_of("SmolLM2-135M").socket
    assert address_of("qwen2.5-coder-0.5b").socket == address_of("Qwen/Qwen2.5-Coder-0.5B").socket
    assert address_of(str(tmp_path)).model == str(tmp_path)
    here = address_of(None).socket
    assert len(os.fsencode(here)) <= 107
    monkeypatch.setattr(sockets, "version", lambda _: "another")
    assert address_of(None).socket != here


def test_one_owner_and_a_dead_ones_socket_is_taken_over():
    address = Address(runtime_dir(), "m")
    assert connected(address) is None
    with owned(address), listening(address):
        assert mode(address.socket) == 0o600
        with pytest.raises(CodememError, match="runs already"), owned(address):
            pass
    assert address.socket.exists(), "as after SIGKILL"
    assert connected(address) is None
    with owned(address), listening(address) as listener:
        mine = connected(address)
        other, _ = listener.accept()
        assert mine and peer_uid(mine) == peer_uid(other) == os.getuid()
        mine.close()
        other.close()


def test_what_is_no_socket_is_not_connected_to():
    address = Address(runtime_dir(), "m")
    address.socket.write_text("")
    assert connected(address) is None


def test_nothing_is_said_to_another_user(monkeypatch):
    address = Address(runtime_dir(), "m")
    with owned(address), listening(address):
        monkeypatch.setattr(sockets, "peer_uid", lambda _: os.getuid() + 1)
        assert connected(address) is None


def test_nothing_is_answered_to_another_user(monkeypatch):
    with Daemon(pretrained("x\n")) as daemon:
        monkeypatch.setattr(daemon_module, "peer_uid", lambda _: os.getuid() + 1)
        with daemon.connection() as connection, suppress(ConnectionError):
            assert connection.recv(1) == b""


@pytest.mark.parametrize(
    "said, folders",
    [
        (
            {"workspaceFolders": [{"uri": "file:///a%20b", "name": "x"}, {"uri": "file:///c", "name": "y"}]},
            ["/a b", "/c"],
        ),
        ({"workspaceFolders": None, "rootUri": "file:///a"}, ["/a"]),
        ({"rootUri": None}, []),
        ({"rootUri": 5}, []),
        (7, []),
    ],
)
def test_what_an_editor_says_first_names_its_folders(said, folders):
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": said}).encode()
    parts = b"Content-Type: x\r\nContent-Length: %d\r\n\r\n" % len(body), body[:5], body[5:] + b"more"
    read_end, write_end = os.pipe()
    thread = threading.Thread(target=lambda: [(os.write(write_end, part), time.sleep(0.02)) for part in parts])
    thread.start()
    head, found = read_first(read_end)
    thread.join()
    assert b"".join(parts).startswith(head) and body in head
    assert found == [Path(folder) for folder in folders]
    os.close(write_end)
    os.close(read_end)


def test_forwarding_passes_everything_on_both_ways():
    near, far = socket.socketpair()
    read_in, write_in = os.pipe()
    read_out, write_out = os.pipe()
    thread = threading.Thread(target=forward, args=(near, read_in, write_out, b"head "))
    thread.start()
    os.write(write_in, b"there")
    assert far.recv(5) + far.recv(100) == b"head there"
    far.sendall(b"back" * 1000)
    assert os.read(read_out, 4000) == b"back" * 1000
    os.close(write_in)
    assert far.recv(1) == b"", "what the editor has ended is ended"
    far.close()
    thread.join(5)
    assert not thread.is_alive()
    for descriptor in (read_in, read_out, write_out):
        os.close(descriptor)
    near.close()
