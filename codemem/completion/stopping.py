"""Where a completion ends: with its line, or with its block where the cursor stands at the start of one."""

from __future__ import annotations

import re
from typing import Literal

Unit = Literal["line", "block"]

# Tokens that a unit may have at most, so that generation ends even where the text does not.
MAX_TOKENS: dict[Unit, int] = {"line": 64, "block": 160}
# A colon also ends a dictionary key or a slice: only after these, or after a bracket at the start of its line, it opens
# a block.
_COLON_OPENS = re.compile(
    r"\s*((async\s+)?(def|for|with)|class|if|elif|else|while|try|except|finally|match|case)\b|\s*[)\]}]"
)
_CLOSERS = ("}", ")", "]")


def unit_at(text: str, offset: int) -> Unit:
    """What is to be completed at the cursor: a block where the text before it opens one and its line has nothing after
    it."""
    rest_of_line = text[offset:].split("\n", 1)[0]
    opener = _last_line(text, offset)
    opens = opener.endswith("{") or (opener.endswith(":") and _COLON_OPENS.match(opener) is not None)
    return "block" if opens and not rest_of_line.strip() else "line"


def header_indent(text: str, offset: int) -> int:
    """The indentation, in characters, of the last line with text before the cursor: that of a block's header."""
    line = _last_line(text, offset)
    return len(line) - len(line.lstrip())


def _last_line(text: str, offset: int) -> str:
    return text[:offset].rstrip().rsplit("\n", 1)[-1]


def end_of_line(text: str) -> int | None:
    """Where generated text leaves its line, or None while it does not. Where the line was complete at the cursor, text
    starts with a newline and the line meant is the next one."""
    start = len(text) - len(text.lstrip())
    end = text.find("\n", start)
    return None if end < 0 or start == len(text) else end


def end_of_block(text: str, indent: int) -> int | None:
    """Where generated text leaves a block whose header is indented by `indent`, or None while it does not: after the
    last line that is indented further, or after the line with the bracket that closes it."""
    end = position = 0
    lines = text.split("\n")
    for number, line in enumerate(lines):
        stripped = line.strip()
        if number and stripped and len(line) - len(line.lstrip()) <= indent:
            if not stripped.startswith(_CLOSERS):
                return end
            return position + len(line) if number < len(lines) - 1 else None
        position += len(line) + 1
        if stripped:
            end = position - 1
    return None
