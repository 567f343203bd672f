"""Recall: memory says which of it a completion needs: snippets for the prompt, and what attention searches.

The final hidden states of the last positions before the cursor say what the model is about to write. Their nearest
entries in the token memory vote for the lines they came from. Word overlap, which retrieval for prompts commonly uses,
is not looked at.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from codemem.completion.prompt import POSITIONS
from codemem.completion.snippets import Snippet
from codemem.memory.banks import Memory
from codemem.memory.focus import Focus
from codemem.models.decoder import Decoder
from codemem.models.memorizing import MemorizingModel
from codemem.models.tokenizer import decode

NEIGHBOURS = 16  # of each position that asks, which vote
# A neighbour's vote is exp(SHARPNESS * (similarity - 1)), times how late the position is, 0 to 1.
SHARPNESS = 8.0
WINDOW_LINES = 20
CANDIDATES = 24
# A memory of more entries than this is searched by attention in so many of them: the windows with the most votes, and
# MARGIN lines around each.
FOCUS = 4_096
MARGIN = 20

Votes = Mapping[tuple[str, int], float]  # (path, first line) of a window -> the weight of its votes


def ask(model: MemorizingModel, decoder: Decoder, ids: list[int]) -> Votes:
    """What memory votes for behind a prompt's tokens. decoder: holds the first of the tokens, or none, as they are read
    without memory."""
    decoder.crop(max(0, len(ids) - POSITIONS))
    new = ids[len(decoder.tokens) :]
    with model.reads(attention=False, tokens=False):
        states = decoder.states(new, min(POSITIONS, len(new)))
    return votes(model.bank, states)


def snippets(model: MemorizingModel, called: Votes) -> list[Snippet]:
    """The snippets that are voted for, best first."""
    total, found = sum(called.values()), []
    for path, first in _best(called)[:CANDIDATES]:
        last = min(first + WINDOW_LINES - 1, model.bank.last_line(path))
        if snippet := excerpt(model, path, first, last, called[path, first] / total):
            found.append(snippet)
    return found


def large(bank: Memory) -> bool:
    """Whether attention searches only a part of this memory."""
    return len(bank) > FOCUS


def focus(bank: Memory, called: Votes) -> Focus | None:
    """What attention searches of a memory, None for all of a small one."""
    return around(bank, called, FOCUS, MARGIN) if large(bank) else None


def around(bank: Memory, called: Votes, entries: int, margin: int) -> Focus:
    """The windows with the most votes, and so many lines around each, until there are so many entries."""
    windows, rows = list[tuple[str, int]](), set[int]()
    for path, first in _best(called):
        if len(rows) >= entries:
            break
        windows.append((path, first))
        rows.update(bank.rows(path, first - margin, first + WINDOW_LINES - 1 + margin).tolist())
    return Focus(bank, torch.tensor(sorted(rows), dtype=torch.int64), frozenset(windows))


def _best(called: Votes) -> list[tuple[str, int]]:
    return sorted(called, key=lambda window: (-called[window], window))


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


def votes(bank: Memory, states: Tensor) -> Votes:
    """What the neighbours of the final hidden states [m, size] of the last positions vote for."""
    rows, similarity = bank.nearest(states, NEIGHBOURS)
    later = (torch.arange(len(rows), dtype=torch.float32, device=rows.device) + 1) / len(rows)
    weights = torch.exp(SHARPNESS * (similarity - 1)) * later.unsqueeze(-1)
    windows: dict[tuple[str, int], float] = defaultdict(float)
    found = rows >= 0
    for (path, line), weight in zip(bank.lines(rows[found].tolist()), weights[found].tolist(), strict=True):
        windows[path, (line - 1) // WINDOW_LINES * WINDOW_LINES + 1] += weight
    return windows
