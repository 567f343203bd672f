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
from ctypes import byref
from dataclasses import dataclass
from functools import reduce
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.functional import linear

from codemem.cache import cache_folder
from codemem.errors import CodememError
from codemem.native.library import library
from codemem.native.records import GROUP, MatrixRecord, matrix_record
from codemem.tensor_files import write_tensors

LEVELS = 15
# Q4_K leaves the lowest or the highest levels of some groups without a number; no fewer than these are in between.
LEAST = 12
# What bf16 makes of a 4-bit number is up to a twentieth of a step away from it; of any other number, up to half a step.
TOLERANCE = 0.15
# With more rows than this, 16-bit matrices take less time.
MOST_ROWS = 16
_ROWS = 8_192  # of a matrix that are looked at together
_OUTPUTS = 16  # in a tile, see matrix.h
_TENSORS = ("codes", "scales")
_FORMAT = 3  # of packed weights in files; raised whenever the same weights are packed otherwise than before


@dataclass(frozen=True)
class Packed:
    """A matrix [outputs, inputs], the sum of its halves: one for numbers of 4 bits, two for numbers of 8. A number is
    its code times a scale and an offset. codes: uint8; scales: scale and offset, bf16; tiled: whether they are laid out
    as the functions of C want them, see matrix.h, or as PyTorch's kernel does."""

    codes: Tensor
    scales: Tensor
    tiled: bool

    @property
    def halves(self) -> int:
        return len(self.codes)

    @property
    def record(self) -> MatrixRecord:
        """Of tiled ones, without a bias."""
        return matrix_record(self.codes.shape, self.codes.data_ptr(), self.scales.data_ptr())

    def multiply(self, x: Tensor) -> Tensor:
        """[n, inputs] bf16 -> [n, outputs], bf16 or float32. A row's result does not depend on the other rows, bit by
        bit."""
        if not self.tiled:
            products = (_multiplied(x, *half) for half in zip(self.codes, self.scales, strict=True))
            return reduce(torch.add, products)
        record, x = self.record, x.contiguous()
        out = torch.empty(len(x), record.outputs, dtype=torch.float32)
        library("matrix").multiply(x.data_ptr(), len(x), byref(record), out.data_ptr())
        return out


def _multiplied(x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    product: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, codes, GROUP, scales)
    return product


def tiles() -> bool:
    """Whether matrices are multiplied by a function of C here."""
    return library("matrix") is not None


def multiplies_matrices() -> bool:
    """Whether the processor has a unit for products of matrices in bf16 (AMX), which PyTorch then uses."""
    asked = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return asked is not None and bool(asked())


def pack(weights: Sequence[Tensor], tiled: bool) -> Packed | None:
    """The matrices [outputs, inputs] of the same inputs, one below the other, for the functions of C or for PyTorch;
    None where they are not bf16, or PyTorch has no kernel for them here."""
    if any(w.dtype != torch.bfloat16 or w.device.type != "cpu" or w.shape[1] % GROUP for w in weights):
        return None
    if sum(len(w) for w in weights) % _OUTPUTS:
        return None
    if not tiled and not hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu"):
        return None
    split = _split(weights, _of_4_bits) or _split(weights, _in_8_bits)
    assert split is not None, "everything can be rounded"
    layout = _tiles if tiled else _for_pytorch
    try:
        halves = [layout(*(torch.cat(part) for part in zip(*parts, strict=True))) for parts in zip(*split, strict=True)]
        codes, scales = (torch.stack(part) for part in zip(*halves, strict=True))
        packed = Packed(codes, scales, tiled)
        packed.multiply(torch.zeros(1, weights[0].shape[1], dtype=torch.bfloat16))
    except (RuntimeError, NotImplementedError):
        return None
    return packed


# Codes [outputs, groups, GROUP] uint8, 0 to LEVELS, scales and offsets [outputs, groups, 1] of each half: a number is
# code * scale + offset.
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
            return ((((groups - low) / step).round().to(torch.uint8), step, low),)
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
    return (codes >> 4, 16 * step, -128 * step), (codes & LEVELS, step, torch.zeros_like(step))


