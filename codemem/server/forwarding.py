"""What goes in at stdin comes out of a socket, and back: for editors that start a language server as a process."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from codemem.server.workspace import RefusedError, path_of

_CHUNK = 1 << 16
# Bytes of a first message at most; a longer one is passed on unread.
_MOST = 1 << 20


def forward(connection: socket.socket, read_from: int, write_to: int, head: bytes = b"") -> None:
    """Pass on both ways between a connection and two file descriptors, until the other side of the connection has said
    all that it will. head: what was read before."""

    def send() -> None:
        with suppress(OSError):
            connection.sendall(head)
            while data := os.read(read_from, _CHUNK):
                connection.sendall(data)
        with suppress(OSError):
            connection.shutdown(socket.SHUT_WR)

    threading.Thread(target=send, daemon=True).start()
    with suppress(OSError):
        while data := connection.recv(_CHUNK):
            while data:
                data = data[os.write(write_to, data) :]


def read_first(read_from: int) -> tuple[bytes, list[Path]]:
    """What an editor says first, as far as it was read, and the folders that it has open."""
    head = b""
    while len(head) < _MOST:
        data = os.read(read_from, _CHUNK)
        head += data
        before, end, body = head.partition(b"\r\n\r\n")
        length = re.search(rb"(?im)^content-length: *(\d{1,9})\r?$", before)
        if not data or (end and (length is None or len(body) >= int(length[1]))):
            return head, _folders(body[: int(length[1])] if length else b"")
    return head, []


def _folders(body: bytes) -> list[Path]:
    try:
        params: dict[str, Any] = json.loads(body)["params"]
        uris = [folder["uri"] for folder in params.get("workspaceFolders") or ()] or [params["rootUri"]]
        return [path_of(uri) for uri in uris]
    except (ValueError, KeyError, TypeError, AttributeError, RefusedError):
        return []  # the daemon says what is wrong with it
