"""Calibrating gates: biases and temperatures of the memory layers, learned by gradient descent on held-out files.

Only the gates are trained. Keys and values in the bank are those of the frozen model. The bank holds entries of several
repositories, so that gates learn to live with distractors (Tworkowski et al., Focused Transformer, 2023), and never the file
that is being predicted.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from codemem.models.adapter import Adapter
from codemem.models.encode import header_tokens, tokenize
from codemem.models.memorizing import MemorizingModel


def chunks(model: MemorizingModel, path: str, text: str, context: int, scored: int) -> Iterator[Tensor]:
    """Consecutive pieces of a text: [1, <= context] token ids, of which the last `scored` are to be predicted.

    Every piece starts with the path, as a prompt does. Pieces that would predict fewer than `scored` tokens are left out.
    """
    header = header_tokens(model.tokenizer, path)
    ids, _ = tokenize(model.tokenizer, text)
    for end in range(scored, len(ids) + 1, scored):
        piece = header + ids[max(0, end - context + len(header)) : end]
        yield torch.tensor([piece], device=model.base.device)


def loss(model: MemorizingModel, ids: Tensor, scored: int) -> Tensor:
    """Mean negative log-likelihood, in nats per token, of the last `scored` of ids [1, T]."""
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=scored + 1).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits.float(), ids[0, -scored:])


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
    pieces = [piece for path, text in texts for piece in chunks(model, path, text, context, scored)]
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
        with model.reads(last=scored) as reading:
            reading.trace = None
            value = loss(model, order.choice(pieces), scored)
            optimizer.zero_grad()
            value.backward()
        optimizer.step()
        schedule.step()
        yield step, float(value.detach())


def trained_adapter(model: MemorizingModel, name: str, recipe: dict[str, str]) -> Adapter:
    """The model's adapter with its gates as they are now."""
    gates = {layer: model.gates[str(layer)] for layer in model.adapter.layers}
    return replace(
        model.adapter,
        name=name,
        recipe=recipe,
        bias={layer: gate.bias.detach().cpu().clone() for layer, gate in gates.items()},
        temperature={layer: gate.temperature.detach().cpu().clone() for layer, gate in gates.items()},
    )
