"""A Llama-shaped model as its files have it: for completing code, without transformers.

To import transformers takes longer than to complete a line. What our own forward pass needs is in config.json and in
the weights, which are mapped from their files. transformers' model is loaded from the same files when something needs
it: encoding, training, and its own `generate`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from codemem.models.checkpoint import read_json, weight_files
from codemem.models.rotary import Rotary, rotary_of
from codemem.models.shape import MODEL_TYPES, Shape, shape_of
from codemem.models.site import Site, site

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class PlainModel:
    """directory: that of its files; config: what config.json says; tensors: the weights by name, in `dtype` on
    `device`; packs: the file in which packed weights are kept, if they are; load: the same model in transformers."""

    directory: Path
    config: dict[str, Any]
    shape: Shape
    rotary: Rotary
    tensors: dict[str, Tensor]
    dtype: torch.dtype
    device: torch.device
    packs: Path | None
    load: Callable[[], PreTrainedModel]

    def sites(self, layers: tuple[int, ...], angle: int) -> dict[int, Site]:
        """What `probe.find_sites` finds out about the model in transformers."""
        shape = self.shape
        cos, sin = (x[0] for x in self.rotary(torch.tensor([angle], device=self.device), self.dtype))
        return {layer: site(layer, shape.heads, shape.kv_heads, shape.d, cos, sin) for layer in sorted(layers)}


def read_plain(
    directory: Path, device: torch.device, dtype: torch.dtype, packs: Path | None, load: Callable[[], PreTrainedModel]
) -> PlainModel | None:
    """The model in a directory; None where it is for transformers to read, or to refuse."""
    config = read_json(directory / "config.json") or {}
    shape = shape_of(config)
    if shape is None or config.get("architectures") != [MODEL_TYPES[config["model_type"]]]:
        return None
    rotary = rotary_of(shape, device)
    if rotary is None or "quantization_config" in config:
        return None
    try:
        tensors = {name: tensor for file in weight_files(directory) for name, tensor in load_file(file).items()}
    except (OSError, ValueError, SafetensorError):
        return None
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != shape.weights():
        return None
    tensors = {name: tensor.to(device, dtype) for name, tensor in tensors.items()}
    return PlainModel(directory, config, shape, rotary, tensors, dtype, device, packs, load)
