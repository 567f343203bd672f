"""Memory on disk: immutable blobs named by what they hold, and a manifest that says which of them are alive.

`.codemem/` in the repository holds `manifest.db` (SQLite, see manifest.py), `blobs/` (one safetensors file for each
document's entries) and `index/` (derived, see snapshot.py). A blob is written under a temporary name, synced and
renamed, and only then named in the manifest: whatever interrupts that, the store is consistent and finished work is
kept. torch is imported by the first blob that is read or written, so that finding nothing to do takes no second.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from codemem.errors import CodememError
from codemem.memory.fingerprint import Fingerprint
from codemem.memory.integrity import sha256_of
from codemem.memory.manifest import BlobRecord, Manifest
from codemem.syntax import Symbol

if TYPE_CHECKING:
    from codemem.memory.entries import Entries


class Store(Manifest):
    """The memory of the repository at `root`: the manifest and its blobs."""

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

    def blob_name(self, path: str, content_hash: str, secrets: int = 0) -> str:
        """The name of a document's entries: the model reads path and content, so both are in it, with the fingerprint,
        and with how many secrets were masked, if any were."""
        fingerprint = self.fingerprint
        assert fingerprint is not None, "bind the store first"
        parts = [fingerprint.digest, path, content_hash, *([f"masked {secrets}"] if secrets else [])]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def has(self, blob: str) -> bool:
        """Whether a blob is there, with as many bytes as were written."""
        rows = self._select("SELECT bytes FROM blobs WHERE name = ?", blob)
        with suppress(OSError):
            return bool(rows) and self.blob_path(blob).stat().st_size == rows[0][0]
        return False

    def write(self, blob: str, entries: Entries) -> None:
        """Write a blob, durably and all or nothing. Raises CodememError where the disk is full or not writable."""
        from codemem.tensor_files import write_tensors

        tensors = {"tokens": entries.tokens, "lines": entries.lines, "columns": entries.columns}
        tensors |= {f"layer.{layer}": tensor for layer, tensor in entries.layers.items()}
        if entries.states is not None:
            tensors |= {"states": entries.states.codes, "scales": entries.states.scales}
        symbols = json.dumps([(s.name, s.start_line, s.end_line) for s in entries.symbols])
        windows = json.dumps(entries.windows)
        write_tensors(self.blob_path(blob), tensors, {"symbols": symbols, "windows": windows})
        self._adopt(blob, len(entries))

    def _adopt(self, blob: str, entries: int) -> None:
        file = self.blob_path(blob)
        self.add_blob(BlobRecord(blob, sha256_of(file), file.stat().st_size, entries, 0))

    def read(self, blob: str) -> Entries:
        """The entries of a blob, mapped from the file. Raises CodememError where it is missing or damaged."""
        from codemem.memory.entries import Entries
        from codemem.memory.states import States

        try:
            with safe_open(self.blob_path(blob), framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
                metadata = file.metadata()
            symbols = tuple(Symbol(*symbol) for symbol in json.loads(metadata["symbols"]))
            windows = tuple(json.loads(metadata.get("windows", "[]")))
            layers = {int(name[6:]): tensor for name, tensor in tensors.items() if name.startswith("layer.")}
            states = States(tensors["states"], tensors["scales"]) if "states" in tensors else None
            places = tensors["tokens"], tensors["lines"], tensors["columns"]
            return Entries(*places, dict(sorted(layers.items())), symbols, states, windows)
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise CodememError(
                f"{self.blob_path(blob)} is missing or damaged: {error}", f"codemem doctor {self.root} --repair"
            ) from error

    def recover(self) -> None:
        """Take in blobs that a run finished before it could say so, and delete what it had not finished. The caller
        must be the one that writes. Raises CodememError where the folder cannot be read or written."""
        known = self.known_blobs()
        try:
            self.blobs.mkdir(mode=0o700, exist_ok=True)
            files = list(self.blobs.iterdir())
        except OSError as error:
            raise self._unopened(error) from error
        for file in files:
            name = file.name.removesuffix(".safetensors")
            if name == file.name:
                file.unlink(missing_ok=True)
            elif name not in known:
                try:
                    self._adopt(name, len(self.read(name)))
                except CodememError:
                    file.unlink(missing_ok=True)

    def sweep(self) -> int:
        """Delete the blobs and the temporary files that no document needs. Returns how many."""
        needed = {record.blob for record in self.documents()}
        surplus = [file for file in self.blobs.iterdir() if file.name.removesuffix(".safetensors") not in needed]
        self.forget_blobs(self.known_blobs().keys() - needed)
        for file in surplus:
            file.unlink(missing_ok=True)
        return len(surplus)
