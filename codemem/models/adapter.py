"""The small file that says where and how strongly a model reads memory: layers, neighbours, angle, gates."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from codemem.cache import cache_folder
from codemem.errors import CodememError
from codemem.models.attention import GateKind
from codemem.tensor_files import write_tensors

# Where the search for useful layers starts when nobody has calibrated the model: in SmolLM2-135M and Qwen2.5-Coder-0.5B
# the heads that gain from memory sit between 45 % and 80 % of the depth.
DEFAULT_DEPTHS = (0.5, 0.55, 0.6, 0.65)
DEFAULT_BIAS = -2.0
DEFAULT_ANGLE = 1024
DEFAULT_K = 32
# What a gate has of every head: the names of an Adapter's numbers, and of a MemoryGate's parameters.
GATE = ("bias", "temperature", "discount")
_MIXTURE, _LOW_RANK, _SCAN = "mixture.", "low_rank.", "scan."
# What an Adapter's file keeps as JSON in its metadata, each under its own name.
_WORDS = ("recipe", "corpus", "development")


@dataclass(frozen=True)
class Signature:
    """What an adapter was made for. weights: hash of weights and tokenizer; the rest, as transformers' configurations
    name it, is the shape of the model."""

    weights: str
    model_type: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int

    def same_shape(self, other: Signature) -> bool:
        """Whether the two are variants of one model, as far as their shape tells: quantised, or trained further."""
        return replace(self, weights=other.weights) == other


def signature_of(config: Mapping[str, Any], weights: str) -> Signature:
    """The signature of a model of this configuration whose weights have this hash."""
    heads = config["num_attention_heads"]
    return Signature(
        weights=weights,
        model_type=config["model_type"],
        hidden_size=config["hidden_size"],
        num_hidden_layers=config["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=config.get("num_key_value_heads") or heads,
        vocab_size=config["vocab_size"],
    )


@dataclass(frozen=True)
class Adapter:
    """How one model reads memory.

    layers: the memory layers, ascending; k: neighbours per query head; angle: the constant distance D, in tokens, at
    which memory stands; gate: "joint" softmax or the paper's "sigmoid"; bias, temperature, discount: memory layer ->
    [heads] float32, see `MemoryGate`; mixture: the state of the network that weighs token memory (`Mixture`), or none
    for a constant weight; signature: of the model it was made for; recipe: how the numbers were found, in words;
    corpus: what they were learned from; development: what they are worth on documents that none of them was learned
    from; low_rank: updates of projections at positions that read memory (`low_rank.LowRank`), or none; scan: "gain",
    "error" and "mass" of every head of the model before any training, each [layers, heads] (`training.scan`).
    """

    layers: tuple[int, ...]
    bias: dict[int, Tensor]
    temperature: dict[int, Tensor]
    discount: dict[int, Tensor]
    k: int = DEFAULT_K
    angle: int = DEFAULT_ANGLE
    gate: GateKind = "joint"
    name: str = "default"
    mixture: dict[str, Tensor] = field(default_factory=dict)
    signature: Signature | None = None
    recipe: dict[str, str] = field(default_factory=dict)
    corpus: tuple[str, ...] = ()
    development: dict[str, float] = field(default_factory=dict)
    low_rank: dict[str, Tensor] = field(default_factory=dict)
    scan: dict[str, Tensor] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the file, all or nothing. Raises CodememError where that is not possible."""
        tensors = {f"layer.{layer}.{kind}": getattr(self, kind)[layer] for layer in self.layers for kind in GATE}
        tensors |= {f"{_MIXTURE}{name}": tensor for name, tensor in self.mixture.items()}
        tensors |= {f"{_LOW_RANK}{name}": tensor for name, tensor in self.low_rank.items()}
        tensors |= {f"{_SCAN}{name}": tensor for name, tensor in self.scan.items()}
        shape = {"layers": self.layers, "k": self.k, "angle": self.angle, "gate": self.gate, "name": self.name}
        metadata = {"adapter": json.dumps(shape)} | {name: json.dumps(getattr(self, name)) for name in _WORDS}
        if self.signature is not None:
            metadata["signature"] = json.dumps(asdict(self.signature))
        write_tensors(path, tensors, metadata)


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
        discount={layer: torch.zeros(heads) for layer in layers},
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
            gates: dict[str, Any] = {kind: {n: _of_gate(file, n, kind) for n in layers} for kind in GATE}
            words = {name: json.loads(metadata[name]) for name in _WORDS if name in metadata}
            return Adapter(
                layers=layers,
                **gates,
                mixture=_below(file, _MIXTURE),
                low_rank=_below(file, _LOW_RANK),
                scan=_below(file, _SCAN),
                signature=_signature(metadata),
                **words | {"corpus": tuple(words.get("corpus", ()))},
                **shape,
            )
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise _unreadable(path, error) from error


def own_adapters() -> Path:
    """The folder of the adapters that the user has made, created 0700."""
    return cache_folder("adapters")


def own_adapter_path(name: str, signature: Signature) -> Path:
    """Where the user's adapter for a model of this name and these weights stands."""
    return own_adapters() / f"{name.replace('/', '--')}-{signature.weights[:12]}.safetensors"


@dataclass(frozen=True)
class FoundAdapter:
    """An adapter for a model, its file, and whether it was made for these weights or for others of the same shape."""

    adapter: Adapter
    path: Path
    same_weights: bool


def find_adapter(signature: Signature) -> FoundAdapter | None:
    """The adapter for a model: one made for its weights, else one for a model of the same shape, since gates of a
    quantised or further trained variant carry over; of several the user's own, the newest first. None where there is
    neither. Raises CodememError for a damaged file among them.
    """
    known = list(_adapter_files())
    for same_weights in (True, False):
        for path, made_for in known:
            fits = made_for.weights == signature.weights if same_weights else made_for.same_shape(signature)
            if fits:
                return FoundAdapter(load_adapter(path), path, same_weights)
    return None


def _adapter_files() -> Iterator[tuple[Path, Signature]]:
    own = sorted(own_adapters().glob("*.safetensors"), key=lambda path: (-path.stat().st_mtime_ns, path.name))
    # An installed package is a folder: its data files have paths.
    shipped = sorted(Path(str(resources.files("codemem.models") / "adapters")).glob("*.safetensors"))
    for path in (*own, *shipped):
        try:
            with safe_open(path, framework="pt") as file:
                signature = _signature(file.metadata() or {})
        except (OSError, SafetensorError, ValueError, TypeError) as error:
            raise _unreadable(path, error, f"delete it, then make it again: rm '{path}'") from error
        if signature is not None:
            yield path, signature


def _signature(metadata: dict[str, str]) -> Signature | None:
    return Signature(**json.loads(metadata["signature"])) if "signature" in metadata else None


def _below(file: Any, prefix: str) -> dict[str, Tensor]:
    names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - not a dict
    return {name.removeprefix(prefix): file.get_tensor(name) for name in names}


def _of_gate(file: Any, layer: int, kind: str) -> Tensor:
    """One number of each head; adapters had no discount once."""
    if kind == "discount" and f"layer.{layer}.{kind}" not in file.keys():  # noqa: SIM118 - not a dict
        return torch.zeros_like(file.get_tensor(f"layer.{layer}.bias"))
    tensor: Tensor = file.get_tensor(f"layer.{layer}.{kind}")
    return tensor


def _unreadable(path: Path, error: Exception, hint: str = "give the path of an adapter file, or none") -> CodememError:
    return CodememError(f"{path} is not a readable adapter: {error}", hint)
