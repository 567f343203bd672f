"""What is asked of the engine, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from codemem.completion.snippets import Snippet
    from codemem.memory.provenance import Source


@dataclass(frozen=True)
class Request:
    """A place in a document at which text is wanted.

    path: relative to the repository, with slashes; text: the whole document; offset: the cursor, in characters;
    context: prompt tokens at most, and a quarter as many for what stands behind the cursor; max_tokens: generated
    tokens at most, by default as many as a line or a block may have; temperature: 0 is greedy; changed: whether the
    document differs from what memory holds under its path.

    Of memory's three ways into a completion each can be switched: attention, in the memory layers; tokens, the token
    memory; recall, snippets in the prompt, of `snippets` tokens at most. deadline: milliseconds, None for no end; of
    what is not finished by then whole lines count. snippets_within: milliseconds, for snippets alone. What of these
    could not be read by either is left out.
    """

    path: str
    text: str
    offset: int
    context: int = 512
    max_tokens: int | None = None
    temperature: float = 0.0
    seed: int = 0
    changed: bool = False
    attention: bool = True
    tokens: bool = True
    recall: bool = True
    snippets: int = 1024
    deadline: float | None = None
    snippets_within: float | None = None


@dataclass(frozen=True)
class MemoryUse:
    """What stood behind a completion: the bank's size; share: the share of attention that memory had in the memory
    layers; token_share: the share of the next token's distribution that came from token memory, both means over the
    generated tokens, 0 to 1; snippets: what of memory stood in the prompt, best last; left_out: whether there was no
    time to read more."""

    documents: int
    entries: int
    share: float
    token_share: float
    snippets: tuple[Snippet, ...] = ()
    left_out: bool = False


@dataclass(frozen=True)
class Completion:
    """An answer. docs/json.md has its JSON form.

    reason: why it ends: line, block, what stands below, length, end of text, deadline or cancelled; of an empty one why
    there is nothing, one of those of `filters.FILTERS` too; tokens: how many were generated; ms: milliseconds by stage;
    provenance: the lines of memory that weighed most, heaviest first.
    """

    text: str
    model: str
    memory: MemoryUse | None
    reason: str
    tokens: int
    ms: dict[str, float]
    provenance: list[Source] = field(default_factory=list)


def typed_on(before: Request, now: Request) -> str | None:
    """What was typed at the cursor of one request to come to a later one; None where something else changed."""
    typed = now.text[before.offset : now.offset]
    whole = before.text[: before.offset] + typed + before.text[before.offset :]
    return typed if before.path == now.path and before.offset <= now.offset and now.text == whole else None


class Underway:
    """A completion that is being computed. text: what is written so far."""

    def __init__(self, request: Request) -> None:
        self.request, self.text = request, ""

    def show(self, text: str) -> None:
        """Note that there is more."""
        self.text = text

    def leads_to(self, newer: Request) -> bool:
        """Whether, as far as it is known, it writes what was typed to come to a newer request."""
        typed = typed_on(self.request, newer)
        return typed is not None and (typed.startswith(self.text) or self.text.startswith(typed))
