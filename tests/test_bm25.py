from __future__ import annotations

import os
import subprocess
import sys

import pytest

from codemem.evaluation.bm25 import WindowIndex, split


def numbered(count: int, word: str = "filler") -> list[str]:
    return [f"{word} {number}" for number in range(1, count + 1)]


def test_words_are_the_parts_of_names():
    text = "HTTPServer.get_user_name2(maxTokens=10, _größe) # Don't"
    assert split(text) == ["http", "server", "get", "user", "name", "2", "max", "tokens", "10", "größe", "don", "t"]


@pytest.mark.parametrize(
    ("lines", "windows"),
    [
        (1, ["1-1"]),
        (20, ["1-20"]),
        (21, ["1-20", "11-21"]),
        (30, ["1-20", "11-30"]),
        (31, ["1-20", "11-30", "21-31"]),
    ],
)
def test_windows_overlap_by_half_and_none_is_part_of_another(lines: int, windows: list[str]):
    index = WindowIndex([("a.py", "\n".join(numbered(lines)) + "\n")])
    assert len(index) == len(windows)
    found = index.snippets("filler", count=9)
    assert sorted(str(snippet) for snippet in found) == [f"a.py:{window}" for window in windows]


def test_the_window_that_shares_most_comes_first():
    text = numbered(60)
    text[34] = "def open_bank(path):"
    index = WindowIndex([("a.py", "\n".join(text)), ("b.py", "bank\n"), ("c.py", "other\n")])
    found = index.snippets("x = openBank(PATH)\n")
    assert {str(snippet) for snippet in found[:2]} == {"a.py:21-40", "a.py:31-50"}
    assert found[0].text.split("\n")[found[0].text.count("\n", 0, found[0].text.index("def"))] == text[34]
    assert str(found[2]) == "b.py:1-1"
    assert len(found) == 3
    assert found[0].weight >= found[1].weight > found[2].weight > 0
    assert len(index.snippets("openBank(PATH)", count=1)) == 1


def test_a_document_can_be_passed_over():
    index = WindowIndex([("a.py", "alpha beta\n"), ("b.py", "alpha\n")])
    assert [snippet.path for snippet in index.snippets("alpha beta", count=1, exclude_path="a.py")] == ["b.py"]


def test_only_the_last_lines_ask():
    index = WindowIndex([("a.py", "alpha\n"), ("b.py", "beta\n")])
    assert {snippet.path for snippet in index.snippets("alpha" + "\nbeta" * 19)} == {"a.py", "b.py"}
    assert [snippet.path for snippet in index.snippets("alpha" + "\nbeta" * 20)] == ["b.py"]


def test_nothing_is_found_where_nothing_is():
    assert WindowIndex([]).snippets("alpha") == []
    index = WindowIndex([("blank.py", "\n \n--\n"), ("a.py", "alpha\n")])
    assert len(index) == 1
    assert index.snippets("beta") == index.snippets("...") == index.snippets("") == []


def test_it_works_in_silence(capfd: pytest.CaptureFixture[str]):
    WindowIndex([("a.py", "\n".join(numbered(200)))]).snippets("filler")
    assert capfd.readouterr() == ("", "")


def test_jax_is_kept_off_the_gpu(tmp_path):
    """bm25s lets it compute something as soon as it is imported, and it takes most of a GPU's memory for that."""
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("")
    (tmp_path / "jax" / "lax.py").write_text(
        "import os\nprint('platforms:', os.environ.get('JAX_PLATFORMS'))\ntop_k = lambda *_: None\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), *sys.path])
    made = "from codemem.evaluation.bm25 import WindowIndex; WindowIndex([])"
    result = subprocess.run([sys.executable, "-c", made], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout == "platforms: cpu\n"
