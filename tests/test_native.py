"""The functions of C against float64, each position by itself, and the compiler that makes them."""

from __future__ import annotations

import subprocess
import sys
from ctypes import byref
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import four_bit
from torch import Tensor

from codemem.memory.state_index import StateIndex
from codemem.memory.states import compress, turn
from codemem.models.attention import MemoryGate
from codemem.models.mixture import FEATURES, Mixture, describe, mix
from codemem.models.packed import pack
from codemem.models.rotary import Rotary, first_half_negated, rotate
from codemem.native import library as module
from codemem.native.library import compiler, library
from codemem.native.records import FocusRecord, LayerRecord, PassRecord

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


def record(**fields: object) -> PassRecord:
    """What a pass computes with, as far as a function looks at it."""
    values = (pointers(x)[0] if isinstance(x, Tensor) else x for x in fields.values())
    return PassRecord(epsilon=1e-5, **dict(zip(fields, values, strict=True)))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 16), size=st.integers(1, 100).map(lambda x: 16 * x), more=st.booleans(), seed=SEEDS)
def test_the_norm_of_a_sum(n, size, more, seed):
    x, weight = normal(n, size, seed=seed) * 3, normal(size, seed=seed + 1, dtype=bf16)
    added = normal(n, size, seed=seed + 2) if more else None
    expected, out = x.double() + (added.double() if more else 0), torch.empty(n, size)
    step = record(n=n, size=size, x=x)
    library("layer", D=64, GROUP=3).add_and_norm(byref(step), *pointers(added, weight, out))
    torch.testing.assert_close(x.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(out.double(), normed(expected, weight), rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 16), inner=st.integers(1, 100).map(lambda x: 16 * x), scale=st.floats(0, 100), seed=SEEDS)
def test_the_gate_of_the_mlp(n, inner, scale, seed):
    gate_up, out = normal(n, 2, inner, seed=seed) * scale, torch.empty(n, inner)
    library("layer", D=64, GROUP=3).gated(gate_up.data_ptr(), n, inner, out.data_ptr())
    gate, up = gate_up.double().unbind(1)
    torch.testing.assert_close(out.double(), gate * gate.sigmoid() * up, rtol=1e-5, atol=1e-30)


