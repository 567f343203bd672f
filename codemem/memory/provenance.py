"""From reads of memory to the lines of source they came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from codemem.memory.banks import Memory

Trace = Sequence[tuple[Tensor, Tensor]]
# Lines that are named.
MOST = 100


@dataclass(frozen=True)
class Source:
    """A line that memory was read from. line: 1-based; weight: its share of all that memory gave, 0 to 1; column:
    1-based, in characters, of its entry that gave most."""

    path: str
    line: int
    symbol: str | None
    weight: float
    column: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}" + (f" in {self.symbol}" if self.symbol else "")


def sources(bank: Memory, attention: Trace, tokens: Trace = (), chosen: Sequence[int] = ()) -> list[Source]:
    """The lines read, heaviest first, MOST of them at most: of thousands, each with some of the weight.

    attention: of every memory layer at every position the bank rows [heads, k] int64, -1 for none, and their attention
    weights [heads, k]; tokens: of the token memory at every position rows [1, k] and their shares of the distribution
    [1, k]; chosen: the token ids that were generated there. All heads of all memory layers count as one, and so does
    the token memory: each of the two gives at most 1 at a position. An entry of token memory counts where it proposed
    the token that was chosen, and stands for the line of that token.
    """
    rows, weights = [], []
    for found, share in attention:
        rows.append(found.flatten().cpu())
        weights.append(share.flatten().double().cpu() / (len(share) * len(bank.shapes)))
    for (found, share), token in zip(tokens, chosen, strict=False):
        agreeing = bank.following(found).flatten() == token
        rows.append(found.flatten()[agreeing].cpu() + 1)
        weights.append(share.flatten()[agreeing].double().cpu())
    if not rows:
        return []
    entries, inverse = torch.unique(torch.cat(rows), return_inverse=True)
    mass = torch.zeros(len(entries), dtype=torch.float64).index_add_(0, inverse, torch.cat(weights))
    read = (entries >= 0) & (mass > 0)
    entries, mass = entries[read], mass[read]
    if not len(entries):
        return []
    documents, lines = bank.numbers(entries)
    # Entries stand in the order of their lines, so those of one line are beside each other.
    begins = torch.ones(len(entries), dtype=torch.bool)
    begins[1:] = (documents.diff() != 0) | (lines.diff() != 0)
    line = begins.cumsum(0) - 1
    weight = torch.zeros(int(line[-1]) + 1, dtype=torch.float64).index_add_(0, line, mass) / mass.sum()
    heaviest = entries[torch.from_numpy(np.lexsort((-mass.numpy(), line.numpy())))][begins]
    most = weight.sort(descending=True, stable=True).indices[:MOST]
    places = zip(map(bank.place, heaviest[most].tolist()), weight[most].tolist(), strict=True)
    return [Source(place.path, place.line, place.symbol, share, place.column) for place, share in places]


def memory_share(trace: Trace) -> float:
    """The mean share of attention, or of the next token's distribution, that came from memory, 0 to 1, over the rows
    and positions of a trace."""
    shares = [weights.sum(dim=-1).float().mean() for _, weights in trace]
    return float(torch.stack(shares).mean()) if shares else 0.0
