"""A prompt read before PyTorch is there: the same cache, bit by bit, and only where it is the model's own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_decoder import SIZES, SOURCE, ids
from test_plain import saved
from tiny import CONFIGS

from codemem.completion.begun import begun_for
from codemem.completion.engine import Engine
from codemem.completion.prompt import POSITIONS
from codemem.completion.request import Request
from codemem.models import ahead as module
from codemem.models.ahead import Ahead, find_plan, plan_path
from codemem.models.checkpoint import stored_in, weights_hash
from codemem.models.llama import ROOM, LlamaDecoder
from codemem.models.pretrained import Pretrained, load_memorizing
from codemem.native.library import compiler

pytestmark = pytest.mark.skipif(not compiler(), reason="there is no C compiler")
SHAPES = {
    "llama": ("llama", {}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "biases": ("qwen2", {}),
    "norms of heads": ("qwen3", {}),
}
REQUEST = Request("use.py", SOURCE * 2 + "def a", len(SOURCE) * 2 + 5)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CODEMEM_CACHE", str(tmp_path / "cache"))


def a_model(folder: Path, architecture: str = "llama", **changes: object) -> Path:
    """One of a shape that functions of C are for, in bf16."""
    sizes = {name: size for name, size in SIZES.items() if name != "tie_word_embeddings"}
    config = CONFIGS[architecture].to_dict() | sizes | {"head_dim": 32} | changes
    directory = saved(folder / "model", architecture, **config)
    file = directory / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    return directory


def loaded(directory: Path, **options: object) -> Pretrained:
    """In a process that leaves a plan."""
    pretrained = load_memorizing(str(directory), device="cpu", dtype=torch.bfloat16, **options)
    decoder = pretrained.model.decoder()
    assert isinstance(decoder, LlamaDecoder) and decoder.weights.compiled
    decoder.weights.wide = False
    return pretrained


@pytest.mark.parametrize("count", [1, 63, 64, 200, ROOM + 10])
@pytest.mark.parametrize("name", SHAPES)
def test_the_cache_is_what_the_decoder_leaves(name, count, tmp_path):
    architecture, changes = SHAPES[name]
    directory = a_model(tmp_path, architecture, **changes)
    assert find_plan(directory) is None
    model = loaded(directory).model
    plan, text = find_plan(directory), ids(count)
    ahead, own, other = Ahead(plan, text), model.decoder(), model.decoder()
    with model.reads(attention=False, tokens=False):
        own.states(text)
        other.take(ahead)
        held = min(count, ROOM)
        assert other.tokens == ahead.ids == text[:held]
        for name in ("_keys", "_values"):
            assert torch.equal(getattr(other, name)[:, :, :held], getattr(own, name)[:, :, :held])
        own.crop(held)
        assert torch.equal(own.read([7, 8], 2), other.read([7, 8], 2))


def test_a_completion_that_was_begun_is_that_of_the_engine(tmp_path):
    directory = a_model(tmp_path)
    expected = Engine(loaded(directory).model, "tiny").complete(REQUEST)
    begun = begun_for(str(directory), REQUEST)
    model = loaded(directory, tokenizer=begun.tokenizer).model
    engine = Engine(model, "tiny", begun=begun)
    engine.prepare(REQUEST)
    decoder = engine._cache._held["use.py", "asking"].decoder
    assert decoder.tokens == begun.prompt.ids[:-POSITIONS] == begun.ahead.ids
    passes, states = [], decoder.states
    decoder.states = lambda new, last=1: passes.append(len(new)) or states(new, last)
    found = engine.complete(REQUEST)
    assert found.text == expected.text and found.tokens == expected.tokens
    assert max(passes) <= 64 < len(begun.ahead.ids)


def test_another_request_is_read_by_itself(tmp_path):
    directory = a_model(tmp_path)
    loaded(directory)
    begun = begun_for(str(directory), REQUEST)
    engine = Engine(loaded(directory, tokenizer=begun.tokenizer).model, "tiny", begun=begun)
    other = Request("other.py", SOURCE, len(SOURCE))
    expected = Engine(loaded(directory).model, "tiny").complete(other)
    engine.prepare(other)
    assert engine.complete(other).text == expected.text


def test_what_was_read_with_other_weights_is_not_taken(tmp_path):
    first, second = a_model(tmp_path), a_model(tmp_path / "second", initializer_range=0.5)
    loaded(first)
    ahead, decoder = Ahead(find_plan(first), ids(50)), loaded(second).model.decoder()
    decoder.take(ahead)
    assert decoder.tokens == []


def test_a_plan_of_another_version_is_not_followed_but_written_again(tmp_path, monkeypatch):
    directory = a_model(tmp_path)
    loaded(directory)
    with monkeypatch.context() as patched:
        patched.setattr(module, "sources", lambda: "another")
        assert find_plan(directory) is None and begun_for(str(directory), REQUEST) is None
        loaded(directory)
        assert find_plan(directory) is not None
    assert find_plan(directory) is None


@pytest.mark.parametrize("which", ["packs", "plan", "embedding"])
def test_damaged_files_are_left_alone(which, tmp_path):
    directory = a_model(tmp_path)
    loaded(directory)
    plan = plan_path(weights_hash(directory))
    file = Path((json.loads(stored_in(plan).says["plan"]) | {"plan": str(plan)})[which])
    half = file.read_bytes()[: file.stat().st_size // 2]
    file.unlink()  # others have it mapped
    file.write_bytes(half)
    assert begun_for(str(directory), REQUEST) is None


def test_a_token_that_the_model_does_not_have_is_not_read(tmp_path):
    directory = a_model(tmp_path)
    loaded(directory)
    with pytest.raises(ValueError, match="no token 261"):
        Ahead(find_plan(directory), [3, 261])


def test_functions_that_are_gone_are_not_called(tmp_path):
    directory = a_model(tmp_path)
    loaded(directory)
    plan = plan_path(weights_hash(directory))
    gone = json.loads(stored_in(plan).says["plan"]) | {"functions": str(tmp_path / "gone.so")}
    save_file(load_file(plan), plan, metadata={"plan": json.dumps(gone)})
    assert find_plan(directory) is not None and begun_for(str(directory), REQUEST) is None
    loaded(directory)
    assert begun_for(str(directory), REQUEST) is not None


def test_weights_of_another_dtype_have_no_plan(tmp_path):
    directory = a_model(tmp_path)
    file = directory / "model.safetensors"
    save_file({name: tensor.float() for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    loaded(directory)
    assert find_plan(directory) is None


def test_a_process_begins_without_pytorch(tmp_path):
    directory = a_model(tmp_path)
    loaded(directory)
    code = f"""
import sys
from codemem.completion.begun import begun_for
from codemem.completion.request import Request
begun = begun_for({str(directory)!r}, Request("use.py", "x = 1\\n" * 100, 500))
assert begun.ahead.done() and len(begun.ahead.ids) > 100
print(sorted({{"torch", "transformers", "faiss"}} & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout == "[]\n", run.stderr
