"""How near a completed line is to the true one, and how sure a difference between two ways to complete is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from codemem.extras import optional

_IDENTIFIER = re.compile(r"\b[^\W\d]\w*")


@dataclass(frozen=True)
class Interval:
    """A difference, and the ends of its 95 % interval."""

    difference: float
    low: float
    high: float


def exact(text: str, truth: str) -> bool:
    """Whether both are equal but for white space at their ends."""
    return text.rstrip() == truth.rstrip()


def edit_similarity(text: str, truth: str) -> float:
    """1 - Levenshtein distance / length of the longer one, without white space at the ends; 1 for two empty ones.

    Raises CodememError where rapidfuzz is not installed.
    """
    levenshtein = optional("rapidfuzz.distance.Levenshtein")
    return float(levenshtein.normalized_similarity(text.rstrip(), truth.rstrip()))


def identifier_match(text: str, truth: str) -> bool:
    """Whether both name the same things in the same order (Ding et al., CrossCodeEval, 2023; here, words of the
    language and of strings count as names)."""
    return _IDENTIFIER.findall(text) == _IDENTIFIER.findall(truth)


def paired_bootstrap(
    a: Sequence[float],
    b: Sequence[float],
    *,
    weights: Sequence[float] | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """mean(a) - mean(b) over the same items, which are drawn again `draws` times (Efron & Tibshirani, An Introduction
    to the Bootstrap, 1993, chapter 13: percentiles).

    weights: positive, how much each item's values are sums over, such as tokens where a and b are nats of whole
    documents; the difference is then sum(a - b) / sum(weights). Raises ValueError for nothing and for unequal lengths.
    """
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    weight = np.ones_like(difference) if weights is None else np.asarray(weights, dtype=np.float64)
    if not len(difference) or not len(a) == len(b) == len(weight):
        raise ValueError(f"cannot pair {len(a)} with {len(b)} values of {len(weight)} weights")
    drawn = np.random.default_rng(seed).integers(len(difference), size=(draws, len(difference)))
    low, high = np.percentile(difference[drawn].sum(1) / weight[drawn].sum(1), [2.5, 97.5])
    return Interval(float(difference.sum() / weight.sum()), float(low), float(high))
