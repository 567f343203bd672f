"""Our own forward pass of Llama-shaped decoders, for generating.

A token of a small model costs transformers more in Python than in arithmetic. On the CPU functions of C compute a few
layers in one call (`compiled.py`); where there is no compiler, and for many positions on a processor that has a unit
for products of matrices, a layer is some 15 operations on one document's tokens [n, size]. Keys and values stand in a
cache that was allocated before, and weights have 4 or 8 bits.

A position's result does not depend on how many others are computed with it, bit by bit, in a compiled pass; on a GPU in
one over `recorded.ROWS`: so a draft that was verified is what would have been generated. Elsewhere there are no drafts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import embedding, layer_norm, rms_norm, scaled_dot_product_attention, silu

from codemem.models.attention import attend_with_mass, by_key_head, by_position
from codemem.models.compiled import CompiledPass, ReadFocus, compilable, functions_for
from codemem.models.packed import MOST_ROWS, Linear, Matrix, multiplies_matrices, pack_all
from codemem.models.recorded import ROWS, RecordedPass
from codemem.models.rotary import Rotary, first_half_negated, turned, unrotate
from codemem.models.shape import Shape
from codemem.native.records import TOGETHER

if TYPE_CHECKING:
    from codemem.models.ahead import Ahead
    from codemem.models.memorizing import MemorizingModel

# Positions for which room is made at a time.
ROOM = 1024
# So many positions that read no memory are read by PyTorch where its products are faster.
_MANY = 128


class Norm:
    """RMS norm (Zhang and Sennrich, 2019). The mean of x beside -x is zero and their variance the mean square of x, and
    on the CPU PyTorch has a layer norm in one piece, but none of this kind."""

    def __init__(self, weight: Tensor, epsilon: float) -> None:
        self.weight, self._size, self._epsilon = weight, len(weight), epsilon
        self._doubled = torch.cat((weight, weight))

    def __call__(self, x: Tensor) -> Tensor:
        if x.device.type == "cuda":
            return rms_norm(x, (self._size,), self.weight, self._epsilon)
        doubled = layer_norm(torch.cat((x, -x), dim=-1), (2 * self._size,), self._doubled, None, self._epsilon)
        return doubled[..., : self._size].contiguous()


@dataclass(frozen=True)
class _Layer:
    norm: Norm
    qkv: Matrix
    query_norm: Norm | None
    key_norm: Norm | None
    output: Matrix
    mlp_norm: Norm
    gate_up: Matrix
    down: Matrix

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        return self.qkv, self.output, self.gate_up, self.down

    def projected(self, x: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor]:
        """Queries and keys [n, heads + kv_heads, d] before the rotary embedding, and values [n, kv_heads, d]."""
        qkv = self.qkv(self.norm(x)).view(len(x), heads + 2 * kv_heads, -1)
        pair = qkv[:, : heads + kv_heads]
        if self.query_norm is not None and self.key_norm is not None:
            pair = torch.cat((self.query_norm(pair[:, :heads]), self.key_norm(pair[:, heads:])), dim=1)
        return pair, qkv[:, heads + kv_heads :]

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The layer's output [n, size] for its input and what its heads attended to [n, heads, d]."""
        x = x + self.output(mixed.reshape(len(x), -1))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.down(silu(gate) * up)


