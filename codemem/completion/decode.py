"""The decode loop: prompt in, tokens out one at a time, memory read at every step."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from codemem.completion.prompt import Prompt
from codemem.completion.vocabulary import Vocabulary
from codemem.models.memorizing import MemorizingModel


@dataclass
class Clock:
    """Seconds spent so far in choosing snippets, in the forward pass over the prompt, and in those of generated
    tokens."""

    recall: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0


class Step(NamedTuple):
    """token: the id generated; text: its bytes, those of the healed text left out."""

    token: int
    text: bytes


@torch.inference_mode()
def decode(
    model: MemorizingModel,
    vocabulary: Vocabulary,
    prompt: Prompt,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    clock: Clock | None = None,
) -> Generator[Step]:
    """Generate without end, except at a special token.

    temperature 0 takes the most likely token, else tokens are drawn with the seed given. While the healed text is not
    spelled again, only tokens that can spell it are taken.
    """
    clock = clock or Clock()
    generator = torch.Generator(device=model.base.device).manual_seed(seed)
    cache = DynamicCache(config=model.base.config)
    healed, ids = prompt.healed, prompt.ids
    first = True
    while True:
        start = time.perf_counter()
        step = torch.tensor([ids], device=model.base.device)
        logits = model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1].float()
        token = _choose(allowed(logits, vocabulary, healed), temperature, generator)
        if first:
            clock.prefill += time.perf_counter() - start
        else:
            clock.decode += time.perf_counter() - start
        first = False
        if token in vocabulary.special:
            return
        text = vocabulary.tokens[token]
        new, healed = text[len(healed) :], healed[len(text) :]
        yield Step(token, new)
        ids = [token]


def allowed(logits: Tensor, vocabulary: Vocabulary, healed: bytes) -> Tensor:
    """The logits [vocabulary] of tokens that can come where `healed` must be spelled, -inf for the others."""
    logits = logits[: len(vocabulary.tokens)]  # some output layers have more rows than there are tokens
    if not healed:
        return logits
    continuing = vocabulary.continuing(healed)
    return torch.full_like(logits, float("-inf")).index_put(
        (torch.tensor(continuing, device=logits.device),), logits[continuing]
    )


def _choose(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=generator))
