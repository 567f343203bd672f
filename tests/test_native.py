"""The functions of C against float64, each position by itself, and the compiler that makes them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from codemem.memory.state_index import StateIndex
from codemem.memory.states import compress, turn
from codemem.models.attention import MemoryGate
from codemem.models.mixture import FEATURES, Mixture, describe, mix
from codemem.models.rotary import Rotary, first_half_negated, rotate
from codemem.native import library as module
from codemem.native.library import compiler, library

pytestmark = pytest.mark.skipif(not compiler(), reason="there is no C compiler")
# Key/value heads, query heads of each, and the size of a head.
HEADS = st.sampled_from([(3, 3, 64), (2, 7, 64), (4, 1, 128), (1, 8, 32), (2, 2, 256), (1, 5, 96)])
SEEDS = st.integers(0, 2**20)
bf16 = torch.bfloat16


def normal(*sizes: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed)).to(dtype)


def pointers(*tensors: Tensor | None) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def normed(x: Tensor, weight: Tensor, epsilon: float = 1e-5) -> Tensor:
    x = x.double()
    return x * (x.square().mean(-1, keepdim=True) + epsilon).rsqrt() * weight.double()


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 16), size=st.integers(1, 100).map(lambda x: 16 * x), more=st.booleans(), seed=SEEDS)
def test_the_norm_of_a_sum(n, size, more, seed):
    x, weight = normal(n, size, seed=seed) * 3, normal(size, seed=seed + 1, dtype=bf16)
    added = normal(n, size, seed=seed + 2, dtype=bf16) if more else None
    expected, out = x.double() + (added.double() if more else 0), torch.empty(n, size, dtype=bf16)
    library("layer", D=64, GROUP=3).add_and_norm(*pointers(x, added), n, size, weight.data_ptr(), 1e-5, out.data_ptr())
    torch.testing.assert_close(x.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(out.double(), normed(expected, weight), rtol=2**-8, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 16), inner=st.integers(1, 100).map(lambda x: 16 * x), scale=st.floats(0, 100), seed=SEEDS)
def test_the_gate_of_the_mlp(n, inner, scale, seed):
    gate_up = normal(n, 2, inner, seed=seed).mul(scale).to(bf16)
    out = torch.empty(n, inner, dtype=bf16)
    library("layer", D=64, GROUP=3).gated(gate_up.data_ptr(), n, inner, out.data_ptr())
    gate, up = gate_up.double().unbind(1)
    torch.testing.assert_close(out.double(), gate * gate.sigmoid() * up, rtol=2**-8, atol=1e-30)


@settings(max_examples=60, deadline=None)
@given(start=st.integers(0, 1500), n=st.integers(1, 16), heads=HEADS, norms=st.booleans(), seed=SEEDS)
def test_attention_of_a_few_positions(start, n, heads, norms, seed):
    """What is not behind a position's last key does not matter, whatever it is; nor do other positions."""
    kv_heads, group, d = heads
    room = (start + n + 63) // 64 * 64
    qkv = normal(n, (group + 2) * kv_heads, d, seed=seed, dtype=bf16) * 2
    keys, values = normal(2, kv_heads + 1, room, d, seed=seed + 1, dtype=bf16)
    head_norms = [normal(d, seed=seed + i, dtype=bf16) if norms else None for i in (2, 3)]
    cos, sin = Rotary(1e4 ** (torch.arange(0, d, 2) / -d))(torch.arange(room), bf16)

    def attended(first: int, last: int, keys: Tensor, values: Tensor) -> list[Tensor]:
        count, own = last - first, qkv[first:last].contiguous()
        placeless, out = torch.empty(2, count, group * kv_heads, d)
        mass, mixed = torch.empty(count, group * kv_heads), torch.empty(count, group * kv_heads, d, dtype=bf16)
        turns = cos.float(), first_half_negated(sin.float())
        library("layer", D=d, GROUP=group).attend(
            own.data_ptr(), count, kv_heads, *pointers(*head_norms), 1e-5, d**-0.5, *pointers(*turns), start + first,
            *pointers(keys, values), room * d, *pointers(placeless, out, mass, mixed),
        )  # fmt: skip
        return [placeless, out, mass, mixed]

    together = keys.clone(), values.clone()
    placeless, out, mass, mixed = attended(0, n, *together)
    one_by_one = keys.clone(), values.clone()
    alone = [attended(r, r + 1, *one_by_one) for r in range(n)]
    for whole, parts in zip((placeless, out, mass, mixed), zip(*alone, strict=True), strict=True):
        assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(together[0], one_by_one[0]) and torch.equal(mixed, out.to(bf16))

    query, key, value = qkv.split([group * kv_heads, kv_heads, kv_heads], dim=1)
    if norms:
        query, key = (normed(x, w).to(bf16) for x, w in zip((query, key), head_norms, strict=True))
    assert (placeless - query.float()).abs().max() <= 2**-7 * query.float().abs().max()
    angles = (x[start : start + n, None].float() for x in (cos, sin))
    cos, sin = angles
    torch.testing.assert_close(
        together[0][:kv_heads, start : start + n].transpose(0, 1).float(), rotate(key, cos, sin), rtol=2**-6, atol=2e-2
    )
    assert torch.equal(together[1][:kv_heads, start : start + n].transpose(0, 1), value)
    turned = rotate(placeless, cos, sin).double()
    for r in range(n):
        there = slice(start + r + 1)
        scores = turned[r].view(kv_heads, group, d) @ together[0][:kv_heads, there].double().transpose(1, 2) * d**-0.5
        expected = (scores.softmax(-1) @ together[1][:kv_heads, there].double()).flatten(0, 1)
        torch.testing.assert_close(out[r].double(), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mass[r].double(), scores.logsumexp(-1).flatten(), rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 3000), k=st.integers(1, 64), positions=st.integers(1, 16), heads=HEADS, ties=st.booleans(),
    seed=SEEDS,
)  # fmt: skip
def test_reading_a_focus(n, k, positions, heads, ties, seed):
    """As the gate over a dense search has it; of equals any is found."""
    (kv_heads, group, d), k = heads, min(k, n)
    pairs = normal(kv_heads, n, 2, d, seed=seed, dtype=bf16)
    if ties:
        pairs[:, :, 0] = pairs[:, :1, 0]
    keys, rows = pairs[:, :, 0].contiguous(), torch.arange(n).flip(0) * 3
    placeless, local = normal(2, positions, group * kv_heads, d, seed=seed + 1)
    mass = normal(positions, group * kv_heads, seed=seed + 2) * 3
    gate = MemoryGate(*(normal(group * kv_heads, seed=seed + 3 + i) for i in range(3)))
    cos, sin = (x[0].float() for x in Rotary(1e4 ** (torch.arange(0, d, 2) / -d))(torch.tensor([40]), bf16))
    turns = cos, first_half_negated(sin)

    def read(of: slice) -> list[Tensor]:
        count = len(mass[of])
        mixed = torch.empty(count, group * kv_heads, d, dtype=bf16)
        found, weights = torch.empty(2, group * kv_heads, count, k)
        found = found.long()
        asked = [x[of].contiguous() for x in (placeless, local, mass)]
        library("layer", D=d, GROUP=group).read_focus(
            *pointers(*asked), count, kv_heads, d**-0.5, *pointers(*turns, keys, pairs, rows),
            n, k, *pointers(gate.temperature, gate.bias, gate.discount, mixed, found, weights),
        )  # fmt: skip
        return [mixed, found, weights]

    mixed, found, weights = read(slice(None))
    for r in range(positions):
        alone = read(slice(r, r + 1))
        assert torch.equal(alone[0][0], mixed[r])
        assert torch.equal(alone[1][:, 0], found[:, r]) and torch.equal(alone[2][:, 0], weights[:, r])
    query = rotate(placeless, cos, sin).view(positions, kv_heads, group, d).transpose(0, 1)
    scores = (query.flatten(1, 2) @ keys.float().transpose(1, 2)).view(kv_heads, positions, group, n) * d**-0.5
    best = scores.topk(k).values
    shaped = found.view(kv_heads, group, positions, k).transpose(1, 2)
    places = (n - 1) - shaped // 3
    torch.testing.assert_close(scores.gather(-1, places), best, rtol=1e-4, atol=1e-4)
    assert all(len(set(each)) == k for each in places.flatten(0, 2).tolist())
    with torch.no_grad():
        share, expected = gate.beside(mass.view(positions, kv_heads, group).transpose(0, 1), best)
    torch.testing.assert_close(
        weights.view(kv_heads, group, positions, k).transpose(1, 2), expected, rtol=1e-3, atol=1e-5
    )
    heads_of = torch.arange(kv_heads).view(-1, 1, 1, 1)
    memory = (expected.unsqueeze(-1) * pairs[heads_of, places, 1].float()).sum(-2)
    whole = memory + local.view(positions, kv_heads, group, d).transpose(0, 1) * share.unsqueeze(-1)
    torch.testing.assert_close(mixed.float(), whole.transpose(0, 1).flatten(1, 2), rtol=1e-2, atol=2e-2)


