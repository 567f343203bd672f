"""What of a completion needs no PyTorch: done, or begun, before that is imported."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from codemem.completion.prompt import POSITIONS, Prompt, build_prompt
from codemem.completion.request import Request
from codemem.completion.vocabulary import Vocabulary
from codemem.models.ahead import Ahead, find_plan
from codemem.models.locate import find_here
from codemem.models.tokenizer import PlainTokenizer, read_tokenizer


@dataclass(frozen=True)
class Begun:
    """The prompt of a request, and its tokens that are being read, those that ask memory left out."""

    request: Request
    tokenizer: PlainTokenizer
    vocabulary: Vocabulary
    prompt: Prompt
    ahead: Ahead


def begun_for(model: str | None, request: Request) -> Begun | None:
    """What can be begun of a completion by a model, as `load_memorizing` takes it; None where that needs PyTorch."""
    located = find_here(model)
    plan = None if located is None else find_plan(located.directory)
    if located is None or plan is None or (tokenizer := read_tokenizer(located.directory)) is None:
        return None
    vocabulary = Vocabulary(tokenizer)
    prompt = build_prompt(request, tokenizer, vocabulary)
    with suppress(OSError, KeyError, ValueError):
        return Begun(request, tokenizer, vocabulary, prompt, Ahead(plan, prompt.ids[:-POSITIONS]))
    return None
