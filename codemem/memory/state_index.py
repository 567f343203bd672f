"""The token memory's search: final hidden states by cosine similarity (kNN-LM, Khandelwal et al., ICLR 2020).

States of a language model lie in a narrow cone. Similarities tell apart what is near only after the mean of the bank is
taken off, so states are centred by it and normalised, in the index and in queries.
"""

from __future__ import annotations

from ctypes import byref
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from codemem.memory.knn import Hidden, Index, IndexKind, IVFIndex, make_index
from codemem.memory.pieces import Pieces
from codemem.memory.states import States, columns, turn
from codemem.native.library import STEP, library, releasing
from codemem.native.records import IndexRecord, StatesRecord

# Rows that the mean is taken of at most, and rows that are decoded at a time.
_SAMPLE = 65_536
_CHUNK = 65_536
# An index that costs little to fill is filled again with a new mean when the bank has grown by this much.
_GROWTH = 1.25
_FILE = "states"
# So many positions at most are those of a draft, each of which must find what it finds alone.
_FEW = 16


class StateIndex:
    """The states of a bank's rows, and an index over them.

    size: of a state. Rows are those of the bank; `build` brings the index up to date with them.
    """

    def __init__(self, size: int, device: torch.device, kind: IndexKind) -> None:
        self.size, self.device, self._kind = size, device, kind
        self._codes, self._scales = Pieces((size,), torch.int8, device), Pieces((), torch.float32, device)
        self._rows = 0
        # Whether a row is of a document that is in the bank; the mean is taken of these.
        self._held = torch.zeros(0, dtype=torch.bool)
        self._centred_at = 0
        self.centre = torch.zeros(size, dtype=torch.float32, device=device)
        self._shares_centre = False
        self.index: Index | None = None
        self._held_record: tuple[tuple[Any, ...], IndexRecord] | None = None
        self._held_states: tuple[tuple[Any, ...], StatesRecord] | None = None

    def reserve(self, rows: int) -> None:
        """Make room for so many rows in all."""
        self._codes.reserve(rows)
        self._scales.reserve(rows)
        held = self._held.new_zeros(max(rows, self._rows))
        held[: self._rows] = self._held[: self._rows]
        self._held = held

    def append(self, states: States | None, count: int) -> None:
        """Add the next rows; without states they are zero."""
        if self._rows + count > len(self._held):
            self.reserve(max(self._rows + count, self._rows * 3 // 2))
        self._codes.append(None if states is None else states.codes, count)
        self._scales.append(None if states is None else states.scales, count)
        self._held[self._rows : self._rows + count] = states is not None
        self._rows += count

    def drop(self, rows: slice) -> None:
        """Note that the document of these rows is gone."""
        self._held[rows] = False

    def states(self, rows: slice) -> States:
        """Those of one document."""
        return States(self._codes.between(rows.start, rows.stop), self._scales.between(rows.start, rows.stop))

    def _of(self, rows: Tensor) -> States:
        return States(self._codes.gathered(rows), self._scales.gathered(rows))

    def build(self, rows: int) -> Index:
        """The index over the first `rows` rows."""
        if self.index is not None and len(self.index) == rows:
            return self.index
        if self.index is None or self._outgrown(self.index, rows):
            held = self._held[:rows].nonzero().flatten()
            chosen = torch.randperm(len(held), generator=torch.Generator().manual_seed(0))[:_SAMPLE]
            some = self._of(held[chosen].to(self.device))
            if not self._shares_centre:
                self.centre = some.decode().sum(dim=0) / max(1, len(chosen))
            self._centred_at = rows
            # What is found is scored again. Queries are states as keys are: recall@64 is 0.977 (0.987 with twice as
            # many cells).
            dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
            sample = self._vectors(some)[None]
            self.index = make_index(self._kind, sample, dtype, self.device, rows=rows, bits=8)
        for first in range(len(self.index), rows, _CHUNK):
            chunk = torch.arange(first, min(first + _CHUNK, rows), device=self.device)
            self.index.add(self._vectors(self._of(chunk))[None])
        return self.index

    def share_centre(self, other: StateIndex) -> None:
        """Centre by the mean of another index from now on, so that similarities in both can be compared."""
        if other.index is not None and self.centre is not other.centre:
            self.centre, self._shares_centre, self.index = other.centre, True, None

    def outgrown(self, rows: int) -> bool:
        """Whether so many rows want an index that is trained anew."""
        return self.index is not None and self.index.outgrown(rows)

    def _outgrown(self, index: Index, rows: int) -> bool:
        return index.outgrown(rows) or (not isinstance(index, IVFIndex) and rows > _GROWTH * self._centred_at)

    def _vectors(self, states: States) -> Tensor:
        return normalize(states.decode() - self.centre, dim=-1)

    def _functions(self) -> Any:
        """Those of C for what stands around the search, where there are any."""
        return library("states") if self.device.type == "cpu" and self.size % STEP == 0 else None

    def _wanted(self, queries: Tensor) -> Tensor:
        functions = self._functions()
        if functions is not None and queries.dtype == torch.bfloat16:
            queries, wanted = queries.cpu().contiguous(), torch.empty(queries.shape, dtype=torch.float32)
            tensors = columns(self.size), self.centre, wanted
            functions.queries(queries.data_ptr(), *queries.shape, *(tensor.data_ptr() for tensor in tensors))
            return wanted
        return normalize(turn(queries.to(self.device)) - self.centre, dim=-1)

    def search(self, queries: Tensor, k: int, rows: int, hidden: Hidden) -> tuple[Tensor, Tensor]:
        """The nearest of the first `rows` rows to queries [m, size]. Returns rows [m, k] int64, -1 where there are
        fewer, and similarities [m, k] float32, -1 to 1, best first."""
        index = self.build(rows)
        if queries.dtype == torch.bfloat16 and (record := self._compiled(index)) is not None:
            asked = queries.cpu().contiguous()
            found = torch.empty(len(asked), k, dtype=torch.int64)
            similarity = torch.empty(len(asked), k, dtype=torch.float32)
            functions = self._functions() if len(asked) <= _FEW else releasing("states", self._functions())
            where = hidden.pointer, k, found.data_ptr(), similarity.data_ptr()
            functions.nearest_states(byref(record), asked.data_ptr(), len(asked), *where)
            return found.to(queries.device), similarity.to(queries.device)
        wanted = self._wanted(queries)
        return self._ranked(wanted, self._found(index, wanted, k, hidden), queries.device)

    def _compiled(self, index: Index) -> IndexRecord | None:
        """What functions of C search for all that `search` returns."""
        if not isinstance(index, IVFIndex) or self._functions() is None or (file := index.record) is None:
            return None
        before, states = self._held_record, self._states_record()
        held = file, columns(self.size), self.centre, states
        if before is None or not _same(before[0], held):
            pointers = columns(self.size).data_ptr(), self.centre.data_ptr()
            self._held_record = before = held, IndexRecord(file, self.size, *pointers, states)
        return before[1]

    def _states_record(self) -> StatesRecord:
        """Where functions of C find the states."""
        tables = self._codes.table(), self._scales.table()
        before = self._held_states
        if before is None or not _same(before[0], tables):
            (starts, codes), (_, scales) = tables
            pointers = (tensor.data_ptr() for tensor in (starts, codes, scales))
            self._held_states = before = tables, StatesRecord(*pointers, len(starts))
        return before[1]

    def _found(self, index: Index, wanted: Tensor, k: int, hidden: Hidden) -> Tensor:
        """Rows [m, k], of a few positions those that each finds by itself."""
        if isinstance(index, IVFIndex) or len(wanted) > _FEW or self.device.type != "cpu":
            return index.search(wanted[None], k, hidden)[0]
        return torch.cat([index.search(each[None, None], k, hidden)[0] for each in wanted])

    def ranked(self, queries: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [m, k], -1 for none, by their similarity to queries [m, size], best first, and the similarities."""
        return self._ranked(self._wanted(queries), rows.to(self.device), queries.device)

    def _ranked(self, wanted: Tensor, rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        if (functions := self._functions()) is not None:
            similarity = torch.empty(rows.shape, dtype=torch.float32)
            wanted, rows = wanted.contiguous(), rows.clone(memory_format=torch.contiguous_format)
            where = (tensor.data_ptr() for tensor in (self.centre, rows, similarity))
            functions.rank(wanted.data_ptr(), *rows.shape, self.size, byref(self._states_record()), *where)
            return rows.to(device), similarity.to(device)
        states = States(self._codes.whole(), self._scales.whole())[rows.clamp(min=0).flatten()]
        keys = self._vectors(states).view(*rows.shape, self.size)
        similarity = (keys @ wanted.unsqueeze(-1)).squeeze(-1).masked_fill(rows < 0, -1)
        similarity, order = similarity.sort(dim=-1, descending=True)
        return rows.gather(1, order).to(device), similarity.to(device)

    def save(self, folder: Path) -> None:
        """Write the index; nothing where search is exact."""
        if isinstance(self.index, IVFIndex):
            self.index.save(folder, _FILE)
            np.save(folder / f"{_FILE}.centre.npy", self.centre.cpu().numpy())

    def load(self, folder: Path) -> None:
        """Read what `save` wrote. Raises OSError, RuntimeError or ValueError where it cannot be read."""
        index = IVFIndex.load(folder, _FILE)
        try:
            centre = torch.from_numpy(np.load(folder / f"{_FILE}.centre.npy"))
        except EOFError as error:
            raise ValueError(f"{_FILE}.centre.npy is empty") from error
        self.centre, self.index = centre.to(self.device), index


def _same(ones: tuple[Any, ...], others: tuple[Any, ...]) -> bool:
    """Whether they are the same objects."""
    return all(one is other for one, other in zip(ones, others, strict=True))
