"""The user's cache directory: converted models, locks, and the checksums that are dear to compute twice."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_dir
from rich.console import Console

from codemem.durable import sync
from codemem.errors import CodememError

_CHUNK = 1 << 20


def cache_dir() -> Path:
    """The cache directory, created 0700. `CODEMEM_CACHE` overrides the platform's place.

    Raises CodememError where it cannot be written.
    """
    path = Path(os.environ.get("CODEMEM_CACHE") or user_cache_dir("codemem")).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o700)
    except OSError as error:
        raise CodememError(
            f"the cache directory {path} cannot be used: {error.strerror}",
            "set CODEMEM_CACHE to a directory that you can write",
        ) from error
    return path


def cache_folder(name: str) -> Path:
    """A folder in the cache directory, created 0700. Raises OSError, and CodememError as `cache_dir` does."""
    folder = cache_dir() / name
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def say(message: str) -> None:
    """A note to the person waiting, on stderr."""
    Console(stderr=True).print(f"codemem: {message}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def locked(key: str) -> Iterator[None]:
    """Hold the lock called `key` against other processes. The system lets go of it when a process dies."""
    lock = FileLock(cache_folder("locks") / f"{key}.lock", mode=0o600)
    try:
        lock.acquire(timeout=0.2)
    except Timeout:
        say("waiting for another codemem process that prepares the same model")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def publish(target: Path, fill: Callable[[Path], None]) -> None:
    """Make `target` appear whole: `fill` writes a temporary directory, then synced and renamed.

    The caller holds the lock for `target`. What an interrupted run left is removed first.
    """
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = target.with_name(f".partial-{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    try:
        fill(partial)
        for path in partial.rglob("*"):
            if path.is_file():
                path.chmod(0o600)
                sync(path)
        sync(partial)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        sync(target.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def sha256_of_file(path: Path) -> str:
    """Hex sha256 of the content, read from disk."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def remembered_sha256(path: Path) -> str:
    """Hex sha256 of the content, from the cache while the file keeps its size and modification time."""
    path = path.resolve()
    stat = path.stat()
    store = cache_dir() / "sha256.json"
    known = _read_checksums(store)
    entry = known.get(str(path))
    if entry is not None and entry[:2] == [stat.st_size, stat.st_mtime_ns]:
        return str(entry[2])
    checksum = sha256_of_file(path)
    with locked("sha256"):
        known = {name: value for name, value in _read_checksums(store).items() if os.path.exists(name)}
        known[str(path)] = [stat.st_size, stat.st_mtime_ns, checksum]
        partial = store.with_suffix(".partial")
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            json.dump(known, file, indent=1)
        partial.replace(store)
    return checksum


def _read_checksums(store: Path) -> dict[str, list[int | str]]:
    try:
        known = json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
