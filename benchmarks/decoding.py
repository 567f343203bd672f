"""How fast completions are: the decode loop against transformers' `generate`, drafts, memory, and a warm engine.

    python -m benchmarks.decoding

On places in a package that is in memory, drawn by a seed. What is compared takes turns, prompt by prompt.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from benchmarks.corpus import arguments, bars, remember, report
from codemem.completion.decode import Clock, decode
from codemem.completion.engine import Engine
from codemem.completion.prompt import Prompt, build_prompt
from codemem.completion.recall import ask, focus
from codemem.completion.request import Request
from codemem.memory.focus import Focus
from codemem.models.decoder import TransformersDecoder
from codemem.models.memorizing import MemorizingModel
from codemem.models.pretrained import load_memorizing
from codemem.models.tokenizer import tokenize
from indexer.documents import Document
from indexer.packages import documents, package

DRAFTS = 7
# Arm -> (attention, tokens, drafts).
ARMS = {
    "no memory": (False, False, 0),
    "no memory, drafts": (False, False, DRAFTS),
    "token memory": (False, True, 0),
    "token memory, drafts": (False, True, DRAFTS),
    "attention memory": (True, False, 0),
    "both memories": (True, True, 0),
    "both memories, drafts": (True, True, DRAFTS),
}


@dataclass(frozen=True)
class Place:
    """A cursor in a document."""

    path: str
    text: str
    offset: int


def places(found: Sequence[Document], count: int, seed: int) -> list[Place]:
    """Cursors within lines of code, up to ten characters behind the indentation, each in the second half of a
    document, so that most have a whole window before them."""
    chance, drawn = random.Random(seed), list[Place]()
    long = [document for document in found if document.text.count("\n") > 60]
    while len(drawn) < count:
        document = chance.choice(long)
        lines = document.text.split("\n")
        number = chance.randrange(len(lines) // 2, len(lines))
        line = lines[number]
        if len(line.strip()) > 12 and not line.strip().startswith("#"):
            indent = len(line) - len(line.lstrip())
            before = sum(len(each) + 1 for each in lines[:number])
            drawn.append(Place(document.path, document.text, before + indent + chance.randrange(10)))
    return drawn


@torch.inference_mode()
def generated_by_transformers(model: MemorizingModel, ids: list[int], count: int) -> tuple[list[int], float]:
    """Tokens of transformers' greedy `generate` without memory, and seconds per token after the first."""
    prompt = torch.tensor([ids], device=model.device)
    stops = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with model.reads(attention=False, tokens=False):
        seconds, tokens = [], prompt
        for wanted in (1, count + 1):
            start = time.perf_counter()
            tokens = model.generate(
                input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=wanted, **stops
            )
            seconds.append(time.perf_counter() - start)
    return tokens[0, len(ids) :].tolist(), (seconds[1] - seconds[0]) / count


def searched(engine: Engine, ids: list[int]) -> Focus | None:
    """What attention searches behind a prompt's tokens, as in a completion."""
    return focus(engine.model.bank, ask(engine.model, engine.model.decoder(), ids))


def generated(
    engine: Engine, prompt: Prompt, chosen: Focus | None, count: int, arm: str
) -> tuple[list[int], float, Clock]:
    """Tokens of our decode loop, and seconds per token after the first. chosen: what attention searches."""
    attention, tokens, drafts = ARMS[arm]
    clock = Clock()
    with engine.model.reads(attention=attention, tokens=tokens, traced=True) as reading:
        reading.focus, decoder = chosen, engine.model.decoder()
        steps = decode(engine.model, decoder, engine.vocabulary, prompt, clock=clock, drafts=drafts)
        found = [step.token for step in islice(steps, count + 1)]
    return found, clock.decode / max(1, len(found) - 1), clock


