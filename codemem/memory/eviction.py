"""Which entries go when a bank is full."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

# "fifo": the oldest, as in Memorizing Transformers (section 3.2); "lru": those not read for longest; "importance":
# those that received least of the weight with which memory is read.
Policy = Literal["fifo", "lru", "importance"]


class Usage:
    """How the rows of a bank were read. read_at: [rows] int64, the number of the last read, 0 for never; mass: [rows]
    float32, the weight received so far; reads: how many there were."""

    def __init__(self, reads: int = 0) -> None:
        self.read_at = torch.zeros(0, dtype=torch.int64)
        self.mass = torch.zeros(0, dtype=torch.float32)
        self.reads = reads

    def grow(self, rows: int) -> None:
        """Make room for so many rows."""
        surplus = (0, max(0, rows - len(self.mass)))
        self.read_at = torch.nn.functional.pad(self.read_at, surplus)
        self.mass = torch.nn.functional.pad(self.mass, surplus)

    def note(self, rows: Tensor, weights: Tensor) -> None:
        """Count one read: rows, -1 for none, and weights of the same shape."""
        self.reads += 1
        rows, weights = rows.flatten().cpu(), weights.detach().flatten().float().cpu()
        found = rows >= 0
        self.read_at[rows[found]] = self.reads
        self.mass.index_add_(0, rows[found], weights[found])


def surplus(policy: Policy, candidates: Tensor, usage: Usage, count: int) -> Tensor:
    """The `count` rows among candidates [n] int64, ascending and so the oldest first, that go first; of equals the
    older one."""
    if policy == "fifo":
        return candidates[:count]
    worth = usage.read_at if policy == "lru" else usage.mass
    return candidates[worth[candidates].argsort(stable=True)[:count]]
