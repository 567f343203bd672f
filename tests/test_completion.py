"""Completion: bytes of tokens, token healing, the prompt's window, where a completion ends, and what it read.

`scripted` makes a tiny real model, which really reads memory, say what a test wants.
"""

from __future__ import annotations

from itertools import islice, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from codemem.completion.decode import CHUNK, allowed, decode
from codemem.completion.engine import Engine
from codemem.completion.piece import MAX_TOKENS
from codemem.completion.prompt import build_prompt
from codemem.completion.request import Request
from codemem.completion.scripted import ScriptedDecoder
from codemem.completion.vocabulary import Vocabulary
from codemem.models.decoder import TransformersDecoder
from codemem.models.memorizing import MemorizingModel
from codemem.models.tokenizer import header_tokens, tokenize

TOKENIZER = tiny_tokenizer()
VOCABULARY = Vocabulary(TOKENIZER)
SOURCE = "".join(f"def area_{i}(width, height):\n    return width * height * {i}\n\n\n" for i in range(6))


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """As Gemma and Llama 2 have it: spaces as U+2581, bytes as <0xNN>."""
    words = ["<unk>", "<end>", "\u2581", "d", "e", "f", "de", "def", "\u2581def", "é", "(", "\n", "\u2581\u2581"]
    words += [f"<0x{byte:02X}>" for byte in range(256)]
    merges = [("d", "e"), ("de", "f"), ("\u2581", "def"), ("\u2581", "\u2581")]
    tokenizer = Tokenizer(
        models.BPE({word: i for i, word in enumerate(words)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unk>")


def request(text: str, **more) -> Request:
    """The cursor is at the bar."""
    return Request(**{"path": "src/a.py", "text": text.replace("|", "", 1), "offset": text.index("|"), **more})


@pytest.fixture
def engine():
    return Engine(MemorizingModel(tiny_model(), TOKENIZER), "tiny")


def scripted(engine: Engine, asked: Request, answer: str | bytes, end: bool = True):
    """Make the model generate `answer` for this request, then end of text if `end`."""
    data = asked.text[: asked.offset].encode() + (answer.encode() if isinstance(answer, str) else answer)
    inner, ending = engine.model.decoder, TOKENIZER.eos_token_id if end else None
    engine.model.decoder = lambda: ScriptedDecoder(inner(), VOCABULARY, [data], ending)


# Vocabulary.


@pytest.mark.parametrize("tokenizer", [TOKENIZER, sentencepiece_tokenizer()], ids=["byte-level", "SentencePiece"])
@pytest.mark.parametrize("text", ["def f(x):\n    return é", "漢字 😀\t\r\n", "  def  de f", "ĠĠ \u00a0"])
def test_the_bytes_of_the_tokens_of_a_text_are_the_text(tokenizer, text):
    tokens = Vocabulary(tokenizer).tokens
    assert b"".join(tokens[number] for number in tokenize(tokenizer, text)[0]) == text.encode()


@pytest.mark.parametrize("tokenizer", [TOKENIZER, sentencepiece_tokenizer()], ids=["byte-level", "SentencePiece"])
def test_special_tokens_are_no_text(tokenizer):
    vocabulary = Vocabulary(tokenizer)
    assert tokenizer.eos_token_id in vocabulary.special
    assert all(vocabulary.tokens[number] == b"" for number in vocabulary.special)


def test_special_tokens_without_a_role_end_a_text_too():
    """Code models end a file with the next one's header: a token such as <|file_sep|> is no eos, but it is no text."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|file_sep|>", "<reponame>"], special_tokens=True)
    tokenizer.add_tokens(["<|fim_prefix|>", "      "])  # no special tokens, says the tokenizer; the first one is
    vocabulary = Vocabulary(tokenizer)
    ends = {
        tokenizer.convert_tokens_to_ids(name) for name in ("<|end|>", "<|file_sep|>", "<reponame>", "<|fim_prefix|>")
    }
    assert vocabulary.special == ends
    assert vocabulary.tokens[tokenizer.convert_tokens_to_ids("      ")] == b"      "


def test_continuing_finds_what_begins_with_a_text_and_what_it_begins_with():
    def names(text: bytes) -> set[bytes]:
        return {VOCABULARY.tokens[number] for number in VOCABULARY.continuing(text)}

    assert names(b"de") == {b"d", b"de", b"def"}
    assert names(b"d") == {b"d", b"de", b"def"}
    assert names(b"deg") == {b"d", b"de"}
    assert names(b"   ") == {b" ", b"  ", b"    "}


@settings(max_examples=100, deadline=None)
@given(text=st.binary(min_size=1, max_size=6) | st.sampled_from([b"def", b"def f", b"    ", b"defde"]))
def test_continuing_is_what_a_look_at_every_token_gives(text):
    expected = {
        number
        for number, token in enumerate(VOCABULARY.tokens)
        if token and (token.startswith(text) or text.startswith(token))
    }
    assert set(VOCABULARY.continuing(text)) == expected


# The prompt and token healing.


def test_the_prompt_is_the_path_then_the_text_without_its_last_token():
    prompt = build_prompt(request("x = 1\nde|f f"), TOKENIZER, VOCABULARY)
    assert TOKENIZER.decode(prompt.ids) == "# src/a.py\nx = 1\n"
    assert (prompt.healed, prompt.first_line) == (b"de", 1)


def test_at_the_start_of_a_document_nothing_is_healed():
    prompt = build_prompt(request("|x = 1"), TOKENIZER, VOCABULARY)
    assert (TOKENIZER.decode(prompt.ids), prompt.healed, prompt.first_line) == ("# src/a.py\n", b"", 1)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), context=st.integers(16, 120))
def test_the_window_is_a_suffix_from_a_lines_start_that_fits(data, context):
    text = data.draw(st.lists(st.text("ab é(", max_size=20), max_size=12).map("\n".join))
    offset = data.draw(st.integers(0, len(text)))
    prompt = build_prompt(Request("a.py", text, offset, context=context), TOKENIZER, VOCABULARY)
    header = header_tokens(TOKENIZER, "a.py")
    assert prompt.ids[: len(header)] == header
    assert len(prompt.ids) + 1 <= max(context, len(header) + 1) + (not prompt.healed)
    shown = b"".join(VOCABULARY.tokens[number] for number in prompt.ids[len(header) :]) + prompt.healed
    before = text[:offset].encode()
    assert before.endswith(shown)
    hidden = before[: len(before) - len(shown)]
    assert hidden.count(b"\n") + 1 == prompt.first_line
    if not hidden.endswith(b"\n") and hidden:
        # Only where no line starts in reach: the cursor's line alone is longer than the window.
        assert b"\n" not in shown.rstrip(b"\n") and len(shown) >= context - len(header) - 1


def test_a_window_does_not_start_in_the_middle_of_a_character():
    text = "x\n" * 20 + "é" * 9 + "\n" + "y" * 20
    header = len(header_tokens(TOKENIZER, "a.py"))
    for context in range(header + 20, header + 45):
        prompt = build_prompt(Request("a.py", text, len(text), context=context), TOKENIZER, VOCABULARY)
        assert b"".join(VOCABULARY.tokens[number] for number in prompt.ids[header:]).decode()


def test_a_window_that_does_not_start_the_document_says_at_which_line_it_does():
    text = "".join(f"line_{number} = {number}\n" for number in range(1, 400))
    prompt = build_prompt(request(text + "x|", context=100), TOKENIZER, VOCABULARY)
    shown = TOKENIZER.decode(prompt.ids).split("\n")
    assert shown[0] == "# src/a.py"
    assert shown[1] == f"line_{prompt.first_line} = {prompt.first_line}"
    assert 80 < len(prompt.ids) <= 100


@pytest.mark.parametrize("prefix", ["de", "d", "x = é", "if a:\n  ", "x = 😀", "def area(width):\n    return wid"])
def test_generated_text_continues_the_text_before_the_cursor(engine, prefix):
    """Whatever the model would rather say: it first spells what was taken back."""
    asked = request(prefix + "|")
    prompt = build_prompt(asked, TOKENIZER, engine.vocabulary)
    new, steps = [], decode(engine.model, engine.model.decoder(), engine.vocabulary, prompt)
    for _ in range(12):
        new.append(next(steps).text)
    header = len(header_tokens(TOKENIZER, asked.path))
    shown = b"".join(VOCABULARY.tokens[number] for number in prompt.ids[header:])
    assert shown + prompt.healed == prefix.encode()
    # The tokens taken, healed ones with them: fed to the model one by one, they are what greedy decoding takes.
    with torch.inference_mode():
        first = engine.model(input_ids=torch.tensor([prompt.ids])).logits[0, -1]
    allowed = VOCABULARY.continuing(prompt.healed)
    best = max(allowed, key=lambda number: float(first[number]))
    assert (prompt.healed + b"".join(new)).startswith(VOCABULARY.tokens[best])


def test_healing_lets_the_model_take_a_longer_token(engine):
    asked, longer = request("x\nde|"), TOKENIZER.convert_tokens_to_ids("def")

    class Longer(TransformersDecoder):
        def read(self, ids, last=1):
            logits = super().read(ids, last).clone()
            logits[-1, longer] += 1e6
            return logits

    prompt = build_prompt(asked, TOKENIZER, engine.vocabulary)
    steps = decode(engine.model, Longer(engine.model), engine.vocabulary, prompt)
    assert [next(steps).text for _ in range(2)] == [b"f", b"def"]


# Decoding.


def generated(engine: Engine, asked: Request, count: int = 20, **how) -> bytes:
    prompt = build_prompt(asked, TOKENIZER, engine.vocabulary)
    steps = decode(engine.model, engine.model.decoder(), engine.vocabulary, prompt, **how)
    return b"".join(step.text for step in islice(steps, count))


def test_greedy_decoding_is_the_argmax_and_the_same_every_time(engine):
    asked = request("x = 1\ny|")
    first = generated(engine, asked)
    assert generated(engine, asked, seed=5) == first
    prompt = build_prompt(asked, TOKENIZER, engine.vocabulary)
    ids, text = [*prompt.ids, ord("y")], b""
    with torch.inference_mode():
        for _ in range(8):
            ids.append(int(engine.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            text += VOCABULARY.tokens[ids[-1]]
    assert first.startswith(text)


def test_sampling_follows_the_seed(engine):
    asked = request("x = 1\ny|")
    texts = [generated(engine, asked, temperature=1.0, seed=seed) for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


def test_rows_of_the_output_layer_without_a_token_are_never_taken():
    """Qwen's output layer has more rows than its tokenizer has tokens."""
    model = tiny_model()
    with torch.no_grad():
        model.resize_token_embeddings(300, mean_resizing=False)
        model.lm_head.weight[261:] = 100 * model.lm_head.weight[0]
        model.lm_head.weight[280:] *= -1
    engine = Engine(MemorizingModel(model, TOKENIZER), "tiny")
    assert generated(engine, request("x|"), 5)
    assert generated(engine, request("x|"), 5, temperature=2.0)


# The engine.


@pytest.mark.parametrize(
    ("text", "answer", "end", "expected", "reason"),
    [
        ("x = |", "width * 2\ny = 3", True, "width * 2", "line"),
        ("x = |", "width * 2", True, "width * 2", "end of text"),
        ("x = |", "w" * 200, False, "w" * (MAX_TOKENS["line"] - 1), "length"),
        ("x = |", "", True, "", "empty"),
        ("x = |", "   \n", True, "", "empty"),
        ("x = |", "10   \ny", True, "10", "line"),
        ("x = y|", "\nz = 2\na", True, "\nz = 2", "line"),
        ("def f(a):\n    |", "return a\n\n\ndef g", True, "return a", "block"),
        ("if (a) {|", "\n    b();\n}\nc", True, "\n    b();\n}", "block"),
        ("def f(a):|", "\n    return a\n", True, "\n    return a", "end of text"),
        ("x = '|", "é漢😀'\n", True, "é漢😀'", "line"),
    ],
)
def test_a_completion_says_why_it_ends(engine, text, answer, end, expected, reason):
    asked = request(text, path="src/a.c" if "{" in text else "src/a.py")
    scripted(engine, asked, answer, end)
    completion = engine.complete(asked)
    assert (completion.text, completion.reason) == (expected, reason)
    assert completion.model == "tiny"
    assert completion.tokens <= len(answer.encode()) + 1


def test_max_tokens_counts_tokens(engine):
    asked = request("x = |", max_tokens=5)
    scripted(engine, asked, "abcdefgh")
    completion = engine.complete(asked)
    # The first one spells the space before the cursor again.
    assert (completion.text, completion.tokens, completion.reason) == ("abcd", 5, "length")


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_half_a_character_is_never_shown(engine, cut):
    asked = request("x = |", max_tokens=3 + cut)
    scripted(engine, asked, "ab😀c")
    assert engine.complete(asked).text == "ab"


# Streaming, cancellation, deadlines.


def test_text_is_shown_as_it_comes(engine):
    asked, seen = request("x = |"), []
    scripted(engine, asked, "width * 2\ny = 3")
    completion = engine.complete(asked, show=seen.append)
    assert completion.text == "width * 2"
    assert len(seen) > 5 and all(later.startswith(earlier) for earlier, later in pairwise(seen))
    assert completion.text.startswith(seen[-1])


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_cancelled_request_takes_no_step_more(engine, after):
    asked = request("def f():\n    |", max_tokens=100)
    scripted(engine, asked, "    x = 1\n" * 50)
    asks = []

    def cancelled():
        asks.append(1)
        return len(asks) > after

    completion = engine.complete(asked, cancelled=cancelled)
    assert (completion.text, completion.reason) == ("", "cancelled")
    assert len(asks) == after + 1 and completion.tokens <= max(0, after)


def test_a_long_prompt_is_read_in_pieces_and_can_be_cancelled_between_them(engine):
    asked, asks = request(SOURCE * 4 + "|", context=1200), []
    engine.complete(asked, cancelled=lambda: bool(asks.append(1)) or len(asks) > 3)
    assert len(asks) == 4
    decoder = engine._cache._held[asked.path, "asking"].decoder
    assert len(decoder.tokens) == 3 * CHUNK


def test_what_is_read_in_pieces_is_what_is_read_at_once(engine):
    engine.model.remember(SOURCE, "src/shapes.py")
    prompt = build_prompt(request(SOURCE + "x|", context=1000), TOKENIZER, VOCABULARY)
    pieces = next(decode(engine.model, engine.model.decoder(), VOCABULARY, prompt)).token
    whole = engine.model.decoder().read(prompt.ids)[0]
    assert pieces == int(allowed(whole, VOCABULARY, prompt.healed).argmax())


def test_at_the_deadline_whole_lines_count(engine, monkeypatch):
    asked = request("def f():\n    |", max_tokens=200, deadline=1000.0)
    scripted(engine, asked, "x = 1\n    y = 2\n    z = 3\n")
    now = iter(range(10**6))
    monkeypatch.setattr("codemem.completion.engine.time.perf_counter", lambda: 0.05 * next(now))
    completion = engine.complete(asked)
    assert completion.reason == "deadline"
    assert completion.text in ("", "x = 1", "x = 1\n    y = 2")
    assert completion.tokens < 25


def remembering(engine: Engine, **documents: str) -> None:
    for name, text in documents.items():
        engine.model.remember(text, f"src/{name}.py")


def test_without_memory_it_is_the_base_model(engine):
    asked = request("def area(width, height):\n    return |", max_tokens=24)
    empty = engine.complete(asked)
    assert (empty.memory.documents, empty.memory.entries, empty.memory.share, empty.provenance) == (0, 0, 0.0, [])
    remembering(engine, shapes=SOURCE)
    without = engine.complete(asked, memory=False)
    assert (without.text, without.tokens, without.reason) == (empty.text, empty.tokens, empty.reason)
    assert without.memory is None and without.provenance == []
    assert without.ms["retrieval"] == 0


def test_provenance_sums_to_one_and_names_lines_that_are_there(engine):
    remembering(engine, shapes=SOURCE, words="hello = 'world'\n")
    completion = engine.complete(request("def area(width, height):\n    return |", max_tokens=10))
    assert sum(source.weight for source in completion.provenance) == pytest.approx(1, abs=1e-6)
    weights = [source.weight for source in completion.provenance]
    assert weights == sorted(weights, reverse=True) and weights[-1] > 0
    lines = {"src/shapes.py": SOURCE.count("\n") + 1, "src/words.py": 2}
    assert all(1 <= source.line <= lines[source.path] for source in completion.provenance)
    assert len({(source.path, source.line) for source in completion.provenance}) == len(completion.provenance)
    assert 0 < completion.memory.share < 1
    assert completion.memory.documents == 2
    assert completion.memory.entries == len(engine.model.bank)
    assert completion.ms["retrieval"] > 0 and completion.ms["total"] >= completion.ms["prefill"]


def test_of_its_own_document_only_what_stands_before_the_window_is_read(engine):
    text = SOURCE + "x = |\n" + SOURCE
    asked = request(text, context=64, max_tokens=8)
    engine.model.remember(asked.text, asked.path)
    first = build_prompt(asked, TOKENIZER, engine.vocabulary).first_line
    assert 1 < first < asked.text.count("\n")
    engine.model.reading.k = 10_000
    lines = {source.line for source in engine.complete(asked).provenance}
    assert lines and max(lines) < first
    assert len(engine.model.bank) == len(tokenize(TOKENIZER, asked.text)[0]), "hidden for this request alone"


def test_of_a_document_that_changed_nothing_is_read(engine):
    asked = request(SOURCE + "x = |\n", context=64, max_tokens=4, changed=True)
    engine.model.remember(asked.text, asked.path)
    engine.model.remember("width = 3\n", "src/other.py")
    assert {source.path for source in engine.complete(asked).provenance} == {"src/other.py"}


def test_what_it_may_not_read_changes_no_completion(engine):
    """Memory of the lines inside and behind the window is as good as none."""
    asked = request("width = 3\nheight = |\narea = width * height\n", max_tokens=16)
    nothing = engine.complete(asked)
    engine.model.remember(asked.text, asked.path)
    own = engine.complete(asked)
    assert (own.text, own.provenance) == (nothing.text, [])


def test_a_bank_from_elsewhere_is_read(engine):
    bank = engine.model.new_bank()
    engine.model.remember(SOURCE, "src/shapes.py")
    bank.add("lib/shapes.py", engine.model.bank.entries("src/shapes.py"))
    engine.model.bank = bank
    completion = engine.complete(request("return |", max_tokens=3))
    assert {source.path for source in completion.provenance} == {"lib/shapes.py"}
