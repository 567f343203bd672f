"""With the embedded model: a small package, a use in one file of what another one defines, and where memory read it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.weights

LEDGER = '''"""A ledger of what was lent to whom."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Ledger:
    """Open loans, by borrower."""

    loans: dict[str, list[str]] = field(default_factory=dict)

    def record_loan(self, borrower: str, title: str, weeks: int = 4) -> None:
        """Note that `borrower` has `title` for so many weeks."""
        self.loans.setdefault(borrower, []).append(title)

    def settle_loan(self, borrower: str, title: str) -> None:
        """Note that `title` came back."""
        self.loans[borrower].remove(title)
        if not self.loans[borrower]:
            del self.loans[borrower]


def open_ledger() -> Ledger:
    """The ledger of today."""
    return Ledger()
'''
PRINTING = '''"""Lists for the door of the library."""

from __future__ import annotations


def headline(text: str, width: int = 40) -> str:
    """A text in the middle of a line of dashes."""
    return f" {text} ".center(width, "-")


def bullet_list(items: list[str]) -> str:
    """One item a line."""
    return "\\n".join(f"* {item}" for item in items)
'''
DESK = '''"""The desk where books are lent."""

from __future__ import annotations

from library.ledger import open_ledger
from library.printing import headline


def lend(borrower: str, title: str) -> None:
    print(headline(f"{borrower} takes {title}"))
    ledger = open_ledger()
    ledger.record_loan(borrower, title)


def take_back(borrower: str, title: str) -> None:
    print(headline(f"{borrower} brings {title}"))
    ledger = open_ledger()
    ledger.
'''
CURSOR = f"library/desk.py:{len(DESK.splitlines())}"


def codemem(root: Path, *arguments: str) -> dict:
    """A command in a process of its own."""
    command = [sys.executable, "-c", "from cli.app import main; main()", *arguments, "--json"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_a_use_is_completed_from_the_file_that_defines_it_and_not_once_that_is_gone(tmp_path):
    package = tmp_path / "library"
    package.mkdir()
    for name, text in (("ledger", LEDGER), ("printing", PRINTING), ("desk", DESK)):
        (package / f"{name}.py").write_text(text)
    summary = codemem(tmp_path, "index", ".")
    assert summary["documents"] == 3 and summary["tokens"] > 300

    answer = codemem(tmp_path, "complete", CURSOR, "--recall")
    assert answer["text"]
    assert answer["memory"]["share"] > 0.001
    assert sum(source["weight"] for source in answer["provenance"]) == pytest.approx(1, abs=1e-6)
    weights = {"library/ledger.py": 0.0, "library/printing.py": 0.0}
    for source in answer["provenance"]:
        weights[source["path"]] += source["weight"]  # a KeyError: it read its own file inside the window
    assert weights["library/ledger.py"] > weights["library/printing.py"]
    assert "Ledger.settle_loan" in {source["symbol"] for source in answer["provenance"]}

    without = codemem(tmp_path, "complete", CURSOR, "--no-memory")
    assert without["memory"] is None and without["provenance"] == []

    (package / "ledger.py").unlink()
    summary = codemem(tmp_path, "index", ".")
    assert (summary["documents"], summary["tokens"]) == (2, 0)
    answer = codemem(tmp_path, "complete", CURSOR, "--recall")
    assert {source["path"] for source in answer["provenance"]} == {"library/printing.py"}
