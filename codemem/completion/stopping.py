"""Where a completion ends: with its line, or with its block where the cursor stands at the start of one.

The tree of what stands before the cursor decides. Of what stands behind it only the rest of its line is looked at, and
how far the next one is indented.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from codemem.completion import textual
from codemem.completion.textual import indentation, last_line
from codemem.syntax import language_of, language_of_shebang
from codemem.unfinished import Unfinished, unfinished

Unit = Literal["line", "block"]

# Tokens that a unit may have at most, so that generation ends even where the text does not.
MAX_TOKENS: dict[Unit, int] = {"line": 64, "block": 160}
# Characters before the cursor that are parsed at most: some 800 lines.
REACH = 32_768
_TOP_LEVEL = re.compile(r"^\w", re.MULTILINE)
_NEXT_LINE = re.compile(r"\n([^\S\n]*)\S")


@dataclass(frozen=True)
class Piece:
    """What is to be completed. indent: that of the block's header, or of the last line before the cursor, in characters;
    opener: where the token is that opens the block, in bytes of what is parsed; None where no tree tells."""

    unit: Unit
    indent: int
    opener: int | None = None


def piece_at(path: str, text: str, offset: int) -> Piece:
    """A block where the cursor stands at the start of one that is empty or missing, with nothing behind it on its line;
    otherwise a line."""
    before, opens, opener = _reached(text, offset), None, None
    indent = indentation(last_line(before))
    if text[offset:].split("\n", 1)[0].strip():
        return Piece("line", indent)
    if (tree := _tree(path, text, before)) is not None:
        token = tree.last_token()
        opens = False if token is None else tree.opens(token)
        if token is not None and opens:
            indent, opener = indentation(tree.header(token)), token.start_byte
    if opens is None:
        opens = textual.opens_block(before)
    below = _NEXT_LINE.search(text, offset)
    empty = below is None or len(below[1]) <= indent
    return Piece("block", indent, opener) if opens and empty else Piece("line", indent)


class Ending:
    """Where the text that is written at a cursor ends. It is asked whenever there is more of the text, and parses it once
    for every line that is begun or complete."""

    def __init__(self, path: str, text: str, offset: int, piece: Piece) -> None:
        self._path, self._text, self._piece = path, text, piece
        self._before = _reached(text, offset)
        self._rest = text[offset:].split("\n", 1)[0]
        self._line = len(self._before[: self._before.rfind("\n") + 1].encode("utf-8", "replace"))
        self._in_brackets = piece.opener is not None and self._before.encode("utf-8", "replace")[piece.opener :][:1] == b"{"
        self._read = 0  # characters written, up to the last line's end that was looked at

    def of(self, written: str) -> int | None:
        """The length of what is to be shown of it; None while it goes on."""
        return self._of_line(written) if self._piece.unit == "line" else self._of_block(written)

    def _of_line(self, written: str) -> int | None:
        """The end of the first line, unless a bracket or a string that was opened on the cursor's line or later is open
        there: half a call is of no use. The bracket of a block is none of these: a header is a whole line, and what it
        heads is the next completion."""
        while (end := textual.end_of_line(written, self._read)) is not None:
            self._read = end
            if self._rest.strip() or not self._open_in_line(written[: end + 1]):
                return end
        return None

    def _open_in_line(self, written: str) -> bool:
        tree = _tree(self._path, self._text, self._before + written)
        if tree is None or not tree.opened or tree.opened[-1].at < self._line:
            return False
        innermost = tree.token(tree.opened[-1].at)
        return innermost is not None and tree.opens(innermost) is False

    def _of_block(self, written: str) -> int | None:
        """The end of the block. One in brackets may end in a line that is complete, another before one that begins."""
        opener, indent = self._piece.opener, self._piece.indent
        if opener is None:
            return textual.end_of_block(written, indent)
        begun = written.rfind("\n") + 1
        read = written[:begun] if self._in_brackets else written
        if begun == self._read or not read[0 if self._in_brackets else begun :].strip():
            return None
        self._read = begun
        tree = _tree(self._path, self._text, self._before + read)
        end = tree.end_of_block(opener) if tree is not None else None
        if tree is None or end is None:
            return textual.end_of_block(written, indent)
        return None if end < 0 else max(0, len(tree.data[:end].decode("utf-8", "replace")) - len(self._before))


def _reached(text: str, offset: int) -> str:
    """What stands before the cursor, of a long text from a line on that is not indented."""
    if offset <= REACH:
        return text[:offset]
    start = _TOP_LEVEL.search(text, offset - REACH, offset)
    return text[start.start() if start else offset - REACH : offset]


def _tree(path: str, text: str, before: str) -> Unfinished | None:
    language = language_of(path) or language_of_shebang(text)
    return unfinished(before, language) if language else None
