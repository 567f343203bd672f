from __future__ import annotations

import re

from codemem.completion.filters.around import Around

# Something with a letter in it, three times in a row.
_LOOP = re.compile(r"(?=[^\n]*?[^\W\d_])(.{4,200}?)\1{2}", re.DOTALL)


def without_loop(text: str, around: Around) -> str:
    """Small models fall into loops. Whole lines before one are kept, in it one turn if it is of whole lines."""
    for found in _LOOP.finditer(text):
        turn = found[1]
        if not any(character.isalpha() for character in turn) or len(set(turn.strip())) < 3:
            continue
        if turn.endswith("\n") and (found.start() == 0 or text[found.start() - 1] == "\n"):
            return text[: found.end(1)]
        return text[: text.rfind("\n", 0, found.start()) + 1]
    return text
