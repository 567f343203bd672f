"""Evaluation: that teacher forcing finds what decoding writes, that shared computation changes no number, that nothing
of a held-out document is in memory, and that an interrupted run goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from codemem.completion.decode import decode
from codemem.completion.prompt import build_prompt
from codemem.completion.request import Request
from codemem.errors import CodememError
from codemem.evaluation.arms import ARMS, CONTEXT, Arm, RandomBank
from codemem.evaluation.bm25 import WindowIndex
from codemem.evaluation.evaluate import Source, complete_lines, evict_half, likelihood_by_size, split
from codemem.evaluation.likelihood import nats, nested
from codemem.evaluation.lines import MOST_TOKENS, LineCompletion
from codemem.evaluation.report import summarise
from codemem.evaluation.tasks import Task
from codemem.models.memorizing import MemorizingModel
from codemem.training.gates import pieces

TOKENIZER = tiny_tokenizer()
PLAIN = [arm for arm in ARMS if arm.prompt == "plain" and not arm.random]
DOCUMENTS = {
    f"pkg/part_{i}.py": f"def part_{i}(width, height):\n    return width * {i} + height\n\nclass Part{i}:\n    n = 1\n"
    for i in range(8)
}
BEFORE = "from pkg.part_1 import part_1\n\nvalue = 3\ntotal = "


def quiet(stage: str, done: int, total: int) -> None:
    pass


@pytest.fixture
def completion():
    model = MemorizingModel(tiny_model(), TOKENIZER)
    for path, text in DOCUMENTS.items():
        model.remember(text, path)
    return LineCompletion(model, model.bank, WindowIndex(DOCUMENTS.items()))


def decoded(completion: LineCompletion, arm: Arm, text: str, offset: int) -> str:
    """The line that the decode loop writes."""
    prompt = build_prompt(Request("pkg/a.py", text, offset, context=CONTEXT), TOKENIZER, completion.vocabulary)
    with completion.model.reads(attention=arm.attention, tokens=arm.tokens):
        steps = decode(completion.model, completion.model.decoder(), completion.vocabulary, prompt)
        return b"".join(s.text for s in islice(steps, MOST_TOKENS)).decode(errors="ignore").split("\n")[0]


@pytest.mark.parametrize("arm", PLAIN, ids=lambda arm: arm.name)
def test_the_line_is_the_one_that_decoding_writes(completion, arm):
    """Whatever the truth is, and however far the model follows it."""
    written = decoded(completion, arm, BEFORE, len(BEFORE))
    assert len(written) > 6
    for truth in ("width", written, written[:5] + "Q" + written[6:], written[:3], written[0] + "~"):
        text = BEFORE + truth + "\nmore = 1\n"
        outcome = completion.complete(Task("pkg/a.py", text, len(BEFORE), truth, "random"), [arm])[arm.name]
        assert outcome.text == written
        assert outcome.exact == (written.rstrip() == truth.rstrip())
        assert outcome.tokens > 0


@pytest.mark.parametrize("arm", PLAIN, ids=lambda arm: arm.name)
def test_nats_are_those_of_one_forward_pass(completion, arm):
    truth = "part_1(value, 4)"
    text = BEFORE + truth + "\nmore = 1\n"
    outcome = completion.complete(Task("pkg/a.py", text, len(BEFORE), truth, "random"), [arm])[arm.name]
    prompt = build_prompt(Request("pkg/a.py", text, len(BEFORE)), TOKENIZER, completion.vocabulary)
    spelled = TOKENIZER(prompt.healed.decode() + truth + "\n", add_special_tokens=False).input_ids
    ids = torch.tensor([prompt.ids + spelled])
    reading = 64 + len(spelled) - 1
    with torch.no_grad(), completion.model.reads(attention=arm.attention, tokens=arm.tokens, last=reading + 1):
        log_probs = completion.model(input_ids=ids).logits[0].log_softmax(-1)
    expected = -sum(float(log_probs[len(prompt.ids) - 1 + i, token]) for i, token in enumerate(spelled))
    assert outcome.nats == pytest.approx(expected, rel=1e-3)
    assert outcome.tokens == len(spelled)


def test_arms_do_not_disturb_each_other(completion):
    task = Task("pkg/a.py", BEFORE + "part_1(value)\n", len(BEFORE), "part_1(value)", "random")
    together = completion.complete(task, ARMS)
    for arm in ARMS:
        if not arm.random:
            alone = completion.complete(task, [arm])[arm.name]
            assert (alone.text, alone.nats) == (
                together[arm.name].text,
                pytest.approx(together[arm.name].nats, rel=1e-4),
            )
    assert together["BM25"].prompt > together["none"].prompt < together["recalled snippets"].prompt
    assert together["none"].nats != together["both memories"].nats != together["all of memory"].nats


@pytest.mark.parametrize("arm", PLAIN, ids=lambda arm: arm.name)
def test_what_another_arm_wrote_is_verified_and_not_generated_again(completion, arm):
    task = Task("pkg/a.py", BEFORE + "~" * 9 + "\n", len(BEFORE), "~" * 9, "random")
    first, second = completion.complete(task, [arm, replace(arm, name="again")]).values()
    assert second.text == first.text and first.steps > 6 and second.steps == 1


def test_random_memory_gives_live_entries_only(completion):
    bank = completion.bank
    for path in list(DOCUMENTS)[1:]:
        bank.drop(path)
    chance = RandomBank(bank)
    rows, similarity = chance.nearest(torch.randn(5, bank.state_size), 9)
    assert {bank.place(row).path for row in rows.flatten().tolist()} == {"pkg/part_0.py"}
    assert (similarity.diff(dim=-1) <= 0).all() and similarity.abs().max() <= 1.0001
    found = chance.search(next(iter(bank.shapes)), torch.randn(2, 5, 8), 4)
    assert {bank.place(row).path for row in found.flatten().tolist()} == {"pkg/part_0.py"}


# The split.


def sources(count: int = 12) -> list[Source]:
    body = "\n".join(f"    total = total + {i} * width" for i in range(40))
    return [
        Source(f"pkg/m{i}.py", f"from pkg.m{(i + 1) % count} import f{(i + 1) % count}\n\n\n"
               f"def f{i}(width):\n    total = f{(i + 1) % count}(width, {i})\n{body}\n    return total\n", "python")
        for i in range(count)
    ]  # fmt: skip


def test_a_split_follows_its_seed_and_tasks_are_in_held_out_documents():
    one, again, other = split(sources(), 0.25, 10, 0), split(sources(), 0.25, 10, 0), split(sources(), 0.25, 10, 1)
    assert one == again != other
    assert len(one.held_out) == 3
    assert {task.path for task in one.tasks} == {source.path for source in one.held_out}
    assert {task.kind for task in one.tasks} == {"cross-file", "random"}
    for task in one.tasks:
        assert task.text[task.offset :].startswith(task.truth)


def test_too_little_code_is_refused():
    with pytest.raises(CodememError, match="only 1 documents"):
        split(sources(12)[:1], 0.5, 10, 0)


# Whole evaluations.


@pytest.fixture
def evaluated():
    model = MemorizingModel(tiny_model(), TOKENIZER)
    found = sources(6)
    divided = split(found, 0.3, 4, 0)
    inside = {source.path for source in divided.held_out}
    kept = [source for source in found if source.path not in inside]
    for source in kept:
        model.remember(source.text, source.path)
    return model, kept, divided


def test_completed_lines_are_kept_and_not_computed_again(evaluated, tmp_path):
    model, kept, divided = evaluated
    file, arms = tmp_path / "lines.jsonl", (ARMS[0], ARMS[2], ARMS[7])

    def stop(stage: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        complete_lines(model, model.bank, kept, divided.tasks, file, stop, arms)
    assert len(file.read_text().splitlines()) == 2 and file.stat().st_mode & 0o777 == 0o600
    with file.open("a") as stream:
        stream.write('{"task": "cut o')  # killed while it wrote
    first = file.read_text().splitlines()[:2]
    result = complete_lines(model, model.bank, kept, divided.tasks, file, quiet, arms)
    assert file.read_text().splitlines()[:2] == first
    assert result["all"]["tasks"] == 4 and list(result["all"]["arms"]) == [arm.name for arm in arms]
    assert set(result) == {"all", "cross-file", "random"}
    before = file.read_text()
    assert complete_lines(model, model.bank, kept, divided.tasks, file, quiet, arms) == result
    assert file.read_text() == before


def test_likelihood_by_size_and_eviction(evaluated):
    model, _, divided = evaluated
    bank = model.bank
    other = MemorizingModel(tiny_model(), TOKENIZER)
    other.remember(DOCUMENTS["pkg/part_1.py"] * 3, "there.py")
    others = [("there.py", other.bank.entries("there.py"))]
    model.bank = bank
    sizes = (100, len(bank), 10**9)
    found = likelihood_by_size(model, bank, others, divided.held_out, sizes, 1, 0, quiet)
    assert [row["entries"] >= size for row, size in zip(found["sizes"], sizes, strict=True)] == [True, True, False]
    assert found["sizes"][-1]["entries"] == len(bank) + len(others[0][1])
    assert found["none"] != found["sizes"][0]["both"]["nats"] != found["sizes"][1]["both"]["nats"]
    halves = evict_half(model, bank, divided.held_out, 1, 0, quiet)
    assert len(bank) == halves["entries"] and halves["kept"] == len(bank) // 2 and bank.capacity is None
    assert len({halves[key] for key in ("none", "everything", "fifo", "lru", "importance")}) >= 4


def test_a_bank_grows_from_size_to_size(completion):
    sizes, documents = [], []
    for grown in nested(completion.bank, [], (200, 40), 3):
        sizes.append(len(grown))
        documents.append(grown.documents)
    assert set(documents[0]) < set(documents[1]) and 40 <= sizes[0] < 200 <= sizes[1]
    first = documents[0][0]
    assert grown.entries(first).tokens.equal(completion.bank.entries(first).tokens)
    everything = sum(len(completion.bank.entries(path)) for path in completion.bank.documents)
    others = [("more.py", completion.bank.entries(first))]
    *_, last = (len(grown) for grown in nested(completion.bank, others, (40, 10**6), 3))
    assert last == everything + len(others[0][1]), "then there is no more"


def test_nats_without_memory_are_the_base_models(completion):
    (piece,) = pieces(completion.model, "a.py", DOCUMENTS["pkg/part_1.py"])
    without = nats(completion.model, piece)
    completion.model.bank = completion.model.new_bank()
    assert nats(completion.model, piece, attention=True, tokens=True) == pytest.approx(without)


def test_a_summary_counts_what_outcomes_say(completion):
    task = Task("pkg/a.py", BEFORE + "part_1(value)\n", len(BEFORE), "part_1(value)", "random")
    outcome = completion.complete(task, ARMS[:1])["none"]
    right = replace(
        outcome, exact=True, edit=1.0, identifiers=True, nats=2.0, tokens=4, prefill=10.0, decode=6.0, steps=3
    )
    wrong = replace(right, exact=False, edit=0.5, identifiers=False, nats=6.0, prefill=30.0, decode=0.0, steps=0)
    found = summarise([{"none": wrong, "BM25": right}, {"none": right, "BM25": right}])
    assert (found["none"]["exact"], found["none"]["edit"], found["none"]["nats"]) == (0.5, 0.75, 1.0)
    assert found["none"]["milliseconds"] == pytest.approx(20 + 2 * 4)
    assert found["BM25"]["against"]["none"]["exact"][0] == 0.5
    assert found["BM25"]["against"]["none"]["nats"][0] == -0.5
    assert json.loads(json.dumps(found)) == found
