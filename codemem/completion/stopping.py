"""Where a completion ends: with its line, or with its block."""

from __future__ import annotations

from codemem.completion import textual
from codemem.completion.piece import Piece
from codemem.unfinished import Unfinished, unfinished


class Ending:
    """Where the text ends that is written for a piece. It is asked whenever there is more of the text, and parses once
    for every new line. rest: what stands behind the cursor on its line."""

    def __init__(self, piece: Piece, rest: str) -> None:
        self._piece, self._rest = piece, rest.strip()
        self._line = len(_bytes(piece.before[: piece.before.rfind("\n") + 1]))  # where the cursor's line begins
        self._read = 0  # up to the line that was looked at last, in characters of what is written

    def of(self, written: str) -> int | None:
        """How much of it is to be shown, in characters; None while it goes on."""
        return self._of_line(written) if self._piece.unit == "line" else self._of_block(written)

    def _of_line(self, written: str) -> int | None:
        """The end of the first line, or of the first at which no bracket or string is open that was opened on the
        cursor's line or later: half a call is of no use. The bracket of a block does not count: a header is a whole
        line, and what stands below it is the next completion."""
        while (end := textual.end_of_line(written, self._read)) is not None:
            self._read = end
            tree = None if self._rest else self._tree(written[: end + 1])
            if tree is None or not tree.in_statement(self._line):
                return end
        return None

    def _of_block(self, written: str) -> int | None:
        """The end of the block. A bracket ends it in a line that is complete, other things before one that begins."""
        piece, begun = self._piece, written.rfind("\n") + 1
        if piece.opener is None:
            return textual.end_of_block(written, piece.indent)
        line, read = (written[:begun], written[:begun]) if piece.bracket else (written[begun:], written)
        if begun == self._read or not line.strip():
            return None
        self._read = begun
        tree = self._tree(read)
        end = tree.end_of_block(piece.opener) if tree is not None else None
        if tree is None or end is None:
            return textual.end_of_block(written, piece.indent)
        return None if end < 0 else max(0, len(tree.data[:end].decode("utf-8", "replace")) - len(piece.before))

    def _tree(self, written: str) -> Unfinished | None:
        language = self._piece.language
        return unfinished(self._piece.before + written, language) if language else None


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")
