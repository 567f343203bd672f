"""The transport: messages with a Content-Length in front of them, over a stream that anybody may have written.

Whatever comes, no more than one message is held in memory, nothing is written without bound, and who sends too much is
read more slowly. Nothing here knows what a message says.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

# Bytes of one message: eight times the longest file that memory reads.
MOST_BYTES = 8 << 20
# Bytes of a message that is too long and passed over; where one is even longer, the stream is given up.
MOST_SKIPPED = 512 << 20
MOST_HEADERS = 16
MOST_HEADER_BYTES = 4096
# Bytes that wait to be written. A client that does not read them for PATIENCE seconds is let go.
MOST_WAITING = 8 << 20
PATIENCE = 30.0
# What a client may send: so much at once, and so much a second. A message counts 1, and 1 more for each 4 KiB: some
# 1,000 keystrokes, or 4 MB, a second.
BURST, RATE, KIB = 4000.0, 1000.0, 4096


class MalformedError(Exception):
    """The stream is not what it should be. over: whether it cannot be read on."""

    def __init__(self, message: str, *, over: bool) -> None:
        super().__init__(message)
        self.over = over


async def read_body(reader: asyncio.StreamReader) -> bytes | None:
    """The next message's body; None where the stream ends, be it in the middle of a message. Raises MalformedError."""
    length: int | None = None
    for _ in range(MOST_HEADERS):
        try:
            line = await reader.readline()
        except ValueError as error:  # longer than the reader's limit
            raise MalformedError("a header line is too long", over=True) from error
        if not line.endswith(b"\n"):
            return None
        name, _, value = line.partition(b":")
        if not line.strip():
            break
        if name.strip().lower() == b"content-length":
            digits = value.strip()
            if not digits.isdigit() or int(digits[:12]) > MOST_SKIPPED:
                raise MalformedError("Content-Length is no number that a message may have", over=True)
            length = int(digits)
    else:
        raise MalformedError("a message has too many headers", over=True)
    if length is None:
        raise MalformedError("a message has no Content-Length", over=True)
    try:
        if length <= MOST_BYTES:
            return await reader.readexactly(length)
        for start in range(0, length, MOST_HEADER_BYTES):
            await reader.readexactly(min(MOST_HEADER_BYTES, length - start))
    except asyncio.IncompleteReadError:
        return None
    raise MalformedError(f"a message has {length:,} bytes; at most {MOST_BYTES:,} are read", over=False)


class BoundedWriter:
    """What pygls writes to: gives up a client that lets too much wait."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    def write(self, data: bytes) -> None:
        transport = self._writer.transport
        if transport.get_write_buffer_size() + len(data) > MOST_WAITING:
            transport.abort()
        elif not transport.is_closing():
            self._writer.write(data)

    def close(self) -> None:
        self._writer.close()


class Pace:
    """How fast a client may send: a bucket of BURST that fills by RATE a second."""

    def __init__(self) -> None:
        self._left, self._at = BURST, time.monotonic()

    def wait(self, size: int) -> float:
        """Seconds for which not to read after a message of so many bytes."""
        now = time.monotonic()
        self._left = min(BURST, self._left + (now - self._at) * RATE) - 1 - size / KIB
        self._at = now
        return max(0.0, -self._left / RATE)


async def converse(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    receive: Callable[[bytes], None],
    refuse: Callable[[str], None],
) -> None:
    """Give every message's body to `receive`, and the fault of those that are none to `refuse`, until the stream ends
    or cannot be followed. A client that does not read is not read either."""
    pace = Pace()
    try:
        while not writer.transport.is_closing():
            try:
                body = await read_body(reader)
            except MalformedError as error:
                refuse(str(error))
                if error.over:
                    return
                continue
            if body is None:
                return
            receive(body)
            await asyncio.sleep(pace.wait(len(body)))  # at 0 too, so that others get their turn
            await asyncio.wait_for(writer.drain(), PATIENCE)
    except (OSError, TimeoutError, asyncio.TimeoutError):
        writer.transport.abort()
