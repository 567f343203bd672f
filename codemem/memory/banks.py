"""Several banks that are read as one: a repository's own, what is being written just now, and repositories that the
user names beside it.

Every bank keeps its rows, its index and its eviction; here their answers are merged. An entry's row says which bank it
is of, so provenance needs nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from codemem.memory.bank import Bank
from codemem.memory.entries import Entries, Place, Shapes
from codemem.texts import Text

# Row r of bank number i is row i * STRIDE + r of all.
STRIDE = 1 << 40
# Entries of unsaved text at most: some 3,000 lines. Search among so few is exact.
RECENT_ENTRIES = 32_768
_Answer = TypeVar("_Answer")


class Encoder(Protocol):
    """What turns texts into entries: a `MemorizingModel`, or who asks one when its turn has come."""

    def warm(self) -> None: ...
    def encode(self, texts: Sequence[Text], **options: Any) -> list[Entries]: ...


class Memory(Protocol):
    """What reads memory needs of it: a `Bank`, or `Banks`. The methods are described there."""

    shapes: Shapes
    state_size: int
    device: torch.device

    def __len__(self) -> int: ...
    @property
    def version(self) -> int: ...
    @property
    def documents(self) -> tuple[str, ...]: ...
    def add(self, path: str, entries: Entries, blob: str = "") -> None: ...
    def drop(self, path: str) -> None: ...
    def search(self, layer: int, queries: Tensor, k: int) -> Tensor: ...
    def read(self, layer: int, rows: Tensor) -> tuple[Tensor, Tensor]: ...
    def nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]: ...
    def following(self, rows: Tensor) -> Tensor: ...
    def continuation(self, row: int, most: int) -> list[int]: ...
    def place(self, row: int) -> Place: ...
    def numbers(self, rows: Tensor) -> tuple[Tensor, Tensor]: ...
    def lines(self, rows: Sequence[int]) -> list[tuple[str, int]]: ...
    def note(self, rows: Tensor, weights: Tensor) -> None: ...
    def hiding(self, path: str, from_line: int = 1) -> AbstractContextManager[None]: ...
    def tokens(self, path: str, first: int, last: int) -> tuple[Tensor, int]: ...
    def rows(self, path: str, first: int, last: int) -> Tensor: ...
    def last_line(self, path: str) -> int: ...


class Banks:
    """A bank, a small one in front of it for unsaved text, and others that are only read.

    bank: the repository's own; beside: what the paths of another repository begin with here, like "../lib/" -> its
    bank.
    """

    def __init__(self, bank: Bank, beside: Mapping[str, Bank] | None = None) -> None:
        self.bank = bank
        self.recent = Bank(bank.shapes, bank.dtype, str(bank.device), "exact", state_size=bank.state_size)
        self.shapes, self.state_size, self.device = bank.shapes, bank.state_size, bank.device
        self._parts = [("", bank), ("", self.recent), *(beside or {}).items()]
        self._covers: dict[str, ExitStack] = {}

    # Unsaved text.

    def write(self, path: str, entries: Entries) -> None:
        """Read a document as it is being edited, in place of what the repository's bank holds of it. The texts written
        longest ago go back to what the bank holds where there are more than RECENT_ENTRIES entries."""
        self.recent.add(path, entries)
        cover = self._covers.pop(path, None)
        if cover is None:
            cover = ExitStack()
            cover.enter_context(self.bank.hiding(path))
        self._covers[path] = cover  # now the last
        while len(self.recent) > RECENT_ENTRIES and len(self._covers) > 1:
            self.settle(next(iter(self._covers)))

    def encode(self, model: Encoder, text: Text, **encoding: Any) -> None:
        """Let a model read a document as it is being edited; of what did not change it reads nothing. encoding: for
        `MemorizingModel.encode`."""
        before = self.entries(text.path) if text.path in self.documents else None
        (entries,) = model.encode([text], before=[before], **encoding)
        self.write(text.path, entries)

    def written(self, path: str) -> Entries | None:
        """What `write` was given of a document, None where it is read as the repository's bank holds it."""
        return self.recent.entries(path) if path in self._covers else None

    def settle(self, path: str) -> None:
        """Read a document as the repository's bank holds it again: it was saved, or closed."""
        cover = self._covers.pop(path, None)
        if cover is not None:
            cover.close()
            self.recent.drop(path)

    @property
    def several(self) -> bool:
        """Whether there is more to read than the repository's own bank."""
        return len(self._parts) > 2 or bool(self.recent.documents)

    # What reads memory needs.

    def __len__(self) -> int:
        return sum(len(bank) for _, bank in self._parts)

    @property
    def version(self) -> int:
        """As that of a bank: raised whenever a document comes or goes."""
        return sum(bank.version for _, bank in self._parts)

    @property
    def documents(self) -> tuple[str, ...]:
        paths = (prefix + path for prefix, bank in self._parts for path in bank.documents)
        return tuple(dict.fromkeys(paths))

    def add(self, path: str, entries: Entries, blob: str = "") -> None:
        """As `Bank.add`, to the repository's own."""
        self.bank.add(path, entries, blob)

    def drop(self, path: str) -> None:
        """As `Bank.drop`, from the repository's own."""
        self.bank.drop(path)

    def search(self, layer: int, queries: Tensor, k: int) -> Tensor:
        """As `Bank.search`: the k best of all banks."""
        found = [(number, bank.search(layer, queries, k)) for number, bank in self._filled()]
        if not found:
            return self.bank.search(layer, queries, k)
        if len(found) == 1:
            return _of_all(*found[0])
        rows = torch.cat([_of_all(number, part) for number, part in found], dim=-1)
        keys, _ = self.read(layer, rows)
        scores = torch.einsum("hmd,hmkd->hmk", queries.float(), keys.float()).masked_fill(rows < 0, float("-inf"))
        return rows.gather(-1, scores.topk(k, dim=-1).indices)

    def read(self, layer: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """As `Bank.read`."""
        if (alone := self._alone()) is not None:
            return alone.read(layer, rows)
        pairs = [(mine, bank.read(layer, local)) for bank, mine, local in self._split(rows)]
        if not pairs:
            return self._filled()[0][1].read(layer, rows)
        keys, values = pairs[0][1]
        for mine, (more_keys, more_values) in pairs[1:]:
            keys = torch.where(mine.unsqueeze(-1), more_keys, keys)
            values = torch.where(mine.unsqueeze(-1), more_values, values)
        return keys, values

    def nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """As `Bank.nearest`: the k best of all banks. A few unsaved texts have no mean to speak of, so their states are
        centred by that of the repository."""
        if self.recent.states is not None and self.bank.states is not None and len(self.recent) and len(self.bank):
            self.bank.build()
            self.recent.states.share_centre(self.bank.states)
        answers = [(number, *bank.nearest(queries, k)) for number, bank in self._filled()]
        if not answers:
            return self.bank.nearest(queries, k)
        if len(answers) == 1:
            number, rows, similarity = answers[0]
            return _of_all(number, rows), similarity
        rows = torch.cat([_of_all(number, found) for number, found, _ in answers], dim=-1)
        similarity, best = torch.cat([similarity for _, _, similarity in answers], dim=-1).topk(k, dim=-1)
        return rows.gather(-1, best), similarity

    def following(self, rows: Tensor) -> Tensor:
        """As `Bank.following`."""
        if (alone := self._alone()) is not None:
            return alone.following(rows)
        tokens = torch.full_like(rows, -1)
        for bank, mine, local in self._split(rows):
            tokens = torch.where(mine, bank.following(local), tokens)
        return tokens

    def continuation(self, row: int, most: int) -> list[int]:
        """As `Bank.continuation`."""
        return self._parts[row // STRIDE][1].continuation(row % STRIDE, most)

    def place(self, row: int) -> Place:
        """As `Bank.place`."""
        prefix, bank = self._parts[row // STRIDE]
        place = bank.place(row % STRIDE)
        return place._replace(path=prefix + place.path)

    def numbers(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """As `Bank.numbers`."""
        documents, lines = torch.empty_like(rows), torch.empty_like(rows)
        for number in range(len(self._parts)):
            if bool((mine := rows // STRIDE == number).any()):
                found, line = self._parts[number][1].numbers(rows[mine] % STRIDE)
                documents[mine], lines[mine] = found + number * STRIDE, line.to(lines.dtype)
        return documents, lines

    def lines(self, rows: Sequence[int]) -> list[tuple[str, int]]:
        """As `Bank.lines`."""
        found: dict[int, tuple[str, int]] = {}
        for number, (prefix, bank) in enumerate(self._parts):
            if mine := [row for row in rows if row // STRIDE == number]:
                lines = bank.lines([row % STRIDE for row in mine])
                found.update(zip(mine, ((prefix + path, line) for path, line in lines), strict=True))
        return [found[row] for row in rows]

    def note(self, rows: Tensor, weights: Tensor) -> None:
        """As `Bank.note`."""
        if (alone := self._alone()) is not None:
            alone.note(rows, weights)
            return
        for bank, _, local in self._split(rows):
            bank.note(local, weights)

    @contextmanager
    def hiding(self, path: str, from_line: int = 1) -> Iterator[None]:
        """As `Bank.hiding`, of the repository's own document."""
        with self.bank.hiding(path, from_line), self.recent.hiding(path, from_line):
            yield

    def entries(self, path: str) -> Entries:
        """As `Bank.entries`; of unsaved text where there is some."""
        return self._with(path, lambda bank, inside: bank.entries(inside))

    def tokens(self, path: str, first: int, last: int) -> tuple[Tensor, int]:
        """As `Bank.tokens`."""
        return self._with(path, lambda bank, inside: bank.tokens(inside, first, last))

    def rows(self, path: str, first: int, last: int) -> Tensor:
        """As `Bank.rows`."""

        def ask(bank: Bank, inside: str) -> Tensor:
            number = next(number for number, (_, each) in enumerate(self._parts) if each is bank)
            return _of_all(number, bank.rows(inside, first, last))

        return self._with(path, ask)

    def last_line(self, path: str) -> int:
        """As `Bank.last_line`."""
        return self._with(path, lambda bank, inside: bank.last_line(inside))

    def _with(self, path: str, ask: Callable[[Bank, str], _Answer]) -> _Answer:
        if path in self._covers:
            return ask(self.recent, path)
        for prefix, bank in self._parts[2:]:
            inside = path.removeprefix(prefix)
            if inside != path and inside in bank.documents:
                return ask(bank, inside)
        return ask(self.bank, path)

    def _filled(self) -> list[tuple[int, Bank]]:
        return [(number, bank) for number, (_, bank) in enumerate(self._parts) if len(bank)]

    def _alone(self) -> Bank | None:
        """The repository's own bank where no other has entries: its rows are those of all."""
        filled = self._filled()
        return self.bank if len(filled) == 1 and filled[0][0] == 0 else None

    def _split(self, rows: Tensor) -> Iterator[tuple[Bank, Tensor, Tensor]]:
        """Every bank that has some of the rows, which they are, and their numbers there, -1 for the others."""
        for number, bank in self._filled():
            mine = (rows >= number * STRIDE) & (rows < (number + 1) * STRIDE)
            if bool(mine.any()):
                yield bank, mine, torch.where(mine, rows - number * STRIDE, -1)


def _of_all(number: int, rows: Tensor) -> Tensor:
    return rows if number == 0 else torch.where(rows < 0, -1, rows + number * STRIDE)
