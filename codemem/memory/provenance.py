"""From reads of memory to the lines of source they came from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from codemem.memory.bank import Bank


@dataclass(frozen=True)
class Source:
    """A line that memory was read from. line: 1-based; weight: its share of all attention that went to memory, 0 to
    1."""

    path: str
    line: int
    symbol: str | None
    weight: float

    def __str__(self) -> str:
        return f"{self.path}:{self.line}" + (f" in {self.symbol}" if self.symbol else "")


def sources(bank: Bank, trace: Iterable[tuple[Tensor, Tensor]]) -> list[Source]:
    """The lines read, heaviest first.

    trace: pairs of bank rows [heads, k] int64, -1 for none, and their attention weights [heads, k]. Weights are summed
    over memory layers, heads and positions.
    """
    pairs = list(trace)
    if not pairs:
        return []
    rows = torch.cat([r.flatten() for r, _ in pairs]).cpu()
    weights = torch.cat([w.flatten() for _, w in pairs]).double().cpu()
    rows, inverse = torch.unique(rows, return_inverse=True)
    mass = torch.zeros(len(rows), dtype=torch.float64).index_add_(0, inverse, weights)
    mass[rows < 0] = 0
    total = float(mass.sum())
    lines: dict[tuple[str, int, str | None], float] = defaultdict(float)
    for row, weight in zip(rows.tolist(), mass.tolist(), strict=True):
        if weight > 0:
            place = bank.place(row)
            lines[place.path, place.line, place.symbol] += weight / total
    ranked = sorted(lines.items(), key=lambda item: (-item[1], item[0][:2]))
    return [Source(path, line, symbol, weight) for (path, line, symbol), weight in ranked]


def memory_share(trace: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The mean share of attention that went to memory, 0 to 1, over memory layers, heads and positions."""
    shares = [weights.sum(dim=-1).float().mean() for _, weights in trace]
    return float(torch.stack(shares).mean()) if shares else 0.0
