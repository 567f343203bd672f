"""What is compared: ways to complete with the same model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from codemem.memory.bank import Bank

CONTEXT = 512  # tokens of the document before the cursor
SNIPPET_TOKENS = 1024

Prompted = Literal["plain", "longer", "bm25", "recalled"]


@dataclass(frozen=True)
class Arm:
    """One way. prompt: what the prompt holds: CONTEXT tokens of the document, twice as many, or snippets before them;
    attention, tokens: which memories are read; random: entries by chance in place of the nearest."""

    name: str
    prompt: Prompted = "plain"
    attention: bool = False
    tokens: bool = False
    random: bool = False


NONE, BM25 = "none", "BM25"
ARMS = (
    Arm(NONE),
    Arm("twice the context", "longer"),
    Arm(BM25, "bm25"),
    Arm("attention memory", attention=True),
    Arm("token memory", tokens=True),
    Arm("both memories", attention=True, tokens=True),
    Arm("recalled snippets", "recalled"),
    Arm("all of memory", "recalled", attention=True, tokens=True),
    Arm("both + BM25", "bm25", attention=True, tokens=True),
    Arm("random memory", attention=True, tokens=True, random=True),
)


class RandomBank(Bank):
    """A view of a bank that answers every search with live entries drawn by chance: the control that memory must
    beat."""

    def __init__(self, bank: Bank, seed: int = 0) -> None:
        vars(self).update(vars(bank))
        self._generator = torch.Generator().manual_seed(seed)
        self._candidates = self._live[: self._rows].nonzero().flatten()

    def _drawn(self, *shape: int) -> Tensor:
        return self._candidates[torch.randint(len(self._candidates), shape, generator=self._generator)]

    def search(self, layer: int, queries: Tensor, k: int) -> Tensor:
        return self._drawn(*queries.shape[:2], k).to(queries.device)

    def nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        assert self.states is not None
        self.states.build(self._rows)
        rows = self._drawn(len(queries), k)
        return self.states.ranked(queries, rows)
