"""Training the weight of token memory, on examples of which it is known what it should learn."""

from __future__ import annotations

import torch

from codemem.models.mixture import DEFAULT_LAMBDA, FEATURES, Mixture
from codemem.training.mixture import Examples, best_constant, constant, negative_log_likelihood, train


def examples(count: int, seed: int) -> Examples:
    """Tokens whose neighbours are right exactly where they are similar; the model gives every token e^-3."""
    generator = torch.Generator().manual_seed(seed)
    best = torch.rand(count, generator=generator)
    features = torch.rand(count, FEATURES, generator=generator)
    features[:, 0] = best
    known = torch.ones(count, 4, dtype=torch.bool)
    known[::10] = False
    return Examples(
        features,
        best[:, None] - torch.arange(4) * 0.01,
        known,
        (best > 0.7)[:, None].expand(-1, 4) & known,
        torch.full((count,), -3.0),
        torch.arange(count) // 50,
    )


def quiet(done: int, total: int) -> None:
    pass


def test_a_weight_that_depends_on_similarity_beats_every_constant_one():
    learned = examples(2000, 0)
    mixture = train(learned, quiet)
    fresh = examples(1000, 1)
    trained = float(negative_log_likelihood(mixture, fresh))
    best = min(constant(fresh, best_constant(examples)) for examples in (learned, fresh))
    assert best < constant(fresh, 0.0) == 3.0
    assert trained < best - 0.3
    weight, shares = mixture(fresh.features, fresh.similarity, fresh.known)
    found = fresh.known.any(dim=-1)
    assert weight[found & (fresh.features[:, 0] > 0.85)].min() > 0.8
    assert weight[found & (fresh.features[:, 0] < 0.5)].max() < 0.1
    assert weight[~found].max() == 0 and shares[~found].max() == 0


def test_the_same_seed_gives_the_same_network():
    one, other, third = (train(examples(600, 0), quiet, steps=20, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(not torch.equal(one[name], third[name]) for name in one)


def test_an_untrained_network_is_the_constant_weight():
    fresh = examples(200, 3)
    value = float(negative_log_likelihood(Mixture().requires_grad_(False), fresh))
    assert abs(value - constant(fresh, DEFAULT_LAMBDA)) < 1e-5


def test_training_ends_at_the_best_on_documents_held_back():
    """Where neighbours are right by chance alone, and never in the documents held back, memory gets no weight."""
    steps: list[int] = []
    noise = examples(400, 4)
    wrong = Examples(noise.features, noise.similarity, noise.known, noise.right & False, noise.log_prob, noise.document)
    mixture = train(wrong, lambda done, total: steps.append(done))
    weight, _ = mixture(wrong.features, wrong.similarity, wrong.known)
    assert float(weight.max()) < 0.05
    assert steps[-1] == 400
