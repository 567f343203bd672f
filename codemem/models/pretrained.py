"""A model by name, with its adapter: what commands and the daemon start from."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from codemem.memory.fingerprint import Fingerprint
from codemem.models.adapter import find_adapter, signature_of
from codemem.models.encode import EncodingWindow
from codemem.models.loading import LoadedModel, load_model
from codemem.models.memorizing import MemorizingModel


@dataclass(frozen=True)
class Pretrained:
    """A memorizing model with an empty bank, its name, the fingerprint of what it stores, and whether its gates are
    learned."""

    model: MemorizingModel
    name: str
    fingerprint: Fingerprint
    calibrated: bool


def load_memorizing(
    spec: str | None = None, *, device: str | None = None, dtype: torch.dtype | None = None
) -> Pretrained:
    """Load a model as `load_model` does and attach memory to it: with the adapter that `find_adapter` finds for it,
    else with the gates of an uncalibrated one. Raises CodememError as those two do."""
    loaded = load_model(spec, device=device, dtype=dtype)
    found = find_adapter(signature_of(loaded.model, loaded.weights_hash))
    model = MemorizingModel(loaded.model, loaded.tokenizer, found.adapter if found else None)
    return Pretrained(model, loaded.name, fingerprint_of(loaded, model.adapter.layers), calibrated=found is not None)


def fingerprint_of(loaded: LoadedModel, layers: tuple[int, ...]) -> Fingerprint:
    """What makes the entries of this model at these memory layers unreadable for another."""
    window = EncodingWindow()
    return Fingerprint(
        model=loaded.name,
        weights=loaded.weights_hash,
        dtype=str(loaded.model.dtype).removeprefix("torch."),
        layers=layers,
        window=window.size,
        overlap=window.overlap,
    )
