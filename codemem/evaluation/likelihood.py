"""Negative log-likelihood of held-out documents, by how large memory is and by which memory is read."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import torch
from torch.nn.functional import cross_entropy

from codemem.memory.bank import Bank
from codemem.memory.entries import Entries
from codemem.models.memorizing import MemorizingModel
from codemem.training.gates import Piece, pieces, read

# Which memories are read: name -> (attention, tokens).
READS = {"attention": (True, False), "tokens": (False, True), "both": (True, True)}


def sampled(
    model: MemorizingModel, documents: Iterable[tuple[str, str]], each: int, seed: int
) -> list[tuple[str, Piece]]:
    """Pieces of (path, text) documents with their path, at most so many of a document, by a seeded draw."""
    chance, chosen = random.Random(seed), []
    for path, text in documents:
        found = list(pieces(model, path, text))
        chosen += [(path, piece) for piece in chance.sample(found, min(each, len(found)))]
    return chosen


@torch.inference_mode()
def nats(model: MemorizingModel, piece: Piece, *, attention: bool = False, tokens: bool = False) -> float:
    """The sum of the negative log-likelihoods of a piece's scored tokens."""
    with model.reads(attention=attention, tokens=tokens, last=piece.scored + 1) as reading:
        logits = read(model, piece, reading)
    return float(cross_entropy(logits, piece.ids[0, -piece.scored :], reduction="sum"))


def nested(bank: Bank, others: Iterable[tuple[str, Entries]], sizes: Sequence[int], seed: int) -> Iterator[Bank]:
    """A bank of so many entries, which then grows to the next size: documents of `bank` in a seeded order, then those
    of other repositories; ends where there are no more. A size is met by the last document that is begun, whole."""
    order = list(bank.documents)
    random.Random(seed).shuffle(order)
    following = chain(
        ((path, bank.entries(path)) for path in order), ((f"other/{path}", entries) for path, entries in others)
    )
    grown = Bank(bank.shapes, bank.dtype, str(bank.device), state_size=bank.state_size)
    for size in sorted(sizes):
        while len(grown) < size and (document := next(following, None)) is not None:
            grown.add(*document)
        grown.build()
        yield grown
        if len(grown) < size:
            return
