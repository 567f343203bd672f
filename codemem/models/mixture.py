"""The learned lambda: how much of the next token's distribution comes from token memory.

    p = lambda * p_memory + (1 - lambda) * p_model,    p_memory = softmax(temperature * similarity) over the neighbours

kNN-LM (Khandelwal et al., ICLR 2020, section 3) has one constant for both numbers. Here a small network reads them off
what is known before the token is: how similar the neighbours are, how much they agree, how sure the model is, and
whether the two agree (after He et al., Efficient Nearest Neighbor Language Models, EMNLP 2021, section 4.2).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from codemem.native.library import library

FEATURES = 9
HIDDEN = 32
DEFAULT_TEMPERATURE = 40.0
DEFAULT_LAMBDA = 0.15
# So that tokens that no neighbour proposes keep an order, and gradients stay finite.
MOST = 1 - 1e-6


class Mixture(nn.Module):
    """Neighbours and the model's distribution -> lambda and the neighbours' weights.

    Without training lambda is DEFAULT_LAMBDA and the temperature DEFAULT_TEMPERATURE, whatever the features say.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(FEATURES, dtype=torch.float32))
        self.register_buffer("deviation", torch.ones(FEATURES, dtype=torch.float32))
        # While a thread loads weights with transformers, the default dtype is theirs.
        self.inner = nn.Linear(FEATURES, HIDDEN, dtype=torch.float32)
        self.outer = nn.Linear(HIDDEN, 2, dtype=torch.float32)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.inner.weight.normal_(0, FEATURES**-0.5, generator=generator)
            self.inner.bias.zero_()
            self.outer.weight.zero_()
            self.outer.bias[0] = math.log(DEFAULT_LAMBDA / (1 - DEFAULT_LAMBDA))
            self.outer.bias[1] = 0.0

    def forward(self, features: Tensor, similarity: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Lambda [m], and each neighbour's share of p_memory [m, k], summing to 1; both 0 where nothing was found.

        features: [m, FEATURES] as `describe` gives them; similarity: [m, k]; known: [m, k], whether there is an entry
        with a next token.
        """
        answer = self.outer(torch.tanh(self.inner((features - self.mean) / self.deviation)))
        temperature = DEFAULT_TEMPERATURE * answer[:, 1:].clamp(-3, 3).exp()
        found = known.any(dim=-1)
        shares = shares_of(similarity, known, temperature)
        return torch.sigmoid(answer[:, 0]).clamp(max=MOST) * found, shares

    def compilable(self, logits: Tensor) -> bool:
        """Whether `compiled` is for such logits here."""
        return logits.device.type == "cpu" and logits.dtype == torch.float32 and _functions() is not None

    def compiled(self, logits: Tensor, similarity: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """`mix` of what this makes of `describe`, by one function of C: log-probabilities [m, vocabulary] float32, in
        place of the logits where these are contiguous, and lambda times the neighbours' shares [m, k].

        logits: [m, vocabulary] float32 of the model, others as for `describe`. Each of the m is computed by itself.
        """
        logits, similarity, tokens = (x.contiguous() for x in (logits, similarity, tokens))
        weights = torch.empty_like(similarity)
        inner, outer = self.inner, self.outer
        learned = self.mean, self.deviation, inner.weight, inner.bias, outer.weight, outer.bias
        _functions().mix(
            logits.data_ptr(),
            *logits.shape,
            similarity.data_ptr(),
            tokens.data_ptr(),
            tokens.shape[1],
            *[tensor.data_ptr() for tensor in (*learned, weights)],
        )
        return logits, weights


def _functions() -> Any:
    return library("mixture", FEATURES=FEATURES, HIDDEN=HIDDEN, MOST=MOST, TEMPERATURE=DEFAULT_TEMPERATURE)


def shares_of(similarity: Tensor, known: Tensor, temperature: Tensor | float) -> Tensor:
    """softmax(temperature * similarity) over the known neighbours: [m, k], zeros where none is known."""
    scores = (similarity * temperature).masked_fill(~known, float("-inf"))
    best = scores.amax(dim=-1, keepdim=True).nan_to_num(neginf=0.0)
    weights = (scores - best).exp()
    return weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-12)


def by_token(shares: Tensor, tokens: Tensor) -> Tensor:
    """For each neighbour the probability that memory gives to its token: [m, k], the sum over those with the same."""
    same = tokens.unsqueeze(-1) == tokens.unsqueeze(-2)
    return (same * shares.unsqueeze(-2)).sum(dim=-1)


def describe(similarity: Tensor, tokens: Tensor, log_probs: Tensor) -> Tensor:
    """What lambda depends on, [m, FEATURES] float32.

    similarity: [m, k], best first; tokens: [m, k] next tokens, -1 for none; log_probs: [m, vocabulary] of the model.
    """
    known = tokens >= 0
    shares = shares_of(similarity, known, DEFAULT_TEMPERATURE)
    mass = by_token(shares, tokens) * known
    best = mass.argmax(dim=-1, keepdim=True)
    choice = tokens.gather(1, best).clamp(min=0)
    model_best, model_choice = log_probs.max(dim=-1)
    entropy = -(log_probs.exp() * log_probs).nan_to_num(nan=0.0).sum(dim=-1)
    # The sum over distinct tokens of p log p, as one over neighbours, of which those of a token share its p.
    memory_entropy = -(shares * mass.clamp(min=1e-12).log()).sum(dim=-1)
    filled = similarity * known
    return torch.stack(
        (
            filled[:, 0],
            filled[:, :8].mean(dim=-1),
            filled.mean(dim=-1),
            mass.gather(1, best).squeeze(1),
            memory_entropy,
            entropy,
            model_best,
            log_probs.gather(1, choice).squeeze(1).clamp(min=-20),
            (choice.squeeze(1) == model_choice).float(),
        ),
        dim=-1,
    )


def mix(log_probs: Tensor, weight: Tensor, shares: Tensor, tokens: Tensor) -> Tensor:
    """log(lambda * p_memory + (1 - lambda) * p_model): [m, vocabulary] float32.

    log_probs: [m, vocabulary]; weight: lambda [m]; shares, tokens: [m, k], token -1 for none.
    """
    result = log_probs + torch.log1p(-weight).unsqueeze(-1)
    # Of neighbours with the same token the first speaks for all.
    repeats = (tokens.unsqueeze(-1) == tokens.unsqueeze(-2)).tril(-1).any(dim=-1)
    rows, columns = ((tokens >= 0) & ~repeats).nonzero(as_tuple=True)
    memory = (by_token(shares, tokens) * weight.unsqueeze(-1)).clamp(min=1e-30).log()
    # Of all neighbours: on the CPU, what a number becomes depends on whether it is among the last ones.
    both = torch.logaddexp(result.gather(1, tokens.clamp(min=0)), memory)
    return result.index_put((rows, tokens[rows, columns]), both[rows, columns])
