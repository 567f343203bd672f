"""What was read for the last completions stays: typing on costs the new tokens, an edit those from it on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

from codemem.models.decoder import Decoder
from codemem.models.memorizing import MemorizingModel

# Decoders that are kept; 1,500 tokens of a 135M model take 70 MB.
MOST = 4


class PrefixCache:
    """Decoders of the documents completed last, with the tokens they hold."""

    def __init__(self, model: MemorizingModel) -> None:
        self._model = model
        self._held: OrderedDict[Hashable, tuple[Hashable, Decoder]] = OrderedDict()

    def decoder(self, purpose: Hashable, ids: Sequence[int]) -> Decoder:
        """A decoder that holds as many of the first tokens `ids` as an earlier one for the same purpose had, but not
        the last one.

        What it holds was read when memory was as it is now: a document that has left memory, or came to it, makes it
        start anew where attention reads memory, and so does memory that is read in another way.
        """
        reading, bank = self._model.reading, self._model.bank
        state = reading.attention and (id(bank), bank.version)
        before, decoder = self._held.pop(purpose, (None, None))
        if decoder is None:
            decoder = self._model.decoder() if len(self._held) < MOST else self._held.popitem(last=False)[1][1]
            before = None
        self._held[purpose] = state, decoder
        decoder.crop(_common(decoder.tokens, ids[:-1]) if before == state else 0)
        return decoder


def _common(held: Sequence[int], wanted: Sequence[int]) -> int:
    """How many first tokens are the same."""
    for number, (one, other) in enumerate(zip(held, wanted, strict=False)):
        if one != other:
            return number
    return min(len(held), len(wanted))
