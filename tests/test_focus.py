"""What attention searches of a large memory: what token memory votes for, and nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model, tiny_tokenizer

from codemem.completion import recall
from codemem.completion.engine import ASK_AFTER, Engine
from codemem.completion.prompt import build_prompt
from codemem.completion.request import Request
from codemem.memory.bank import Bank
from codemem.memory.banks import STRIDE, Banks
from codemem.memory.entries import Entries
from codemem.memory.focus import Focus
from codemem.models.memorizing import MemorizingModel

SHAPES = {2: (2, 4)}
TOKENIZER = tiny_tokenizer()
DOCUMENTS = {
    f"src/{name}.py": "".join(f"def {name}_{i}(x):\n    return {name}(x, {i})\n\n" for i in range(30))
    for name in ("alpha", "beta", "gamma", "delta")
}
SMALL = 400  # entries that attention searches in these tests


def entries_of(count: int, seed: int, per_line: int = 3) -> Entries:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.arange(count, dtype=torch.int32)
    layers = {layer: torch.randn(count, kv, 2, d, generator=generator) for layer, (kv, d) in SHAPES.items()}
    return Entries(numbers, numbers // per_line + 1, numbers % per_line + 1, layers)


@pytest.fixture
def engine(monkeypatch) -> Engine:
    monkeypatch.setattr(recall, "FOCUS", SMALL)
    monkeypatch.setattr(recall, "MARGIN", 4)
    model = MemorizingModel(tiny_model(), TOKENIZER)
    for path, text in DOCUMENTS.items():
        model.remember(text, path)
    assert len(model.bank) > 4 * SMALL
    return Engine(model, "tiny")


def asked_at(text: str, **more) -> Request:
    """The cursor is at the bar."""
    offset = text.index("|")
    return Request(**{"path": "src/new.py", "text": text.replace("|", ""), "offset": offset, "max_tokens": 4, **more})


def attended(engine: Engine, request: Request, monkeypatch) -> tuple[set[tuple[str, int]], list[Focus | None]]:
    """The lines that attention read, and what it searched at each pass."""
    lines, searched = set(), []
    model = engine.model
    for layer in model.layers.values():
        inner = layer._nearest

        def noted(query, inner=inner):
            found = inner(query)
            rows = found[2][found[2] >= 0].unique().tolist()
            lines.update(model.bank.lines(rows))
            searched.append(model.reading.focus)
            return found

        monkeypatch.setattr(layer, "_nearest", noted)
    engine.complete(request)
    return lines, searched


# The search.


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(4, 60), queries=st.integers(1, 80), k=st.integers(1, 4))
def test_the_nearest_are_those_of_a_dense_search(seed, count, queries, k):
    generator = torch.Generator().manual_seed(seed)
    bank = Bank(SHAPES)
    bank.add("a.py", entries_of(100, seed))
    rows = torch.randperm(100, generator=generator)[:count].sort().values
    focus, asked = Focus(bank, rows), torch.randn(2, queries, 3, 4, generator=generator)
    keys, values, found = focus.nearest(2, asked, k)
    assert keys.shape == values.shape == (2, queries, 3, k, 4) and found.shape == (2, queries, 3, k)
    stored = bank.entries("a.py").layers[2].double()
    asked, keys, values, found = (x.flatten(1, 2) for x in (asked, keys, values, found))
    for head in range(2):
        scores = asked[head].double() @ stored[rows, head, 0].T
        assert torch.isin(found[head], rows).all() and all(len(set(each)) == k for each in found[head].tolist())
        reached = (asked[head].double().unsqueeze(1) @ stored[found[head], head, 0].transpose(1, 2)).squeeze(1)
        torch.testing.assert_close(reached, scores.topk(k, dim=1).values, rtol=0, atol=1e-5)  # of equals any
        torch.testing.assert_close(keys[head].double(), stored[found[head], head, 0])
        torch.testing.assert_close(values[head].double(), stored[found[head], head, 1])


def test_what_is_found_for_a_query_does_not_depend_on_the_others():
    bank = Bank({2: (2, 64)}, torch.bfloat16)
    layers = {2: torch.randn(3000, 2, 2, 64, generator=torch.Generator().manual_seed(0)).bfloat16()}
    numbers = torch.arange(3000, dtype=torch.int32)
    bank.add("a.py", Entries(numbers, numbers + 1, numbers, layers))
    asked = torch.randn(2, 48, 3, 64, generator=torch.Generator().manual_seed(1))
    focus = Focus(bank, torch.arange(3000))
    together = focus.nearest(2, asked, 32)[2]
    for place in range(48):
        assert torch.equal(focus.nearest(2, asked[:, place : place + 1], 32)[2][:, 0], together[:, place])


# Rows of lines.


def test_rows_are_those_of_the_lines_that_may_be_read():
    bank = Bank(SHAPES)
    bank.add("a.py", entries_of(30, 1))
    bank.add("b.py", entries_of(30, 2))
    assert bank.rows("b.py", 3, 4).tolist() == list(range(36, 42))
    assert bank.rows("b.py", -7, 1).tolist() == [30, 31, 32] and bank.rows("b.py", 10, 99).tolist() == [57, 58, 59]
    with bank.hiding("b.py", 4):
        assert bank.rows("b.py", 3, 4).tolist() == [36, 37, 38] and bank.rows("b.py", 4, 9).tolist() == []
    bank.evict(40, "fifo")
    assert bank.rows("a.py", 1, 10).tolist() == list(range(20, 30))


def test_rows_of_several_banks():
    bank, other = Bank(SHAPES), Bank(SHAPES)
    bank.add("a.py", entries_of(30, 1))
    other.add("c.py", entries_of(30, 2))
    banks = Banks(bank, {"../other/": other})
    assert banks.rows("a.py", 1, 1).tolist() == [0, 1, 2]
    assert banks.rows("../other/c.py", 2, 2).tolist() == [2 * STRIDE + row for row in (3, 4, 5)]
    banks.write("a.py", entries_of(6, 3))
    assert banks.rows("a.py", 1, 9).tolist() == [STRIDE + row for row in range(6)]
    rows = torch.cat((banks.rows("a.py", 1, 9), banks.rows("../other/c.py", 1, 9)))
    focus, asked = Focus(banks, rows), torch.randn(2, 3, 1, 4)
    keys, _, found = focus.nearest(2, asked, 5)
    assert set(found.flatten().tolist()) <= set(rows.tolist())
    torch.testing.assert_close(keys.flatten(1, 3), banks.read(2, found.flatten(1))[0])


# The choice.


def test_a_small_memory_is_searched_whole(engine):
    model = engine.model
    votes = {("src/alpha.py", 1): 1.0}
    assert not len(recall.focus(model.bank, {})), "a large one is not, where nothing is voted for"
    for path in list(DOCUMENTS)[1:]:
        model.bank.drop(path)
    while len(model.bank) > SMALL:
        model.remember(DOCUMENTS["src/alpha.py"][:SMALL], "src/alpha.py")
    assert recall.focus(model.bank, votes) is None


def test_windows_are_taken_by_their_votes_with_lines_around_them(engine):
    bank = engine.model.bank
    focus = recall.focus(bank, {("src/beta.py", 41): 0.5, ("src/alpha.py", 1): 0.4, ("src/gamma.py", 1): 0.1})
    assert focus.windows == {("src/beta.py", 41), ("src/alpha.py", 1)}, "then there are enough"
    lines = {path: {line for each, line in bank.lines(focus.rows.tolist()) if each == path} for path in DOCUMENTS}
    visible = {line for line in range(37, 65) if line % 3}
    assert lines["src/beta.py"] - visible <= {36, 66} and visible <= lines["src/beta.py"]
    assert min(lines["src/alpha.py"]) == 1 and max(lines["src/alpha.py"]) in (23, 24, 25)
    assert not lines["src/gamma.py"] and not lines["src/delta.py"]
    assert focus.share({("src/beta.py", 41): 3.0, ("src/delta.py", 1): 1.0}) == 0.75
    with bank.hiding("src/beta.py", 45):
        some = recall.focus(bank, {("src/beta.py", 41): 1.0})
        assert max(line for _, line in bank.lines(some.rows.tolist())) == 44
    with bank.hiding("src/beta.py"):
        assert not len(recall.focus(bank, {("src/beta.py", 41): 1.0})), "nothing of it may be read"


# In the engine.


@pytest.mark.parametrize("wanted", [True, False])
def test_attention_reads_what_is_voted_for_and_nothing_else(engine, monkeypatch, wanted):
    text = DOCUMENTS["src/beta.py"][:300] + "def more(x):\n    return beta|\n"
    lines, searched = attended(engine, asked_at(text, recall=wanted), monkeypatch)
    (focus,) = set(searched)
    assert focus is not None and SMALL <= len(focus) < len(engine.model.bank)
    allowed = set(engine.model.bank.lines(focus.rows.tolist()))
    assert lines and lines <= allowed
    best = max(focus.windows, key=lambda window: sum(path == window[0] for path, _ in focus.windows))
    assert best[0] == "src/beta.py", "the text repeats it"


def test_without_attention_nothing_is_chosen_for_it(engine, monkeypatch):
    request = asked_at("beta|\n", attention=False)
    assert attended(engine, request, monkeypatch) == (set(), [])
    assert engine._recalled.focus is None
    assert attended(engine, asked_at("beta|\n", attention=False, recall=False), monkeypatch) == (set(), [])


def test_where_nothing_is_voted_for_attention_reads_nothing(engine):
    model, ids = engine.model, list(b"def beta(x):\n    return x")
    assert recall.large(model.bank)
    with model.reads(attention=False, tokens=False):
        plain = model.decoder().read(ids)
        theirs = model(input_ids=torch.tensor([ids])).logits
    with model.reads(tokens=False) as reading:
        reading.focus = recall.focus(model.bank, {})
        assert torch.equal(model.decoder().read(ids), plain)
        assert torch.equal(model(input_ids=torch.tensor([ids])).logits, theirs)


def test_no_index_of_all_keys_is_made_for_a_completion(engine):
    bank = engine.model.bank
    bank.build()
    engine.complete(asked_at(DOCUMENTS["src/beta.py"][:300] + "beta|\n"))
    assert not bank.indexes and [type(index) for index in bank.built] == [type(bank.states.index)]


def test_a_document_that_left_memory_is_searched_no_more(engine, monkeypatch):
    request = asked_at(DOCUMENTS["src/beta.py"][:300] + "beta|\n")
    first, _ = attended(engine, request, monkeypatch)
    assert "src/beta.py" in {path for path, _ in first}
    engine.model.bank.drop("src/beta.py")
    engine.forget()
    second, _ = attended(engine, request, monkeypatch)
    assert second and "src/beta.py" not in {path for path, _ in second}


@pytest.mark.parametrize("changed", [False, True])
def test_of_the_document_itself_only_what_stands_before_the_window(engine, monkeypatch, changed):
    """Also where the cursor goes up again."""
    text, path = DOCUMENTS["src/beta.py"], "src/beta.py"
    for line in (80, 79, 50):
        offset = len("\n".join(text.split("\n")[:line]))
        request = Request(path, text, offset, max_tokens=3, context=100, changed=changed)
        first = engine._prompt(request).first_line
        engine.forget()
        lines, searched = attended(engine, request, monkeypatch)
        own = {number for each, number in lines if each == path}
        assert not own if changed else all(number < first for number in own)
        assert None not in searched


def test_a_prompt_read_in_advance_is_not_read_again_where_attention_asks(engine):
    """Without snippets too, whose prompt is the one that is completed."""
    request = asked_at("".join(DOCUMENTS.values())[:900] + "alpha_3(|", recall=False)
    expected = Engine(engine.model, "tiny").complete(request).text
    engine.prepare(request)
    ids = build_prompt(request, TOKENIZER, engine.vocabulary).ids
    decoder = engine._cache._held[request.path, "asking"].decoder
    assert decoder.tokens == ids[: -recall.POSITIONS]
    passes, states = [], decoder.states
    decoder.states = lambda new, last=1: passes.append(len(new)) or states(new, last)
    assert engine.complete(request).text == expected
    assert passes[0] == recall.POSITIONS and sum(passes) < 200


def test_typing_on_keeps_what_is_searched(engine, monkeypatch):
    text = DOCUMENTS["src/gamma.py"][:300] + "def m(x):\n    return "
    seen = []
    for typed in ("g", "ga", "gamma(x, 1)\n    " + "gamma(x, 2)\n" * 2):
        engine.forget()
        _, searched = attended(engine, asked_at(text + typed + "|\n"), monkeypatch)
        seen.append(searched[-1])
    assert seen[0] is seen[1], "few tokens were typed"
    assert seen[2] is seen[0], "asked again, and still right"
    assert len(TOKENIZER("gamma(x, 1)").input_ids) >= ASK_AFTER
    _, searched = attended(engine, asked_at(DOCUMENTS["src/delta.py"][:400] + "|\n"), monkeypatch)
    assert searched[-1] is not seen[0]


@pytest.mark.parametrize("wanted", [True, False])
def test_what_is_kept_between_requests_changes_no_answer(engine, wanted):
    """An engine that has answered before, against one that has not."""
    text = DOCUMENTS["src/alpha.py"][:200] + "def more(x):\n    return "
    for typed in ("a", "al", "alpha(", "alpha(x, 1) + bet", "alpha(x, 1) + beta(x, 2) + gamma("):
        request = asked_at(text + typed + "|\n", recall=wanted)
        engine._recalled = None
        warm = engine.complete(request)
        fresh = Engine(engine.model, "tiny").complete(request)
        assert warm.text == fresh.text
