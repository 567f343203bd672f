"""Models and tokenizers read without transformers, beside those that transformers reads from the same files."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CONFIGS, tiny_tokenizer
from transformers import AutoModelForCausalLM, MistralConfig

from codemem.completion.vocabulary import Vocabulary
from codemem.errors import CodememError
from codemem.models import pretrained
from codemem.models.decoder import TransformersDecoder
from codemem.models.llama import LlamaDecoder
from codemem.models.loading import load_model
from codemem.models.packed import Linear, Matrix, pack_all
from codemem.models.plain import PlainModel, read_plain
from codemem.models.pretrained import Pretrained, load_memorizing
from codemem.models.shape import shape_of
from codemem.models.tokenizer import PlainTokenizer, decode, header_tokens, read_tokenizer, tokenize

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
MISTRAL = CONFIGS["mistral"].to_dict() | {"sliding_window": None}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "one key/value head": ("llama-mqa", {}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 10000.0}}),
    "llama3": ("llama", {"rope_parameters": LLAMA3}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "qwen3 with biases": ("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
    "mistral": ("mistral", {"sliding_window": None}),
}
TEXTS = ["def f(x):\n    return x\n\n", "\tif a:\r\n\t\tb = 'é漢😀'", "a = '<|end|>'", "", "x = 1  \n \n"]
IDS = torch.randint(0, 250, (90,), generator=torch.Generator().manual_seed(0)).tolist()
SOURCE = "".join(f"def area_{i}(width, height):\n    return width * height * {i}\n\n\n" for i in range(6))


@pytest.fixture(autouse=True)
def own_cache(request, tmp_path, monkeypatch):
    if "weights" not in request.keywords:
        monkeypatch.setenv("CODEMEM_CACHE", str(tmp_path / "cache"))


def saved(directory: Path, architecture: str = "llama", **changes: Any) -> Path:
    """A random model whose every number matters, with a tokenizer, as files."""
    config = type(CONFIGS[architecture])(**CONFIGS[architecture].to_dict() | changes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "embed" not in name:
                weight.mul_(4)
            elif weight.dim() == 1:
                weight.add_(torch.randn_like(weight) * 0.3)
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def both(directory: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> tuple[Pretrained, Pretrained]:
    """The model in a directory as it is read here, and as transformers reads it."""
    ours = load_memorizing(str(directory), device="cpu", dtype=dtype)
    with monkeypatch.context() as patched:
        patched.setattr(pretrained, "read_plain", lambda *_: None)
        return ours, load_memorizing(str(directory), device="cpu", dtype=dtype)


def plain(directory: Path) -> PlainModel | None:
    return read_plain(directory, torch.device("cpu"), torch.float32, directory / "packs", lambda: None)


def rewrite(file: Path, **changes: Any) -> None:
    """Change a JSON file; None takes a key away."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SHAPES)
def test_it_is_the_model_that_transformers_reads(name, dtype, tmp_path, monkeypatch):
    """Bit by bit: what memory holds, and what it was fitted to, must not depend on who read the files."""
    architecture, changes = SHAPES[name]
    ours, theirs = both(saved(tmp_path / "m", architecture, **changes), monkeypatch, dtype)
    assert isinstance(ours.model._source, PlainModel) and not isinstance(theirs.model._source, PlainModel)
    assert ours.fingerprint == theirs.fingerprint and ours.name == theirs.name
    assert ours.model.shapes == theirs.model.shapes and ours.model.state_size == theirs.model.state_size
    for layer, site in theirs.model.sites.items():
        mine = ours.model.sites[layer]
        assert (mine.layer, mine.heads, mine.kv_heads, mine.d) == (site.layer, site.heads, site.kv_heads, site.d)
        assert torch.equal(mine.cos, site.cos) and torch.equal(mine.sin, site.sin)
    own, reference = ours.model.decoder(), theirs.model.decoder()
    assert len(list((tmp_path / "cache").glob("packed/*"))) == (dtype == torch.bfloat16)
    assert isinstance(own, LlamaDecoder) and isinstance(reference, LlamaDecoder)
    for count in (40, 1, 49):
        ids = IDS[len(own.tokens) : len(own.tokens) + count]
        assert torch.equal(own.read(ids, count), reference.read(ids, count))
    expected = TransformersDecoder(theirs.model).read(IDS, 5)
    tolerance = 1e-3 if dtype == torch.float32 else 0.1
    own.crop(0)
    assert (own.read(IDS, 5) - expected).abs().max() < tolerance * expected.abs().max()


def test_the_signature_is_that_of_transformers_configuration(tmp_path):
    from codemem.models.adapter import signature_of

    for name, (architecture, changes) in SHAPES.items():
        directory = saved(tmp_path / name.replace("/", " "), architecture, **changes)
        found = plain(directory)
        assert found is not None, name
        assert signature_of(found.config, "w") == signature_of(load_model(str(directory)).config, "w")


