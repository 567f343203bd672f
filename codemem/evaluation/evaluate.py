"""What memory is worth on one repository: lines by every arm, likelihood by size of memory, and ways to evict.

Some documents are held out by a seeded draw and leave memory; the tasks are in them.
"""

from __future__ import annotations

import json
import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from codemem.errors import CodememError
from codemem.evaluation.arms import ARMS, NONE, Arm
from codemem.evaluation.bm25 import WindowIndex
from codemem.evaluation.likelihood import READS, nats, nested, sampled
from codemem.evaluation.lines import LineCompletion, Outcome
from codemem.evaluation.metrics import paired_bootstrap
from codemem.evaluation.report import by_kind
from codemem.evaluation.tasks import Task, cross_file_uses, definitions, draw, random_lines
from codemem.memory.bank import Bank
from codemem.memory.entries import Entries
from codemem.memory.eviction import Policy
from codemem.models.memorizing import MemorizingModel
from codemem.training.gates import Piece

LEAST_CHARACTERS = 1024  # of a document that may be held out
POLICIES: tuple[Policy, ...] = ("fifo", "lru", "importance")
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Source:
    """A document of the repository that is evaluated."""

    path: str
    text: str
    language: str | None


@dataclass(frozen=True)
class Split:
    """held_out: documents that memory must not hold; tasks: lines in them, cross-file uses and random lines by
    half."""

    held_out: tuple[Source, ...]
    tasks: tuple[Task, ...]


