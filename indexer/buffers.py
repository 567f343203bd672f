"""Documents as they are being edited, in the small tier of memory that stands in front of the repository's bank.

What an editor shows need not be on disk. It passes the same sieve as a file: ignored paths are not read, and secret
values are masked. Of a text that was edited only the windows from the edit on are encoded, until they are again as they
were.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codemem.texts import Text
from indexer.documents import clean, parsed
from indexer.walk import SkipReason, verdict

if TYPE_CHECKING:
    from codemem.completion.engine import Engine
    from codemem.completion.request import Request
    from codemem.memory.banks import Banks
    from codemem.models.memorizing import MemorizingModel


def remember_buffer(
    model: MemorizingModel, banks: Banks, root: Path, path: str, text: str, until: int | None = None, **encoding: Any
) -> SkipReason | None:
    """Let memory read a document as it is in an editor, in place of the file, until `banks.settle(path)`.

    text: all of it, with "\\n" for line breaks; until: the character up to which it is read, to its end if None;
    encoding: for `MemorizingModel.encode`. Returns None, or why memory does not read it, and then what memory holds of
    the path stays.
    """
    whole = sieved(root, path, text)
    if isinstance(whole, SkipReason):
        return whole
    end = len(whole.text) if until is None else len(whole.text[:until].rstrip())
    if not end:
        banks.settle(path)
        return SkipReason.EMPTY
    banks.encode(model, replace(whole, until=end), **encoding)
    return None


def true_to(engine: Engine, banks: Banks, root: Path, request: Request) -> Request:
    """A request in a document that memory holds in another version, or not at all, after memory has read what stands
    above the request's window; or the request with a note that memory does not."""
    window = engine.window(request)
    reason = remember_buffer(engine.model, banks, root, request.path, request.text, window)
    return replace(request, changed=reason is not None)


def sieved(root: Path, path: str, text: str) -> Text | SkipReason:
    """A document as memory may read it, or why it may not; see `remember_buffer`."""
    if reason := verdict(root, path, len(text.encode("utf-8", "replace"))):
        return reason
    cleaned = clean(path, text)
    if isinstance(cleaned, SkipReason):
        return cleaned
    clear, language = cleaned
    return parsed(path, clear, language)
