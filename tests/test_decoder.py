"""Our own forward pass against transformers', packed weights, the cache, and drafts that change nothing."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CONFIGS, four_bit, tiny_model, tiny_tokenizer
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from codemem.completion.decode import Clock, decode
from codemem.completion.draft import Chance, worth
from codemem.completion.engine import Engine
from codemem.completion.prefix_cache import PrefixCache
from codemem.completion.prompt import Prompt
from codemem.completion.request import Request
from codemem.completion.scripted import ScriptedDecoder, scripted_model
from codemem.completion.vocabulary import Vocabulary
from codemem.memory.focus import Focus
from codemem.models.decoder import TransformersDecoder
from codemem.models.encode import transformers_reader
from codemem.models.llama import LlamaDecoder
from codemem.models.memorizing import MemorizingModel
from codemem.models.packed import GROUP, MOST_ROWS, Matrix, Packed, pack
from codemem.models.shape import shape_of
from codemem.native.library import compiler

TOKENIZER = tiny_tokenizer()
VOCABULARY = Vocabulary(TOKENIZER)
SOURCE = "".join(f"def area_{i}(width, height):\n    return width * height * {i}\n\n\n" for i in range(6))
OWN = sorted(name for name in CONFIGS if shape_of(CONFIGS[name].to_dict()))
SIZES = {
    "vocab_size": 261,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": 260,
    "tie_word_embeddings": False,
}


def ids(count: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 250, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def four_bit_model(kind: str = "llama") -> MemorizingModel:
    torch.manual_seed(1)
    classes = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    }
    config, model = classes[kind]
    base = model(config(**SIZES)).bfloat16().eval()
    with torch.no_grad():
        for module in base.model.layers.modules():
            if isinstance(module, nn.Linear):
                module.weight.copy_(four_bit(module.weight * 4))
                if module.bias is not None:
                    module.bias.normal_(0, 0.3)
    return MemorizingModel(base, TOKENIZER)


def by_pytorch(model: MemorizingModel) -> None:
    """Let it compute as where there is no C compiler."""
    model.decoder()
    for matrix in model._weights.matrices:
        matrix.packed = pack([layer.weight for layer in matrix.layers], tiled=False)
    model._weights.compiled = False


def test_it_is_for_llama_mistral_and_qwen_and_for_no_sliding_windows():
    assert OWN == ["llama", "llama-mqa", "llama-yarn", "qwen2", "qwen3"]
    assert isinstance(MemorizingModel(tiny_model("mistral"), TOKENIZER).decoder(), TransformersDecoder)
    assert isinstance(MemorizingModel(tiny_model("qwen2"), TOKENIZER).decoder(), LlamaDecoder)


@pytest.mark.parametrize("pieces", [[40], [1] * 12, [25, 1, 7, 1, 3], [3, 30, 16, 17]])
@pytest.mark.parametrize("remembered", [False, True], ids=["no memory", "memory"])
@pytest.mark.parametrize("architecture", OWN)
def test_it_computes_what_transformers_does(architecture, remembered, pieces):
    """Whatever the pieces a text comes in; with memory where they are the same, since their last positions read it."""
    model = MemorizingModel(tiny_model(architecture), TOKENIZER)
    if remembered:
        model.remember(SOURCE, "shapes.py")
    text = ids(sum(pieces))
    own, theirs, at = model.decoder(), TransformersDecoder(model), 0
    with model.reads(last=8, traced=True) as reading:
        for count in pieces:
            last = min(3, count)
            mine = own.read(text[at : at + count], last)
            mine_read, mine_tokens = reading.trace[:], reading.token_trace[:]
            reading.trace.clear(), reading.token_trace.clear()
            expected = theirs.read(text[at : at + count], last)
            torch.testing.assert_close(mine, expected, rtol=1e-3, atol=2e-3)
            for (rows, weights), (their_rows, their_weights) in zip(mine_read, reading.trace, strict=True):
                torch.testing.assert_close(weights[:, -1], their_weights[:, -1], rtol=1e-3, atol=1e-4)
                assert torch.equal(rows[:, -1], their_rows[:, -1])
            assert len(mine_tokens) == (last if remembered else 0)
            reading.trace.clear(), reading.token_trace.clear()
            at += count
            assert own.tokens == theirs.tokens == text[:at]
    torch.testing.assert_close(own.states(ids(5), 5), theirs.states(ids(5), 5), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("gate", ["joint", "sigmoid"])
def test_both_gates_are_as_in_transformers(gate):
    model = MemorizingModel(tiny_model(), TOKENIZER)
    for each in model.gates.values():
        each.kind = gate
        each.bias.data.normal_(0, 1)
        each.temperature.data.uniform_(0.5, 2)
    model.remember(SOURCE, "shapes.py")
    own, theirs = model.decoder(), TransformersDecoder(model)
    torch.testing.assert_close(own.read(ids(30), 4), theirs.read(ids(30), 4), rtol=1e-3, atol=2e-3)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 40)), min_size=1, max_size=6))
def test_what_was_forgotten_leaves_nothing_behind(steps):
    model = MODEL
    decoder = model.decoder()
    for number, (count, kept) in enumerate(steps):
        decoder.read(ids(count, number))
        decoder.crop(kept)
    held = list(decoder.tokens)
    fresh = model.decoder()
    fresh.read([*held, 7]) if not held else (fresh.read(held), fresh.read([7]))
    after = decoder.read([7])
    again = model.decoder().read([*held, 7])
    torch.testing.assert_close(after, again, rtol=1e-3, atol=2e-3)
    assert decoder.tokens == [*held, 7]


MODEL = MemorizingModel(tiny_model(), TOKENIZER)


# Weights of four bits.


LAYOUTS = pytest.mark.parametrize(
    "tiled",
    [
        pytest.param(False, id="for PyTorch"),
        pytest.param(True, id="tiled", marks=pytest.mark.skipif(not compiler(), reason="there is no C compiler")),
    ],
)


def as_multiplied(x: torch.Tensor, tiled: bool) -> torch.Tensor:
    """The numbers that are multiplied for x, float64: those of tiles are rounded to 8 bits."""
    if not tiled:
        return x.double()
    groups = x.float().view(len(x), -1, GROUP)
    step = groups.abs().amax(-1, keepdim=True) / 127
    return ((groups / step.clamp(min=1e-30)).round().double() * step.double()).view(x.shape)


def assert_multiplies(packed: Packed, weight: torch.Tensor) -> None:
    """By some rows, as in float64 but for what bf16 rounds; each row by itself, bit by bit."""
    x = torch.randn(19, weight.shape[1], generator=torch.Generator().manual_seed(1)).bfloat16()
    found = packed.multiply(x)
    expected = as_multiplied(x, packed.tiled) @ weight.double().T
    torch.testing.assert_close(found.double(), expected, rtol=2**-7, atol=2**-5 * float(expected.std()))
    assert torch.equal(torch.cat([packed.multiply(row[None]) for row in x]), found)


@LAYOUTS
def test_what_has_four_bits_is_packed_as_it_is(tiled):
    weight = four_bit(torch.randn(48, 96, generator=torch.Generator().manual_seed(0)))
    packed = pack([weight], tiled)
    assert packed.halves == 1
    assert_multiplies(packed, weight)
    assert pack([weight.float()], tiled) is None
    assert pack([weight[:, :48].contiguous()], tiled) is None, "no whole groups"
    assert pack([weight[:40]], tiled) is None, "the kernel wants sixteens"
    assert pack([weight[:40], weight[:8]], tiled) is not None
    assert pack([torch.zeros(16, 32).bfloat16()], tiled) is not None


@LAYOUTS
def test_four_bits_are_found_where_some_levels_have_no_number(tiled):
    """As Q4_K has them: a group's numbers need not take the lowest and the highest level."""
    codes = torch.randint(2, 15, (48, 3, 32), generator=torch.Generator().manual_seed(0)).float()
    codes[..., 0], codes[..., 1] = 2, 14  # 12 steps apart
    weight = (codes * 0.013 - 0.05).flatten(1).bfloat16()
    packed = pack([weight], tiled)
    assert packed.halves == 1
    assert_multiplies(packed, weight)


def written(packed: Packed, size: int) -> torch.Tensor:
    """The matrix that is multiplied by, [outputs, size]."""
    return torch.cat([packed.multiply(row[None]) for row in torch.eye(size).bfloat16()]).float().T


@LAYOUTS
@pytest.mark.parametrize("extreme", [127, -16], ids=["Q8_0", "Q5_0"])
def test_what_has_eight_or_five_bits_is_packed_as_it_is(extreme, tiled):
    """Apart from what bf16 rounds of a scale, of the number, and of the two that are added."""
    least, most = sorted((extreme, -extreme - (extreme < 0)))
    steps = torch.randint(least, most + 1, (48, 3, 32), generator=torch.Generator().manual_seed(0)).float()
    steps[..., 0] = extreme
    scales = torch.tensor([0.01, -0.0007, 0.0]).half().float()[:, None]
    weight = (steps * scales).flatten(1).bfloat16()
    packed = pack([weight[:16], weight[16:]], tiled)
    assert packed is not None and packed.halves == 2
    off = (written(packed, 96) - weight.float()).abs()
    step = scales.abs().expand(3, 32).flatten()
    assert (off <= 0.06 * step + 2**-7 * weight.float().abs() + 1e-12).all()
    assert packed.codes[0].numel() == weight.numel() // 2
    assert_multiplies(packed, weight)


@LAYOUTS
def test_other_weights_are_rounded_to_eight_bits(tiled):
    weight = torch.randn(48, 96, generator=torch.Generator().manual_seed(0)).bfloat16()
    packed = pack([weight[:16], weight[16:]], tiled)
    assert packed is not None and packed.halves == 2
    step = weight.float().view(48, 3, 32).abs().amax(-1, keepdim=True).expand(48, 3, 32).flatten(1) / 127
    off = (written(packed, 96) - weight.float()).abs()
    assert (off <= 0.6 * step + 2**-7 * weight.float().abs()).all()
    assert (off**2).mean().sqrt() < 0.01 * weight.float().std()
    assert_multiplies(packed, written(packed, 96))


@LAYOUTS
def test_linear_layers_as_one(tiled):
    layers = [nn.Linear(64, 32, bias=bias).bfloat16() for bias in (True, False, True)]
    for layer in layers:
        layer.weight.data = four_bit(layer.weight.data)
    matrix, x = Matrix(*layers), torch.randn(5, 64).bfloat16()
    with torch.no_grad():
        expected = torch.cat([layer(x) for layer in layers], dim=-1)
        torch.testing.assert_close(matrix(x), expected)
        matrix.packed = pack([layer.weight for layer in layers], tiled)
        assert matrix.packed is not None
        torch.testing.assert_close(matrix(x), expected, rtol=3e-2, atol=3e-2)


NEEDS_COMPILER = pytest.mark.skipif(not compiler(), reason="there is no C compiler")
KINDS = pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
READS = pytest.mark.parametrize("read", ["nothing", "memory", "a focus"])


def reading_model(kind: str, read: str) -> MemorizingModel:
    model = four_bit_model(kind)
    if read != "nothing":
        model.remember(SOURCE, "shapes.py")
    if read == "a focus":
        model.reading.focus = Focus(model.bank, torch.arange(0, len(model.bank), 2))
    return model


@NEEDS_COMPILER
@KINDS
@READS
def test_a_position_is_the_same_alone_and_with_others(kind, read):
    """Bit by bit: on that stands that drafts change nothing."""
    decoder = reading_model(kind, read).decoder()
    assert decoder.weights.compiled and decoder.together == MOST_ROWS
    text = ids(150)
    for start in (3, 55, 63, 100):
        decoder.crop(0)
        decoder.read(text[:start])
        alone = torch.cat([decoder.read([token]) for token in text[start : start + MOST_ROWS]])
        for count in (2, 5, 8, MOST_ROWS):
            decoder.crop(start)
            assert torch.equal(decoder.read(text[start : start + count], count), alone[:count])


@LAYOUTS
@KINDS
@READS
def test_packed_weights_compute_what_transformers_does(kind, read, tiled):
    """But for what is rounded; with more positions than one compiled pass reads, and a few."""
    model = reading_model(kind, read)
    if not tiled:
        by_pytorch(model)
    decoder, expected, text = model.decoder(), TransformersDecoder(model), ids(220)
    assert decoder.weights.compiled == tiled and (decoder.together > 1) == tiled
    for start, end, last in ((0, 150, 5), (150, 158, 8), (158, 190, 1), (190, 220, 20)):
        found, theirs = (each.read(text[start:end], last) for each in (decoder, expected))
        assert (found - theirs).abs().max() < 0.05 * theirs.abs().max()
        assert decoder.tokens == text[:end]


WIDE = pytest.mark.parametrize("wide", [False, True])


@NEEDS_COMPILER
@WIDE
@KINDS
@READS
def test_a_long_text_is_read_as_fast_as_the_processor_can(kind, read, wide):
    """Where it has a unit for products of matrices, by PyTorch; the positions that read memory as everywhere."""
    model = reading_model(kind, read)
    decoder, expected, text = model.decoder(), TransformersDecoder(model), ids(400)
    decoder.weights.wide = wide
    for start, end, last in ((0, 250, 5), (250, 253, 3), (253, 400, 64), (0, 30, 30), (30, 300, 60)):
        for each in (decoder, expected):
            each.crop(start)
        found, theirs = (each.read(text[start:end], last) for each in (decoder, expected))
        assert (found - theirs).abs().max() < 0.05 * theirs.abs().max()
        assert decoder.tokens == text[:end]
    with model.reads(attention=False, tokens=False):
        found, theirs = (each.states(text[300:], 100) for each in (decoder, expected))
    assert found.shape == theirs.shape and (found - theirs).abs().max() < 0.05 * theirs.abs().max()


@NEEDS_COMPILER
@WIDE
@pytest.mark.parametrize(("count", "last"), [(1, 1), (64, 64), (65, 3), (150, 100), (200, 1), (220, 215)])
@READS
def test_traces_are_of_the_last_positions(read, count, last, wide):
    """However many passes they are read by."""
    model = reading_model("llama", read)
    decoder = model.decoder()
    decoder.weights.wide = wide
    with model.reads(traced=True) as reading:
        reading.states = []
        assert decoder.read(ids(count), last).shape[0] == last
        assert reading.states[0].shape[1] == last
        expected = len(model.layers) if read != "nothing" else 0
        assert len(reading.trace) == expected
        assert all(len(weights.sum(-1).unique()) > 0 and torch.isfinite(weights).all() for _, weights in reading.trace)


@NEEDS_COMPILER
@KINDS
def test_what_is_recorded_is_what_transformers_records(kind):
    """But for what is rounded."""
    model, texts = four_bit_model(kind), [ids(150), ids(7, 1)]
    decoder = model.decoder()
    decoder.read(ids(20, 2))  # of another text
    for text, (layers, final) in zip(texts, transformers_reader(model.base, model.sites).read(texts), strict=True):
        found, states = decoder.record(text, model.sites)
        assert found.keys() == layers.keys()
        for one, other in ((states, final), *((found[layer], layers[layer]) for layer in layers)):
            assert one.shape == other.shape and one.dtype == other.dtype
            assert (one - other).float().norm() < 0.05 * other.float().norm()


# Drafts.


