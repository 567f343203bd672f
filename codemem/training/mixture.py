"""Training the weight of token memory: examples are collected once, since what the network sees of a token does not
depend on the network."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from codemem.models.memorizing import MemorizingModel
from codemem.models.mixture import DEFAULT_TEMPERATURE, Mixture, describe, shares_of
from codemem.models.token_memory import NEIGHBOURS
from codemem.training.gates import Piece, read

LAMBDAS = tuple(step / 50 for step in range(1, 40))  # of a constant weight
_PATIENCE = 60  # steps without a better loss on the documents that are held back
_HELD_BACK = 0.1


@dataclass(frozen=True)
class Examples:
    """What the mixture sees of n tokens, and what came. features: [n, FEATURES]; similarity: [n, k] of the neighbours;
    known: [n, k], whether they have a next token; right: [n, k], whether it is the one that came; log_prob: [n], the
    model's, of the token that came; document: [n], a number for each document."""

    features: Tensor
    similarity: Tensor
    known: Tensor
    right: Tensor
    log_prob: Tensor
    document: Tensor

    def __len__(self) -> int:
        return len(self.log_prob)

    def __getitem__(self, places: Tensor) -> Examples:
        return Examples(*(getattr(self, field.name)[places] for field in fields(self)))


def joined(examples: Sequence[Examples]) -> Examples:
    return Examples(*(torch.cat([getattr(each, field.name) for each in examples]) for field in fields(Examples)))


@torch.inference_mode()
def collect(model: MemorizingModel, piece: Piece, document: int, *, attention: bool) -> Examples:
    """The examples of a piece, whose document is not in the bank, with and without attention memory."""
    with model.reads(attention=attention, tokens=False, last=piece.scored + 1) as reading:
        reading.states = []
        log_probs = read(model, piece, reading).log_softmax(dim=-1)
        (states,) = reading.states
    target = piece.ids[0, -piece.scored :].unsqueeze(-1)
    rows, similarity = model.bank.nearest(states[0, :-1], NEIGHBOURS)
    tokens = model.bank.following(rows)
    parts = (
        describe(similarity, tokens, log_probs),
        similarity,
        tokens >= 0,
        tokens == target,
        log_probs.gather(1, target).squeeze(1),
        torch.full((piece.scored,), document),
    )
    return Examples(*(part.cpu().clone() for part in parts))


def negative_log_likelihood(mixture: Mixture, examples: Examples) -> Tensor:
    """Nats per token, the mean."""
    weight, shares = mixture(examples.features, examples.similarity, examples.known)
    return _mixed(weight, (shares * examples.right).sum(dim=-1), examples.log_prob)


def constant(examples: Examples, weight: float) -> float:
    """Nats per token with the same weight for every token, 0 where nothing was found."""
    shares = shares_of(examples.similarity, examples.known, DEFAULT_TEMPERATURE)
    weights = weight * examples.known.any(dim=-1).float()
    return float(_mixed(weights, (shares * examples.right).sum(dim=-1), examples.log_prob))


def best_constant(examples: Examples) -> float:
    """The one of LAMBDAS with the least loss."""
    return min(LAMBDAS, key=lambda weight: constant(examples, weight))


def _mixed(weight: Tensor, memory: Tensor, log_prob: Tensor) -> Tensor:
    from_memory = (weight * memory).clamp(min=1e-30).log()
    return -torch.logaddexp(from_memory, torch.log1p(-weight) + log_prob).mean()


def train(
    examples: Examples, report: Callable[[int, int], None], *, steps: int = 400, rate: float = 3e-3, seed: int = 0
) -> Mixture:
    """A mixture for these examples, by Adam on all of them at once. A tenth of the documents, by a seeded draw, is held
    back; the network that is best on it is returned. report: called with (done, total) steps."""
    documents = sorted(set(examples.document.tolist()))
    back = set(random.Random(seed).sample(documents, max(1, round(_HELD_BACK * len(documents)))))
    held_back = torch.tensor([number in back for number in examples.document.tolist()])
    training, checking = examples[~held_back] if len(documents) > 1 else examples, examples[held_back]
    mixture = Mixture()
    mixture.mean.copy_(training.features.mean(dim=0))
    mixture.deviation.copy_(training.features.std(dim=0).clamp(min=1e-3))
    optimizer = torch.optim.Adam(mixture.parameters(), lr=rate, weight_decay=1e-4)
    best, best_loss, since = deepcopy(mixture.state_dict()), float("inf"), 0
    for step in range(steps):
        report(step, steps)
        with torch.no_grad():
            now = float(negative_log_likelihood(mixture, checking))
        since += 1
        if now < best_loss:
            best, best_loss, since = deepcopy(mixture.state_dict()), now, 0
        if since > _PATIENCE:
            break
        optimizer.zero_grad()
        torch.autograd.backward(negative_log_likelihood(mixture, training))
        optimizer.step()
    mixture.load_state_dict(best)
    report(steps, steps)
    return mixture.requires_grad_(False)
