"""Where the daemon of a model listens, and who may speak with it: this user and nobody else.

A directory that only its owner can enter holds, for each model and version of codemem, a socket, the lock that the
daemon holds as long as it lives, and the lock under which one is started. Whoever holds the first lock may take away a
socket that a dead daemon left. Needs neither torch nor asyncio: `codemem lsp` and `codemem complete` start with it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import socket
import stat
import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock, Timeout

from codemem.errors import CodememError
from codemem.models.catalog import DEFAULT_MODEL, find

# Bytes of a socket's path, without the zero at its end: sockaddr_un has room for no more.
MOST_BYTES = 103 if sys.platform == "darwin" else 107
# Connections that wait to be accepted.
_BACKLOG = 64


@dataclass(frozen=True)
class Address:
    """The place of one model's daemon. model: as commands take it, None left out."""

    folder: Path
    model: str

    @property
    def key(self) -> str:
        """Another version of codemem speaks another language, so it has another daemon."""
        return hashlib.sha256(f"{version('codemem')}\0{self.model}".encode()).hexdigest()[:16]

    @property
    def socket(self) -> Path:
        return self.folder / f"{self.key}.sock"

    @property
    def log(self) -> Path:
        """What a daemon that was started in the background says on stderr."""
        return self.folder / f"{self.key}.log"


def address_of(model: str | None) -> Address:
    """The place of a model's daemon. Raises CodememError where the directory cannot be trusted or used."""
    entry = find(model or DEFAULT_MODEL)
    if entry is not None:
        name = entry.name
    else:
        path = Path(model or "").expanduser()
        name = str(path.resolve()) if path.exists() else str(model)
    return Address(runtime_dir(), name)


def runtime_dir() -> Path:
    """The directory of sockets, made where there is none: this user's, 0700, and no link.

    CODEMEM_RUNTIME names it; else it is `codemem` in the system's directory for such things, or `codemem-UID` in that
    for temporary files. Raises CodememError where it is somebody else's, a link, too deep for a socket, or cannot be
    made.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise CodememError("the daemon needs Unix sockets, which this system has not", "codemem complete --no-daemon")
    folder = _place()
    if len(os.fsencode(folder)) + len("/0123456789abcdef.sock") > MOST_BYTES:
        raise CodememError(
            f"the path {folder} is too long for a socket ({MOST_BYTES} bytes with its name)",
            "set CODEMEM_RUNTIME to a directory with a short path",
        )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:  # a link is one
        raise _untrusted(folder, error.strerror or str(error)) from error
    try:
        if os.fstat(descriptor).st_uid != os.getuid():
            raise _untrusted(folder, "it belongs to another user")
        os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)
    return folder


def _place() -> Path:
    if named := os.environ.get("CODEMEM_RUNTIME"):
        return Path(named).expanduser().absolute()
    if (system := os.environ.get("XDG_RUNTIME_DIR")) and os.path.isabs(system):
        return Path(system) / "codemem"
    return Path(tempfile.gettempdir()) / f"codemem-{os.getuid()}"


def _untrusted(folder: Path, cause: str) -> CodememError:
    return CodememError(
        f"{folder} cannot hold the daemon's socket: {cause}", "set CODEMEM_RUNTIME to another directory"
    )


@contextmanager
def owned(address: Address) -> Iterator[None]:
    """Be the daemon of an address. Raises CodememError where another process is."""
    lock = FileLock(address.folder / f"{address.key}.lock", timeout=0, mode=0o600)
    try:
        lock.acquire()
    except Timeout as error:
        raise CodememError(f"a daemon of {address.model} runs already", "codemem doctor") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def starting(address: Address) -> Iterator[None]:
    """Be the one who starts a daemon; others wait here meanwhile."""
    with FileLock(address.folder / f"{address.key}.start", mode=0o600):
        yield


def listening(address: Address) -> socket.socket:
    """A socket that listens, 0600, in place of one that a dead daemon left. The caller must own the address."""
    with suppress(FileNotFoundError):
        address.socket.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(address.socket))
        address.socket.chmod(0o600)  # the directory lets nobody in before that
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise CodememError(f"{address.socket} cannot be listened on: {error.strerror}", "codemem doctor") from error
    return listener


def connected(address: Address, timeout: float | None = None) -> socket.socket | None:
    """A connection to the daemon of an address, None where there is none, or it is not this user's. timeout: seconds
    for connecting and for every read and write after it, None for no end."""
    with suppress(OSError):
        if not stat.S_ISSOCK(address.socket.lstat().st_mode):
            return None
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout)
            connection.connect(str(address.socket))
            if peer_uid(connection) == os.getuid():
                return connection
        except OSError:
            connection.close()
            raise
        connection.close()
    return None


def peer_uid(connection: socket.socket) -> int:
    """The user on the other side of a Unix socket, as the system says. Raises OSError where it does not."""
    if sys.platform == "linux":
        size = struct.calcsize("3i")  # struct ucred: pid, uid, gid
        _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        return int(uid)
    uid, gid = ctypes.c_uint32(), ctypes.c_uint32()
    library = ctypes.CDLL(None, use_errno=True)
    if library.getpeereid(connection.fileno(), ctypes.byref(uid), ctypes.byref(gid)):
        raise OSError(ctypes.get_errno(), "getpeereid")
    return uid.value
