"""The token memory's search: final hidden states by cosine similarity (kNN-LM, Khandelwal et al., ICLR 2020).

States of a language model lie in a narrow cone. Similarities tell apart what is near only after the mean of the bank is
taken off, so states are centred by it and normalised, in the index and in queries.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from codemem.memory.knn import Hidden, Index, IndexKind, IVFIndex, make_index
from codemem.memory.states import States, turn

# Rows that the mean is taken of, and rows that are decoded at a time.
_SAMPLE = 65_536
_CHUNK = 65_536
_FILE = "states"


class StateIndex:
    """The states of a bank's rows, and an index over them.

    size: of a state. Rows are those of the bank; `build` brings the index up to date with them.
    """

    def __init__(self, size: int, device: torch.device, kind: IndexKind) -> None:
        self.size, self.device, self._kind = size, device, kind
        self._states = States(
            torch.empty(0, size, dtype=torch.int8, device=device), torch.empty(0, dtype=torch.float32, device=device)
        )
        self.centre = torch.zeros(size, device=device)
        self.index: Index | None = None

    def reserve(self, used: int, rows: int) -> None:
        """Make room for so many rows, keeping the first `used`."""
        codes = self._states.codes.new_empty(max(rows, used), self.size)
        scales = self._states.scales.new_empty(max(rows, used))
        codes[:used], scales[:used] = self._states.codes[:used], self._states.scales[:used]
        self._states = States(codes, scales)

    def put(self, start: int, states: States | None, count: int) -> None:
        """Set rows from `start` on; without states they are zero."""
        rows = slice(start, start + count)
        self._states.codes[rows] = 0 if states is None else states.codes.to(self.device)
        self._states.scales[rows] = 0 if states is None else states.scales.to(self.device)

    def states(self, rows: slice) -> States:
        return self._states[rows]

    def build(self, rows: int) -> Index:
        """The index over the first `rows` rows."""
        if self.index is not None and len(self.index) == rows:
            return self.index
        if self.index is None or self.index.outgrown(rows):
            chosen = torch.randperm(rows, generator=torch.Generator().manual_seed(0))[:_SAMPLE].to(self.device)
            self.centre = self._states[chosen].decode().mean(dim=0)
            # What is found is scored again. Queries are states as keys are, so fewer cells are enough than for
            # attention.
            dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
            sample = self._vectors(self._states[chosen])[None]
            self.index = make_index(self._kind, sample, dtype, self.device, rows=rows, bits=8, probed=1 / 24)
        for first in range(len(self.index), rows, _CHUNK):
            self.index.add(self._vectors(self._states[first : min(first + _CHUNK, rows)])[None])
        return self.index

    def _vectors(self, states: States) -> Tensor:
        return normalize(states.decode() - self.centre, dim=-1)

    def _wanted(self, queries: Tensor) -> Tensor:
        return normalize(turn(queries.to(self.device)) - self.centre, dim=-1)

    def search(self, queries: Tensor, k: int, rows: int, hidden: Hidden) -> tuple[Tensor, Tensor]:
        """The nearest of the first `rows` rows to queries [m, size]. Returns rows [m, k] int64, -1 where there are
        fewer, and similarities [m, k] float32, -1 to 1, best first."""
        index = self.build(rows)
        return self.ranked(queries, index.search(self._wanted(queries)[None], k, hidden)[0])

    def ranked(self, queries: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [m, k], -1 for none, by their similarity to queries [m, size], best first, and the similarities."""
        wanted, rows = self._wanted(queries), rows.to(self.device)
        keys = self._vectors(self._states[rows.clamp(min=0).flatten()]).view(*rows.shape, self.size)
        similarity = (keys @ wanted.unsqueeze(-1)).squeeze(-1).masked_fill(rows < 0, -1)
        similarity, order = similarity.sort(dim=-1, descending=True)
        return rows.gather(1, order).to(queries.device), similarity.to(queries.device)

    def save(self, folder: Path) -> None:
        """Write the index; nothing where search is exact."""
        if isinstance(self.index, IVFIndex):
            self.index.save(folder, _FILE)
            np.save(folder / f"{_FILE}.centre.npy", self.centre.cpu().numpy())

    def load(self, folder: Path) -> None:
        """Read what `save` wrote. Raises OSError, RuntimeError or ValueError where it cannot be read."""
        index = IVFIndex.load(folder, _FILE, 1)
        self.centre = torch.from_numpy(np.load(folder / f"{_FILE}.centre.npy")).to(self.device)
        self.index = index
