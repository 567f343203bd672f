"""The documents that an editor has open, as they are in it, and places in them as LSP counts.

A position is a line and a UTF-16 column; lines end at "\\n", "\\r\\n" and "\\r" and nothing else, so what Python calls
lines is of no use here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from lsprotocol import types

from codemem.errors import CodememError

# Characters of all open documents of one client.
MOST_CHARACTERS = 64 << 20
_LINE_END = re.compile(r"\r\n|\n|\r")


@dataclass(frozen=True)
class Document:
    """A document at one moment. version: the editor's number for it, 0 where it gave none."""

    uri: str
    text: str
    version: int

    @property
    def normal(self) -> str:
        """The text with "\\n" for line ends, as memory and model read it."""
        return normal(self.text)

    def normal_offset(self, position: types.Position) -> int:
        """Where a position is in `normal`, in characters."""
        before = self.text[: offset_at(self.text, position)]
        return len(before) - before.count("\r\n")


class Documents:
    """The open documents of a client, by URI."""

    def __init__(self) -> None:
        self._open: dict[str, Document] = {}

    def __getitem__(self, uri: str) -> Document:
        """Raises CodememError where it is not open."""
        document = self._open.get(uri)
        if document is None:
            raise CodememError(f"{uri} is not open: no textDocument/didOpen came for it")
        return document

    def get(self, uri: str) -> Document | None:
        return self._open.get(uri)

    @property
    def uris(self) -> tuple[str, ...]:
        return tuple(self._open)

    def open(self, item: types.TextDocumentItem) -> None:
        """Raises CodememError where too much is open."""
        self._put(Document(item.uri, _whole(item.text), item.version))

    def change(self, params: types.DidChangeTextDocumentParams) -> None:
        """Apply changes, one after the other. Raises CodememError for a document that is not open, and where it grows
        too large; it is closed then, rather than kept with another text than the editor has."""
        document = self[params.text_document.uri]
        text = document.text
        for change in params.content_changes:
            if isinstance(change, types.TextDocumentContentChangePartial):
                start, end = offset_at(text, change.range.start), offset_at(text, change.range.end)
                text = text[:start] + change.text + text[max(start, end) :]
            else:
                text = change.text
        self._put(replace(document, text=_whole(text), version=params.text_document.version))

    def close(self, uri: str) -> None:
        self._open.pop(uri, None)

    def _put(self, document: Document) -> None:
        others = sum(len(other.text) for other in self._open.values() if other.uri != document.uri)
        if others + len(document.text) > MOST_CHARACTERS:
            self.close(document.uri)
            raise CodememError(f"{document.uri} is too large beside what else is open", "close some files")
        self._open[document.uri] = document


def normal(text: str) -> str:
    """A text with "\\n" for line ends, as memory and model read it."""
    return text.replace("\r\n", "\n")


def offset_at(text: str, position: types.Position) -> int:
    """Where a position is, in characters: the nearest place that there is for one outside of the text, or inside of a
    character."""
    start = _line_start(text, max(0, position.line))
    end = _LINE_END.search(text, start)
    line = text[start : end.start() if end else len(text)]
    column = max(0, position.character)
    if line.isascii():
        return start + min(column, len(line))
    for at, character in enumerate(line):
        if column <= 0:
            return start + at
        column -= 2 if ord(character) > 0xFFFF else 1
    return start + len(line)


def _line_start(text: str, line: int) -> int:
    """Where a line, from 0, begins; the text's end where it has fewer."""
    if "\r" in text:
        ends = (match.end() for match in _LINE_END.finditer(text))
        return 0 if line == 0 else next((end for number, end in enumerate(ends, 1) if number == line), len(text))
    start = 0
    for _ in range(line):
        end = text.find("\n", start)
        if end < 0:
            return len(text)
        start = end + 1
    return start


def _whole(text: str) -> str:
    """A text without halves of characters: pairs that a change has put together are one, what is left is U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
