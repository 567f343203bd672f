"""Fill in the middle: what stands behind the cursor, for models that were trained to write what is missing between.

PREFIX text before SUFFIX text behind MIDDLE    -> what stands between (Bavarian et al., Efficient Training of
                                                   Language Models to Fill in the Middle, 2022, section 3)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from codemem.completion.prompt import Prompt
from codemem.completion.request import Request
from codemem.models.tokenizer import Tokenizer, spell, tokenize

# Share of the prompt's tokens that what stands behind the cursor may have.
SHARE = 0.25
_CHARACTERS_PER_TOKEN = 12


@dataclass(frozen=True)
class Infill:
    """The ids of the three marks of a tokenizer."""

    prefix: int
    suffix: int
    middle: int


# The marks as models spell them.
MARKS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, StarCoder2, Granite
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),  # DeepSeek-Coder
    ("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"),  # Code Llama
)


def infill_of(tokenizer: Tokenizer) -> Infill | None:
    """The marks that a tokenizer has; None for a model that only goes on."""
    vocabulary = tokenizer.backend_tokenizer.get_vocab()
    found = next((marks for marks in MARKS if all(mark in vocabulary for mark in marks)), None)
    return Infill(*(vocabulary[mark] for mark in found)) if found else None


def with_suffix(prompt: Prompt, request: Request, tokenizer: Tokenizer, infill: Infill) -> Prompt:
    """A prompt that also shows what stands behind the cursor, whole lines of it where one fits; the same where that is
    nothing."""
    room = int(request.context * SHARE)
    behind = request.text[request.offset :][: room * _CHARACTERS_PER_TOKEN]
    if not behind.strip():
        return prompt
    ids, starts = tokenize(tokenizer, behind)
    if len(ids) > room:
        whole = behind[: behind.rfind("\n", 0, int(starts[room])) + 1]
        ids = tokenize(tokenizer, whole)[0] if whole.strip() else ids[:room]
    start = len(spell(tokenizer, "", begin=True).ids)
    marked = [*prompt.ids[:start], infill.prefix, *prompt.ids[start:], infill.suffix, *ids, infill.middle]
    return replace(prompt, ids=marked)
