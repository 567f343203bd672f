"""Benchmarks are run seldom: that they start is seen here."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

import benchmarks
from benchmarks.daemon import idle

MODULES = sorted(file.stem for file in Path(benchmarks.__path__[0]).glob("*.py") if file.stem != "__init__")


@pytest.mark.parametrize("name", MODULES)
def test_a_benchmark_can_be_imported(name):
    assert import_module(f"benchmarks.{name}").__doc__


def test_a_wait_is_the_time_in_which_no_completion_ran():
    assert idle(0, 10, [(8, 12), (2, 4), (3, 6), (20, 30), (-5, -1)]) == 4
    assert idle(3, 5, [(2, 6)]) == 0
    assert idle(3, 5, []) == 2
