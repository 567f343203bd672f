"""From outcomes to numbers: per arm its means, its differences with their intervals, and its time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from codemem.evaluation.arms import BM25, NONE
from codemem.evaluation.lines import Outcome
from codemem.evaluation.metrics import Interval, paired_bootstrap

BASELINES = (NONE, BM25)


def by_kind(outcomes: Iterable[tuple[str, Mapping[str, Outcome]]]) -> dict[str, Any]:
    """Kind of task -> how many there are and what `summarise` says of them; "all" for all kinds together. outcomes: the
    kind of each task, and its outcome for every arm."""
    kinds: dict[str, list[Mapping[str, Outcome]]] = defaultdict(list)
    for own, each in outcomes:
        for kind in (own, "all"):
            kinds[kind].append(each)
    return {kind: {"tasks": len(each), "arms": summarise(each)} for kind, each in sorted(kinds.items())}


def summarise(outcomes: Sequence[Mapping[str, Outcome]]) -> dict[str, Any]:
    """Arm -> its numbers over tasks, each of which has an outcome for every arm.

    exact, edit, identifiers: means, 0 to 1; nats: per token of the true lines; milliseconds: of one completion, the
    median prompt plus the median generated token times the median line's tokens; prompt: median tokens; against: for
    each baseline the differences of the first four with their 95 % intervals.
    """
    return {arm: _arm(outcomes, arm) for arm in (outcomes[0] if outcomes else {})}


def _arm(outcomes: Sequence[Mapping[str, Outcome]], arm: str) -> dict[str, Any]:
    own = [each[arm] for each in outcomes]
    steps = [o.decode / o.steps for o in own if o.steps] or [0.0]
    tokens = sum(o.tokens for o in own)
    return {
        "exact": sum(o.exact for o in own) / len(own),
        "edit": sum(o.edit for o in own) / len(own),
        "identifiers": sum(o.identifiers for o in own) / len(own),
        "nats": sum(o.nats for o in own) / tokens if tokens else 0.0,
        "milliseconds": median(o.prefill for o in own) + median(steps) * median(o.tokens for o in own),
        "milliseconds_prompt": median(o.prefill for o in own),
        "milliseconds_token": median(steps),
        "prompt": median(o.prompt for o in own),
        "against": {name: _differences(outcomes, arm, name) for name in BASELINES if name in outcomes[0]},
    }


def _differences(outcomes: Sequence[Mapping[str, Outcome]], arm: str, other: str) -> dict[str, list[float]]:
    found = {
        key: paired_bootstrap(
            [float(getattr(each[arm], key)) for each in outcomes],
            [float(getattr(each[other], key)) for each in outcomes],
        )
        for key in ("exact", "edit", "identifiers")
    }
    scored = [each for each in outcomes if each[arm].tokens]
    if scored:
        found["nats"] = paired_bootstrap(
            [each[arm].nats for each in scored],
            [each[other].nats for each in scored],
            weights=[each[arm].tokens for each in scored],
        )
    return {key: _rounded(interval) for key, interval in found.items()}


def _rounded(interval: Interval) -> list[float]:
    return [round(number, 4) for number in (interval.difference, interval.low, interval.high)]
