"""Encoding: which tokens are stored, where they stand, and that nothing but path and text decides what is stored."""

from __future__ import annotations

from dataclasses import replace
from itertools import takewhile
from random import Random

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import tiny_model, tiny_tokenizer

from codemem.errors import CodememError
from codemem.memory.entries import Entries
from codemem.memory.states import turn
from codemem.models.encode import SINKS, EncodingWindow, encode, plan, transformers_reader
from codemem.models.interface import attention_modules
from codemem.models.probe import find_sites
from codemem.models.tokenizer import header_tokens, tokenize
from codemem.texts import Text

MODEL, TOKENIZER = tiny_model(), tiny_tokenizer()
SITES = find_sites(MODEL, (1, 2), 300)
SMALL = EncodingWindow(size=48, overlap=16)
CODE = "\n".join(f"def function_{i}(x):\n    y = x * {i}\n    return y\n" for i in range(12))


def encoded(*texts: Text, window: EncodingWindow = SMALL, batch_tokens: int = 4096):
    return encode(transformers_reader(MODEL, SITES), TOKENIZER, SITES, texts, window=window, batch_tokens=batch_tokens)


texts = st.text(alphabet=st.sampled_from("abdef (:)\n\n\t.é漢😀\r\u2028\u00a0"), max_size=300)


@settings(max_examples=80, deadline=None)
@given(
    texts=st.lists(texts, min_size=1, max_size=3),
    size=st.integers(1, 80),
    overlap=st.integers(0, 60),
    batch_tokens=st.integers(1, 400),
)
def test_every_token_is_stored_exactly_once_whatever_the_windows(texts, size, overlap, batch_tokens):
    documents = [Text(f"{number}.py", text) for number, text in enumerate(texts)]
    stored = [[] for _ in documents]
    for batch in plan(TOKENIZER, documents, EncodingWindow(size, overlap), batch_tokens):
        assert len(batch) == 1 or max(len(window.ids) for window in batch) * len(batch) <= batch_tokens
        for window in batch:
            assert window.context < len(window.ids), "a window stores something"
            stored[window.document].append((window.start, window.ids[window.context :]))
    for document, pieces in zip(documents, stored, strict=True):
        ids, position = tokenize(TOKENIZER, document.text)[0], 0
        for start, new in sorted(pieces):
            assert start == position, "no token is left out, and none is stored twice"
            assert new == ids[start : start + len(new)]
            position += len(new)
        assert position == len(ids)


def test_every_window_starts_with_the_path_then_what_was_stored_before():
    document = Text("a/b.py", CODE)
    ids, header = tokenize(TOKENIZER, CODE)[0], header_tokens(TOKENIZER, "a/b.py")
    windows = [window for batch in plan(TOKENIZER, [document], SMALL) for window in batch]
    assert len(windows) > 5
    for window in windows:
        assert window.ids[: len(header)] == header
        context = window.context - len(header)
        assert context == min(SMALL.overlap, window.start)
        assert window.ids[len(header) :] == ids[window.start - context :][: len(window.ids) - len(header)]
        assert len(window.ids) <= SMALL.size


def test_the_path_is_a_comment_of_its_language():
    assert TOKENIZER.decode(header_tokens(TOKENIZER, "src/a b.py")) == "# src/a b.py\n"
    assert TOKENIZER.decode(header_tokens(TOKENIZER, "src/main.RS")) == "// src/main.RS\n"
    assert TOKENIZER.decode(header_tokens(TOKENIZER, "Makefile")) == "# Makefile\n"


def cuts(text: str, window: EncodingWindow) -> list[int]:
    """The characters at which windows after the first begin."""
    starts = tokenize(TOKENIZER, text)[1]
    return sorted(int(starts[w.start]) for batch in plan(TOKENIZER, [Text("f.py", text)], window) for w in batch)[1:]


