"""The first-order gate scan: which heads of which layers would gain from memory, by one backward pass per piece.

Every head of every layer gets a switch g that stands at 0:

    out_h = local_h + g_h * w_h * (memory_h - local_h),    w_h = sigmoid(LSE_memory + b - LSE_local), b = -2

which at g = 1 is the joint softmax of `MemoryGate`. -dL/dg_h at g = 0 is what head h would gain, to first order, if it
alone began to read; all heads are asked at once, since at 0 none of them changes what another sees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from codemem.models.adapter import DEFAULT_BIAS
from codemem.models.attention import weighted_values
from codemem.models.interface import AttentionFunction, handlers
from codemem.models.memorizing import MemorizingModel
from codemem.models.memory_layer import ReadingLayer
from codemem.training.gates import Piece, loss

CLOSED_BIAS = -4.0


@dataclass(frozen=True)
class Scan:
    """What each head would gain from memory. gain: nats per token, its mean over pieces; error: the standard error of
    that mean; mass: the share of attention that memory took. Each [layers, heads] float32."""

    gain: Tensor
    error: Tensor
    mass: Tensor

    @property
    def helpful(self) -> Tensor:
        """The heads whose gain is larger than its standard error: [layers, heads] boolean."""
        return self.gain > self.error

    def as_tensors(self) -> dict[str, Tensor]:
        return {"gain": self.gain, "error": self.error, "mass": self.mass}


class ScanLayer:
    """A layer whose heads read memory as far as their switches, [heads] float32, let them. mass: after a forward pass,
    memory's share of attention, [heads], mean over the positions that read."""

    def __init__(self, layer: ReadingLayer, switch: Tensor) -> None:
        self.layer, self.switch = layer, switch
        self.mass = torch.zeros_like(switch)

    def __call__(
        self,
        base: AttentionFunction,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        output = base(module, query, key, value, mask, **kwargs)[0]
        length, last = query.shape[2], self.layer.reading.last
        rows = length if last is None else min(length, last)
        # At g = 0 nothing but g itself has a gradient through what memory adds.
        with torch.no_grad():
            local, memory, values, _ = self.layer.attend(query, key, mask, rotary, rows, **kwargs)
            share = memory.sum(dim=-1)  # [batch, heads, rows]
            self.mass = share.mean(dim=(0, 2))
            local_share = local.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(local.dtype).tiny)
            # memory's part of the sum, less the local part that it displaces
            added = weighted_values(-local / local_share * share.unsqueeze(-1), value, memory, values)
        changed = output[:, length - rows :].to(added.dtype) + self.switch[:, None] * added
        return torch.cat((output[:, : length - rows], changed.to(output.dtype)), dim=1), None


def scan(model: MemorizingModel, cut: Sequence[Piece], report: Callable[[int, int], None]) -> Scan:
    """Scan all memory layers of a model, which reads its bank with the bias DEFAULT_BIAS in every head.

    cut: pieces of documents that are not in the bank; report: called with (done, total) pieces. The model's parameters
    need no gradient afterwards, and its memory layers read as before.
    """
    for parameter in model.base.parameters():
        parameter.requires_grad_(False)
    gains, masses = [], []
    for number, piece in enumerate(cut):
        report(number, len(cut))
        gain, mass = scan_piece(model, piece)
        gains.append(gain)
        masses.append(mass)
    report(len(cut), len(cut))
    gain = torch.stack(gains)
    error = gain.std(dim=0) / len(cut) ** 0.5 if len(cut) > 1 else torch.zeros_like(gain[0])
    return Scan(gain.mean(dim=0), error, torch.stack(masses).mean(dim=0))


def scan_piece(model: MemorizingModel, piece: Piece) -> tuple[Tensor, Tensor]:
    """Gain in nats per token, and memory's share of attention, of one piece: each [layers, heads] float32."""
    layers = tuple(model.sites)
    switches = {
        layer: torch.zeros(site.heads, device=model.base.device, requires_grad=True)
        for layer, site in model.sites.items()
    }
    made: dict[int, ScanLayer] = {}

    def make(layer: int) -> ScanLayer:
        reader = ReadingLayer(model.sites[layer], model.gates[layer], model.bank, model.reading)
        made[layer] = ScanLayer(reader, switches[layer])
        return made[layer]

    modules = {layer: site.module for layer, site in model.sites.items()}
    with model.reads(tokens=False, last=piece.scored + 1), handlers(modules, make):
        gradients = torch.autograd.grad(loss(model, piece), [switches[layer] for layer in layers])
    return -torch.stack(gradients).cpu(), torch.stack([made[layer].mass for layer in layers]).float().cpu()


def choose_layers(scan: Scan, count: int) -> tuple[int, ...]:
    """The at most `count` layers that gain most, ascending: the sum of the gains of their helpful heads. Layers without
    a helpful head are left out, unless there is none at all: then it is the layer with the best head."""
    worth = (scan.gain * scan.helpful).sum(dim=1)
    best = sorted(range(len(worth)), key=lambda layer: (-float(worth[layer]), layer))[:count]
    chosen = tuple(sorted(layer for layer in best if worth[layer] > 0))
    return chosen or (int(scan.gain.amax(dim=1).argmax()),)


def starting_bias(scan: Scan, layer: int) -> Tensor:
    """[heads]: DEFAULT_BIAS where a head gains, CLOSED_BIAS where it does not."""
    return torch.where(scan.gain[layer] > 0, DEFAULT_BIAS, CLOSED_BIAS)
