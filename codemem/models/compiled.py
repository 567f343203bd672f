"""A pass over a few positions on the CPU, with a function of C for all that a layer does between two matrix products.

Hidden states stay in float32 from the first layer to the last. The products are PyTorch's, of packed weights, and
compute each position by itself, as the functions do: so a verified draft is what would have been generated.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import embedding

from codemem.models.packed import MOST_ROWS
from codemem.models.recorded import Blend
from codemem.native.library import STEP, library

if TYPE_CHECKING:
    from codemem.models.llama import Weights

# Query heads that share a key/value head, at most: what is computed for them at once stays in registers, or near.
_GROUP = 8


def compilable(weights: Weights) -> bool:
    """Whether a `CompiledPass` can be made of these weights here."""
    layer, group = weights.layers[0], weights.heads // weights.kv_heads
    sizes = weights.d // 2, weights.embedding.shape[1], layer.down.layers[0].weight.shape[1]
    fits = group <= _GROUP and all(size % STEP == 0 for size in sizes)
    return weights.packed and fits and library("layer", D=weights.d, GROUP=group) is not None


class CompiledPass:
    """The forward pass over at most MOST_ROWS positions of one cache.

    keys, values: [layers, heads, positions, d], the cache, with empty heads behind the others; turns: cosines and sines
    of its positions [positions, 1, d], as `turned` wants them.
    """

    def __init__(self, weights: Weights, keys: Tensor, values: Tensor, turns: tuple[Tensor, Tensor]) -> None:
        d, size = weights.d, weights.embedding.shape[1]
        self._weights, self._functions = weights, library("layer", D=d, GROUP=weights.heads // weights.kv_heads)
        self._held = keys, values
        self._caches = [heads.data_ptr() for heads in keys], [heads.data_ptr() for heads in values]
        self._stride = keys.stride(1)
        self._turns = [turn.float().contiguous() for turn in turns]

        def room(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(MOST_ROWS, *sizes, dtype=dtype)

        self._x, self._normed = room(size), room(size, dtype=torch.bfloat16)
        self._gated = room(weights.layers[0].down.layers[0].weight.shape[1], dtype=torch.bfloat16)
        self._query, self._local, self._mass = (room(weights.heads, *rest) for rest in ((d,), (d,), ()))
        self._mixed = room(weights.heads * d, dtype=torch.bfloat16)

    def __call__(self, ids: Sequence[int], start: int, reads: Collection[int], blend: Blend) -> Tensor:
        """Read tokens at positions from `start` on; reads: the layers that read memory, from which `blend` gets float32
        and for which it returns bf16. Returns the final hidden states [n, size]."""
        weights, functions, n = self._weights, self._functions, len(ids)
        x, normed, mixed, gated = (room[:n] for room in (self._x, self._normed, self._mixed, self._gated))
        query, local, mass = (room[:n] for room in (self._query, self._local, self._mass))
        rooms = [room.data_ptr() for room in (query, local, mass, mixed)]
        cos, sin = (turn.data_ptr() for turn in self._turns)
        x.copy_(embedding(torch.tensor(ids), weights.embedding))

        def add_and_norm(more: Tensor | None, norm: Tensor) -> None:
            added = None if more is None else more.data_ptr()
            functions.add_and_norm(
                x.data_ptr(), added, n, x.shape[1], norm.data_ptr(), weights.epsilon, normed.data_ptr()
            )

        down: Tensor | None = None
        for number, (layer, keys, values) in enumerate(zip(weights.layers, *self._caches, strict=True)):
            add_and_norm(down, layer.norm.weight)
            head_norms = (norm and norm.weight.data_ptr() for norm in (layer.query_norm, layer.key_norm))
            qkv = layer.qkv(normed)  # held while it is read
            functions.attend(
                qkv.data_ptr(),
                n,
                weights.kv_heads,
                *head_norms,
                weights.epsilon,
                weights.d**-0.5,
                cos,
                sin,
                start,
                keys,
                values,
                self._stride,
                *rooms,
            )
            attended = blend(number, query, local, mass).view(n, -1) if number in reads else mixed
            add_and_norm(layer.output(attended), layer.mlp_norm.weight)
            gate_up = layer.gate_up(normed)
            functions.gated(gate_up.data_ptr(), n, gated.shape[1], gated.data_ptr())
            down = layer.down(gated)
        add_and_norm(down, weights.norm.weight)
        return normed.clone()
