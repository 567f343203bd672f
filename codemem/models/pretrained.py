"""A model by name, with its adapter: what commands and the daemon start from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from codemem.memory.fingerprint import Fingerprint
from codemem.models.adapter import find_adapter, signature_of
from codemem.models.checkpoint import weights_hash
from codemem.models.encode import EncodingWindow
from codemem.models.loading import best_dtype, device_of, load_model
from codemem.models.locate import ready
from codemem.models.memorizing import MemorizingModel
from codemem.models.packed import packs_path
from codemem.models.plain import PlainModel, read_plain
from codemem.models.tokenizer import Tokenizer, read_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
    else with the gates of an uncalibrated one. Where our own forward pass is for the model, transformers is imported
    only when something else than completing needs it, and `model.tokenizer` is a `PlainTokenizer`. Raises CodememError
    as those two do."""
    located, place = ready(spec), device_of(device)
    dtype, weights = dtype or best_dtype(place), weights_hash(located.directory)

    def in_transformers() -> PreTrainedModel:
        return load_model(spec, device=str(place), dtype=dtype).model

    base: PreTrainedModel | PlainModel | None = read_plain(
        located.directory, place, dtype, packs_path(weights), in_transformers
    )
    tokenizer: Tokenizer | None = read_tokenizer(located.directory)
    if not isinstance(base, PlainModel) or tokenizer is None:
        loaded = load_model(spec, device=str(place), dtype=dtype)
        base, tokenizer, config = loaded.model, loaded.tokenizer, loaded.config
    else:
        config = base.config
    found = find_adapter(signature_of(config, weights))
    model = MemorizingModel(base, tokenizer, found.adapter if found else None)
    fingerprint = fingerprint_of(located.name, weights, dtype, model.adapter.layers)
    return Pretrained(model, located.name, fingerprint, calibrated=found is not None)


def fingerprint_of(name: str, weights: str, dtype: torch.dtype, layers: tuple[int, ...]) -> Fingerprint:
    """What makes the entries of a model, with these weights and memory layers, unreadable for another."""
    window = EncodingWindow()
    return Fingerprint(
        model=name,
        weights=weights,
        dtype=str(dtype).removeprefix("torch."),
        layers=layers,
        window=window.size,
        overlap=window.overlap,
    )
