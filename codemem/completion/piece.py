"""What is to be completed: a block where the cursor stands at the start of one, otherwise a line.

The tree of what stands before the cursor decides. Of what stands behind it only the rest of its line is looked at, and
how far the next one is indented.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from codemem.completion import textual
from codemem.completion.textual import indentation, last_line
from codemem.syntax import language_of, language_of_shebang
from codemem.unfinished import unfinished

Unit = Literal["line", "block"]

# Tokens that a unit may have at most, so that generation ends even where the text does not.
MAX_TOKENS: dict[Unit, int] = {"line": 64, "block": 160}
# Characters before the cursor that are parsed at most: some 800 lines.
REACH = 32_768
_TOP_LEVEL = re.compile(r"^\w", re.MULTILINE)
_NEXT_LINE = re.compile(r"\n([^\S\n]*)\S")


@dataclass(frozen=True)
class Piece:
    """language: of the document, None where its name does not say; before: what stands before the cursor, as far as it
    is parsed; unit: a line is a statement if that needs more lines; indent: that of the block's header, or of the last
    line before the cursor, in characters; opener: where the token is that opens the block, in bytes of `before`, None
    where no tree tells; bracket: whether that token is a bracket."""

    language: str | None
    before: str
    unit: Unit
    indent: int
    opener: int | None = None
    bracket: bool = False


def piece_at(path: str, text: str, offset: int) -> Piece:
    """A block that is empty or missing at the cursor, where nothing stands behind it on its line; otherwise a line."""
    language = language_of(path) or language_of_shebang(text)
    before = _reached(text, offset)
    line = Piece(language, before, "line", indentation(last_line(before)))
    if text[offset:].split("\n", 1)[0].strip():
        return line
    tree = unfinished(before, language) if language else None
    token = tree.last_token() if tree is not None else None
    opens = None if tree is None else token is not None and tree.opens(token)
    if tree is not None and token is not None and opens:
        indent = indentation(tree.header(token))
        block = Piece(language, before, "block", indent, token.start_byte, token.type == "{")
    elif opens is None and textual.opens_block(before):
        block = replace(line, unit="block")
    else:
        return line
    below = _NEXT_LINE.search(text, offset)
    return block if below is None or len(below[1]) <= block.indent else line


def _reached(text: str, offset: int) -> str:
    """What stands before the cursor, of a long text from a line on that is not indented."""
    if offset <= REACH:
        return text[:offset]
    start = _TOP_LEVEL.search(text, offset - REACH, offset)
    return text[start.start() if start else offset - REACH : offset]
