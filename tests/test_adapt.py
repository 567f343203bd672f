"""Making adapters: the scan against finite differences, a head that must be found, runs that are cut and go on, which
documents are in memory, and which adapter a model gets."""

from __future__ import annotations

import shutil
import stat
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import CONFIGS, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from cli.adapt import CORPUS
from codemem.errors import CodememError
from codemem.memory.manifest import FOLDER
from codemem.models.adapter import (
    GATE,
    Signature,
    find_adapter,
    load_adapter,
    own_adapter_path,
    own_adapters,
    signature_of,
    uniform_adapter,
)
from codemem.models.interface import attention_modules, handlers
from codemem.models.loading import LoadedModel
from codemem.models.memorizing import MemorizingModel
from codemem.models.memory_layer import ReadingLayer
from codemem.texts import Text
from codemem.training.adapt import Options, adapt
from codemem.training.corpus import Budget, Repository, neighbourhood, split
from codemem.training.gates import drawn, focus_of, full_pieces, loss, pieces
from codemem.training.scan import (
    BIASES,
    CLOSED_BIAS,
    Scan,
    ScanLayer,
    choose_layers,
    scan,
    scan_piece,
    slopes,
    starting_bias,
)

TOKENIZER = tiny_tokenizer()
LAYERS = (0, 1, 2, 3)
HEADS = 6


def code(number: int, lines: int = 40) -> str:
    body = "".join(f"    total = total * {number} + width_{line % 7}\n" for line in range(lines))
    return f"def part_{number}(width, height):\n{body}    return total\n"


def repository(name: str, first: int, count: int, *, distractor: bool = False) -> Repository:
    texts = tuple(Text(f"pkg/part_{n}.py", code(n)) for n in range(first, first + count))
    return Repository(name, texts, distractor)


REPOSITORIES = (repository("one", 0, 8), repository("two", 100, 8), repository("far", 200, 4, distractor=True))
SMALL = Options(
    layers=2,
    k=8,
    steps=4,
    joint_steps=4,
    low_rank_steps=3,
    context=128,
    scored=64,
    scan_pieces=3,
    scan_entries=800,
    mixture_pieces=4,
    development_pieces=3,
    budget=Budget(memory=6_000, distractors=2_000, training=6_000, development=4_000),
)


def loaded(seed: int = 0, weights: str = "w" * 64) -> LoadedModel:
    return LoadedModel(tiny_model(seed=seed), TOKENIZER, "tiny", weights)


@pytest.fixture
def scanned():
    """A model of four memory layers with something in memory, and a piece of another document."""
    model = MemorizingModel(tiny_model(), TOKENIZER, uniform_adapter(LAYERS, HEADS, k=16))
    model.remember(code(1), "pkg/part_1.py")
    piece = list(pieces(model, "pkg/part_2.py", code(2), 96, 48))[2]
    return model, piece


# The scan.


def loss_with(model, piece, switches) -> float:
    """switches: layer -> [heads, positions]."""

    def make(layer):
        reader = ReadingLayer(model.sites[layer], model.gates[layer], model.bank, model.reading)
        return ScanLayer(reader, switches[layer])

    modules = {layer: module for layer, module in attention_modules(model.base).items() if layer in model.sites}
    with torch.no_grad(), model.reads(tokens=False, last=piece.scored + 1), handlers(modules, make):
        return float(loss(model, piece))


def test_slopes_are_those_of_the_loss(scanned):
    """For every head when it opens everywhere, and for one at every position alone."""
    model, piece = scanned
    slope, logit = slopes(model, piece)
    assert slope.shape == logit.shape == (4, HEADS, piece.scored)
    assert slope.abs().max() > 1e-3, "the memory of a random model changes something"
    step, places = 1e-2, [(layer, head, slice(None)) for layer in LAYERS for head in range(HEADS)]
    places += [(1, 2, slice(place, place + 1)) for place in range(0, piece.scored, 5)]
    for layer, head, where in places:
        values = []
        for sign in (1, -1):
            switches = {number: torch.zeros(HEADS, piece.scored + 1) for number in LAYERS}
            switches[layer][head, :-1][where] = sign * step
            values.append(loss_with(model, piece, switches))
        found = (values[1] - values[0]) / (2 * step) * piece.scored
        assert found == pytest.approx(float(slope[layer, head][where].sum()), abs=1e-2 + 0.02 * abs(found))


