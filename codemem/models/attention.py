"""Attention over local context and memory at once: where memory enters the model, and the gate that weighs it.

For query head h with its key/value head g(h), head size d, and the k best entries j of that head in the bank:

    s_j     = softcap(scaling * <R(D) q_h, k_j>)                                 q, k before the rotary embedding
    score_j = temperature_h * s_j + bias_h - discount_h * max(0, min_j s_j)
    out_h   = softmax([score_memory ; score_local]) . [v_memory ; v_local]

One softmax over both makes the gate depend on content: memory's weight is sigmoid(LSE_memory - LSE_local). The more
entries a bank has, the better even the weakest of k neighbours is by chance; the discount takes off what that is worth,
nothing where fewer than k are found. The gate of Memorizing Transformers (Wu et al., ICLR 2022, section 3.2), g *
A_memory + (1 - g) * A_local with g = sigmoid(bias_h), is the kind "sigmoid", without a discount.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

GateKind = Literal["joint", "sigmoid"]


class MemoryGate(nn.Module):
    """The learned weight of memory against local context in one memory layer.

    bias, temperature, discount: [heads] float32, one per query head.
    """

    def __init__(self, bias: Tensor, temperature: Tensor, discount: Tensor, kind: GateKind = "joint") -> None:
        super().__init__()
        self.bias = nn.Parameter(bias.detach().clone().float())
        self.temperature = nn.Parameter(temperature.detach().clone().float())
        self.discount = nn.Parameter(discount.detach().clone().float())
        self.kind = kind

    def forward(self, local: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Turn raw scores into attention weights, local and memory.

        local: [batch, heads, rows, length], masked places at the dtype's minimum or -inf; memory: [batch, heads, rows,
        k], places without an entry at -inf. Both already scaled. Returns the weights, same shapes; together they sum to
        1.
        """
        shape = -1, 1, 1
        if self.kind == "joint":
            weights = torch.cat((local, self._scores(memory, shape)), dim=-1).softmax(dim=-1)
            return weights[..., : local.shape[-1]], weights[..., local.shape[-1] :]
        share, weights = self._constant(memory, shape)
        return local.softmax(dim=-1) * (1 - share), weights

    def beside(self, mass: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, where the local scores were already summed up, with the heads grouped by the key/value head
        that they share.

        mass: [kv_heads, rows, group], the logarithm of the sum of the exponentials of the local scores; memory:
        [kv_heads, rows, group, k], float32 both. Returns the share of local context [kv_heads, rows, group] and the
        weights of memory [kv_heads, rows, group, k].
        """
        kv_heads, _, group, _ = memory.shape
        shape = kv_heads, 1, group, 1
        if self.kind == "joint":
            weights = torch.cat((mass.unsqueeze(-1), self._scores(memory, shape)), dim=-1).softmax(dim=-1)
            return weights[..., 0], weights[..., 1:]
        share, weights = self._constant(memory, shape)
        return 1 - share.squeeze(-1).expand_as(mass), weights

    def _scores(self, memory: Tensor, shape: Sequence[int]) -> Tensor:
        """shape: that of one number a head, among the scores."""
        temperature, bias, discount = (
            p.to(memory.dtype).view(shape) for p in (self.temperature, self.bias, self.discount)
        )
        weakest = memory.amin(dim=-1, keepdim=True).clamp(min=0)
        return temperature * memory + (bias - discount * weakest)

    def _constant(self, memory: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Of the kind "sigmoid": memory's share and its weights, beside `memory` a share for all k and a weight for
        each."""
        temperature, bias = (p.to(memory.dtype).view(shape) for p in (self.temperature, self.bias))
        found = memory.isfinite().any(dim=-1, keepdim=True)
        share = torch.sigmoid(bias) * found
        return share, (temperature * memory).masked_fill(~found, 0).softmax(dim=-1) * share


def local_scores(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, softcap: float | None) -> Tensor:
    """Scores of the last `rows` queries against the local keys, as transformers' attention functions compute them.

    query: [batch, heads, rows, d]; key: [batch, kv_heads, length, d]; mask: [batch, 1 or heads, rows, length], boolean
    (True may be read) or additive, or None for causal attention. Returns [batch, heads, rows, length].
    """
    batch, heads, rows, d = query.shape
    kv_heads, length = key.shape[1], key.shape[2]
    scores = query.reshape(batch, kv_heads, -1, d) @ key.to(query.dtype).transpose(-1, -2) * scaling
    scores = scores.view(batch, heads, rows, length)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        if rows == 1:
            return scores
        mask = torch.ones(rows, length, dtype=torch.bool, device=scores.device).tril(length - rows)
    mask = mask[..., :length]
    return scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask.to(scores.dtype)


def by_key_head(query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [n, heads, d] by the key/value head that they share, [kv_heads, group, n, d], and keys and values
    [kv_heads, length, d] expanded to [kv_heads, group, length, d]."""
    grouped = query.reshape(len(query), len(keys), -1, query.shape[-1]).permute(1, 2, 0, 3)
    size = *grouped.shape[:2], *keys.shape[1:]
    return grouped, keys[:, None].expand(size), values[:, None].expand(size)


def by_position(out: Tensor) -> Tensor:
    """What `by_key_head` grouped, [kv_heads, group, n, d], as [n, heads, d] again."""
    return out.permute(2, 0, 1, 3).flatten(1, 2)


def attend_with_mass(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention [..., n, d] of queries [..., n, d] over keys and values [..., length, d] under an additive mask [n,
    length], and the logarithm [..., n] float32 of the sum of the exponentials of its scores."""
    scores = (query @ keys.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1).to(values.dtype) @ values, scores.logsumexp(dim=-1)


def memory_scores(query: Tensor, keys: Tensor, found: Tensor | None, scaling: float, softcap: float | None) -> Tensor:
    """Scores of queries against the entries found for them.

    query: [..., d] turned to the memory angle; keys: [..., k, d]; found: [..., k] boolean, None where everything was.
    Returns [..., k] with -inf where nothing was found.
    """
    scores = (keys.to(query.dtype) @ query.unsqueeze(-1)).squeeze(-1) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return scores if found is None else scores.masked_fill(~found, float("-inf"))


def weighted_values(local_weights: Tensor, value: Tensor, memory_weights: Tensor, memory_values: Tensor) -> Tensor:
    """Sum values by their weights.

    local_weights: [batch, heads, rows, length]; value: [batch, kv_heads, length, d]; memory_weights: [batch, heads,
    rows, k]; memory_values: [batch, heads, rows, k, d]. Returns [batch, rows, heads, d], the layout of attention
    functions.
    """
    batch, heads, rows, length = local_weights.shape
    local = local_weights.reshape(batch, value.shape[1], -1, length) @ value.to(local_weights.dtype)
    memory = (memory_weights.unsqueeze(-2) @ memory_values.to(memory_weights.dtype)).squeeze(-2)
    return (local.view(batch, heads, rows, -1) + memory).transpose(1, 2)