def split(documents: Sequence[Source], share: float, tasks: int, seed: int) -> Split:
    """Hold out a share of the documents that define something, and draw tasks in them, half of each kind.

    Raises CodememError where the repository has too little code for that.
    """
    defined = {document.path: definitions(document.text, document.language) for document in documents}
    candidates = [d for d in documents if len(d.text) >= LEAST_CHARACTERS and defined[d.path]]
    count = max(1, round(share * len(candidates)))
    if len(candidates) < 2 * count:
        raise CodememError(
            f"only {len(candidates)} documents of at least {LEAST_CHARACTERS} characters define something",
            "evaluate on a larger repository, or on a package: codemem eval mcp==2.3.0",
        )
    held_out = random.Random(seed).sample(candidates, count)
    inside = {document.path for document in held_out}
    elsewhere = frozenset().union(*(names for path, names in defined.items() if path not in inside))
    uses = [cross_file_uses(d.path, d.text, d.language, elsewhere) for d in held_out]
    lines = [random_lines(d.path, d.text, d.language) for d in held_out]
    drawn = draw(uses, tasks // 2, seed) + draw(lines, tasks - tasks // 2, seed)
    return Split(tuple(sorted(held_out, key=lambda d: d.path)), tuple(drawn))


def complete_lines(
    model: MemorizingModel,
    bank: Bank,
    documents: Sequence[Source],
    tasks: Sequence[Task],
    file: Path,
    report: Report,
    arms: Sequence[Arm] = ARMS,
) -> dict[str, Any]:
    """What `by_kind` says of the tasks' outcomes.

    documents: those in the bank. Each task's outcomes are appended to `file` when they are there, and what it has is
    not computed again.
    """
    done = {kept.task: kept.outcomes for kept in kept_outcomes(file)}
    completion = LineCompletion(model, bank, WindowIndex((d.path, d.text) for d in documents))
    for number, task in enumerate(tasks):
        report("completing lines", number, len(tasks))
        have = done.get(task.name, {})
        missing = [arm for arm in arms if arm.name not in have]
        if missing:
            have |= completion.complete(task, missing)
            done[task.name] = have
            _append(file, task, have)
    report("completing lines", len(tasks), len(tasks))
    return by_kind((task.kind, {arm.name: done[task.name][arm.name] for arm in arms}) for task in tasks)


def likelihood_by_size(
    model: MemorizingModel,
    bank: Bank,
    others: Iterable[tuple[str, Entries]],
    held_out: Sequence[Source],
    sizes: Sequence[int],
    each: int,
    seed: int,
    report: Report,
) -> dict[str, Any]:
    """Nats per token of held-out documents without memory, and by size of memory and by which memory is read, with the
    95 % interval, over documents, of the change.

    others: entries of other repositories, for sizes that this one cannot fill; each: pieces of a document at most.
    """
    scored = sampled(model, ((d.path, d.text) for d in held_out), each, seed)
    base, tokens = _by_document(model, scored, report, "likelihood without memory", False, False)
    total = sum(tokens.values())
    rows = []
    for grown in nested(bank, others, sizes, seed):
        model.bank = grown
        row: dict[str, Any] = {"entries": len(grown)}
        for name, (attention, token_memory) in READS.items():
            found, _ = _by_document(
                model, scored, report, f"likelihood, {len(grown):,} entries, {name}", attention, token_memory
            )
            paths = sorted(base)
            change = paired_bootstrap(
                [found[p] for p in paths], [base[p] for p in paths], weights=[tokens[p] for p in paths]
            )
            row[name] = {
                "nats": sum(found.values()) / total,
                "change": [round(number, 4) for number in (change.difference, change.low, change.high)],
            }
        rows.append(row)
    model.bank = bank
    return {"documents": len(base), "tokens": total, NONE: sum(base.values()) / total, "sizes": rows}


def evict_half(
    model: MemorizingModel, bank: Bank, held_out: Sequence[Source], each: int, seed: int, report: Report
) -> dict[str, Any]:
    """Nats per token with all of memory, and with the half of it that each policy keeps. What was read by one half of
    the documents decides what is kept, the other half is scored."""
    scored = sampled(model, ((d.path, d.text) for d in held_out), each, seed)
    middle = sorted({path for path, _ in scored})[len({path for path, _ in scored}) // 2]
    seen, unseen = [p for p in scored if p[0] < middle], [p for p in scored if p[0] >= middle]
    model.bank, bank.capacity = bank, len(bank)
    _by_document(model, seen, report, "what is read", True, True)
    bank.capacity = None
    result: dict[str, Any] = {"entries": len(bank), "kept": len(bank) // 2}
    for name, on in ((NONE, False), ("everything", True)):
        result[name] = _per_token(*_by_document(model, unseen, report, name, on, on))
    for policy in POLICIES:
        with bank.evicted(len(bank) // 2, policy):
            result[policy] = _per_token(*_by_document(model, unseen, report, f"half, {policy}", True, True))
    return result


def _per_token(sums: Mapping[str, float], tokens: Mapping[str, int]) -> float:
    return sum(sums.values()) / max(1, sum(tokens.values()))


def _by_document(
    model: MemorizingModel,
    scored: Sequence[tuple[str, Piece]],
    report: Report,
    stage: str,
    attention: bool,
    tokens: bool,
) -> tuple[dict[str, float], dict[str, int]]:
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for number, (path, piece) in enumerate(scored):
        report(stage, number, len(scored))
        sums[path] += nats(model, piece, attention=attention, tokens=tokens)
        counts[path] += piece.scored
    report(stage, len(scored), len(scored))
    return dict(sums), dict(counts)


class Kept(NamedTuple):
    """What a file has of one task. kind: of the task; outcomes: by the name of the arm."""

    task: str
    kind: str
    outcomes: dict[str, Outcome]


def kept_outcomes(file: Path) -> list[Kept]:
    """What earlier runs of an evaluation left in its file, nothing where there is none. A last line that was cut off is
    removed."""
    if not file.is_file():
        return []
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole, encoding="utf-8")
    rows = {row["task"]: row for row in map(json.loads, whole.splitlines())}  # the last of a task has all arms
    return [
        Kept(task, row["kind"], {name: Outcome(**outcome) for name, outcome in row["outcomes"].items()})
        for task, row in rows.items()
    ]


def _append(file: Path, task: Task, outcomes: Mapping[str, Outcome]) -> None:
    row = {
        "task": task.name,
        "kind": task.kind,
        "truth": task.truth,
        "outcomes": {name: outcome.as_json() for name, outcome in outcomes.items()},
    }
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with open(descriptor, "a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")