def generated(model: MemorizingModel, prompt: list[int], count: int, drafts: int) -> tuple[list[int], Clock, list]:
    clock = Clock()
    with model.reads(traced=True) as reading:
        steps = decode(
            model, model.decoder(), VOCABULARY, Prompt(prompt, b"", 1, 0), drafts=drafts, clock=clock, line=False
        )
        tokens = [step.token for step in islice(steps, count)]
        return tokens, clock, [*reading.token_trace]


@NEEDS_COMPILER
@pytest.mark.parametrize("seed", range(12))
def test_drafts_change_nothing(seed):
    model = FOUR_BIT
    prompt = TOKENIZER(SOURCE[: 200 + 17 * seed]).input_ids + ids(seed, seed)
    plain, _, trace = generated(model, prompt, 60, 0)
    drafted, clock, drafted_trace = generated(model, prompt, 60, 7)
    assert drafted == plain
    assert clock.drafted >= clock.accepted
    for (rows, weights), (other_rows, other_weights) in zip(trace[: len(plain)], drafted_trace, strict=False):
        assert torch.equal(rows, other_rows) and torch.equal(weights, other_weights)


FOUR_BIT = four_bit_model()
FOUR_BIT.remember(SOURCE, "shapes.py")


@pytest.mark.parametrize(
    ("chance", "most", "drafted"),
    [
        (Chance(0.0, 0.0), 7, 0),
        (Chance(0.15, 0.3), 7, 0),
        (Chance(0.26, 0.65), 7, 1),
        (Chance(0.4, 0.1), 7, 1),
        (Chance(0.5, 0.7), 7, 2),
        (Chance(0.9, 0.9), 7, 5),
        (Chance(0.95, 0.95), 7, 6),
        (Chance(0.95, 0.95), 4, 4),
        (Chance(0.95, 0.95), 0, 0),
        (Chance(1.0, 1.0), 20, 7),
    ],
)
def test_as_much_is_drafted_as_saves_time(chance, most, drafted):
    assert worth(chance, most) == drafted


def test_what_was_written_before_is_a_draft_and_saves_passes():
    model = scripted_model(SOURCE)
    model.remember(SOURCE, "shapes.py")
    vocabulary = Vocabulary(model.tokenizer)
    prompt = Prompt(model.tokenizer("# a.py\n" + SOURCE[:40]).input_ids, b"", 1, 0)
    decoder, clock = model.decoder(), Clock()
    decoder.together = 8  # random weights are not packed; what the script says does not depend on it
    with model.reads(traced=True):
        steps = list(islice(decode(model, decoder, vocabulary, prompt, drafts=7, clock=clock), 120))
    assert b"".join(step.text for step in steps).decode() == SOURCE[40:160]
    assert clock.accepted > 60 and clock.passes < 60


@pytest.mark.parametrize("written", [SOURCE[40:], SOURCE[40:90] + "not so", "other", ""])
def test_what_was_about_to_be_written_is_a_draft_and_changes_nothing(written):
    model = scripted_model(SOURCE)
    vocabulary, clock = Vocabulary(model.tokenizer), Clock()
    prompt = Prompt(model.tokenizer("# a.py\n" + SOURCE[:39]).input_ids, SOURCE[39:40].encode(), 1, 0)
    decoder = model.decoder()
    decoder.together = 8
    steps = decode(
        model, decoder, vocabulary, prompt, drafts=7, clock=clock, written=(SOURCE[39:40] + written).encode()
    )
    assert b"".join(step.text for step in islice(steps, 40)).decode() == SOURCE[40:79]
    right = len(written) if SOURCE[40:].startswith(written) else 50 if written.startswith(SOURCE[40:90]) else 0
    assert clock.accepted >= min(right, 30)
    assert clock.passes <= 40 - clock.accepted


def test_typing_on_goes_on_where_the_completion_before_was_given_up(monkeypatch):
    model, passes, shown = scripted_model(SOURCE), [], []
    decoder, read = type(model).decoder, ScriptedDecoder.read

    def drafting(model):
        made = decoder(model)
        made.together = 8
        return made

    monkeypatch.setattr(type(model), "decoder", drafting)
    monkeypatch.setattr(ScriptedDecoder, "read", lambda *args: passes.append(1) or read(*args))
    engine, start = Engine(model, "scripted"), SOURCE.index("return") + 7
    asked = Request("a.py", SOURCE[:start], start)
    given_up = engine.complete(asked, cancelled=lambda: len(shown) > 18, show=shown.append)
    assert (given_up.text, given_up.reason) == ("", "cancelled")
    typed = Request("a.py", SOURCE[: start + 1], start + 1)
    passes.clear()
    assert engine.complete(typed).text == "idth * height * 0"
    few = len(passes)
    passes.clear()
    assert Engine(model, "scripted").complete(typed).text == "idth * height * 0"
    assert few < len(passes) / 2


# What was read stays in the cache.


def test_typing_on_costs_the_new_tokens_and_an_edit_those_from_it_on():
    cache = PrefixCache(MODEL)
    text = ids(50)
    assert cache.decoder("a", text).tokens == []
    cache.decoder("a", text).read(text)
    assert cache.decoder("a", [*text, 1, 2]).tokens == text
    assert cache.decoder("a", text).tokens == text[:-1], "the last is read again, for its logits"
    assert cache.decoder("a", [*text[:20], 255, *text[21:]]).tokens == text[:20]
    assert cache.decoder("b", text).tokens == []
    assert cache.decoder("a", text).tokens == text[:20]


def test_what_was_read_is_read_again_when_memory_changed():
    model = MemorizingModel(tiny_model(), TOKENIZER)
    model.remember(SOURCE, "shapes.py")
    cache, text = PrefixCache(model), ids(30)
    cache.decoder("a", text).read(text)
    with model.reads(attention=False):
        assert cache.decoder("a", text).tokens == []
        cache.decoder("a", text).read(text)
    assert cache.decoder("a", text).tokens == []
    cache.decoder("a", text).read(text)
    model.forget("shapes.py")
    assert cache.decoder("a", text).tokens == []


def test_what_did_not_read_memory_stays_when_memory_changes():
    """Of a long prompt only the last positions read it."""
    model = MemorizingModel(tiny_model(), TOKENIZER)
    model.remember(SOURCE, "shapes.py")
    engine, end = Engine(model, "tiny"), len(SOURCE)
    held = []
    decoder = engine._cache.decoder

    def watched(purpose, ids):
        found = decoder(purpose, ids)
        held.append(len(found.tokens))
        return found

    engine._cache.decoder = watched
    last, before = model.reading.last, 0
    for number in range(4):
        text = SOURCE + "x = 1\n" * number
        asked = Request("a.py", text, end + 6 * number, max_tokens=4, recall=False)
        warm = engine.complete(asked).text
        length = len(engine._prompt(asked).ids)
        assert warm == Engine(model, "tiny").complete(asked).text
        if number in (1, 2):
            assert before - last <= held[-1] <= length - last, "memory had changed"
        elif number == 3:
            assert held[-1] >= before, "it had not"
        before = length
        if number < 2:
            model.remember(SOURCE[: 100 * (number + 1)], "other.py")
    with model.reads(attention=False):
        assert 0 < len(decoder(("a.py", "asking"), engine._prompt(asked).ids).tokens) < length


def test_the_decoder_that_was_used_longest_ago_is_taken_for_another_document():
    cache, text = PrefixCache(MODEL), ids(10)
    for name in "abcd":
        cache.decoder(name, text).read(text)
    cache.decoder("a", text)
    cache.decoder("e", text).read(text)
    assert cache.decoder("a", text).tokens and not cache.decoder("b", text).tokens


def test_a_warm_engine_completes_as_a_cold_one():
    """Token memory does not change what is in the cache."""
    warm = Engine(MODEL, "tiny")
    for end in range(60, 120, 3):
        asked = Request("a.py", SOURCE[:end], end, attention=False, max_tokens=8)
        assert warm.complete(asked).text == Engine(MODEL, "tiny").complete(asked).text
