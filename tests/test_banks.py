"""Several banks that are read as one."""

from __future__ import annotations

import pytest
import torch
from conftest import SHAPES, USE
from json_docs import answer_of
from tiny import save_directory, tiny_model, tiny_tokenizer

from codemem.completion.engine import Engine
from codemem.completion.request import Request
from codemem.memory.bank import Bank
from codemem.memory.banks import STRIDE, Banks
from codemem.memory.entries import Entries
from codemem.memory.states import compress
from codemem.models.memorizing import MemorizingModel
from codemem.texts import Text

LAYERS = {1: (2, 4)}
SIZE = 12


def entries_of(count: int, seed: int) -> Entries:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.arange(count, dtype=torch.int32)
    pairs = torch.randn(count, 2, 2, 4, generator=generator)
    states = compress(torch.randn(count, SIZE, generator=generator))
    return Entries(numbers + 100 * seed, numbers // 10 + 1, numbers % 10 + 1, {1: pairs}, (), states)


def bank_of(**documents: Entries) -> Bank:
    bank = Bank(LAYERS, index="exact", state_size=SIZE)
    for name, entries in documents.items():
        bank.add(f"{name}.py", entries)
    return bank


def places(banks: Bank | Banks, rows: torch.Tensor) -> list[tuple[str, int, int]]:
    found = [banks.place(row) for row in rows.flatten().tolist()]
    return [(place.path, place.line, place.column) for place in found]


@pytest.fixture
def banks():
    banks = Banks(bank_of(a=entries_of(40, 1), b=entries_of(30, 2)), {"../lib/": bank_of(c=entries_of(25, 3))})
    banks.write("d.py", entries_of(20, 4))
    return banks


@pytest.fixture
def together():
    """The same entries in one bank."""
    lib = entries_of(25, 3)
    return bank_of(a=entries_of(40, 1), b=entries_of(30, 2), **{"../lib/c": lib}, d=entries_of(20, 4))


def test_the_best_of_all_are_found_and_read(banks, together):
    assert len(banks) == len(together) == 115
    assert sorted(banks.documents) == sorted(together.documents)
    queries = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(9))
    rows, expected = banks.search(1, queries, 8), together.search(1, queries, 8)
    assert places(banks, rows) == places(together, expected)
    assert len({row // STRIDE for row in rows.flatten().tolist()}) == 3, "some of every bank"
    for mine, theirs in zip(banks.read(1, rows), together.read(1, expected), strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(banks.following(rows), together.following(expected))


def test_states_of_all_are_found(banks):
    for path, seed in (("a.py", 1), ("../lib/c.py", 3), ("d.py", 4)):
        generator = torch.Generator().manual_seed(seed)
        count = len(entries_of(40 if seed == 1 else 25 if seed == 3 else 20, seed))
        torch.randn(count, 2, 2, 4, generator=generator)
        queries = torch.randn(count, SIZE, generator=generator)[3:5]
        rows, similarity = banks.nearest(queries, 4)
        assert [place[0] for place in places(banks, rows[:, 0])] == [path, path]
        assert (similarity[:, 0] > 0.9).all() and (similarity.diff(dim=-1) <= 0).all()


def test_the_first_question_is_answered_as_the_second(banks):
    queries = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(5))
    first, second = banks.nearest(queries, 8), banks.nearest(queries, 8)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_unsaved_text_stands_for_the_file_until_it_is_saved(banks):
    before = banks.bank.entries("a.py").layers[1][:, :, 0].transpose(0, 1).clone()

    def seen() -> set[str]:
        return {path for path, line, _ in places(banks, banks.search(1, before, 3)) if path == "a.py" and line > 1}

    assert seen()
    banks.write("a.py", entries_of(10, 7))
    assert not seen(), "only one line of a.py is left, the one being written"
    assert len(banks) == 115 + 10, "nothing left the bank"
    assert banks.last_line("a.py") == 1
    tokens, line = banks.tokens("a.py", 1, 1)
    assert (tokens.tolist(), line) == (list(range(700, 710)), 1)
    banks.settle("a.py")
    assert seen() and len(banks) == 115
    banks.settle("a.py")


def test_old_unsaved_texts_go_and_nothing_else(banks, monkeypatch):
    monkeypatch.setattr("codemem.memory.banks.RECENT_ENTRIES", 45)
    banks.write("e.py", entries_of(20, 5))
    banks.write("d.py", entries_of(20, 6))
    banks.write("f.py", entries_of(20, 8))
    assert set(banks.documents) == {"a.py", "b.py", "../lib/c.py", "d.py", "f.py"}, "e.py was written longest ago"
    banks.write("g.py", entries_of(90, 9))
    assert set(banks.documents) == {"a.py", "b.py", "../lib/c.py", "g.py"}, "the last one stays, however long"
    assert len(banks.bank) == 70


def test_the_current_document_is_hidden_in_both(banks):
    banks.write("a.py", entries_of(40, 7))
    queries = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(9))
    with banks.hiding("a.py", 2):
        found = places(banks, banks.search(1, queries, 100)[:, :, :60])
        assert {line for path, line, _ in found if path == "a.py"} == {1}


def test_an_empty_bank_beside_others_does_no_harm():
    banks = Banks(bank_of(), {"../lib/": bank_of(c=entries_of(25, 3))})
    rows = banks.search(1, torch.randn(2, 2, 4), 3)
    assert {path for path, _, _ in places(banks, rows)} == {"../lib/c.py"}
    assert len(Banks(bank_of())) == 0


def test_what_is_being_written_elsewhere_is_read_and_named():
    model = MemorizingModel(tiny_model(), tiny_tokenizer())
    model.remember(SHAPES, "shapes.py")
    banks = Banks(model.bank)
    model.bank = banks
    (entries,) = model.encode([Text("unsaved.py", "def perimeter(width, height):\n    return 2 * (width + height)\n")])
    banks.write("unsaved.py", entries)
    completion = Engine(model, "tiny").complete(Request("use.py", USE, len(USE) - 1))
    assert completion.memory.documents == 2
    assert {source.path for source in completion.provenance} == {"shapes.py", "unsaved.py"}


def test_another_repository_is_read_only_where_it_is_named(codemem, indexed, model, tmp_path):
    lib = tmp_path / "lib"
    lib.mkdir()
    (lib / "volumes.py").write_text("def volume(width, height, depth):\n    return width * height * depth\n")
    assert codemem("index", lib, "--model", model)[0] == 0
    before = {file: file.stat().st_mtime_ns for file in (lib / ".codemem" / "blobs").iterdir()}
    alone = answer_of(codemem("complete", f"{indexed}/use.py:3", "--json"))
    both = answer_of(codemem("complete", f"{indexed}/use.py:3", "--with", lib, "--json"))
    assert {source["path"] for source in alone["provenance"]} == {"shapes.py"}
    assert {source["path"] for source in both["provenance"]} == {"shapes.py", "../lib/volumes.py"}
    assert {snippet["path"] for snippet in both["memory"]["snippets"]} <= {"shapes.py", "../lib/volumes.py"}
    assert {file: file.stat().st_mtime_ns for file in (lib / ".codemem" / "blobs").iterdir()} == before
    other = save_directory(tmp_path / "other", seed=3)
    assert codemem("index", lib, "--model", other, "--rebuild")[0] == 0
    status, _, err = codemem("complete", f"{indexed}/use.py:3", "--with", lib)
    assert status == 1 and "cannot be read by tiny" in err
    status, _, err = codemem("complete", f"{indexed}/use.py:3", "--with", tmp_path / "nowhere")
    assert status == 1 and "has no memory" in err
