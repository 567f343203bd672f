"""The three kNN indexes: what they find, what they must not find, and what survives on disk."""

from __future__ import annotations

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codemem.memory.knn import EXACT_ENTRIES, ExactIndex, FlatIndex, Hidden, Index, IVFIndex, make_index
from codemem.native.library import compiler

CPU = torch.device("cpu")
KV_HEADS, D = 2, 8


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filled(kind: str, keys: torch.Tensor) -> Index:
    index = make_index(kind, keys, torch.float32, CPU)
    index.add(keys)
    return index


def scores_of(keys: torch.Tensor, queries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The inner products of queries [kv_heads, m, d] with the rows found [kv_heads, m, k]; -inf for row -1."""
    scores = (queries @ keys.transpose(1, 2)).gather(2, rows.clamp(min=0)) if keys.shape[1] else rows.float()
    return scores.masked_fill(rows < 0, float("-inf"))


def brute_force(keys: torch.Tensor, queries: torch.Tensor, k: int, mask: torch.Tensor) -> list[list[list[int]]]:
    """The k best visible rows per head and query, in plain Python, padded by -1."""
    found = []
    for head in range(keys.shape[0]):
        found.append([])
        for query in queries[head]:
            visible = [row for row in range(keys.shape[1]) if not mask[row]]
            best = sorted(visible, key=lambda row: -float(keys[head, row] @ query))[:k]
            found[-1].append(best + [-1] * (k - len(best)))
    return found


@st.composite
def searches(draw, most_rows=60):
    """Keys, queries, k and a hidden mask: of none, some and all rows; k also beyond the rows; no rows at all."""
    rows = draw(st.integers(0, most_rows))
    k = draw(st.integers(1, most_rows + 10))
    mask = torch.tensor(
        draw(
            st.one_of(
                st.just([False] * rows), st.just([True] * rows), st.lists(st.booleans(), min_size=rows, max_size=rows)
            )
        ),
        dtype=torch.bool,
    )
    seed = draw(st.integers(0, 2**20))
    return random(KV_HEADS, rows, D, seed=seed), random(KV_HEADS, draw(st.integers(1, 4)), D, seed=seed + 1), k, mask


@settings(max_examples=60, deadline=None)
@given(search=searches(), kind=st.sampled_from(["exact", "flat"]))
def test_exact_and_flat_find_what_brute_force_finds(search, kind):
    keys, queries, k, mask = search
    assert filled(kind, keys).search(queries, k, Hidden(mask)).tolist() == brute_force(keys, queries, k, mask)


@settings(max_examples=30, deadline=None)
@given(search=searches())
def test_an_inverted_file_that_probes_all_cells_finds_what_exact_search_finds(search):
    """By scores: half-precision keys may swap two entries that are nearly as good."""
    keys, queries, k, mask = search
    index = IVFIndex(keys, nlist=max(1, keys.shape[1] // 10))
    index.nprobe = 10
    index.add(keys)
    found = index.search(queries, k, Hidden(mask))
    expected = filled("exact", keys).search(queries, k, Hidden(mask))
    assert (found >= 0).sum() == (expected >= 0).sum()
    best, wanted = (scores_of(keys, queries, rows) for rows in (found, expected))
    torch.testing.assert_close(best, wanted, rtol=0, atol=0.08)


@pytest.mark.parametrize("kind", ["exact", "flat", "ivf"])
def test_rows_are_numbered_in_the_order_of_adding_and_none_is_returned_twice(kind):
    keys = torch.nn.functional.normalize(random(KV_HEADS, 2000, D, seed=3), dim=-1)  # each its own nearest
    index = make_index(kind, keys, torch.float32, CPU)
    for piece in keys.split([700, 1, 1299], dim=1):
        index.add(piece)
    assert len(index) == 2000
    mask = torch.arange(2000) % 3 == 0
    found = index.search(keys[:, 500:520], 50, Hidden(mask))
    for number, row in enumerate(range(500, 520)):
        assert (found[:, number, 0] == row).all() == (row % 3 != 0)
    for row in found.flatten(0, 1).tolist():
        real = [entry for entry in row if entry >= 0]
        assert len(set(real)) == len(real)
        assert all(entry % 3 for entry in real), "a hidden row was returned"


@pytest.mark.parametrize("kind", ["exact", "flat", "ivf"])
def test_results_come_best_first(kind):
    keys, queries = random(KV_HEADS, 1000, D, seed=4), random(KV_HEADS, 5, D, seed=5)
    scores = scores_of(keys, queries, filled(kind, keys).search(queries, 20, Hidden(torch.zeros(1000).bool())))
    assert (scores.diff(dim=-1) <= 0.08).all()


@pytest.mark.parametrize("kind", ["exact", "flat", "ivf"])
def test_all_hidden_finds_nothing(kind):
    keys = random(KV_HEADS, 300, D, seed=6)
    found = filled(kind, keys).search(keys[:, :3], 5, Hidden(torch.ones(300).bool()))
    assert found.shape == (KV_HEADS, 3, 5)
    assert (found == -1).all()


def test_a_saved_inverted_file_searches_as_before_and_takes_more(tmp_path):
    keys, more = random(KV_HEADS, 900, D, seed=7), 3 * random(KV_HEADS, 100, D, seed=8)
    index = filled("ivf", keys)
    assert isinstance(index, IVFIndex)
    index.save(tmp_path, "layer3")
    loaded = IVFIndex.load(tmp_path, "layer3")
    nothing = Hidden(torch.zeros(900, dtype=torch.bool))
    assert len(loaded) == 900
    assert torch.equal(loaded.search(more, 10, nothing), index.search(more, 10, nothing))
    for one in (index, loaded):
        one.add(more)
    nothing = Hidden(torch.zeros(1000, dtype=torch.bool))
    found = loaded.search(more, 10, nothing)
    assert torch.equal(found, index.search(more, 10, nothing))
    assert (found >= 900).any(), "rows added after loading are found"


@settings(max_examples=40, deadline=None)
@given(data=st.data(), k=st.integers(1, 40), seed=st.integers(0, 2**20))
def test_what_is_added_later_is_found_beside_the_rest(data, k, seed):
    """It stands behind the inverted file until there is much of it, somebody tidies, or the file is saved."""
    counts = data.draw(st.lists(st.integers(0, 30), min_size=1, max_size=5))
    keys = random(KV_HEADS, 200 + sum(counts), D, seed=seed)
    queries = random(KV_HEADS, 3, D, seed=seed + 1)
    index = IVFIndex(keys[:, :200], nlist=5)
    index.nprobe = 5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("codemem.memory.knn.TAIL_ROWS", 20)
        patch.setattr("codemem.memory.knn.MOST_TAIL_ROWS", 50)
        index.add(keys[:, :200])
        rows = 200
        for count in counts:
            index.add(keys[:, rows : rows + count])
            rows += count
            assert len(index) == rows and index._tail.shape[1] <= 50
            if data.draw(st.booleans()):
                much = index._tail.shape[1] > 20
                assert index.tidy() == much
                assert len(index) == rows and index._tail.shape[1] <= 20 and not index.tidy()
            mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)), dtype=torch.bool)
            found = index.search(queries, k, Hidden(mask))
            expected = filled("exact", keys[:, :rows]).search(queries, k, Hidden(mask))
            assert (found >= 0).sum() == (expected >= 0).sum()
            assert not mask[found[found >= 0]].any()
            best, wanted = (scores_of(keys, queries, each) for each in (found, expected))
            torch.testing.assert_close(best, wanted, rtol=0, atol=0.08)


def test_inverted_files_that_are_mapped_grow_in_memory_and_outlive_their_files(tmp_path, monkeypatch):
    monkeypatch.setattr("codemem.memory.knn.TAIL_ROWS", 20)
    keys, queries = random(KV_HEADS, 400, D, seed=12), random(KV_HEADS, 5, D, seed=13)
    own = filled("ivf", keys[:, :300])
    (tmp_path / "a").mkdir()
    own.save(tmp_path / "a", "layer3")
    mapped = IVFIndex.load(tmp_path / "a", "layer3")
    shutil.rmtree(tmp_path / "a")

    def same(one: Index, other: Index) -> bool:
        nothing = Hidden(torch.zeros(len(one), dtype=torch.bool))
        return torch.equal(one.search(queries, 7, nothing), other.search(queries, 7, nothing))

    assert same(mapped, own)
    for start, end in ((300, 310), (310, 400)):
        for index in (own, mapped):
            index.add(keys[:, start:end])
        assert same(mapped, own)
    (tmp_path / "b").mkdir()
    mapped.save(tmp_path / "b", "layer3")
    again = IVFIndex.load(tmp_path / "b", "layer3")
    own.save(tmp_path / "b", "own")
    assert same(again, own)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 half of a file"])
@pytest.mark.parametrize("name", ["layer3.npz", "layer3.faiss"])
def test_a_damaged_inverted_file_is_an_error_that_callers_expect(tmp_path, name, damage):
    index = filled("ivf", random(KV_HEADS, 300, D, seed=9))
    assert isinstance(index, IVFIndex)
    index.save(tmp_path, "layer3")
    (tmp_path / name).write_bytes(damage)
    with pytest.raises((OSError, RuntimeError, ValueError)):
        IVFIndex.load(tmp_path, "layer3")


def test_the_kind_is_chosen_by_size_and_a_bank_can_outgrow_its_index():
    d = 2
    small = make_index("auto", torch.zeros(1, EXACT_ENTRIES, d), torch.float32, CPU)
    large_keys = random(1, EXACT_ENTRIES + 1, d, seed=10)
    large = make_index("auto", large_keys, torch.float32, CPU)
    assert isinstance(small, ExactIndex) and isinstance(large, IVFIndex)
    assert not small.outgrown(EXACT_ENTRIES) and small.outgrown(EXACT_ENTRIES + 1)
    assert not large.outgrown(3 * (EXACT_ENTRIES + 1)) and large.outgrown(3 * (EXACT_ENTRIES + 1) + 1)


def test_a_kind_that_was_asked_for_is_kept_at_any_size():
    keys = torch.zeros(1, 4, 2)
    exact, flat = (make_index(kind, keys, torch.float32, CPU) for kind in ("exact", "flat"))
    assert isinstance(exact, ExactIndex) and isinstance(flat, FlatIndex)
    assert not exact.outgrown(10**9) and not flat.outgrown(10**9)


def test_exact_search_keeps_the_keys_in_the_models_dtype():
    keys = random(KV_HEADS, 50, D, seed=11)
    index = make_index("exact", keys, torch.bfloat16, CPU)
    index.add(keys)
    rounded = keys.bfloat16()
    found = index.search(keys[:, :4], 5, Hidden(torch.zeros(50, dtype=torch.bool)))
    expected = (rounded[:, :4] @ rounded.transpose(1, 2)).float().topk(5).values
    torch.testing.assert_close(
        (rounded[:, :4] @ rounded.transpose(1, 2)).float().gather(2, found), expected, rtol=0, atol=0
    )


@settings(max_examples=20, deadline=None)
@given(m=st.integers(1, 60), seed=st.integers(0, 2**20), heads_and_bits=st.sampled_from([(KV_HEADS, 16), (1, 8)]))
def test_what_an_inverted_file_finds_for_a_query_does_not_depend_on_the_others(m, seed, heads_and_bits):
    """So a draft that was verified together is what would have been generated one by one."""
    heads, bits = heads_and_bits
    keys = random(heads, 1500, 64, seed=1)
    index = IVFIndex(keys[:, :1200], nlist=40, bits=bits)
    for piece in keys.split([1200, 300], dim=1):
        index.add(piece)
    assert index._tail.shape[1] == 300
    queries = random(heads, m, 64, seed=seed)
    hidden = Hidden(torch.arange(1500) % 7 == 0)
    together = index.search(queries, 20, hidden)
    alone = torch.cat([index.search(query, 20, hidden) for query in queries.split(1, dim=1)], dim=1)
    assert torch.equal(together, alone)


@pytest.mark.skipif(not compiler(), reason="there is no C compiler")
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 300),
    later=st.integers(0, 60),
    k=st.integers(1, 90),
    hidden=st.sampled_from([0, 1, 3]),
    d=st.sampled_from([64, 192]),
    seed=st.integers(0, 2**20),
)
def test_a_function_of_c_finds_what_exact_search_finds(rows, later, k, hidden, d, seed):
    """But for what 8 bits lose, of keys that all have the same large number too; in cells that grow, some of them
    empty, and behind them."""
    keys = random(1, rows + later, d, seed=seed) + torch.eye(1, d) * 5
    index = IVFIndex(keys[:, :rows], nlist=max(1, rows // 10), bits=8)
    assert index.record is not None
    index.nprobe = 30
    mask = torch.arange(rows + later) % max(hidden, 1) == (0 if hidden else 1)
    queries = random(1, 5, d, seed=seed + 1)
    for end in (rows // 2, rows, rows + later):
        index.add(keys[:, len(index) : end])
        found = index.search(queries, k, Hidden(mask[:end]))
        expected = filled("exact", keys[:, :end]).search(queries, k, Hidden(mask[:end]))
        assert found.shape == expected.shape and (found >= 0).sum() == (expected >= 0).sum()
        assert not mask[found[found >= 0]].any()
        assert all(len(set(row)) == len(row) for row in ([r for r in each if r >= 0] for each in found[0].tolist()))
        best, wanted = (scores_of(keys, queries, each) for each in (found, expected))
        torch.testing.assert_close(best, wanted, rtol=0, atol=0.08 * d**0.5)
