"""k-nearest-neighbour search by inner product over the keys of one memory layer: exact, FAISS flat, FAISS IVF.

One small interface for the three. An index holds the keys of every key/value head of a layer; rows are numbered in the
order in which they were added and never change. What must not be read is hidden at search time, so that dropping a
document costs nothing here.
"""

from __future__ import annotations

from ctypes import byref
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol
from zipfile import BadZipFile

import faiss
import numpy as np
import torch
from torch import Tensor

from codemem.memory.order import EXACT_ENTRIES
from codemem.native.library import library
from codemem.native.records import FileRecord

IndexKind = Literal["auto", "exact", "flat", "ivf"]

# Keys that the coarse quantiser is trained on, per cell.
TRAINING_KEYS_PER_CELL = 40
# Share of the cells that is searched. On 117K entries of a package that is not reported on, a 13th, a 26th, a 52nd, a
# 104th and a 208th of them gained 0.0538, 0.0541, 0.0538, 0.0482 and 0.0392 nats/token by attention.
PROBED = 1 / 48
# Keys behind an inverted file that are searched exactly: so many for good, since every token pays for reading them, and
# so many at most, since no edit waits until its keys are in the file.
TAIL_ROWS, MOST_TAIL_ROWS = 2_048, 16_384
_ITERATIONS = 10  # of k-means, as FAISS trains an inverted file
_QUERIES_TO_SHARE = 4
_ONE_BY_ONE = 18
_NUMBERS = 64  # of which a key has a multiple where a function of C searches


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
    def shown(self) -> np.ndarray:
        """The rows that may be returned, a bit for each, the lowest of a byte first."""
        return np.packbits(~self.mask.cpu().numpy(), bitorder="little")

    @cached_property
    def pointer(self) -> int | None:
        """The same for functions of C, None for all rows."""
        return int(self.shown.ctypes.data) if self.anything else None

    @cached_property
    def selector(self) -> Any:
        """The same, for FAISS."""
        return faiss.IDSelectorBitmap(self.shown)


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
    """All inner products by one matrix product, on the device of the keys. The reference for the others. rows: how many
    there will be, as far as is known; most: how many there may be."""

    def __init__(
        self,
        kv_heads: int,
        d: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        rows: int = 0,
        most: int | None = None,
    ) -> None:
        self._keys = torch.empty(kv_heads, rows, d, dtype=dtype, device=device)
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


class FlatIndex:
    """FAISS IndexFlatIP, one per key/value head: exact, on the CPU."""

    def __init__(self, kv_heads: int, d: int) -> None:
        self._indexes = [faiss.IndexFlatIP(d) for _ in range(kv_heads)]

    def __len__(self) -> int:
        return int(self._indexes[0].ntotal)

    def outgrown(self, rows: int) -> bool:
        return False

    def add(self, keys: Tensor) -> None:
        for index, head in zip(self._indexes, _vectors(keys), strict=True):
            index.add(head)

    def search(self, queries: Tensor, k: int, hidden: Hidden) -> Tensor:
        chosen = faiss.SearchParameters(**_selected(hidden))
        heads = zip(self._indexes, _vectors(queries), strict=True)
        found = [index.search(head, k, params=chosen)[1] for index, head in heads]
        return torch.from_numpy(np.stack(found)).to(queries.device)


