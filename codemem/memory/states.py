"""Final hidden states, small: what the token memory keeps of every token.

A state is turned by a fixed orthogonal matrix and kept in 8 bits with one scale. Hidden states of language models have
a few dimensions that are many times larger than the rest; turned, the size is spread over all of them, so that 8 bits
lose next to nothing (the idea of QuaRot, Ashkboos et al., 2024). A rotation changes no inner product, so that search
needs only turn its queries too. A blob depends on nothing but its document: no statistics of other documents enter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from codemem.native.library import STEP


@dataclass(frozen=True)
class States:
    """codes: [n, size] int8; scales: [n] float32. A state is codes * scale, turned."""

    codes: Tensor
    scales: Tensor

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: slice | Tensor) -> States:
        return States(self.codes[rows], self.scales[rows])

    def decode(self) -> Tensor:
        """The turned states: [n, size] float32."""
        return self.codes.float() * self.scales.unsqueeze(-1)


def compress(states: Tensor) -> States:
    """Turn states [n, size] and keep 8 bits of each number."""
    turned = turn(states)
    scales = turned.abs().amax(dim=-1) / 127
    codes = (turned / scales.clamp(min=1e-12).unsqueeze(-1)).round()
    return States(codes.to(torch.int8), scales)


def turn(states: Tensor) -> Tensor:
    """Rotate states [..., size] into the basis in which they are kept. Returns float32."""
    return states.float() @ basis(states.shape[-1], states.device)


@lru_cache(maxsize=4)
def basis(size: int, device: torch.device) -> Tensor:
    """Random signs, then a discrete cosine transform: orthogonal, and the same on every machine. [size, size]."""
    signs = torch.randint(0, 2, (size,), generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    place = torch.arange(size, dtype=torch.float64)
    cosines = torch.cos(math.pi / size * (place[None] + 0.5) * place[:, None]) * math.sqrt(2 / size)
    cosines[0] /= math.sqrt(2)
    return (cosines * signs).T.float().contiguous().to(device)


@lru_cache(maxsize=4)
def columns(size: int) -> Tensor:
    """The basis on the CPU as states.c wants it, [size / STEP, size, STEP] bf16."""
    return basis(size, torch.device("cpu")).view(size, -1, STEP).transpose(0, 1).contiguous().bfloat16()