def test_a_window_ends_where_a_line_does():
    window = EncodingWindow(size=180, overlap=16)
    found = cuts(CODE, window)
    assert len(found) >= 3 and all("\n" in CODE[cut - 1 : cut + 1] for cut in found)
    assert len(cuts("x" * 500, window)) >= 3, "a line longer than a window is cut anywhere"


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), line=st.integers(0, 399), count=st.integers(1, 4))
def test_an_edit_moves_the_windows_around_it_and_no_others(seed, line, count):
    random = Random(seed)
    lines = [f"x{random.randrange(10**4)} = {random.randrange(10**4)}\n" for _ in range(400)]
    window = EncodingWindow(size=150, overlap=20)
    edited = [*lines[:line], *(f"new{n}\n" for n in range(count)), *lines[line:]]
    added = len("".join(edited)) - len("".join(lines))
    before, after = cuts("".join(lines), window), cuts("".join(edited), window)
    assert len(before) > 40
    same = list(takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False)))
    behind = [(one + added, other) for one, other in zip(reversed(before), reversed(after), strict=False)]
    same += takewhile(lambda pair: pair[0] == pair[1], behind)
    assert len(before) - len(same) <= 4


def test_a_text_that_is_read_in_part_has_the_windows_of_the_whole():
    (whole,) = encoded(Text("a.py", CODE))
    starts = tokenize(TOKENIZER, CODE)[1]
    for until in (0, 1, 100, 101, 333, len(CODE)):
        (part,) = encoded(Text("a.py", CODE, until=until))
        count = int((starts < until).sum())
        assert part.tokens.tolist() == whole.tokens[:count].tolist()
        assert part.windows == tuple(start for start in whole.windows if start < count)
        for layer in SITES:
            torch.testing.assert_close(part.layers[layer], whole.layers[layer][:count], rtol=1e-4, atol=1e-4)


def test_attention_sinks_are_never_stored():
    """The first positions of a window are the path's; where the path is shorter, the first tokens are not stored."""
    assert len(header_tokens(TOKENIZER, "")) == SINKS - 1
    (short,) = encoded(Text("", CODE))
    (long,) = encoded(Text("a.py", CODE))
    ids = tokenize(TOKENIZER, CODE)[0]
    assert long.tokens.tolist() == ids
    assert short.tokens.tolist() == ids[1:]
    assert all(len(tensor) == len(ids) - 1 for tensor in short.layers.values())
    assert len(short.lines) == len(short.columns) == len(ids) - 1


def test_shapes_and_types_are_those_of_the_model():
    (entries,) = encoded(Text("a.py", CODE))
    n = len(tokenize(TOKENIZER, CODE)[0])
    assert {layer: tuple(tensor.shape) for layer, tensor in entries.layers.items()} == {
        layer: (n, site.kv_heads, 2, site.d) for layer, site in SITES.items()
    }
    assert {tensor.dtype for tensor in entries.layers.values()} == {MODEL.dtype}
    assert {t.dtype for t in (entries.tokens, entries.lines, entries.columns)} == {torch.int32}
    assert len(encoded(Text("empty.py", ""))[0]) == 0
    assert encoded() == []


def test_what_is_stored_is_what_one_pass_over_the_document_computes():
    """With one window for all, entry i is key and value of token i; the rotary embedding left no trace in the key."""
    seen, attention = {}, attention_modules(MODEL)
    hooks = [
        attention[layer].k_proj.register_forward_hook(
            lambda _m, _a, out, layer=layer: seen.__setitem__((layer, 0), out)
        )
        for layer in SITES
    ]
    hooks += [
        attention[layer].v_proj.register_forward_hook(
            lambda _m, _a, out, layer=layer: seen.__setitem__((layer, 1), out)
        )
        for layer in SITES
    ]
    header = header_tokens(TOKENIZER, "a.py")
    with torch.no_grad():
        MODEL(input_ids=torch.tensor([header + tokenize(TOKENIZER, CODE)[0]]))
    for hook in hooks:
        hook.remove()
    (entries,) = encoded(Text("a.py", CODE), window=EncodingWindow(4096, 256))
    for layer, site in SITES.items():
        for which in (0, 1):
            expected = seen[layer, which][0, len(header) :].view(-1, site.kv_heads, site.d)
            torch.testing.assert_close(entries.layers[layer][:, :, which], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch_tokens", [1, 100, 200, 4096])
def test_neither_batches_nor_neighbours_change_what_is_stored(batch_tokens):
    documents = [Text("a.py", CODE), Text("b.py", CODE[:90]), Text("c.py", "x = 1\n"), Text("d.py", "")]
    alone = [encoded(document)[0] for document in documents]
    together = encoded(*documents, batch_tokens=batch_tokens)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.tokens, other.tokens)
        for layer in SITES:
            torch.testing.assert_close(one.layers[layer], other.layers[layer], rtol=1e-3, atol=1e-3)


