"""What is shown of generated text: small pure functions in this order, each with the reason that an empty answer has
where it left nothing."""

from __future__ import annotations

from collections.abc import Callable

from codemem.completion.filters.around import Around
from codemem.completion.filters.brackets import without_unopened
from codemem.completion.filters.indentation import with_right_indentation
from codemem.completion.filters.loop import without_loop
from codemem.completion.filters.path_echo import without_path_echo
from codemem.completion.filters.repeats import without_what_is_above, without_what_is_below
from codemem.completion.filters.short import long_enough, without_trailing_space

Filter = Callable[[str, Around], str]

FILTERS: tuple[tuple[str, Filter], ...] = (
    ("echo of the path", without_path_echo),
    ("loop", without_loop),
    ("stands below already", without_what_is_below),
    ("stands above already", without_what_is_above),
    ("unbalanced brackets", without_unopened),
    ("wrong indentation", with_right_indentation),
    ("empty", without_trailing_space),
    ("too short", long_enough),
)


def refine(text: str, around: Around) -> tuple[str, str | None]:
    """What is shown of a text, and where that is nothing, why."""
    if not text.strip():
        return "", "empty"
    for reason, each in FILTERS:
        text = each(text, around)
        if not text.strip():
            return "", reason
    return text, None
