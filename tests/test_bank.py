"""The bank against a plain model: a dictionary of documents, searched by brute force."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from codemem.errors import CodememError
from codemem.memory.bank import Bank
from codemem.memory.entries import Entries
from codemem.memory.order import COMPACT_ABOVE
from codemem.syntax import Symbol

SHAPES = {2: (2, 4), 5: (1, 6)}
LINES_PER_ENTRY = 2  # an entry on lines 1, 3, 5, ...


def entries_of(count: int, seed: int, symbols: tuple[Symbol, ...] = ()) -> Entries:
    generator = torch.Generator().manual_seed(seed)
    return Entries(
        tokens=torch.arange(count, dtype=torch.int32) + seed,
        lines=torch.arange(count, dtype=torch.int32) * LINES_PER_ENTRY + 1,
        columns=torch.arange(count, dtype=torch.int32) % 7 + 1,
        layers={layer: torch.randn(count, kv, 2, d, generator=generator) for layer, (kv, d) in SHAPES.items()},
        symbols=symbols,
    )


def queries_of(layer: int, seed: int, m: int = 3) -> torch.Tensor:
    kv_heads, d = SHAPES[layer]
    return torch.randn(kv_heads, m, d, generator=torch.Generator().manual_seed(seed))


def found_places(bank: Bank, layer: int, queries: torch.Tensor, k: int) -> list[list[tuple[str, int, int]]]:
    """Path, line and column of what a search returns, by head and query."""
    rows = bank.search(layer, queries, k)
    assert rows.shape == (*queries.shape[:2], k)
    found = []
    for row in rows.flatten(0, 1).tolist():
        real = [entry for entry in row if entry >= 0]
        assert row[len(real) :] == [-1] * (k - len(real)), "nothing stands behind the end"
        places = [bank.place(entry) for entry in real]
        found.append([(place.path, place.line, place.column) for place in places])
    return found


def expected_places(
    documents: dict[str, Entries], layer: int, queries: torch.Tensor, k: int, hidden: tuple[str, int] | None = None
) -> list[list[tuple[str, int, int]]]:
    best = []
    for head in range(queries.shape[0]):
        for query in queries[head]:
            scored = [
                (float(entries.layers[layer][i, head, 0] @ query), path, int(entries.lines[i]), int(entries.columns[i]))
                for path, entries in documents.items()
                for i in range(len(entries))
                if hidden is None or path != hidden[0] or entries.lines[i] < hidden[1]
            ]
            best.append([place for _, *place in sorted(scored, reverse=True)[:k]])
    return [[tuple(place) for place in row] for row in best]


class BankAgainstDictionary(RuleBasedStateMachine):
    """Any order of adding, replacing, dropping, hiding and searching."""

    paths = st.sampled_from(["a.py", "b.py", "c/d.py", "e.py", "f.py"])
    kind = "exact"

    def __init__(self) -> None:
        super().__init__()
        self.bank = Bank(SHAPES, index=self.kind)
        self.documents: dict[str, Entries] = {}
        self.seed = 0

    @rule(path=paths, count=st.integers(0, 12))
    def add_or_replace(self, path, count):
        self.seed += 1
        self.documents[path] = entries_of(count, self.seed)
        self.bank.add(path, self.documents[path])

    @rule(path=paths)
    def drop(self, path):
        queries = queries_of(2, 7)
        assert found_places(self.bank, 2, queries, 20) == expected_places(self.documents, 2, queries, 20)
        self.documents.pop(path, None)
        self.bank.drop(path)
        assert found_places(self.bank, 2, queries, 20) == expected_places(self.documents, 2, queries, 20)

    @rule(count=st.integers(1, 5))
    def skip(self, count):
        self.bank.skip(count)

    @rule(rows=st.integers(0, 60))
    def reserve(self, rows):
        self.bank.reserve(rows)

    @rule(layer=st.sampled_from(sorted(SHAPES)), k=st.integers(1, 20), seed=st.integers(0, 99))
    def search(self, layer, k, seed):
        queries = queries_of(layer, seed)
        assert found_places(self.bank, layer, queries, k) == expected_places(self.documents, layer, queries, k)

    @precondition(lambda self: self.documents)
    @rule(data=st.data(), from_line=st.integers(1, 25), layer=st.sampled_from(sorted(SHAPES)), seed=st.integers(0, 99))
    def search_with_a_document_hidden(self, data, from_line, layer, seed):
        path = data.draw(st.sampled_from([*self.documents, "elsewhere.py"]))
        queries = queries_of(layer, seed)
        with self.bank.hiding(path, from_line):
            found = found_places(self.bank, layer, queries, 20)
            assert found == expected_places(self.documents, layer, queries, 20, (path, from_line))
        assert found_places(self.bank, layer, queries, 20) == expected_places(self.documents, layer, queries, 20)

    @rule(layer=st.sampled_from(sorted(SHAPES)))
    def read(self, layer):
        """Whether entries are held together already, for a search, or where they were."""
        for path, entries in self.documents.items():
            rows = self.bank.rows(path, 1, 99).flip(0)
            keys, values = self.bank.read(layer, rows.expand(SHAPES[layer][0], -1))
            expected = entries.layers[layer].flip(0).transpose(0, 1)
            assert torch.equal(keys, expected[:, :, 0]) and torch.equal(values, expected[:, :, 1])

    @rule()
    def build(self):
        self.bank.build()

    @invariant()
    def it_holds_what_the_dictionary_holds(self):
        assert len(self.bank) == sum(len(entries) for entries in self.documents.values())
        assert set(self.bank.documents) == set(self.documents)
        for path, entries in self.documents.items():
            held = self.bank.entries(path)
            assert torch.equal(held.tokens, entries.tokens)
            assert all(torch.equal(held.layers[layer], entries.layers[layer]) for layer in SHAPES)

    @invariant()
    def order_names_every_live_document_once(self):
        order = self.bank.order()
        assert {(path, "", len(entries)) for path, entries in self.documents.items()} <= set(order)
        assert sum(count for _, _, count in order) == self.bank._rows


class FlatBankAgainstDictionary(BankAgainstDictionary):
    kind = "flat"


TestBank = BankAgainstDictionary.TestCase
TestFlatBank = FlatBankAgainstDictionary.TestCase
TestBank.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestFlatBank.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


def held_bank(documents: dict[str, Entries]) -> Bank:
    bank = Bank(SHAPES)
    for path, entries in documents.items():
        bank.add(path, entries)
    return bank


def test_read_gives_the_keys_and_values_of_the_rows_found():
    documents = {"a.py": entries_of(5, 1), "b.py": entries_of(4, 2)}
    bank = held_bank(documents)
    bank.drop("a.py")  # few live rows are left: the bank is compacted, and rows get new numbers
    bank.add("c.py", entries_of(3, 3))
    for layer in SHAPES:
        rows = bank.search(layer, queries_of(layer, 4), 7)
        keys, values = bank.read(layer, rows)
        live = torch.cat((documents["b.py"].layers[layer], entries_of(3, 3).layers[layer]))
        for head in range(SHAPES[layer][0]):
            assert torch.equal(keys[head].unique(dim=1), live[:, head, 0][rows[head]].unique(dim=1))
            assert torch.equal(values[head], live[:, head, 1][rows[head]])


def test_a_search_of_states_copies_no_keys():
    """They stay where they are, in the files of a store, until a search of keys wants all of them."""
    documents = {"a.py": entries_of(5, 1), "b.py": entries_of(4, 2)}
    bank = held_bank(documents)
    assert all(bank.entries(path).layers[2] is entries.layers[2] for path, entries in documents.items())
    bank.search(2, queries_of(2, 4), 7)
    assert all(bank.entries(path).layers[2] is not entries.layers[2] for path, entries in documents.items())


def test_a_bank_that_was_searched_in_inference_mode_takes_more():
    bank = held_bank({"a.py": entries_of(5, 1)})
    with torch.inference_mode():
        bank.search(2, queries_of(2, 4), 7)
    bank.add("b.py", entries_of(4, 2))
    assert torch.equal(bank.entries("b.py").layers[2], entries_of(4, 2).layers[2])


def test_place_names_the_innermost_definition():
    symbols = (Symbol("Door", 1, 9), Symbol("Door.open", 3, 5))
    bank = held_bank({"empty.py": entries_of(0, 1), "door.py": entries_of(6, 2, symbols)})
    rows = bank.search(2, queries_of(2, 0, m=1), 6)[0, 0]
    places = sorted((bank.place(row) for row in rows.tolist()), key=lambda place: place.line)
    assert [str(place) for place in places] == [
        "door.py:1 in Door",
        "door.py:3 in Door.open",
        "door.py:5 in Door.open",
        "door.py:7 in Door",
        "door.py:9 in Door",
        "door.py:11",
    ]


# Four bugs of the memory in memorizing-transformers-pytorch, each as a test of this one.


def test_ids_do_not_drift_when_a_bank_is_emptied_and_filled_again():
    bank = Bank(SHAPES)
    for round_ in range(4):
        documents = {f"{round_}{name}.py": entries_of(6, 10 * round_ + number) for number, name in enumerate("abc")}
        for path, entries in documents.items():
            bank.add(path, entries)
        for layer in SHAPES:
            queries = queries_of(layer, round_)
            assert found_places(bank, layer, queries, 8) == expected_places(documents, layer, queries, 8)
        for path in documents:
            bank.drop(path)
        assert len(bank) == 0 and bank.nbytes == 0, "nothing of an emptied bank stays behind"


def test_adding_to_one_document_moves_no_other_documents_rows():
    bank = held_bank({"a.py": entries_of(20, 1)})
    before = {row: bank.place(row) for row in range(20)}
    keys = bank.read(2, torch.arange(20).expand(2, -1))[0].clone()
    bank.add("b.py", entries_of(5, 2))
    assert {row: bank.place(row) for row in range(20)} == before
    assert torch.equal(bank.read(2, torch.arange(20).expand(2, -1))[0], keys)


def test_dropping_everything_works_at_any_time():
    bank = Bank(SHAPES)
    bank.drop("never.py")
    assert (bank.search(2, queries_of(2, 0), 3) == -1).all()
    bank.add("a.py", entries_of(3, 1))
    bank.build()
    bank.drop("a.py")
    bank.drop("a.py")
    assert (bank.search(2, queries_of(2, 0), 3) == -1).all()


def test_compaction_frees_the_dead_and_keeps_the_living():
    documents = {f"{number}.py": entries_of(10, number) for number in range(10)}
    bank = held_bank(documents)
    full = bank.nbytes
    for number in range(round(COMPACT_ABOVE * 10)):
        bank.drop(f"{number}.py")
        del documents[f"{number}.py"]
    assert bank.nbytes == full, "few dead rows cost less than moving the others"
    bank.drop("9.py")
    del documents["9.py"]
    assert bank.nbytes == full * 6 // 10
    for layer in SHAPES:
        queries = queries_of(layer, 5)
        assert found_places(bank, layer, queries, 60) == expected_places(documents, layer, queries, 60)


def test_a_document_dropped_or_replaced_while_it_is_hidden():
    bank = held_bank({"a.py": entries_of(10, 1), "b.py": entries_of(30, 2)})
    with bank.hiding("a.py"):
        bank.drop("a.py")
    assert len(bank) == 30
    assert "a.py" not in {path for row in found_places(bank, 2, queries_of(2, 1), 40) for path, _, _ in row}
    with bank.hiding("b.py", 11):
        bank.add("b.py", entries_of(4, 3))
    assert found_places(bank, 2, queries_of(2, 1), 9) == expected_places(
        {"b.py": entries_of(4, 3)}, 2, queries_of(2, 1), 9
    )


def test_an_inverted_file_grows_with_the_bank():
    bank = Bank(SHAPES, index="ivf")
    assert (bank.search(2, queries_of(2, 0), 3) == -1).all(), "an index of nothing finds nothing"
    documents = {f"{number}.py": entries_of(40, number) for number in range(8)}
    for path, entries in documents.items():
        bank.add(path, entries)
        found = found_places(bank, 2, queries_of(2, 0), 400)
        assert {place for row in found for place in row} <= {
            (name, int(line), int(column))
            for name, held in documents.items()
            for line, column in zip(held.lines, held.columns, strict=True)
        }
        assert any(place[0] == path for row in found for place in row), "a new document is found at once"


def test_skipped_rows_do_not_spoil_an_index_trained_later():
    """Rows of a document that is gone hold nothing; an index that is trained on all rows must not learn from them."""
    torch.full((506 * 16,), float("nan"))  # freed at once, so that it is what the bank is given
    bank = Bank(SHAPES, index="ivf")
    bank.reserve(506)
    bank.add("a.py", entries_of(3, 1))
    bank.skip(500)
    bank.add("b.py", entries_of(3, 2))
    bank.build()
    found = found_places(bank, 2, queries_of(2, 3, m=20), 6)
    assert {path for row in found for path, _, _ in row} == {"a.py", "b.py"}


@pytest.mark.parametrize("shapes", [{2: (2, 4)}, {2: (2, 4), 5: (2, 6)}, {2: (2, 4), 6: (1, 6)}])
def test_entries_of_other_layers_or_heads_are_refused(shapes):
    bank = Bank(shapes)
    with pytest.raises(CodememError, match=r"the entries of a\.py have memory layers and heads") as refusal:
        bank.add("a.py", entries_of(2, 1))
    assert refusal.value.hint == "codemem index"
    assert len(bank) == 0


def test_what_is_hidden_stays_hidden_when_the_bank_is_rebuilt_meanwhile():
    bank = held_bank({name: entries_of(5, seed) for seed, name in enumerate("abc")})
    with bank.hiding("a"):
        bank.drop("b")
        bank.drop("c")
        assert (bank.search(2, queries_of(2, 0), 5) == -1).all()
    assert (bank.search(2, queries_of(2, 0), 5) >= 0).all()