class Weights:
    """What a Llama-shaped model's layers compute with, packed where there is a kernel for it. tensors: the weights by
    their names in files, all in one dtype on one device; packs: the file in which packed weights are kept for the next
    process."""

    def __init__(self, shape: Shape, tensors: Mapping[str, Tensor], rotary: Rotary, packs: Path | None = None) -> None:
        self.heads, self.kv_heads, self.d, self.rotary = shape.heads, shape.kv_heads, shape.d, rotary
        self.epsilon = shape.epsilon
        self.embedding, self.head = tensors["model.embed_tokens.weight"], tensors[shape.head]
        self.norm = Norm(tensors["model.norm.weight"], shape.epsilon)
        self.layers = [_layer(tensors, f"model.layers.{number}.", shape) for number in range(shape.layers)]
        self.output = Matrix(Linear(self.head, None))
        self.matrices = [*(matrix for layer in self.layers for matrix in layer.matrices), self.output]
        pack_all(self.matrices, packs)
        # Whether a few positions are read by a `RecordedPass`, or all by a `CompiledPass`.
        self.recorded = self.head.device.type == "cuda"
        self.compiled = compilable(self)
        # Whether PyTorch's products of many rows are faster than those in 8 bits: where the processor has a unit for
        # products of matrices in bf16.
        self.wide = self.compiled and multiplies_matrices()
        self.plan: str | None = None  # what a prompt is read with before PyTorch is there, see `ahead.py`

    def turns(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions 0 to length - 1, [length, 1, d], as `turned` wants them."""
        cos, sin = self.rotary(torch.arange(length, device=self.head.device), self.head.dtype)
        return cos[:, None], first_half_negated(sin)[:, None]


def _layer(tensors: Mapping[str, Tensor], prefix: str, shape: Shape) -> _Layer:
    def linears(*names: str) -> Matrix:
        stems = [f"{prefix}{name}_proj" for name in names]
        return Matrix(*(Linear(tensors[f"{stem}.weight"], tensors.get(f"{stem}.bias")) for stem in stems))

    def norm(name: str) -> Norm:
        return Norm(tensors[f"{prefix}{name}.weight"], shape.epsilon)

    return _Layer(
        norm("input_layernorm"),
        linears("self_attn.q", "self_attn.k", "self_attn.v"),
        norm("self_attn.q_norm") if shape.head_norms else None,
        norm("self_attn.k_norm") if shape.head_norms else None,
        linears("self_attn.o"),
        norm("post_attention_layernorm"),
        linears("mlp.gate", "mlp.up"),
        linears("mlp.down"),
    )


class LlamaDecoder:
    """One document's tokens in a cache, and the forward pass over those that come next; see `decoder.Decoder`."""

    def __init__(self, weights: Weights, model: MemorizingModel) -> None:
        self.weights, self.model = weights, model
        self.tokens: list[int] = []
        self.together = ROWS if weights.recorded else MOST_ROWS if weights.compiled else 1
        head = weights.head
        shape = len(weights.layers), weights.kv_heads, 0, weights.d
        self._keys, self._values = head.new_zeros(shape), head.new_zeros(shape)
        self._cos = self._sin = head
        self._passes: dict[tuple[int, ...], RecordedPass] = {}  # by the layers that read memory
        self._pass: CompiledPass | None = None
        self._read_focus: ReadFocus | None = None

    def crop(self, length: int) -> None:
        """Forget all positions from `length` on."""
        del self.tokens[length:]

    def take(self, ahead: Ahead) -> None:
        """Hold the tokens that were read ahead, if it was with the same weights. The cache must be empty."""
        if self.tokens or ahead.description != self.weights.plan or not ahead.done():
            return
        self._keys, self._values = (torch.from_numpy(part).view(torch.bfloat16) for part in (ahead.keys, ahead.values))
        self._renew(self._keys.shape[2])
        self.tokens += ahead.ids

    def _reserve(self, length: int) -> None:
        if length <= self._keys.shape[2]:
            return
        room = -(-length // ROOM) * ROOM
        for name in ("_keys", "_values"):
            old = getattr(self, name)
            new = old.new_zeros(*old.shape[:2], room, old.shape[3])
            new[:, :, : len(self.tokens)] = old[:, :, : len(self.tokens)]
            setattr(self, name, new)
        self._renew(room)

    def _renew(self, room: int) -> None:
        """Forget the passes over another cache."""
        self._cos, self._sin = self.weights.turns(room)
        self._passes.clear()
        self._pass = None

    @torch.inference_mode()
    def states(self, ids: Sequence[int], last: int = 1) -> Tensor:
        """Read tokens behind those in the cache. Returns the final hidden states [last, size] of the last ones."""
        if self._records(len(ids)):
            return self._recorded(ids, last)[len(ids) - last : len(ids)]
        if self.weights.compiled:
            return self._compiled(ids, last)
        return self._by_pytorch(ids, last, self._readers(len(ids)))

    def _readers(self, count: int) -> int:
        """How many of so many positions read memory inside attention: the last ones."""
        reading = self.model.reading
        return reading.rows(count) if reading.searches(self.model.bank) else 0

    def _by_pytorch(self, ids: Sequence[int], last: int, rows: int) -> Tensor:
        """As `states`, layer by layer; the last `rows` positions read memory."""
        start, count = len(self.tokens), len(ids)
        end = start + count
        self._reserve(end)
        weights, layers = self.weights, self.model.layers
        heads, kv_heads, d = weights.heads, weights.kv_heads, weights.d
        step = torch.tensor(ids, device=weights.head.device)
        x = embedding(step, weights.embedding)
        cos, sin = self._cos[start:end], self._sin[start:end]
        seen = _Seen(start, count, x)
        every_keys, every_values = (cache[:, :, : seen.length].unbind() for cache in (self._keys, self._values))
        new_keys, new_values = (cache[:, :, start:end].unbind() for cache in (self._keys, self._values))
        for number, layer in enumerate(weights.layers):
            pair, value = layer.projected(x, heads, kv_heads)
            placed = turned(pair, cos, sin)
            new_keys[number].copy_(placed[:, heads:].transpose(0, 1))
            new_values[number].copy_(value.transpose(0, 1))
            keys, values = every_keys[number], every_values[number]
            memory = layers.get(number) if rows else None
            if memory is None:
                mixed = seen.attend(placed[:, :heads], keys, values)
            else:
                local, mass = seen.attend_with_mass(placed[:, :heads], keys, values)
                mixed = memory.blend(pair[:, :heads], local, mass, d**-0.5, rows, last)
            x = layer.finish(x, mixed)
        self.tokens += ids
        return weights.norm(x[count - last :])

    @torch.inference_mode()
    def read(self, ids: Sequence[int], last: int = 1) -> Tensor:
        reading, count, wanted = self.model.reading, len(ids), None
        if self._records(count):
            states, wanted = self._recorded(ids, last), slice(count - last, count)
        else:
            states = self.states(ids, last)
        if reading.states is not None:
            reading.states.append((states if wanted is None else states[wanted]).unsqueeze(0))
        logits = self.weights.output.float32(states)
        if reading.tokens:
            logits = self.model.token_memory.mixed(states, logits, wanted)
        return logits if wanted is None else logits[wanted]

    def record(self, ids: Sequence[int], layers: Iterable[int]) -> tuple[dict[int, Tensor], Tensor]:
        """Read a text in place of what was read. Returns for each of the layers keys, before the rotary embedding, and
        values [n, kv_heads, 2, d], and the final hidden states [n, size]."""
        self.crop(0)
        final, n = self.states(ids, len(ids)), len(ids)
        cos, sin = self.weights.rotary(torch.arange(n, device=final.device), self.weights.head.dtype)
        recorded = {}
        for layer in layers:
            key, value = self._keys[layer, :, :n], self._values[layer, :, :n]
            recorded[layer] = torch.stack((unrotate(key, cos, sin).to(key.dtype), value), dim=2).transpose(0, 1)
        return recorded, final

    def _records(self, count: int) -> bool:
        """Whether so many positions are read by a recorded pass: few, all of which read memory where it is read."""
        return self.weights.recorded and self.model.reading.rows(count) == count <= ROWS

    def _compiled(self, ids: Sequence[int], last: int) -> Tensor:
        """As `states`, by compiled passes, of which the last gives the last positions."""
        self._reserve(len(self.tokens) + len(ids))
        reading, layers, states = self.model.reading, self.model.layers, self.weights.embedding[:0]
        if self._pass is None:
            self._pass = CompiledPass(self.weights, self._keys, self._values, (self._cos, self._sin))
        first, done = len(ids) - self._readers(len(ids)), 0
        if self.weights.wide and first >= _MANY:
            states, done = self._by_pytorch(ids[:first], min(last, first), 0), first
        for piece in (*_pieces(done, first), *_pieces(first, len(ids))):
            traced = min(last, piece.stop - piece.start) if piece.stop == len(ids) else 0

            def blend(number: int, query: Tensor, local: Tensor, mass: Tensor, traced: int = traced) -> Tensor:
                return layers[number].blend(query, local, mass, self.weights.d**-0.5, len(query), traced)

            reads = layers if piece.start >= first else {}
            if reads and (focus := self._focus()) is not None:
                read = self._pass.focused(ids[piece], len(self.tokens), focus, reading, traced)
            else:
                read = self._pass.blended(ids[piece], len(self.tokens), reads, blend)
            states = torch.cat((states, read))[-last:]
            self.tokens += ids[piece]
        return states

    def _focus(self) -> ReadFocus | None:
        """What compiled passes read the focus with; None where there is none that they can read."""
        focus, layers, before = self.model.reading.focus, self.model.layers, self._read_focus
        if focus is None:
            return None
        if before is None or before.focus is not focus or before.layers is not layers:
            functions = functions_for(self.weights)
            self._read_focus = before = ReadFocus(focus, layers, len(self.weights.layers), functions)
        return before if before.readable else None

    def _recorded(self, ids: Sequence[int], last: int) -> Tensor:
        """As `states`, but [ROWS, size]: of all tokens, the last ones of which leave traces, and of what fills up."""
        start, count = len(self.tokens), len(ids)
        self._reserve(start + ROWS)
        reading, layers = self.model.reading, self.model.layers
        stops = tuple(layers) if reading.searches(self.model.bank) else ()
        if stops not in self._passes:
            turns = self._cos, self._sin
            self._passes[stops] = RecordedPass(self.weights, self._keys, self._values, turns, stops)

        def blend(number: int, query: Tensor, local: Tensor, mass: Tensor) -> Tensor:
            return layers[number].blend(query, local, mass, self.weights.d**-0.5, ROWS, last, ROWS - count)

        states = self._passes[stops](ids, start, blend)
        self.tokens += ids
        return states


def _pieces(start: int, end: int) -> Iterator[slice]:
    """TOGETHER positions each, the first piece fewer, so that the last has as many as there are."""
    short = (end - start) % TOGETHER
    if short:
        yield slice(start, start + short)
    for first in range(start + short, end, TOGETHER):
        yield slice(first, first + TOGETHER)


class _Seen:
    """What positions start to start + count - 1 attend to: themselves and all before them."""

    def __init__(self, start: int, count: int, like: Tensor) -> None:
        self.count, self.length = count, start + count
        self.causal = not start and count > 1  # by its own mask
        self.mask: Tensor | None = None
        if start and count > 1:
            mask = torch.full((count, self.length), float("-inf"), dtype=like.dtype, device=like.device)
            self.mask = mask.triu(start + 1)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """query: [count, heads, d]; keys, values: [kv_heads, length, d]. Returns [count, heads, d]."""
        shaped = self._shaped(query, keys, values)
        return self._restored(scaled_dot_product_attention(*shaped, attn_mask=self.mask, is_causal=self.causal))

    def attend_with_mass(self, query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and the logarithm of the sum of the exponentials of the scores, [count, heads] float32."""
        query, keys, values = self._shaped(query, keys, values)
        if query.device.type == "cpu":
            out, mass = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query, keys, values, is_causal=self.causal, attn_mask=self.mask
            )
        else:
            mask = query.new_full((self.count, self.length), float("-inf")).triu(1) if self.causal else self.mask
            out, mass = attend_with_mass(query, keys, values, mask)
        return self._restored(out), self._restored(mass.float().unsqueeze(-1)).squeeze(-1)

    def _shaped(self, query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Many positions [kv_heads, group, count, d]; of one there are the query heads of a group in their place, [1,
        kv_heads, group, d]."""
        if self.count == 1:
            return query.reshape(1, len(keys), -1, query.shape[-1]), keys[None], values[None]
        return by_key_head(query, keys, values)

    def _restored(self, out: Tensor) -> Tensor:
        return out.flatten(1, 2) if self.count == 1 else by_position(out)
