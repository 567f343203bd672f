"""Where a completion is to stand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from codemem.completion.piece import Piece


@dataclass(frozen=True)
class Around:
    """path: the document's; text: all of it; offset: the cursor, in characters; piece: what is completed."""

    path: str
    text: str
    offset: int
    piece: Piece

    @property
    def before(self) -> str:
        return self.text[: self.offset]

    @property
    def after(self) -> str:
        return self.text[self.offset :]

    @cached_property
    def line_before(self) -> str:
        """What stands before the cursor on its line."""
        return self.before.rsplit("\n", 1)[-1]

    @cached_property
    def line_after(self) -> str:
        """What stands behind the cursor on its line."""
        return self.after.split("\n", 1)[0]

    @cached_property
    def above(self) -> list[str]:
        """The lines above the cursor's that are not blank, nearest last, stripped."""
        return _visible(self.before.split("\n")[:-1][-40:])

    @cached_property
    def line_below(self) -> str:
        """The next line below the cursor's that is not blank."""
        return next((line for line in self.after.split("\n")[1:41] if line.strip()), "")

    @cached_property
    def below(self) -> list[str]:
        """The lines below the cursor's that are not blank, nearest first, stripped."""
        return _visible(self.after.split("\n")[1:41])


def _visible(lines: list[str]) -> list[str]:
    return [line.strip() for line in lines if line.strip()]
