"""Rotary position embedding, and its inverse (Su et al., RoFormer, 2021, section 3.4.2).

Memory keeps keys as they are *before* the rotation, so that an entry has no position: where it was read does not
matter, only what it says. An attention implementation receives queries and keys after the rotation. A rotation can be
undone exactly, so one inverse serves all architectures, fused projections and query/key norms included.
"""

from __future__ import annotations

import torch
from torch import Tensor


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


def unrotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The inverse of `rotate`: rotate by the opposite angles.

    YaRN and LongRoPE scale cos and sin by a constant s, so that a rotated vector is s times as long; dividing by
    cos^2 + sin^2 = s^2 removes it.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    cos, sin = cos.to(wide), sin.to(wide)
    squared_scale = cos * cos + sin * sin
    return rotate(x, cos / squared_scale, -sin / squared_scale)