def test_the_older_spelling_of_the_rotary_embedding_is_read(tmp_path, monkeypatch):
    directory = saved(tmp_path / "m", "llama", rope_parameters=LLAMA3)
    scaling = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
    rewrite(directory / "config.json", rope_parameters=None, rope_theta=500.0, rope_scaling=scaling)
    ours, theirs = both(directory, monkeypatch, torch.float32)
    assert isinstance(ours.model._source, PlainModel)
    assert torch.equal(ours.model.decoder().read(IDS, 9), theirs.model.decoder().read(IDS, 9))


def test_transformers_is_loaded_when_something_must_be_encoded(tmp_path, monkeypatch):
    ours, theirs = both(saved(tmp_path / "m"), monkeypatch, torch.float32)
    before = ours.model.decoder().read(IDS, 5)
    for model in (ours.model, theirs.model):
        model.remember(SOURCE, "shapes.py")
    assert not isinstance(ours.model._source, PlainModel)
    mine, expected = (model.bank.entries("shapes.py") for model in (ours.model, theirs.model))
    assert torch.equal(mine.tokens, expected.tokens) and torch.equal(mine.states.codes, expected.states.codes)
    assert all(torch.equal(mine.layers[layer], tensor) for layer, tensor in expected.layers.items())
    with ours.model.reads(traced=True) as reading, theirs.model.reads(traced=True):
        assert torch.equal(ours.model.decoder().read(IDS, 5), theirs.model.decoder().read(IDS, 5))
        assert not torch.equal(ours.model.decoder().read(IDS, 5), before)
        assert reading.trace
    step = torch.tensor([IDS])
    assert torch.equal(ours.model(step).logits, theirs.model(step).logits), "memory is attached to what was loaded"
    ours.model.detach()
    assert not torch.equal(ours.model.base(step).logits, theirs.model(step).logits)


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("llama-yarn", {}),
        ("mistral", {}),
        ("starcoder2", {}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}),
        ("llama", {"hidden_act": "gelu"}),
    ],
)
def test_what_our_forward_pass_does_not_know_is_for_transformers(architecture, changes, tmp_path):
    assert plain(saved(tmp_path / "m", architecture, **changes)) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["LlamaForSequenceClassification"]},
        {"architectures": None},
        {"quantization_config": {"quant_method": "gptq"}},
        {"num_hidden_layers": 3},
        {"num_hidden_layers": "four"},
        {"head_dim": 16},
        {"rms_norm_eps": None},
        {"attention_bias": True},
        {"tie_word_embeddings": True},
    ],
)
def test_a_configuration_that_does_not_fit_the_weights_is_for_transformers(changes, tmp_path):
    directory = saved(tmp_path / "m")
    assert plain(directory) is not None
    rewrite(directory / "config.json", **changes)
    assert plain(directory) is None


def test_weights_that_are_missing_or_unknown_are_for_transformers(tmp_path):
    directory = saved(tmp_path / "m")
    tensors = load_file(directory / "model.safetensors")
    save_file(
        {**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, directory / "model.safetensors"
    )
    assert plain(directory) is None
    del tensors["model.norm.weight"]
    save_file(tensors, directory / "model.safetensors")
    assert plain(directory) is None


def test_mistral_slides_unless_its_configuration_says_that_it_does_not():
    assert shape_of(MISTRAL) is not None
    assert shape_of({key: value for key, value in MISTRAL.items() if key != "sliding_window"}) is None
    assert shape_of(MistralConfig().to_dict()) is None


# Tokenizers.


def test_the_tokenizer_is_the_one_that_transformers_reads(tmp_path):
    directory = saved(tmp_path / "m")
    ours, theirs = read_tokenizer(directory), load_model(str(directory)).tokenizer
    assert isinstance(ours, PlainTokenizer)
    for text in TEXTS:
        ids, starts = tokenize(ours, text)
        expected = theirs(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
        assert ids == expected.input_ids
        assert starts.tolist() == [start for start, _ in expected.offset_mapping]
        assert decode(ours, ids) == theirs.decode(ids, clean_up_tokenization_spaces=False) == text
        assert header_tokens(ours, "a/b.py") == theirs("# a/b.py\n", split_special_tokens=True).input_ids
    assert Vocabulary(ours).tokens == Vocabulary(theirs).tokens
    assert Vocabulary(ours).special == Vocabulary(theirs).special == frozenset(theirs.all_special_ids)


def test_what_was_asked_of_a_tokenizer_before_changes_nothing():
    tokenizer = tiny_tokenizer()
    expected = tokenize(tokenizer, "a<|end|>" * 9)[0]
    tokenizer("a b c d", truncation=True, max_length=2)
    assert tokenize(tokenizer, "a<|end|>" * 9)[0] == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"add_bos_token": True},
        {"add_eos_token": True},
        {"fix_mistral_regex": True},
        {"bos_token": "<|begin|>"},
        {"additional_special_tokens": ["<|other|>"]},
        {"added_tokens_decoder": {"260": {"content": "<|end|>", "special": False}}},
    ],
)
def test_settings_that_change_the_tokenizer_are_for_transformers(changes, tmp_path):
    directory = saved(tmp_path / "m")
    rewrite(directory / "tokenizer_config.json", **changes)
    assert read_tokenizer(directory) is None


def test_a_tokenizer_with_more_tokens_than_the_model_has_is_refused(tmp_path):
    directory = saved(tmp_path / "m")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["one", "more"])
    tokenizer.save_pretrained(directory)
    with pytest.raises(CodememError, match="its tokenizer has 263 tokens, its weights only 261"):
        load_memorizing(str(directory))


def test_a_file_that_changes_the_tokenizer_is_for_transformers(tmp_path):
    directory = saved(tmp_path / "m")
    (directory / "special_tokens_map.json").write_text('{"eos_token": "<|end|>"}')
    assert read_tokenizer(directory) is None


def test_settings_without_effect_are_read(tmp_path):
    directory = saved(tmp_path / "m")
    token = {"content": "<|end|>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    rewrite(
        directory / "tokenizer_config.json",
        add_bos_token=False,
        eos_token=token | {"__type": "AddedToken", "special": True},
        additional_special_tokens=["<|end|>"],
        added_tokens_decoder={"260": token | {"special": True}},
    )
    ours, theirs = read_tokenizer(directory), load_model(str(directory)).tokenizer
    assert ours is not None
    assert header_tokens(ours, "a.py") == header_tokens(theirs, "a.py")
    assert ours.all_special_ids == (260,)


# Packed weights that are kept.


def four_bit_matrices() -> list[Matrix]:
    torch.manual_seed(0)
    codes = torch.randint(0, 16, (32, 64)).float()
    codes[:, ::32], codes[:, 1::32] = 0, 15  # every scale has its whole range
    eight = torch.randint(-127, 128, (32, 64)).float()
    eight[:, ::32] = 127
    weights = [codes * 0.25 - 2, torch.randn(32, 64), codes, eight / 64]
    return [Matrix(Linear(weight.bfloat16(), None)) for weight in weights]


def test_packed_weights_are_kept_and_packed_again_where_the_file_is_damaged(tmp_path, monkeypatch):
    file, x = tmp_path / "packs.safetensors", torch.randn(3, 64).bfloat16()
    first = four_bit_matrices()
    pack_all(first, file)
    assert [matrix.packed.halves for matrix in first] == [1, 2, 1, 2]
    content = file.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("codemem.models.packed.pack", lambda *_: pytest.fail("packed again"))
        again = four_bit_matrices()
        pack_all(again, file)
    assert all(torch.equal(one(x), other(x)) for one, other in zip(first, again, strict=True))
    for damaged in (content[: len(content) // 2], b"", b"{}"):
        file.write_bytes(damaged)
        again = four_bit_matrices()
        pack_all(again, file)
        assert all(torch.equal(one(x), other(x)) for one, other in zip(first, again, strict=True))
        assert file.read_bytes() == content
    pack_all(again[:2], file)
    assert file.read_bytes() != content, "those of another number of matrices"


def test_packs_that_cannot_be_written_are_done_without(tmp_path):
    matrices = four_bit_matrices()
    pack_all(matrices, tmp_path / "no" / "folder" / "packs.safetensors")
    assert matrices[0].packed is not None


# The command.


HEAVY = ("transformers", "torch._dynamo", "sympy", "scipy", "sklearn", "matplotlib", "detect_secrets", "pandas")


def imported(*arguments: str) -> list[str]:
    """What a command of codemem has imported of what takes long."""
    code = f"""
import sys
sys.argv = ["codemem", *{list(arguments)!r}]
from cli.app import main
try:
    main()
finally:
    print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=os.environ)
    assert done.returncode == 0, done.stderr
    found: list[str] = ast.literal_eval(done.stdout.splitlines()[-1])
    return found


@pytest.mark.weights
def test_neither_indexing_nor_a_completion_imports_transformers(repository):
    imported("index", str(repository))  # the embedded model may have to be converted
    (repository / "more.py").write_text("def more(x):\n    return x + 1\n")
    assert imported("index", str(repository)) == ["detect_secrets"]
    assert imported("complete", f"{repository / 'use.py'}:3", "--max-tokens", "3") == []
