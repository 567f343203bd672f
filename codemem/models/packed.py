"""Matrices whose numbers have 4 bits already, multiplied as they are.

A generated token reads every weight once, so its time is that of reading them. Weights that were 4-bit numbers before
they were loaded (GGUF's Q4_1 and Q4_K: a scale and an offset for every 32) are found to be, packed again, and read in a
quarter of the time. Nothing is rounded that was not: other weights are left as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

GROUP = 32  # numbers with one scale
LEVELS = 15
# What bf16 makes of a 4-bit number is up to a twentieth of a step away from it; of any other number, up to half a step.
TOLERANCE = 0.15
# With more rows than this, 16-bit matrices take less time.
MOST_ROWS = 16


@dataclass(frozen=True)
class Packed:
    """codes: as PyTorch's kernel wants them, uint8; scales: [inputs / GROUP, outputs, 2], scale and offset, bf16."""

    codes: Tensor
    scales: Tensor

    def multiply(self, x: Tensor) -> Tensor:
        """[n, inputs] bf16 -> [n, outputs] bf16. A row's result does not depend on the other rows, bit by bit."""
        result: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, self.codes, GROUP, self.scales)
        return result


def pack(weights: Sequence[Tensor]) -> Packed | None:
    """The matrices [outputs, inputs] of the same inputs, one below the other; None where they are not of 4-bit numbers
    in bf16, or this PyTorch or processor has no kernel for them."""
    if any(w.dtype != torch.bfloat16 or w.device.type != "cpu" or w.shape[1] % GROUP for w in weights):
        return None
    if sum(len(w) for w in weights) % 16 or not hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu"):
        return None
    codes, scales = [], []
    for weight in weights:
        groups = weight.float().view(len(weight), -1, GROUP)
        low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        step = ((high - low) / LEVELS).clamp(min=1e-12)
        steps = (groups - low) / step
        levels = steps.round()
        if (steps - levels).abs().max() > TOLERANCE:
            return None
        codes.append(levels.to(torch.int32).flatten(1))
        # The kernel computes (code - 8) * scale + offset.
        scales.append(torch.cat((step, low + 8 * step), dim=-1))
    try:
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(torch.cat(codes), 2)
        found = Packed(packed, torch.cat(scales).transpose(0, 1).contiguous().to(torch.bfloat16))
        found.multiply(torch.zeros(1, weights[0].shape[1], dtype=torch.bfloat16))
    except (RuntimeError, NotImplementedError):
        return None
    return found


class Linear(NamedTuple):
    """weight: [outputs, inputs]; bias: [outputs]."""

    weight: Tensor
    bias: Tensor | None


class Matrix:
    """Linear layers with the same input, as one: [n, inputs] -> [n, outputs of all]."""

    def __init__(self, *layers: Linear) -> None:
        self.layers = layers
        self.packed: Packed | None = None
        some = any(layer.bias is not None for layer in layers)
        self._bias = torch.cat([_bias(layer) for layer in layers]) if some else None

    def pack(self) -> None:
        self.packed = pack([layer.weight for layer in self.layers])

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is not None and len(x) <= MOST_ROWS:
            y = self.packed.multiply(x)
            return y if self._bias is None else y + self._bias
        parts = [linear(x, layer.weight, layer.bias) for layer in self.layers]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _bias(layer: Linear) -> Tensor:
    return layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias
