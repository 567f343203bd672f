"""Drafts that cost nothing: what followed the same tokens before, in memory or in the text itself.

A draft is verified by one forward pass over all of it, and what greedy decoding would not have chosen is thrown away
(Leviathan et al., Fast Inference from Transformers via Speculative Decoding, ICML 2023). Memory is the better source
(REST, He et al., NAACL 2024): the best match of token memory that agrees with the token just chosen is followed by what
its author wrote next. Without one, the text is asked (Saxena, Prompt Lookup Decoding, 2023).
"""

from __future__ import annotations

from collections.abc import Sequence

from codemem.completion.vocabulary import Vocabulary
from codemem.memory.banks import Memory
from codemem.models.memory_layer import Reading

# Tokens that must be alike before a draft is taken from the text.
ALIKE = 3


class Draft:
    """Proposes tokens behind those of one text.

    ids: the prompt's; most: tokens at most; line: whether nothing is wanted behind the end of a line.
    """

    def __init__(self, ids: Sequence[int], most: int, vocabulary: Vocabulary, *, line: bool) -> None:
        self._ids, self._most, self._tokens, self._line = list(ids), most, vocabulary.tokens, line
        self._ends: dict[tuple[int, ...], int] = {}
        self._seen = 0

    def note(self, token: int) -> None:
        """A token was chosen."""
        self._ids.append(token)

    def after(self, token: int, bank: Memory, reading: Reading) -> list[int]:
        """What may come behind `token`, which was just chosen; `reading` has the trace of the position that did."""
        self.note(token)
        found = self._from_memory(token, bank, reading) or self._from_text()
        if self._line:
            for number, each in enumerate(found):
                if b"\n" in self._tokens[each]:
                    return found[: number + 1]
        return found

    def _from_memory(self, token: int, bank: Memory, reading: Reading) -> list[int]:
        if not reading.token_trace:
            return []
        rows, _ = reading.token_trace[-1]
        agreeing = rows[bank.following(rows) == token]
        return bank.continuation(int(agreeing[0]), self._most) if len(agreeing) else []

    def _from_text(self) -> list[int]:
        ids = self._ids
        for end in range(max(self._seen, ALIKE), len(ids)):
            self._ends[tuple(ids[end - ALIKE : end])] = end
        self._seen = len(ids)
        before = self._ends.get(tuple(ids[-ALIKE:]))
        return [] if before is None else ids[before : before + self._most]
