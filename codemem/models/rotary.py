"""Rotary position embedding, and its inverse (Su et al., RoFormer, 2021, section 3.4.2).

Memory keeps keys as they are *before* the rotation, so that an entry has no position: where it was read does not
matter, only what it says. An attention implementation receives queries and keys after the rotation. A rotation can be
undone exactly, so one inverse serves all architectures, fused projections and query/key norms included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from codemem.models.shape import Shape


@dataclass(frozen=True)
class Rotary:
    """inverse: [d / 2] float32, the angle of each pair of dimensions at position 1; scaling: of cosines and sines."""

    inverse: Tensor
    scaling: float = 1.0

    def __call__(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions [n], each [n, d], as transformers computes them."""
        angles = positions[:, None].float() * self.inverse
        angles = torch.cat((angles, angles), dim=-1)
        return (angles.cos() * self.scaling).to(dtype), (angles.sin() * self.scaling).to(dtype)


def rotary_of(shape: Shape, device: torch.device) -> Rotary | None:
    """The rotary embedding of a shape; None for a kind that only transformers computes."""
    rope, kind = shape.rope, shape.rope["rope_type"]
    inverse = 1.0 / (rope["rope_theta"] ** (torch.arange(0, shape.d, 2, dtype=torch.float, device=device) / shape.d))
    if kind == "default":
        return Rotary(inverse)
    if kind == "linear":
        return Rotary(inverse / rope["factor"])
    if kind == "llama3" and "original_max_position_embeddings" in rope:
        return Rotary(_stretched(inverse, rope))
    return None


def _stretched(inverse: Tensor, rope: dict[str, float]) -> Tensor:
    """Llama 3.1's: waves that are long beside the length the model was first trained on are stretched, short ones are
    not, and those between partly."""
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    length = rope["original_max_position_embeddings"]
    waves = 2 * math.pi / inverse
    slow = torch.where(waves > length / low, inverse / factor, inverse)
    smooth = (length / waves - low) / (high - low)
    between = ~(waves < length / high) * ~(waves > length / low)
    return torch.where(between, (1 - smooth) * slow / factor + smooth * slow, slow)


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the leading `r` of the `d` head dimensions by the angles whose cosines and sines are given.

    x: [..., d]; cos, sin: [..., r] with r <= d, broadcast against x (partial rotary leaves x[..., r:] as it is).
    Returns a tensor like x in the wider dtype of x and float32.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    x, cos, sin = x.to(wide), cos.to(wide), sin.to(wide)
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    turned = turned * cos + _rotate_half(turned) * sin
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As `rotate`, of whole heads [n, heads, d], in fewer operations and in the dtype of x; sin as `first_half_negated`
    leaves it."""
    half = x.shape[-1] // 2
    return torch.addcmul(x * cos, torch.cat((x[..., half:], x[..., :half]), dim=-1), sin)


def first_half_negated(sin: Tensor) -> Tensor:
    """[..., d]"""
    first, second = sin.chunk(2, dim=-1)
    return torch.cat((-first, second), dim=-1)


def unrotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The inverse of `rotate`: rotate by the opposite angles.

    YaRN and LongRoPE scale cos and sin by a constant s, so that a rotated vector is s times as long; dividing by
    cos^2 + sin^2 = s^2 removes it.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    cos, sin = cos.to(wide), sin.to(wide)
    squared_scale = cos * cos + sin * sin
    return rotate(x, cos / squared_scale, -sin / squared_scale)
