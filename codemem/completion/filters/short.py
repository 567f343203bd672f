from __future__ import annotations

from codemem.completion.filters.around import Around

LEAST = 2  # characters


def long_enough(text: str, around: Around) -> str:
    """One character is typed sooner than it is read."""
    return text if len("".join(text.split())) >= LEAST else ""


def without_trailing_space(text: str, around: Around) -> str:
    return text.rstrip()
