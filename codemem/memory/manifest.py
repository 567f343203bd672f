"""The manifest: what memory holds, and the commit point of every change to it.

SQLite in WAL mode, so that readers never wait and never see half a change. Nothing here needs torch: comparing a
repository with its memory, and telling what it holds, are quick.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import BaseFileLock, FileLock, Timeout

from codemem.errors import CodememError
from codemem.memory.fingerprint import Fingerprint

FOLDER = ".codemem"
_NO_SPACE = 65_536  # bytes free, less than which no commit can be written
_CACHEDIR_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# Made by codemem, and made again by: codemem index\n"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS documents (
    path TEXT PRIMARY KEY, content_hash TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    language TEXT, blob TEXT NOT NULL, entries INTEGER NOT NULL, secrets INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS blobs (
    name TEXT PRIMARY KEY, sha256 TEXT NOT NULL, bytes INTEGER NOT NULL, entries INTEGER NOT NULL,
    left_ns INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS skipped (path TEXT PRIMARY KEY, reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS refused (path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL);
"""


class Busy(CodememError):
    """Another process holds the right to write, or to watch."""


class Damaged(CodememError):
    """The manifest is no database, or not a whole one."""


@dataclass(frozen=True)
class Record:
    """A document as the manifest knows it. content_hash: sha256 of its bytes; blob: the name of its entries; mtime_ns:
    0 where the file was so young when it was read that it could change without getting another time; secrets: values
    that were masked before the model read it."""

    path: str
    content_hash: str
    size: int
    mtime_ns: int
    language: str | None
    blob: str
    entries: int
    secrets: int = 0


@dataclass(frozen=True)
class BlobRecord:
    """A blob as the manifest knows it. sha256: of its file; left_ns: when the last document that had it went, in
    nanoseconds since 1970, 0 for a blob that never had one."""

    name: str
    sha256: str
    bytes: int
    entries: int
    left_ns: int


def find_root(start: Path) -> Path | None:
    """The nearest folder from `start` upward that has a memory, or None."""
    start = start.resolve()
    return next((folder for folder in (start, *start.parents) if (folder / FOLDER / "manifest.db").is_file()), None)


def model_of(root: Path) -> str | None:
    """The model that the memory of `root` was made with, as commands take it, or None where there is no memory."""
    if not (root / FOLDER / "manifest.db").is_file():
        return None
    with Manifest(root) as manifest:
        return manifest.get("model")


_Self = TypeVar("_Self", bound="Manifest")


