"""What a repository goes through, on a GPU where there is one: the same as on the processor."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from test_adapt import REPOSITORIES, SMALL, loaded
from test_decoder import SOURCE, TOKENIZER
from tiny import tiny_model

from codemem.completion.engine import Engine
from codemem.completion.request import Request
from codemem.memory.banks import Banks
from codemem.models.memorizing import MemorizingModel
from codemem.texts import Text
from codemem.training.adapt import adapt

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
TEXTS = [Text(f"package/area_{n}.py", SOURCE.replace("area", f"area_{n}")) for n in range(40)]


def on(device: str) -> MemorizingModel:
    return MemorizingModel(tiny_model().to(device), TOKENIZER)


def test_what_is_remembered_and_found_is_the_same():
    here, there = on("cuda"), on("cpu")
    for model in (here, there):
        for text, entries in zip(TEXTS, model.encode(TEXTS), strict=True):
            model.bank.add(text.path, entries)
    assert here.bank.device.type == "cuda"
    for layer in here.shapes:
        keys, values = (part.cpu() for part in here.bank.read(layer, torch.arange(len(here.bank)).expand(2, -1)))
        theirs = there.bank.read(layer, torch.arange(len(there.bank)).expand(2, -1))
        torch.testing.assert_close(keys, theirs[0], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(values, theirs[1], rtol=1e-3, atol=1e-3)
    queries = torch.randn(5, here.state_size)
    with here.bank.hiding("package/area_3.py", 2), there.bank.hiding("package/area_3.py", 2):
        rows, similarity = here.bank.nearest(queries.cuda(), 8)
        _, expected = there.bank.nearest(queries, 8)
        torch.testing.assert_close(similarity.cpu(), expected, rtol=0, atol=0.02)
        places = [here.bank.place(row) for row in rows.flatten().tolist()]
        assert not any(place.path == "package/area_3.py" and place.line >= 2 for place in places)


@pytest.mark.parametrize("several", [False, True], ids=["a bank", "several"])
def test_completions_read_a_large_memory_and_say_whence(several):
    model = on("cuda")
    for text, entries in zip(TEXTS, model.encode(TEXTS), strict=True):
        model.bank.add(text.path, entries)
    assert len(model.bank) > 8_192  # so that attention searches a focus
    if several:
        banks = Banks(model.bank)
        (entries,) = model.encode([Text("package/new.py", SOURCE)])
        banks.write("package/new.py", entries)
        model.bank = banks
    engine, plain = Engine(model, "tiny"), Engine(model, "tiny", drafts=0)
    before = SOURCE[:250]
    for end in (200, 230, 249):
        request = Request("package/use.py", before[:end], end, max_tokens=24)
        completion = engine.complete(request)
        assert completion.memory is not None and completion.provenance
        assert completion.text == plain.complete(request).text


def test_a_memory_without_room_there_is_kept_and_searched_on_the_processor(codemem, indexed, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (0, 1 << 30))
    status, out, err = codemem("complete", f"{indexed / 'use.py'}:3", "--json", "--max-tokens", "8")
    assert status == 0, err
    assert json.loads(out)["provenance"]


def test_gates_are_trained_there(tmp_path):
    made = loaded()
    made.model.to("cuda")
    adapter = adapt(made, REPOSITORIES, replace(SMALL, rank=2), tmp_path)
    assert {tensor.device.type for tensor in (*adapter.bias.values(), *adapter.mixture.values())} == {"cpu"}
    theirs = adapt(loaded(), REPOSITORIES, replace(SMALL, rank=2), tmp_path / "cpu")
    assert adapter.layers == theirs.layers
    for name, nats in theirs.development.items():
        assert adapter.development[name] == pytest.approx(nats, rel=0.1, abs=0.05)


def test_commands(codemem, repository, model):
    status, _, err = codemem("index", repository, "--model", model)
    assert status == 0, err
    status, out, err = codemem("complete", f"{repository / 'use.py'}:3", "--json", "--max-tokens", "8")
    assert status == 0, err
    assert json.loads(out)["model"]
    _, out, _ = codemem("doctor", "--json")
    assert "GB free" in out
