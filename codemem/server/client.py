"""A client of the daemon for commands: asks one thing after the other and waits.

Needs neither torch nor pygls nor asyncio.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from codemem.errors import CodememError
from codemem.server.sockets import Address, connected, starting

# Seconds for which a daemon that was just started may be silent before it is given up.
_PATIENCE = 60.0
_POLL = 0.02
_Self = TypeVar("_Self", bound="Client")


class Client:
    """A connection to a daemon, with these folders open. Use as a context manager."""

    def __init__(self, connection: socket.socket, folders: Sequence[Path]) -> None:
        self._connection, self._number = connection, 0
        self._stream: BinaryIO = connection.makefile("rb")
        uris = [folder.as_uri() for folder in folders]
        self.server: dict[str, Any] = self.ask(
            "initialize",
            {
                "processId": os.getpid(),
                "rootUri": None,
                "capabilities": {},
                "workspaceFolders": [{"uri": uri, "name": uri} for uri in uris],
            },
        )
        self.tell("initialized", {})

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._connection.close()

    def ask(self, method: str, params: Any) -> Any:
        """Send a request and return its result. Raises CodememError for an error of ours, ConnectionError where the
        daemon goes away, and TimeoutError."""
        self._number += 1
        self._send({"id": self._number, "method": method, "params": params})
        while True:
            answer = self._receive()
            if answer.get("id") != self._number or "method" in answer:
                continue  # what the daemon tells or asks by itself
            if error := answer.get("error"):
                raise CodememError(error["message"], (error.get("data") or {}).get("hint"))
            return answer.get("result")

    def tell(self, method: str, params: Any) -> None:
        """Send a notification."""
        self._send({"method": method, "params": params})

    def _send(self, message: dict[str, Any]) -> None:
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self._connection.sendall(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))

    def _receive(self) -> dict[str, Any]:
        length = 0
        while line := self._stream.readline():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
            elif not line.strip():
                body = self._stream.read(length)
                if len(body) == length:
                    message: dict[str, Any] = json.loads(body)
                    return message
        raise ConnectionError("the daemon has gone")


def connected_or_started(address: Address, command: Sequence[str]) -> socket.socket:
    """A connection to the daemon of an address, which is started by this command where there is none; of several who
    want that at once one starts it. Raises CodememError where it does not start, with what it said."""
    if connection := connected(address):
        return connection
    with starting(address):
        if connection := connected(address):
            return connection
        log = os.open(address.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True
            )
        finally:
            os.close(log)
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            if connection := connected(address):
                return connection
            if process.poll() is not None:
                break
            time.sleep(_POLL)
    said = address.log.read_text(errors="replace").strip().splitlines()
    errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    raise CodememError(
        f"the daemon of {address.model} does not start: {errors[0] if errors else f'see {address.log}'}",
        f"codemem serve --model {address.model}",
    )
