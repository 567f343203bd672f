"""The gate report: which heads would gain from memory, which opened, and how much attention memory takes, as a table
and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from codemem.errors import CodememError
from codemem.extras import optional
from codemem.models.adapter import DEFAULT_BIAS, GATE, Adapter

SUFFIXES = (".png", ".svg", ".pdf")


def heads(adapter: Adapter) -> list[dict[str, Any]]:
    """The heads of the memory layers, by layer. layer, head: their numbers; bias, temperature, discount: as learned;
    gain, error, mass: as the scan found them (`training.scan`); open: whether training raised its bias above
    DEFAULT_BIAS. Without a scan the list is empty."""
    if not adapter.scan:
        return []
    return [
        {
            "layer": layer,
            "head": head,
            "open": float(adapter.bias[layer][head]) > DEFAULT_BIAS,
        }
        | {kind: round(float(getattr(adapter, kind)[layer][head]), 4) for kind in GATE}
        | {name: round(float(adapter.scan[name][layer, head]), 6) for name in ("gain", "error", "mass")}
        for layer in adapter.layers
        for head in range(len(adapter.bias[layer]))
    ]


def check_drawable(path: Path) -> None:
    """Raise CodememError where `draw` could not make this file."""
    optional("matplotlib.figure")
    if path.suffix not in SUFFIXES or not path.absolute().parent.is_dir():
        raise CodememError(f"{path} cannot be drawn", f"name a {', '.join(SUFFIXES)} file in a folder that exists")


def draw(adapter: Adapter, path: Path) -> None:
    """Draw what the scan found for every head of the model, layer by layer, and beside it the learned biases, the
    memory layers framed. Raises CodememError as `check_drawable` does."""
    check_drawable(path)
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    gain, mass = adapter.scan["gain"].numpy(), adapter.scan["mass"].numpy()
    layers, count = gain.shape
    learned = gain * float("nan")
    for layer in adapter.layers:
        learned[layer] = adapter.bias[layer].numpy()
    figure = Figure(figsize=(4 + 0.45 * count, 2 + 0.2 * layers), layout="constrained")
    largest = max(float(abs(gain).max()), 1e-9)
    offset = max(1e-9, float(abs(learned[list(adapter.layers)] - DEFAULT_BIAS).max()))
    panels = (
        ("gain, nats/token", gain, {"cmap": "RdBu", "vmin": -largest, "vmax": largest}),
        ("share of attention", mass, {"cmap": "viridis", "vmin": 0}),
        ("learned bias", learned, {"cmap": "RdBu", "vmin": DEFAULT_BIAS - offset, "vmax": DEFAULT_BIAS + offset}),
    )
    for axes, (title, values, style) in zip(figure.subplots(1, 3, sharey=True), panels, strict=True):
        image = axes.imshow(values, aspect="auto", origin="lower", interpolation="nearest", **style)
        figure.colorbar(image, ax=axes)
        axes.set_title(title)
        axes.set_xlabel("head")
        axes.set_xticks(range(0, count, max(1, count // 8)))
        for layer in adapter.layers:
            axes.add_patch(Rectangle((-0.5, layer - 0.5), count, 1, fill=False, edgecolor="black", linewidth=1.2))
    figure.axes[0].set_ylabel("layer")
    figure.suptitle(f"{adapter.name}: heads and memory; memory layers framed")
    figure.savefig(path)
