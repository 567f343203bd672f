"""What memory keeps of one document: for every token where it stands, per memory layer a key and a value per head, and
the final hidden state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from codemem.memory.states import States
from codemem.syntax import Symbol

# Memory layer -> (key/value heads, head size).
Shapes = dict[int, tuple[int, int]]


@dataclass(frozen=True)
class Entries:
    """The entries of one document, in the order of its tokens.

    tokens: [n] int32 token ids; lines, columns: [n] int32, 1-based, columns in characters, of each token's first
    visible character; layers: memory layer -> [n, kv_heads, 2, d], keys before the rotary embedding at index 0 of the
    third axis and values at index 1, in the model's dtype; symbols: the document's definitions, for provenance;
    states: the final hidden states, for the token memory, or None where it is not kept; windows: the tokens at which
    the encoding windows start that computed them, none where that is not known.
    """

    tokens: Tensor
    lines: Tensor
    columns: Tensor
    layers: dict[int, Tensor]
    symbols: tuple[Symbol, ...] = ()
    states: States | None = None
    windows: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)


class Place(NamedTuple):
    """Where an entry comes from. line, column: 1-based; symbol: the innermost definition around it, or None."""

    path: str
    line: int
    column: int
    symbol: str | None

    def __str__(self) -> str:
        return f"{self.path}:{self.line}" + (f" in {self.symbol}" if self.symbol else "")
