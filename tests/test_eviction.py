"""A bank that is full, against a plain model: lists of entries that remember when and how much they were read."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from codemem.memory.bank import Bank
from codemem.memory.entries import Entries
from codemem.memory.fingerprint import Fingerprint
from codemem.memory.manifest import Record
from codemem.memory.snapshot import open_bank
from codemem.memory.states import compress
from codemem.memory.store import Store

SHAPES = {2: (2, 4)}
SIZE = 8
POLICIES = ("fifo", "lru", "importance")


def entries_of(count: int, seed: int) -> Entries:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.arange(count, dtype=torch.int32)
    layers = {layer: torch.randn(count, kv, 2, d, generator=generator) for layer, (kv, d) in SHAPES.items()}
    states = compress(torch.randn(count, SIZE, generator=generator))
    return Entries(numbers, numbers + 1, numbers % 3 + 1, layers, (), states)


def searchable(bank: Bank) -> list[set[tuple[str, int]]]:
    """Path and line of all that the two searches find, whatever is asked."""
    generator = torch.Generator().manual_seed(1)
    many = bank._rows + 3
    by_layer = bank.search(2, torch.randn(2, 2, 4, generator=generator), many).flatten(0, 1)
    by_state = bank.nearest(torch.randn(2, SIZE, generator=generator), many)[0]
    found = []
    for row in [*by_layer.tolist(), *by_state.tolist()]:
        places = [bank.place(number) for number in row if number >= 0]
        found.append({(place.path, place.line) for place in places})
        assert len(found[-1]) == len(places), "nothing is found twice"
    return found


@dataclass
class Remembered:
    line: int
    live: bool = True
    read_at: int = 0
    mass: float = 0.0


class FullBankAgainstLists(RuleBasedStateMachine):
    """Any order of adding, dropping, reading and evicting."""

    paths = st.sampled_from(["a.py", "b.py", "c.py", "d.py", "e.py", "f.py"])

    @initialize(capacity=st.none() | st.integers(0, 30), policy=st.sampled_from(POLICIES))
    def empty(self, capacity, policy):
        self.bank = Bank(SHAPES, state_size=SIZE, capacity=capacity, eviction=policy)
        self.documents: dict[str, list[Remembered]] = {}
        self.reads = self.seed = 0

    def evicted(self, capacity: int, policy: str, spared: str | None = None) -> int:
        """What should go goes; returns how many."""
        worth = {"fifo": lambda entry: 0, "lru": lambda entry: entry.read_at, "importance": lambda entry: entry.mass}
        others = [e for path, entries in self.documents.items() if path != spared for e in entries if e.live]
        last = [entry for entry in self.documents.get(spared, []) if entry.live]
        going = sorted(others, key=worth[policy]) + sorted(last, key=worth[policy])
        going = going[: max(0, len(going) - capacity)]
        for entry in going:
            entry.live = False
        return len(going)

    @rule(path=paths, count=st.integers(0, 12))
    def add_or_replace(self, path, count):
        self.seed += 1
        self.documents.pop(path, None)
        self.documents[path] = [Remembered(line + 1) for line in range(count)]
        self.bank.add(path, entries_of(count, self.seed))
        if self.bank.capacity is not None:
            self.evicted(self.bank.capacity, self.bank.eviction, path)

    @rule(path=paths)
    def drop(self, path):
        self.documents.pop(path, None)
        self.bank.drop(path)

    @rule(seed=st.integers(0, 99), k=st.integers(1, 6), token_memory=st.booleans())
    def read(self, seed, k, token_memory):
        generator = torch.Generator().manual_seed(seed)
        if token_memory:
            rows = self.bank.nearest(torch.randn(2, SIZE, generator=generator), k)[0]
        else:
            rows = self.bank.search(2, torch.randn(2, 2, 4, generator=generator), k)
        weights = torch.randint(0, 8, rows.shape, generator=generator) / 8  # sums of eighths are exact
        self.bank.note(rows, weights)
        if self.bank.capacity is None:
            return
        self.reads += 1
        for row, weight in zip(rows.flatten().tolist(), weights.flatten().tolist(), strict=True):
            if row >= 0:
                place = self.bank.place(row)
                entry = self.documents[place.path][place.line - 1]
                entry.read_at, entry.mass = self.reads, entry.mass + weight

    @rule(capacity=st.integers(0, 40), policy=st.sampled_from([None, *POLICIES]), spared=st.none() | paths)
    def evict(self, capacity, policy, spared):
        went = self.bank.evict(capacity, policy, spared=spared)
        assert went == self.evicted(capacity, policy or self.bank.eviction, spared)

    @rule(capacity=st.integers(0, 20), policy=st.sampled_from(POLICIES))
    def evict_for_a_while(self, capacity, policy):
        before = searchable(self.bank)
        with self.bank.evicted(capacity, policy):
            live = [entry for entries in self.documents.values() for entry in entries if entry.live]
            went = self.evicted(capacity, policy)
            self.it_finds_what_the_lists_hold()
        for entry in live:
            entry.live = True
        assert searchable(self.bank) == before and (went == 0 or len(self.bank) > capacity)

    @invariant()
    def it_finds_what_the_lists_hold(self):
        expected = {(path, e.line) for path, entries in self.documents.items() for e in entries if e.live}
        assert len(self.bank) == len(expected)
        assert all(found == expected for found in searchable(self.bank))
        assert self.bank.capacity is None or len(self.bank) <= self.bank.capacity


TestFullBank = FullBankAgainstLists.TestCase
TestFullBank.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)


def lines_left(bank: Bank, path: str) -> list[int]:
    return sorted(line for name, line in searchable(bank)[0] if name == path)


def test_a_document_that_is_larger_than_the_bank_keeps_its_end():
    bank = Bank(SHAPES, state_size=SIZE, capacity=4, eviction="fifo")
    bank.add("a.py", entries_of(3, 1))
    bank.add("b.py", entries_of(9, 2))
    assert lines_left(bank, "a.py") == [] and lines_left(bank, "b.py") == [6, 7, 8, 9]


def test_documents_are_gone_for_a_while_and_back_as_they_were():
    bank = Bank(SHAPES, state_size=SIZE)
    for number, path in enumerate(("a.py", "b.py", "c.py")):
        bank.add(path, entries_of(5 + number, number))
    bank.evict(16, "fifo")  # a.py is not whole
    before = searchable(bank)
    with bank.without(("a.py", "c.py")):
        assert len(bank) == 6
        assert {path for found in searchable(bank) for path, _ in found} == {"b.py"}
    assert len(bank) == 16 and searchable(bank) == before
    with pytest.raises(KeyError), bank.without(("a.py", "none.py")):
        pass
    assert len(bank) == 16 and searchable(bank) == before


@pytest.mark.parametrize("policy", POLICIES)
def test_what_was_evicted_comes_back_with_its_document_and_not_before(policy):
    bank = Bank(SHAPES, state_size=SIZE, eviction=policy)
    for number in range(4):
        bank.add(f"{number}.py", entries_of(10, number))
    assert bank.evict(25) == 15
    assert (lines_left(bank, "0.py"), lines_left(bank, "1.py")) == ([], [6, 7, 8, 9, 10])
    full = bank.nbytes
    bank.drop("2.py")
    bank.drop("3.py")
    assert bank.nbytes < full, "the bank was rebuilt"
    assert (len(bank), lines_left(bank, "0.py"), lines_left(bank, "1.py")) == (5, [], [6, 7, 8, 9, 10])
    bank.add("0.py", entries_of(10, 0))
    assert (len(bank), lines_left(bank, "0.py")) == (15, list(range(1, 11)))


def test_what_was_read_last_stays_also_after_the_bank_was_rebuilt():
    """A rebuilt bank goes on counting reads where it was: what was read before must not look newer than what is read
    now."""
    bank = Bank(SHAPES, state_size=SIZE, capacity=100, eviction="lru")
    for number in range(3):
        bank.add(f"{number}.py", entries_of(10, number))
    for _ in range(5):
        bank.note(torch.arange(10, 20), torch.ones(10))  # 1.py
    bank.drop("0.py")
    assert bank.order() == [("1.py", "", 10), ("2.py", "", 10)]
    bank.note(torch.arange(10, 20), torch.ones(10))  # 2.py
    bank.evict(10)
    assert lines_left(bank, "1.py") == [] and len(lines_left(bank, "2.py")) == 10


def test_a_bank_without_a_cap_counts_no_reads():
    bank = Bank(SHAPES, state_size=SIZE)
    bank.add("a.py", entries_of(5, 1))
    bank.note(torch.tensor([3]), torch.ones(1))
    assert not bank.usage.mass.any() and not bank.usage.read_at.any()


def test_a_bank_opened_from_disk_keeps_to_its_cap_and_to_the_newest(tmp_path):
    with Store(tmp_path, create=True) as store:
        store.bind(Fingerprint("tiny", "a" * 64, "float32", (2,), 1024, 256))
        for number in range(4):
            blob = store.blob_name(f"{number}.py", "hash")
            store.write(blob, entries_of(10, number))
            store.set_documents([Record(f"{number}.py", "hash", 1, 1, None, blob, 10)])
        bank = open_bank(store, Bank(SHAPES, state_size=SIZE, capacity=15))
    assert (len(bank), bank.capacity) == (15, 15)
    assert [len(lines_left(bank, f"{number}.py")) for number in range(4)] == [0, 0, 5, 10]
    bank.add("new.py", entries_of(3, 9))
    assert [len(lines_left(bank, path)) for path in ("2.py", "3.py", "new.py")] == [2, 10, 3]
