"""Recall: memory chooses the snippets that stand in the prompt.

The final hidden states of the last positions before the cursor say what the model is about to write. Their nearest
entries in the token memory vote for the lines they came from. Word overlap, which retrieval for prompts commonly uses,
is not looked at.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from codemem.completion.snippets import Snippet
from codemem.memory.banks import Memory
from codemem.models.decoder import Decoder
from codemem.models.memorizing import MemorizingModel
from codemem.models.tokenizer import decode

# Positions that ask, and neighbours of each that vote.
POSITIONS = 32
NEIGHBOURS = 16
# A neighbour's vote is exp(SHARPNESS * (similarity - 1)), times how late the position is, 0 to 1.
SHARPNESS = 8.0
WINDOW_LINES = 20
CANDIDATES = 24


def recall(model: MemorizingModel, decoder: Decoder, ids: list[int]) -> list[Snippet]:
    """The snippets of memory that a prompt's tokens call for, best first. decoder: holds the first of the tokens, or
    none, as they are read without memory."""
    decoder.crop(max(0, len(ids) - POSITIONS))
    new = ids[len(decoder.tokens) :]
    with model.reads(attention=False, tokens=False):
        states = decoder.states(new, min(POSITIONS, len(new)))
    return called(model, states)


def called(model: MemorizingModel, states: Tensor) -> list[Snippet]:
    """The same from the final hidden states [m, size] of the last positions."""
    bank = model.bank
    windows = _votes(bank, states)
    best = sorted(windows.items(), key=lambda item: (-item[1], item[0]))[:CANDIDATES]
    total = sum(windows.values())
    snippets = []
    for (path, first), weight in best:
        last = min(first + WINDOW_LINES - 1, bank.last_line(path))
        if snippet := excerpt(model, path, first, last, weight / total):
            snippets.append(snippet)
    return snippets


def excerpt(model: MemorizingModel, path: str, first: int, last: int, weight: float) -> Snippet | None:
    """A document's lines from `first` to `last` as they were memorised, without blank ones at both ends; None where all
    are blank."""
    ids, line = model.bank.tokens(path, first, last)
    text = decode(model.tokenizer, ids.tolist())
    start = line - text[: len(text) - len(text.lstrip())].count("\n")
    lines = text.split("\n")[first - start : last + 1 - start]
    visible = [number for number, content in enumerate(lines) if content.strip()]
    if not visible:
        return None
    lines = lines[visible[0] : visible[-1] + 1]
    return Snippet(path, first + visible[0], first + visible[-1], "\n".join(lines), weight)


def _votes(bank: Memory, states: Tensor) -> dict[tuple[str, int], float]:
    """(path, first line) of a window -> the weight of its votes."""
    rows, similarity = bank.nearest(states, NEIGHBOURS)
    later = (torch.arange(len(rows), device=rows.device) + 1) / len(rows)
    weights = torch.exp(SHARPNESS * (similarity - 1)) * later.unsqueeze(-1)
    windows: dict[tuple[str, int], float] = defaultdict(float)
    found = rows >= 0
    for (path, line), weight in zip(bank.lines(rows[found].tolist()), weights[found].tolist(), strict=True):
        windows[path, (line - 1) // WINDOW_LINES * WINDOW_LINES + 1] += weight
    return windows
