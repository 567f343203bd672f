"""The focus: the part of a large memory that attention searches for one completion.

Among a million keys the 32 nearest of a query are near by chance, and attention that reads them says worse what comes
next. What token memory finds is right more often. So its votes (`completion.recall`) choose a few thousand entries, and
among these attention searches, exactly, however large memory is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from codemem.memory.banks import Memory

# So many positions are searched one by one on the CPU, those of a draft, so that none changes what is found for
# another; on a GPU they are always as many.
_ONE_BY_ONE = 64
_KEYS = 16  # in a tile, see focus.h


class Focus:
    """Entries of a memory as it is now, with their keys and values.

    rows: [n] int64, those of the memory; windows: what they were taken from, (path, first line).
    """

    def __init__(self, memory: Memory, rows: Tensor, windows: frozenset[tuple[str, int]] = frozenset()) -> None:
        self.rows, self.windows = rows.to(memory.device), windows
        self._pairs: dict[int, Tensor] = {}  # keys and values [kv_heads, n, 2, d]
        self._keys: dict[int, Tensor] = {}  # the keys alone [kv_heads, n, d], where PyTorch searches them
        self._packed: dict[int, tuple[Tensor, Tensor]] = {}  # or in 7 bits, where a function of C does
        for layer, (kv_heads, _) in memory.shapes.items():
            self._pairs[layer] = torch.stack(memory.read(layer, self.rows.expand(kv_heads, -1)), dim=2)

    def __len__(self) -> int:
        return len(self.rows)

    def share(self, votes: Mapping[tuple[str, int], float]) -> float:
        """How much of the votes for windows is for its own, 0 to 1."""
        inside = sum(weight for window, weight in votes.items() if window in self.windows)
        return inside / max(sum(votes.values()), 1e-9)

    @property
    def packable(self) -> bool:
        """Whether keys and values are bf16 on the CPU."""
        return all(pairs.dtype == torch.bfloat16 and pairs.device.type == "cpu" for pairs in self._pairs.values())

    def packed(self, layer: int, functions: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Keys as `pack_keys` of focus.h, one of the functions given, packs them, and pairs of keys and values
        [kv_heads, n, 2, d]. Only of those that are packable."""
        pairs = self._pairs[layer]
        if layer not in self._packed:
            kv_heads, n, _, d = pairs.shape
            tiles = -(-n // _KEYS)
            codes = torch.zeros(kv_heads, tiles, d // 4, _KEYS, 4, dtype=torch.uint8)
            steps = torch.zeros(kv_heads, tiles, _KEYS, dtype=torch.float32)
            functions.pack_keys(pairs.data_ptr(), kv_heads, n, codes.data_ptr(), steps.data_ptr())
            self._packed[layer] = codes, steps
        return *self._packed[layer], pairs

    def nearest(self, layer: int, queries: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """The k entries with the largest inner products, best first, computed in the dtype of the keys.

        queries: [kv_heads, m, group, d], the query heads of a group beside each other. Returns keys and values
        [kv_heads, m, group, k, d] and rows of the memory [kv_heads, m, group, k].
        """
        pairs, positions = self._pairs[layer], queries.shape[1]
        if layer not in self._keys:
            self._keys[layer] = pairs[:, :, 0].contiguous()
        keys = self._keys[layer]
        asked, turned = queries.to(keys.device, keys.dtype), keys.transpose(1, 2)
        if positions == 1:
            scores = (asked.squeeze(1) @ turned).unsqueeze(1)
        elif positions <= _ONE_BY_ONE and keys.device.type == "cpu":
            scores = torch.stack([asked[:, i] @ turned for i in range(positions)], dim=1)
        else:
            scores = (asked.flatten(1, 2) @ turned).view(*queries.shape[:3], -1)
        best = scores.topk(k, dim=-1).indices
        heads = torch.arange(len(pairs), device=pairs.device).view(-1, 1, 1, 1) * len(self.rows)
        found = pairs.flatten(0, 1).index_select(0, (best + heads).flatten()).view(*best.shape, *pairs.shape[2:])
        found = found.to(queries.device)
        return found[..., 0, :], found[..., 1, :], self.rows.to(best.device)[best].to(queries.device)
