"""What goes in at stdin comes out of a socket, and back: for editors that start a language server as a process."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress

_CHUNK = 1 << 16


def forward(connection: socket.socket, read_from: int, write_to: int) -> None:
    """Pass on both ways between a connection and two file descriptors, until the other side of the connection has said
    all that it will."""

    def send() -> None:
        with suppress(OSError):
            while data := os.read(read_from, _CHUNK):
                connection.sendall(data)
        with suppress(OSError):
            connection.shutdown(socket.SHUT_WR)

    threading.Thread(target=send, daemon=True).start()
    with suppress(OSError):
        while data := connection.recv(_CHUNK):
            while data:
                data = data[os.write(write_to, data) :]
