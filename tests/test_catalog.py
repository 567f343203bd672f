from __future__ import annotations

import re

import pytest

from codemem.models.catalog import CATALOG, DEFAULT_MODEL, HubSource, WheelSource, find
from codemem.models.fetch import megabytes


def test_names_are_unique_and_can_be_typed():
    names = [entry.name for entry in CATALOG]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9.-]+", name) for name in names)


def test_the_default_comes_from_a_pinned_wheel_with_a_checksum():
    entry = find(DEFAULT_MODEL)
    assert entry is not None
    assert isinstance(entry.source, WheelSource)
    assert re.fullmatch(r"[0-9a-f]{64}", entry.source.sha256)
    assert "==" in entry.source.requirement


@pytest.mark.parametrize("spec", ["qwen2.5-coder-0.5b", "Qwen2.5-Coder-0.5B", "Qwen/Qwen2.5-Coder-0.5B"])
def test_a_model_is_found_by_name_and_by_hub_id_in_any_case(spec):
    entry = find(spec)
    assert entry is not None
    assert entry.source == HubSource("Qwen/Qwen2.5-Coder-0.5B")


def test_base_and_instruct_are_two_entries():
    instruct = find("qwen2.5-coder-0.5b-instruct")
    assert instruct is not None
    assert instruct.source == HubSource("Qwen/Qwen2.5-Coder-0.5B-Instruct")


def test_an_unknown_name_is_not_found():
    assert find("gpt-17") is None


def test_sizes_are_written_for_people():
    assert megabytes(92_871_040) == "93 MB"
    assert megabytes(15_240_000_000) == "15.2 GB"
