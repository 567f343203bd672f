"""The daemon: listens, serves whoever may speak with it, and leaves when nobody has for a while."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from codemem.server.hub import Hub
from codemem.server.language_server import Session
from codemem.server.sockets import Address, listening, owned, peer_uid
from codemem.server.wire import MOST_HEADER_BYTES, BoundedWriter, converse

if TYPE_CHECKING:
    from codemem.models.pretrained import Pretrained
    from codemem.server.indexing import Indexer
    from codemem.server.statistics import Statistics

# Connections at once.
MOST_CLIENTS = 64
# Seconds between looks at what is to be done.
TICK = 1.0
# Seconds without a client after which it leaves where the model could not be loaded: the next one may be.
_FAILED_IDLE = 2.0
# Seconds for which who connected just before the daemon leaves is still let in.
_GRACE = 0.1
# Seconds for which clients are waited for when the daemon ends.
_FAREWELL = 2.0
# Seconds for which a thread may hold the interpreter while another wants it: a completion is thousands of short calls.
_SWITCH = 0.0005


def serve(
    address: Address, load: Callable[[], Pretrained], indexer: Indexer, statistics: Statistics, idle: float
) -> None:
    """Be the daemon of an address until SIGTERM or SIGINT, or until there was no client for `idle` seconds. load: gives
    the model. Raises CodememError where there is a daemon already, or the socket cannot be listened on."""
    sys.setswitchinterval(_SWITCH)
    with owned(address):
        asyncio.run(_Daemon(address, indexer, statistics, idle).run(load))


def _failed(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What nobody waited for has failed; no client is to see where."""
    error = context.get("exception")
    print(f"codemem: {context.get('message')}: {type(error).__name__}", file=sys.stderr)
    if error is not None and os.environ.get("CODEMEM_DEBUG") == "1":
        traceback.print_exception(error, file=sys.stderr)


class _Daemon:
    def __init__(self, address: Address, indexer: Indexer, statistics: Statistics, idle: float) -> None:
        logging.getLogger("pygls").setLevel(logging.CRITICAL + 1)  # it logs what people write
        self._address, self._indexer, self._statistics, self._idle = address, indexer, statistics, idle
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, load: Callable[[], Pretrained]) -> None:
        listener = listening(self._address)
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_failed)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        self._hub = hub = Hub(load, self._address.model, self._indexer, self._statistics)
        try:
            while True:
                server = await asyncio.start_unix_server(self._accepted, sock=listener, limit=MOST_HEADER_BYTES)
                await self._until_idle()
                self._address.socket.unlink(missing_ok=True)
                if not self._stop.is_set():
                    await asyncio.sleep(_GRACE)
                server.close()
                if self._stop.is_set() or not hub.sessions:
                    break
                listener = listening(self._address)
        finally:
            self._address.socket.unlink(missing_ok=True)
            for session in hub.sessions:
                session.protocol.lsp_exit()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=_FAREWELL)
            await asyncio.to_thread(hub.close)
        if hub.loader.is_alive():  # it cannot be interrupted, and nothing of it is worth waiting for
            os._exit(0)

    async def _until_idle(self) -> None:
        loop = asyncio.get_running_loop()
        left = loop.time()
        while not self._stop.is_set():
            if self._hub.sessions:
                left = loop.time()
            elif loop.time() - left > (min(_FAILED_IDLE, self._idle) if self._hub.failed else self._idle):
                return
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stop.wait(), min(TICK, max(0.01, self._idle)))
            await self._hub.tick()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection: socket.socket = writer.get_extra_info("socket")
        if len(self._hub.sessions) >= MOST_CLIENTS or peer_uid(connection) != os.getuid():
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        session = Session(self._hub)
        protocol = session.protocol
        protocol.set_writer(BoundedWriter(writer))
        self._hub.sessions.add(session)
        try:
            await converse(reader, writer, protocol.receive, protocol.refuse)
        finally:
            self._tasks.discard(task)
            session.end()
            self._hub.sessions.discard(session)
            rows = session.ledger.news()
            writer.close()
            if rows:
                await asyncio.to_thread(self._hub.count, rows)
