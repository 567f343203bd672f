"""Tensors in pieces: what they have is what one tensor would have."""

from __future__ import annotations

from ctypes import c_float

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codemem.memory.pieces import Pieces

CPU = torch.device("cpu")


@settings(max_examples=80, deadline=None)
@given(
    counts=st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=6),
    shape=st.sampled_from([(), (3,), (2, 2, 4)]),
    seed=st.integers(0, 2**20),
)
def test_pieces_are_one_tensor(counts, shape, seed):
    generator = torch.Generator().manual_seed(seed)
    pieces, parts = Pieces(shape, torch.float32, CPU), []
    for count, known in counts:
        parts.append(torch.randn(count, *shape, generator=generator) if known else torch.zeros(count, *shape))
        pieces.append(parts[-1] if known else None, count)
    expected = torch.cat(parts)
    rows = torch.randint(0, max(1, len(expected)), (20 if len(expected) else 0,), generator=generator)
    heads = torch.randint(0, 2, rows.shape, generator=generator)
    gone = [not known for (count, known) in counts]
    for whole in (False, True):
        if whole:
            assert torch.equal(pieces.whole(), expected)
        assert torch.equal(pieces.gathered(rows), expected[rows])
        if len(shape) == 3:
            assert torch.equal(pieces.gathered(rows, heads), expected[rows, heads])
        start = 0
        for (count, _), part, missing in zip(counts, parts, gone, strict=True):
            if count and (whole or not missing):
                assert torch.equal(pieces.between(start, start + count), part)
            start += count
    more = torch.randn(4, *shape, generator=generator)
    pieces.append(more, 4)
    assert torch.equal(pieces.gathered(len(expected) + torch.arange(4)), more)


@pytest.mark.parametrize("whole", [False, True])
def test_the_table_says_where_the_rows_are(whole):
    pieces, parts = Pieces((), torch.float32, CPU), [torch.rand(3), torch.rand(0), torch.rand(5)]
    for part in parts:
        pieces.append(part, len(part))
    if whole:
        pieces.whole()
    starts, addresses = pieces.table()
    assert starts.tolist() == ([0] if whole else [0, 3, 3])
    at, values = dict(zip(starts.tolist(), addresses.tolist(), strict=True)), torch.cat(parts)
    for row in range(8):
        start = max(first for first in at if first <= row)
        assert c_float.from_address(at[start] + 4 * (row - start)).value == values[row]
    assert pieces.table() is pieces.table(), "it is made once"
    pieces.append(None, 2)
    assert len(pieces.table()[0]) == (1 if whole else 4)


def test_pieces_are_not_copied_before_all_are_asked_for():
    pieces, part = Pieces((2,), torch.int8, CPU), torch.ones(3, 2, dtype=torch.int8)
    pieces.append(part, 3)
    assert pieces.between(0, 3).data_ptr() == part.data_ptr()
    pieces.whole()
    assert pieces.between(0, 3).data_ptr() != part.data_ptr()
