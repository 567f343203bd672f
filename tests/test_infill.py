"""Fill in the middle: which models have it, what the prompt is then, and that others stop where the text goes on."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model, tiny_tokenizer

from codemem.completion.engine import Engine
from codemem.completion.infill import MARKS, SHARE, infill_of, with_suffix
from codemem.completion.prompt import build_prompt
from codemem.completion.request import Request
from codemem.completion.scripted import scripted_model
from codemem.completion.vocabulary import Vocabulary
from codemem.models.memorizing import MemorizingModel


def marked(marks: tuple[str, ...] = MARKS[0]):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(list(marks), special_tokens=True)
    return tokenizer


TOKENIZER = marked()
VOCABULARY = Vocabulary(TOKENIZER)


@pytest.mark.parametrize("marks", MARKS)
def test_the_marks_of_a_tokenizer_are_found(marks):
    tokenizer = marked(marks)
    infill = infill_of(tokenizer)
    assert tokenizer.convert_ids_to_tokens([infill.prefix, infill.suffix, infill.middle]) == list(marks)
    assert {infill.prefix, infill.suffix, infill.middle} <= Vocabulary(tokenizer).special
    assert infill_of(tiny_tokenizer()) is None
    assert infill_of(marked(marks[:2])) is None


def prompted(text: str, **more) -> tuple[str, Request]:
    request = Request("a.py", text.replace("|", "", 1), text.index("|"), **more)
    prompt = build_prompt(request, TOKENIZER, VOCABULARY)
    shown = with_suffix(prompt, request, TOKENIZER, infill_of(TOKENIZER))
    assert (shown.healed, shown.start, shown.first_line) == (prompt.healed, prompt.start, prompt.first_line)
    return TOKENIZER.decode(shown.ids, skip_special_tokens=False), request


def test_before_then_behind_then_the_middle():
    text, _ = prompted("def area(r):\n    return |\n\nprint(area(1))\n")
    before = "<|fim_prefix|># a.py\ndef area(r):\n    return"
    assert text == before + "<|fim_suffix|>\n\nprint(area(1))\n<|fim_middle|>"


@pytest.mark.parametrize("text", ["x = 1|", "x = 1|\n", "x = |  \n\n"])
def test_where_nothing_stands_behind_the_prompt_is_as_ever(text):
    assert "<|fim" not in prompted(text)[0]


@settings(max_examples=60, deadline=None)
@given(
    behind=st.lists(st.text("ab é(", min_size=1, max_size=20), min_size=1, max_size=12).map("\n".join),
    context=st.integers(20, 200),
)
def test_what_stands_behind_is_whole_lines_within_its_budget(behind, context):
    text, _ = prompted("x = |" + behind, context=context)
    if "<|fim_suffix|>" not in text:
        assert not behind.strip()
        return
    shown = text.split("<|fim_suffix|>")[1].removesuffix("<|fim_middle|>").rstrip("\ufffd")
    assert behind.startswith(shown) and shown
    assert len(TOKENIZER(shown).input_ids) <= max(1, int(context * SHARE)) + 1
    assert shown == behind or shown.endswith("\n") or "\n" not in shown.strip()


def test_the_engine_of_such_a_model_shows_it_what_stands_behind():
    base = tiny_model()
    base.resize_token_embeddings(len(TOKENIZER), mean_resizing=False)
    engine, seen = Engine(MemorizingModel(base, TOKENIZER), "tiny"), []
    inner = engine.model.decoder

    def noting():
        decoder = inner()
        read = decoder.read
        decoder.read = lambda ids, last=1: seen.append([*decoder.tokens, *ids]) or read(ids, last)
        return decoder

    engine.model.decoder = noting
    engine.complete(Request("a.py", "x = \ny = 2\n", 4, max_tokens=3))
    assert TOKENIZER.decode(seen[0]) == "<|fim_prefix|># a.py\nx =<|fim_suffix|>\ny = 2\n<|fim_middle|>"


def test_a_model_without_it_stops_where_the_text_goes_on():
    text = "test(function () {\n\nmore(1)\n"
    written = "\n    check(r)\n    more(1)\n    another(1)\n"
    engine = Engine(scripted_model(text[:18] + written), "scripted")
    completion = engine.complete(Request("a.js", text, 18, max_tokens=500))
    assert completion.text == "\n    check(r)"
    assert completion.reason == "what stands below"
    assert completion.tokens == len(written[: written.index("    another")].encode()) + 1
