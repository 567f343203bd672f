"""Completed lines of several packages as one set of tasks, since a few hundred lines tell more than a hundred.

    codemem eval openai-agents==0.24.0 --part lines --json > first.json
    codemem eval pydantic-ai-slim==2.68.0 --part lines --json > second.json
    python -m benchmarks.pooled first.json second.json

Every arm's numbers and paired differences, by kind of task, over what the evaluations kept of each task.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.corpus import bars, report
from codemem.evaluation.evaluate import Kept, kept_outcomes
from codemem.evaluation.report import by_kind


def pooled(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Kind -> tasks and arms, as in the JSON of one evaluation."""
    everything: list[Kept] = []
    for evaluation in evaluations:
        kept = kept_outcomes(Path(evaluation["outcomes"]))
        if len(kept) != (tasks := evaluation["lines"]["all"]["tasks"]):
            raise SystemExit(f"{evaluation['target']}: {tasks} lines in the report, {len(kept)} kept: evaluate again")
        everything += kept
    return by_kind((each.kind, each.outcomes) for each in everything)


def main() -> None:
    parser = argparse.ArgumentParser(description="Completed lines of several packages together.")
    parser.add_argument("evaluations", nargs="+", type=Path, help="what codemem eval --json printed")
    parser.add_argument("--plot", type=Path, help="draw the exact matches into this file")
    options = parser.parse_args()
    evaluations = [json.loads(file.read_text(encoding="utf-8")) for file in options.evaluations]
    kinds = pooled(evaluations)
    exact = {name: arm["exact"] for name, arm in kinds["cross-file"]["arms"].items()}
    bars(options.plot, "exact match, calls of other files", "share of lines", exact)
    report("pooled", packages=[each["target"] for each in evaluations], model=evaluations[0]["model"], lines=kinds)


if __name__ == "__main__":
    main()
