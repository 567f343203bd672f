"""Token memory against a dense reference in float64, written here from the formula: kNN-LM (Khandelwal et al., ICLR
2020) over centred and normalised final hidden states, 64 neighbours, temperature 40, lambda 0.15 as long as nothing is
learned."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import CONFIGS, tiny_model, tiny_tokenizer
from torch import nn
from torch.autograd import gradcheck
from torch.func import functional_call
from torch.nn.functional import normalize

from codemem.completion.engine import Engine
from codemem.completion.request import Request
from codemem.memory.bank import Bank
from codemem.memory.entries import Entries
from codemem.memory.provenance import memory_share, sources
from codemem.memory.states import compress, turn
from codemem.models.adapter import load_adapter, uniform_adapter
from codemem.models.memorizing import MemorizingModel
from codemem.models.mixture import Mixture, describe, mix
from codemem.syntax import Symbol

TOKENIZER = tiny_tokenizer()
DOCUMENTS = {
    "house/door.py": "def greet(name):\n    return 'hello ' + name\n\n\nclass Door:\n    pass\n",
    "house/window.py": "def look(out):\n    while out:\n        yield view(out)\n",
    "key.py": "KEY = 'golden'\nLOCK = 'iron'\n",
}
IDS = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(2))


def memorizing(architecture: str = "llama", documents: dict[str, str] = DOCUMENTS, **more) -> MemorizingModel:
    model = MemorizingModel(tiny_model(architecture), TOKENIZER, **more)
    for path, text in documents.items():
        model.remember(text, path)
    return model


def final_states(model, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the output layer gets, [batch, T, size], and the logits."""
    seen = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
    hook.remove()
    return seen[0], logits


