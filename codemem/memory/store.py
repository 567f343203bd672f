"""Memory on disk: immutable blobs named by what they hold, and a manifest that says which of them are alive.

`.codemem/` in the repository holds `manifest.db` (SQLite in WAL mode, the commit point), `blobs/` (one safetensors file
for each document's entries) and `index/` (derived, see snapshot.py). A blob is written under a temporary name, synced
and renamed, and only then named in the manifest: whatever interrupts that, the store is consistent and finished work is
kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from codemem.errors import CodememError
from codemem.memory.entries import Entries
from codemem.memory.fingerprint import Fingerprint
from codemem.memory.states import States
from codemem.syntax import Symbol
from codemem.tensor_files import write_tensors

FOLDER = ".codemem"
_CACHEDIR_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# Made by codemem, and made again by: codemem index\n"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS documents (
    path TEXT PRIMARY KEY, content_hash TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    language TEXT, blob TEXT NOT NULL, entries INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS skipped (path TEXT PRIMARY KEY, reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS refused (path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL);
"""


@dataclass(frozen=True)
class Record:
    """A document as the manifest knows it. content_hash: sha256 of its bytes; blob: the name of its entries."""

    path: str
    content_hash: str
    size: int
    mtime_ns: int
    language: str | None
    blob: str
    entries: int


def find_root(start: Path) -> Path | None:
    """The nearest folder from `start` upward that has a memory, or None."""
    start = start.resolve()
    return next((folder for folder in (start, *start.parents) if (folder / FOLDER / "manifest.db").is_file()), None)


def model_of(root: Path) -> str | None:
    """The model that the memory of `root` was made with, as commands take it, or None where there is no memory."""
    if not (root / FOLDER / "manifest.db").is_file():
        return None
    with Store(root) as store:
        return store.get("model")


