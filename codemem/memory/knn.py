"""k-nearest-neighbour search by inner product over the keys of one memory layer: exact, FAISS flat, FAISS IVF.

One small interface for the three. An index holds the keys of every key/value head of a layer; rows are numbered in the
order in which they were added and never change. What must not be read is hidden at search time, so that dropping a
document costs nothing here.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol
from zipfile import BadZipFile

import faiss
import numpy as np
import torch
from torch import Tensor

from codemem.memory.order import EXACT_ENTRIES

IndexKind = Literal["auto", "exact", "flat", "ivf"]

# Keys that the coarse quantiser is trained on, per cell.
TRAINING_KEYS_PER_CELL = 40
# Share of the cells that is searched. On 117K entries of a package that is not reported on, a 13th, a 26th, a 52nd, a
# 104th and a 208th of them gained 0.0538, 0.0541, 0.0538, 0.0482 and 0.0392 nats/token by attention.
PROBED = 1 / 48
# Keys behind an inverted file that are searched exactly, at most.
TAIL_ROWS = 32_768


class Hidden:
    """Rows that a search must not return. mask: [rows] bool, True where hidden."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        self._there: Tensor | None = None

    @cached_property
    def anything(self) -> bool:
        return bool(self.mask.any())

    def on(self, device: torch.device) -> Tensor:
        """The mask on a device, copied there once."""
        if self._there is None or self._there.device != device:
            self._there = self.mask.to(device)
        return self._there

    @cached_property
    def selector(self) -> Any:
        """The rows that may be returned, for FAISS."""
        return faiss.IDSelectorBitmap(np.packbits(~self.mask.cpu().numpy(), bitorder="little"))


class Index(Protocol):
    """Search over the keys of one memory layer."""

    def __len__(self) -> int:
        """Rows added."""

    def outgrown(self, rows: int) -> bool:
        """Whether a bank of so many rows wants a new index."""

    def add(self, keys: Tensor) -> None:
        """Append keys: [kv_heads, n, d]."""

    def search(self, queries: Tensor, k: int, hidden: Hidden) -> Tensor:
        """The rows of the k largest inner products, best first, -1 where there are fewer.

        queries: [kv_heads, m, d]. Returns [kv_heads, m, k] int64.
        """


