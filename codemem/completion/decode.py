"""The decode loop: prompt in, tokens out one at a time, memory read at every step, drafts verified on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from codemem.completion.draft import Draft
from codemem.completion.prompt import Prompt
from codemem.completion.vocabulary import Vocabulary
from codemem.models.decoder import Decoder
from codemem.models.memorizing import MemorizingModel

# Tokens of a prompt that are read before it is asked again whether to go on.
CHUNK = 128


@dataclass
class Clock:
    """Seconds spent so far in choosing snippets, in the forward pass over the prompt, and in those of generated tokens;
    passes: how many of the latter there were; drafted, accepted: tokens."""

    recall: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    passes: int = 0
    drafted: int = 0
    accepted: int = 0


class Step(NamedTuple):
    """token: the id generated; text: its bytes, those of the healed text left out."""

    token: int
    text: bytes


def decode(
    model: MemorizingModel,
    decoder: Decoder,
    vocabulary: Vocabulary,
    prompt: Prompt,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    clock: Clock | None = None,
    drafts: int = 0,
    line: bool = False,
    written: bytes = b"",
    goes_on: Callable[[], bool] = lambda: True,
) -> Generator[Step]:
    """Generate without end, except at a special token, and when `goes_on`, asked before every forward pass, says no.

    decoder: holds the first tokens of the prompt, or none; temperature 0 takes the most likely token, else tokens are
    drawn with the seed given. While the healed text is not spelled again, only tokens that can spell it are taken.
    drafts: tokens that are proposed and verified at a time, at most; what is generated does not depend on it, nor on
    what they are made of. line: whether drafts end with their line; written: what may come, for them, healed text
    included.
    """
    clock = clock or Clock()
    generator = torch.Generator().manual_seed(seed)
    healed = prompt.healed
    most = min(drafts, decoder.together - 1) if temperature == 0 else 0
    draft = Draft(prompt.ids, most, vocabulary, line=line, written=written)
    start = time.perf_counter()
    for chunk in _chunks(len(decoder.tokens), len(prompt.ids), model.reading.last):
        if not goes_on():
            return
        with model.reads(attention=False, tokens=False):
            decoder.states(prompt.ids[chunk])
    logits, proposed = decoder.read(prompt.ids[len(decoder.tokens) :]), list[int]()
    clock.prefill += time.perf_counter() - start
    while goes_on():
        held = len(decoder.tokens) - len(proposed)
        for position, row in enumerate(logits):
            start = time.perf_counter()
            token = choose(allowed(row, vocabulary, healed), temperature, generator)
            clock.decode += time.perf_counter() - start
            agreed = position < len(proposed) and token == proposed[position]
            if not agreed:
                decoder.crop(held + position)
                model.reading.keep(position + 1, len(logits), len(model.layers))
            if token in vocabulary.special:
                return
            clock.accepted += agreed
            text = vocabulary.tokens[token]
            new, healed = text[len(healed) :], healed[len(text) :]
            yield Step(token, new)
            if not agreed:
                break
            draft.note(token)
        start = time.perf_counter()
        if most > 0 and not healed:
            proposed = draft.after(token, model.bank, model.reading)
        else:
            draft.note(token)
            proposed = []
        logits = decoder.read([token, *proposed], len(proposed) + 1)
        clock.decode += time.perf_counter() - start
        clock.passes, clock.drafted = clock.passes + 1, clock.drafted + len(proposed)


def _chunks(held: int, length: int, last: int | None) -> Iterator[slice]:
    """What of a prompt is read before its last positions, which read memory, in pieces of CHUNK tokens."""
    end = held if last is None else length - last
    for start in range(held, end, CHUNK):
        yield slice(start, min(start + CHUNK, end))


def allowed(logits: Tensor, vocabulary: Vocabulary, healed: bytes) -> Tensor:
    """The logits [vocabulary] of tokens that can come where `healed` must be spelled, -inf for the others."""
    logits = logits[: len(vocabulary.tokens)]  # some output layers have more rows than there are tokens
    if not healed:
        return logits
    continuing = torch.tensor(vocabulary.continuing(healed), device=logits.device)
    return torch.full_like(logits, float("-inf")).index_copy_(0, continuing, logits[continuing])


def choose(logits: Tensor, temperature: float = 0.0, generator: torch.Generator | None = None) -> int:
    """The most likely token, or one that is drawn. logits: [vocabulary]."""
    if temperature == 0:
        # Of what is on the CPU NumPy finds it in a tenth of PyTorch's time.
        return int(logits.detach().numpy().argmax() if logits.device.type == "cpu" else logits.argmax())
    return int(torch.multinomial((logits / temperature).softmax(dim=-1).cpu(), 1, generator=generator))
