"""The gate scan: which heads of which layers would gain from memory, by one backward pass per piece.

At every position t that reads memory, head h of each layer gets a switch that stands at 0:

    out = local + g_ht * (memory - local)

g is the share of attention that goes to memory. Its slope d_ht = -dL/dg_ht at g = 0, in nats, says what the head would
gain there to first order; all heads and positions are asked at once, since at 0 none changes what another sees. With a
bias b the joint gate (`MemoryGate`) gives memory the share w_ht(b) = sigmoid(LSE_memory + b - LSE_local), so that the
head gains

    gain_h(b) = mean over t of  w_ht(b) d_ht - (w_ht(b) d_ht)^2 / 2

The second term is the curvature of the loss, by the empirical Fisher information: a head whose slopes are large and of
either sign loses by being opened far, however they add up. Of some biases the best is kept, so that a head that memory
hardly reaches at one of them is not passed over for one that it floods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from codemem.models.attention import weighted_values
from codemem.models.interface import Call, attention_modules, handlers
from codemem.models.memorizing import MemorizingModel
from codemem.models.memory_layer import ReadingLayer
from codemem.training.gates import Piece, loss

CLOSED_BIAS = -4.0
BIASES = (-4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)


@dataclass(frozen=True)
class Scan:
    """What each head would gain from memory. gain: nats per token, its mean over pieces, at the best of BIASES; error:
    the standard error of that mean; mass: the share of attention that memory then takes; bias: the best one. Each
    [layers, heads] float32."""

    gain: Tensor
    error: Tensor
    mass: Tensor
    bias: Tensor

    @property
    def helpful(self) -> Tensor:
        """The heads whose gain is larger than its standard error: [layers, heads] boolean."""
        return self.gain > self.error

    def as_tensors(self) -> dict[str, Tensor]:
        return {"gain": self.gain, "error": self.error, "mass": self.mass, "bias": self.bias}


class ScanLayer:
    """A layer whose heads read memory as far as their switches let them. switch: [heads, rows] float32, for the last
    `rows` positions; logit: after a forward pass, that of memory's share of attention at the gate's bias, [heads,
    rows], -inf where nothing was found."""

    def __init__(self, layer: ReadingLayer, switch: Tensor) -> None:
        self.layer, self.switch = layer, switch
        self.logit = torch.zeros_like(switch)

    def __call__(self, call: Call) -> tuple[Tensor, Tensor | None]:
        output = call.plain()[0]
        length, rows = call.query.shape[2], self.switch.shape[1]
        # At g = 0 nothing but g itself has a gradient through what memory adds.
        with torch.no_grad():
            local, memory, values, _ = self.layer.attend(call, call.key, rows)
            tiny = torch.finfo(local.dtype).tiny
            share, rest = memory.sum(dim=-1), local.sum(dim=-1)  # [batch, heads, rows]
            self.logit = (share.log() - rest.clamp(min=tiny).log())[0]
            whole = memory / share.clamp(min=tiny).unsqueeze(-1)
            added = weighted_values(-local / rest.clamp(min=tiny).unsqueeze(-1), call.value, whole, values)
            added = torch.where((share > 0).transpose(1, 2).unsqueeze(-1), added, 0)
        changed = output[:, length - rows :].to(added.dtype) + self.switch.T[None, :, :, None] * added
        return torch.cat((output[:, : length - rows], changed.to(output.dtype)), dim=1), None


def scan(model: MemorizingModel, cut: Sequence[Piece], report: Callable[[int, int], None]) -> Scan:
    """Scan all memory layers of a model.

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
    gain = torch.stack(gains)  # [pieces, biases, layers, heads]
    error = gain.std(dim=0) / len(cut) ** 0.5 if len(cut) > 1 else torch.zeros_like(gain[0])
    best = gain.mean(dim=0).argmax(dim=0, keepdim=True)

    def at_best(numbers: Tensor) -> Tensor:
        return numbers.gather(0, best)[0]

    return Scan(
        at_best(gain.mean(dim=0)),
        at_best(error),
        at_best(torch.stack(masses).mean(dim=0)),
        torch.tensor(BIASES)[best[0]],
    )


def scan_piece(model: MemorizingModel, piece: Piece) -> tuple[Tensor, Tensor]:
    """Gain in nats per token, and memory's share of attention, of one piece at each of BIASES: both [biases, layers,
    heads] float32."""
    slope, logit = slopes(model, piece)
    start = torch.stack([gate.bias.detach() for gate in model.gates.values()]).unsqueeze(-1).cpu()
    shares = torch.stack([torch.sigmoid(logit - start + bias) for bias in BIASES])
    changes = shares * slope
    return (changes - changes.square() / 2).mean(dim=-1), shares.mean(dim=-1)


def slopes(model: MemorizingModel, piece: Piece) -> tuple[Tensor, Tensor]:
    """What each scored position of a piece gains, in nats, by a head's first step towards memory, and the logit of
    memory's share of its attention at the gate's bias: both [layers, heads, scored] float32."""
    rows = piece.scored + 1
    switches = {
        layer: torch.zeros(site.heads, rows, device=model.base.device, requires_grad=True)
        for layer, site in model.sites.items()
    }
    made: dict[int, ScanLayer] = {}

    def make(layer: int) -> ScanLayer:
        reader = ReadingLayer(model.sites[layer], model.gates[layer], model.bank, model.reading)
        made[layer] = ScanLayer(reader, switches[layer])
        return made[layer]

    modules = {layer: module for layer, module in attention_modules(model.base).items() if layer in model.sites}
    with model.reads(tokens=False, last=rows), handlers(modules, make):
        gradients = torch.autograd.grad(loss(model, piece), list(switches.values()))
    # The loss is a mean over tokens, a slope is of their sum; the last position predicts nothing.
    slope = -torch.stack(gradients)[..., :-1].cpu() * piece.scored
    return slope, torch.stack([made[layer].logit for layer in switches])[..., :-1].float().cpu()


def choose_layers(scan: Scan, count: int) -> tuple[int, ...]:
    """The at most `count` layers that gain most, ascending: the sum of the gains of their helpful heads. Layers without
    a helpful head are left out, unless there is none at all: then it is the layer with the best head."""
    worth = (scan.gain * scan.helpful).sum(dim=1)
    best = sorted(range(len(worth)), key=lambda layer: (-float(worth[layer]), layer))[:count]
    chosen = tuple(sorted(layer for layer in best if worth[layer] > 0))
    return chosen or (int(scan.gain.amax(dim=1).argmax()),)


def starting_bias(scan: Scan, layer: int) -> Tensor:
    """[heads]: the best bias where a head gains, less one, since heads that are opened together gain less than one by
    one; CLOSED_BIAS where it does not gain."""
    return torch.where(scan.helpful[layer], scan.bias[layer] - 1, CLOSED_BIAS)
