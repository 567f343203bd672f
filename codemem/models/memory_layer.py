"""One memory layer: what a decoder layer does with memory while it reads a prompt, generates, or is memorised."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from codemem.memory.banks import Memory
from codemem.memory.focus import Focus
from codemem.models.attention import MemoryGate, local_scores, memory_scores, weighted_values
from codemem.models.rotary import first_half_negated, rotate, turned, unrotate
from codemem.models.site import Site

if TYPE_CHECKING:
    from codemem.models.interface import Call


@dataclass
class Reading:
    """How memory is read, shared by all memory layers of a model and its token memory.

    attention, tokens: whether memory layers and token memory read it at all; last: only so many last positions of a
    forward pass read, all if None; k: neighbours per query head; focus: what memory layers search, all of memory if
    None; seconds: spent in search and gathering. Lists, if they are not None, are appended to by every forward pass.
    trace: for each memory layer, what the last T positions read, the ones that predict a next token: bank rows [batch *
    heads, T, k], -1 for none, and attention weights [batch * heads, T, k]. token_trace: the same of the token memory,
    position by position: rows [batch, k] and shares of the distribution [batch, k]. states: the final hidden states of
    the positions whose logits are computed, [batch, T, size].
    """

    k: int
    attention: bool = True
    tokens: bool = True
    last: int | None = 64
    focus: Focus | None = None
    trace: list[tuple[Tensor, Tensor]] | None = None
    token_trace: list[tuple[Tensor, Tensor]] | None = None
    states: list[Tensor] | None = None
    seconds: float = 0.0

    def rows(self, length: int) -> int:
        """How many positions of a forward pass over `length` of them read."""
        return length if self.last is None else min(length, self.last)

    def searches(self, bank: Memory) -> int:
        """How many entries of a bank attention searches."""
        return 0 if not self.attention else len(bank if self.focus is None else self.focus)

    def keep(self, positions: int, of: int, layers: int) -> None:
        """Leave only the first `positions` of the traces that the last forward pass left, of `of` positions, at each of
        so many memory layers: the others were not taken."""
        if positions == of:
            return
        if self.trace:
            self.trace[-layers:] = [
                (rows[:, :positions], shares[:, :positions]) for rows, shares in self.trace[-layers:]
            ]
        if self.token_trace:
            del self.token_trace[len(self.token_trace) - (of - positions) :]


class ReadingLayer:
    """Attention over local context and bank (Memorizing Transformers, section 3.2) in one decoder layer."""

    def __init__(self, site: Site, gate: MemoryGate, bank: Memory, reading: Reading) -> None:
        self.site, self.gate, self.bank, self.reading = site, gate, bank, reading
        self.angle = site.cos, first_half_negated(site.sin)

    def __call__(self, call: Call) -> tuple[Tensor, Tensor | None]:
        reading, length, key, value = self.reading, call.query.shape[2], call.key, call.value
        rows = reading.rows(length)
        if not rows or not reading.searches(self.bank):
            return call.plain()
        # Only the last rows read memory; the base implementation is fastest for those before them.
        plain = None if rows == length else call.plain()[0]
        if call.mask is None and length > 1:
            key, value = key[:, :, :length], value[:, :, :length]  # a static cache is longer than what it holds
        local_weights, memory_weights, values, found = self.attend(call, key, rows)
        self.bank.note(found, memory_weights)
        if reading.trace is not None:
            read = found[:, :, -1:].flatten(0, 1), memory_weights[:, :, -1:].detach().flatten(0, 1)
            reading.trace.append(read)
        output = weighted_values(local_weights, value, memory_weights, values).to(call.query.dtype)
        return output if plain is None else torch.cat((plain[:, : length - rows], output), dim=1), None

    def attend(self, call: Call, key: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the last `rows` positions attend to, local context by `key` [batch, kv_heads, length, d]: weights of
        local context [batch, heads, rows, length] and of memory [batch, heads, rows, k], both at least float32; the
        values [batch, heads, rows, k, d] and bank rows [batch, heads, rows, k] of the latter, -1 where there is none.
        """
        first = call.query.shape[2] - rows
        mask = None if call.mask is None else call.mask[..., first:, :]
        scaling, softcap = call.kwargs["scaling"], call.kwargs.get("softcap")
        reader = call.query[:, :, first:].to(torch.promote_types(call.query.dtype, torch.float32))
        cos, sin = (x[:, None, first:] for x in call.rotary)
        placeless = rotate(unrotate(reader, cos, sin), self.site.cos.to(reader), self.site.sin.to(reader))
        keys, values, found = self._retrieve(placeless)
        local_weights, memory_weights = self.gate(
            local_scores(reader, key, mask, scaling, softcap),
            memory_scores(placeless, keys, found >= 0, scaling, softcap),
        )
        return local_weights, memory_weights, values, found

    def blend(
        self, query: Tensor, local: Tensor, mass: Tensor, scaling: float, rows: int, traced: int, filling: int = 0
    ) -> Tensor:
        """What positions attend to, memory included, from what they attend to without.

        query: [n, heads, d] before the rotary embedding; local: [n, heads, d], the output of attention over local
        context; mass: [n, heads] float32, the logarithm of the sum of the exponentials of its scores. The last `rows`
        positions read memory, but the last `filling` only fill up, and of the others the last `traced` leave a trace.
        Returns [n, heads, d].
        """
        first, real, d = len(query) - rows, rows - filling, query.shape[-1]
        # Query heads stand with the key/value head that they share, [kv_heads, rows, group, ...].
        grouped = rows, self.site.kv_heads, -1
        placeless = turned(query[first:].float(), *self.angle).view(*grouped, d).transpose(0, 1)
        keys, values, found = self._nearest(placeless)
        known = found >= 0 if self.reading.focus is None else None
        scores = memory_scores(placeless, keys, known, scaling, None)
        share, weights = self.gate.beside(mass[first:].view(grouped).transpose(0, 1), scores)
        self.bank.note(found[:, :real], weights[:, :real])
        if self.reading.trace is not None and traced:
            found, shares = (x[:, max(0, real - traced) : real].transpose(1, 2).flatten(0, 1) for x in (found, weights))
            self.reading.trace.append((found, shares))
        memory = (weights.unsqueeze(-2) @ values.float()).squeeze(-2).transpose(0, 1).flatten(1, 2)
        mixed = local[first:] * share.transpose(0, 1).flatten(1).unsqueeze(-1) + memory
        return torch.cat((local[:first], mixed.to(local.dtype))) if first else mixed.to(local.dtype)

    def _retrieve(self, query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The k best entries for queries [batch, heads, rows, d] at the memory angle.

        Returns keys and values [batch, heads, rows, k, d] and bank rows [batch, heads, rows, k], -1 where there is
        none.
        """
        batch, heads, rows, d = query.shape
        kv_heads = self.site.kv_heads
        grouped = query.detach().view(batch, kv_heads, heads // kv_heads, rows, d).permute(1, 0, 3, 2, 4).flatten(1, 2)

        def ungrouped(x: Tensor) -> Tensor:
            x = x.reshape(kv_heads, batch, rows, *x.shape[2:]).transpose(0, 1)
            return x.transpose(2, 3).flatten(1, 2)

        keys, values, found = self._nearest(grouped)
        return ungrouped(keys), ungrouped(values), ungrouped(found)

    def _nearest(self, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same for queries [kv_heads, m, group, d], those that share a key/value head beside each other: keys and
        values [kv_heads, m, group, k, d] and bank rows [kv_heads, m, group, k]."""
        start = time.perf_counter()
        layer, focus = self.site.layer, self.reading.focus
        k = min(self.reading.k, self.reading.searches(self.bank))
        if focus is not None:
            keys, values, found = focus.nearest(layer, queries, k)
        else:
            found = self.bank.search(layer, queries.flatten(1, 2), k).reshape(*queries.shape[:3], k)
            keys, values = self.bank.read(layer, found)
        self.reading.seconds += time.perf_counter() - start
        return keys, values, found


class RecordingLayer:
    """Notes keys before the rotary embedding, and values, of all positions."""

    def __init__(self, recorded: dict[int, Tensor], layer: int) -> None:
        self.recorded, self.layer = recorded, layer

    def __call__(self, call: Call) -> tuple[Tensor, Tensor | None]:
        cos, sin = (x[:, None] for x in call.rotary)
        # [batch, kv_heads, T, 2, d]
        pairs = torch.stack((unrotate(call.key, cos, sin).to(call.key.dtype), call.value), dim=3)
        self.recorded[self.layer] = pairs.transpose(1, 2)
        return call.plain()
