"""The bank: the live, searchable entries of one repository.

Three verbs: `add` a document, `drop` a document, `search`; and `place` says where an entry came from. Entries have
rows, given in the order of adding. A dropped document's rows are hidden from the next search on; compaction frees them
later.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from codemem.errors import CodememError
from codemem.memory.entries import Entries, Place, Shapes
from codemem.memory.knn import Hidden, Index, IndexKind, make_index
from codemem.syntax import Symbol, enclosing_symbol

# Share of dead rows above which the bank is rebuilt without them.
COMPACT_ABOVE = 0.3


@dataclass(frozen=True)
class _Extent:
    """The rows of one document: [start, start + count)."""

    path: str
    start: int
    count: int
    symbols: tuple[Symbol, ...]


class Bank:
    """Entries of many documents, in memory, with one kNN index per memory layer.

    shapes: memory layer -> (key/value heads, head size); dtype: of keys and values; device: where they are kept and, if
    it is a GPU, searched; index: "auto" chooses by size.
    """

    def __init__(
        self, shapes: Shapes, dtype: torch.dtype = torch.float32, device: str = "cpu", index: IndexKind = "auto"
    ) -> None:
        self.shapes, self.dtype, self.device, self._kind = shapes, dtype, torch.device(device), index
        self._veils: list[tuple[str, int]] = []
        self._clear()

    def _clear(self) -> None:
        self._rows = 0
        self._size = 0  # counted, since every memory layer asks for it at every token
        self._extents: list[_Extent] = []
        self._starts: list[int] = []
        self._documents: dict[str, _Extent] = {}
        self._live = torch.zeros(0, dtype=torch.bool)
        self._lines = torch.zeros(0, dtype=torch.int32)
        self._columns = torch.zeros(0, dtype=torch.int32)
        self._tokens = torch.zeros(0, dtype=torch.int32)
        self._layers = {
            layer: torch.empty(0, kv, 2, d, dtype=self.dtype, device=self.device)
            for layer, (kv, d) in self.shapes.items()
        }
        self.indexes: dict[int, Index] = {}
        self._hidden: Hidden | None = None

    def __len__(self) -> int:
        """Live entries."""
        return self._size

    @property
    def documents(self) -> tuple[str, ...]:
        return tuple(self._documents)

    @property
    def nbytes(self) -> int:
        """Bytes of the live and dead entries held, without the indexes."""
        per_row = sum(kv * 2 * d * self.dtype.itemsize for kv, d in self.shapes.values())
        return self._rows * (per_row + 13)

    def reserve(self, rows: int) -> None:
        """Make room for so many rows in all, so that adding them copies nothing twice."""
        for name in ("_live", "_lines", "_columns", "_tokens"):
            setattr(self, name, _grown(getattr(self, name), self._rows, rows))
        self._layers = {layer: _grown(entries, self._rows, rows) for layer, entries in self._layers.items()}

    def add(self, path: str, entries: Entries) -> None:
        """Add a document, or replace the one at this path.

        Raises CodememError where the entries belong to other memory layers or other heads.
        """
        shapes = {layer: (t.shape[1], t.shape[3]) for layer, t in entries.layers.items()}
        if shapes != self.shapes:
            raise CodememError(
                f"the entries of {path} have memory layers and heads {shapes}, the bank has {self.shapes}",
                "codemem index",
            )
        self.drop(path)
        start, end = self._rows, self._rows + len(entries)
        if end > len(self._live):
            self.reserve(max(end, self._rows * 3 // 2))
        self._lines[start:end], self._columns[start:end] = entries.lines, entries.columns
        self._tokens[start:end], self._live[start:end] = entries.tokens, True
        for layer, tensor in entries.layers.items():
            self._layers[layer][start:end] = tensor.to(self.device)
        extent = _Extent(path, start, len(entries), entries.symbols)
        self._documents[path] = extent
        self._size += extent.count
        self._append(extent)

    def skip(self, count: int) -> None:
        """Leave rows empty that an index has keys for, of a document that is gone."""
        end = self._rows + count
        if end > len(self._live):
            self.reserve(end)
        self._live[self._rows : end] = False
        for entries in self._layers.values():
            entries[self._rows : end] = 0  # an index trained on all rows must not meet what memory held before
        self._append(_Extent("", self._rows, count, ()))

    def _append(self, extent: _Extent) -> None:
        self._extents.append(extent)
        self._starts.append(extent.start)
        self._rows = extent.start + extent.count
        self._hidden = None

    def drop(self, path: str) -> None:
        """Remove a document; nothing where there is none. No later search returns an entry of it."""
        extent = self._documents.pop(path, None)
        if extent is None:
            return
        self._live[extent.start : extent.start + extent.count] = False
        self._size -= extent.count
        self._hidden = None
        if self._rows - len(self) > COMPACT_ABOVE * self._rows:
            self._compact()

    def _compact(self) -> None:
        kept = [(path, self.entries(path)) for path, _, live in self.order() if live]
        total = sum(len(entries) for _, entries in kept)
        self._clear()
        self.reserve(total)
        for path, entries in kept:
            self.add(path, entries)

    def order(self) -> list[tuple[str, int, bool]]:
        """Path and entries of all documents in the order of their rows, and whether they are alive."""
        return [(e.path, e.count, self._documents.get(e.path) is e) for e in self._extents]

    def entries(self, path: str) -> Entries:
        """What the bank holds of a document. Raises KeyError where there is none."""
        extent = self._documents[path]
        rows = slice(extent.start, extent.start + extent.count)
        layers = {layer: tensor[rows] for layer, tensor in self._layers.items()}
        return Entries(self._tokens[rows], self._lines[rows], self._columns[rows], layers, extent.symbols)

    @contextmanager
    def hiding(self, path: str, from_line: int = 1) -> Iterator[None]:
        """Within this context no search returns entries of `path` from line `from_line` (1-based) on."""
        veil = (path, from_line)
        self._veils.append(veil)
        self._hidden = None
        try:
            yield
        finally:
            self._veils.remove(veil)
            self._hidden = None

    def _hide(self) -> Hidden:
        mask = ~self._live[: self._rows]
        for path, from_line in self._veils:
            if extent := self._documents.get(path):
                rows = slice(extent.start, extent.start + extent.count)
                mask[rows] |= self._lines[rows] >= from_line
        return Hidden(mask)

    def search(self, layer: int, queries: Tensor, k: int) -> Tensor:
        """The rows of the k best entries for each query, best first, -1 where there are fewer.

        queries: [kv_heads, m, d], before the rotary embedding and turned to the memory angle. Returns [kv_heads, m, k]
        int64 on the device of the queries.
        """
        if self._hidden is None:
            self._hidden = self._hide()
        return self._index(layer).search(queries.to(self.device), k, self._hidden).to(queries.device)

    def build(self) -> None:
        """Bring all indexes up to date now, rather than at the first search."""
        for layer in self.shapes:
            self._index(layer)

    def _index(self, layer: int) -> Index:
        index = self.indexes.get(layer)
        if index is not None and len(index) == self._rows:
            return index
        keys = self._layers[layer][: self._rows, :, 0].transpose(0, 1)
        if index is None or index.outgrown(self._rows):
            index = self.indexes[layer] = make_index(self._kind, keys, self.dtype, self.device)
        index.add(keys[:, len(index) :])
        return index

    def read(self, layer: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of rows [kv_heads, ...] (row -1 gives some entry: mask it), each [kv_heads, ..., d]."""
        kv_heads, d = self.shapes[layer]
        heads = torch.arange(kv_heads, device=rows.device).view(-1, *[1] * (rows.dim() - 1))
        flat = (rows.clamp(min=0) * kv_heads + heads).flatten().to(self.device)
        pairs = self._layers[layer].view(-1, 2, d).index_select(0, flat).view(*rows.shape, 2, d).to(rows.device)
        return pairs[..., 0, :], pairs[..., 1, :]

    def place(self, row: int) -> Place:
        """Where an entry comes from."""
        extent = self._extents[bisect_right(self._starts, row) - 1]
        line = int(self._lines[row])
        return Place(extent.path, line, int(self._columns[row]), enclosing_symbol(extent.symbols, line))


def _grown(tensor: Tensor, used: int, rows: int) -> Tensor:
    grown = tensor.new_empty(max(rows, used), *tensor.shape[1:])
    grown[:used] = tensor[:used]
    return grown
