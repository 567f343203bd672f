"""The small file that says where and how strongly a model reads memory: layers, neighbours, angle, gates."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from codemem.errors import CodememError
from codemem.models.attention import GateKind

# Where the search for useful layers starts when nobody has calibrated the model: in SmolLM2-135M and Qwen2.5-Coder-0.5B
# the heads that gain from memory sit between 45 % and 80 % of the depth.
DEFAULT_DEPTHS = (0.5, 0.55, 0.6, 0.65)
DEFAULT_BIAS = -2.0
DEFAULT_ANGLE = 1024
DEFAULT_K = 32
_MIXTURE = "mixture."


@dataclass(frozen=True)
class Adapter:
    """How one model reads memory.

    layers: the memory layers, ascending; k: neighbours per query head; angle: the constant distance D, in tokens, at
    which memory stands; gate: "joint" softmax or the paper's "sigmoid"; bias, temperature: memory layer -> [heads]
    float32; mixture: the state of the network that weighs token memory (`Mixture`), or none for a constant weight;
    recipe: how the numbers were found, in words.
    """

    layers: tuple[int, ...]
    bias: dict[int, Tensor]
    temperature: dict[int, Tensor]
    k: int = DEFAULT_K
    angle: int = DEFAULT_ANGLE
    gate: GateKind = "joint"
    name: str = "default"
    mixture: dict[str, Tensor] = field(default_factory=dict)
    recipe: dict[str, str] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        tensors = {f"layer.{layer}.bias": self.bias[layer].contiguous() for layer in self.layers}
        tensors |= {f"layer.{layer}.temperature": self.temperature[layer].contiguous() for layer in self.layers}
        tensors |= {f"{_MIXTURE}{name}": tensor.contiguous() for name, tensor in self.mixture.items()}
        shape = {"layers": self.layers, "k": self.k, "angle": self.angle, "gate": self.gate, "name": self.name}
        save_file(tensors, path, metadata={"adapter": json.dumps(shape), "recipe": json.dumps(self.recipe)})


def uniform_adapter(
    layers: tuple[int, ...],
    heads: int,
    *,
    bias: float = DEFAULT_BIAS,
    k: int = DEFAULT_K,
    angle: int = DEFAULT_ANGLE,
    gate: GateKind = "joint",
) -> Adapter:
    """The same gate in every head of the layers given."""
    return Adapter(
        layers=tuple(sorted(layers)),
        bias={layer: torch.full((heads,), bias) for layer in layers},
        temperature={layer: torch.ones(heads) for layer in layers},
        k=k,
        angle=angle,
        gate=gate,
    )


def default_layers(layers: int) -> tuple[int, ...]:
    """The memory layers of a model with so many decoder layers that nobody has calibrated."""
    return tuple(sorted({int(layers * depth) for depth in DEFAULT_DEPTHS if layers}))


def load_adapter(path: Path) -> Adapter:
    """Read an adapter file. Raises CodememError where it is missing or is not an adapter."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            shape = json.loads(metadata["adapter"])
            layers = tuple(shape.pop("layers"))
            return Adapter(
                layers=layers,
                bias={layer: file.get_tensor(f"layer.{layer}.bias") for layer in layers},
                temperature={layer: file.get_tensor(f"layer.{layer}.temperature") for layer in layers},
                mixture={
                    name.removeprefix(_MIXTURE): file.get_tensor(name)
                    for name in file.keys()  # noqa: SIM118 - not a dict
                    if name.startswith(_MIXTURE)
                },
                recipe=json.loads(metadata.get("recipe", "{}")),
                **shape,
            )
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CodememError(
            f"{path} is not a readable adapter: {error}", "give the path of an adapter file, or none"
        ) from error


def shipped_adapter(model_name: str) -> Adapter | None:
    """The adapter that comes with codemem for a catalog model, or None."""
    file = resources.files("codemem.models") / "adapters" / f"{model_name}.safetensors"
    if not file.is_file():
        return None
    with resources.as_file(file) as path:
        return load_adapter(path)
