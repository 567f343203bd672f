"""Matrices whose numbers have 4 bits already, multiplied as they are.

A generated token reads every weight once, so its time is that of reading them. Weights that were 4-bit numbers before
they were loaded (GGUF's Q4_1 and Q4_K: a scale and an offset for every 32) are found to be, packed again, and read in a
quarter of the time. Nothing is rounded that was not: other weights are left as they are.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.functional import linear

from codemem.errors import CodememError
from codemem.models.cache import cache_dir
from codemem.tensor_files import write_tensors

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

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is not None and len(x) <= MOST_ROWS:
            y = self.packed.multiply(x)
            return y if self._bias is None else y + self._bias
        parts = [linear(x, layer.weight, layer.bias) for layer in self.layers]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def pack_all(matrices: Sequence[Matrix], kept: Path | None) -> None:
    """Pack the matrices that can be: with what the file `kept` has of them, which is written where it is not there."""
    packs = None if kept is None else _read(kept, len(matrices))
    if packs is None:
        packs = [pack([layer.weight for layer in matrix.layers]) for matrix in matrices]
        if kept is not None:
            _write(kept, packs)
    for matrix, packed in zip(matrices, packs, strict=True):
        matrix.packed = packed


def packs_path(weights: str) -> Path:
    """Where the packed weights of the model with this hash are kept: how codes are laid out depends on PyTorch and on
    what the processor can do."""
    folder = cache_dir() / "packed"
    folder.mkdir(mode=0o700, exist_ok=True)
    layout = f"{torch.__version__}-{platform.machine()}-{torch.backends.cpu.get_cpu_capability()}"
    return folder / f"{weights[:20]}-{layout.replace(' ', '-')}.safetensors"


def _write(file: Path, packs: Sequence[Packed | None]) -> None:
    found = {number: packed for number, packed in enumerate(packs) if packed is not None}
    tensors = {f"{number}.codes": packed.codes for number, packed in found.items()}
    tensors |= {f"{number}.scales": packed.scales for number, packed in found.items()}
    with suppress(CodememError):  # then the next process packs them again
        write_tensors(file, tensors, {"matrices": str(len(packs))})


def _read(file: Path, count: int) -> list[Packed | None] | None:
    """What `_write` wrote of so many matrices, mapped from the file; None where there is none that can be read."""
    try:
        with safe_open(file, framework="pt") as opened:
            names = set(opened.keys())
            if (opened.metadata() or {}).get("matrices") != str(count):
                return None
            return [
                Packed(opened.get_tensor(f"{n}.codes"), opened.get_tensor(f"{n}.scales"))
                if f"{n}.codes" in names
                else None
                for n in range(count)
            ]
    except (OSError, SafetensorError):
        return None


def _bias(layer: Linear) -> Tensor:
    return layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias
