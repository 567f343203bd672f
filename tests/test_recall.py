"""Recall: which lines of memory are chosen for the prompt, that they are the document's own words, and what becomes of
them in the engine."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import END, VOCABULARY, tiny_model, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from codemem.completion import recall
from codemem.completion.engine import ASK_AFTER, LONGER, Engine
from codemem.completion.prompt import build_prompt
from codemem.completion.recall import POSITIONS, WINDOW_LINES, ask, votes
from codemem.completion.request import Request
from codemem.completion.snippets import Snippet, spell
from codemem.completion.vocabulary import Vocabulary
from codemem.models.decoder import TransformersDecoder
from codemem.models.encode import EncodingWindow
from codemem.models.memorizing import MemorizingModel
from codemem.models.tokenizer import header_tokens, tokenize
from codemem.texts import Text

NAMES = (
    "alpha",
    "beta",
    "gamma",
    "delta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lamda",
    "mu",
    "nu",
    "xi",
    "pi",
    "rho",
    "tau",
)
LONG = "".join(f"def {name}_{number}(x):\n    return x * {number}\n" for name in NAMES for number in range(4))
SHORT = "".join(f"{name}{number} = {number}\n" for name in NAMES for number in range(6))  # one encoding window


def spanning_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, with tokens that begin on one line and end on another, as code models have them."""
    newline, space = bytes_to_unicode()[10], bytes_to_unicode()[32]
    merges = [(newline, space), (newline + space, space), (")", newline), (")" + newline, newline)]
    tokens = [*(bytes_to_unicode()[byte] for byte in range(256)), *("".join(pair) for pair in merges), END]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2 has it: a space before every text, spaces as U+2581, unknown characters and newlines as bytes."""
    words = ["<unk>", END, "\u2581", *"abdefgxyz():=", "\u2581\u2581"]
    words += [f"<0x{byte:02X}>" for byte in range(256 - len(words) + 3)]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("\u2581", "\u2581")], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, unk_token="<unk>")


TOKENIZERS = {"tiny": tiny_tokenizer(), "spanning": spanning_tokenizer(), "SentencePiece": sentencepiece_tokenizer()}
MODELS = {name: MemorizingModel(tiny_model(), tokenizer) for name, tokenizer in TOKENIZERS.items()}


@pytest.fixture
def memory() -> MemorizingModel:
    return MemorizingModel(tiny_model(), tiny_tokenizer())


def remembered(model: MemorizingModel, **documents: str) -> MemorizingModel:
    """In one window each, as `states_of` reads them."""
    model.bank = model.new_bank()
    for path, text in documents.items():
        (entries,) = model.encode([Text(path, text)], window=EncodingWindow(size=12_000))
        model.bank.add(path, entries)
    return model


def states_of(model: MemorizingModel, path: str, text: str) -> torch.Tensor:
    ids = header_tokens(model.tokenizer, path) + tokenize(model.tokenizer, text)[0]
    with torch.no_grad(), model.reads(attention=False, tokens=False):
        return model.base.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0]


def called(model: MemorizingModel, states: torch.Tensor) -> list[Snippet]:
    return recall.snippets(model, votes(model.bank, states))


def lines_of(text: str, snippet: Snippet) -> str:
    return "\n".join(text.split("\n")[snippet.start_line - 1 : snippet.end_line])


# The words of a snippet.


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(
    text=st.lists(
        st.sampled_from(["", "", " ", "\t", "    ab(x)", "\tde", "é漢", "😀 x", "f()", "  y = 'é'  ", "\u2028x"])
    )
    .map("\n".join)
    .filter(lambda text: text.strip())
)
@example(text="\n\n    a()\n\n\n    b()\n\n")
@example(text="\n" * 30 + "    deep(a)\n" + "\n" * 30 + "é" + "\n" * 3)
@example(text="    indented()\n" * 45)
@example(text="a = b(x)  \n" * 45)
@example(text="".join(f"f(x)\n{'é' * 3}\n\n" for _ in range(20)))
def test_a_snippet_is_the_documents_lines(name, text):
    """Whatever the tokens: tabs, blank lines, indentation, characters of several bytes, at any place."""
    model = remembered(MODELS[name], **{"src/doc.py": text})
    snippets = called(model, states_of(model, "src/doc.py", text))
    assert snippets
    for snippet in snippets:
        assert snippet.path == "src/doc.py"
        assert snippet.text == lines_of(text, snippet), "the lines, as they were"
        first = (snippet.start_line - 1) // WINDOW_LINES
        assert first == (snippet.end_line - 1) // WINDOW_LINES and snippet.start_line <= snippet.end_line
        lines = snippet.text.split("\n")
        assert lines[0].strip() and lines[-1].strip(), "no blank lines at the ends"
        window = text.split("\n")[first * WINDOW_LINES : (first + 1) * WINDOW_LINES]
        assert snippet.text.strip() == "\n".join(window).strip(), "and all of the window that is not blank"
    assert sum(snippet.weight for snippet in snippets) <= 1 + 1e-6
    assert [s.weight for s in snippets] == sorted((s.weight for s in snippets), reverse=True)


def test_the_first_the_middle_and_the_last_window():
    text = SHORT.rstrip("\n")
    model = remembered(MODELS["spanning"], **{"long.py": text})
    found = called(model, states_of(model, "long.py", text))
    by_start = {snippet.start_line: snippet for snippet in found}
    last = text.count("\n") + 1
    assert set(by_start) == set(range(1, last + 1, WINDOW_LINES))
    assert by_start[1].text.startswith("alpha0 = 0\nalpha1 = 1\n")
    assert by_start[21].text.split("\n") == text.split("\n")[20:40]
    assert max(snippet.end_line for snippet in found) == last


# The choice.


@pytest.mark.parametrize("window", [0, 2, 3])
def test_the_window_that_a_prompt_repeats_comes_first(memory, window):
    remembered(memory, **{"src/long.py": SHORT, "src/other.py": "import os\n" * 50})
    lines = SHORT.split("\n")
    repeated = "\n".join(lines[: window * WINDOW_LINES + 16])
    prompt = build_prompt(
        Request("src/long.py", repeated, len(repeated), context=4000), memory.tokenizer, Vocabulary(memory.tokenizer)
    )
    best = recall.snippets(memory, ask(memory, memory.decoder(), prompt.ids))[0]
    assert (best.path, best.start_line, best.text) == (
        "src/long.py",
        window * WINDOW_LINES + 1,
        "\n".join(lines[window * WINDOW_LINES : (window + 1) * WINDOW_LINES]),
    )


def test_recall_asks_with_what_the_model_says_without_memory(memory):
    """Its entries were made without memory too; and it leaves no trace of reads."""
    remembered(memory, **{"a.py": LONG[:800]})
    ids = header_tokens(memory.tokenizer, "a.py") + tokenize(memory.tokenizer, LONG[:300])[0]
    plain = called(memory, states_of(memory, "a.py", LONG[:300])[-32:])
    with memory.reads(traced=True) as reading:
        found = recall.snippets(memory, ask(memory, memory.decoder(), ids))
        assert [str(snippet) for snippet in found] == [str(snippet) for snippet in plain]
        assert [s.weight for s in found] == pytest.approx([s.weight for s in plain], rel=1e-3)
        assert (reading.trace, reading.token_trace, reading.seconds) == ([], [], 0.0)


def test_nothing_is_recalled_of_what_is_hidden(memory):
    """A window that reaches into hidden lines ends before them."""
    remembered(memory, **{"a.py": LONG, "b.py": "x = 1\n" * 10})
    states = states_of(memory, "a.py", LONG)
    with memory.bank.hiding("a.py", 27):
        found = called(memory, states)
        assert {(s.path, s.start_line, s.end_line) for s in found} >= {("a.py", 1, 20), ("a.py", 21, 26)}
        assert max(s.end_line for s in found if s.path == "a.py") == 26
        assert all(s.text == lines_of(LONG, s) for s in found if s.path == "a.py")
    with memory.bank.hiding("a.py"):
        assert {s.path for s in called(memory, states)} == {"b.py"}
        with memory.bank.hiding("b.py"):
            assert called(memory, states) == []


# In the engine.


def asked_at(text: str, **more) -> Request:
    """The cursor is at the bar."""
    offset = text.index("|")
    return Request(
        **{"path": "src/new.py", "text": text.replace("|", "", 1), "offset": offset, "max_tokens": 3, **more}
    )


def reads_of(engine: Engine, request: Request, **more):
    """The completion of an engine that has read nothing yet, and all tokens up to the end of every forward pass that
    asks for something."""
    passes: list[list[int]] = []

    class Noted(TransformersDecoder):
        def states(self, ids, last=1):
            if last > 1:
                passes.append([*self.tokens, *ids])
            return super().states(ids, last)

        def read(self, ids, last=1):
            passes.append([*self.tokens, *ids])
            return super().read(ids, last)

    engine.model.decoder = lambda: Noted(engine.model)
    try:
        return Engine(engine.model, "tiny").complete(request, **more), passes
    finally:
        del engine.model.decoder


def beginning_tokenizer() -> PreTrainedTokenizerFast:
    """Starts every text with a token."""
    tokenizer = tiny_tokenizer()
    template = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, VOCABULARY - 1)])
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([template])
    return tokenizer


@pytest.mark.parametrize("tokenizer", [tiny_tokenizer(), beginning_tokenizer()], ids=["plain", "BOS"])
def test_snippets_stand_before_the_path_and_after_the_beginning(tokenizer):
    engine = Engine(MemorizingModel(tiny_model(), tokenizer), "tiny")
    remembered(engine.model, **{"src/long.py": LONG, "go/x.py": "x = 1\n" * 10})
    start = tokenizer("").input_ids
    assert len(start) == int(tokenizer("a").input_ids[0] == VOCABULARY - 1)
    request = asked_at("def beta(x):\n    return |\n")
    completion, passes = reads_of(engine, request)
    snippets = completion.memory.snippets
    assert 1 <= len(snippets) <= 8
    assert passes[1][: len(start)] == start
    shown = tokenizer.decode(passes[1][len(start) :])
    spelled = "".join(spell(snippet, "src/new.py") for snippet in snippets)
    assert shown == spelled + "# src/new.py\ndef beta(x):\n    return", "best last, then the document"
    assert [s.weight for s in snippets] == sorted(s.weight for s in snippets)
    assert all(snippet.text == lines_of(LONG, snippet) for snippet in snippets if snippet.path == "src/long.py")
    assert completion.ms["recall"] > 0


def test_snippets_can_be_left_out(memory):
    """Switched off, by the deadline, without memory: the prompt is the document's alone."""
    engine = Engine(remembered(memory, **{"src/long.py": LONG}), "tiny")
    text = "def beta(x):\n    return |\n"
    plain = build_prompt(asked_at(text), memory.tokenizer, engine.vocabulary).ids
    for request, more in (
        (asked_at(text, recall=False), {}),
        (asked_at(text, deadline=0), {}),
        (asked_at(text), {"memory": False}),
        (asked_at(text, snippets=0), {}),
    ):
        completion, passes = reads_of(engine, request, **more)
        assert plain in passes and all(ids[: len(plain)] == plain for ids in passes)
        assert completion.memory is None or completion.memory.snippets == ()
    completion, passes = reads_of(engine, asked_at(text, deadline=1e9))
    assert completion.memory.snippets and len(passes[1]) > len(plain)


def paced(memory: MemorizingModel, pace: float, monkeypatch) -> Engine:
    """An engine for which each position takes so many seconds."""
    monkeypatch.setattr(Engine, "_read", lambda engine, positions, seconds: setattr(engine, "_pace", pace))
    pieces = {f"src/{number}.py": LONG[at : at + 160] for number, at in enumerate(range(0, 800, 160))}
    return Engine(remembered(memory, **pieces), "tiny")


@pytest.mark.parametrize("limit", ["deadline", "snippets_within"])
def test_snippets_are_as_many_as_there_is_time_for(memory, monkeypatch, limit):
    engine, text = paced(memory, 1.0, monkeypatch), "def beta(x):\n    return |\n"
    plain = len(build_prompt(asked_at(text), memory.tokenizer, engine.vocabulary).ids)
    everything, passes = reads_of(engine, asked_at(text, max_tokens=1))
    whole, count = len(passes[1]) - plain, len(everything.memory.snippets)
    assert whole > 320 and count > 2 and not everything.memory.left_out

    def within(tokens: int):
        """Time for these, and half a minute that the test may take."""
        milliseconds = 1000 * (LONGER * (plain + tokens) + 30)
        completion, passes = reads_of(engine, asked_at(text, max_tokens=1, **{limit: milliseconds}))
        return completion.memory, max(map(len, passes)) - plain

    assert within(whole + 100) == (everything.memory, whole)
    for tokens in (whole - 100, 200, 100):
        use, read = within(tokens)
        assert 0 < read <= tokens + 30 / LONGER and 1 <= len(use.snippets) <= count
        assert use.left_out
    use, read = within(-30)
    assert (read, use.snippets, use.left_out) == (0, (), True), "too few to be worth reading the prompt again"


def test_snippets_that_were_read_stay_whatever_the_time(memory, monkeypatch):
    engine, text = paced(memory, 1.0, monkeypatch), "def beta(x):\n    return |\n"
    before = engine.complete(asked_at(text)).memory.snippets
    more = "x" * (2 * ASK_AFTER)
    after = engine.complete(asked_at(text.replace("|", more + "|"), deadline=10_000)).memory
    assert before and (after.snippets, after.left_out) == (before, False)


def test_a_prompt_without_snippets_is_read_once(memory):
    """What read it to ask memory reads on, where there was no time for what memory said."""
    remembered(memory, **{"src/long.py": LONG})
    asked, read = asked_at(LONG + "x = |\n", context=600, max_tokens=1, snippets_within=0), []

    class Counting(TransformersDecoder):
        def states(self, ids, last=1):
            read.append(len(ids))
            return super().states(ids, last)

    memory.decoder = lambda: Counting(memory)
    engine = Engine(memory, "tiny")
    assert engine.complete(asked).memory.left_out
    prompt = build_prompt(asked, memory.tokenizer, engine.vocabulary).ids
    assert len(prompt) <= sum(read) < 1.2 * len(prompt)


@pytest.mark.parametrize("budget", [40, 200, 700])
def test_the_budget_is_kept(memory, budget):
    engine = Engine(remembered(memory, **{"src/long.py": LONG}), "tiny")
    request = asked_at("def beta(x):\n    return |\n", snippets=budget)
    plain = build_prompt(request, memory.tokenizer, engine.vocabulary).ids
    completion, passes = reads_of(engine, request)
    assert len(plain) <= len(passes[1]) <= len(plain) + budget
    assert bool(completion.memory.snippets) == (len(passes[1]) > len(plain)) and (budget < 100 or passes[1] != plain)


def test_a_prompt_that_was_read_in_advance_is_not_read_again(memory):
    request = asked_at(LONG + "x = |\n", path="src/new.py", context=200)
    expected = Engine(remembered(memory, **{"src/other.py": LONG}), "tiny").complete(request)
    engine, bank = Engine(memory, "tiny"), memory.bank
    memory.bank = memory.new_bank()
    engine.prepare(request)
    memory.bank = bank
    ids = build_prompt(request, memory.tokenizer, engine.vocabulary).ids
    decoder = engine._cache._held["src/new.py", "asking"].decoder
    assert decoder.tokens == ids[:-POSITIONS]
    passes = []
    states = decoder.states
    decoder.states = lambda new, last=1: passes.append(len(new)) or states(new, last)
    completion = engine.complete(request)
    assert passes == [POSITIONS] and decoder.tokens == ids
    places = [[str(snippet) for snippet in each.memory.snippets] for each in (completion, expected)]
    assert completion.text == expected.text and places[0] == places[1]
    engine.prepare(request)  # nothing is left to read


@pytest.mark.parametrize("changed", [False, True])
def test_a_document_never_recalls_what_it_may_not_read(memory, changed):
    """What the prompt's window shows, and what stands after it, is not recalled; nothing, if it has changed."""
    text = LONG + "x = |\n" + "answer = 'the answer'\n" * 30
    request = asked_at(text, path="src/long.py", context=150, changed=changed)
    engine = Engine(remembered(memory, **{"src/long.py": request.text, "src/other.py": LONG[:500]}), "tiny")
    first = build_prompt(request, memory.tokenizer, engine.vocabulary).first_line
    assert first % WINDOW_LINES != 1, "a window of recall reaches into the prompt's"
    completion = engine.complete(request)
    own = [snippet for snippet in completion.memory.snippets if snippet.path == "src/long.py"]
    assert all(snippet.end_line < first for snippet in own)
    assert bool(own) != changed
    assert completion.memory.snippets
