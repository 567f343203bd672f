"""Final hidden states in 8 bits: what is lost, what their search finds, and what survives on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from codemem.memory.bank import Bank
from codemem.memory.entries import Entries
from codemem.memory.fingerprint import Fingerprint
from codemem.memory.knn import EXACT_ENTRIES, Hidden, IVFIndex
from codemem.memory.manifest import Record
from codemem.memory.snapshot import open_bank, save_snapshot
from codemem.memory.state_index import StateIndex
from codemem.memory.states import States, compress, turn
from codemem.memory.store import Store

CPU = torch.device("cpu")
SIZE = 12


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def nothing_hidden(rows: int) -> Hidden:
    return Hidden(torch.zeros(rows, dtype=torch.bool))


# 8 bits.


@settings(max_examples=60, deadline=None)
@given(n=st.integers(0, 9), size=st.integers(1, 70), scale=st.sampled_from([1e-6, 1.0, 1e4]), seed=st.integers(0, 999))
def test_eight_bits_are_off_by_half_a_step_at_most(n, size, scale, seed):
    states = random(n, size, seed=seed) * scale
    kept = compress(states)
    assert (kept.codes.dtype, kept.scales.dtype, kept.codes.shape, len(kept)) == (
        torch.int8,
        torch.float32,
        (n, size),
        n,
    )
    turned = turn(states)
    assert kept.decode().shape == turned.shape
    step = turned.abs().amax(dim=-1, keepdim=True) / 127
    assert ((kept.decode() - turned).abs() <= 0.501 * step).all()


def test_a_state_of_zeros_stays_one():
    assert torch.equal(compress(torch.zeros(2, 5)).decode(), torch.zeros(2, 5))


@pytest.mark.parametrize("size", [1, 2, 7, 48, 576, 960])
def test_turning_changes_no_length_and_no_angle(size):
    basis = turn(torch.eye(size)).double()
    torch.testing.assert_close(basis @ basis.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-5)


def test_the_basis_is_the_same_everywhere():
    """What lies on disk was turned by it."""
    expected = [
        [-0.5, -0.6532815, -0.5, -0.2705981],
        [0.5, 0.2705981, -0.5, -0.6532815],
        [0.5, -0.2705981, -0.5, 0.6532815],
        [-0.5, 0.6532815, -0.5, 0.2705981],
    ]
    torch.testing.assert_close(turn(torch.eye(4)), torch.tensor(expected))


def test_a_dimension_a_hundred_times_larger_hardly_hurts():
    """After centring, similarities live in the small dimensions; 8 bits without the turn spend themselves on the
    large one."""
    size = 256
    states = random(400, size)
    states[:, 3] = 100 + 10 * states[:, 3]

    def similarities(kept: torch.Tensor) -> torch.Tensor:
        kept = normalize(kept - kept.mean(dim=0), dim=-1)
        return kept @ kept.T

    def plain(states: torch.Tensor) -> torch.Tensor:
        scales = states.abs().amax(dim=-1, keepdim=True) / 127
        return (states / scales).round() * scales

    exact = similarities(states)
    turned = (similarities(compress(states).decode()) - exact).abs()
    unturned = (similarities(plain(states)) - exact).abs()
    assert turned.mean() < 0.002 and turned.max() < 0.02
    assert unturned.mean() > 5 * turned.mean()


# Search.


def index_of(states: torch.Tensor, kind: str, pieces: list[int]) -> StateIndex:
    """An index that the states were put into in so many pieces, and brought up to date after each."""
    index, start = StateIndex(states.shape[1], CPU, kind), 0
    for count in [*pieces, len(states) - sum(pieces)]:
        index.append(compress(states[start : start + count]), count)
        start += count
        index.build(start)
    if isinstance(index.index, IVFIndex):
        index.index.nprobe = 10**6
    return index


@st.composite
def searches(draw):
    """States, those hidden, pieces, queries and k; k also beyond the rows."""
    rows = draw(st.integers(1, 60))
    mask = torch.tensor(draw(st.lists(st.booleans(), min_size=rows, max_size=rows)), dtype=torch.bool)
    first = draw(st.integers(0, rows))
    pieces = [first, draw(st.integers(0, rows - first))]
    seed = draw(st.integers(0, 2**20))
    states = random(rows, SIZE, seed=seed) + 3 * random(SIZE, seed=seed + 1)  # in a cone
    return states, mask, pieces, states.mean(dim=0) + random(draw(st.integers(1, 4)), SIZE, seed=seed + 2), k_of(draw)


def k_of(draw) -> int:
    return draw(st.integers(1, 70))


@settings(max_examples=120, deadline=None)
@given(search=searches(), kind=st.sampled_from(["auto", "exact", "flat"]))
def test_search_is_brute_force(search, kind):
    states, mask, pieces, queries, k = search
    index = index_of(states, kind, pieces)
    rows, similarity = index.search(queries, k, len(states), Hidden(mask))
    assert rows.shape == similarity.shape == (len(queries), k)
    keys = compress(states).decode().double() - index.centre
    wanted = turn(queries).double() - index.centre
    every = normalize(wanted, dim=-1) @ normalize(keys, dim=-1).T
    visible = (~mask).nonzero().flatten().tolist()
    for query in range(len(queries)):
        count = min(k, len(visible))
        assert (rows[query, count:] == -1).all() and (similarity[query, count:] == -1).all()
        found = rows[query, :count].tolist()
        assert len(set(found)) == count and set(found) <= set(visible)
        best = every[query, visible].sort(descending=True).values[:count]
        # What is found is scored by the states as they are kept, also where the index has coarser ones.
        torch.testing.assert_close(similarity[query, :count].double(), every[query, found], rtol=0, atol=1e-5)
        assert (similarity[query, :count].diff() <= 0).all(), "best first"
        torch.testing.assert_close(similarity[query, :count].double(), best, rtol=0, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**20), first=st.integers(300, 600), hidden=st.sampled_from([0.0, 0.3, 0.99]))
def test_an_inverted_file_that_probes_all_cells_nearly_is_brute_force(seed, first, hidden):
    """It has keys in 8 bits, trained on the first piece."""
    states = random(600, SIZE, seed=seed) + 3 * random(SIZE, seed=seed + 1)
    mask = torch.rand(600, generator=torch.Generator().manual_seed(seed)) < hidden
    queries = states[:3] + random(3, SIZE, seed=seed + 2)
    index = index_of(states, "ivf", [first])
    rows, similarity = index.search(queries, 20, 600, Hidden(mask))
    wanted, keys = (normalize(x - index.centre, dim=-1) for x in (turn(queries), compress(states).decode()))
    every = (wanted @ keys.T).masked_fill(mask, -1)
    expected = torch.cat((every, torch.full((3, 20), -1.0)), dim=1).topk(20).values
    assert not mask[rows[rows >= 0]].any() and torch.equal(rows >= 0, expected > -1)
    torch.testing.assert_close(similarity, expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("kind", ["exact", "flat"])
def test_the_mean_keeps_up_with_what_is_added(kind):
    """A bank that begins with a few tokens must not stay centred by them."""
    few, many = random(10, SIZE, seed=1) + 9, random(300, SIZE, seed=2)
    grown = index_of(torch.cat((few, many)), kind, [0, 10])
    at_once = index_of(torch.cat((few, many)), kind, [])
    torch.testing.assert_close(grown.centre, at_once.centre)
    torch.testing.assert_close(at_once.centre, compress(torch.cat((few, many))).decode().mean(dim=0))
    slowly = index_of(torch.cat((few, many)), kind, [10] * 30)
    assert (slowly.centre - at_once.centre).abs().max() < 0.25 * at_once.centre.abs().max()


def entries_of(states: torch.Tensor) -> Entries:
    numbers = torch.arange(len(states), dtype=torch.int32)
    return Entries(numbers, numbers + 1, numbers + 1, {1: torch.zeros(len(states), 1, 2, 4)}, (), compress(states))


def bank_of(**documents: torch.Tensor) -> Bank:
    bank = Bank({1: (1, 4)}, state_size=SIZE)
    for path, states in documents.items():
        bank.add(path, entries_of(states))
    return bank


def test_an_index_of_nothing_finds_nothing_and_can_be_filled():
    bank = bank_of()
    bank.build()
    rows, similarity = bank.nearest(random(2, SIZE), 3)
    assert rows.tolist() == [[-1] * 3] * 2 and similarity.tolist() == [[-1.0] * 3] * 2
    bank.add("a", entries_of(random(5, SIZE, seed=1)))
    rows, similarity = bank.nearest(random(2, SIZE), 3)
    assert (rows >= 0).all() and (similarity.abs() <= 1).all()


def test_what_is_gone_does_not_move_the_mean():
    """Neither a document that was dropped, nor the empty rows of one that a snapshot still has."""
    kept, gone = random(40, SIZE, seed=1), random(10, SIZE, seed=2) + 50
    bank = bank_of(gone=gone, kept=kept)
    bank.drop("gone")
    assert bank.order()[0] == ("gone", "", 10), "its rows are still there"
    bank.skip(5)
    query = random(3, SIZE, seed=3)
    rows, similarity = bank.nearest(query, 10)
    expected_rows, expected = bank_of(kept=kept).nearest(query, 10)
    torch.testing.assert_close(similarity, expected)
    assert torch.equal(rows - 10, expected_rows)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_queries_may_be_half_precision(dtype):
    states = random(30, SIZE, seed=4).to(dtype)
    rows, similarity = bank_of(a=states.float()).nearest(states[:5], 1)
    assert rows.flatten().tolist() == [0, 1, 2, 3, 4] and similarity.dtype == torch.float32
    assert (similarity > 0.999).all()


# On disk.


@pytest.fixture
def store(tmp_path: Path):
    with Store(tmp_path, create=True) as store:
        store.bind(Fingerprint("tiny", "a" * 64, "float32", (1,), 1024, 256))
        yield store


def put(store: Store, path: str, states: torch.Tensor) -> str:
    blob = store.blob_name(path, "hash")
    store.write(blob, entries_of(states))
    store.set_documents([Record(path, "hash", 1, 1, None, blob, len(states))])
    return blob


@pytest.mark.parametrize("n", [0, 1, 20])
def test_states_come_back_as_they_were_written(store, n):
    states = random(n, SIZE)
    read, written = store.read(put(store, "a.py", states)).states, compress(states)
    assert isinstance(read, States)
    assert torch.equal(read.codes, written.codes) and read.codes.dtype == torch.int8
    assert torch.equal(read.scales, written.scales)


def test_a_blob_without_states_comes_back_without(store):
    store.write("b", replace(entries_of(random(3, SIZE)), states=None))
    assert store.read("b").states is None


LARGE = EXACT_ENTRIES // 2 + 1


@pytest.fixture
def large(store):
    """Two documents, too many entries for exact search, and their snapshot."""
    for number, path in enumerate(("a.py", "b.py")):
        put(store, path, random(LARGE, SIZE, seed=number) + number)
    save_snapshot(store, open_bank(store, new_bank()))
    return store


def new_bank() -> Bank:
    return Bank({1: (1, 4)}, state_size=SIZE)


def test_a_bank_from_a_snapshot_answers_the_same(large):
    first, second = open_bank(large, Bank({1: (1, 4)}, state_size=SIZE)), open_bank(large, new_bank())
    assert isinstance(second.states.index, IVFIndex) and len(second.states.index) == 2 * LARGE, "nothing is built again"
    first.states.index = None
    query = random(20, SIZE, seed=7)
    (rows, similarity), (expected_rows, expected) = second.nearest(query, 8), first.nearest(query, 8)
    assert torch.equal(rows, expected_rows)
    torch.testing.assert_close(similarity, expected)


def test_a_document_may_go_and_come_between_snapshot_and_bank(large):
    large.set_documents([], ["a.py"])
    put(large, "c.py", random(LARGE, SIZE, seed=5) + 2)
    put(large, "d.py", random(LARGE, SIZE, seed=6))
    bank = open_bank(large, new_bank())
    assert bank.states.index is not None
    rows, similarity = bank.nearest(random(50, SIZE, seed=8) + 1, 64)
    assert {bank.place(row).path for row in rows.flatten().tolist()} == {"b.py", "c.py", "d.py"}
    assert (similarity <= 1.0001).all()


def test_a_document_that_was_gone_when_the_index_was_made_anew_is_found_again(large):
    states = random(LARGE, SIZE, seed=0)  # those of a.py
    large.set_documents([], ["a.py"])
    put(large, "c.py", random(6 * LARGE, SIZE, seed=5) + 2)
    bank = open_bank(large, new_bank())
    before = bank.states.index
    save_snapshot(large, bank)
    assert bank.states.index is not before, "it has outgrown the index"
    put(large, "a.py", states)
    bank = open_bank(large, new_bank())
    rows, similarity = bank.nearest(states[:50], 1)
    assert [bank.place(row).path for row in rows.flatten().tolist()].count("a.py") > 45
    assert (similarity > 0.99).sum() > 45


@pytest.mark.parametrize("name", ["states.npz", "states.centre.npy", "states.faiss"])
@pytest.mark.parametrize("damage", [b"", b"{}", None])
def test_a_damaged_snapshot_is_ignored(large, name, damage):
    (folder,) = (large.folder / "index").iterdir()
    if damage is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(damage)
    bank = open_bank(large, new_bank())
    assert bank.indexes == {} and bank.states.index is None
    assert len(bank) == 2 * LARGE
