"""What is asked of the engine, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field

from codemem.memory.provenance import Source


@dataclass(frozen=True)
class Request:
    """A place in a document at which text is wanted.

    path: relative to the repository, with slashes; text: the whole document; offset: the cursor, in characters;
    context: prompt tokens at most; max_tokens: generated tokens at most, by default as many as a line or a block may
    have; temperature: 0 is greedy; changed: whether the document differs from what memory holds under its path.
    """

    path: str
    text: str
    offset: int
    context: int = 512
    max_tokens: int | None = None
    temperature: float = 0.0
    seed: int = 0
    changed: bool = False


@dataclass(frozen=True)
class MemoryUse:
    """What stood behind a completion: the bank's size, and the share of attention that memory had in the memory
    layers."""

    documents: int
    entries: int
    share: float


@dataclass(frozen=True)
class Completion:
    """An answer. docs/json.md has its JSON form.

    reason: why it ends: line, block, length, end of text, or empty; tokens: how many were generated; ms: milliseconds
    by stage; provenance: the lines of memory that weighed most, heaviest first.
    """

    text: str
    model: str
    memory: MemoryUse | None
    reason: str
    tokens: int
    ms: dict[str, float]
    provenance: list[Source] = field(default_factory=list)