@settings(max_examples=60, deadline=None)
@given(start=st.integers(0, 1500), n=st.integers(1, 16), heads=HEADS, norms=st.booleans(), seed=SEEDS)
def test_attention_of_a_few_positions(start, n, heads, norms, seed):
    """What is not behind a position's last key does not matter, whatever it is; nor do other positions."""
    kv_heads, group, d = heads
    room = (start + n + 63) // 64 * 64
    qkv = normal(n, (group + 2) * kv_heads, d, seed=seed) * 2
    keys, values = normal(2, kv_heads + 1, room, d, seed=seed + 1, dtype=bf16)
    head_norms = [normal(d, seed=seed + i, dtype=bf16) if norms else None for i in (2, 3)]
    cos, sin = (x.float() for x in Rotary(1e4 ** (torch.arange(0, d, 2) / -d))(torch.arange(room), bf16))
    turns = cos, first_half_negated(sin)

    def attended(first: int, last: int, keys: Tensor, values: Tensor) -> list[Tensor]:
        count, own = last - first, qkv[first:last].contiguous()
        placeless, local = torch.empty(2, count, group * kv_heads, d)
        mass = torch.empty(count, group * kv_heads)
        sizes = {"n": count, "start": start + first, "kv_heads": kv_heads, "stride": room * d, "scaling": d**-0.5}
        step = record(**sizes, cos=turns[0], sin=turns[1], placeless=placeless, local=local, mass=mass)
        named = ("query_norm", "key_norm", "keys", "values")
        layer = LayerRecord(**dict(zip(named, pointers(*head_norms, keys, values), strict=True)))
        library("layer", D=d, GROUP=group).attend(byref(layer), byref(step), own.data_ptr())
        return [placeless, local, mass]

    together = keys.clone(), values.clone()
    placeless, local, mass = attended(0, n, *together)
    one_by_one = keys.clone(), values.clone()
    alone = [attended(r, r + 1, *one_by_one) for r in range(n)]
    for whole, parts in zip((placeless, local, mass), zip(*alone, strict=True), strict=True):
        assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(together[0], one_by_one[0])

    query, key, value = qkv.split([group * kv_heads, kv_heads, kv_heads], dim=1)
    if norms:
        query, key = (normed(x, w).float() for x, w in zip((query, key), head_norms, strict=True))
    torch.testing.assert_close(placeless, query, rtol=1e-5, atol=1e-5)
    cos, sin = (x[start : start + n, None] for x in (cos, sin))
    torch.testing.assert_close(
        together[0][:kv_heads, start : start + n].transpose(0, 1).float(), rotate(key, cos, sin), rtol=2**-8, atol=1e-4
    )
    assert torch.equal(together[1][:kv_heads, start : start + n].transpose(0, 1), value.to(bf16))
    turned = rotate(placeless, cos, sin).double()
    for r in range(n):
        there = slice(start + r + 1)
        scores = turned[r].view(kv_heads, group, d) @ together[0][:kv_heads, there].double().transpose(1, 2) * d**-0.5
        expected = (scores.softmax(-1) @ together[1][:kv_heads, there].double()).flatten(0, 1)
        torch.testing.assert_close(local[r].double(), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mass[r].double(), scores.logsumexp(-1).flatten(), rtol=1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 16), heads=st.sampled_from([(3, 3, 64), (2, 7, 32)]), biases=st.booleans(), eight=st.booleans(),
    inner=st.integers(1, 8).map(lambda x: 32 * x), seed=SEEDS,
)  # fmt: skip
def test_a_layer(n, heads, inner, biases, eight, seed):
    """Against float64 with the numbers that are multiplied rounded to 8 bits as well; each position by itself."""
    kv_heads, group, d = heads
    size, every = group * kv_heads * d, (group + 2) * kv_heads * d
    shapes = {"qkv": (every, size), "output": (size, size), "gate_up": (2 * inner, size), "down": (size, inner)}
    packs, biased, matrices = {}, {}, {}
    for number, (name, shape) in enumerate(shapes.items()):
        weight = normal(*shape, seed=seed + number, dtype=bf16) * shape[1] ** -0.5
        packs[name] = pack([weight if eight else four_bit(weight)], True)
        biased[name] = normal(shape[0], seed=seed + 10 + number, dtype=bf16) if biases else torch.zeros(shape[0])
        matrices[name] = packs[name].record
        matrices[name].bias = biased[name].data_ptr() if biases else None
    norms = {name: normal(size, seed=seed + 20 + i, dtype=bf16) for i, name in enumerate(("norm", "mlp_norm"))}
    cos, sin = (x.float() for x in Rotary(1e4 ** (torch.arange(0, d, 2) / -d))(torch.arange(64), bf16))
    sin = first_half_negated(sin)
    first = normal(n, size, seed=seed + 30)

    def computed(of: slice, cache: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, count = first[of].clone(), len(first[of])
        placeless, local = torch.empty(2, count, group * kv_heads, d)
        most = max(size, inner)
        rooms = {"rows": torch.empty(count, most), "wide": torch.empty(count, max(every, 2 * inner))}
        rooms |= {"numbers": torch.empty(count, most, dtype=torch.int8), "steps": torch.empty(count, most // 32, 2)}
        mass, sizes = torch.empty(count, group * kv_heads), {"n": count, "start": of.start, "size": size}
        step = record(
            **sizes, kv_heads=kv_heads, stride=64 * d, scaling=d**-0.5, cos=cos, sin=sin, x=x, placeless=placeless,
            local=local, mass=mass, **rooms,
        )  # fmt: skip
        places = dict(zip(("keys", "values", *norms), pointers(*cache, *norms.values()), strict=True))
        layer = LayerRecord(**matrices, **places)
        library("layer", D=d, GROUP=group).layers(byref(layer), 1, byref(step), None)
        return x, placeless, local

    cache = torch.zeros(2, kv_heads, 64, d, dtype=bf16)
    found, placeless, local = computed(slice(0, n), cache)
    alone = torch.zeros(2, kv_heads, 64, d, dtype=bf16)
    assert torch.equal(found, torch.cat([computed(slice(r, r + 1), alone)[0] for r in range(n)]))

    def product(name: str, x: Tensor) -> Tensor:
        matrix = torch.cat([packs[name].multiply(row[None]) for row in torch.eye(x.shape[1], dtype=bf16)]).T
        groups = x.float().view(len(x), -1, 32)
        step = groups.abs().amax(-1, keepdim=True) / 127
        return ((groups / step).round() * step).flatten(1).double() @ matrix.double().T + biased[name].double()

    expected = product("qkv", normed(first, norms["norm"]))[:, :size]
    torch.testing.assert_close(placeless.flatten(1).double(), expected, rtol=1e-3, atol=2e-2)
    x = first.double() + product("output", local.flatten(1))
    gate, up = product("gate_up", normed(x, norms["mlp_norm"])).chunk(2, dim=-1)
    x = x + product("down", gate * gate.sigmoid() * up)
    off = (found.double() - x).abs()  # where a number is rounded the other way, by a step
    assert off.max() < 0.2 and off.mean() < 2e-2


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
    keys, rows, functions = pairs[:, :, 0], torch.arange(n).flip(0) * 3, library("layer", D=d, GROUP=group)
    tiles = -(-n // 16)
    codes, steps = torch.zeros(kv_heads, tiles, d // 4, 16, 4, dtype=torch.uint8), torch.zeros(kv_heads, tiles, 16)
    functions.pack_keys(pairs.data_ptr(), kv_heads, n, *pointers(codes, steps))
    unpacked = (codes.permute(0, 1, 3, 2, 4).reshape(kv_heads, -1, d).float() - 64) * steps.flatten(1).unsqueeze(-1)
    assert (unpacked[:, :n] - keys.float()).abs().max() <= 0.51 * keys.float().abs().max() / 63
    placeless, local = normal(2, positions, group * kv_heads, d, seed=seed + 1)
    mass = normal(positions, group * kv_heads, seed=seed + 2) * 3
    gate = MemoryGate(*(normal(group * kv_heads, seed=seed + 3 + i) for i in range(3)))
    cos, sin = (x[0].float() for x in Rotary(1e4 ** (torch.arange(0, d, 2) / -d))(torch.tensor([40]), bf16))
    turns = cos, first_half_negated(sin)

    def read(of: slice) -> list[Tensor]:
        count = len(mass[of])
        mixed = torch.empty(count, group * kv_heads, d)
        found, weights = torch.empty(2, group * kv_heads, count, k)
        found = found.long()
        asked = [x[of].contiguous() for x in (placeless, local, mass)]
        learned = gate.temperature, gate.bias, gate.discount
        focus = FocusRecord(
            *pointers(codes, steps, pairs, rows), n, k, *pointers(*turns, *learned, found, weights), 1.0
        )
        functions.read_focus(byref(focus), *pointers(*asked), count, kv_heads, d**-0.5, mixed.data_ptr())
        assert focus.seconds > 1.0
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


def test_numbers_that_are_none_are_found_somewhere():
    """No row is read that is not there."""
    n, k, functions = 40, 32, library("layer", D=64, GROUP=1)
    pairs = torch.full((1, n, 2, 64), float("nan"), dtype=bf16)
    codes, steps = torch.zeros(1, 3, 16, 16, 4, dtype=torch.uint8), torch.zeros(1, 3, 16)
    functions.pack_keys(pairs.data_ptr(), 1, n, *pointers(codes, steps))
    steps[:] = float("nan")
    asked, one, rows = normal(1, 1, 64, seed=0), torch.ones(64), torch.arange(n)
    mixed, found, weights = torch.empty(1, 1, 64), torch.full((1, 1, k), -1), torch.empty(1, 1, k)
    focus = FocusRecord(*pointers(codes, steps, pairs, rows), n, k, *pointers(*[one] * 5, found, weights))
    functions.read_focus(byref(focus), *pointers(asked, asked, one), 1, 1, 1.0, mixed.data_ptr())
    assert ((found >= 0) & (found < n)).all()


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
    found, weights = network.compiled(logits.clone(), similarity, tokens)
    with torch.no_grad():
        log_probs = logits.log_softmax(-1)
        weight, shares = network(describe(similarity, tokens, log_probs), similarity, tokens >= 0)
        torch.testing.assert_close(weights, weight.unsqueeze(-1) * shares, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(found, mix(log_probs, weight, shares, tokens), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.double().logsumexp(-1), torch.zeros(m).double(), rtol=0, atol=1e-4)
    for i in range(m):
        alone = network.compiled(logits[i, None].clone(), similarity[i, None], tokens[i, None])
        assert torch.equal(alone[0][0], found[i]) and torch.equal(alone[1][0], weights[i])


@settings(max_examples=40, deadline=None)
@given(m=st.integers(1, 20), size=st.integers(1, 40).map(lambda x: 16 * x), k=st.integers(1, 64), seed=SEEDS)
def test_the_order_of_states(m, size, k, seed):
    """By cosine to what was asked, against float64; each position by itself."""
    index = StateIndex(size, torch.device("cpu"), "exact")
    states = compress(normal(200, size, seed=seed))
    cuts = [0, *sorted(torch.randint(0, 201, (seed % 9,), generator=torch.Generator().manual_seed(seed)).tolist()), 200]
    for start, end in pairwise(cuts):
        index.append(states[start:end], end - start)
    index.build(200)
    asked = normal(m, size, seed=seed + 1, dtype=bf16)
    rows = torch.randint(-1, 200, (m, k), generator=torch.Generator().manual_seed(seed))
    found, similarity = index.ranked(asked, rows)
    kept = states.decode().double() - index.centre.double()
    wanted = turn(asked).double() - index.centre.double()
    cosines = torch.nn.functional.cosine_similarity(wanted[:, None], kept[None], dim=-1)
    expected = cosines.gather(1, found.clamp(min=0)).masked_fill(found < 0, -1)
    torch.testing.assert_close(similarity.double(), expected, rtol=0, atol=0.012 * size**-0.5)
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
