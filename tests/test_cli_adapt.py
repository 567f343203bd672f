"""`codemem adapt` on a tiny model: what it prints and writes, that the next commands use it, and how it fails."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from json_docs import answer_of, check_against_documentation
from test_cli import modules, refusal_of

from codemem.models.adapter import load_adapter


@pytest.fixture(autouse=True)
def a_small_library(monkeypatch):
    """Of the standard library only this package, for the time that the rest takes."""
    monkeypatch.setattr("indexer.packages.stdlib", lambda: Path(json.__file__).parent)


@pytest.fixture
def corpus(tmp_path):
    root = modules(tmp_path / "corpus", 6)
    (root / "pkg" / "secrets.py").write_text("KEY = 'AKIA" + "Q7" * 8 + "'\n" + "x = 1\n" * 400)
    return root


def test_adapt_prints_what_its_documentation_says_and_index_uses_it(codemem, model, corpus, tmp_path):
    options, out = ["adapt", model, "--corpus", corpus, "--layers", 2, "--steps", 2], tmp_path / "mine.safetensors"
    answer = answer_of(codemem(*options, "--out", out, "--json", "--restart"))
    assert answer["adapter"] == str(out) and list(load_adapter(out).layers) == answer["layers"]
    _, _, err = codemem("index", corpus, "--model", model)
    assert f"codemem adapt {model}" in err.replace("\n", ""), "one that was written elsewhere is not used by itself"

    answer = answer_of(codemem(*options, "--json", "--plot", tmp_path / "gates.svg"))
    check_against_documentation("adapt", answer)
    assert answer["model"] == "tiny" and len(answer["layers"]) <= 2
    assert len(answer["heads"]) == 6 * len(answer["layers"])
    assert answer["corpus"][0] == "corpus" and answer["corpus"][1].startswith("standard library")
    assert answer["development"]["scored"] % 256 == 0
    assert (tmp_path / "gates.svg").read_text().startswith("<?xml")
    (file,) = (tmp_path / "cache" / "adapters").iterdir()
    assert str(file) == answer["adapter"] and file.name.startswith("tiny-")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(load_adapter(file).layers) == answer["layers"]

    status, out, _ = codemem(*options)
    assert status == 0 and "heads open" in out and "nats/token" in out and file.name in out.replace("\n", "")
    status, _, err = codemem("index", corpus, "--model", model, "--rebuild")
    assert status == 0 and "no learned gates" not in err
    assert set(answer_of(codemem("status", corpus, "--json"))["entries_per_layer"]) == set(map(str, answer["layers"]))


def test_what_adapt_cannot_do_is_said_before_it_works(codemem, model, corpus, tmp_path):
    said, hint = refusal_of(codemem("adapt", model, "--out", tmp_path / "no" / "a.safetensors"))
    assert "there is no folder" in said and hint.startswith("mkdir -p")
    said, _ = refusal_of(codemem("adapt", model, "--plot", tmp_path / "gates.txt"))
    assert "cannot be drawn" in said
    (tmp_path / "small").mkdir()
    said, hint = refusal_of(codemem("adapt", model, "--corpus", tmp_path / "small"))
    assert "too few documents" in said and "codemem adapt --corpus" in hint
