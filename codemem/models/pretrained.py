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
from codemem.models.plain import read_plain
from codemem.models.tokenizer import PlainTokenizer, read_tokenizer

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
    spec: str | None = None,
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    tokenizer: PlainTokenizer | None = None,
) -> Pretrained:
    """Load a model as `load_model` does and attach memory to it: with the adapter that `find_adapter` finds for it,
    else with the gates of an uncalibrated one. Where our own forward pass is for the model, transformers is imported
    only when something else than completing needs it, and `model.tokenizer` is a `PlainTokenizer`: the one given, which
    must be this model's, if it was read already. Raises CodememError as those two do."""
    located, place = ready(spec), device_of(device)
    dtype, weights = dtype or best_dtype(place), weights_hash(located.directory)
    packs = packs_path(weights) if (place.type, dtype) == ("cpu", torch.bfloat16) else None

    def in_transformers() -> PreTrainedModel:
        return load_model(spec, device=str(place), dtype=dtype).model

    plain = read_plain(located.directory, place, dtype, packs, in_transformers)
    tokenizer = tokenizer or read_tokenizer(located.directory)
    if plain is None or tokenizer is None or len(tokenizer) > plain.shape.vocabulary:
        loaded = load_model(spec, device=str(place), dtype=dtype)
        found = find_adapter(signature_of(loaded.config, weights))
        model = MemorizingModel(loaded.model, loaded.tokenizer, found.adapter if found else None)
    else:
        found = find_adapter(signature_of(plain.config, weights))
        model = MemorizingModel(plain, tokenizer, found.adapter if found else None)
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
