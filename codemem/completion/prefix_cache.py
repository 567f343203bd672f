"""What was read for the last completions stays: typing on costs the new tokens, an edit those from it on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from weakref import ref

from codemem.models.decoder import Decoder
from codemem.models.memorizing import MemorizingModel

# Decoders that are kept; 1,500 tokens of a 135M model take 70 MB.
MOST = 4


@dataclass
class _Held:
    """state: how memory was read, and which; first: the first position that read it."""

    decoder: Decoder
    state: Hashable
    first: int


class PrefixCache:
    """Decoders of the documents completed last, with the tokens they hold."""

    def __init__(self, model: MemorizingModel) -> None:
        self._model = model
        self._held: OrderedDict[Hashable, _Held] = OrderedDict()

    def decoder(self, purpose: Hashable, ids: Sequence[int]) -> Decoder:
        """A decoder that holds as many of the first tokens `ids` as an earlier one for the same purpose had, but not
        the last one.

        What read memory in it was read when memory was as it is now: where attention reads memory, a document that has
        left it, or came to it, makes the positions that did be read again, and so does memory that is read in another
        way. Of a prompt those are the last ones, as `decode` reads it.
        """
        reading, bank = self._model.reading, self._model.bank
        # Who asks keeps what attention searches, tens of megabytes; here it is only to be known again.
        focus = None if reading.focus is None else ref(reading.focus)
        state = reading.attention and (id(bank), bank.version, focus)
        held = self._held.pop(purpose, None)
        if held is None:
            decoder = self._model.decoder() if len(self._held) < MOST else self._held.popitem(last=False)[1].decoder
            decoder.crop(0)
            held = _Held(decoder, state, 0)
        self._held[purpose] = held
        kept, reads = _common(held.decoder.tokens, ids[:-1]), max(0, len(ids) - reading.rows(len(ids)))
        if held.state != state:
            kept = min(kept, held.first, reads)
        held.decoder.crop(kept)
        begins = max(kept, reads) if state else len(ids)
        held.first = min(held.first, begins) if kept > held.first else begins
        held.state = state
        return held.decoder


def _common(held: Sequence[int], wanted: Sequence[int]) -> int:
    """How many first tokens are the same."""
    for number, (one, other) in enumerate(zip(held, wanted, strict=False)):
        if one != other:
            return number
    return min(len(held), len(wanted))
