"""Training the gates of the memory layers by gradient descent on documents out of memory.

Only the gates are trained. Keys and values in the bank are those of the frozen model. The bank holds entries of several
repositories, so that gates learn to live with distractors (Tworkowski et al., Focused Transformer, 2023), now of more
and now of fewer, and never the file that is being predicted.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from codemem.completion import recall
from codemem.memory.bank import Bank
from codemem.memory.focus import Focus
from codemem.models.adapter import GATE
from codemem.models.decoder import Decoder
from codemem.models.memorizing import MemorizingModel
from codemem.models.memory_layer import Reading
from codemem.models.tokenizer import header_tokens, tokenize
from codemem.texts import Text

T = TypeVar("T")


@dataclass(frozen=True)
class Piece:
    """ids: [1, T] token ids, the document's path first, as in a prompt; scored: how many of the last ones are to be
    predicted."""

    ids: Tensor
    scored: int


class Step(NamedTuple):
    """A piece to learn from, and documents of the bank that are not there meanwhile."""

    piece: Piece
    without: tuple[str, ...] = ()


def pieces(model: MemorizingModel, path: str, text: str, context: int = 512, scored: int = 256) -> Iterator[Piece]:
    """A text as consecutive pieces of at most `context` tokens; every token of the text is scored once, `scored` in
    each piece but the last, after at least context - scored tokens of what stands before them where there are so
    many."""
    header = header_tokens(model.tokenizer, path)
    ids, _ = tokenize(model.tokenizer, text)
    for start in range(0, len(ids), scored):
        end = min(start + scored, len(ids))
        piece = header + ids[max(0, end - context + len(header)) : end]
        yield Piece(torch.tensor([piece], device=model.base.device), end - start)


def loss(model: MemorizingModel, piece: Piece) -> Tensor:
    """Mean negative log-likelihood, in nats per token, of a piece's scored tokens, each of which reads memory as the
    model is set."""
    logits = model(input_ids=piece.ids, use_cache=False, logits_to_keep=piece.scored + 1).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits.float(), piece.ids[0, -piece.scored :])


def focus_of(model: MemorizingModel, piece: Piece, decoder: Decoder) -> Focus | None:
    """What attention searches while a piece is read: what memory votes for behind the tokens that are not scored. An
    empty decoder is left with these in it, read without memory."""
    asking = piece.ids[0, : -piece.scored].tolist()
    if not asking or not model.bank.state_size:
        return None
    return recall.focus(model.bank, recall.ask(model, decoder, asking))


def read(model: MemorizingModel, piece: Piece, reading: Reading) -> Tensor:
    """Logits, or log-probabilities where token memory is read, behind which each scored token stands: [scored,
    vocabulary] float32, without gradient. Attention searches what `focus_of` says."""
    decoder, ids = model.decoder(), piece.ids[0].tolist()
    if reading.attention:
        reading.focus = focus_of(model, piece, decoder)
        decoder.crop(len(ids) - piece.scored - 1)
    return decoder.read(ids[len(decoder.tokens) :], piece.scored + 1)[:-1]


def full_pieces(model: MemorizingModel, texts: Sequence[Text], context: int, scored: int) -> list[tuple[int, Piece]]:
    """All pieces of the texts that have `scored` tokens to be predicted, each with the number of its text."""
    return [
        (number, piece)
        for number, text in enumerate(texts)
        for piece in pieces(model, text.path, text.text, context, scored)
        if piece.scored == scored
    ]


def drawn(available: Sequence[T], count: int, seed: str) -> list[T]:
    """`count` of them in seeded random order, none twice before all were drawn once."""
    chance = random.Random(seed)
    order: list[int] = []
    while available and len(order) < count:
        order += chance.sample(range(len(available)), len(available))
    return [available[place] for place in order[:count]]


class GateTraining:
    """Adam on the gates of a model's memory layers, and on its low-rank updates if it has some, one piece a step, with
    cosine decay.

    Everything that the next step depends on is in `state`, so that a run that was cut goes on to the same gates, bit by
    bit. The model's bank must not hold the documents of the pieces.
    """

    def __init__(
        self,
        model: MemorizingModel,
        bank: Bank,
        order: Sequence[Step],
        *,
        tokens: bool = False,
        bias_rate: float = 0.15,
        temperature_rate: float = 0.02,
        discount_rate: float = 0.02,
        low_rank_rate: float = 0.001,
    ) -> None:
        """order: what every step learns from; tokens: whether token memory is read too, so that gates learn what it
        does not know already."""
        for parameter in model.base.parameters():
            parameter.requires_grad_(False)
        self.model, self.order, self.tokens, self.step = model, order, tokens, 0
        self.bank = model.bank = bank
        self._parameters = {
            f"{name}.{layer}": parameter
            for name in GATE
            for layer, gate in model.gates.items()
            for parameter in (getattr(gate, name),)
        }
        if model.low_rank is not None:
            self._parameters |= {f"low_rank.{name}": update for name, update in model.low_rank.updates.items()}
        self._rates = {
            "bias": bias_rate,
            "temperature": temperature_rate,
            "discount": discount_rate,
            "low_rank": low_rank_rate,
        }
        self._optimizer = torch.optim.Adam(
            [{"params": [parameter]} for parameter in self._parameters.values()], betas=(0.9, 0.98)
        )

    @property
    def finished(self) -> bool:
        return self.step == len(self.order)

    def advance(self) -> float:
        """Take one step. Returns the loss before it, in nats per token."""
        piece, without = self.order[self.step]
        decay = (1 + math.cos(math.pi * self.step / len(self.order))) / 2
        for name, group in zip(self._parameters, self._optimizer.param_groups, strict=True):
            group["lr"] = self._rates[name.split(".")[0]] * decay
        reads = self.model.reads(tokens=self.tokens, last=piece.scored + 1)
        with self.bank.without(without), reads as reading:
            reading.focus = focus_of(self.model, piece, self.model.decoder())
            value = loss(self.model, piece)
            self._optimizer.zero_grad()
            torch.autograd.backward(value)
        self._optimizer.step()
        self.step += 1
        return float(value.detach())

    def state(self) -> dict[str, Tensor]:
        """Gates and the optimizer's moments, by name."""
        tensors = {"step": torch.tensor(self.step)}
        for name, parameter in self._parameters.items():
            tensors[name] = parameter.detach().cpu().clone()
            for key, moment in self._optimizer.state[parameter].items():
                tensors[f"{name}.{key}"] = moment.detach().cpu().clone()
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        self.step = int(tensors["step"])
        for name, parameter in self._parameters.items():
            with torch.no_grad():
                parameter.copy_(tensors[name])
            self._optimizer.state[parameter] = {
                key.removeprefix(f"{name}."): tensor.clone() if key.endswith(".step") else tensor.to(parameter.device)
                for key, tensor in tensors.items()
                if key.startswith(f"{name}.")
            }
