"""Code to measure on: packages that the models cannot have seen, and files of them held out by a seeded shuffle."""

from __future__ import annotations

import argparse
import json
import platform
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from codemem.memory.bank import Bank
from codemem.memory.snapshot import open_bank
from codemem.memory.store import Store
from codemem.models.pretrained import Pretrained
from indexer.documents import Document
from indexer.packages import documents, package
from indexer.sync import Progress, sync

REPORTED = "mcp==2.3.0"


def held_out(requirement: str, count: int = 20, seed: int = 0, least: int = 1024) -> tuple[Path, list[Document]]:
    """A copy of a package without `count` files, chosen by a seeded shuffle among those of at least `least` bytes, and
    these."""
    source = package(requirement)
    candidates = [document for document in documents(source, (".py",)) if document.size >= least]
    chosen = random.Random(seed).sample(candidates, count)
    root = source.with_name(f"{source.name}-without-{count}-seed-{seed}")
    if not root.is_dir():
        excluded = {str(source / document.path) for document in chosen}
        partial = root.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial, ignore=lambda folder, names: [n for n in names if f"{folder}/{n}" in excluded])
        partial.rename(root)
    return root, chosen


def remember(pretrained: Pretrained, root: Path) -> Bank:
    """Index root, or take the index that an earlier run left, and let the model read it."""

    def show(step: Progress) -> None:
        print(f"\rindexing {step.done / max(step.total, 1):.0%}", end="", file=sys.stderr)

    with Store(root, create=True) as store:
        store.bind(pretrained.fingerprint, replace=store.fingerprint not in (None, pretrained.fingerprint))
        sync(store, lambda: pretrained.model, show)
        pretrained.model.bank = bank = open_bank(store, pretrained.model.new_bank())
    print(file=sys.stderr)
    return bank


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with what all benchmarks take."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", help="as for codemem; the embedded model by default")
    parser.add_argument("--package", default=REPORTED, help="a requirement with its version")
    parser.add_argument(
        "--plot", type=Path, help="draw the result into this .png or .svg file (needs the extra `eval`)"
    )
    return parser


def bars(path: Path | None, title: str, unit: str, values: dict[str, float]) -> None:
    """Draw named values as horizontal bars into a .png or .svg file; nothing without a path."""
    if path is None:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.9 + 0.45 * len(values)), layout="constrained")
    axes = figure.subplots()
    axes.bar_label(axes.barh(list(values), list(values.values()), color="#5b82c4"), fmt="%.4g", padding=3)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.margins(x=0.15)
    axes.set_xlabel(unit)
    axes.set_title(title)
    figure.savefig(path)


def report(name: str, **results: Any) -> None:
    """Print one JSON line."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    print(json.dumps({"benchmark": name, "commit": commit, "processor": _processor(), **results}))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    processor = f"{len(names)} x {names[0]}" if names else platform.processor()
    return f"{processor}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else processor
