"""A request's prompt: the document's path, then as much text before the cursor as fits, with the last token to be
healed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from codemem.completion.request import Request
from codemem.completion.vocabulary import Vocabulary
from codemem.models.tokenizer import Tokenizer, header_tokens, spell, tokenize

# The window starts at every so manieth line, so that it stays where it is while some are typed: what was read of it is
# still in the cache.
STRIDE = 8
# More characters than this per token are rare; what is cut before tokenizing cannot be missed after it.
_CHARACTERS_PER_TOKEN = 12
# The last positions of a prompt, which ask memory.
POSITIONS = 32


@dataclass(frozen=True)
class Prompt:
    """ids: the prompt's tokens; healed: bytes before the cursor that are not in ids and that generation must begin
    with; first_line: the document's line (1-based) that the window of text begins with; start: where it begins, in
    characters."""

    ids: list[int]
    healed: bytes
    first_line: int
    start: int


def build_prompt(request: Request, tokenizer: Tokenizer, vocabulary: Vocabulary) -> Prompt:
    """The window starts at a line's start where one is in reach. Token healing: text that ends inside of what would be
    one token is unlike anything the model was trained on, so the last token is taken back and generation must spell it
    again."""
    header = header_tokens(tokenizer, request.path)
    room = max(1, request.context - len(header))
    before = request.text[: request.offset]
    start = _line_start(before, max(0, len(before) - room * _CHARACTERS_PER_TOKEN))
    ids, starts = tokenize(tokenizer, before[start:])
    if len(ids) > room:
        first = len(ids) - room
        while first < len(ids) - 1 and starts[first] == starts[first - 1]:  # in the middle of a character's bytes
            first += 1
        start = _window_start(before, start + int(starts[first]))
        ids, _ = tokenize(tokenizer, before[start:])
        ids = ids[-room:]
    healed = vocabulary.tokens[ids.pop()] if ids else b""
    return Prompt(header + ids, healed, before.count("\n", 0, start) + 1, start)


def with_snippets(prompt: Prompt, snippets: list[int], tokenizer: Tokenizer) -> Prompt:
    """The prompt with the tokens of snippets before its document's path, after what the tokenizer starts a text
    with."""
    start = len(spell(tokenizer, "", begin=True).ids)
    return replace(prompt, ids=prompt.ids[:start] + snippets + prompt.ids[start:])


def _window_start(text: str, offset: int) -> int:
    """The first start of a line whose number is a multiple of STRIDE, at or after the offset and in the first half of
    what is behind it; else what `_line_start` gives."""
    start = _line_start(text, offset)
    while start < offset + (len(text) - offset) // 2:
        line = text.count("\n", 0, start)
        if line % STRIDE == 0:
            return start
        newline = text.find("\n", start)
        if newline < 0:
            break
        start = newline + 1
    return _line_start(text, offset)


def _line_start(text: str, offset: int) -> int:
    """The first start of a line at or after the offset, if it is not the text's end; else the offset."""
    if offset == 0 or text[offset - 1] == "\n":
        return offset
    newline = text.find("\n", offset)
    return newline + 1 if 0 <= newline < len(text) - 1 else offset
