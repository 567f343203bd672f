"""A pass over a few positions whose shapes are always the same: recorded once, and played back by the GPU.

A token of a small model is hundreds of kernels of some microseconds; to launch them from Python takes longer than to
run them. A CUDA graph launches all at once, where nothing about them changes but the numbers. So ROWS positions are
always computed, in a cache that is read to its end under a mask. What memory layers read is found by other kernels,
with shapes that change with memory, so a pass is recorded in parts that end at these layers. Since a position is
computed in the same way whatever others are computed with it, a verified draft is what would have been generated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import embedding, scaled_dot_product_attention

from codemem.models.attention import attend_with_mass, by_key_head, by_position
from codemem.models.rotary import turned

if TYPE_CHECKING:
    from codemem.models.llama import Weights

# Positions of a pass: a token and a draft of seven.
ROWS = 8

# What memory layer `number` makes of queries [n, heads, d] before the rotary embedding, of the output [n, heads, d] of
# attention over local context, and of the logarithm [n, heads] of the sum of the exponentials of its scores.
Blend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class RecordedPass:
    """The forward pass over ROWS positions of one cache.

    keys, values: [layers, kv_heads, positions, d], the cache; turns: cosines and sines of its positions [positions, 1,
    d], as `turned` wants them; stops: the layers that read memory. On a GPU the parts are recorded by the first pass,
    elsewhere they are computed as they are.
    """

    # What one part leaves for the next: the positions, the cosines and sines of their angles, what they must not see,
    # and their hidden states.
    _positions: Tensor
    _cos: Tensor
    _sin: Tensor
    _mask: Tensor
    _x: Tensor
    _final: Tensor

    def __init__(
        self, weights: Weights, keys: Tensor, values: Tensor, turns: tuple[Tensor, Tensor], stops: Sequence[int]
    ) -> None:
        self._weights, self._keys, self._values, self._turns = weights, keys, values, turns
        self._stops = sorted(stops)
        self._ids = torch.zeros(ROWS, dtype=torch.int64, device=keys.device)
        self._start = torch.zeros(1, dtype=torch.int64, device=keys.device)
        self._mixed = keys.new_zeros(ROWS, weights.heads, weights.d)
        self._places = torch.arange(ROWS, device=keys.device)
        self._columns = torch.arange(keys.shape[2], device=keys.device)
        # At each layer that reads memory its queries, and what attention to local context gives: where the part that
        # ends there leaves them whenever it is played back.
        self._left: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        starts, ends = [None, *self._stops], [*self._stops, len(weights.layers)]
        self._parts = [self._part(first, last) for first, last in zip(starts, ends, strict=True)]
        self._to_record = keys.device.type == "cuda"

    def __call__(self, ids: Sequence[int], start: int, blend: Blend) -> Tensor:
        """Read at most ROWS tokens at positions from `start` on, of which the cache must have ROWS. Returns the final
        hidden states [ROWS, size], of which as many as there are tokens mean something."""
        self._ids[: len(ids)] = torch.tensor(ids, device=self._ids.device)
        self._start.fill_(start)
        if self._to_record:  # now that it is known which positions may be written
            self._parts, self._to_record = _recorded(self._parts), False
        for number, part in zip(self._stops, self._parts, strict=False):
            part()
            self._mixed.copy_(blend(number, *self._left[number]))
        self._parts[-1]()
        return self._final.clone()

    def _part(self, first: int | None, last: int) -> Callable[[], None]:
        """From behind the attention of layer `first`, or from the start, to that of layer `last`, or to the end."""

        def compute() -> None:
            weights = self._weights
            if first is None:
                self._begin()
            else:
                self._x = weights.layers[first].finish(self._x, self._mixed)
            for number in range(0 if first is None else first + 1, last):
                query = self._attending(number)[1]
                shaped = by_key_head(query, self._keys[number], self._values[number])
                seen = scaled_dot_product_attention(*shaped, attn_mask=self._mask)
                self._x = weights.layers[number].finish(self._x, by_position(seen))
            if last < len(weights.layers):
                asked, query = self._attending(last)
                shaped = by_key_head(query, self._keys[last], self._values[last])
                local, mass = attend_with_mass(*shaped, self._mask)
                self._left[last] = asked, by_position(local), by_position(mass.unsqueeze(-1)).squeeze(-1)
            else:
                self._final = weights.norm(self._x)

        return compute

    def _begin(self) -> None:
        self._positions = self._start + self._places
        self._x = embedding(self._ids, self._weights.embedding)
        self._cos, self._sin = (turn.index_select(0, self._positions) for turn in self._turns)
        behind = self._columns > self._positions[:, None]
        self._mask = torch.zeros(behind.shape, dtype=self._x.dtype, device=behind.device).masked_fill(
            behind, float("-inf")
        )

    def _attending(self, number: int) -> tuple[Tensor, Tensor]:
        """Put keys and values of a layer in the cache. Returns its queries [ROWS, heads, d], before and after the
        rotary embedding."""
        heads = self._weights.heads
        pair, value = self._weights.layers[number].projected(self._x, heads, self._weights.kv_heads)
        placed = turned(pair, self._cos, self._sin)
        self._keys[number].index_copy_(1, self._positions, placed[:, heads:].transpose(0, 1))
        self._values[number].index_copy_(1, self._positions, value.transpose(0, 1))
        return pair[:, :heads], placed[:, :heads]


def _recorded(parts: Sequence[Callable[[], None]]) -> list[Callable[[], None]]:
    """The parts as CUDA graphs. What one leaves for the next stays where it is, as all share one pool of memory."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for part in parts:  # what libraries allocate by their first call must not be recorded
            part()
    torch.cuda.current_stream().wait_stream(stream)
    pool, graphs = torch.cuda.graph_pool_handle(), []
    for part in parts:
        graph = torch.cuda.CUDAGraph()
        # Other threads may encode meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            part()
        graphs.append(graph)
    return [graph.replay for graph in graphs]
