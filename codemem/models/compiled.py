"""A pass over some positions on the CPU by functions of C: one call for all layers from one memory layer to the next.

Hidden states stay in float32 from the first layer to the last. Each position is computed by itself: so a verified draft
is what would have been generated.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from ctypes import addressof, byref, c_void_p, sizeof
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from codemem.memory.focus import Focus
from codemem.models.memory_layer import Reading, ReadingLayer
from codemem.models.packed import MOST_ROWS
from codemem.models.recorded import Blend
from codemem.native.library import STEP, library, releasing
from codemem.native.records import FocusRecord, LayerRecord, Rooms

if TYPE_CHECKING:
    from codemem.models.llama import Weights

# Query heads that share a key/value head, at most: what is computed for them at once stays in registers, or near.
_MOST_HEADS = 8


def compilable(weights: Weights) -> bool:
    """Whether a `CompiledPass` can be made of these weights here."""
    group = weights.heads // weights.kv_heads
    fits = weights.d % (2 * STEP) == 0 and group <= _MOST_HEADS
    tiled = all(each.packed and each.packed.tiled for layer in weights.layers for each in layer.matrices)
    return fits and tiled and functions_for(weights) is not None


def functions_for(weights: Weights) -> Any:
    """Those of layer.c for heads of this shape, None where they cannot be compiled."""
    return library("layer", D=weights.d, GROUP=weights.heads // weights.kv_heads)


class ReadFocus:
    """What a compiled pass reads a focus with, at each of the memory layers `layers`, of so many in all. functions:
    those that read it."""

    def __init__(self, focus: Focus, layers: Mapping[int, ReadingLayer], count: int, functions: Any) -> None:
        self.focus, self.layers = focus, layers
        self.readable = all(layer.gate.kind == "joint" for layer in layers.values()) and focus.packable
        self.pointers = (c_void_p * count)()
        self._records: list[FocusRecord] = []
        for number, layer in sorted(layers.items()) if self.readable else ():
            gate = layer.gate
            held = *focus.packed(number, functions), focus.rows
            learned = *layer.angle, gate.temperature, gate.bias, gate.discount
            k = min(layer.reading.k, len(focus))
            pointers = [[tensor.data_ptr() for tensor in tensors] for tensors in (held, learned)]
            self._records.append(FocusRecord(*pointers[0], len(focus), k, *pointers[1]))
            self.pointers[number] = addressof(self._records[-1])

    def prepare(self, heads: int, positions: int) -> tuple[Tensor, Tensor]:
        """Room for what each layer reads: rows of the memory, and weights, [memory layers, heads, positions, k]."""
        sizes = len(self._records), heads, positions, self._records[0].k
        found, weights = torch.empty(sizes, dtype=torch.int64), torch.empty(sizes, dtype=torch.float32)
        step = heads * positions * sizes[-1]
        for number, record in enumerate(self._records):
            record.found, record.weights = found.data_ptr() + 8 * step * number, weights.data_ptr() + 4 * step * number
            record.seconds = 0.0
        return found, weights

    def note(self, found: Tensor, weights: Tensor, reading: Reading, traced: int) -> None:
        """Note what was read, and leave traces of the last positions."""
        next(iter(self.layers.values())).bank.note(found, weights)
        if reading.trace is not None and traced:
            first = found.shape[2] - traced
            last = (x[:, :, first:].unbind() for x in (found, weights))
            reading.trace += zip(*last, strict=True)
        reading.seconds += sum(record.seconds for record in self._records)


class CompiledPass:
    """The forward pass over at most TOGETHER positions of one cache.

    keys, values: [layers, kv_heads, positions, d], the cache; turns: cosines and sines of its positions [positions, 1,
    d], as `turned` wants them.
    """

    def __init__(self, weights: Weights, keys: Tensor, values: Tensor, turns: tuple[Tensor, Tensor]) -> None:
        self._weights, self._functions = weights, functions_for(weights)
        self._releasing = releasing("layer", self._functions)
        cos, sin = (turn.float().contiguous() for turn in turns)
        self._layers = (LayerRecord * len(weights.layers))()
        for record, layer, *cache in zip(self._layers, weights.layers, keys, values, strict=True):
            record.norm, record.mlp_norm = layer.norm.weight.data_ptr(), layer.mlp_norm.weight.data_ptr()
            record.query_norm, record.key_norm = (
                norm and norm.weight.data_ptr() for norm in (layer.query_norm, layer.key_norm)
            )
            record.qkv, record.output, record.gate_up, record.down = (matrix.record for matrix in layer.matrices)
            record.keys, record.values = (part.data_ptr() for part in cache)
        rooms = Rooms(self._layers, weights.embedding.shape[1], weights.heads, weights.d)
        self._query, self._local, self._mass = map(torch.from_numpy, (rooms.placeless, rooms.local, rooms.mass))
        self._held = keys, values, cos, sin, rooms
        turning = cos.data_ptr(), sin.data_ptr()
        self._pass = rooms.record(*turning, weights.kv_heads, keys.stride(1), weights.epsilon)

    def blended(self, ids: Sequence[int], start: int, reads: Collection[int], blend: Blend) -> Tensor:
        """Read tokens at positions from `start` on; reads: the layers that read memory, for which `blend` gets and
        returns float32. Returns the final hidden states [n, size] in bf16."""

        def read(functions: Any) -> None:
            n, done, record = len(ids), 0, byref(self._pass)
            query, local, mass = self._query[:n], self._local[:n], self._mass[:n]
            for number in sorted(reads):
                functions.layers(self._from(done), number - done, record, None)
                functions.begin(self._from(number), record)
                mixed = blend(number, query, local, mass).contiguous()  # held while it is read
                functions.finish(self._from(number), record, mixed.data_ptr())
                done = number + 1
            functions.layers(self._from(done), len(self._layers) - done, record, None)

        return self._read(ids, start, read)

    def focused(self, ids: Sequence[int], start: int, focus: ReadFocus, reading: Reading, traced: int) -> Tensor:
        """The same of tokens that all read a focus, of which the last leave traces."""
        found, weights = focus.prepare(self._weights.heads, len(ids))
        every = len(self._layers)
        states = self._read(
            ids, start, lambda functions: functions.layers(self._layers, every, byref(self._pass), focus.pointers)
        )
        focus.note(found, weights, reading, traced)
        return states

    def _read(self, ids: Sequence[int], start: int, layers: Callable[[Any], None]) -> Tensor:
        n, weights, record = len(ids), self._weights, self._pass
        functions = self._releasing if n > MOST_ROWS else self._functions
        record.n, record.start = n, start
        tokens = torch.tensor(ids)
        functions.embed(byref(record), weights.embedding.data_ptr(), tokens.data_ptr())
        layers(functions)
        states = torch.empty(n, record.size, dtype=torch.bfloat16)
        functions.norm(byref(record), weights.norm.weight.data_ptr(), states.data_ptr())
        return states

    def _from(self, layer: int) -> object:
        return byref(self._layers, layer * sizeof(LayerRecord))
