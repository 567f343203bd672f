"""Where memory can be attached: the shape of an attention layer, and the rotary embedding of the memory angle there."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Site:
    """An attention layer that memory can be attached to.

    layer: its number; heads, kv_heads, d: its shape; cos, sin: [r] float32, the rotary embedding of the memory angle,
    squared in length: stored keys lost the factor by which YaRN and LongRoPE lengthen both sides of a score, so queries
    make up for it.
    """

    layer: int
    heads: int
    kv_heads: int
    d: int
    cos: Tensor
    sin: Tensor


def site(layer: int, heads: int, kv_heads: int, d: int, cos: Tensor, sin: Tensor) -> Site:
    """The site of a layer that turns the memory angle by these cosines and sines [r]."""
    cos, sin = cos.float(), sin.float()
    scale = length_of(cos, sin)
    return Site(layer, heads, kv_heads, d, cos * scale, sin * scale)


def length_of(cos: Tensor, sin: Tensor) -> Tensor:
    """The factor by which a rotary embedding lengthens what it turns."""
    return (cos**2 + sin**2).sqrt().mean()
