"""From store to bank, with the trained indexes kept on disk so that the next process need not build them.

A snapshot is derived and can always be made again: the order in which documents entered the bank, and the inverted
files of that bank. It stays useful while documents come and go: those that are gone are rows that no search returns,
and new ones are added behind.
"""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path

from codemem.memory.bank import COMPACT_ABOVE, Bank
from codemem.memory.knn import IVFIndex
from codemem.memory.store import Store

_KEY = "snapshot"


def open_bank(store: Store, bank: Bank) -> Bank:
    """Fill an empty bank with the documents that are alive in the store, and return it. Raises CodememError for a
    missing or damaged blob."""
    records = {record.path: record for record in store.documents()}
    total = sum(record.entries for record in records.values())
    folder, order = _order(store) if bank.inverted else (None, [])
    alive = {path for path, blob, _ in order if path in records and records[path].blob == blob}
    dead = sum(count for path, _, count in order if path not in alive)
    if dead > COMPACT_ABOVE * (dead + total):
        folder, order, alive, dead = None, [], set(), 0
    bank.reserve(dead + total)
    capacity, bank.capacity = bank.capacity, None  # what is too much goes at once, not with every document
    for path, blob, count in order:
        if path in alive:
            bank.add(path, store.read(blob))
        else:
            bank.skip(count)
    if folder is not None:
        _load_indexes(folder, bank)
    for path, record in records.items():
        if path not in alive:
            bank.add(path, store.read(record.blob))
    bank.capacity = capacity
    if capacity is not None:
        bank.evict(capacity)
    return bank


def save_snapshot(store: Store, bank: Bank) -> None:
    """Bring the bank's indexes up to date and keep them, in place of the snapshot before; nothing for a bank so small
    that search is exact."""
    bank.build()
    if not all(isinstance(index, IVFIndex) for index in bank.indexes.values()) or not bank.indexes:
        _forget(store, keep=None)
        return
    blobs = {record.path: record.blob for record in store.documents()}
    order = [(path, blobs.get(path, ""), count) if live else ("", "", count) for path, count, live in bank.order()]
    name = uuid.uuid4().hex
    folder = store.folder / "index" / name
    folder.mkdir(mode=0o700, parents=True)
    folder.parent.chmod(0o700)
    for layer, index in bank.indexes.items():
        assert isinstance(index, IVFIndex)
        index.save(folder, f"layer{layer}")
    if bank.states is not None:
        bank.states.save(folder)
    (folder / "order.json").write_text(json.dumps(order))
    for file in folder.iterdir():
        file.chmod(0o600)
    store.set(_KEY, name)
    _forget(store, keep=name)


def _order(store: Store) -> tuple[Path | None, list[tuple[str, str, int]]]:
    """The snapshot's folder, and its order of (path, blob, entries); nothing where there is none that can be read."""
    name = store.get(_KEY)
    if not name:
        return None, []
    folder = store.folder / "index" / name
    try:
        return folder, [(path, blob, count) for path, blob, count in json.loads((folder / "order.json").read_text())]
    except (OSError, TypeError, ValueError):
        return None, []


def _load_indexes(folder: Path, bank: Bank) -> None:
    """Give the bank the snapshot's indexes; none of them where one cannot be read."""
    try:
        indexes = {layer: IVFIndex.load(folder, f"layer{layer}", kv) for layer, (kv, _) in bank.shapes.items()}
        if bank.states is not None:
            bank.states.load(folder)
    except (OSError, RuntimeError, ValueError):
        return
    bank.indexes.update(indexes)


def _forget(store: Store, keep: str | None) -> None:
    if keep is None:
        store.set(_KEY, "")
    folder: Path
    for folder in (store.folder / "index").glob("*"):
        if folder.name != keep:
            shutil.rmtree(folder, ignore_errors=True)
