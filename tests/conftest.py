"""What tests of several commands share."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import save_directory

from cli.app import main

SHAPES = "def area(width, height):\n    return width * height\n"
USE = "from shapes import area\n\nprint(area(\n"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """What a test printed goes from process to process in UTF-8, and some tests are about what UTF-8 cannot say."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture
def model(tmp_path) -> Path:
    return save_directory(tmp_path / "models" / "tiny")


@pytest.fixture(autouse=True)
def no_daemon_of_this_user(monkeypatch) -> Iterator[None]:
    """Sockets, and what is counted, in places of the test's own; with a short path, as sockets want it."""
    with tempfile.TemporaryDirectory(prefix="cm", dir="/tmp") as folder:
        monkeypatch.setenv("CODEMEM_RUNTIME", f"{folder}/run")
        monkeypatch.setenv("CODEMEM_STATE", f"{folder}/state")
        yield


@pytest.fixture
def codemem(tmp_path, monkeypatch, capsys):
    """Run a command in this process, through the console script's function: (exit status, stdout, stderr)."""
    monkeypatch.setenv("CODEMEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CODEMEM_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["codemem", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run


@pytest.fixture
def repository(tmp_path) -> Path:
    root = tmp_path / "repository"
    root.mkdir()
    (root / "shapes.py").write_text(SHAPES)
    (root / "use.py").write_text(USE)
    (root / "logo.png").write_bytes(b"\x89PNG")
    return root


@pytest.fixture
def indexed(codemem, repository, model) -> Path:
    status, _, err = codemem("index", repository, "--model", model)
    assert status == 0, err
    return repository
