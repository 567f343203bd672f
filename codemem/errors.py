"""The one error type that reaches a user."""

from __future__ import annotations


class CodememError(Exception):
    """A failure that the user can mend.

    The message names the thing and the cause; `hint` is the next command to type (or the next thing to do). The command
    line prints both and exits with 1; it never shows a traceback for this type.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
