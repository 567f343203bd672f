"""The focus: the part of a large memory that attention searches for one completion.

Among a million keys the 32 nearest of a query are near by chance, and attention that reads them says worse what comes
next. What token memory finds is right more often. So its votes (`completion.recall`) choose a few thousand entries, and
among these attention searches, exactly, however large memory is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from codemem.memory.banks import Memory

# Queries that are searched one by one, those of a draft's positions, so that none changes what is found for another.
_ONE_BY_ONE = 64


class Focus:
    """Entries of a memory as it is now, with their keys and values.

    rows: [n] int64, those of the memory; windows: what they were taken from, (path, first line).
    """

    def __init__(self, memory: Memory, rows: Tensor, windows: frozenset[tuple[str, int]] = frozenset()) -> None:
        self.rows, self.windows = rows, windows
        self._pairs: dict[int, tuple[Tensor, Tensor]] = {}
        self._turned: dict[int, Tensor] = {}  # keys for the search, [kv_heads, d, n] float32
        for layer, (kv_heads, _) in memory.shapes.items():
            keys, values = memory.read(layer, rows.expand(kv_heads, -1))
            self._pairs[layer] = keys.contiguous(), values.contiguous()
            self._turned[layer] = keys.float().transpose(1, 2).contiguous()

    def __len__(self) -> int:
        return len(self.rows)

    def share(self, votes: Mapping[tuple[str, int], float]) -> float:
        """How much of the votes for windows is for its own, 0 to 1."""
        inside = sum(weight for window, weight in votes.items() if window in self.windows)
        return inside / max(sum(votes.values()), 1e-9)

    def nearest(self, layer: int, queries: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """The k entries with the largest inner products, best first.

        queries: [kv_heads, m, d]. Returns keys and values [kv_heads, m, k, d] and rows of the memory [kv_heads, m, k].
        """
        (keys, values), turned = self._pairs[layer], self._turned[layer]
        kv_heads, n, d = keys.shape
        asked = queries.to(keys.device, torch.float32)
        if asked.shape[1] <= _ONE_BY_ONE:
            scores = torch.cat([asked[:, i : i + 1] @ turned for i in range(asked.shape[1])], dim=1)
        else:
            scores = asked @ turned
        best = scores.topk(k, dim=-1).indices
        flat = (best + n * torch.arange(kv_heads, device=best.device).view(-1, 1, 1)).flatten()

        def taken(x: Tensor) -> Tensor:
            return x.view(-1, d).index_select(0, flat).view(*best.shape, d).to(queries.device)

        return taken(keys), taken(values), self.rows.to(best.device)[best].to(queries.device)
