"""The completions that a client was given: what an editor may ask and say of them afterwards, and what is counted."""

from __future__ import annotations

import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from codemem.errors import CodememError
from codemem.server.statistics import Counted, today

if TYPE_CHECKING:
    from codemem.completion.request import Completion

# Completions of a client that are remembered.
MOST = 256
# Characters before a completion, on its line, that must stand before it later for it to count as kept.
_ANCHOR = 24


@dataclass
class Given:
    """A completion that was given. root: of the repository; uri: of the document; before: what stood before the cursor
    on its line; texts: the lines of source of its provenance, as memory had them."""

    id: str
    completion: Completion
    root: Path
    uri: str
    before: str
    counted: Counted
    texts: list[str] = field(default_factory=list)

    def stands(self, document: str) -> bool:
        """Whether what was accepted still stands in a document, behind what it was written behind; how it is wrapped
        and indented does not matter."""
        accepted = self.completion.text[: self.counted.accepted]
        return _bare(self.before[-_ANCHOR:] + accepted) in _bare(document)


class Ledger:
    """What one client was given last."""

    def __init__(self) -> None:
        self._given: OrderedDict[str, Given] = OrderedDict()
        self._news: dict[str, Counted] = {}

    def add(self, completion: Completion, root: Path, uri: str, before: str, ms: float) -> Given:
        counted = Counted(uuid.uuid4().hex, today(), ms, len(completion.text))
        given = self._given[counted.id] = Given(counted.id, completion, root, uri, before, counted)
        if len(self._given) > MOST:
            self._given.popitem(last=False)
        self.note(counted)
        return given

    def __getitem__(self, number: str) -> Given:
        """Raises CodememError for one that is unknown or forgotten."""
        given = self._given.get(number)
        if given is None:
            raise CodememError(f"no completion is remembered as {number}: only the last {MOST} of a window are")
        return given

    def get(self, number: str) -> Given | None:
        return self._given.get(number)

    def note(self, counted: Counted) -> None:
        """Let it be written with the next news."""
        self._news[counted.id] = counted

    def news(self) -> list[Counted]:
        """What has changed since the last time."""
        news, self._news = list(self._news.values()), {}
        return news


def _bare(text: str) -> str:
    return "".join(text.split())
