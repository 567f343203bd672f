"""The bank: the live, searchable entries of one repository.

Three verbs: `add` a document, `drop` a document, and search, for the memory layers by `search` and for the token memory
by `nearest`; and `place` says where an entry came from. Entries have rows, given in the order of adding. A dropped
document's rows are hidden from the next search on; compaction frees them later.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from codemem.errors import CodememError
from codemem.memory.entries import Entries, Place, Shapes
from codemem.memory.eviction import Policy, Usage, surplus
from codemem.memory.knn import Hidden, Index, IndexKind, IVFIndex, make_index
from codemem.memory.order import COMPACT_ABOVE, Order
from codemem.memory.pieces import Pieces
from codemem.memory.state_index import StateIndex
from codemem.syntax import Symbol, enclosing_symbol

# Rows whose keys are handed to an index at a time, since it takes copies of them.
_CHUNK = 65_536


@dataclass(frozen=True)
class _Extent:
    """The rows of one document: [start, start + count). skipped: whether only an index knows its entries."""

    path: str
    start: int
    count: int
    symbols: tuple[Symbol, ...]
    blob: str = ""
    windows: tuple[int, ...] = ()
    skipped: bool = False

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + self.count)


class Bank:
    """Entries of many documents, in memory, with one kNN index per memory layer and one over the final hidden states.

    shapes: memory layer -> (key/value heads, head size); dtype: of keys and values; device: where they are kept and, if
    it is a GPU, searched; index: "auto" chooses by size; state_size: numbers in a final hidden state, 0 for a bank
    without token memory; capacity: live entries at most, None for no cap; eviction: which go when there are more.
    """

    def __init__(
        self,
        shapes: Shapes,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        index: IndexKind = "auto",
        *,
        state_size: int = 0,
        capacity: int | None = None,
        eviction: Policy = "importance",
    ) -> None:
        self.shapes, self.dtype, self.device, self._kind = shapes, dtype, torch.device(device), index
        self.state_size, self.capacity, self.eviction = state_size, capacity, eviction
        self._veils: list[tuple[str, int]] = []
        self._version = 0
        self._clear()

    def elsewhere(self, device: str) -> Bank:
        """An empty bank like this one on another device."""
        size, capacity, eviction = self.state_size, self.capacity, self.eviction
        return Bank(self.shapes, self.dtype, device, self._kind, state_size=size, capacity=capacity, eviction=eviction)

    def _clear(self) -> None:
        self._version += 1
        self._rows = 0
        self._size = 0  # counted, since every memory layer asks for it at every token
        self._extents: list[_Extent] = []
        self._starts: list[int] = []
        self._documents: dict[str, _Extent] = {}
        self._live = torch.zeros(0, dtype=torch.bool)
        self._lines = torch.zeros(0, dtype=torch.int32)
        self._columns = torch.zeros(0, dtype=torch.int32)
        self._tokens = torch.zeros(0, dtype=torch.int32)
        self._following = torch.zeros(0, dtype=torch.int32)
        self._layers = {
            layer: Pieces((kv_heads, 2, d), self.dtype, self.device) for layer, (kv_heads, d) in self.shapes.items()
        }
        self.indexes: dict[int, Index] = {}
        self._kept: tuple[Index, ...] = ()
        self.states = StateIndex(self.state_size, self.device, self._kind) if self.state_size else None
        self.usage = Usage()
        self._forget_hidden()

    def _forget_hidden(self) -> None:
        """What is hidden has changed."""
        self._hidden: Hidden | None = None
        self._shown_following: Tensor | None = None

    def __len__(self) -> int:
        """Live entries."""
        return self._size

    @property
    def version(self) -> int:
        """Raised whenever a document comes or goes."""
        return self._version

    @property
    def documents(self) -> tuple[str, ...]:
        return tuple(self._documents)

    @property
    def inverted(self) -> bool:
        """Whether a large bank like this is searched by inverted files, which are worth keeping on disk."""
        return self._kind == "auto" and self.device.type == "cpu"

    @property
    def nbytes(self) -> int:
        """Bytes of the live and dead entries held, without the indexes."""
        per_row = sum(kv * 2 * d * self.dtype.itemsize for kv, d in self.shapes.values())
        return self._rows * (per_row + 17 + (self.state_size + 4 if self.state_size else 0))

    @property
    def entry_bytes(self) -> int:
        """Bytes that one entry takes on disk, in its blob and in the kept indexes."""
        blob = 12 + sum(kv * 2 * d * self.dtype.itemsize for kv, d in self.shapes.values())
        if self.state_size:
            return blob + 2 * self.state_size + 12
        return blob + sum(kv * (2 * d + 8) for kv, d in self.shapes.values())

    def reserve(self, rows: int) -> None:
        """Make room for so many rows in all, so that adding them copies nothing twice. Room that is not used takes no
        memory, and one layer at a time is copied."""
        for name in ("_live", "_lines", "_columns", "_tokens", "_following"):
            setattr(self, name, _grown(getattr(self, name), self._rows, rows))
        for pieces in self._layers.values():
            pieces.reserve(rows)
        self.usage.grow(rows)
        if self.states is not None:
            self.states.reserve(rows)

    def add(self, path: str, entries: Entries, blob: str = "") -> None:
        """Add a document, or replace the one at this path. A bank that is full then gives up other entries.

        blob: the name that the entries have in the store, if they are from one. Raises CodememError where the entries
        belong to other memory layers or other heads, or have other states.
        """
        self._check(path, entries)
        self.drop(path)
        self._place(path, entries, blob)
        if self.capacity is not None:
            self.evict(self.capacity, spared=path)

    def _check(self, path: str, entries: Entries) -> None:
        shapes = {layer: (t.shape[1], t.shape[3]) for layer, t in entries.layers.items()}
        if shapes != self.shapes:
            raise CodememError(
                f"the entries of {path} have memory layers and heads {shapes}, the bank has {self.shapes}",
                "codemem index",
            )
        size = 0 if entries.states is None else entries.states.codes.shape[1]
        if self.state_size and size != self.state_size:
            raise CodememError(
                f"the entries of {path} have final hidden states of {size} numbers, the bank of {self.state_size}",
                "codemem index",
            )

    def _place(self, path: str, entries: Entries, blob: str) -> None:
        start, end = self._rows, self._rows + len(entries)
        if end > len(self._live):
            self.reserve(max(end, self._rows * 3 // 2))
        self._lines[start:end], self._columns[start:end] = entries.lines, entries.columns
        self._tokens[start:end], self._live[start:end] = entries.tokens, True
        self._following[start:end] = torch.nn.functional.pad(entries.tokens[1:], (0, 1), value=-1)[: end - start]
        for layer, tensor in entries.layers.items():
            self._layers[layer].append(tensor, len(entries))
        if self.states is not None:
            self.states.append(entries.states, len(entries))
        extent = _Extent(path, start, len(entries), entries.symbols, blob, entries.windows)
        self._documents[path] = extent
        self._size += extent.count
        self._append(extent)

    def skip(self, count: int, path: str = "", blob: str = "") -> None:
        """Leave rows empty that an index has keys for, of a document that is gone."""
        end = self._rows + count
        if end > len(self._live):
            self.reserve(end)
        self._live[self._rows : end] = False
        for pieces in self._layers.values():
            pieces.append(None, count)
        if self.states is not None:
            self.states.append(None, count)
        self._append(_Extent(path, self._rows, count, (), blob, skipped=True))

    def _append(self, extent: _Extent) -> None:
        self._extents.append(extent)
        self._starts.append(extent.start)
        self._rows = extent.start + extent.count
        self._forget_hidden()
        self._version += 1

    def drop(self, path: str) -> None:
        """Remove a document; nothing where there is none. No later search returns an entry of it."""
        extent = self._documents.pop(path, None)
        if extent is None:
            return
        self._size -= int(self._live[extent.rows].sum())
        self._live[extent.rows] = False
        for pieces in self._layers.values():
            pieces.forget(extent.start, extent.start + extent.count)
        if self.states is not None:
            self.states.drop(extent.rows)
        self._forget_hidden()
        self._version += 1
        dead = self._rows - sum(kept.count for kept in self._documents.values())
        if dead > COMPACT_ABOVE * self._rows:
            self._compact()

    def _compact(self) -> None:
        kept = [
            (extent, self.entries(extent.path), self._live[extent.rows].clone())
            for extent in self._extents
            if self._documents.get(extent.path) is extent
        ]
        usage = self.usage
        self._clear()
        self.usage = Usage(usage.reads)
        self.reserve(sum(len(entries) for _, entries, _ in kept))
        for extent, entries, live in kept:
            self._place(extent.path, entries, extent.blob)
            rows, before = self._documents[extent.path].rows, extent.rows
            self._live[rows] = live
            self.usage.read_at[rows], self.usage.mass[rows] = usage.read_at[before], usage.mass[before]
            self._size -= int((~live).sum())

    def evict(self, capacity: int, policy: Policy | None = None, *, spared: str | None = None) -> int:
        """Hide entries from every later search until at most `capacity` are left, those of the document `spared` last.

        policy: that of the bank if None. Returns how many went. They come back when their document is added again.
        """
        surplus_count = self._size - capacity
        if surplus_count <= 0:
            return 0
        kept = torch.zeros(self._rows, dtype=torch.bool)
        if spared in self._documents:
            kept[self._documents[spared].rows] = True
        going: list[Tensor] = []
        for candidates in (self._live[: self._rows] & ~kept, self._live[: self._rows] & kept):
            missing = surplus_count - sum(map(len, going))
            going.append(surplus(policy or self.eviction, candidates.nonzero().flatten(), self.usage, missing))
        for rows in going:
            self._live[rows] = False
        self._size -= surplus_count
        self._forget_hidden()
        self._version += 1
        return surplus_count

    @contextmanager
    def evicted(self, capacity: int, policy: Policy) -> Iterator[None]:
        """Within this context, in which no document may come or go, only `capacity` entries are left."""
        with self._for_a_while():
            self.evict(capacity, policy)
            yield

    @contextmanager
    def without(self, paths: Iterable[str]) -> Iterator[None]:
        """Within this context, in which no document may come or go, these are not there."""
        with self._for_a_while():
            for path in paths:
                rows = self._documents[path].rows
                self._size -= int(self._live[rows].sum())
                self._live[rows] = False
            self._forget_hidden()
            yield

    @contextmanager
    def _for_a_while(self) -> Iterator[None]:
        """What is hidden within this context comes back behind it."""
        live, size = self._live.clone(), self._size
        try:
            yield
        finally:
            self._live, self._size, self._hidden = live, size, None

    def note(self, rows: Tensor, weights: Tensor) -> None:
        """Remember that rows (-1 for none) were read with these weights, which decides what goes when the bank is
        full."""
        if self.capacity is not None:
            self.usage.note(rows, weights)

    def blob(self, path: str) -> str | None:
        """The name under which a document's entries are stored, "" for none; None where there is no such document."""
        extent = self._documents.get(path)
        return None if extent is None else extent.blob

    def order(self) -> Order:
        """Path, blob and entries of all documents in the order of their rows, also of those that are gone; no blob of
        those whose entries the indexes do not know: they were skipped, and an index was made anew since."""
        known = all(any(index is kept for kept in self._kept) for index in self.built)
        return [(each.path, each.blob if known or not each.skipped else "", each.count) for each in self._extents]

    def kept(self) -> None:
        """The indexes have just been read, and know the rows that were skipped."""
        self._kept = self.built

    def entries(self, path: str) -> Entries:
        """What the bank holds of a document. Raises KeyError where there is none."""
        extent = self._documents[path]
        rows = extent.rows
        layers = {layer: pieces.between(rows.start, rows.stop) for layer, pieces in self._layers.items()}
        states = None if self.states is None else self.states.states(rows)
        places = self._tokens[rows], self._lines[rows], self._columns[rows]
        return Entries(*places, layers, extent.symbols, states, extent.windows)

    @contextmanager
    def hiding(self, path: str, from_line: int = 1) -> Iterator[None]:
        """Within this context no search returns entries of `path` from line `from_line` (1-based) on."""
        veil = (path, from_line)
        self._veils.append(veil)
        self._forget_hidden()
        try:
            yield
        finally:
            self._veils.remove(veil)
            self._forget_hidden()

    def _hide(self) -> Hidden:
        mask = ~self._live[: self._rows]
        for path, from_line in self._veils:
            if extent := self._documents.get(path):
                mask[extent.rows] |= self._lines[extent.rows] >= from_line
        return Hidden(mask)

    def search(self, layer: int, queries: Tensor, k: int) -> Tensor:
        """The rows of the k best entries for each query, best first, -1 where there are fewer.

        queries: [kv_heads, m, d], before the rotary embedding and turned to the memory angle. Returns [kv_heads, m, k]
        int64 on the device of the queries.
        """
        return self._index(layer).search(queries.to(self.device), k, self._now_hidden()).to(queries.device)

    def nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k entries whose final hidden states are most similar to queries [m, state_size], best first.

        Returns rows [m, k] int64, -1 where there are fewer, and similarities [m, k] float32: cosines, -1 to 1, after
        the bank's mean is taken off. The bank must have token memory.
        """
        assert self.states is not None, "this bank has no token memory"
        if not self._rows:
            nothing = queries.new_full((len(queries), k), -1)
            return nothing.long(), nothing.float()
        return self.states.search(queries, k, self._rows, self._now_hidden())

    def following(self, rows: Tensor) -> Tensor:
        """The token after each row's, int64 of the same shape; -1 at a document's end, where it is hidden, and for row
        -1."""
        if self._shown_following is None:
            tokens = torch.nn.functional.pad(self._following[: self._rows], (0, 1), value=-1)  # row -1 is the last
            for path, from_line in self._veils:
                if extent := self._documents.get(path):
                    own, lines = tokens[extent.rows], self._lines[extent.rows]
                    own[:-1][lines[1:] >= from_line] = -1
            self._shown_following = tokens
        return self._shown_following[rows.cpu()].long().to(rows.device)

    def continuation(self, row: int, most: int) -> list[int]:
        """The tokens behind the one that `following` gives, as far as they go on in the same document and are not
        hidden, at most so many."""
        extent = self._extents[bisect_right(self._starts, row) - 1]
        rows = slice(row + 2, min(row + 2 + most, extent.start + extent.count))
        tokens: list[int] = self._tokens[rows].tolist()
        for path, from_line in self._veils:
            if path == extent.path:
                shown = (self._lines[rows] < from_line).tolist()
                tokens = tokens[: shown.index(False)] if False in shown else tokens
        return tokens

    def tokens(self, path: str, first: int, last: int) -> tuple[Tensor, int]:
        """The token ids [n] int32 that spell lines `first` to `last` (1-based, inclusive) of a document, and the line
        on which the first visible character of what they spell stands.

        White space has the line of the first visible character behind it, and a token may end on another line than it
        starts on. So these are also the visible character before the lines and the one behind them.
        """
        rows = self._documents[path].rows
        lines, columns = self._lines[rows], self._columns[rows]
        start, end = _between(lines, first, last)
        before, behind = max(0, start - 1), min(end, len(lines) - 1)
        wanted = torch.zeros(len(lines), dtype=torch.bool)
        wanted[start:end] = True
        for edge in (before, behind):  # a character may be several tokens
            wanted |= (lines == lines[edge]) & (columns == columns[edge])
        return self._tokens[rows][wanted], int(lines[before])

    def rows(self, path: str, first: int, last: int) -> Tensor:
        """The rows [n] int64 of what stands on lines `first` to `last` (1-based, inclusive) of a document, as far as a
        search may return them."""
        extent = self._documents[path]
        start, end = _between(self._lines[extent.rows], first, last)
        found = torch.arange(extent.start + start, extent.start + end)
        return found[~self._now_hidden().mask[found].cpu()]

    def last_line(self, path: str) -> int:
        """The last line of a document that has an entry and is not hidden."""
        lines = self._lines[self._documents[path].rows]
        hidden_from = min((line for hidden, line in self._veils if hidden == path), default=int(lines.max()) + 1)
        return min(int(lines.max()), hidden_from - 1)

    def _now_hidden(self) -> Hidden:
        if self._hidden is None:
            self._hidden = self._hide()
        return self._hidden

    def outgrown(self, more: int) -> bool:
        """Whether with so many more rows the next search would make an index anew, which takes seconds."""
        rows = self._rows + more
        indexes = (*self.indexes.values(), *([self.states] if self.states else ()))
        return any(index.outgrown(rows) for index in indexes)

    def build(self) -> None:
        """Bring the indexes up to date now, rather than at the first search, and make them ready for more: of a million
        entries that takes seconds, for which no edit should wait.

        Where there is token memory, that is the index of the states: it says which keys attention searches
        (`memory.focus`). Those of all keys are made by the first search that wants them.
        """
        if self.states:
            self.states.build(self._rows)
        else:
            for layer in self.shapes:
                self._index(layer)
        for index in self.built:
            if isinstance(index, IVFIndex):
                index.own()

    @property
    def built(self) -> tuple[Index, ...]:
        """The indexes that `build` keeps up to date."""
        if self.states:
            return () if self.states.index is None else (self.states.index,)
        return tuple(self.indexes.values())

    def tidy(self) -> bool:
        """Do some of what may wait until nobody does, and makes search faster: tens of milliseconds for an edited file.
        Returns whether there was anything to do."""
        return any(isinstance(index, IVFIndex) and index.tidy() for index in (*self.indexes.values(), *self.built))

    def _index(self, layer: int) -> Index:
        index = self.indexes.get(layer)
        if index is not None and len(index) == self._rows:
            return index
        keys = self._layers[layer].whole()[:, :, 0].transpose(0, 1)
        if index is None or index.outgrown(self._rows):
            index = self.indexes[layer] = make_index(self._kind, keys, self.dtype, self.device)
        for first in range(len(index), self._rows, _CHUNK):
            index.add(keys[:, first : min(first + _CHUNK, self._rows)])
        return index

    def read(self, layer: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of rows [kv_heads, ...] (row -1 gives some entry: mask it), each [kv_heads, ..., d]."""
        kv_heads, d = self.shapes[layer]
        heads = torch.arange(kv_heads, device=rows.device).view(-1, *[1] * (rows.dim() - 1))
        rows, heads = rows.clamp(min=0), heads.expand_as(rows)
        pairs = self._layers[layer].gathered(rows.flatten(), heads.flatten()).view(*rows.shape, 2, d).to(rows.device)
        return pairs[..., 0, :], pairs[..., 1, :]

    def place(self, row: int) -> Place:
        """Where an entry comes from."""
        extent = self._extents[bisect_right(self._starts, row) - 1]
        line = int(self._lines[row])
        return Place(extent.path, line, int(self._columns[row]), enclosing_symbol(extent.symbols, line))

    def numbers(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """A number of the document, and the line, of each entry [n]: of thousands at once, since a completion reads so
        many."""
        return torch.searchsorted(torch.tensor(self._starts), rows, right=True) - 1, self._lines[rows]

    def lines(self, rows: Sequence[int]) -> list[tuple[str, int]]:
        """The path and the line of each entry."""
        documents, lines = self.numbers(torch.tensor(rows, dtype=torch.int64))
        return [(self._extents[at].path, line) for at, line in zip(documents.tolist(), lines.tolist(), strict=True)]


def _between(ascending: Tensor, first: int, last: int) -> tuple[int, int]:
    """Where the numbers from `first` to `last`, both inside, start and end."""
    return int(torch.searchsorted(ascending, first)), int(torch.searchsorted(ascending, last, right=True))


def _grown(tensor: Tensor, used: int, rows: int) -> Tensor:
    grown = tensor.new_empty(max(rows, used), *tensor.shape[1:])
    grown[:used] = tensor[:used]
    return grown
