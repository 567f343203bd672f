from __future__ import annotations

from collections.abc import Iterator

from codemem.completion.filters.around import Around
from codemem.models.tokenizer import comment_leader

_CLOSES = {")": "(", "]": "[", "}": "{"}
_QUOTES = "\"'`"
_LOOK_BACK = 4000  # characters before the cursor


def without_unopened(text: str, around: Around) -> str:
    """Text up to the first bracket that closes nothing: neither what it opened itself, nor what is open at the cursor
    and not closed on the rest of its line."""
    leader, before = comment_leader(around.path), around.before[-_LOOK_BACK:]
    # In one go, since the cursor may be in a string.
    brackets = [(at - len(before), bracket) for at, bracket in _brackets(before + text, leader)]
    opened = list[str]()
    for at, bracket in brackets:
        if at < 0:
            _opens_or_closes(bracket, opened)
    for _, bracket in _brackets(around.line_after, leader):
        if bracket in _CLOSES:
            _opens_or_closes(bracket, opened)
    for at, bracket in brackets:
        if at >= 0 and not _opens_or_closes(bracket, opened):
            return text[:at]
    return text


def _opens_or_closes(bracket: str, opened: list[str]) -> bool:
    """Note in `opened` what a bracket does. Returns whether it does anything."""
    if bracket not in _CLOSES:
        opened.append(bracket)
    elif opened and opened[-1] == _CLOSES[bracket]:
        opened.pop()
    else:
        return False
    return True


def _brackets(text: str, leader: str) -> Iterator[tuple[int, str]]:
    """Place and kind of every bracket that stands in no string or comment of its line."""
    offset = 0
    for line in text.split("\n"):
        at = 0
        while at < len(line):
            character = line[at]
            if line.startswith(leader, at):
                break
            if character in _QUOTES and (end := _closing(line, at)) is not None:
                at = end
            elif character in "([{)]}":
                yield offset + at, character
            at += 1
        offset += len(line) + 1


def _closing(line: str, start: int) -> int | None:
    """Where the string that begins at `start` ends on its line, or None: an apostrophe is no string."""
    at = start + 1
    while at < len(line):
        if line[at] == "\\":
            at += 1
        elif line[at] == line[start]:
            return at
        at += 1
    return None
