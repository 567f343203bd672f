"""What the README shows runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def library_example() -> str:
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    (example,) = (block for block in blocks if "MemorizingModel(" in block)
    return example


def test_the_library_example_is_ten_lines():
    lines = [line for line in library_example().splitlines() if line.strip()]
    assert len(lines) <= 10
    assert all(len(line) <= 120 for line in lines)


def test_what_the_library_example_imports_is_public():
    import codemem

    (names,) = re.findall(r"^from codemem import (.+)$", library_example(), re.MULTILINE)
    assert set(names.split(", ")) <= set(codemem.__all__)


def test_the_demo_stands_where_the_readme_says():
    (cursor,) = re.findall(r"^DEMO_CURSOR \?= (\S+)$", (README.parent / "Makefile").read_text(), re.MULTILINE)
    file, line, column = cursor.split(":")
    text = (README.parent / file).read_text().splitlines()[int(line) - 1]
    before, behind = text[: int(column) - 1], text[int(column) - 1 :]
    assert before.endswith("raise CodememError(")
    assert f"codemem complete {cursor} --explain" in README.read_text()
    assert f"What really stands there:\n`{behind}`." in README.read_text()


@pytest.mark.weights
def test_the_library_example_runs_as_it_stands():
    result = subprocess.run([sys.executable, "-c", library_example()], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "print(area(" in result.stdout
    assert result.stdout.split("print(area(", 1)[1].strip(), "something was generated"
