"""The results as pictures, each as PNG and SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from codemem.evaluation.arms import NONE
from codemem.evaluation.likelihood import READS
from codemem.extras import optional


def draw(results: dict[str, Any], folder: Path) -> list[Path]:
    """Draw what the results have into a folder. Returns the files. Raises CodememError without matplotlib."""
    Figure = optional("matplotlib.figure").Figure
    folder.mkdir(parents=True, exist_ok=True)
    title = f"{results['target']}, {results['model']}"
    figures: dict[str, Any] = {}
    for kind, found in results.get("lines", {}).items():
        figure = figures[f"lines-{kind}"] = Figure(figsize=(8, 4.5), layout="constrained")
        _lines(figure.subplots(1, 2, sharey=True), found, f"{title}: {found['tasks']} lines, {kind}")
    if "likelihood" in results:
        figure = figures["likelihood"] = Figure(figsize=(6, 4), layout="constrained")
        _sizes(figure.subplots(), results["likelihood"], title)
    files = []
    for name, figure in figures.items():
        for suffix in ("png", "svg"):
            files.append(folder / f"{name}.{suffix}")
            figure.savefig(files[-1])
    return files


def _lines(panels: Any, found: dict[str, Any], title: str) -> None:
    names = list(found["arms"])
    for axes, key, label in zip(panels, ("exact", "nats"), ("exact match", "nats per token"), strict=True):
        for place, name in enumerate(names):
            arm = found["arms"][name]
            difference, low, high = arm["against"][NONE][key]
            axes.barh(place, arm[key], color="#5b82c4")
            axes.errorbar(
                arm[key], place, xerr=[[difference - low], [high - difference]], color="black", linewidth=1, capsize=2
            )
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel(label)
    panels[0].invert_yaxis()
    panels[0].figure.suptitle(f"{title}\nwith the 95 % interval of the difference to no memory", fontsize="medium")


def _sizes(axes: Any, found: dict[str, Any], title: str) -> None:
    sizes = [row["entries"] for row in found["sizes"]]
    for name in READS:
        axes.plot(sizes, [row[name]["nats"] for row in found["sizes"]], marker="o", label=name)
    axes.axhline(found[NONE], color="black", linewidth=0.8, linestyle="--", label="no memory")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("entries in memory")
    axes.set_ylabel("nats per token of held-out documents")
    axes.set_title(title)
    axes.legend()
