"""What rows of a bank have, such as the keys and values of one memory layer: that of each document where it is, until
all is asked for."""

from __future__ import annotations

from bisect import bisect_right

import torch
from torch import Tensor


class Pieces:
    """Tensors [rows, *shape], a piece for each document.

    Those of a stored document are mapped from its file, and a search reads few of them: so they are not copied before
    `whole` asks for all, as an index of keys does, and a GPU from the beginning.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self._none = torch.empty(0, *shape, dtype=dtype, device=device)
        self._pieces: list[Tensor | None] = []
        self._starts: list[int] = []
        self._rows = self._room = 0
        self._whole: Tensor | None = None if device.type == "cpu" else self._none
        self._table: tuple[Tensor, Tensor] | None = None

    def reserve(self, rows: int) -> None:
        """Make room for so many rows in all, so that adding them copies nothing twice."""
        self._room, self._table = max(self._room, rows), None
        if self._whole is not None and self._room > len(self._whole):
            grown = self._none.new_empty(self._room, *self._none.shape[1:])
            grown[: self._rows] = self._whole[: self._rows]
            self._whole = grown

    def append(self, piece: Tensor | None, count: int) -> None:
        """Add the next `count` rows; None for those of a document that is gone: they are zero."""
        self._table = None
        if self._whole is None:
            self._starts.append(self._rows)
            self._pieces.append(None if piece is None else piece.to(self._none.dtype).contiguous())
        else:
            if self._rows + count > len(self._whole):
                self.reserve(max(self._rows + count, self._rows * 3 // 2))
            self._whole[self._rows : self._rows + count] = 0 if piece is None else piece.to(self._whole.device)
        self._rows += count

    def forget(self, start: int, end: int) -> None:
        """The document with these rows is gone; they are zero now, or stay what they are."""
        self._table = None
        if self._whole is None and start < end:
            self._pieces[bisect_right(self._starts, start) - 1] = None

    def between(self, start: int, end: int) -> Tensor:
        """The rows of one document."""
        if self._whole is not None:
            return self._whole[start:end]
        piece = self._pieces[bisect_right(self._starts, start) - 1] if start < end else self._none
        assert piece is not None, "nobody asks for what is gone"
        return piece

    def whole(self) -> Tensor:
        """All of them; from now on they are held together."""
        if self._whole is None:
            with torch.inference_mode(False):  # it is written into again
                self._whole = self._none.new_empty(max(self._room, self._rows), *self._none.shape[1:])
            for start, end, piece in zip(self._starts, [*self._starts, self._rows][1:], self._pieces, strict=True):
                self._whole[start:end] = 0 if piece is None else piece
            self._pieces, self._starts, self._table = [], [], None
        return self._whole[: self._rows]

    def table(self) -> tuple[Tensor, Tensor]:
        """The first row of each piece and, for functions of C, its address, 0 where it is gone; [pieces] int64."""
        if self._table is None:
            parts = zip(self._starts, self._pieces, strict=True) if self._whole is None else [(0, self._whole)]
            known = [(start, 0 if piece is None else piece.data_ptr()) for start, piece in parts]
            self._table = torch.tensor([start for start, _ in known]), torch.tensor([address for _, address in known])
        return self._table

    def gathered(self, rows: Tensor, heads: Tensor | None = None) -> Tensor:
        """What rows [n] have: [n, *shape]; with heads [n], the first of its dimensions, of each that part alone."""
        parts, shape = (1, self._none.shape[1:]) if heads is None else (self._none.shape[1], self._none.shape[2:])
        if self._whole is not None:
            at = rows if heads is None else rows * parts + heads
            return self._whole.view(-1, *shape).index_select(0, at.to(self._whole.device))
        rows = rows.cpu()
        numbers = torch.searchsorted(self.table()[0], rows, right=True) - 1
        order = numbers.argsort(stable=True)
        there, counts = torch.unique_consecutive(numbers[order], return_counts=True)
        found = self._none.new_zeros(len(rows), *shape)
        for number, mine in zip(there.tolist(), torch.split(order, counts.tolist()), strict=True):
            if (piece := self._pieces[number]) is not None:
                local = (rows[mine] - self._starts[number]) * parts
                local = local if heads is None else local + heads.cpu()[mine]
                found[mine] = piece.view(-1, *shape).index_select(0, local)
        return found
