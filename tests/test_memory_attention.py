"""Memory attention against a dense reference in float64, written here from the formula and sharing no code with the
library."""

from __future__ import annotations

import pytest
import torch
from tiny import CONFIGS, tiny_model, tiny_tokenizer

from codemem.models.adapter import Adapter
from codemem.models.interface import attention_modules
from codemem.models.memorizing import MemorizingModel

TEXT = "def greet(name):\n    return 'hello ' + name\n\n\nclass Door:\n    pass\n"
PATH = "house/door.py"
LAYERS = (1, 2)
ANGLE = 300


def projections(module, hidden):
    """Query, key, value before the rotary embedding: [batch, T, heads, d] in float64, from the weights alone."""
    batch, length, _ = hidden.shape

    def linear(layer):
        bias = 0 if layer.bias is None else layer.bias.double()
        return hidden @ layer.weight.double().T + bias

    d = getattr(module, "head_dim", None) or module.head_size
    if hasattr(module, "query_key_value"):  # GPT-NeoX: heads of [q, k, v]
        fused = linear(module.query_key_value).view(batch, length, -1, 3 * d)
        return fused[..., :d], fused[..., d : 2 * d], fused[..., 2 * d :]
    if hasattr(module, "qkv_proj"):  # Phi-3: all q, then all k, then all v
        fused = linear(module.qkv_proj)
        kv = module.config.num_key_value_heads * d
        parts = fused.split([fused.shape[-1] - 2 * kv, kv, kv], dim=-1)
        return tuple(part.view(batch, length, -1, d) for part in parts)
    q, k, v = (linear(p).view(batch, length, -1, d) for p in (module.q_proj, module.k_proj, module.v_proj))
    if hasattr(module, "q_norm"):
        q, k = (normed(x, norm) for x, norm in ((q, module.q_norm), (k, module.k_norm)))
    return q, k, v


def normed(x, norm):
    weight = norm.weight.double() + (1 if "Gemma" in type(norm).__name__ else 0)
    epsilon = getattr(norm, "variance_epsilon", None) or norm.eps
    return x / (x.pow(2).mean(-1, keepdim=True) + epsilon).sqrt() * weight


def rotated(x, positions, frequencies, scale):
    """Dimension pairs (i, i + r/2) as complex numbers, times exp(i * position * frequency)."""
    half = len(frequencies)
    angles = positions.double()[:, None] * frequencies.double()
    turn = torch.polar(torch.full_like(angles, scale), angles)[None, :, None, :]
    pairs = torch.complex(x[..., :half], x[..., half : 2 * half]) * turn
    return torch.cat((pairs.real, pairs.imag, x[..., 2 * half :]), dim=-1)


def frequencies_of(model, layer):
    rotary = next(m for m in model.modules() if "Rotary" in type(m).__name__)
    types = getattr(model.config, "layer_types", None)
    if hasattr(rotary, "inv_freq"):
        return rotary.inv_freq, rotary.attention_scaling
    return getattr(rotary, f"{types[layer]}_inv_freq"), getattr(rotary, f"{types[layer]}_attention_scaling")


