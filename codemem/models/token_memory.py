"""Token memory: the memory of the output layer (kNN-LM, Khandelwal et al., ICLR 2020).

What the model is about to say is looked up among the final hidden states of everything remembered; what came next there
is mixed into the model's distribution.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from codemem.memory.banks import Memory
from codemem.models.memory_layer import Reading
from codemem.models.mixture import Mixture, describe, mix
from codemem.models.packed import MOST_ROWS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NEIGHBOURS = 64

_attached: WeakKeyDictionary[nn.Module, list[RemovableHandle]] = WeakKeyDictionary()


class TokenMemory:
    """Turns logits into log-probabilities of the mixture, at the positions that read memory.

    The others, and all where memory is empty or switched off, keep the logits of the model. `bank` may be replaced.
    """

    def __init__(self, mixture: Mixture, bank: Memory, reading: Reading) -> None:
        self.mixture, self.bank, self.reading = mixture, bank, reading
        self.final: Tensor | None = None
        self._hooks: list[RemovableHandle] = []

    def attach(self, base: PreTrainedModel) -> None:
        """Hook it to a decoder of transformers. A decoder has one token memory: a second takes the place of the
        first."""
        head = base.get_output_embeddings()  # type: ignore[no-untyped-call]
        assert head is not None, "a causal language model has an output layer"
        for hook in _attached.pop(base, ()):
            hook.remove()
        self._hooks = _attached[base] = [
            head.register_forward_pre_hook(self._note),
            base.register_forward_hook(self._mix),
        ]

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _note(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.final = args[0]

    def _mix(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        final, self.final = self.final, None
        reading = self.reading
        if reading.states is not None and final is not None:
            reading.states.append(final.detach())
        if not reading.tokens or final is None or not self.bank.state_size or not len(self.bank):
            return output
        logits = output.logits
        batch, length, vocabulary = logits.shape
        rows = reading.rows(length)
        if not rows:
            return output
        log_probs = logits[:, length - rows :].reshape(-1, vocabulary).float().log_softmax(dim=-1)
        mixed = self._mixed(final[:, length - rows :].reshape(len(log_probs), -1), log_probs, [rows - 1], batch=batch)
        output.logits = torch.cat((logits[:, : length - rows].float(), mixed.view(batch, rows, vocabulary)), dim=1)
        return output

    def mixed(self, states: Tensor, logits: Tensor, wanted: slice | None = None) -> Tensor:
        """Log-probabilities of the mixture, [m, vocabulary] float32, from final hidden states [m, size] and logits [m,
        vocabulary] of one document's positions; the logits where memory is empty.

        None of at most MOST_ROWS changes what is computed for another on the CPU, since each is computed by itself;
        nor on a GPU where `wanted` says which are wanted, since there are always as many.
        """
        if not self.bank.state_size or not len(self.bank):
            return logits
        if wanted is None and len(states) <= MOST_ROWS and self.mixture.compilable(logits):
            return self._mixed_at_once(states, logits)
        log_probs = logits.log_softmax(dim=-1)
        if wanted is not None:
            return self._mixed(states, log_probs, range(*wanted.indices(len(states))), wanted)
        if len(states) > MOST_ROWS:
            return self._mixed(states, log_probs, [len(states) - 1])
        if states.device.type != "cpu":
            return self._mixed(states, log_probs, range(len(states)))
        return torch.cat([self._mixed(states[i : i + 1], log_probs[i : i + 1], [0]) for i in range(len(states))])

    def _mixed_at_once(self, states: Tensor, logits: Tensor) -> Tensor:
        """The same of a few positions by compiled functions."""
        start = time.perf_counter()
        rows, similarity = self.bank.nearest(states, NEIGHBOURS)
        tokens = self.bank.following(rows)
        self.reading.seconds += time.perf_counter() - start
        log_probs, weights = self.mixture.compiled(logits, similarity, tokens)
        self.bank.note(rows, weights)
        self._trace(rows, weights, range(len(rows)))
        return log_probs

    def _mixed(
        self,
        states: Tensor,
        log_probs: Tensor,
        traced: Sequence[int],
        wanted: slice = slice(None),
        batch: int = 1,
    ) -> Tensor:
        start = time.perf_counter()
        rows, similarity = self.bank.nearest(states.detach(), NEIGHBOURS)
        tokens = self.bank.following(rows)
        self.reading.seconds += time.perf_counter() - start
        weight, shares = self.mixture(describe(similarity, tokens, log_probs), similarity, tokens >= 0)
        weights = weight.unsqueeze(-1) * shares
        self.bank.note(rows[wanted], weights[wanted])
        self._trace(rows, weights, traced, batch)
        return mix(log_probs, weight, shares, tokens)

    def _trace(self, rows: Tensor, weights: Tensor, places: Sequence[int], batch: int = 1) -> None:
        """Note what some of a text's positions read. rows, weights: [batch * positions, k]."""
        if self.reading.token_trace is not None:
            step = len(rows) // batch
            weights = weights.detach()
            for place in places:
                self.reading.token_trace.append((rows[place::step], weights[place::step]))
