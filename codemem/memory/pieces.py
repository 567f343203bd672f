"""The keys and values of one memory layer of a bank: those of each document where they are, until all are asked for."""

from __future__ import annotations

from bisect import bisect_right

import torch
from torch import Tensor


class Pieces:
    """Keys and values [rows, kv_heads, 2, d], a piece for each document.

    Those of a stored document are mapped from its file, and a search of its states reads few of them: so they are not
    copied before `whole` asks for all, as an index of keys does, and a GPU from the beginning.
    """

    def __init__(self, kv_heads: int, d: int, dtype: torch.dtype, device: torch.device) -> None:
        self._none = torch.empty(0, kv_heads, 2, d, dtype=dtype, device=device)
        self._pieces: list[Tensor | None] = []
        self._starts: list[int] = []
        self._rows = self._room = 0
        self._whole: Tensor | None = None if device.type == "cpu" else self._none

    def reserve(self, rows: int) -> None:
        """Make room for so many rows in all, so that adding them copies nothing twice."""
        self._room = max(self._room, rows)
        if self._whole is not None and self._room > len(self._whole):
            grown = self._none.new_empty(self._room, *self._none.shape[1:])
            grown[: self._rows] = self._whole[: self._rows]
            self._whole = grown

    def append(self, piece: Tensor | None, count: int) -> None:
        """Add the next `count` rows; None for those of a document that is gone: they are zero."""
        if self._whole is None:
            self._starts.append(self._rows)
            self._pieces.append(None if piece is None else piece.to(self._none.dtype))
        else:
            if self._rows + count > len(self._whole):
                self.reserve(max(self._rows + count, self._rows * 3 // 2))
            self._whole[self._rows : self._rows + count] = 0 if piece is None else piece.to(self._whole.device)
        self._rows += count

    def forget(self, start: int, end: int) -> None:
        """The document with these rows is gone; they are zero now, or stay what they are."""
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
            self._pieces, self._starts = [], []
        return self._whole[: self._rows]

    def gathered(self, rows: Tensor, heads: Tensor) -> Tensor:
        """Key and value of each of the rows [n] for one of the heads [n]: [n, 2, d]."""
        kv_heads, _, d = self._none.shape[1:]
        if self._whole is not None:
            return self._whole.view(-1, 2, d).index_select(0, (rows * kv_heads + heads).to(self._whole.device))
        rows, heads = rows.cpu(), heads.cpu()
        starts, found = torch.tensor(self._starts), self._none.new_zeros(len(rows), 2, d)
        pieces = torch.searchsorted(starts, rows, right=True) - 1
        for number in sorted(set(pieces.tolist())):
            if (piece := self._pieces[number]) is not None:
                mine = (pieces == number).nonzero().flatten()
                local = (rows[mine] - self._starts[number]) * kv_heads + heads[mine]
                found[mine] = piece.reshape(-1, 2, d).index_select(0, local)
        return found
