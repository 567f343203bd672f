"""What is memorised, before any model has seen it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from codemem.syntax import Symbol

# Bytes of source that are encoded and kept together: some ten full windows, a few seconds of work.
GROUP_BYTES = 32_768


@dataclass(frozen=True)
class Text:
    """What is to be memorised: a document's path, its text and its symbols; until: the character at which reading ends,
    None to read it all."""

    path: str
    text: str
    symbols: tuple[Symbol, ...] = ()
    until: int | None = None


_Document = TypeVar("_Document")


def grouped(
    documents: Iterable[_Document], size: Callable[[_Document], int], enough: int | None = None
) -> Iterator[list[_Document]]:
    """Documents to deal with together, in order; size: of one, bytes of its source where it is to be encoded; enough:
    the size at which a group ends, GROUP_BYTES if None."""
    most = GROUP_BYTES if enough is None else enough
    group, total = [], 0
    for document in documents:
        group.append(document)
        total += size(document)
        if total >= most:
            yield group
            group, total = [], 0
    if group:
        yield group
