from __future__ import annotations

import random

import numpy as np
import pytest

from codemem.evaluation.metrics import edit_similarity, exact, identifier_match, paired_bootstrap


def levenshtein(a: str, b: str) -> int:
    """Wagner & Fischer's table."""
    table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    table[:, 0], table[0, :] = range(len(a) + 1), range(len(b) + 1)
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (x != y))
    return int(table[-1, -1])


def test_exact_looks_past_white_space_at_the_end_alone():
    assert exact("name, 1) \n", "name, 1)")
    assert not exact(" name, 1)", "name, 1)")
    assert not exact("", "name")


def test_edit_similarity_is_levenshteins():
    draw = random.Random(0)
    for _ in range(200):
        a, b = ("".join(draw.choices("ab(é", k=draw.randrange(1, 9))) for _ in range(2))
        assert edit_similarity(a, b) == pytest.approx(1 - levenshtein(a, b) / max(len(a), len(b)))
    assert edit_similarity("", "") == 1
    assert edit_similarity("", "abc") == 0
    assert edit_similarity("abc) \n", "abc)") == 1


def test_identifiers_match_in_order_and_number():
    assert identifier_match("run(name, 0x1F,2)", "run( name , 3 )")
    assert identifier_match("größe.x_1", "größe->x_1")
    assert identifier_match("(1)", ")")
    assert not identifier_match("run(a, b)", "run(b, a)")
    assert not identifier_match("run(a)", "run(a, a)")


def test_a_bootstrap_has_the_width_that_theory_gives():
    n = 400
    draw = np.random.default_rng(0)
    a, b = draw.normal(1.0, 1.0, n), draw.normal(0.5, 1.0, n)
    interval = paired_bootstrap(a, b)
    half = 1.96 * (a - b).std() / n**0.5
    assert interval.difference == pytest.approx(a.mean() - b.mean())
    assert interval.low == pytest.approx(interval.difference - half, abs=0.1 * half)
    assert interval.high == pytest.approx(interval.difference + half, abs=0.1 * half)
    assert paired_bootstrap(a, b) == interval
    assert paired_bootstrap(a, b, seed=1) != interval


def test_a_bootstrap_pairs():
    a = [float(number) for number in range(50)]
    interval = paired_bootstrap([value + 0.25 for value in a], a)
    assert (interval.difference, interval.low, interval.high) == (0.25, 0.25, 0.25)


def test_weights_make_a_ratio_of_sums():
    interval = paired_bootstrap([3.0, 30.0], [1.0, 10.0], weights=[1.0, 10.0])
    assert (interval.difference, interval.low, interval.high) == (2.0, 2.0, 2.0)
    interval = paired_bootstrap([0.0, 30.0], [0.0, 10.0], weights=[1.0, 10.0])
    assert interval.difference == pytest.approx(20 / 11)
    assert (interval.low, interval.high) == (0.0, 2.0)


@pytest.mark.parametrize(("a", "b", "weights"), [([], [], None), ([1.0], [1.0, 2.0], None), ([1.0], [1.0], [1.0, 2.0])])
def test_what_cannot_be_paired_is_refused(a: list[float], b: list[float], weights: list[float] | None):
    with pytest.raises(ValueError, match="cannot pair"):
        paired_bootstrap(a, b, weights=weights)
