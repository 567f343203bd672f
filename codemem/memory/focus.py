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

# So many positions are searched one by one on the CPU, those of a draft, so that none changes what is found for
# another; on a GPU they are always as many.
_ONE_BY_ONE = 64


class Focus:
    """Entries of a memory as it is now, with their keys and values.

    rows: [n] int64, those of the memory; windows: what they were taken from, (path, first line).
    """

    def __init__(self, memory: Memory, rows: Tensor, windows: frozenset[tuple[str, int]] = frozenset()) -> None:
        self.rows, self.windows = rows.to(memory.device), windows
        self._keys: dict[int, Tensor] = {}  # [kv_heads, n, d]
        self._heads: dict[int, Tensor] = {}  # where those of each head begin in the next
        self._pairs: dict[int, Tensor] = {}  # keys and values, of all heads one below the other: [kv_heads * n, 2, d]
        for layer, (kv_heads, _) in memory.shapes.items():
            keys, values = memory.read(layer, self.rows.expand(kv_heads, -1))
            self._keys[layer] = keys.contiguous()
            self._heads[layer] = torch.arange(kv_heads, device=keys.device).view(-1, 1, 1, 1) * len(self.rows)
            self._pairs[layer] = torch.stack((keys, values), dim=2).flatten(0, 1)

    def __len__(self) -> int:
        return len(self.rows)

    def share(self, votes: Mapping[tuple[str, int], float]) -> float:
        """How much of the votes for windows is for its own, 0 to 1."""
        inside = sum(weight for window, weight in votes.items() if window in self.windows)
        return inside / max(sum(votes.values()), 1e-9)

    def held(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Keys [kv_heads, n, d] and pairs of keys and values [kv_heads * n, 2, d] where they are bf16 on the CPU."""
        keys, pairs = self._keys[layer], self._pairs[layer]
        return (keys, pairs) if keys.dtype == torch.bfloat16 and keys.device.type == "cpu" else None

    def nearest(self, layer: int, queries: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """The k entries with the largest inner products, best first, computed in the dtype of the keys.

        queries: [kv_heads, m, group, d], the query heads of a group beside each other. Returns keys and values
        [kv_heads, m, group, k, d] and rows of the memory [kv_heads, m, group, k].
        """
        keys, pairs = self._keys[layer], self._pairs[layer]
        positions = queries.shape[1]
        asked, turned = queries.to(keys.device, keys.dtype), keys.transpose(1, 2)
        if positions == 1:
            scores = (asked.squeeze(1) @ turned).unsqueeze(1)
        elif positions <= _ONE_BY_ONE and keys.device.type == "cpu":
            scores = torch.stack([asked[:, i] @ turned for i in range(positions)], dim=1)
        else:
            scores = (asked.flatten(1, 2) @ turned).view(*queries.shape[:3], -1)
        best = scores.topk(k, dim=-1).indices
        found = pairs.index_select(0, (best + self._heads[layer]).flatten()).view(*best.shape, *pairs.shape[1:])
        found = found.to(queries.device)
        return found[..., 0, :], found[..., 1, :], self.rows.to(best.device)[best].to(queries.device)