def in_turns(engine: Engine, prompt: Prompt, chosen: Focus | None, count: int) -> dict[str, float]:
    """Arm without drafts -> median seconds of a token, of which every arm generates one after the other: so that what
    else the machine does meanwhile is the same for all of them."""
    arms = {name: (attention, tokens) for name, (attention, tokens, drafts) in ARMS.items() if not drafts}
    generating = {arm: decode(engine.model, engine.model.decoder(), engine.vocabulary, prompt) for arm in arms}
    traces = {arm: (list[tuple[Tensor, Tensor]](), list[tuple[Tensor, Tensor]]()) for arm in arms}
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for _ in range(count + 1):
        taken: dict[str, float] = {}
        for arm, (attention, tokens) in arms.items():
            with engine.model.reads(attention=attention, tokens=tokens, traced=True) as reading:
                reading.focus, (reading.trace, reading.token_trace) = chosen, traces[arm]
                start = time.perf_counter()
                if next(generating[arm], None) is not None:
                    taken[arm] = time.perf_counter() - start
        if len(taken) < len(arms):
            break
        for arm, each in taken.items():
            seconds[arm].append(each)
    return {arm: statistics.median(times[1:]) for arm, times in seconds.items()}


def compare(engine: Engine, places: Sequence[Place], count: int) -> dict[str, object]:
    """Milliseconds per token of each way, one way after the other, and ratios, medians over places; what memory adds
    is measured token by token."""
    seconds: dict[str, list[float]] = {name: [] for name in ("transformers", *ARMS)}
    turns: list[dict[str, float]] = []
    clocks: dict[str, Clock] = {name: Clock() for name in ARMS}
    same = agreed = 0
    for place in places:
        request = Request(place.path, place.text, place.offset)
        prompt = build_prompt(request, engine.model.tokenizer, engine.vocabulary)
        prompt = replace(prompt, healed=b"")
        expected, seconds_each = generated_by_transformers(engine.model, prompt.ids, count)
        seconds["transformers"].append(seconds_each)
        found = {}
        with engine.model.bank.hiding(place.path):
            chosen = searched(engine, prompt.ids)
            turns.append(in_turns(engine, prompt, chosen, count))
            for arm in ARMS:
                found[arm], seconds_each, clock = generated(engine, prompt, chosen, count, arm)
                seconds[arm].append(seconds_each)
                clocks[arm].drafted += clock.drafted
                clocks[arm].accepted += clock.accepted
                clocks[arm].passes += clock.passes
        same += all(found[f"{arm}, drafts"] == found[arm] for arm in ("no memory", "token memory", "both memories"))
        agreed += found["no memory"] == expected[: len(found["no memory"])]
    theirs = seconds["transformers"]
    return {
        "ms_per_token": {name: round(1000 * statistics.median(times), 1) for name, times in seconds.items()},
        "faster_than_transformers": {
            name: round(statistics.median(t / o for t, o in zip(theirs, seconds[name], strict=True)), 2)
            for name in ARMS
        },
        "memory_adds": {
            name: round(statistics.median(each[name] / each["no memory"] for each in turns) - 1, 3)
            for name in ("token memory", "attention memory", "both memories")
        },
        "drafted_accepted_passes": {
            name: [clocks[name].drafted, clocks[name].accepted, clocks[name].passes] for name in ARMS if "draft" in name
        },
        "same_with_drafts": same,
        "same_as_transformers": agreed,
        "places": len(places),
    }


def same(engine: Engine, places: Sequence[Place], count: int) -> dict[str, int]:
    """How many of so many texts of `count` tokens are the same, token for token, with drafts and without."""
    equal, drafted, accepted = 0, 0, 0
    for place in places:
        request = Request(place.path, place.text, place.offset, context=128)
        prompt = build_prompt(request, engine.model.tokenizer, engine.vocabulary)
        clock, found = Clock(), []
        with engine.model.bank.hiding(place.path), engine.model.reads(traced=True) as reading:
            reading.focus, decoder = searched(engine, prompt.ids), engine.model.decoder()
            decoder.read(prompt.ids[:-1])
            for drafts in (0, DRAFTS):
                decoder.crop(len(prompt.ids) - 1)
                steps = decode(engine.model, decoder, engine.vocabulary, prompt, clock=clock, drafts=drafts)
                found.append([step.token for step in islice(steps, count)])
        equal += found[0] == found[1]
        drafted, accepted = drafted + clock.drafted, accepted + clock.accepted
    return {"texts": len(places), "same": equal, "drafted": drafted, "accepted": accepted}


