"""Where a completion ends in a document of which there is no tree: by colons, brackets and indentation."""

from __future__ import annotations

import re

# A colon also ends a dictionary key or a slice: only after these, or after a bracket at the start of its line, it opens
# a block.
_COLON_OPENS = re.compile(
    r"\s*((async\s+)?(def|for|with)|class|if|elif|else|while|try|except|finally|match|case)\b|\s*[)\]}]"
)
_CLOSERS = ("}", ")", "]")


def last_line(text: str) -> str:
    """The last one that is not blank."""
    return text.rstrip().rsplit("\n", 1)[-1]


def indentation(line: str) -> int:
    """In characters."""
    return len(line) - len(line.lstrip())


def opens_block(before: str) -> bool:
    """Whether a text ends with what opens a block."""
    line = last_line(before)
    return line.endswith("{") or (line.endswith(":") and _COLON_OPENS.match(line) is not None)


def end_of_line(text: str, start: int) -> int | None:
    """Where the first line with text from `start` on ends, or None while it does not. Where the line was complete at
    the cursor, text starts with a newline and the line meant is the next one."""
    start = len(text) - len(text[start:].lstrip())
    end = text.find("\n", start)
    return None if end < 0 or start == len(text) else end


def end_of_block(text: str, indent: int) -> int | None:
    """Where generated text leaves a block whose header is indented by `indent`, or None while it does not: after the
    last line that is indented further, or after the line with the bracket that closes it."""
    end = position = 0
    lines = text.split("\n")
    for number, line in enumerate(lines):
        stripped = line.strip()
        if number and stripped and indentation(line) <= indent:
            if not stripped.startswith(_CLOSERS):
                return end
            return position + len(line) if number < len(lines) - 1 else None
        position += len(line) + 1
        if stripped:
            end = position - 1
    return None
