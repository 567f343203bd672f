"""Matrices in 4 or 8 bits a number, for few rows at a time.

A generated token reads every weight once, so its time is that of reading them. Weights that were 4-bit numbers before
they were loaded (GGUF's Q4_1 and Q4_K: a scale and an offset for every 32) are found to be, packed again, and read in a
quarter of the time. Others are rounded to 8 bits, with a scale for every 32, and multiplied as two of 4 bits, in half
the time: those of Q8_0, Q5_0 and Q4_0 are such numbers already. docs/results.md says what others lose.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.functional import linear

from codemem.cache import cache_folder
from codemem.errors import CodememError
from codemem.tensor_files import write_tensors

GROUP = 32  # numbers with one scale
LEVELS = 15
# Q4_K leaves the lowest or the highest levels of some groups without a number; no fewer than these are in between.
LEAST = 12
# What bf16 makes of a 4-bit number is up to a twentieth of a step away from it; of any other number, up to half a step.
TOLERANCE = 0.15
# With more rows than this, 16-bit matrices take less time.
MOST_ROWS = 16
_ROWS = 8_192  # of a matrix that are looked at together
_FORMAT = 2  # of packed weights in files; raised whenever the same weights are packed otherwise than before


class Half(NamedTuple):
    """4 bits of each number. codes: as PyTorch's kernel wants them, uint8; scales: [inputs / GROUP, outputs, 2], scale
    and offset, bf16. A number is (code - 8) * scale + offset."""

    codes: Tensor
    scales: Tensor


@dataclass(frozen=True)
class Packed:
    """The sum of its halves: one for numbers of 4 bits, two for numbers of 8."""

    halves: tuple[Half, ...]

    def multiply(self, x: Tensor) -> Tensor:
        """[n, inputs] bf16 -> [n, outputs] bf16. A row's result does not depend on the other rows, bit by bit."""
        result = _multiplied(x, self.halves[0])
        for half in self.halves[1:]:
            result = result + _multiplied(x, half)
        return result


def _multiplied(x: Tensor, half: Half) -> Tensor:
    product: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, half.codes, GROUP, half.scales)
    return product


def pack(weights: Sequence[Tensor]) -> Packed | None:
    """The matrices [outputs, inputs] of the same inputs, one below the other; None where they are not bf16, or this
    PyTorch or processor has no kernel for their shape."""
    if any(w.dtype != torch.bfloat16 or w.device.type != "cpu" or w.shape[1] % GROUP for w in weights):
        return None
    if sum(len(w) for w in weights) % 16 or not hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu"):
        return None
    split = _split(weights, _of_4_bits) or _split(weights, _in_8_bits)
    assert split is not None, "everything can be rounded"
    try:
        packed = Packed(tuple(_half(parts) for parts in zip(*split, strict=True)))
        packed.multiply(torch.zeros(1, weights[0].shape[1], dtype=torch.bfloat16))
    except (RuntimeError, NotImplementedError):
        return None
    return packed


# Codes [outputs, groups, GROUP] uint8, 0 to LEVELS, scales and offsets [outputs, groups, 1] of each half.
_Halves = tuple[tuple[Tensor, Tensor, Tensor], ...]


def _split(weights: Sequence[Tensor], halves: Callable[[Tensor], _Halves | None]) -> list[_Halves] | None:
    """The halves of all rows of the matrices, some rows at a time; None where some have none, which mostly the first
    show."""
    split = []
    for rows in chain.from_iterable(torch.split(weight, _ROWS) for weight in weights):
        if (found := halves(rows)) is None:
            return None
        split.append(found)
    return split


def _of_4_bits(weight: Tensor) -> _Halves | None:
    groups = weight.float().view(len(weight), -1, GROUP)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step, wrong = high, torch.full_like(high, True, dtype=torch.bool)
    for steps in range(LEVELS, LEAST - 1, -1):
        step = torch.where(wrong, ((high - low) / steps).clamp(min=1e-12), step)
        wrong = _off(groups, low, step) > TOLERANCE
        if not wrong.any():
            return ((((groups - low) / step).round().to(torch.uint8), step, low + 8 * step),)
    return None


def _off(groups: Tensor, low: Tensor, step: Tensor) -> Tensor:
    """The greatest distance of a group's numbers from their levels, in steps, [..., 1]."""
    steps = (groups - low) / step
    return (steps - steps.round()).abs().amax(-1, keepdim=True)


def _in_8_bits(weight: Tensor) -> _Halves:
    groups = weight.float().view(len(weight), -1, GROUP)
    # The number furthest from zero is -128 steps, as Q5_0 and Q4_0 have it, or 127, as Q8_0: what loses less.
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    widest = torch.where(-low > high, low, high)
    (levels, step, lost), (others, other, less) = (_rounded(groups, widest / most) for most in (-128, 127))
    better = less < lost
    codes = (torch.where(better, others, levels) + 128).to(torch.uint8)
    step = torch.where(better, other, step)
    return (codes >> 4, 16 * step, torch.zeros_like(step)), (codes & LEVELS, step, 8 * step)


def _rounded(groups: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Levels from -128 to 127 for numbers [..., GROUP], what the steps between them are best, as bf16 has it, and the
    sum of squares of what is lost."""
    step = torch.where(step == 0, 1e-12, step)
    levels = (groups / step).round().clamp(-128, 127)
    fitted = (groups * levels).sum(-1, keepdim=True) / (levels**2).sum(-1, keepdim=True).clamp(min=1)
    step = fitted.bfloat16().float()
    return levels, step, ((levels * step - groups) ** 2).sum(-1, keepdim=True)


def _half(parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Half:
    codes = torch.cat([codes.to(torch.int32).flatten(1) for codes, _, _ in parts])
    scales = torch.cat([torch.cat((scale, offset), dim=-1) for _, scale, offset in parts])
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 2)
    return Half(packed, scales.transpose(0, 1).contiguous().to(torch.bfloat16))


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
    layout = f"{torch.__version__}-{platform.machine()}-{torch.backends.cpu.get_cpu_capability()}"
    return cache_folder("packed") / f"{weights[:20]}-{layout.replace(' ', '-')}.safetensors"


def _write(file: Path, packs: Sequence[Packed | None]) -> None:
    tensors = {
        f"{number}.{part}.{name}": tensor
        for number, packed in enumerate(packs)
        for part, half in enumerate(packed.halves if packed else ())
        for name, tensor in half._asdict().items()
    }
    with suppress(CodememError):  # then the next process packs them again
        write_tensors(file, tensors, {"packed": f"{_FORMAT}: {len(packs)}"})


def _read(file: Path, count: int) -> list[Packed | None] | None:
    """What `_write` wrote of so many matrices, mapped from the file; None where there is none that can be read."""
    try:
        with safe_open(file, framework="pt") as opened:
            names = set(opened.keys())
            if (opened.metadata() or {}).get("packed") != f"{_FORMAT}: {count}":
                return None

            def read(number: int) -> Packed | None:
                parts = [f"{number}.{part}" for part in range(2) if f"{number}.{part}.codes" in names]
                halves = (Half(*(opened.get_tensor(f"{part}.{name}") for name in Half._fields)) for part in parts)
                return Packed(tuple(halves)) if parts else None

            return [read(number) for number in range(count)]
    except (OSError, SafetensorError):
        return None


def _bias(layer: Linear) -> Tensor:
    return layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias
