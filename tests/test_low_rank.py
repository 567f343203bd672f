"""Low-rank updates: they act where memory is read and nowhere else, and are trained with the gates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import CONFIGS, tiny_model, tiny_tokenizer

from codemem.errors import CodememError
from codemem.models.adapter import load_adapter, uniform_adapter
from codemem.models.low_rank import untrained
from codemem.models.memorizing import MemorizingModel
from codemem.texts import Text
from codemem.training.gates import GateTraining, Step, pieces

TOKENIZER = tiny_tokenizer()
LAYERS, HEADS, RANK = (1, 2), 6, 3
SEPARATE = sorted(set(CONFIGS) - {"phi3", "gpt-neox"})
KNOWN = "".join(f"def part_{n}(value):\n    return value + {n}\n\n\n" for n in range(12))
ASKED = "import parts\n\nprint(parts.part_7(3), parts.part_2(1))\n" * 4


def updates_of(architecture: str = "llama", *, changing: bool = True) -> dict[str, torch.Tensor]:
    """Updates from layer 1 on."""
    tensors = untrained(tiny_model(architecture), LAYERS[0], RANK, seed=0)
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(tensor.shape, generator=generator) if changing and name.endswith("up") else tensor
        for name, tensor in tensors.items()
    }


def memorizing(architecture: str = "llama", low_rank: dict[str, torch.Tensor] | None = None) -> MemorizingModel:
    adapter = replace(uniform_adapter(LAYERS, HEADS, k=16), low_rank=low_rank or {})
    return MemorizingModel(tiny_model(architecture), TOKENIZER, adapter)


def ids_of(text: str) -> torch.Tensor:
    return TOKENIZER(text, return_tensors="pt").input_ids


@torch.no_grad()
def logits(model: MemorizingModel, last: int | None = None) -> torch.Tensor:
    with model.reads(tokens=False, last=last):
        return model(input_ids=ids_of(ASKED)).logits[0]


@pytest.mark.parametrize("architecture", SEPARATE)
def test_an_empty_memory_leaves_the_model_as_it_was(architecture):
    model = memorizing(architecture, updates_of(architecture))
    with torch.no_grad():
        plain = tiny_model(architecture)(input_ids=ids_of(ASKED)).logits[0]
    assert torch.equal(logits(model), plain)
    model.remember(KNOWN)
    assert not torch.allclose(logits(model), plain)
    model.forget("memory")
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("architecture", SEPARATE)
def test_updates_that_are_not_trained_yet_change_nothing(architecture):
    model, updated = memorizing(architecture), memorizing(architecture, updates_of(architecture, changing=False))
    for each in (model, updated):
        each.remember(KNOWN)
    assert torch.equal(logits(updated), logits(model))


def test_an_update_is_the_product_added_to_the_projection():
    low_rank = updates_of()
    model = memorizing(low_rank=low_rank)
    model.remember(KNOWN)
    merged = memorizing()
    for layer in range(LAYERS[0], 4):
        attention = merged.base.model.layers[layer].self_attn
        for name in ("q_proj", "o_proj"):
            change = low_rank[f"{layer}.{name}.up"] @ low_rank[f"{layer}.{name}.down"]
            with torch.no_grad():
                getattr(attention, name).weight += change
    merged.bank = model.bank
    assert torch.allclose(logits(model), logits(merged), atol=1e-3, rtol=1e-3)


def test_only_positions_that_read_memory_are_updated():
    model = memorizing(low_rank=updates_of())
    model.remember(KNOWN)
    with torch.no_grad(), model.reads(attention=False, tokens=False):
        plain = model(input_ids=ids_of(ASKED)).logits[0]
    read = logits(model, last=5)
    assert torch.allclose(read[:-5], plain[:-5], atol=1e-4) and not torch.allclose(read[-5:], plain[-5:], atol=1e-2)


def test_what_is_memorised_does_not_depend_on_them():
    model, updated = memorizing(), memorizing(low_rank=updates_of())
    updated.remember(KNOWN, "first.py")
    (expected,), (found,) = (each.encode([Text("b.py", ASKED)]) for each in (model, updated))
    assert all(torch.equal(found.layers[layer], expected.layers[layer]) for layer in LAYERS)
    assert torch.equal(found.states.codes, expected.states.codes)


def test_detached_they_are_gone():
    model = memorizing(low_rank=updates_of())
    model.remember(KNOWN)
    base = model.detach()
    with torch.no_grad():
        assert torch.equal(base(input_ids=ids_of(ASKED)).logits, tiny_model()(input_ids=ids_of(ASKED)).logits)


@pytest.mark.parametrize("architecture", ["phi3", "gpt-neox"])
def test_a_model_without_a_query_projection_of_its_own_is_refused(architecture):
    name = type(tiny_model(architecture)).__name__
    with pytest.raises(CodememError, match=f"{name} has no q_proj of its own") as refused:
        untrained(tiny_model(architecture), 1, RANK, seed=0)
    assert refused.value.hint.startswith("adapt it without them")


def test_updates_of_another_model_are_refused():
    with pytest.raises(CodememError, match=r"no projection 9\.q_proj"):
        memorizing(low_rank={"9.q_proj.down": torch.zeros(3, 48), "9.q_proj.up": torch.zeros(48, 3)})


def test_an_adapter_keeps_them(tmp_path):
    adapter = replace(uniform_adapter(LAYERS, HEADS), low_rank=updates_of())
    adapter.save(tmp_path / "a.safetensors")
    found = load_adapter(tmp_path / "a.safetensors").low_rank
    assert found.keys() == adapter.low_rank.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in adapter.low_rank.items())


def training_of(steps: int) -> GateTraining:
    model = memorizing(low_rank=updates_of(changing=False))
    model.remember(KNOWN)
    (piece, *_) = pieces(model, "use.py", ASKED, 96, 48)
    return GateTraining(model, model.bank, [Step(piece)] * steps, low_rank_rate=0.01)


def test_training_changes_them_and_lowers_the_loss():
    training = training_of(12)
    losses = [training.advance() for _ in range(12)]
    assert losses[-1] < losses[0] - 0.05
    assert all(update.abs().max() > 0 for update in training.model.low_rank.tensors().values())
    assert all(parameter.grad is None for parameter in training.model.base.parameters())


def test_training_that_was_cut_goes_on_to_the_same_updates():
    whole, first, second = (training_of(4) for _ in range(3))
    for _ in range(4):
        whole.advance()
    for _ in range(2):
        first.advance()
    second.restore(first.state())
    while not second.finished:
        second.advance()
    expected, found = whole.state(), second.state()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