class IVFIndex:
    """FAISS inverted file by inner product, keys in bf16 or 8 bits, for banks too large for exact search.

    One file for all heads of a layer, so that a layer is searched at once: every head has cells of its own, those of
    head h are nlist * h to nlist * (h + 1) - 1, and an entry stands under its row in one cell of each.

    Keys are centred by their mean before they are stored: that shifts all scores of a query by the same number, so it
    changes no ranking, and it makes the cells of the coarse quantiser (L2) meaningful.

    What is added to a finished index stands behind it and is searched exactly: to find the cells of a document's keys
    takes longer than to search them a few times. `tidy` puts all but the last TAIL_ROWS into the file.
    """

    def __init__(self, keys: Tensor, nlist: int, *, rows: int | None = None, bits: int = 16) -> None:
        """Train on a sample of keys [kv_heads, n, d] of a bank of so many rows (n if None), and add none of them.
        nprobe, a share of the cells, may be set to another number."""
        generator = torch.Generator().manual_seed(0)
        sample = keys[:, torch.randperm(keys.shape[1], generator=generator)[: nlist * TRAINING_KEYS_PER_CELL]].float()
        if not sample.shape[1]:  # FAISS trains on nothing less than one key
            sample = sample.new_zeros(keys.shape[0], 1, keys.shape[2])
        kv_heads, _, d = sample.shape
        self._trained_for = keys.shape[1] if rows is None else rows
        self._centre = sample.mean(dim=1, keepdim=True).cpu()
        centred = self._centred(sample)
        quantiser = faiss.IndexFlatL2(d)
        for head in centred:
            clusters = faiss.Kmeans(d, nlist, niter=_ITERATIONS, min_points_per_centroid=1)
            clusters.train(head)
            quantiser.add(clusters.centroids)
        codec = {8: faiss.ScalarQuantizer.QT_8bit, 16: faiss.ScalarQuantizer.QT_bf16}[bits]
        self._file = faiss.IndexIVFScalarQuantizer(
            quantiser, d, kv_heads * nlist, codec, faiss.METRIC_INNER_PRODUCT, False
        )
        self._file.train(centred.reshape(-1, d))  # of the codec: there are all cells already
        self._mapped = False
        self._cells: _Cells | None = None
        self._open(kv_heads)

    def _open(self, kv_heads: int) -> None:
        """Take the cells of each head off the file."""
        total, d = self._file.nlist, self._file.d
        self._quantisers = []
        for centroids in self._file.quantizer.reconstruct_n(0, total).reshape(kv_heads, -1, d):
            self._quantisers.append(faiss.IndexFlatL2(d))
            self._quantisers[-1].add(centroids)
        self.nprobe = max(1, round(total // kv_heads * PROBED))
        self._tail = torch.empty(kv_heads, 0, d, dtype=torch.float32)

    @property
    def record(self) -> FileRecord | None:
        """What functions of C search: a file of single numbers of 8 bits, for one head. None of another, and where
        there are no such functions. For the time until keys are added."""
        if (cells := self._cells) is not None and cells.nprobe == self.nprobe:
            return cells.record
        file = self._file
        if len(self._quantisers) > 1 or file.code_size != file.d or file.d % _NUMBERS or library("states") is None:
            return None
        self._cells = _Cells(file, self._tail, self.nprobe)
        return self._cells.record

    @property
    def _settled(self) -> int:
        """Rows in the inverted file."""
        return int(self._file.ntotal) // len(self._quantisers)

    def __len__(self) -> int:
        return self._settled + self._tail.shape[1]

    def outgrown(self, rows: int) -> bool:
        return rows > 3 * self._trained_for

    def add(self, keys: Tensor) -> None:
        self._tail, self._cells = torch.cat((self._tail, torch.from_numpy(self._centred(keys))), dim=1), None
        if self._settled < self._trained_for:
            self._settle(self._tail.shape[1])
        elif self._tail.shape[1] > MOST_TAIL_ROWS:
            self.tidy()

    def tidy(self) -> bool:
        """Put what is too much behind the inverted file into it. Returns whether there was anything to do."""
        surplus = self._tail.shape[1] - TAIL_ROWS
        self._settle(surplus)
        return surplus > 0

    def _settle(self, count: int) -> None:
        """Put the first of what stands behind the inverted file into it."""
        if count <= 0:
            return
        self.own()
        self._cells = None
        rows = np.arange(self._settled, self._settled + count)
        for number, (quantiser, keys) in enumerate(zip(self._quantisers, self._tail, strict=True)):
            head = np.ascontiguousarray(keys[:count].numpy())
            places = quantiser.search(head, 1)[1].ravel() + number * quantiser.ntotal
            self._file.add_core(count, *map(faiss.swig_ptr, (head, rows, places)))
        self._tail = self._tail[:, count:].clone()

    def _centred(self, keys: Tensor) -> np.ndarray:
        return _vectors(keys.detach().float().cpu() - self._centre)

    def search(self, queries: Tensor, k: int, hidden: Hidden) -> Tensor:
        """As `Index.search`; what is found for a query does not depend on the others."""
        wanted = queries.detach().float().cpu()
        if (record := self.record) is not None:
            asked, rows = wanted[0].contiguous(), torch.empty(1, wanted.shape[1], k, dtype=torch.int64)
            shown = hidden.pointer
            library("states").search(byref(record), asked.data_ptr(), *asked.shape, shown, k, rows.data_ptr())
            return rows.to(queries.device)
        scores, rows = self._found(wanted, k, hidden)
        if self._tail.shape[1]:
            first = self._settled
            pairs = zip(self._tail, wanted, strict=True)
            # One query at a time, for the same reason as in `_nearest_cells`.
            behind = torch.stack([torch.stack([tail @ query for query in head]) for tail, head in pairs])
            behind.masked_fill_(hidden.mask[first:].cpu(), float("-inf"))
            every = torch.cat((scores.masked_fill_(rows < 0, float("-inf")), behind), dim=-1)
            rows = torch.cat((rows, torch.arange(first, len(self)).expand_as(behind)), dim=-1)
            best, order = every.topk(k, dim=-1)
            rows = rows.gather(-1, order).masked_fill_(best == float("-inf"), -1)
        return rows.to(queries.device)

    def _found(self, queries: Tensor, k: int, hidden: Hidden) -> tuple[Tensor, Tensor]:
        """Of the inverted file: scores float32 and rows int64, both [kv_heads, m, k], -1 for a row that is not
        there."""
        kv_heads, m, d = queries.shape
        distances, cells = self._nearest_cells(queries.numpy())
        asked, count = queries.reshape(-1, d).contiguous(), kv_heads * m
        scores, rows = torch.empty(kv_heads, m, k, dtype=torch.float32), torch.empty(kv_heads, m, k, dtype=torch.int64)
        # Threads share the queries; of a few, as those of a generated token are, the cells of each.
        self._file.parallel_mode = 0 if count >= _QUERIES_TO_SHARE else 1
        self._file.search_preassigned_c(
            count,
            _pointer(asked),
            k,
            faiss.swig_ptr(cells),
            faiss.swig_ptr(distances),
            _pointer(scores),
            _pointer(rows),
            False,
            faiss.SearchParametersIVF(nprobe=cells.shape[-1], **_selected(hidden)),
        )
        return scores, rows

    def _nearest_cells(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distances float32 and cells int64 [kv_heads * m, nprobe] for queries [kv_heads, m, d], nearest first.

        Of so few at a time FAISS computes each by itself, so that none changes what is found for another.
        """
        nprobe, found = min(self.nprobe, self._quantisers[0].ntotal), []
        for number, (quantiser, head) in enumerate(zip(self._quantisers, queries, strict=True)):
            for first in range(0, len(head), _ONE_BY_ONE):
                distances, cells = quantiser.search(head[first : first + _ONE_BY_ONE], nprobe)
                found.append((distances, cells + number * quantiser.ntotal))
        distances, cells = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return distances, cells

    def own(self) -> None:
        """Copy cells that are mapped from a file into memory, since they cannot grow there."""
        if self._mapped:
            mapped, cells = self._file.invlists, faiss.ArrayInvertedLists(self._file.nlist, self._file.code_size)
            for cell in range(self._file.nlist):
                cells.add_entries(cell, mapped.list_size(cell), mapped.get_ids(cell), mapped.get_codes(cell))
            self._file.replace_invlists(cells, True)
            cells.this.disown()
            self._mapped, self._cells = False, None

    def save(self, folder: Path, name: str) -> None:
        """Write the inverted file, and another for the rest."""
        self._settle(self._tail.shape[1])
        self.own()
        faiss.write_index(self._file, str(folder / f"{name}.faiss"))
        np.savez(folder / f"{name}.npz", centre=self._centre.numpy(), trained_for=self._trained_for)

    @classmethod
    def load(cls, folder: Path, name: str) -> IVFIndex:
        """What `save` wrote, mapped from its file. Raises OSError, RuntimeError or ValueError where that cannot
        be read."""
        self = cls.__new__(cls)
        try:
            with np.load(folder / f"{name}.npz") as rest:
                self._centre, self._trained_for = torch.from_numpy(rest["centre"]), int(rest["trained_for"])
        except (EOFError, KeyError, BadZipFile) as error:
            raise ValueError(f"{name}.npz is damaged: {error}") from error
        self._file = faiss.read_index(str(folder / f"{name}.faiss"), faiss.IO_FLAG_MMAP)
        self._mapped, self._cells = True, None
        # To start threads that read ahead takes longer than to read.
        faiss.downcast_InvertedLists(self._file.invlists).prefetch_nthread = 0
        self._open(len(self._centre))
        return self


class _Cells:
    """A file for one head, with 8 bits a number, and what stands behind it, as cells.h wants them: until either grows,
    or another number of cells is searched."""

    def __init__(self, file: Any, tail: Tensor, nprobe: int) -> None:
        lists, count = file.invlists, file.nlist
        centroids = torch.from_numpy(file.quantizer.reconstruct_n(0, count)).bfloat16()
        halves = centroids.float().square().sum(dim=-1) / 2
        cells = ((lists.get_codes(i), lists.get_ids(i), lists.list_size(i)) for i in range(count))
        table = torch.tensor([[int(part or 0) for part in cell] for cell in cells])
        low, width = torch.from_numpy(faiss.vector_to_array(file.sq.trained)).view(2, -1)
        behind = tail[0].contiguous()
        self._held = centroids, halves, table, low + width / 510, width / 255, behind
        pointers = [tensor.data_ptr() for tensor in self._held]
        self.nprobe, probed = nprobe, min(nprobe, count)
        self.record = FileRecord(*pointers[:3], count, probed, *pointers[3:], file.ntotal, len(behind))


def _vectors(keys: Tensor) -> np.ndarray:
    """float32, for FAISS."""
    return np.ascontiguousarray(keys.detach().float().cpu().numpy())


def _selected(hidden: Hidden) -> dict[str, Any]:
    return {"sel": hidden.selector} if hidden.anything else {}


def _pointer(tensor: Tensor) -> Any:
    return faiss.swig_ptr(tensor.numpy())


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
            return ExactIndex(kv_heads, d, dtype, device, rows=rows, most=most)
    if kind == "exact":
        return ExactIndex(kv_heads, d, dtype, device, rows=rows)
    if kind == "flat":
        return FlatIndex(kv_heads, d)
    # bf16 keys take 0.6 of the time of fp16 ones to scan, and both less than 8 bits a number.
    nlist = max(1, min(round(2 * rows**0.5), n // TRAINING_KEYS_PER_CELL))
    return IVFIndex(keys, nlist, rows=rows, bits=bits)
