"""Calibrating gates: biases and temperatures of the memory layers, learned by gradient descent on held-out files.

Only the gates are trained. Keys and values in the bank are those of the frozen model. The bank holds entries of several
repositories, so that gates learn to live with distractors (Tworkowski et al., Focused Transformer, 2023), and never the
file that is being predicted.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from codemem.models.adapter import Adapter
from codemem.models.encode import header_tokens, tokenize
from codemem.models.memorizing import MemorizingModel


@dataclass(frozen=True)
class Piece:
    """ids: [1, T] token ids, the document's path first, as in a prompt; scored: how many of the last ones are to be
    predicted."""

    ids: Tensor
    scored: int


def pieces(model: MemorizingModel, path: str, text: str, context: int = 512, scored: int = 256) -> Iterator[Piece]:
    """A text as consecutive pieces of at most `context` tokens; every token of the text is scored once, `scored` in
    each piece but the last, after at least context - scored tokens of what stands before them where there are so
    many."""
    header = header_tokens(model.tokenizer, path)
    ids, _ = tokenize(model.tokenizer, text)
    for start in range(0, len(ids), scored):
        end = min(start + scored, len(ids))
        piece = header + ids[max(0, end - context + len(header)) : end]
        yield Piece(torch.tensor([piece], device=model.base.device), end - start)


def loss(model: MemorizingModel, piece: Piece) -> Tensor:
    """Mean negative log-likelihood, in nats per token, of a piece's scored tokens, each of which reads memory as the
    model is set."""
    logits = model(input_ids=piece.ids, use_cache=False, logits_to_keep=piece.scored + 1).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits.float(), piece.ids[0, -piece.scored :])


def calibrate(
    model: MemorizingModel,
    texts: Sequence[tuple[str, str]],
    *,
    steps: int,
    context: int = 512,
    scored: int = 256,
    bias_rate: float = 0.15,
    temperature_rate: float = 0.02,
    seed: int = 0,
) -> Iterator[tuple[int, float]]:
    """Train the gates on (path, text) pairs that are not in the bank. Yields (step, loss in nats per token).

    Adam with cosine decay; one piece of `scored` tokens a step, pieces in seeded random order.
    """
    for parameter in model.base.parameters():
        parameter.requires_grad_(False)
    cut = [piece for path, text in texts for piece in pieces(model, path, text, context, scored)]
    full = [piece for piece in cut if piece.scored == scored]
    order = random.Random(seed)
    gates = list(model.gates.values())
    optimizer = torch.optim.Adam(
        [
            {"params": [gate.bias for gate in gates], "lr": bias_rate},
            {"params": [gate.temperature for gate in gates], "lr": temperature_rate},
        ],
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        with model.reads(tokens=False, last=scored):
            value = loss(model, order.choice(full))
            optimizer.zero_grad()
            torch.autograd.backward(value)
        optimizer.step()
        schedule.step()
        yield step, float(value.detach())


def trained_adapter(model: MemorizingModel, name: str, recipe: dict[str, str]) -> Adapter:
    """The model's adapter with its gates as they are now."""
    gates = {layer: model.gates[layer] for layer in model.adapter.layers}
    return replace(
        model.adapter,
        name=name,
        recipe=recipe,
        bias={layer: gate.bias.detach().cpu().clone() for layer, gate in gates.items()},
        temperature={layer: gate.temperature.detach().cpu().clone() for layer, gate in gates.items()},
    )
