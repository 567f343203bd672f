from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_directory, save_gguf, tiny_model
from transformers import BertConfig, T5Config

from codemem.cache import cache_dir, remembered_sha256
from codemem.errors import CodememError
from codemem.models import locate
from codemem.models.checkpoint import weights_hash
from codemem.models.loading import best_device, best_dtype, load_model
from codemem.models.pretrained import load_memorizing

IDS = torch.tensor([[5, 17, 42, 99, 7, 3]])


@pytest.fixture(autouse=True)
def own_cache(request, tmp_path, monkeypatch):
    """Every test starts from an empty cache, except those that need the real weights."""
    if "weights" not in request.keywords:
        monkeypatch.setenv("CODEMEM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    return save_directory(tmp_path / "tiny")


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new interpreter."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_directory_is_loaded_as_it_was_saved(checkpoint):
    loaded = load_model(str(checkpoint), device="cpu", dtype=torch.float32)
    assert loaded.name == "tiny"
    assert not loaded.model.training
    with torch.inference_mode():
        assert torch.equal(loaded.model(IDS).logits, tiny_model()(IDS).logits)


@pytest.mark.parametrize(
    "text", ["def f(x):\n    return x\n\n", "\tif a:\r\n\t\tb = 'é漢😀'", "  x", "", "x = 1  \n \n"]
)
def test_the_tokenizer_gives_back_every_text_and_adds_nothing(checkpoint, text):
    tokenizer = load_model(str(checkpoint)).tokenizer
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id not in ids


def test_dtype_is_what_was_asked_for_or_the_best_here(checkpoint):
    assert load_model(str(checkpoint), device="cpu", dtype=torch.float32).model.dtype == torch.float32
    assert load_model(str(checkpoint), device="cpu").model.dtype == best_dtype(torch.device("cpu"))
    assert load_model(str(checkpoint)).model.device.type == best_device().type


def test_a_device_that_is_not_here_is_refused(checkpoint):
    with pytest.raises(CodememError, match="device warp"):
        load_model(str(checkpoint), device="warp")


def test_the_hash_follows_weights_and_tokenizer_not_the_place(checkpoint, tmp_path):
    first = weights_hash(checkpoint)
    assert weights_hash(Path(shutil.copytree(checkpoint, tmp_path / "copy"))) == first
    assert weights_hash(save_directory(tmp_path / "other", seed=1)) != first
    tokenizer = checkpoint / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("<|end|>", "<|stop|>"))
    assert weights_hash(checkpoint) != first


def test_the_hash_follows_the_configuration_that_changes_results(checkpoint):
    first = weights_hash(checkpoint)
    path = checkpoint / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "transformers_version": "0"}))
    assert weights_hash(checkpoint) == first
    path.write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    assert weights_hash(checkpoint) != first


def test_a_checksum_is_computed_again_only_when_the_file_changed(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    stat = file.stat()
    first = remembered_sha256(file)
    file.write_bytes(b"two")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert remembered_sha256(file) == first, "same size and time: not read again"
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert remembered_sha256(file) != first


def test_damaged_memory_of_checksums_is_ignored(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    first = remembered_sha256(file)
    (cache_dir() / "sha256.json").write_text("{ half")
    assert remembered_sha256(file) == first


def test_the_cache_is_private(checkpoint):
    load_model(str(checkpoint))
    assert cache_dir().stat().st_mode & 0o777 == 0o700
    assert (cache_dir() / "sha256.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("config.json", "has no config.json"),
        ("tokenizer.json", "no tokenizer.json"),
        ("model.safetensors", "no model"),
    ],
)
def test_a_directory_that_lacks_a_file_says_which(checkpoint, name, problem):
    (checkpoint / name).unlink()
    with pytest.raises(CodememError, match=problem) as caught:
        load_model(str(checkpoint))
    assert caught.value.hint


def test_half_a_weight_file_is_refused(checkpoint):
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(CodememError, match=r"model\.safetensors is truncated"):
        load_model(str(checkpoint))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda text: text[: len(text) // 2], r"has a damaged tokenizer\.json"),
        (lambda text: text.replace(":", "", 3), "cannot be loaded"),
    ],
    ids=["cut off", "damaged within"],
)
def test_a_damaged_tokenizer_is_refused(checkpoint, change, problem):
    file = checkpoint / "tokenizer.json"
    file.write_text(change(file.read_text()))
    for load in (load_model, load_memorizing):
        with pytest.raises(CodememError, match=problem) as caught:
            load(str(checkpoint))
        assert caught.value.hint


def test_white_space_around_a_tokenizer_does_no_harm(checkpoint):
    file = checkpoint / "tokenizer.json"
    file.write_text("\n  " + file.read_text() + 100 * "\n")
    load_model(str(checkpoint))


def test_a_missing_shard_is_named(checkpoint):
    (checkpoint / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}})
    )
    with pytest.raises(CodememError, match=r"model-00002\.safetensors is missing"):
        load_model(str(checkpoint))


def test_weights_without_one_layer_are_refused_not_filled_with_noise(checkpoint):
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CodememError, match=r"lacks weights: model\.layers\.1\.mlp\.up_proj"):
        load_model(str(checkpoint))


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (T5Config(architectures=["T5ForConditionalGeneration"]), "T5ForConditionalGeneration"),
        (BertConfig(architectures=["BertForMaskedLM"]), "BertForMaskedLM"),
    ],
)
def test_what_is_not_a_causal_decoder_is_refused_by_name(checkpoint, config, name):
    config.save_pretrained(checkpoint)
    with pytest.raises(CodememError, match=f"is a {name}, not a causal decoder"):
        load_model(str(checkpoint))


def test_an_unknown_architecture_and_code_of_strangers_are_refused(checkpoint):
    path = checkpoint / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "model_type": "blob", "auto_map": {"AutoConfig": "evil.Config"}}))
    (checkpoint / "evil.py").write_text("raise SystemExit('this ran')")
    with pytest.raises(CodememError, match="cannot be loaded"):
        load_model(str(checkpoint))


@pytest.mark.parametrize("spec", ["gpt-17", "./no/such/directory", "/no/such/directory"])
def test_an_unknown_model_says_what_to_type(spec):
    with pytest.raises(CodememError, match="there is no model") as caught:
        load_model(spec)
    assert caught.value.hint == "codemem models list"


def test_loading_touches_no_network_and_prints_nothing(checkpoint):
    result = python(
        f"""
import sys
def audit(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise SystemExit(f"network: {{event}} {{arguments}}")
sys.addaudithook(audit)
from codemem.models.loading import load_model
load_model({str(checkpoint)!r})
"""
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_hub_id_is_read_from_the_local_cache_alone(checkpoint, tmp_path):
    code = "from codemem.models.locate import ready; print(ready('org/tiny').directory)"
    hub = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    absent = python(code, **hub)
    assert "CodememError: org/tiny is not on this machine" in absent.stderr
    repository = tmp_path / "hub" / "models--org--tiny"
    shutil.copytree(checkpoint, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert python(code, **hub).stdout == f"{repository / 'snapshots' / 'abc'}\n"
    (repository / "snapshots" / "abc" / "model.safetensors").unlink()
    assert "has no model.safetensors" in python(code, **hub).stderr


def test_a_gguf_is_converted_once_and_keeps_its_weights(tmp_path, capfd):
    gguf = save_gguf(tmp_path / "tiny.gguf")
    first = load_model(str(gguf), device="cpu", dtype=torch.float32)
    assert "converting tiny.gguf" in capfd.readouterr().err
    second = load_model(str(gguf), device="cpu", dtype=torch.float32)
    assert capfd.readouterr().err == ""
    assert (first.name, first.weights_hash) == ("tiny", second.weights_hash)
    # Stored in bf16: the reference is rounded the same way.
    reference = tiny_model().bfloat16().float()
    with torch.inference_mode():
        expected = reference(IDS).logits
        error = (second.model(IDS).logits - expected).abs().max() / expected.abs().max()
    assert error < 1e-4, "rows of q and k in llama.cpp's order would give errors of the size of the logits"


@pytest.mark.parametrize(("kind", "expected"), [("smollm", ["ĠĠĠĠ", "1", "2"]), ("gpt-2", ["ĠĠ", "Ġ", "Ġ", "1", "2"])])
def test_digits_stand_alone_where_the_model_learned_them_so(tmp_path, kind, expected):
    gguf = save_gguf(tmp_path / "tiny.gguf", pre_tokenizer=kind)
    tokenizer = load_model(str(gguf)).tokenizer
    assert tokenizer("    12").tokens() == expected
    assert tokenizer.decode(tokenizer("    12").input_ids) == "    12"


@pytest.mark.parametrize("keep", [3, 100, 0.5, 0.999])
def test_a_truncated_gguf_is_refused_and_leaves_nothing(tmp_path, keep):
    gguf = save_gguf(tmp_path / "tiny.gguf")
    content = gguf.read_bytes()
    gguf.write_bytes(content[: keep if keep > 1 else int(len(content) * keep)])
    with pytest.raises(CodememError, match="is not a GGUF file" if keep == 3 else "truncated, damaged"):
        load_model(str(gguf))
    models = cache_dir() / "models"
    assert not models.exists() or not list(models.iterdir())


def test_a_killed_conversion_leaves_nothing_that_looks_complete(tmp_path):
    gguf = save_gguf(tmp_path / "tiny.gguf")
    code = f"from codemem.models.locate import pull; pull({str(gguf)!r})"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    models = cache_dir() / "models"
    deadline = time.monotonic() + 60
    while not list(models.glob(".partial-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [path.name[:9] for path in models.iterdir()] == [".partial-"]
    with pytest.raises(CodememError, match="is not on this machine"):
        locate.locate(str(gguf))
    located = locate.pull(str(gguf))
    assert list(models.iterdir()) == [located.directory]


def test_two_processes_convert_once(tmp_path):
    gguf = save_gguf(tmp_path / "tiny.gguf")
    code = f"from codemem.models.locate import pull; pull({str(gguf)!r})"
    both = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    notes = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("converting tiny.gguf" in note for note in notes) == 1


def test_a_damaged_conversion_is_done_again(tmp_path):
    gguf = save_gguf(tmp_path / "tiny.gguf")
    weights = locate.pull(str(gguf)).directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert load_model(str(gguf)).name == "tiny"


@pytest.mark.weights
def test_the_default_model_loads_fast_and_knows_python():
    load_model(dtype=torch.float32)
    start = time.perf_counter()
    loaded = load_model()
    assert time.perf_counter() - start < 1.5
    assert loaded.name == "smollm2-135m"
    prompt = loaded.tokenizer("import numpy as", return_tensors="pt").to(loaded.model.device)
    with torch.inference_mode():
        following = loaded.model(**prompt).logits[0, -1].argmax()
    assert loaded.tokenizer.decode(following) == " np"


@pytest.mark.weights
def test_the_default_tokenizer_gives_back_source_code_and_adds_nothing():
    tokenizer = load_model().tokenizer
    texts = [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py"))]
    texts += [
        " leading",
        "\t\ttabs\r\n",
        "é漢字😀 ﬁ e\u0301",
        "    12,\n    345",
        "a\x00b",
        "trailing  \n\n\n",
    ]
    for text in texts:
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids) == text
        assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer("    12").tokens() == ["ĠĠĠĠ", "1", "2"]