def test_path_and_text_before_change_what_is_stored():
    (one,), (other,) = encoded(Text("a.py", CODE)), encoded(Text("b.py", CODE))
    assert not torch.allclose(one.layers[2], other.layers[2], atol=1e-3)


def test_final_hidden_states_are_what_the_output_layer_gets():
    seen = []
    hook = MODEL.lm_head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    ids, header = tokenize(TOKENIZER, CODE[:40])[0], header_tokens(TOKENIZER, "a.py")
    with torch.no_grad():
        MODEL(input_ids=torch.tensor([header + ids]))
    hook.remove()
    states = encoded(Text("a.py", CODE[:40]))[0].states
    expected = turn(seen[0][0, len(header) :])
    step = states.scales.unsqueeze(-1)
    assert len(states) == len(ids)
    assert ((states.decode() - expected).abs() <= 0.51 * step).all(), "8 bits are off by half a step at most"


@settings(max_examples=200, deadline=None)
@given(text=texts)
@example("a\n\n\tb")
@example("😀 x\n  é")
@example("\n\n  ")
def test_lines_and_columns_are_those_of_the_first_visible_character(text):
    (entries,) = encoded(Text("a.py", text), window=EncodingWindow(4096, 0))
    starts = tokenize(TOKENIZER, text)[1].tolist()
    assert len(entries) == len(starts)
    lines = text.split("\n")
    for start, line, column in zip(starts, entries.lines.tolist(), entries.columns.tolist(), strict=True):
        visible = next((i for i in range(start, len(text)) if not text[i].isspace()), start)
        assert line == text.count("\n", 0, visible) + 1
        assert column == visible - (text.rfind("\n", 0, visible) + 1) + 1
        assert column <= len(lines[line - 1]) + 1
        if not text[visible].isspace():
            assert lines[line - 1][column - 1] == text[visible]


def test_special_tokens_in_a_text_are_text():
    text = "a = '<|end|>'\n"
    (entries,) = encoded(Text("a.py", text))
    assert TOKENIZER.eos_token_id not in entries.tokens.tolist()
    assert TOKENIZER.decode(entries.tokens) == text


def test_a_tokenizer_without_offsets_is_refused_by_name():
    class Slow:
        pass

    with pytest.raises(CodememError, match="Slow cannot say where its tokens stand"):
        tokenize(Slow(), "text")


# What an earlier version's windows computed.

BLOCKS = [f"def f{n}():\n" + "".join(f"    x = {n * i * 7 % 31}\n" for i in range(30)) for n in range(1, 9)]


def versioned(blocks: list[str], before: Entries | None = None) -> tuple[Entries, int]:
    """The entries of a module, and how many windows were computed for them."""
    computed = []
    text = Text("some/longer/path.py", "".join(blocks))
    (entries,) = encode(
        transformers_reader(MODEL, SITES),
        TOKENIZER,
        SITES,
        [text],
        window=EncodingWindow(220, 40),
        batch_tokens=1,
        before=[before],
        pause=lambda: computed.append(1),
    )
    return entries, len(computed)


@pytest.mark.parametrize(
    ("edit", "most"),
    [
        (lambda b: b, 0),
        (lambda b: [*b[:3], b[3].replace("x = ", "yy = ", 1), *b[4:]], 3),
        (lambda b: [*b[:3], b[3] + "    more = 1\n", *b[4:]], 3),
        (lambda b: [*b[:7], b[7] + "    return x\n"], 1),
        (lambda b: [*b, "def g():\n    pass\n"], 2),
        (lambda b: [*b[:2], *b[3:]], 6),
    ],
)
def test_only_windows_that_changed_are_computed_again(edit, most):
    before, windows = versioned(BLOCKS)
    assert windows == len(before.windows) >= 16 and before.windows[0] == 0
    after, computed = versioned(edit(BLOCKS), before)
    fresh, _ = versioned(edit(BLOCKS))
    assert computed <= most
    assert after.windows == fresh.windows
    assert torch.equal(after.tokens, fresh.tokens) and torch.equal(after.lines, fresh.lines)
    torch.testing.assert_close(after.layers, fresh.layers, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after.states.decode(), fresh.states.decode(), rtol=2e-2, atol=2e-2)


def test_a_version_whose_windows_are_not_known_is_computed_again():
    before, windows = versioned(BLOCKS)
    assert versioned(BLOCKS, replace(before, windows=()))[1] == windows
