"""Pieces of other documents that go into a prompt, before the document that is completed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, replace
from textwrap import dedent

from codemem.models.tokenizer import Tokenizer, comment_leader, tokenize

LEAST_LINES = 4  # of a snippet that is cut


@dataclass(frozen=True)
class Snippet:
    """Lines of a document. start_line, end_line: from 1, both inside; text: these lines, without the last one's end;
    weight: how much whoever found it thinks of it."""

    path: str
    start_line: int
    end_line: int
    text: str
    weight: float

    def __str__(self) -> str:
        return f"{self.path}:{self.start_line}-{self.end_line}"


def spell(snippet: Snippet, document_path: str) -> str:
    """What stands for a snippet in the prompt of a document: comments there, the snippet's path first, without the
    indentation that its lines share."""
    leader = comment_leader(document_path)
    lines = [snippet.path, *dedent(snippet.text).split("\n")]
    return "".join(f"{leader} {line}".rstrip() + "\n" for line in lines)


def choose(
    tokenizer: Tokenizer, snippets: Iterable[Snippet], document_path: str, budget: int, most: int = 8
) -> tuple[list[Snippet], list[int]]:
    """Those of the snippets (best first) that fit into so many tokens, best last, and the ids of their spelling.

    One that does not fit is cut to its first lines, at least LEAST_LINES, or else passed over. So is one that overlaps
    or repeats another that was taken. Raises CodememError as `tokenize` does.
    """
    taken: list[tuple[Snippet, list[int]]] = []
    seen: set[str] = set()
    for snippet in snippets:
        if len(taken) == most:
            break
        words = "\n".join(line.strip() for line in snippet.text.split("\n")).strip()
        if not words or words in seen or any(_overlap(snippet, other) for other, _ in taken):
            continue
        fitting = _fit(tokenizer, snippet, document_path, budget)
        if fitting is not None:
            seen.add(words)
            taken.append(fitting)
            budget -= len(fitting[1])
    taken.reverse()
    return [snippet for snippet, _ in taken], [token for _, ids in taken for token in ids]


def covered(wanted: Iterable[Snippet], there: Iterable[Snippet]) -> float:
    """The share of the weight of some snippets, 0 to 1, that is of those which overlap with others."""
    wanted, there = list(wanted), list(there)
    kept = sum(snippet.weight for snippet in wanted if any(_overlap(snippet, other) for other in there))
    return kept / (sum(snippet.weight for snippet in wanted) or 1.0)


def _fit(tokenizer: Tokenizer, snippet: Snippet, document_path: str, room: int) -> tuple[Snippet, list[int]] | None:
    """As much of a snippet as has room, and the ids of its spelling; None where that is too little."""

    def ids(lines: int) -> list[int]:
        return tokenize(tokenizer, spell(_head(snippet, lines), document_path))[0]

    count = snippet.text.count("\n") + 1
    whole = ids(count)
    if len(whole) <= room:
        return snippet, whole
    shorter = range(LEAST_LINES, count)
    fitting = bisect_right(shorter, room, key=lambda lines: len(ids(lines)))
    return (_head(snippet, shorter[fitting - 1]), ids(shorter[fitting - 1])) if fitting else None


def _head(snippet: Snippet, lines: int) -> Snippet:
    """The first lines of a snippet."""
    kept = snippet.text.split("\n")[:lines]
    return replace(snippet, end_line=snippet.start_line + len(kept) - 1, text="\n".join(kept))


def _overlap(one: Snippet, other: Snippet) -> bool:
    return one.path == other.path and one.start_line <= other.end_line and other.start_line <= one.end_line