class Manifest:
    """The manifest of the repository at `root`. Use as a context manager, or call `close`."""

    def __init__(self, root: Path, *, create: bool = False) -> None:
        """Open it. Raises CodememError where there is none (unless `create`), or it cannot be read or written."""
        self.root, self.folder = root, root / FOLDER
        self.blobs = self.folder / "blobs"
        manifest = self.folder / "manifest.db"
        if not create and not manifest.is_file():
            raise CodememError(f"{root} has no memory", f"codemem index {root}")
        try:
            if create:
                self._create(manifest)
            self._lock = FileLock(self.folder / "lock", timeout=0, mode=0o600)
            self._db = sqlite3.connect(manifest, timeout=10, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
            if "secrets" not in [row[1] for row in self._db.execute("PRAGMA table_info(documents)")]:
                self._db.execute("ALTER TABLE documents ADD COLUMN secrets INTEGER NOT NULL DEFAULT 0")
        except sqlite3.DatabaseError as error:
            self._db.close()
            if isinstance(error, sqlite3.OperationalError):
                raise self._unopened(error) from error
            raise Damaged(
                f"the memory in {self.folder} cannot be opened, its manifest is damaged: {error}",
                f"codemem doctor {root} --repair",
            ) from error
        except OSError as error:
            raise self._unopened(error) from error

    def _unopened(self, error: Exception) -> CodememError:
        return self._failed("opened", error)

    def _failed(self, done: str, error: Exception) -> CodememError:
        """What to say where the memory cannot be `done`; SQLite calls a full disk an I/O error."""
        try:
            full = shutil.disk_usage(self.folder).free < _NO_SPACE
        except OSError:
            full = False
        cause = f"the disk is full ({error})" if full else error
        hint = "free some space, then go on" if full else f"check {self.folder} and its rights"
        return CodememError(f"the memory in {self.folder} cannot be {done}: {cause}", hint)

    def _create(self, manifest: Path) -> None:
        for folder in (self.folder, self.blobs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, text in ((".gitignore", "*\n"), ("CACHEDIR.TAG", _CACHEDIR_TAG)):
            file = self.folder / name
            if not file.is_file():
                file.write_text(text)
                file.chmod(0o600)
        # SQLite gives its journal files the rights of the database.
        os.close(os.open(manifest, os.O_CREAT | os.O_RDWR, 0o600))

    def close(self) -> None:
        self._db.close()

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def writing(self, wait: float = 0) -> Iterator[None]:
        """Hold the right to write, across processes; may be nested. It ends with the process, however that ends. Raises
        Busy, naming the process, where another one still has it after `wait` seconds."""
        with self._held(self._lock, "writer", "is indexing", wait):
            yield

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Be the one process that watches the repository. Raises Busy, naming the process, where another one does."""
        lock = FileLock(self.folder / "watch.lock", timeout=0, mode=0o600)
        with self._held(lock, "watcher", "is watching"):
            yield

    def watcher(self) -> int | None:
        """The process that watches the repository now, None for none."""
        try:
            with FileLock(self.folder / "watch.lock", timeout=0, mode=0o600):
                return None
        except (Timeout, OSError):
            return int(self.get("watcher") or 0) or None

    @staticmethod
    def readable(root: Path) -> bool:
        """Whether there is a manifest that SQLite finds nothing wrong with. Raises CodememError where the disk is what
        is wrong."""
        try:
            with Manifest(root) as manifest:
                return manifest.problem() is None
        except Damaged:
            return False

    @contextmanager
    def _held(self, lock: BaseFileLock, key: str, does: str, wait: float = 0) -> Iterator[None]:
        try:
            lock.acquire(timeout=wait)
        except Timeout as error:
            process = self.get(key) or "its number is not known"
            raise Busy(f"another process ({process}) {does} {self.root}", "wait until it has finished") from error
        except OSError as error:
            raise self._failed("written", error) from error
        try:
            if lock.lock_counter == 1:
                self.set(key, str(os.getpid()))
            yield
        finally:
            lock.release()

    def version(self) -> int:
        """A number that is another one whenever another connection has committed since it was asked for the last
        time."""
        return int(self._select("PRAGMA data_version")[0][0])

    # What the entries were made with.

    @property
    def fingerprint(self) -> Fingerprint | None:
        text = self.get("fingerprint")
        try:
            return None if text is None else Fingerprint.from_json(text)
        except (TypeError, ValueError, KeyError) as error:
            raise CodememError(
                f"the memory of {self.root} was made by another version of codemem",
                f"codemem index {self.root} --rebuild",
            ) from error

    def check(self, fingerprint: Fingerprint) -> None:
        """Raise CodememError if the entries were made with another fingerprint."""
        held = self.fingerprint
        if held is None:
            raise CodememError(f"the memory of {self.root} is empty", f"codemem index {self.root}")
        if held.digest != fingerprint.digest:
            raise CodememError(
                f"the memory of {self.root} was made by {held.model} and cannot be read by {fingerprint.model}: "
                + held.differences(fingerprint),
                f"go on with --model {held.model}, or: codemem index {self.root} --model {fingerprint.model} --rebuild",
            )

    def get(self, key: str) -> str | None:
        rows = self._select("SELECT value FROM meta WHERE key = ?", key)
        return str(rows[0][0]) if rows else None

    def set(self, key: str, value: str) -> None:
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    # Documents.

    def documents(self) -> list[Record]:
        """The documents alive, by path."""
        rows = self._select(
            "SELECT path, content_hash, size, mtime_ns, language, blob, entries, secrets FROM documents ORDER BY path"
        )
        return [Record(*row) for row in rows]

    def set_documents(self, present: Iterable[Record], gone: Iterable[str] = ()) -> None:
        """Add or replace documents and remove others, as one commit."""
        records, paths = list(present), list(gone)
        leaving = [(time.time_ns(), path) for path in (*paths, *(record.path for record in records))]
        with self._transaction():
            self._db.executemany(
                "UPDATE blobs SET left_ns = ? WHERE name = (SELECT blob FROM documents WHERE path = ?)", leaving
            )
            self._db.executemany("DELETE FROM documents WHERE path = ?", [(path,) for path in paths])
            self._db.executemany(
                "INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (r.path, r.content_hash, r.size, r.mtime_ns, r.language, r.blob, r.entries, r.secrets)
                    for r in records
                ],
            )

    def skipped(self) -> dict[str, str]:
        """Paths that were not memorised, with the reason."""
        return dict(self._select("SELECT path, reason FROM skipped ORDER BY path"))

    def refused(self) -> dict[str, tuple[int, int]]:
        """Those of the skipped paths that were read first, with the size and modification time they had."""
        rows = self._select("SELECT path, size, mtime_ns FROM refused")
        return {path: (size, mtime_ns) for path, size, mtime_ns in rows}

    def set_skipped(self, skipped: dict[str, str], refused: dict[str, tuple[int, int]]) -> None:
        """Replace what `skipped` and `refused` return."""
        with self._transaction():
            self._db.execute("DELETE FROM skipped")
            self._db.execute("DELETE FROM refused")
            self._db.executemany("INSERT INTO skipped VALUES (?, ?)", skipped.items())
            self._db.executemany(
                "INSERT INTO refused VALUES (?, ?, ?)", [(path, *seen) for path, seen in refused.items()]
            )

    # Blobs.

    def blob_path(self, blob: str) -> Path:
        return self.blobs / f"{blob}.safetensors"

    def known_blobs(self) -> dict[str, BlobRecord]:
        """The blobs that the manifest knows, by name; more than documents have, since what a branch had stays."""
        rows = self._select("SELECT name, sha256, bytes, entries, left_ns FROM blobs")
        return {row[0]: BlobRecord(*row) for row in rows}

    def add_blob(self, blob: BlobRecord) -> None:
        with self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO blobs VALUES (?, ?, ?, ?, ?)",
                (blob.name, blob.sha256, blob.bytes, blob.entries, blob.left_ns),
            )

    def forget_blobs(self, names: Iterable[str]) -> None:
        """Remove blobs, first from the manifest and then from the disk."""
        gone = list(names)
        with self._transaction():
            self._db.executemany("DELETE FROM blobs WHERE name = ?", [(name,) for name in gone])
        for name in gone:
            with suppress(OSError):
                self.blob_path(name).unlink()

    def whole(self) -> frozenset[str]:
        """The names of the blobs that are there with as many bytes as were written. Reads none of them."""
        try:
            with os.scandir(self.blobs) as scan:
                sizes = {entry.name.removesuffix(".safetensors"): entry.stat().st_size for entry in scan}
        except OSError as error:
            raise self._unopened(error) from error
        return frozenset(name for name, blob in self.known_blobs().items() if sizes.get(name) == blob.bytes)

    def _select(self, query: str, *parameters: str) -> list[Any]:
        try:
            return self._db.execute(query, parameters).fetchall()
        except sqlite3.OperationalError as error:
            raise CodememError(
                f"the memory in {self.folder} cannot be read: {error}", f"codemem doctor {self.root}"
            ) from error
        except sqlite3.DatabaseError as error:
            raise Damaged(
                f"the memory in {self.folder} cannot be read, its manifest is damaged: {error}",
                f"codemem doctor {self.root} --repair",
            ) from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._failed("written", error) from error

    def problem(self) -> str | None:
        """What SQLite finds wrong with the database, None for nothing."""
        found = str(self._select("PRAGMA quick_check(1)")[0][0])
        return None if found == "ok" else found

    def bank_bytes(self) -> int:
        """Bytes that the bank takes in memory: those of the entries that are alive, and of the index over them."""
        known = self.known_blobs()
        index = sum(file.stat().st_size for file in (self.folder / "index").rglob("*.faiss"))
        return index + sum(known[name].bytes for name in {r.blob for r in self.documents()} if name in known)

    @property
    def nbytes(self) -> int:
        """Bytes on disk, everything in the folder."""
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())