def test_gain_is_the_slope_less_the_curvature_at_every_bias(scanned):
    model, piece = scanned
    slope, logit = slopes(model, piece)
    gain, mass = scan_piece(model, piece)
    for place, bias in enumerate(BIASES):
        share = 1 / (1 + torch.exp(-(logit + 2 + bias)))  # the untrained gate's bias is -2
        assert torch.allclose(mass[place], share.mean(-1), atol=1e-6)
        expected = share * slope - (share * slope) ** 2 / 2
        assert torch.allclose(gain[place], expected.mean(-1), atol=1e-6)
    assert (mass.diff(dim=0) > 0).all(), "a higher bias gives memory more"


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2", "gemma3", "gpt-neox"])
def test_a_head_that_is_switched_to_its_share_reads_as_a_memory_layer_does(architecture):
    model = MemorizingModel(tiny_model(architecture), TOKENIZER, uniform_adapter((2,), HEADS, k=16))
    model.remember(code(1), "pkg/part_1.py")
    piece = list(pieces(model, "pkg/part_2.py", code(2), 96, 48))[2]
    with torch.no_grad(), model.reads(tokens=False, last=piece.scored + 1):
        expected = float(loss(model, piece))
    slope, logit = slopes(model, piece)
    share = torch.nn.functional.pad(torch.sigmoid(logit[0]), (0, 1))
    assert loss_with(model, piece, {2: share}) == pytest.approx(expected, abs=1e-4)
    assert loss_with(model, piece, {2: 0 * share}) != pytest.approx(expected, abs=1e-4)
    assert slope.abs().max() > 0


def test_mass_is_the_share_of_attention_that_memory_takes(scanned):
    """In the first layer, to which no other memory layer comes first, that is what every position tells by itself."""
    model, piece = scanned
    _, mass = scan_piece(model, piece)
    assert ((mass > 0) & (mass < 1)).all()
    length, shares = piece.ids.shape[1], []
    for end in range(length - piece.scored, length):
        with torch.no_grad(), model.reads(tokens=False, last=1, traced=True) as reading:
            model(input_ids=piece.ids[:, :end], use_cache=False)
            shares.append(reading.trace[0][1][:, -1].sum(dim=-1))
    assert torch.allclose(mass[BIASES.index(-2.0)][0], torch.stack(shares).mean(dim=0), atol=1e-5)


def test_a_scan_leaves_the_memory_layers_as_they_were(scanned):
    model, piece = scanned
    with torch.no_grad(), model.reads(tokens=False):
        before = model(input_ids=piece.ids).logits
    scan_piece(model, piece)
    with torch.no_grad(), model.reads(tokens=False):
        assert torch.equal(model(input_ids=piece.ids).logits, before)


def model_of_one_head(layer: int, head: int):
    """A decoder in which nothing but this head adds to the embeddings. It attends evenly, and it says: as many capitals
    as I see will come."""
    model = AutoModelForCausalLM.from_config(deepcopy(CONFIGS["llama"])).eval()
    capitals = torch.tensor(TOKENIZER.convert_tokens_to_ids(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")))
    capital = -torch.ones(model.config.vocab_size)
    capital[capitals] = 1
    with torch.no_grad():
        for block in model.model.layers:
            for weight in (block.mlp.down_proj, block.self_attn.o_proj, block.self_attn.q_proj, block.self_attn.v_proj):
                weight.weight.zero_()
            block.self_attn.v_proj.weight[:, 0] = 1
        model.model.embed_tokens.weight[:, 0] = capital
        model.model.embed_tokens.weight[:, 1] = 0
        model.model.layers[layer].self_attn.o_proj.weight[1, head * 8 : (head + 1) * 8] = 0.1
        model.lm_head.weight.zero_()
        model.lm_head.weight[:, 1] = capital
    return model


def test_the_head_that_memory_helps_is_found():
    model = MemorizingModel(model_of_one_head(2, 4), TOKENIZER, uniform_adapter(LAYERS, HEADS))
    model.remember("ABCDEFGHIJKLMNOPQRSTUVWXYZ" * 4, "capitals.py")
    # Nothing before it tells that there will be capitals; memory does.
    cut = [list(pieces(model, "a.py", "x" * 64 + word * 8, 96, 32))[-1] for word in ("WIDE", "HIGH", "AREA")]
    found = scan(model, cut, lambda done, total: None)
    assert found.gain[2, 4] > 0.01
    elsewhere = torch.ones(4, HEADS, dtype=torch.bool)
    elsewhere[2, 4] = False
    assert found.gain[elsewhere].abs().max() == 0
    assert choose_layers(found, 1) == choose_layers(found, 4) == (2,)
    bias = starting_bias(found, 2).tolist()
    assert bias[4] == found.bias[2, 4] - 1 and set(bias[:4] + bias[5:]) == {CLOSED_BIAS}


def test_layers_are_chosen_by_the_sum_of_heads_that_surely_gain():
    gain = torch.tensor([[0.5, -9.0], [0.3, 0.3], [0.9, 0.0], [0.0, 0.1]])
    error = torch.tensor([[0.1, 0.1], [0.1, 0.1], [1.0, 0.1], [0.1, 0.05]])
    found = Scan(gain, error, torch.zeros(4, 2), torch.zeros(4, 2))
    assert choose_layers(found, 1) == (1,)
    assert choose_layers(found, 2) == (0, 1)
    assert choose_layers(found, 9) == (0, 1, 3), "layer 2 gains no more than its error"
    assert choose_layers(Scan(gain - 10, error, gain, gain), 2) == (2,), "where nothing helps, the least bad"


# The corpus.


def test_a_document_that_is_predicted_is_not_in_memory_even_under_another_name():
    copied = Repository("copy", (*REPOSITORIES[0].texts, *repository("copy", 300, 6).texts))
    corpus = split((*REPOSITORIES, copied), SMALL.budget, 0)
    remembered = {text.text for _, text in corpus.memory}
    training, development = ({text.text for _, text in part} for part in (corpus.training, corpus.development))
    assert not remembered & (training | development) and not training & development
    assert len(remembered) == len(corpus.memory) == len({name for name, _ in corpus.memory})
    assert min(map(len, (remembered, training, development))) > 1
    far = {text.text for text in REPOSITORIES[2].texts}
    assert far & remembered and not far & (training | development)
    assert {name.split("/")[0] for name, _ in corpus.memory} == {"one", "two", "far", "copy"}


def test_a_document_is_named_with_its_repository():
    corpus = split(REPOSITORIES, SMALL.budget, 0)
    for part in (corpus.memory, corpus.training, corpus.development):
        for name, text in part:
            (inside,) = [each for each in REPOSITORIES if each.name == name.split("/")[0]]
            assert text in inside.texts


def test_a_split_is_the_same_for_the_same_seed_only():
    budget = SMALL.budget
    assert split(REPOSITORIES, budget, 0) == split(REPOSITORIES, budget, 0)
    assert split(REPOSITORIES, budget, 0).digest != split(REPOSITORIES, budget, 1).digest
    shuffled = (replace(REPOSITORIES[0], texts=REPOSITORIES[0].texts[::-1]), *REPOSITORIES[1:])
    assert split(shuffled, budget, 0) == split(REPOSITORIES, budget, 0)
    changed = replace(REPOSITORIES[0], texts=(Text("pkg/part_0.py", code(999)), *REPOSITORIES[0].texts[1:]))
    assert split((changed, *REPOSITORIES[1:]), budget, 0).digest != split(REPOSITORIES, budget, 0).digest


def test_a_corpus_that_is_too_small_or_named_twice_is_refused():
    with pytest.raises(CodememError, match="too few documents"):
        split([repository("one", 0, 2)], SMALL.budget, 0)
    with pytest.raises(CodememError, match="too few documents"):
        split([repository("far", 0, 20, distractor=True)], SMALL.budget, 0)
    with pytest.raises(CodememError, match="are called one"):
        split([repository("one", 0, 8), repository("one", 10, 8)], SMALL.budget, 0)


def test_a_neighbourhood_is_a_run_of_documents_of_enough_bytes():
    sizes = [10] * 20
    for seed in "abcdef":
        chosen = neighbourhood(sizes, 45, seed)
        assert len(chosen) == 5 and chosen == sorted(set(chosen))
        gaps = [b - a for a, b in pairwise(chosen)]
        assert gaps.count(1) >= 3, "next to each other, or around the end"
    assert neighbourhood(sizes, 1000, "a") == list(range(20))
    assert neighbourhood([], 10, "a") == []
    assert len({tuple(neighbourhood(sizes, 45, seed)) for seed in "abcdef"}) > 1


def test_pieces_are_drawn_once_before_they_are_drawn_again():
    assert sorted(drawn(range(5), 5, "s")) == list(range(5))
    assert sorted(drawn(range(3), 7, "s"))[:6].count(1) >= 2
    assert drawn(range(50), 9, "s") == drawn(range(50), 9, "s") != drawn(range(50), 9, "t")
    assert drawn([], 3, "s") == []


# The whole.


def same(one, other) -> bool:
    kinds = (*GATE, "mixture", "low_rank", "scan")
    named = [{(kind, name): t for kind in kinds for name, t in getattr(a, kind).items()} for a in (one, other)]
    words = [(a.layers, a.recipe, a.development, a.corpus, a.signature) for a in (one, other)]
    return (
        words[0] == words[1]
        and named[0].keys() == named[1].keys()
        and all(torch.equal(tensor, named[1][name]) for name, tensor in named[0].items())
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapt")
    return adapt(loaded(), REPOSITORIES, SMALL, folder), folder


def test_an_adapter_says_how_it_was_made_and_what_it_is_worth(whole):
    adapter, folder = whole
    assert len(adapter.layers) == 2 and adapter.k == 8 and adapter.name == "tiny"
    assert adapter.corpus == ("one", "two", "far")
    assert adapter.recipe["steps"] == "4" and int(adapter.recipe["entries"]) > 3000
    assert adapter.scan["gain"].shape == (4, HEADS)
    start = {layer: starting_bias(Scan(**adapter.scan), layer) for layer in adapter.layers}
    assert any(not torch.equal(adapter.bias[layer], start[layer]) for layer in adapter.layers), "gates were trained"
    figures = adapter.development
    assert figures["scored"] == 3 * 64
    assert len({figures[name] for name in ("none", "attention_untrained", "attention", "tokens", "both")}) == 5
    assert figures["both"] < figures["none"], "the documents are alike, so that memory helps"
    assert not (folder / FOLDER).exists(), "the entries are not kept"
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in folder.iterdir())


@pytest.mark.parametrize("rank", [0, 2])
def test_the_figures_are_those_of_the_model_with_the_adapter(whole, tmp_path, rank):
    adapter, folder = whole
    if rank:
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        seen = []
        adapter = adapt(loaded(), REPOSITORIES, replace(SMALL, rank=rank), tmp_path, lambda *step: seen.append(step[0]))
        assert not {"scanning heads", "training gates"} & set(seen), "what comes before updates is kept"
        assert adapter.low_rank["3.q_proj.up"].abs().max() > 0
    model = MemorizingModel(tiny_model(), TOKENIZER, adapter)
    corpus = split(REPOSITORIES, SMALL.budget, 0)
    for name, text in corpus.memory:
        (entries,) = model.encode([text])
        model.bank.add(name, entries)
    available = full_pieces(model, [text for _, text in corpus.development], 128, 64)
    cut = [piece for _, piece in drawn(available, 3, "development 0")]
    for key, attention, tokens in (
        ("none", False, False),
        ("attention", True, False),
        ("tokens", False, True),
        ("both", True, True),
    ):
        values = []
        for piece in cut:
            with torch.no_grad(), model.reads(attention=attention, tokens=tokens, last=65) as reading:
                reading.focus = focus_of(model, piece, model.decoder()) if attention else None
                values.append(float(loss(model, piece)))
        value = sum(values) / len(cut)
        assert adapter.development[key] == pytest.approx(value, abs=1e-3), key


def test_the_same_seed_gives_the_same_adapter_bit_by_bit(whole, tmp_path):
    assert same(whole[0], adapt(loaded(), REPOSITORIES, SMALL, tmp_path / "a"))
    assert not same(whole[0], adapt(loaded(), REPOSITORIES, replace(SMALL, seed=1), tmp_path / "b"))


STAGES = [
    "encoding for the scan",
    "scanning heads",
    "encoding memory",
    "training gates",
    "reading for the mixture",
    "measuring",
]


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_was_cut_goes_on_to_the_same_adapter(whole, tmp_path, stage):
    def cut(name, done, total):
        if name == stage and done >= total // 2:
            raise KeyboardInterrupt

    seen = []
    with pytest.raises(KeyboardInterrupt):
        adapt(loaded(), REPOSITORIES, SMALL, tmp_path, cut)
    adapter = adapt(loaded(), REPOSITORIES, SMALL, tmp_path, lambda *step: seen.append(step))
    assert same(adapter, whole[0])
    derived = ("encoding for the scan", "encoding memory")  # banks, which are made again from what is kept, or not
    before = {name for name in STAGES[: STAGES.index(stage)] if name not in derived}
    assert not before & {name for name, _, _ in seen}, "what was finished is not done again"
    if stage == "training gates":
        assert min(done for name, done, _ in seen if name == stage) == 2


def test_what_is_finished_is_not_computed_again_and_another_recipe_is(whole, tmp_path):
    shutil.copytree(whole[1], tmp_path, dirs_exist_ok=True)
    seen = []
    assert same(adapt(loaded(), REPOSITORIES, SMALL, tmp_path, lambda *step: seen.append(step[0])), whole[0])
    assert seen == []
    (tmp_path / "mixture.safetensors").write_bytes(b"damaged")
    assert same(adapt(loaded(), REPOSITORIES, SMALL, tmp_path, lambda *step: seen.append(step[0])), whole[0])
    assert "training the mixture" in seen and "training gates" not in seen
    for other in (
        lambda: adapt(loaded(seed=1, weights="x" * 64), REPOSITORIES, SMALL, tmp_path),
        lambda: adapt(loaded(), REPOSITORIES[:2], SMALL, tmp_path),
        lambda: adapt(loaded(), REPOSITORIES, replace(SMALL, steps=5), tmp_path),
    ):
        assert not same(other(), whole[0])
    assert same(adapt(loaded(), REPOSITORIES, SMALL, tmp_path), whole[0])


# Files, and which of them a model gets.


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CODEMEM_CACHE", str(tmp_path / "cache"))


def test_an_adapter_made_before_there_was_a_discount_is_read_as_it_was(whole, tmp_path):
    whole[0].save(tmp_path / "new.safetensors")
    with safe_open(tmp_path / "new.safetensors", "pt") as file:
        kept = {name: file.get_tensor(name) for name in file.keys() if "discount" not in name}  # noqa: SIM118 - not a dict
        save_file(kept, tmp_path / "old.safetensors", file.metadata())
    nothing = {layer: torch.zeros(HEADS) for layer in whole[0].layers}
    assert same(load_adapter(tmp_path / "old.safetensors"), replace(whole[0], discount=nothing))


def test_an_adapter_comes_back_from_its_file(whole, tmp_path):
    path = tmp_path / "a.safetensors"
    whole[0].save(path)
    back = load_adapter(path)
    assert same(back, whole[0])
    assert (back.signature, back.k, back.angle, back.gate, back.name) == (
        signature_of(tiny_model().config.to_dict(), "w" * 64),
        8,
        1024,
        "joint",
        "tiny",
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(CodememError, match="cannot be written"):
        whole[0].save(tmp_path / "no such folder" / "a.safetensors")


def test_the_adapter_of_a_model_is_that_of_its_weights_else_of_its_shape(whole, cache):
    mine = signature_of(tiny_model().config.to_dict(), "w" * 64)
    assert find_adapter(mine) is None
    variant, other = replace(mine, weights="v" * 64), replace(mine, weights="w" * 64, num_hidden_layers=5)
    for name, signature in (("variant", variant), ("mine", mine)):
        adapter = replace(whole[0], name=name, signature=signature)
        adapter.save(own_adapter_path("hub/tiny", signature))
    found = find_adapter(mine)
    assert (found.adapter.name, found.same_weights) == ("mine", True)
    assert found.path.name == "hub--tiny-wwwwwwwwwwww.safetensors"
    found.path.unlink()
    found = find_adapter(mine)
    assert (found.adapter.name, found.same_weights) == ("variant", False)
    assert find_adapter(replace(other, weights="u" * 64)) is None


def test_a_damaged_adapter_of_the_user_is_named(cache):
    file = own_adapters() / "tiny-123.safetensors"
    file.write_bytes(b"not an adapter")
    with pytest.raises(CodememError, match=r"tiny-123\.safetensors is not a readable adapter"):
        find_adapter(signature_of(tiny_model().config.to_dict(), "w"))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("smollm2-135m", ("llama", 576, 30, 9, 3, 49152)),
        ("qwen2.5-coder-0.5b-instruct", ("qwen2", 896, 24, 14, 2, 151936)),
    ],
)
def test_the_shipped_gates_belong_to_every_variant_of_their_model(cache, name, shape):
    signature = Signature("another quantisation", *shape)
    found = find_adapter(signature)
    assert found.path.name == f"{name}.safetensors" and not found.same_weights
    assert find_adapter(found.adapter.signature).same_weights
    assert find_adapter(replace(signature, num_hidden_layers=32)) is None
    assert found.adapter.corpus[:3] == CORPUS
