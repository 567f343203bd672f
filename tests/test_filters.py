"""Filters: whatever a model writes, what is shown is the beginning of it, and an empty answer has a reason."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codemem.completion.filters import FILTERS, refine
from codemem.completion.filters.around import Around
from codemem.completion.piece import Piece

PIECES = st.sampled_from(
    [
        "\n",
        "    ",
        "\t",
        "x",
        "foo",
        "(",
        ")",
        "{",
        "}",
        "[",
        "]",
        '"',
        "'",
        "# a.py",
        "//",
        " = ",
        "é",
        "return 1",
        ":",
        ",",
    ]
)
CODE = st.lists(PIECES, max_size=30).map("".join)


def around(text: str, offset: int, unit: str = "line") -> Around:
    return Around("a.py", text, offset, Piece("python", text[:offset], unit, 0))


@settings(max_examples=300, deadline=None)
@given(before=CODE, after=CODE, written=CODE, unit=st.sampled_from(["line", "block"]))
def test_what_is_shown_begins_what_was_written(before, after, written, unit):
    shown, reason = refine(written, around(before + after, len(before), unit))
    assert written.startswith(shown)
    assert (reason is None) == bool(shown.strip())
    assert reason is None or reason in dict(FILTERS)
    again, _ = refine(shown, around(before + after, len(before), unit)) if shown else ("", None)
    assert shown.startswith(again)


@pytest.mark.parametrize("text", ["ab" * 3000, "(" * 5000, "x = 1\n" * 1000, "a\\'" * 2000])
def test_long_texts_take_no_time(text):
    start = time.perf_counter()
    refine(text, around(text, len(text) // 2, "block"))
    assert time.perf_counter() - start < 2
