"""From store to bank, with the trained indexes kept on disk so that the next process need not build them.

A snapshot is derived and can always be made again: the order in which documents entered the bank, and the inverted
file of its states, or those of its keys where it has no token memory. It stays useful while documents come and go:
those that are gone are rows that no search returns, and new ones are added behind. A document that comes back, with a
branch, has its rows there.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from codemem.errors import CodememError
from codemem.memory.bank import Bank
from codemem.memory.integrity import write_sums
from codemem.memory.knn import IVFIndex
from codemem.memory.manifest import Record
from codemem.memory.order import dead_rows, forget_snapshots, keep_snapshot, living, mostly_dead, snapshot_order
from codemem.memory.store import Store

# Rows that a bank has room for beyond a quarter more than it holds, so that edits that follow seldom copy it.
_ROOM = 65_536
# Queries that are searched at once on a GPU at most, and bytes of what is computed for each of them and an entry.
_QUERIES, _SCORE = 64, 6
# Seconds for which finished indexes wait until another process has written.
_PATIENCE = 60


def empty_bank(store: Store, device: str = "cpu") -> Bank:
    """An empty bank for what the store holds, as its entries say. Raises CodememError for a missing or damaged blob."""
    records = store.documents()
    if not records:
        return Bank({})
    entries = store.read(records[0].blob)
    shapes = {layer: (tensor.shape[1], tensor.shape[3]) for layer, tensor in entries.layers.items()}
    dtypes = {tensor.dtype for tensor in entries.layers.values()}
    size = 0 if entries.states is None else entries.states.codes.shape[1]
    return Bank(shapes, dtypes.pop(), device, state_size=size)


def has_room(bank: Bank, entries: int) -> bool:
    """Whether the device of an empty bank has room for so many entries, and for what it takes to search them."""
    if bank.device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(bank.device)
    return entries * (5 * bank.entry_bytes // 4 + bank.state_size + _QUERIES * _SCORE) <= free


def open_bank(store: Store, bank: Bank) -> Bank:
    """Fill an empty bank with the documents that are alive in the store, and return it; another one, on the processor,
    where the bank's GPU has no room for them. Raises CodememError for a missing or damaged blob."""
    records = {record.path: record for record in store.documents()}
    total = sum(record.entries for record in records.values())
    if not has_room(bank, total):
        bank = bank.elsewhere("cpu")
    folder, order = snapshot_order(store) if bank.inverted else (None, [])
    alive = living(order, {path: record.blob for path, record in records.items()})
    if mostly_dead(order, alive, total):
        folder, order, alive = None, [], []
    rows = total + dead_rows(order, alive)
    bank.reserve(rows * 5 // 4 + _ROOM)
    capacity, bank.capacity = bank.capacity, None  # what is too much goes at once, not with every document
    for (path, blob, count), lives in zip(order, alive, strict=True):
        if lives:
            bank.add(path, store.read(blob), blob)
        else:
            bank.skip(count, path, blob)
    if folder is not None:
        _load_indexes(folder, bank)
    held = set(bank.documents)
    for path, record in records.items():
        if path not in held:
            bank.add(path, store.read(record.blob), record.blob)
    bank.capacity = capacity
    if capacity is not None:
        bank.evict(capacity)
    return bank


def follow(store: Store, bank: Bank) -> tuple[list[str], list[str]]:
    """Bring a bank that `open_bank` filled to what the store holds now: the paths added or replaced, and those dropped.
    Raises CodememError for a missing or damaged blob."""
    gone, added = differences(bank, store.documents())
    read = [(record, store.read(record.blob)) for record in added]
    for path in gone:
        bank.drop(path)
    for record, entries in read:
        bank.add(record.path, entries, record.blob)
    return [record.path for record in added], gone


def differences(bank: Bank, records: Sequence[Record]) -> tuple[list[str], list[Record]]:
    """The paths of documents that a bank has and the store's records have not, and the records that a bank has not, or
    with other entries."""
    paths = {record.path for record in records}
    gone = [path for path in bank.documents if path not in paths]
    return gone, [record for record in records if bank.blob(record.path) != record.blob]


def save_snapshot(store: Store, bank: Bank) -> None:
    """Bring the bank's indexes up to date and keep them, in place of the snapshot before; nothing for a bank so small
    that search is exact. Raises CodememError where they cannot be written, and Busy where another process is
    writing."""
    bank.build()
    if not bank.built or not all(isinstance(index, IVFIndex) for index in bank.built):
        forget_snapshots(store)
        return
    name = uuid.uuid4().hex
    folder = store.folder / "index" / name
    try:
        _write(folder, bank)
        with store.writing(wait=_PATIENCE):
            keep_snapshot(store, name)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, (OSError, RuntimeError)):
            raise CodememError(
                f"the index of {store.root} cannot be written: {error}",
                f"free some space, then: codemem sync {store.root}",
            ) from error
        raise


def _write(folder: Path, bank: Bank) -> None:
    """Write the indexes of a bank and the order of its documents. Raises OSError, and RuntimeError for FAISS."""
    folder.mkdir(mode=0o700, parents=True)
    folder.parent.chmod(0o700)
    if bank.states is not None:
        bank.states.save(folder)
    else:
        for layer, index in bank.indexes.items():
            assert isinstance(index, IVFIndex)
            index.save(folder, f"layer{layer}")
    (folder / "order.json").write_text(json.dumps(bank.order()))
    write_sums(folder)
    for file in folder.iterdir():
        file.chmod(0o600)


def _load_indexes(folder: Path, bank: Bank) -> None:
    """Give the bank the snapshot's indexes; none of them where one cannot be read."""
    with suppress(OSError, RuntimeError, ValueError):
        if bank.states is not None:
            bank.states.load(folder)
        else:
            bank.indexes |= {layer: IVFIndex.load(folder, f"layer{layer}") for layer in bank.shapes}
        bank.kept()