# Token memory.


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(1, 9),
    vocabulary=st.integers(20, 3000),
    k=st.integers(1, 64),
    unknown=st.sampled_from([0.0, 0.3, 1.0]),
    sure=st.sampled_from([1.0, 30.0]),
    seed=SEEDS,
)
def test_the_mixture(m, vocabulary, k, unknown, sure, seed):
    """As PyTorch computes it, with a network that has learned something; each position by itself."""
    generator = torch.Generator().manual_seed(seed)
    network = Mixture()
    for parameter in (*network.parameters(), network.mean):
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
    network.deviation = torch.rand(FEATURES, generator=generator) + 0.5
    logits = torch.randn(m, vocabulary, generator=generator) * sure
    similarity = (torch.rand(m, k, generator=generator) * 1.4 - 0.4).sort(descending=True).values
    tokens = torch.randint(0, min(20, vocabulary), (m, k), generator=generator)
    tokens[torch.rand(m, k, generator=generator) < unknown] = -1
    assert network.compilable(logits) and not network.compilable(logits.double())
    found, weights = network.compiled(logits, similarity, tokens)
    with torch.no_grad():
        log_probs = logits.log_softmax(-1)
        weight, shares = network(describe(similarity, tokens, log_probs), similarity, tokens >= 0)
        torch.testing.assert_close(weights, weight.unsqueeze(-1) * shares, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(found, mix(log_probs, weight, shares, tokens), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.double().logsumexp(-1), torch.zeros(m).double(), rtol=0, atol=1e-4)
    for i in range(m):
        alone = network.compiled(logits[i, None], similarity[i, None], tokens[i, None])
        assert torch.equal(alone[0][0], found[i]) and torch.equal(alone[1][0], weights[i])


@settings(max_examples=40, deadline=None)
@given(m=st.integers(1, 20), size=st.integers(1, 40).map(lambda x: 16 * x), k=st.integers(1, 64), seed=SEEDS)
def test_the_order_of_states(m, size, k, seed):
    """By cosine to what was asked, against float64; each position by itself."""
    index = StateIndex(size, torch.device("cpu"), "exact")
    index.reserve(0, 200)
    index.put(0, compress(normal(200, size, seed=seed)), 200)
    index.build(200)
    asked, rows = normal(m, size, seed=seed + 1, dtype=bf16), torch.randint(-1, 200, (m, k))
    found, similarity = index.ranked(asked, rows)
    states = index.states(slice(0, 200)).decode().double() - index.centre.double()
    wanted = turn(asked).double() - index.centre.double()
    cosines = torch.nn.functional.cosine_similarity(wanted[:, None], states[None], dim=-1)
    expected = cosines.gather(1, found.clamp(min=0)).masked_fill(found < 0, -1)
    torch.testing.assert_close(similarity.double(), expected, rtol=0, atol=1e-4)
    assert torch.equal(found.sort().values, rows.sort().values)
    assert (similarity.diff(dim=-1) <= 0).all()
    for i in range(m):
        alone = index.ranked(asked[i, None], rows[i, None])
        assert torch.equal(alone[0][0], found[i]) and torch.equal(alone[1][0], similarity[i])


# The compiler.


def test_where_there_is_no_compiler_there_are_no_functions(monkeypatch, tmp_path):
    monkeypatch.setenv("CODEMEM_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "compiler", lambda: None)
    assert library.__wrapped__("layer", D=64, GROUP=3) is None


@pytest.mark.parametrize("script", ["exit 1", "kill -9 $$", ": > /dev/null"], ids=["fails", "dies", "makes nothing"])
def test_nor_where_it_fails(monkeypatch, tmp_path, script):
    broken = tmp_path / "cc"
    broken.write_text(f"#!/bin/sh\n{script}\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CODEMEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CC", str(broken))
    assert library.__wrapped__("layer", D=64, GROUP=3) is None
    assert not list((tmp_path / "cache" / "native").iterdir())


def test_they_are_compiled_once(monkeypatch, tmp_path):
    """And a file that is damaged is no reason to fail."""
    monkeypatch.setenv("CODEMEM_CACHE", str(tmp_path))
    assert library.__wrapped__("layer", D=64, GROUP=3) is not None
    monkeypatch.setattr(module, "compiler", lambda: None)
    assert library.__wrapped__("layer", D=64, GROUP=3) is not None
    for made in (tmp_path / "native").iterdir():
        made.write_bytes(b"nothing that can be loaded")
    script = "from codemem.native.library import library; print(library('layer', D=64, GROUP=3))"
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "None\n"
