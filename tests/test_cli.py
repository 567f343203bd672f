"""The commands on a tiny model: what they print, that their JSON is what docs/json.md says, and how they fail."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SHAPES, USE
from json_docs import answer_of, check_against_documentation
from tiny import save_directory, tiny_tokenizer

from benchmarks.pooled import pooled
from codemem.models.tokenizer import tokenize


def test_index_prints_what_its_documentation_says(codemem, repository, model):
    answer = answer_of(codemem("index", repository, "--model", model, "--json"))
    check_against_documentation("index", answer)
    count = sum(len(tokenize(tiny_tokenizer(), text)[0]) for text in (SHAPES, USE))
    assert (answer["documents"], answer["entries"], answer["tokens"]) == (2, count, count)
    assert answer["skipped"] == {"binary": 1}
    again = answer_of(codemem("index", repository, "--json"))
    check_against_documentation("index", again)
    assert (again["documents"], again["entries"], again["tokens"]) == (2, count, 0)


def test_complete_prints_what_its_documentation_says(codemem, indexed):
    with_memory = answer_of(codemem("complete", f"{indexed}/use.py:3", "--json"))
    without = answer_of(codemem("complete", f"{indexed}/use.py:3", "--json", "--no-memory"))
    check_against_documentation("complete", with_memory, without)
    assert with_memory["model"] == without["model"] == "tiny"
    assert with_memory["memory"]["documents"] == 2
    assert {source["path"] for source in with_memory["provenance"]} == {"shapes.py"}
    assert {source["symbol"] for source in with_memory["provenance"]} == {"area"}
    assert sum(source["weight"] for source in with_memory["provenance"]) == pytest.approx(1, abs=1e-6)
    assert without["memory"] is None and without["provenance"] == []
    ms = with_memory["ms"]
    assert ms["retrieval"] <= ms["prefill"] + ms["decode"]
    assert ms["load"] + ms["prefill"] + ms["decode"] <= ms["total"]


def test_sync_prints_what_its_documentation_says(codemem, indexed):
    unchanged = answer_of(codemem("sync", indexed, "--json"))
    check_against_documentation("index", {**unchanged, "skipped": {"binary": 1}})
    assert (unchanged["encoded"], unchanged["dropped"], unchanged["kept"]) == (0, 0, 2)
    (indexed / "use.py").write_text("x = 1\n")
    (indexed / "shapes.py").unlink()
    changed = answer_of(codemem("sync", indexed, "--json"))
    assert (changed["encoded"], changed["dropped"], changed["kept"]) == (1, 1, 0)
    status, out, _ = codemem("sync", indexed)
    assert status == 0 and "encoded 0, dropped 0, kept 1" in out


def test_sync_needs_a_memory(codemem, tmp_path):
    said, hint = refusal_of(codemem("sync", tmp_path))
    assert "has a memory" in said and hint == f"codemem index {tmp_path}"


def test_a_sync_with_nothing_to_do_imports_neither_torch_nor_transformers(indexed):
    code = f"""
import sys
sys.argv = ["codemem", "sync", {str(indexed)!r}]
from cli.app import main
try:
    main()
finally:
    assert not {{"torch", "transformers", "faiss"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_status_prints_what_its_documentation_says(codemem, indexed):
    (indexed / "shapes.py").write_text(SHAPES + f"KEY = '{'AKIA' + 'Q3EGRTWPLK7ZXN4V'}'\n")
    codemem("sync", indexed)
    answer = answer_of(codemem("status", indexed, "--json"))
    assert "1 secret values, in shapes.py" in codemem("status", indexed)[1]
    assert answer["masked"] == {"shapes.py": 1}
    answer["masked"] = {"shapes": 1}  # a field's name has no dot
    check_against_documentation("status", answer)
    assert answer["repository"] == str(indexed.resolve())
    assert (answer["model"], answer["documents"], answer["skipped"]) == ("tiny", 2, {"binary": 1})
    assert set(answer["entries_per_layer"].values()) == {answer["entries"]}
    assert answer["stale"] == {"new": 0, "changed": 0, "gone": 0}
    (indexed / "new.py").write_text("x = 1\n")
    (indexed / "use.py").write_text("x = 2\n")
    (indexed / "shapes.py").unlink()
    assert answer_of(codemem("status", indexed, "--json"))["stale"] == {"new": 1, "changed": 1, "gone": 1}


# For people.


def test_index_and_status_for_people(codemem, repository, model):
    status, out, err = codemem("index", repository, "--model", model)
    assert status == 0
    assert re.search(r"^2 documents, \d+ entries, 0 MB on disk$", out, re.MULTILINE)
    assert "skipped: 1 binary" in out
    assert "no learned gates" in err
    status, out, _ = codemem("status", repository)
    assert status == 0
    assert re.search(r"^model +tiny$", out, re.MULTILINE)
    assert "nothing, memory is up to date" in out
    (repository / "new.py").write_text("x = 1\n")
    assert "1 new files: codemem index" in codemem("status", repository)[1]


def test_snippets_wait_to_be_asked_for_where_a_process_of_its_own_has_no_time(codemem, indexed, monkeypatch):
    monkeypatch.setattr("cli.complete._PROMPT_READ", 0.0)
    cursor = f"{indexed}/use.py:3"
    for options, shown in (((), False), (("--recall",), True), (("--deadline", "100000"), True)):
        use = answer_of(codemem("complete", cursor, "--json", *options))["memory"]
        assert bool(use["snippets"]) == shown and use["left_out"] != shown
    assert codemem("complete", cursor, "--explain")[1].endswith("more snippets; --recall waits for them\n")
    assert answer_of(codemem("complete", cursor, "--json", "--no-recall"))["memory"]["left_out"] is False


def test_complete_prints_the_text_alone_and_explains_on_demand(codemem, indexed):
    text = answer_of(codemem("complete", f"{indexed}/use.py:3", "--json"))["text"]
    assert codemem("complete", f"{indexed}/use.py:3")[1] == text + "\n"
    out = codemem("complete", f"{indexed}/use.py:3", "--explain")[1]
    assert out.startswith(text + "\n\nmemory had ")
    assert re.search(r"^ *\d+\.\d%  shapes\.py:\d in area$", out, re.MULTILINE)
    assert codemem("complete", f"{indexed}/use.py:3", "--explain", "--no-memory")[1].endswith("memory was not read\n")


def test_the_cursor_is_a_line_or_a_line_and_a_column(codemem, indexed):
    at_end = answer_of(codemem("complete", f"{indexed}/use.py:3", "--json"))
    column = len("print(area(") + 1
    assert answer_of(codemem("complete", f"{indexed}/use.py:3:{column}", "--json"))["text"] == at_end["text"]


def test_a_relative_file_and_a_folder_below_the_repository(codemem, indexed, monkeypatch):
    (indexed / "deep" / "er").mkdir(parents=True)
    (indexed / "deep" / "er" / "use.py").write_text(USE)
    monkeypatch.chdir(indexed / "deep")
    answer = answer_of(codemem("complete", "er/use.py:3", "--json"))
    assert "shapes.py" in {source["path"] for source in answer["provenance"]}
    assert answer_of(codemem("status", "--json"))["repository"] == str(indexed.resolve())


def test_of_a_file_that_changed_since_memory_does_not_say_what_it_was(codemem, indexed):
    (indexed / "use.py").write_text(SHAPES + "\n\n" + USE)
    answer_of(codemem("index", indexed, "--json"))
    (indexed / "use.py").write_text(USE)
    answer = answer_of(codemem("complete", f"{indexed}/use.py:3", "--json"))
    assert {source["path"] for source in answer["provenance"]} == {"shapes.py"}


def test_a_deleted_file_is_not_read_after_the_next_index(codemem, indexed):
    (indexed / "shapes.py").unlink()
    assert answer_of(codemem("index", indexed, "--json"))["documents"] == 1
    answer = answer_of(codemem("complete", f"{indexed}/use.py:3", "--json"))
    assert answer["provenance"] == []


def test_without_memory_no_index_is_needed(codemem, repository, model):
    answer = answer_of(codemem("complete", f"{repository}/use.py:3", "--no-memory", "--model", model, "--json"))
    assert answer["memory"] is None
    assert not (repository / ".codemem").exists()


def test_three_processes_index_complete_and_status(tmp_path, repository, model):
    def run(*arguments: str) -> dict:
        command = [sys.executable, "-c", "from cli.app import main; main()", *arguments, "--json"]
        environment = {**os.environ, "CODEMEM_CACHE": str(tmp_path / "cache")}
        result = subprocess.run(command, env=environment, cwd=repository, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    assert run("index", ".", "--model", str(model))["documents"] == 2
    assert {source["path"] for source in run("complete", "use.py:3")["provenance"]} == {"shapes.py"}
    assert run("status")["stale"] == {"new": 0, "changed": 0, "gone": 0}


# How commands fail.


def refusal_of(result: tuple[int, str, str]) -> tuple[str, str]:
    """The error and the hint of a command that failed as commands should."""
    status, out, err = result
    assert status == 1
    assert out == ""
    assert "Traceback" not in err
    match = re.search(r"^error: (.+)\nhint: (.+)\n\Z", err, re.MULTILINE)
    assert match is not None, err
    return match[1], match[2]


@pytest.mark.parametrize(
    ("cursor", "error", "hint"),
    [
        ("use.py:9", "the file has 4 lines", "between 1 and 4"),
        ("use.py:0", "the file has 4 lines", "between 1 and 4"),
        ("use.py:3:99", "line 3 has 11 characters", "between 1 and 12"),
        ("use.py:3:0", "line 3 has 11 characters", "between 1 and 12"),
        ("use.py", "is not FILE:LINE", "codemem complete"),
        ("use.py:three", "is not FILE:LINE", "codemem complete"),
        ("missing.py:1", "missing.py cannot be read: No such file", "codemem complete"),
        (".:1", "cannot be read: Is a directory", "codemem complete"),
        ("logo.png:1", "is not UTF-8 text", "codemem complete"),
    ],
)
def test_a_bad_cursor_is_refused(codemem, repository, monkeypatch, cursor, error, hint):
    monkeypatch.chdir(repository)
    said, typed = refusal_of(codemem("complete", cursor))
    assert error in said and hint in typed


def test_no_memory_says_what_to_type(codemem, repository, model):
    said, hint = refusal_of(codemem("complete", f"{repository}/use.py:3", "--model", model))
    assert "has a memory" in said and hint.startswith(f"codemem index {repository.resolve()}") and "--no-memory" in hint
    said, hint = refusal_of(codemem("status", repository))
    assert "has a memory" in said and hint == f"codemem index {repository}"


def test_another_model_than_that_of_the_memory_is_refused_and_rebuild_mends_it(codemem, indexed, tmp_path):
    other = save_directory(tmp_path / "models" / "other", seed=1)
    for command in (["complete", f"{indexed}/use.py:3"], ["index", indexed]):
        said, hint = refusal_of(codemem(*command, "--model", other))
        assert "was made by tiny and cannot be read by other" in said and "weights" in said
        assert f"codemem index {indexed.resolve()} --model" in hint and hint.endswith("--rebuild")
    assert answer_of(codemem("status", indexed, "--json"))["model"] == "tiny", "nothing was lost"
    answer = answer_of(codemem("index", indexed, "--model", other, "--rebuild", "--json"))
    assert answer["tokens"] == answer["entries"] > 0
    assert answer_of(codemem("complete", f"{indexed}/use.py:3", "--json"))["model"] == "other"


def test_a_model_that_is_not_there_is_refused_before_anything_is_written(codemem, repository):
    said, hint = refusal_of(codemem("index", repository, "--model", "./no-such-model"))
    assert "there is no model" in said and hint == "codemem models list"
    assert not (repository / ".codemem").exists()


@pytest.mark.parametrize(("name", "error"), [("use.py", "is not a directory"), ("nowhere", "does not exist")])
def test_what_is_no_folder_cannot_be_indexed(codemem, repository, model, name, error):
    said, _ = refusal_of(codemem("index", repository / name, "--model", model))
    assert error in said


def test_a_memory_that_cannot_be_written_is_named(codemem, repository, model):
    (repository / ".codemem").write_text("a file in its place")
    said, _ = refusal_of(codemem("index", repository, "--model", model))
    assert ".codemem cannot be opened" in said


def test_a_damaged_blob_is_named_with_what_mends_it(codemem, indexed):
    for blob in (indexed / ".codemem" / "blobs").iterdir():
        blob.write_bytes(blob.read_bytes()[:-10])
    said, hint = refusal_of(codemem("complete", f"{indexed}/use.py:3"))
    assert "is missing or damaged" in said and hint == f"codemem doctor {indexed.resolve()} --repair"
    assert answer_of(codemem("index", indexed, "--json"))["tokens"] > 0
    assert answer_of(codemem("complete", f"{indexed}/use.py:3", "--json"))["provenance"]


def modules(root: Path, count: int = 6) -> Path:
    """A repository whose modules call each other."""
    (root / "pkg").mkdir(parents=True)
    for i in range(count):
        other = (i + 1) % count
        body = "".join(f"    total = total + {n} * width\n" for n in range(40))
        (root / "pkg" / f"m{i}.py").write_text(
            f"from pkg.m{other} import f{other}\n\n\ndef f{i}(width):\n    total = f{other}(width, {i})\n{body}"
        )
    return root


def test_eval_prints_what_its_documentation_says_and_goes_on(codemem, tmp_path, model):
    root = modules(tmp_path / "modules")
    options = ["--model", model, "--tasks", 4, "--held-out", 0.3, "--size", 300, "--pieces", 1]
    answer = answer_of(codemem("eval", root, *options, "--plot", tmp_path / "plots", "--json"))
    check_against_documentation("eval", answer)
    assert (answer["documents"], answer["held_out"], answer["lines"]["all"]["tasks"]) == (4, 2, 4)
    drawn = {file.name for file in (tmp_path / "plots").iterdir()}
    assert {"lines-all.png", "lines-all.svg", "likelihood.png", "likelihood.svg"} <= drawn
    (kept,) = (tmp_path / "cache" / "evaluations").iterdir()
    before = kept.read_text()
    assert answer["outcomes"] == str(kept)
    twice, once = pooled([answer, answer]), answer["lines"]
    assert {kind: found["tasks"] for kind, found in twice.items()} == {k: 2 * f["tasks"] for k, f in once.items()}
    for name, arm in twice["all"]["arms"].items():
        assert arm["nats"] == pytest.approx(once["all"]["arms"][name]["nats"])
    again = answer_of(codemem("eval", root, *options, "--part", "lines", "--json"))
    assert again["lines"] == answer["lines"] and "likelihood" not in again
    assert kept.read_text() == before, "nothing was computed again"
    status, out, _ = codemem("eval", root, *options)
    assert status == 0 and "all of memory" in out and "importance" in out


def test_eval_of_what_cannot_be_evaluated(codemem, repository, model):
    status, out, err = codemem("eval", repository, "--model", model)
    assert (status, out) == (1, "") and "define something" in err and "Traceback" not in err
    status, out, err = codemem("eval", repository, "--part", "speed")
    assert (status, out) == (1, "") and "speed is no part" in err


def test_a_gpu_without_room_is_said_with_the_way_round_it(codemem, repository, model, monkeypatch):
    def load(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 224.00 MiB.")

    monkeypatch.setattr("codemem.models.pretrained.load_memorizing", load)
    status, out, err = codemem("index", repository, "--model", model)
    assert (status, out) == (1, "")
    assert err.splitlines() == [
        "error: the GPU has too little memory free",
        f"hint: CUDA_VISIBLE_DEVICES=-1 codemem index {repository} --model {model}",
    ]