def dense(model, layer, module, hidden, memory_hidden, adapter, positions):
    """The attention layer's output [batch, T, hidden] in float64: every entry of memory and every local key at once."""
    config = model.config
    frequencies, scale = frequencies_of(model, layer)
    q, k, v = projections(module, hidden.double())
    _, memory_k, memory_v = projections(module, memory_hidden.double())
    group = q.shape[2] // k.shape[2]
    scaling = module.scaling
    cap = getattr(config, "attn_logit_softcapping", None)
    local_q, local_k = rotated(q, positions, frequencies, scale), rotated(k, positions, frequencies, scale)
    # Memory stands at distance ANGLE from every query, whatever the query's position.
    far_q = rotated(q, torch.full_like(positions, ANGLE), frequencies, scale) * scale
    types = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if types is not None and types[layer] != "sliding_attention":
        window = None
    output = torch.zeros(*q.shape[:3], v.shape[-1], dtype=torch.float64)
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            for t in range(q.shape[1]):
                first = 0 if window is None else max(0, t - window + 1)
                local = local_k[b, first : t + 1, h // group] @ local_q[b, t, h] * scaling
                far = memory_k[0, :, h // group] @ far_q[b, t, h] * scaling
                if cap is not None:
                    local, far = cap * torch.tanh(local / cap), cap * torch.tanh(far / cap)
                bias = adapter.bias[layer][h].double()
                if adapter.gate == "joint":
                    bias = bias - adapter.discount[layer][h].double() * far.min().clamp(min=0)
                far = adapter.temperature[layer][h].double() * far
                local_v, far_v = v[b, first : t + 1, h // group], memory_v[0, :, h // group]
                if adapter.gate == "joint":
                    weights = torch.cat((far + bias, local)).softmax(0)
                    output[b, t, h] = weights @ torch.cat((far_v, local_v))
                else:
                    gate = torch.sigmoid(bias)
                    output[b, t, h] = gate * far.softmax(0) @ far_v + (1 - gate) * local.softmax(0) @ local_v
    projection = module.dense if hasattr(module, "dense") else module.o_proj
    bias = 0 if projection.bias is None else projection.bias.double()
    return output.flatten(2) @ projection.weight.double().T + bias


def random_adapter(heads, gate):
    generator = torch.Generator().manual_seed(1)
    return Adapter(
        layers=LAYERS,
        bias={layer: torch.randn(heads, generator=generator) for layer in LAYERS},
        temperature={layer: torch.rand(heads, generator=generator) + 0.5 for layer in LAYERS},
        discount={layer: torch.rand(heads, generator=generator) for layer in LAYERS},
        k=10_000,
        angle=ANGLE,
        gate=gate,
    )


def watch(modules):
    """Inputs and outputs of attention modules, filled by the next forward pass."""
    seen = {layer: {} for layer in modules}
    for layer, module in modules.items():

        def before(_module, args, kwargs, layer=layer):
            seen[layer]["input"] = (kwargs.get("hidden_states") if not args else args[0]).detach().clone()

        def after(_module, _args, output, layer=layer):
            seen[layer]["output"] = output[0].detach().clone()

        module.register_forward_pre_hook(before, with_kwargs=True)
        module.register_forward_hook(after)
    return seen


@pytest.mark.parametrize("gate", ["joint", "sigmoid"])
@pytest.mark.parametrize("architecture", CONFIGS)
@torch.no_grad()
def test_attention_with_all_entries_is_the_dense_reference(architecture, gate):
    model, tokenizer = tiny_model(architecture), tiny_tokenizer()
    adapter = random_adapter(model.config.num_attention_heads, gate)
    memorizing = MemorizingModel(model, tokenizer, adapter)
    modules = {layer: attention_modules(model)[layer] for layer in memorizing.sites}
    # What an encoding window holds: the path, then the text. Hidden states come from the model without memory.
    header = tokenizer(f"# {PATH}\n").input_ids
    seen = watch(modules)
    model(input_ids=torch.tensor([header + tokenizer(TEXT).input_ids]), use_cache=False)
    memory_hidden = {layer: seen[layer]["input"][:, len(header) :] for layer in LAYERS}

    memorizing.remember(TEXT, PATH)
    ids = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(2))
    with memorizing.reads(last=None):
        memorizing(input_ids=ids, use_cache=False)
    positions = torch.arange(ids.shape[1])
    for layer, module in modules.items():
        expected = dense(model, layer, module, seen[layer]["input"], memory_hidden[layer], adapter, positions)
        error = (seen[layer]["output"].double() - expected).abs().max() / expected.abs().max()
        assert error < 1e-5, f"layer {layer}: {error:.2e}"


@pytest.mark.parametrize("architecture", CONFIGS)
@torch.no_grad()
def test_an_empty_memory_changes_no_bit(architecture):
    model = tiny_model(architecture)
    ids = torch.randint(0, 256, (2, 70), generator=torch.Generator().manual_seed(3))
    before = model(input_ids=ids).logits
    memorizing = MemorizingModel(model, tiny_tokenizer())
    assert torch.equal(before, memorizing(input_ids=ids).logits)
    memorizing.remember(TEXT, PATH)
    assert not torch.equal(before, memorizing(input_ids=ids).logits)
    memorizing.forget(PATH)
    assert torch.equal(before, memorizing(input_ids=ids).logits)
    memorizing.remember(TEXT, PATH)
    assert torch.equal(before, memorizing.detach()(input_ids=ids).logits)


@pytest.mark.parametrize("architecture", CONFIGS)
@torch.no_grad()
def test_reading_token_by_token_gives_the_logits_of_reading_at_once(architecture):
    memorizing = MemorizingModel(tiny_model(architecture), tiny_tokenizer())
    memorizing.remember(TEXT, PATH)
    ids = torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(4))
    with memorizing.reads(last=None):
        at_once = memorizing(input_ids=ids, use_cache=False).logits
        cache, steps = None, []
        for piece in (ids[:, :30], *ids[:, 30:].split(1, dim=1)):
            output = memorizing(input_ids=piece, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            steps.append(output.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), at_once, rtol=1e-3, atol=1e-4 * float(at_once.abs().max()))


@torch.no_grad()
def test_padding_on_the_left_does_not_change_what_is_read():
    memorizing = MemorizingModel(tiny_model("llama"), tiny_tokenizer())
    memorizing.remember(TEXT, PATH)
    ids = torch.randint(0, 256, (1, 30), generator=torch.Generator().manual_seed(5))
    padded = torch.cat((torch.zeros(1, 5, dtype=torch.long), ids), dim=1)
    mask = (torch.arange(35) >= 5).long()[None]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with memorizing.reads(last=None):
        alone = memorizing(input_ids=ids).logits
        beside = memorizing(input_ids=padded, attention_mask=mask, position_ids=positions).logits[:, 5:]
    torch.testing.assert_close(alone, beside, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_only_the_last_positions_read():
    memorizing = MemorizingModel(tiny_model("llama"), tiny_tokenizer())
    ids = torch.randint(0, 256, (1, 50), generator=torch.Generator().manual_seed(6))
    plain = memorizing(input_ids=ids).logits
    memorizing.remember(TEXT, PATH)
    with memorizing.reads(last=10):
        logits = memorizing(input_ids=ids).logits
    torch.testing.assert_close(plain[:, :40], logits[:, :40])
    assert (plain[:, 40:] - logits[:, 40:]).abs().amax(dim=-1).min() > 1e-3


def test_gradients_reach_every_gate_and_nothing_else():
    model = tiny_model("llama").requires_grad_(False)
    memorizing = MemorizingModel(model, tiny_tokenizer())
    memorizing.remember(TEXT, PATH)
    ids = torch.randint(0, 256, (1, 20), generator=torch.Generator().manual_seed(7))
    logits = memorizing(input_ids=ids).logits
    torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).backward()
    for gate in memorizing.gates.values():
        assert gate.bias.grad.abs().min() > 0 and gate.temperature.grad.abs().min() > 0
        assert gate.discount.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_discount_takes_off_what_the_weakest_neighbour_has_by_chance():
    from codemem.models.attention import MemoryGate

    local, memory = torch.zeros(1, 2, 2, 1), torch.tensor([[[3.0, 2.0], [9.0, -1.0]], [[3.0, float("-inf")], [-1, -2]]])
    bias, discount = torch.tensor([0.5, 0.0]), torch.tensor([1.5, 2.0])
    gate = MemoryGate(bias, torch.ones(2), discount)
    # A neighbour below zero is as good as none, and where one is missing nothing was chosen by chance.
    taken = torch.tensor([[1.5 * 2 - 0.5, -0.5], [0, 0]])
    expected = (memory - taken.unsqueeze(-1)).exp().sum(-1)
    expected = expected / (1 + expected)
    _, weights = gate(local, memory.unsqueeze(0))
    torch.testing.assert_close(weights.sum(-1)[0], expected)
    _, beside = gate.beside(local[0], memory.unsqueeze(2))  # two key/value heads with a query head each
    torch.testing.assert_close(beside.squeeze(2), weights[0])
    _, none = gate(local, torch.full((1, 2, 2, 3), float("-inf")))
    assert not none.any()


def test_the_joint_gate_is_the_sigmoid_of_the_difference_of_log_sums():
    from codemem.models.attention import MemoryGate

    torch.manual_seed(0)
    local, memory = torch.randn(1, 2, 3, 7), torch.randn(1, 2, 3, 5)
    bias = torch.tensor([0.5, -2.0])
    local_weights, memory_weights = MemoryGate(bias, torch.ones(2), torch.zeros(2))(local, memory)
    share = memory_weights.sum(-1)
    expected = torch.sigmoid(torch.logsumexp(memory + bias[:, None, None], -1) - torch.logsumexp(local, -1))
    torch.testing.assert_close(share, expected)
    torch.testing.assert_close(share + local_weights.sum(-1), torch.ones_like(share))