def _rounded(groups: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Levels from -128 to 127 for numbers [..., GROUP], what the steps between them are best, as bf16 has it, and the
    sum of squares of what is lost."""
    step = torch.where(step == 0, 1e-12, step)
    levels = (groups / step).round().clamp(-128, 127)
    fitted = (groups * levels).sum(-1, keepdim=True) / (levels**2).sum(-1, keepdim=True).clamp(min=1)
    step = fitted.bfloat16().float()
    return levels, step, ((levels * step - groups) ** 2).sum(-1, keepdim=True)


def _tiles(codes: Tensor, scale: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """A half as matrix.h has it: [tiles, groups, GROUP / 8, OUTPUTS, 4] and [tiles, groups, 2, OUTPUTS]."""
    groups = codes.shape[1]
    split = codes.view(-1, _OUTPUTS, groups, 2, GROUP // 8, 4).permute(3, 0, 2, 4, 1, 5)
    scales = torch.cat((scale, offset), dim=-1).view(-1, _OUTPUTS, groups, 2).permute(0, 2, 3, 1)
    return split[0] | split[1] << 4, scales.to(torch.bfloat16).contiguous()


def _for_pytorch(codes: Tensor, scale: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """A half as PyTorch's kernel wants it, whose offset is that of the code 8; scales: [groups, outputs, 2]."""
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32).flatten(1), 2)
    scales = torch.cat((scale, offset + 8 * scale), dim=-1).transpose(0, 1)
    return packed, scales.to(torch.bfloat16).contiguous()


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
        self.bias = torch.cat([_bias(layer) for layer in layers]) if some else None

    def __call__(self, x: Tensor) -> Tensor:
        return self._few(x).to(x.dtype) if self._packs(x) else self._many(x)

    def float32(self, x: Tensor) -> Tensor:
        """The same, in float32 where it is computed in it."""
        return (self._few(x) if self._packs(x) else self._many(x)).float()

    def _packs(self, x: Tensor) -> bool:
        return self.packed is not None and len(x) <= MOST_ROWS

    def _few(self, x: Tensor) -> Tensor:
        assert self.packed is not None
        y = self.packed.multiply(x)
        return y if self.bias is None else y + self.bias

    def _many(self, x: Tensor) -> Tensor:
        parts = [linear(x, layer.weight, layer.bias) for layer in self.layers]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    @property
    def record(self) -> MatrixRecord:
        """Of one whose packed weights are tiled."""
        assert self.packed is not None
        record = self.packed.record
        record.bias = None if self.bias is None else self.bias.data_ptr()
        return record


def pack_all(matrices: Sequence[Matrix], kept: Path | None) -> None:
    """Pack the matrices that can be: with what the file `kept` has of them, which is written where it is not there."""
    packs = None if kept is None else _read(kept, len(matrices))
    if packs is None:
        packs = [pack([layer.weight for layer in matrix.layers], tiles()) for matrix in matrices]
        if kept is not None:
            _write(kept, packs)
    for matrix, packed in zip(matrices, packs, strict=True):
        matrix.packed = packed


def packs_path(weights: str) -> Path:
    """Where the packed weights of the model with this hash are kept: how codes are laid out depends on PyTorch and on
    what the processor can do."""
    layout = f"{torch.__version__}-{platform.machine()}-{torch.backends.cpu.get_cpu_capability()}"
    return cache_folder("packed") / f"{weights[:20]}-{layout.replace(' ', '-')}.safetensors"


def _marked(packs: int) -> dict[str, str]:
    """What the file of so many says of itself."""
    return {"packed": f"{_FORMAT}: {packs}, {'tiles' if tiles() else 'for PyTorch'}"}


def _write(file: Path, packs: Sequence[Packed | None]) -> None:
    tensors = {
        f"{number}.{name}": getattr(packed, name)
        for number, packed in enumerate(packs)
        for name in _TENSORS
        if packed is not None
    }
    with suppress(CodememError):  # then the next process packs them again
        write_tensors(file, tensors, _marked(len(packs)))


def _read(file: Path, count: int) -> list[Packed | None] | None:
    """What `_write` wrote of so many matrices, mapped from the file; None where there is none that can be read."""
    tiled = tiles()
    try:
        with safe_open(file, framework="pt") as opened:
            names = set(opened.keys())
            if (opened.metadata() or {}) != _marked(count):
                return None

            def read(number: int) -> Packed | None:
                codes, scales = (f"{number}.{name}" for name in _TENSORS)
                if not names.issuperset((codes, scales)):
                    return None
                return Packed(opened.get_tensor(codes), opened.get_tensor(scales), tiled)

            return [read(number) for number in range(count)]
    except (OSError, SafetensorError):
        return None


def _bias(layer: Linear) -> Tensor:
    return layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias
