"""Text that is not saved yet: what of it is encoded, and what memory reads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from json_docs import answer_of
from tiny import tiny_model, tiny_tokenizer

from codemem.memory.banks import Banks
from codemem.models.encode import EncodingWindow
from codemem.models.memorizing import MemorizingModel
from codemem.texts import Text
from indexer.buffers import remember_buffer
from indexer.documents import parsed
from indexer.walk import SkipReason, verdict, walk

WINDOW = EncodingWindow(size=160, overlap=24)
LINES = [f"def f{number}():\n    return {number * number}\n" for number in range(40)]
TEXT = "".join(LINES)


@pytest.fixture
def banks():
    model = MemorizingModel(tiny_model(), tiny_tokenizer())
    model.remember("width = 3\n", "other.py")
    (entries,) = model.encode([parsed("a.py", TEXT, "python")], window=WINDOW)
    model.bank.add("a.py", entries)
    banks = Banks(model.bank)
    model.bank = banks
    banks.model = model
    return banks


def remembered(banks: Banks, root, text: str, until: int | None = None, path: str = "a.py") -> int:
    """Remember a buffer. Returns the number of windows that were encoded."""
    passes: list[None] = []
    options = {"window": WINDOW, "batch_tokens": 1, "pause": lambda: passes.append(None)}
    assert remember_buffer(banks.model, banks, root, path, text, until, **options) is None
    return len(passes)


def test_what_did_not_change_is_not_encoded(banks, tmp_path):
    assert remembered(banks, tmp_path, TEXT) == 0
    windows = len(banks.entries("a.py").windows)
    assert windows > 6
    edited = TEXT.replace("return 400\n", "return x\n")
    assert 1 <= remembered(banks, tmp_path, edited) <= 4
    assert remembered(banks, tmp_path, edited + "y = 1\n") <= 2
    assert 1 <= remembered(banks, tmp_path, TEXT) <= 4, "from what was typed before, not from the file"


def test_an_edit_is_read_as_if_all_had_been_encoded(banks, tmp_path):
    edited = TEXT.replace("return 121\n", "return 121\n\n\nclass C:\n    pass\n")
    remembered(banks, tmp_path, edited)
    mine = banks.entries("a.py")
    (fresh,) = banks.model.encode([parsed("a.py", edited, "python")], window=WINDOW)
    assert torch.equal(mine.tokens, fresh.tokens) and torch.equal(mine.lines, fresh.lines)
    assert mine.windows == fresh.windows and mine.symbols == fresh.symbols
    torch.testing.assert_close(mine.layers, fresh.layers, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("lines", [1, 7, 30, 60])
def test_far_above_what_changed_nothing_is_encoded(banks, tmp_path, lines):
    until = len("".join(TEXT.splitlines(keepends=True)[:lines]))
    assert remembered(banks, tmp_path, TEXT + "x = (\n", until=until) == 0
    assert banks.last_line("a.py") == lines


def test_secret_values_are_masked_and_ignored_paths_are_not_read(banks, tmp_path):
    token = "ghp_" + "Zk3Qw9Rt7Yp2Lm5Xc8Vb1Nh4Jd6Gs0AuEiOo"[:36]
    remembered(banks, tmp_path, f"key = '{token}'\n", path="b.py")
    ids, _ = banks.tokens("b.py", 1, 1)
    assert banks.model.tokenizer.decode(ids) == f"key = 'ghp_{'*' * 36}'\n"
    (tmp_path / ".gitignore").write_text("mine/\n")
    for path, reason in (("mine/c.py", SkipReason.IGNORED), (".env", SkipReason.SECRET), ("d.py", SkipReason.EMPTY)):
        text = "" if path == "d.py" else "x = 1\n"
        assert remember_buffer(banks.model, banks, tmp_path, path, text) is reason
    assert set(banks.documents) == {"a.py", "b.py", "other.py"}


def test_one_path_is_judged_as_the_walk_judges_it(tmp_path):
    rules = {
        ".gitignore": "*.tmp.py\n/secretly/\n",
        ".codememignore": "!node_modules/\n!vendor/\nnode_modules/*\n!node_modules/ours/\n",
        "src/.gitignore": "local.py\n",
        "environment/pyvenv.cfg": "",
    }
    files = """a.py a.tmp.py secretly/b.py src/local.py local.py src/deep/local.py build/c.py web/build/d.js
        environment/e.py environment/lib/f.py node_modules/theirs/g.js node_modules/ours/h.js vendor/i.go .env
        credentials.json src/logo.png go.sum j.min.js Makefile notes.unknown .hidden __pycache__/k.py .git/hooks/l.py"""
    for path, text in (*rules.items(), *((path, "x\n") for path in files.split()), ("web/package.json", "{}\n")):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    walked = walk(tmp_path)
    taken = {file.path for file in walked.files}
    assert {"a.py", "local.py", "node_modules/ours/h.js", "vendor/i.go", "build/c.py"} <= taken
    for path in files.split():
        assert (verdict(tmp_path, path, 2) is None) == (path in taken), path
        if path in walked.skipped:
            assert verdict(tmp_path, path, 2) == walked.skipped[path]
    assert verdict(tmp_path, "src/not/there/yet.py", 2) is None
    assert verdict(tmp_path, "a.py", 2_000_000) is SkipReason.TOO_LARGE
    assert verdict(tmp_path, "a.json", 40_000) is SkipReason.DATA


def test_a_text_whose_windows_are_not_known_is_encoded_again(banks, tmp_path):
    (entries,) = banks.model.encode([Text("c.py", "height = 4\n")])
    banks.bank.add("c.py", replace(entries, windows=()))
    assert remembered(banks, tmp_path, "height = 4\n", path="c.py") == 1
    assert torch.equal(banks.entries("c.py").tokens, entries.tokens)
    assert remembered(banks, tmp_path, "height = 4\n", path="c.py") == 0, "now they are known"


def test_a_changed_file_is_read_above_the_window_as_it_is_now(codemem, indexed):
    above = "".join(f"def area_of_{number}(width, height):\n    return width * height\n" for number in range(12))
    (indexed / "use.py").write_text(above + "print(area(\n")
    answer = answer_of(codemem("complete", f"{indexed}/use.py:25", "--context", 64, "--no-recall", "--json"))
    mine = {source["line"] for source in answer["provenance"] if source["path"] == "use.py"}
    assert mine and max(mine) < 24
    names = {source["symbol"] for source in answer["provenance"] if source["path"] == "use.py"}
    assert any(name and name.startswith("area_of_") for name in names), "not the file as it was indexed"
