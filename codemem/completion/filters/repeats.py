from __future__ import annotations

from codemem.completion.filters.around import Around

LEAST = 4  # characters of a line that is said to be repeated


def without_what_is_below(text: str, around: Around) -> str:
    """What stands behind the cursor already is not written once more: the rest of its line, then the lines below."""
    rest, whole = around.line_after.strip(), text.rstrip()
    if rest:
        for length in range(min(len(rest), len(whole)), 0, -1):
            if whole.endswith(rest[:length]) and (length > 1 or rest[0] in ")]}\"'`;,:"):
                return whole[:-length]
        return text
    lines = text.split("\n")
    first = (around.line_before + lines[0]).strip()
    stripped = [first, *(line.strip() for line in lines[1:])]
    for count in range(len(lines), 0, -1):
        visible = [line for line in stripped[-count:] if line]
        if visible and visible == around.below[: len(visible)] and len("".join(visible)) >= LEAST:
            return "\n".join(lines[:-count])
    # The bracket that closes the block; one that is indented otherwise closes another.
    if len(lines) > 1 and lines[-1].strip() and lines[-1].rstrip() == around.line_below.rstrip():
        return "\n".join(lines[:-1])
    return text


def start_of_what_is_below(text: str, around: Around) -> int | None:
    """Where a text that is being written comes to the line below the cursor, which needs no more writing; None while it
    does not."""
    end = text.rfind("\n")
    start = text.rfind("\n", 0, max(0, end)) + 1
    line = text[start : max(0, end)].strip()
    if start > 0 and len(line) >= LEAST and not around.line_after.strip() and line == (around.below or [""])[0]:
        return start
    return None


def without_what_is_above(text: str, around: Around) -> str:
    """A line that says once more what the last one said, or a block whose first two lines do, helps nobody."""
    lines = [line.strip() for line in (around.line_before + text).split("\n") if line.strip()]
    count = 1 if around.piece.unit == "line" else 2
    repeated = lines[:count]
    if len(repeated) == count and repeated == around.above[-count:] and len("".join(repeated)) >= LEAST:
        return ""
    return text