class ExactIndex:
    """All inner products by one matrix product, on the device of the keys. The reference for the others."""

    def __init__(
        self, kv_heads: int, d: int, dtype: torch.dtype, device: torch.device, most: int | None = None
    ) -> None:
        self._keys = torch.empty(kv_heads, 0, d, dtype=dtype, device=device)
        self._size = 0
        self._most = most

    def __len__(self) -> int:
        return self._size

    def outgrown(self, rows: int) -> bool:
        return self._most is not None and rows > self._most

    def add(self, keys: Tensor) -> None:
        needed = self._size + keys.shape[1]
        if needed > self._keys.shape[1]:
            grown = self._keys.new_empty(self._keys.shape[0], max(needed, self._size * 3 // 2), self._keys.shape[2])
            grown[:, : self._size] = self._keys[:, : self._size]
            self._keys = grown
        self._keys[:, self._size : needed] = keys
        self._size = needed

    def search(self, queries: Tensor, k: int, hidden: Hidden) -> Tensor:
        keys = self._keys[:, : self._size]
        scores = (queries.to(keys.dtype) @ keys.transpose(1, 2)).float()
        if hidden.anything:
            scores.masked_fill_(hidden.on(scores.device), float("-inf"))
        best, rows = scores.topk(min(k, self._size), dim=-1)
        rows = rows.masked_fill(best == float("-inf"), -1)
        return torch.nn.functional.pad(rows, (0, k - rows.shape[-1]), value=-1)


class _FaissIndex:
    """One FAISS index per key/value head."""

    _indexes: list[Any]

    def __len__(self) -> int:
        return int(self._indexes[0].ntotal)

    def outgrown(self, rows: int) -> bool:
        return False

    def add(self, keys: Tensor) -> None:
        for index, head in zip(self._indexes, self._vectors(keys), strict=True):
            index.add(head)

    def _vectors(self, keys: Tensor) -> np.ndarray:
        return np.ascontiguousarray(keys.detach().float().cpu().numpy())

    def _parameters(self, **selector: Any) -> Any:
        return faiss.SearchParameters(**selector)

    def search(self, queries: Tensor, k: int, hidden: Hidden) -> Tensor:
        return self._found(queries.detach().float().cpu(), k, hidden)[1].to(queries.device)

    def _found(self, queries: Tensor, k: int, hidden: Hidden) -> tuple[Tensor, Tensor]:
        """Scores float32 and rows int64, both [kv_heads, m, k], -1 for a row that is not there."""
        parameters = self._parameters(**({"sel": hidden.selector} if hidden.anything else {}))
        heads = zip(self._indexes, queries.numpy(), strict=True)
        scores, rows = zip(*(index.search(q, k, params=parameters) for index, q in heads), strict=True)
        return torch.from_numpy(np.stack(scores)), torch.from_numpy(np.stack(rows))


class FlatIndex(_FaissIndex):
    """FAISS IndexFlatIP: exact, on the CPU."""

    def __init__(self, kv_heads: int, d: int) -> None:
        self._indexes = [faiss.IndexFlatIP(d) for _ in range(kv_heads)]


class IVFIndex(_FaissIndex):
    """FAISS inverted file by inner product, keys in fp16 or 8 bits, for banks too large for exact search.

    Keys are centred by their mean before they are stored: that shifts all scores of a query by the same number, so it
    changes no ranking, and it makes the cells of the coarse quantiser (L2) meaningful.

    What is added to a finished index stands behind it and is searched exactly, the last TAIL_ROWS of it: to find the
    cells of a document's keys takes longer than to search them a few times.
    """

    def __init__(self, keys: Tensor, nlist: int, *, rows: int | None = None, bits: int = 16) -> None:
        """Train on a sample of keys [kv_heads, n, d] of a bank of so many rows (n if None), and add none of them.
        nprobe, a share of the cells, may be set to another number."""
        generator = torch.Generator().manual_seed(0)
        sample = keys[:, torch.randperm(keys.shape[1], generator=generator)[: nlist * TRAINING_KEYS_PER_CELL]].float()
        if not sample.shape[1]:  # FAISS trains on nothing less than one key
            sample = sample.new_zeros(keys.shape[0], 1, keys.shape[2])
        self.nprobe = max(1, round(nlist * PROBED))
        self._trained_for = keys.shape[1] if rows is None else rows
        self._centre = sample.mean(dim=1, keepdim=True).cpu().numpy()
        self._tail = np.empty((keys.shape[0], 0, keys.shape[2]), np.float32)
        self._indexes, self._mapped = [], False
        codec = {8: faiss.ScalarQuantizer.QT_8bit, 16: faiss.ScalarQuantizer.QT_fp16}[bits]
        for head in self._vectors(sample):
            d = head.shape[1]
            index = faiss.IndexIVFScalarQuantizer(
                faiss.IndexFlatL2(d), d, nlist, codec, faiss.METRIC_INNER_PRODUCT, False
            )
            index.train(head)
            self._indexes.append(index)
        self._spread()

    def _spread(self) -> None:
        """Share the cells of a query among threads, not queries: a generated token makes one query or a few."""
        for index in self._indexes:
            index.parallel_mode = 1

    def __len__(self) -> int:
        return super().__len__() + self._tail.shape[1]

    def add(self, keys: Tensor) -> None:
        self._tail = np.concatenate((self._tail, self._vectors(keys)), axis=1)
        held = self._tail.shape[1]
        self._settle(held if super().__len__() < self._trained_for else held - TAIL_ROWS)

    def _settle(self, count: int) -> None:
        """Put the first of what stands behind the inverted file into it: what is too much, so that no edit waits."""
        if count > 0:
            self._own()
            for index, head in zip(self._indexes, self._tail, strict=True):
                index.add(head[:count])
            self._tail = self._tail[:, count:].copy()

    def _found(self, queries: Tensor, k: int, hidden: Hidden) -> tuple[Tensor, Tensor]:
        scores, rows = super()._found(queries, k, hidden)
        if not self._tail.shape[1]:
            return scores, rows
        first = super().__len__()
        behind = queries @ torch.from_numpy(self._tail).transpose(1, 2)
        behind.masked_fill_(hidden.mask[first:].cpu(), float("-inf"))
        every = torch.cat((scores.masked_fill(rows < 0, float("-inf")), behind), dim=-1)
        rows = torch.cat((rows, torch.arange(first, len(self)).expand_as(behind)), dim=-1)
        best, order = every.topk(k, dim=-1)
        return best, rows.gather(-1, order).masked_fill(best == float("-inf"), -1)

    def _own(self) -> None:
        """Copy inverted lists that are mapped from files into memory, since they could not grow there."""
        for index in self._indexes if self._mapped else ():
            mapped, lists = index.invlists, faiss.ArrayInvertedLists(index.nlist, index.code_size)
            for cell in range(index.nlist):
                lists.add_entries(cell, mapped.list_size(cell), mapped.get_ids(cell), mapped.get_codes(cell))
            index.replace_invlists(lists, True)
            lists.this.disown()
        self._mapped = False

    def save(self, folder: Path, name: str) -> None:
        """Write one file per key/value head, and one for the rest."""
        self._settle(self._tail.shape[1])
        self._own()
        for head, index in enumerate(self._indexes):
            faiss.write_index(index, str(folder / f"{name}.head{head}.faiss"))
        np.savez(folder / f"{name}.npz", centre=self._centre, trained_for=self._trained_for)

    @classmethod
    def load(cls, folder: Path, name: str, kv_heads: int) -> IVFIndex:
        """What `save` wrote, mapped from its files. Raises OSError, RuntimeError or ValueError where it cannot be
        read."""
        self = cls.__new__(cls)
        try:
            with np.load(folder / f"{name}.npz") as rest:
                self._centre, self._trained_for = rest["centre"], int(rest["trained_for"])
        except (EOFError, KeyError, BadZipFile) as error:
            raise ValueError(f"{name}.npz is damaged: {error}") from error
        files = [str(folder / f"{name}.head{head}.faiss") for head in range(kv_heads)]
        self._indexes, self._mapped = [faiss.read_index(file, faiss.IO_FLAG_MMAP) for file in files], True
        for index in self._indexes:
            # To start threads that read ahead takes longer than to read.
            faiss.downcast_InvertedLists(index.invlists).prefetch_nthread = 0
        self.nprobe = max(1, round(self._indexes[0].nlist * PROBED))
        self._tail = np.empty((kv_heads, 0, self._centre.shape[2]), np.float32)
        self._spread()
        return self

    def outgrown(self, rows: int) -> bool:
        return rows > 3 * self._trained_for

    def _vectors(self, keys: Tensor) -> np.ndarray:
        centred: np.ndarray = super()._vectors(keys) - self._centre
        return centred

    def _parameters(self, **selector: Any) -> Any:
        return faiss.SearchParametersIVF(nprobe=self.nprobe, **selector)


def make_index(
    kind: IndexKind,
    keys: Tensor,
    dtype: torch.dtype,
    device: torch.device,
    *,
    rows: int | None = None,
    bits: int = 16,
) -> Index:
    """An empty index of the kind asked for, "auto" chooses by size.

    keys: [kv_heads, n, d], all that will be added or a sample of them; rows: how many will be added, n if None; bits:
    of a number in an inverted file.
    """
    kv_heads, n, d = keys.shape
    rows = n if rows is None else rows
    if kind == "auto":
        kind = "exact" if rows <= EXACT_ENTRIES or device.type != "cpu" else "ivf"
        most = EXACT_ENTRIES if device.type == "cpu" else None
        if kind == "exact":
            return ExactIndex(kv_heads, d, dtype, device, most)
    if kind == "exact":
        return ExactIndex(kv_heads, d, dtype, device)
    if kind == "flat":
        return FlatIndex(kv_heads, d)
    # fp16 keys were both faster to scan and more exact than in 8 bits.
    nlist = max(1, min(round(2 * rows**0.5), n // TRAINING_KEYS_PER_CELL))
    return IVFIndex(keys, nlist, rows=rows, bits=bits)
