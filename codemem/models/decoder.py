"""What generating needs of a model: a cache of what it has read, and the forward pass over what comes next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import DynamicCache

    from codemem.models.memorizing import MemorizingModel


class Decoder(Protocol):
    """One document's tokens in a cache, and the forward pass over those that come next.

    together: of how many positions, computed together, each gives what it gives alone, bit
    by bit. A draft of one token less can be verified.
    """

    together: int

    @property
    def tokens(self) -> list[int]:
        """Those in the cache."""

    def crop(self, length: int) -> None:
        """Forget the positions from `length` on; a cache that cannot forget the last ones forgets all."""

    def states(self, ids: Sequence[int], last: int = 1) -> Tensor:
        """Read tokens behind those in the cache, and memory inside attention where it is switched on. Returns the final
        hidden states [last, size] of the last ones."""

    def read(self, ids: Sequence[int], last: int = 1) -> Tensor:
        """The same, and returns logits [last, vocabulary] float32; log-probabilities of the mixture where token memory
        is read."""


class TransformersDecoder:
    """The forward pass of transformers, for architectures that we have none of our own for."""

    together = 1

    def __init__(self, model: MemorizingModel) -> None:
        self._model = model
        self._cache, self.tokens = self._empty(), list[int]()

    def _empty(self) -> DynamicCache:
        from transformers import DynamicCache

        return DynamicCache(config=self._model.base.config)

    def crop(self, length: int) -> None:
        surplus = len(self.tokens) - length
        if surplus > 0 and any(getattr(layer, "is_sliding", False) for layer in self._cache.layers):
            self._cache, self.tokens = self._empty(), []
        elif surplus > 0:
            self._cache.crop(-surplus)
            del self.tokens[length:]

    @torch.inference_mode()
    def states(self, ids: Sequence[int], last: int = 1) -> Tensor:
        self.tokens += ids
        final: Tensor = self._model.base.base_model(
            input_ids=self._step(ids), past_key_values=self._cache, use_cache=True
        ).last_hidden_state
        return final[0, -last:]

    @torch.inference_mode()
    def read(self, ids: Sequence[int], last: int = 1) -> Tensor:
        self.tokens += ids
        logits: Tensor = self._model(
            input_ids=self._step(ids), past_key_values=self._cache, use_cache=True, logits_to_keep=last
        ).logits
        return logits[0].float()

    def _step(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor([ids], device=self._model.base.device)
