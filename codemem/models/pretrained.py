"""A model by name, with its adapter: what commands and the daemon start from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from codemem.memory.fingerprint import Fingerprint
from codemem.models.adapter import find_adapter, signature_of
from codemem.models.encode import EncodingWindow
from codemem.models.loading import LoadedModel, load_model
from codemem.models.memorizing import MemorizingModel


@dataclass(frozen=True)
class Pretrained:
    """A memorizing model with an empty bank, its name, the fingerprint of what it stores, and where its gates come
    from: the adapter's file and whether it was made for these very weights, or None and the gates of an uncalibrated
    model."""

    model: MemorizingModel
    name: str
    fingerprint: Fingerprint
    adapter_path: Path | None
    same_weights: bool

    @property
    def calibrated(self) -> bool:
        """Whether its gates are learned."""
        return self.adapter_path is not None


def load_memorizing(
    spec: str | None = None, *, device: str | None = None, dtype: torch.dtype | None = None
) -> Pretrained:
    """Load a model as `load_model` does and attach memory to it: with the adapter that `find_adapter` finds for it,
    else with the gates of an uncalibrated one. Raises CodememError as those two do."""
    loaded = load_model(spec, device=device, dtype=dtype)
    found = find_adapter(signature_of(loaded.model, loaded.weights_hash))
    model = MemorizingModel(loaded.model, loaded.tokenizer, found.adapter if found else None)
    return Pretrained(
        model,
        loaded.name,
        fingerprint_of(loaded, model.adapter.layers),
        found.path if found else None,
        found is not None and found.same_weights,
    )


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