def quality(model: MemorizingModel, documents: Sequence[Document], count: int) -> dict[str, object]:
    """The next 32 tokens of documents after their first 512, as they are: nats per token and share that is the most
    likely one, by our forward pass, 16 positions at a time, and by transformers'."""
    results: dict[str, object] = {}
    for name, on in (("no memory", False), ("both memories", True)):
        nats: dict[str, list[float]] = {"ours": [], "transformers": []}
        first: dict[str, list[bool]] = {"ours": [], "transformers": []}
        for document in documents:
            ids = tokenize(model.tokenizer, document.text)[0][:544]
            if len(ids) < 544 or len(nats["ours"]) >= 32 * count:
                continue
            with model.bank.hiding(document.path), model.reads(attention=on, tokens=on):
                ways = {"ours": model.decoder(), "transformers": TransformersDecoder(model)}
                for way, decoder in ways.items():
                    logits = [decoder.read(ids[:512])]
                    logits += [decoder.read(ids[512:528], 16), decoder.read(ids[528:543], 15)]
                    found = torch.cat(logits).log_softmax(dim=-1)
                    truth = torch.tensor(ids[512:], device=found.device)
                    nats[way] += (-found.gather(1, truth[:, None]).squeeze(1)).tolist()
                    first[way] += (found.argmax(dim=-1) == truth).tolist()
        results[name] = {
            way: {"nats": round(statistics.mean(nats[way]), 4), "most_likely": round(statistics.mean(first[way]), 4)}
            for way in nats
        } | {"tokens": len(nats["ours"])}
    return results


def warm(engine: Engine, places: Sequence[Place], **ways: bool) -> dict[str, object]:
    """Milliseconds of whole one-line completions: the first in a document that was not read yet, and the one after the
    next character was typed, computed as if that was not what the first says."""
    first, typed = list[float](), list[float]()
    for place in places:
        for offset, times in ((place.offset, first), (place.offset + 1, typed)):
            request = Request(place.path, place.text, offset, **ways)
            engine.forget()  # else the rest of the first would be the answer to the second
            start = time.perf_counter()
            engine.complete(request)
            times.append(1000 * (time.perf_counter() - start))
    return {"first": _spread(first), "typed_on": _spread(typed)}


def _spread(times: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(times)), "p95": round(statistics.quantiles(times, n=20)[-1])}


def main() -> None:
    parser = arguments("Milliseconds per token and per completion.")
    parser.add_argument("--cursors", type=int, default=200, help="of whole completions")
    parser.add_argument("--same", type=int, default=500, help="texts generated with drafts and without")
    parser.add_argument("--prompts", type=int, default=30, help="for milliseconds per token")
    parser.add_argument("--tokens", type=int, default=24, help="generated after each prompt")
    options = parser.parse_args()
    pretrained = load_memorizing(options.model)
    root = package(options.package)
    bank = remember(pretrained, root)
    engine = Engine(pretrained.model, pretrained.name)
    found = documents(root, (".py",))
    engine.complete(Request("warm.py", "x = 1\ny = ", 10))
    by_token = compare(engine, places(found, options.prompts, 1), options.tokens)
    cursors = places(found, options.cursors, 0)
    whole = {
        "no memory": warm(engine, cursors, attention=False, tokens=False, recall=False),
        "both memories": warm(engine, cursors, recall=False),
    }
    shown = by_token["ms_per_token"]
    assert isinstance(shown, dict)
    bars(options.plot, f"{options.package}: time per generated token", "milliseconds", shown)
    report(
        "decoding",
        package=options.package,
        model=pretrained.name,
        entries=len(bank),
        by_token=by_token,
        quality=quality(pretrained.model, found, options.prompts),
        drafts=same(engine, places(found, options.same, 2), options.tokens),
        cursors=options.cursors,
        completion_ms=whole,
    )


if __name__ == "__main__":
    main()