class Store:
    """The memory of the repository at `root`. Use as a context manager, or call `close`."""

    def __init__(self, root: Path, *, create: bool = False) -> None:
        """Open the store. Raises CodememError where there is none (unless `create`), or it cannot be read or
        written."""
        self.root, self.folder = root, root / FOLDER
        self.blobs = self.folder / "blobs"
        manifest = self.folder / "manifest.db"
        if not create and not manifest.is_file():
            raise CodememError(f"{root} has no memory", f"codemem index {root}")
        try:
            if create:
                self._create(manifest)
            self._lock = FileLock(self.folder / "lock", timeout=0, mode=0o600)
            self._db = sqlite3.connect(manifest, timeout=10, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise CodememError(
                f"the memory in {self.folder} cannot be opened: {error}", f"check {self.folder} and its rights"
            ) from error

    def _create(self, manifest: Path) -> None:
        for folder in (self.folder, self.blobs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, text in ((".gitignore", "*\n"), ("CACHEDIR.TAG", _CACHEDIR_TAG)):
            (self.folder / name).write_text(text)
            (self.folder / name).chmod(0o600)
        # SQLite gives its journal files the rights of the database.
        os.close(os.open(manifest, os.O_CREAT | os.O_RDWR, 0o600))

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the right to write, across processes; may be nested. Raises CodememError where another process has
        it."""
        try:
            with self._lock:
                yield
        except Timeout as error:
            raise CodememError(f"another process is indexing {self.root}", "wait until it has finished") from error

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

    def bind(self, fingerprint: Fingerprint, *, replace: bool = False) -> None:
        """Make the store one of this fingerprint.

        Raises CodememError if it holds entries of another, unless `replace`: then all entries, and the index over them,
        are deleted first; and where another process is writing.
        """
        with self.writing():
            if replace:
                self.set_documents([], [record.path for record in self.documents()])
                self.sweep()
                shutil.rmtree(self.folder / "index", ignore_errors=True)
            elif self.fingerprint is not None:
                self.check(fingerprint)
            self.set("fingerprint", fingerprint.to_json())

    def check(self, fingerprint: Fingerprint) -> None:
        """Raise CodememError if the store's entries were made with another fingerprint."""
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
            "SELECT path, content_hash, size, mtime_ns, language, blob, entries FROM documents ORDER BY path"
        )
        return [Record(*row) for row in rows]

    def set_documents(self, present: Iterable[Record], gone: Iterable[str] = ()) -> None:
        """Add or replace documents and remove others, as one commit."""
        with self._transaction():
            self._db.executemany("DELETE FROM documents WHERE path = ?", [(path,) for path in gone])
            self._db.executemany(
                "INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(r.path, r.content_hash, r.size, r.mtime_ns, r.language, r.blob, r.entries) for r in present],
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

    def _select(self, query: str, *parameters: str) -> list[Any]:
        try:
            return self._db.execute(query, parameters).fetchall()
        except sqlite3.Error as error:
            raise CodememError(
                f"the memory in {self.folder} cannot be read: {error}", f"check {self.folder}"
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
            raise CodememError(
                f"the memory in {self.folder} cannot be written: {error}", "check free space and rights"
            ) from error

    # Blobs.

    def blob_name(self, path: str, content_hash: str) -> str:
        """The name of a document's entries: the model reads path and content, so both are in it, with the
        fingerprint."""
        fingerprint = self.fingerprint
        assert fingerprint is not None, "bind the store first"
        return hashlib.sha256("\0".join((fingerprint.digest, path, content_hash)).encode()).hexdigest()

    def blob_path(self, blob: str) -> Path:
        return self.blobs / f"{blob}.safetensors"

    def has(self, blob: str) -> bool:
        """Whether a blob is there and whole: safetensors checks the length of the file against its header."""
        try:
            with safe_open(self.blob_path(blob), framework="pt"):
                return True
        except (OSError, SafetensorError):
            return False

    def write(self, blob: str, entries: Entries) -> None:
        """Write a blob, durably and all or nothing. Raises CodememError where the disk is full or not writable."""
        tensors = {"tokens": entries.tokens, "lines": entries.lines, "columns": entries.columns}
        tensors |= {f"layer.{layer}": tensor for layer, tensor in entries.layers.items()}
        if entries.states is not None:
            tensors |= {"states": entries.states.codes, "scales": entries.states.scales}
        symbols = json.dumps([(s.name, s.start_line, s.end_line) for s in entries.symbols])
        write_tensors(self.blob_path(blob), tensors, {"symbols": symbols})

    def read(self, blob: str) -> Entries:
        """The entries of a blob, mapped from the file. Raises CodememError where it is missing or damaged."""
        try:
            with safe_open(self.blob_path(blob), framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
                symbols = tuple(Symbol(*symbol) for symbol in json.loads(file.metadata()["symbols"]))
            layers = {int(name[6:]): tensor for name, tensor in tensors.items() if name.startswith("layer.")}
            states = States(tensors["states"], tensors["scales"]) if "states" in tensors else None
            return Entries(
                tensors["tokens"], tensors["lines"], tensors["columns"], dict(sorted(layers.items())), symbols, states
            )
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise CodememError(
                f"{self.blob_path(blob)} is missing or damaged: {error}", f"codemem index {self.root}"
            ) from error

    def sweep(self) -> int:
        """Delete the blobs and the temporary files that no document needs. Returns how many."""
        needed = {self.blob_path(record.blob) for record in self.documents()}
        surplus = [file for file in self.blobs.iterdir() if file not in needed]
        for file in surplus:
            file.unlink(missing_ok=True)
        return len(surplus)

    def bank_bytes(self) -> int:
        """Bytes that the bank takes in memory: those of the entries that are alive, and of the index over them."""
        blobs = {record.blob for record in self.documents()}
        index = (file.stat().st_size for file in (self.folder / "index").rglob("*.faiss"))
        return sum(self.blob_path(blob).stat().st_size for blob in blobs if self.blob_path(blob).is_file()) + sum(index)

    @property
    def nbytes(self) -> int:
        """Bytes on disk, everything in the folder."""
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())
