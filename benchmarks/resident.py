"""Peak resident memory of indexing: while files are encoded, and when the index over all of them is built.

    python -m benchmarks.resident --package openai-agents==0.24.0 --synthetic 200 --synthetic 2000

A synthetic repository has so many files of 8 lines each. Every repository is indexed from nothing, in a process of its
own.
"""

from __future__ import annotations

import multiprocessing
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.corpus import arguments, bars, report
from codemem.memory.manifest import FOLDER
from codemem.memory.store import Store
from codemem.models.pretrained import load_memorizing
from indexer.packages import package
from indexer.sync import Progress, sync


def main() -> None:
    parser = arguments("Peak resident memory of indexing.")
    parser.add_argument("--synthetic", type=int, action="append", default=[], help="files of a made-up repository")
    parser.add_argument("--no-package", action="store_true", help="only the made-up ones")
    chosen = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    if not chosen.no_package:
        root = package(chosen.package)
        rows[chosen.package] = measured(root, chosen.model)
    for count in chosen.synthetic:
        with tempfile.TemporaryDirectory() as scratch:
            made_up(Path(scratch), count)
            rows[f"{count} files"] = measured(Path(scratch), chosen.model)
    bars(chosen.plot, "peak resident memory of indexing", "MB", {name: row["peak_mb"] for name, row in rows.items()})
    report("resident", repositories=rows)


def made_up(root: Path, count: int) -> None:
    """Files of 8 lines in folders of 50."""
    for number in range(count):
        file = root / f"part{number // 50}" / f"module{number}.py"
        file.parent.mkdir(exist_ok=True)
        functions = (
            f"def step{number}_{i}(value, other):\n    total = value * {number + i} + other\n    return total\n"
            for i in range(2)
        )
        file.write_text("\n\n".join(functions))


def measured(root: Path, model: str | None) -> dict[str, Any]:
    """Index root in a new process."""
    shutil.rmtree(root / FOLDER, ignore_errors=True)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(indexed, (root, model))


def indexed(root: Path, model: str | None) -> dict[str, Any]:
    """Megabytes of this process: with the model and nothing read, the most after every group of files, and the most
    ever."""
    pretrained = load_memorizing(model)
    loaded, encoding = resident("VmRSS"), [0.0]

    def note(step: Progress) -> None:
        if step.path != "building the index":
            encoding.append(resident("VmHWM"))

    with Store(root, create=True) as store:
        store.bind(pretrained.fingerprint)
        done = sync(store, lambda: pretrained.model, note)
    return {
        "documents": done.documents,
        "entries": done.entries,
        "tokens_per_second": round(done.tokens_per_second, 1),
        "seconds": round(done.seconds, 1),
        "disk_mb": round(done.bytes / 1e6),
        "model_mb": round(loaded),
        "encoding_first_mb": round(encoding[min(10, len(encoding) - 1)]),
        "encoding_mb": round(max(encoding)),
        "peak_mb": round(resident("VmHWM")),
    }


def resident(key: str) -> float:
    """VmRSS, what is resident now, or VmHWM, the most that was, in MB (Linux)."""
    match = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
