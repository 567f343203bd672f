"""Drafts that cost nothing: what followed the same tokens before, in memory or in the text itself.

A draft is verified by one forward pass over all of it, and what greedy decoding would not have chosen is thrown away
(Leviathan et al., Fast Inference from Transformers via Speculative Decoding, ICML 2023). Memory is the better source
(REST, He et al., NAACL 2024): the best match of token memory that agrees with the token just chosen is followed by what
its author wrote next. Another is the text (Saxena, Prompt Lookup Decoding, 2023). And who types on asks again before
what was about to be written is whole, so that is where the next answer begins.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from codemem.completion.vocabulary import Vocabulary
from codemem.memory.banks import Memory
from codemem.models.memory_layer import Reading

# How likely the next token of a draft is the right one: by the share of the distribution that token memory gave to the
# token just chosen, and by how many last tokens are alike in the text. Measured on 695 positions of 60 completions in
# smolagents 1.26.0, a package that is not reported on.
MASSES, BY_MASS = (0.2, 0.4, 0.6, 0.8), (0.36, 0.62, 0.69, 0.78, 0.90)
BY_ALIKE = {6: 0.90, 4: 0.68, 3: 0.64, 2: 0.61}
# The same of what was written a moment ago in this place.
WRITTEN = 0.95
# A token more in a pass takes this share of what a pass for it alone would; less likely ones are not drafted.
PAYS = 0.25


class Draft:
    """Proposes tokens behind those of one text.

    ids: the prompt's; most: tokens at most; line: whether nothing is wanted behind the end of a line; written: bytes
    that may come behind the prompt.
    """

    def __init__(
        self, ids: Sequence[int], most: int, vocabulary: Vocabulary, *, line: bool, written: bytes = b""
    ) -> None:
        self._ids, self._most, self._vocabulary, self._line = list(ids), most, vocabulary, line
        self._tokens, self._written = vocabulary.tokens, written
        self._behind: dict[tuple[int, ...], int] = {}  # some tokens -> where what followed them last begins
        self._seen = 0

    def note(self, token: int) -> None:
        """A token was chosen."""
        self._ids.append(token)
        text = self._tokens[token]
        self._written = self._written[len(text) :] if self._written.startswith(text) else b""

    def after(self, token: int, bank: Memory, reading: Reading) -> list[int]:
        """What may come behind `token`, which was just chosen; `reading` has the trace of the position that did."""
        self.note(token)
        chance, found = max(self._from_before(), self._from_memory(token, bank, reading), self._from_text())
        draft, certain = list[int](), chance
        for each in found[: self._most]:
            if certain < PAYS:
                break
            draft.append(each)
            certain *= chance
            if self._line and b"\n" in self._tokens[each]:
                break
        return draft

    def _from_before(self) -> tuple[float, list[int]]:
        return (WRITTEN, self._vocabulary.spell(self._written)[: self._most]) if self._written else (0.0, [])

    def _from_memory(self, token: int, bank: Memory, reading: Reading) -> tuple[float, list[int]]:
        if reading.token_trace:
            rows, shares = reading.token_trace[-1]
            agreeing = bank.following(rows) == token
            if agreeing.any():
                chance = BY_MASS[bisect_right(MASSES, float(shares[agreeing].sum()))]
                return chance, bank.continuation(int(rows[agreeing][0]), self._most)
        return 0.0, []

    def _from_text(self) -> tuple[float, list[int]]:
        ids = self._ids
        for end in range(self._seen, len(ids)):
            for count in BY_ALIKE:
                if count <= end:
                    self._behind[tuple(ids[end - count : end])] = end
        self._seen = len(ids)
        for count, chance in BY_ALIKE.items():
            if (start := self._behind.get(tuple(ids[-count:]))) is not None:
                return chance, ids[start : start + self._most]
        return 0.0, []