def stored(model, documents: dict[str, str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys of all tokens, [n, size] float64, turned and in 8 bits as they are kept, and the token after each, -1 at the
    end of a document. The model has no memory yet."""
    keys, following = [], []
    for path, text in documents.items():
        header, ids = TOKENIZER(f"# {path}\n").input_ids, TOKENIZER(text).input_ids
        final, _ = final_states(model, torch.tensor([header + ids]))
        keys.append(compress(final[0, len(header) :]).decode())
        following += [*ids[1:], -1]
    return torch.cat(keys).double(), torch.tensor(following)


def mixed(keys, following, states, logits, weight=0.15, temperature=40.0, neighbours=64) -> torch.Tensor:
    """The mixture's probabilities [m, vocabulary] float64 for states [m, size]: by loops and dictionaries."""
    mean = keys.mean(dim=0)
    similarity = normalize(turn(states).double() - mean, dim=-1) @ normalize(keys - mean, dim=-1).T
    result = logits.double().softmax(dim=-1)
    for number, row in enumerate(similarity):
        nearest = sorted(range(len(row)), key=lambda j: -float(row[j]))[:neighbours]
        votes = {j: math.exp(temperature * float(row[j])) for j in nearest if following[j] >= 0}
        if not votes:
            continue
        result[number] *= 1 - weight
        for j, vote in votes.items():
            result[number, following[j]] += weight * vote / sum(votes.values())
    return result


# The whole against the reference.


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("architecture", CONFIGS)
@torch.no_grad()
def test_the_mixture_is_the_dense_reference(architecture, attention):
    base = tiny_model(architecture)
    keys, following = stored(base, DOCUMENTS)
    assert len(keys) > 2 * 64, "most entries are no neighbours"
    model = MemorizingModel(base, TOKENIZER)
    for path, text in DOCUMENTS.items():
        model.remember(text, path)
    with model.reads(attention=attention, tokens=False, last=None):
        states, logits = final_states(base, IDS)
    expected = mixed(keys, following, states.flatten(0, 1), logits.flatten(0, 1)).view(*IDS.shape, -1)
    with model.reads(attention=attention, last=None):
        everywhere = model(input_ids=IDS).logits
    assert everywhere.dtype == torch.float32
    torch.testing.assert_close(everywhere.double().exp().sum(-1), torch.ones(IDS.shape).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(everywhere.double().exp(), expected, rtol=0, atol=1e-5)
    assert (everywhere.double().exp() - logits.double().softmax(-1)).abs().amax(-1).min() > 0.01, "it matters"


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
@torch.no_grad()
def test_only_the_last_positions_read(architecture):
    model = memorizing(architecture)
    with model.reads(attention=False, tokens=False):
        plain = model(input_ids=IDS).logits
    with model.reads(attention=False, last=None):
        everywhere = model(input_ids=IDS).logits
    with model.reads(attention=False, last=5):
        some, kept = model(input_ids=IDS).logits, model(input_ids=IDS, logits_to_keep=3).logits
    assert torch.equal(some[:, :-5], plain[:, :-5])
    torch.testing.assert_close(some[:, -5:], everywhere[:, -5:])
    torch.testing.assert_close(kept, everywhere[:, -3:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", CONFIGS)
@torch.no_grad()
def test_without_memory_no_bit_changes(architecture):
    base = tiny_model(architecture)
    before = base(input_ids=IDS).logits
    model = MemorizingModel(base, TOKENIZER)
    assert torch.equal(model(input_ids=IDS).logits, before)
    model.remember(DOCUMENTS["key.py"], "key.py")
    with model.reads(attention=False, tokens=False):
        assert torch.equal(model(input_ids=IDS).logits, before)
    with model.reads(attention=False):
        assert not torch.equal(model(input_ids=IDS).logits, before)
    model.forget("key.py")
    assert torch.equal(model(input_ids=IDS).logits, before)
    model.remember(DOCUMENTS["key.py"], "key.py")
    assert torch.equal(model.detach()(input_ids=IDS).logits, before)


@torch.no_grad()
def test_each_switch_turns_off_its_own_part():
    model = memorizing()
    with model.reads(tokens=False, traced=True) as reading:
        by_attention = model(input_ids=IDS).logits
        assert reading.trace and not reading.token_trace
    with model.reads(attention=False, traced=True) as reading:
        model(input_ids=IDS)
        assert reading.token_trace and not reading.trace
    # A bank without states has attention's part alone.
    bank = Bank(model.shapes)
    for path in model.bank.documents:
        bank.add(path, model.bank.entries(path))
    model.bank = bank
    assert torch.equal(model(input_ids=IDS).logits, by_attention)


@torch.no_grad()
def test_a_second_attachment_takes_the_place_of_the_first():
    base = tiny_model()
    plain = base(input_ids=IDS).logits
    first = MemorizingModel(base, TOKENIZER)
    first.remember(DOCUMENTS["key.py"], "key.py")
    second = MemorizingModel(base, TOKENIZER)
    assert torch.equal(second(input_ids=IDS).logits, plain), "its own memory is empty"
    second.remember(DOCUMENTS["key.py"], "key.py")
    with second.reads(attention=False, last=None):
        mixture = second(input_ids=IDS).logits
    torch.testing.assert_close(mixture.exp().sum(-1), torch.ones(IDS.shape))
    assert torch.equal(second.detach()(input_ids=IDS).logits, plain)


# What may not be read.


def test_the_token_after_each_and_none_at_a_documents_end():
    model = memorizing()
    expected = [token for text in DOCUMENTS.values() for token in [*TOKENIZER(text).input_ids[1:], -1]]
    rows = torch.arange(len(model.bank))
    assert model.bank.following(rows).tolist() == expected
    assert model.bank.following(torch.tensor([[-1, 0], [1, -1]])).tolist() == [[-1, expected[0]], [expected[1], -1]]


@torch.no_grad()
def test_of_a_forgotten_document_no_probability_is_left():
    """z is written in one document alone."""
    texts = {**DOCUMENTS, "zoo.py": "zz = z\n"}
    model = memorizing(documents=texts)
    z = TOKENIZER("z").input_ids[0]
    with model.reads(attention=False, tokens=False, last=None):
        plain = model(input_ids=IDS).logits.log_softmax(-1)[..., z]

    def gained() -> float:
        with model.reads(attention=False, last=None):
            return float((model(input_ids=IDS).logits[..., z] - plain - math.log(0.85)).exp().max())

    assert gained() > 1.1
    with model.bank.hiding("zoo.py"):
        assert gained() == pytest.approx(1, abs=1e-4)
    model.forget("zoo.py")
    assert ("zoo.py", "", 7) in model.bank.order(), "its rows are still there"
    assert gained() == pytest.approx(1, abs=1e-4)
    model.forget("house/door.py")  # the bank is rebuilt
    assert gained() == pytest.approx(1, abs=1e-4)


def test_hidden_lines_are_neither_found_nor_proposed():
    model, path = memorizing(), "house/door.py"
    lines = model.bank.entries(path).lines.tolist()
    tokens = model.bank.entries(path).tokens.tolist()
    states = model.bank.entries(path).states.decode() @ turn(torch.eye(48)).T  # turned back
    before = lines.index(2)
    for from_line in (1, 2, 5, 99):
        with model.bank.hiding(path, from_line):
            found = model.bank.nearest(states, 10_000)[0]
            places = {(place.path, place.line) for place in map(model.bank.place, found[found >= 0].tolist())}
            assert {line for name, line in places if name == path} == {line for line in lines if line < from_line}
            assert len({name for name, _ in places}) == (2 if from_line == 1 else 3)
            proposed = model.bank.following(torch.arange(len(lines))).tolist()
            expected = [
                token if line < from_line else -1 for token, line in zip(tokens[1:], lines[1:], strict=True)
            ] + [-1]
            assert proposed == expected
    assert model.bank.following(torch.tensor([before - 1])).tolist() == [tokens[before]], "hidden only for a while"


@torch.no_grad()
def test_where_everything_is_hidden_the_model_is_alone():
    model = memorizing(documents={"key.py": DOCUMENTS["key.py"]})
    with model.bank.hiding("key.py"), model.reads(attention=False, last=None, traced=True) as reading:
        alone = model(input_ids=IDS).logits
        rows, weights = reading.token_trace[0]
    assert (rows == -1).all() and not weights.any()
    with model.reads(attention=False, tokens=False):
        torch.testing.assert_close(alone, model(input_ids=IDS).logits.log_softmax(-1))


@torch.no_grad()
def test_an_entry_at_a_documents_end_proposes_nothing():
    """With nothing else in memory than last tokens, the model is alone."""
    model = memorizing(documents={"a.py": "x", "b.py": "y"})
    with model.reads(attention=False, last=None, traced=True) as reading:
        mixture = model(input_ids=IDS).logits
        rows, weights = reading.token_trace[0]
    assert (rows >= 0).sum() == 4 and not weights.any()
    with model.reads(attention=False, tokens=False):
        torch.testing.assert_close(mixture, model(input_ids=IDS).logits.log_softmax(-1))


# Generation.


def insist(model: MemorizingModel, answer: float = 9.0) -> MemorizingModel:
    """Give token memory nearly all of the distribution, and its best entry nearly all of that."""
    with torch.no_grad():
        model.mixture.outer.bias.copy_(torch.tensor([answer, 2.0]))
    return model


@pytest.mark.parametrize("how", [{}, {"num_beams": 2}])
def test_generate_follows_what_was_remembered(how):
    path, text = "house/door.py", DOCUMENTS["house/door.py"]
    ids = TOKENIZER(f"# {path}\n{text}").input_ids
    prompt = torch.tensor([ids[:40]])
    model = memorizing()

    def generated(**reads) -> list[int]:
        with model.reads(attention=False, **reads):
            answer = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=25,
                do_sample=False,
                pad_token_id=0,
                **how,
            )
        return answer[0, 40:].tolist()

    assert generated(tokens=False) != ids[40:65]
    insist(model)
    assert generated() == ids[40:65]
    assert generated(tokens=False) != ids[40:65]


def test_even_a_lambda_of_one_leaves_a_choice():
    """Where the tokens that memory proposes are not allowed, the others still have an order."""
    model = insist(memorizing(), 500.0)
    with torch.no_grad(), model.reads(attention=False, last=None):
        logits = model(input_ids=IDS).logits
    assert logits.isfinite().all()
    model.zero_grad()
    with model.reads(attention=False, last=None):
        model(input_ids=IDS).logits.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.mixture.parameters())


# The learned mixture.


def case(m: int = 4, k: int = 6, vocabulary: int = 12):
    """Similarities, next tokens with repeats, ends and a position that finds nothing, and the model's logits."""
    generator = torch.Generator().manual_seed(3)
    similarity = (torch.rand(m, k, generator=generator) * 0.5 + 0.3).double().sort(dim=-1, descending=True).values
    tokens = torch.tensor([[3, 5, 3, -1, 3, 7], [1, 1, 1, 1, 1, 1], [-1] * 6, [0, 11, 4, 4, 0, -1]])
    logits = torch.randn(m, vocabulary, generator=generator).double()
    return similarity, tokens, logits


def random_mixture(seed: int = 5) -> Mixture:
    """One that has learned something."""
    mixture, generator = Mixture(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        mixture.outer.weight.normal_(0, 0.5, generator=generator)
        mixture.inner.bias.normal_(0, 0.5, generator=generator)
        mixture.mean.uniform_(-1, 1, generator=generator)
        mixture.deviation.uniform_(0.5, 2, generator=generator)
    return mixture


def test_mix_adds_up_by_token():
    similarity, tokens, logits = case()
    log_probs = logits.log_softmax(-1)
    weight, shares = random_mixture().double()(describe(similarity, tokens, log_probs), similarity, tokens >= 0)
    assert weight[2] == 0 and not shares[2].any()
    assert (weight[[0, 1, 3]] > 0).all() and not shares[tokens < 0].any()
    torch.testing.assert_close(shares.sum(-1), torch.tensor([1.0, 1.0, 0.0, 1.0]).double())
    expected = log_probs.exp() * (1 - weight[:, None])
    for row in range(4):
        for share, token in zip(shares[row], tokens[row], strict=True):
            if token >= 0:
                expected[row, token] += weight[row] * share
    torch.testing.assert_close(mix(log_probs, weight, shares, tokens).exp(), expected)


def test_gradients_are_those_of_finite_differences():
    """Of the log-likelihood, by the mixture's parameters and by the model's logits, with repeated neighbours."""
    similarity, tokens, logits = case()
    mixture = random_mixture().double()
    names, values = zip(*mixture.named_parameters(), strict=True)
    truth = torch.tensor([3, 1, 2, 9])

    def likelihood(logits: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        log_probs = logits.log_softmax(-1)
        features = describe(similarity, tokens, log_probs)
        arguments = features, similarity, tokens >= 0
        weight, shares = functional_call(mixture, dict(zip(names, parameters, strict=True)), arguments)
        return mix(log_probs, weight, shares, tokens).gather(1, truth[:, None]).sum()

    inputs = [value.detach().clone().requires_grad_() for value in values]
    logits.requires_grad_()
    assert gradcheck(likelihood, (logits, *inputs))
    gradients = torch.autograd.grad(likelihood(logits, *inputs), inputs)
    assert all(gradient.abs().max() > 1e-4 for gradient in gradients), "every part learns"


def test_mix_of_a_position_does_not_depend_on_its_place():
    """Bit by bit: on the CPU PyTorch computes the last numbers of a vector in another way than those before them."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        log_probs = torch.randn(8, 300, generator=generator).log_softmax(dim=-1)
        shares = torch.rand(8, 64, generator=generator).softmax(dim=-1)
        tokens, weight = torch.randint(-1, 20, (8, 64), generator=generator), torch.rand(8, generator=generator)
        order = torch.randperm(8, generator=generator)
        mixed = mix(log_probs, weight, shares, tokens)
        assert torch.equal(mix(log_probs[order], weight[order], shares[order], tokens[order]), mixed[order])


def test_what_the_mixture_is_told():
    """The nine numbers, by hand."""
    similarity = torch.tensor([[0.9, 0.8, 0.8, 0.1]])
    tokens = torch.tensor([[2, 1, 1, -1]])
    log_probs = torch.tensor([[0.7, 0.2, 0.1]]).log()
    votes = [math.exp(40 * value) for value in (0.9, 0.8, 0.8)]
    two, one = votes[0] / sum(votes), 2 * votes[1] / sum(votes)
    expected = [
        0.9,
        2.5 / 4,
        2.5 / 4,
        two,
        -two * math.log(two) - one * math.log(one),
        -sum(p * math.log(p) for p in (0.7, 0.2, 0.1)),
        math.log(0.7),
        math.log(0.1),
        0.0,
    ]
    torch.testing.assert_close(describe(similarity, tokens, log_probs), torch.tensor([expected]))
    agreeing = describe(similarity, torch.tensor([[0, 0, 1, -1]]), log_probs)[0]
    assert agreeing[8] == 1 and agreeing[7] == pytest.approx(math.log(0.7))


def test_an_untrained_mixture_is_a_constant():
    similarity, tokens, logits = case()
    features = describe(similarity.float(), tokens, logits.float().log_softmax(-1))
    weight, shares = Mixture()(features, similarity.float(), tokens >= 0)
    torch.testing.assert_close(weight, torch.tensor([0.15, 0.15, 0.0, 0.15]))
    torch.testing.assert_close(shares[1], (40 * similarity[1].float()).softmax(-1))


@torch.no_grad()
def test_what_was_learned_comes_back_from_an_adapter_file(tmp_path):
    learned = random_mixture().state_dict()
    adapter = uniform_adapter((1, 2), 6)
    object.__setattr__(adapter, "mixture", learned)
    adapter.save(tmp_path / "adapter.safetensors")
    again = load_adapter(tmp_path / "adapter.safetensors")
    assert again.mixture.keys() == learned.keys()
    assert all(torch.equal(again.mixture[name], learned[name]) for name in learned)
    first, second = memorizing(adapter=adapter), memorizing(adapter=again)
    logits = first(input_ids=IDS).logits
    assert torch.equal(second(input_ids=IDS).logits, logits)
    assert not torch.allclose(memorizing(adapter=uniform_adapter((1, 2), 6))(input_ids=IDS).logits, logits)


# Where it came from.


def bank_of(**documents: list[tuple[int, int]]) -> Bank:
    """Documents of (token, line)."""
    bank = Bank({1: (1, 2), 3: (1, 2)}, state_size=4)
    for path, pairs in documents.items():
        tokens, lines = torch.tensor(pairs, dtype=torch.int32).unbind(1)
        layers = {layer: torch.zeros(len(pairs), 1, 2, 2) for layer in (1, 3)}
        states = compress(torch.ones(len(pairs), 4))
        bank.add(path, Entries(tokens, lines, torch.ones_like(lines), layers, (Symbol("f", 8, 9),), states))
    return bank


def test_what_proposed_the_chosen_token_is_the_source_and_its_line_is_the_tokens():
    bank = bank_of(a=[(1, 1), (2, 3), (1, 5), (2, 8)], b=[(2, 1), (7, 2), (2, 9)])
    rows = torch.tensor([[0, 2, 4, 3, 5, -1]])  # these propose 2, 2, 7, nothing, 2, nothing
    shares = torch.tensor([[0.2, 0.1, 0.3, 0.15, 0.1, 0.05]])
    found = [(s.path, s.line, s.symbol, round(s.weight, 6)) for s in sources(bank, [], [(rows, shares)], [2])]
    assert found == [("a", 3, None, 0.5), ("a", 8, "f", 0.25), ("b", 9, "f", 0.25)]
    assert [str(s) for s in sources(bank, [], [(rows, shares)], [7])] == ["b:2"]
    assert sources(bank, [], [(rows, shares)], [5]) == []
    assert memory_share([(rows, shares)]) == pytest.approx(0.9)


@pytest.mark.parametrize("more", [0, 1])
def test_the_two_memories_weigh_by_what_they_gave(more):
    """All memory layers together give at most 1 at a position, and so does token memory; also where the last position
    chose no token, because the text ended there."""
    bank = bank_of(a=[(1, 1), (2, 3)], b=[(4, 1), (5, 2)])
    layer = (torch.tensor([[2], [2]]), torch.tensor([[0.5], [0.1]]))  # two heads, 0.3 of a layer
    empty = (torch.tensor([[-1], [-1]]), torch.zeros(2, 1))
    trace = [layer, layer] + more * [empty, empty]
    tokens = [(torch.tensor([[0]]), torch.tensor([[0.1]]))] + more * [(torch.tensor([[-1]]), torch.zeros(1, 1))]
    found = {(s.path, s.line): s.weight for s in sources(bank, trace, tokens, [2])}
    assert found == pytest.approx({("b", 1): 0.75, ("a", 3): 0.25})


def test_a_completion_from_token_memory_names_the_lines_that_it_repeats():
    path, text = "house/door.py", DOCUMENTS["house/door.py"]
    model = insist(memorizing(documents={path: text, "key.py": DOCUMENTS["key.py"]}))
    other = model.bank.entries(path)
    model.forget(path)
    model.bank.add("other.py", other)  # what the same path would say, under another name
    cursor = text.index("hello") + 2
    request = Request(path, text[:cursor] + text[text.index("\n\n") :], cursor, attention=False, recall=False)
    completion = Engine(model, "tiny").complete(request)
    assert completion.text == text[cursor : text.index("\n\n")]
    assert completion.memory.share == 0 and completion.memory.token_share > 0.99
    assert all((source.path, source.line) == ("other.py", 2) for source in completion.provenance[:1])
    assert completion.provenance[0].weight > 0.5
    assert all(source.path != path for source in completion.provenance)


def test_how_memory_was_read_decides_what_a_full_bank_keeps():
    """Token memory's shares count as reads."""
    model = memorizing()
    model.bank.capacity = len(model.bank)
    with torch.no_grad(), model.reads(attention=False, traced=True) as reading:
        model(input_ids=IDS, logits_to_keep=1)
        rows, weights = reading.token_trace[0]
    mass = torch.zeros(len(model.bank)).index_add_(0, rows.flatten(), weights.flatten())
    torch.testing.assert_close(model.bank.usage.mass[: len(mass)], mass)
    assert isinstance(model.mixture, nn.Module) and float(mass.sum()) == pytest.approx(2 * 0.15, abs=1e-5)


def test_what_is_made_while_a_thread_loads_weights_has_its_own_dtype():
    """transformers changes PyTorch's default meanwhile, for all threads."""
    ids = torch.tensor([[5, 9, 7, 5, 9]])
    answers = []
    for dtype in (torch.float32, torch.bfloat16):
        base = tiny_model()
        torch.set_default_dtype(dtype)
        try:
            model = MemorizingModel(base, TOKENIZER)
            model.remember("def area(width, height):\n    return width * height\n", "a.py")
            with torch.inference_mode():
                answers.append(model(ids).logits)
        finally:
            torch.set_default_dtype(torch.float32)
    assert answers[0].dtype == answers[1].dtype == torch.float32
    torch.testing.assert_close(answers[0], answers[1])
