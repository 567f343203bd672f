"""Text to entries: a document is read in overlapping windows, and what its memory layers computed is kept.

Every window starts with the document's path, as prompts do. The first positions of a window are attention sinks, whose
keys and values mean nothing elsewhere; the path takes them. Then come up to `overlap` tokens that an earlier window has
stored, as context, and the new ones. A window ends where a top-level definition starts, if one starts in its second
half. So the entries of a document depend on its path and its text alone.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from codemem.errors import CodememError
from codemem.memory.entries import Entries
from codemem.memory.states import compress
from codemem.models.interface import handlers
from codemem.models.memory_layer import RecordingLayer
from codemem.models.probe import Site
from codemem.syntax import Symbol

# Attention sinks at the start of a window (Xiao et al., Efficient Streaming Language Models with Attention Sinks,
# 2023).
SINKS = 4
BATCH_TOKENS = 4096
# Bytes of source that are encoded and kept together: some ten full windows, a few seconds of work.
GROUP_BYTES = 32_768
# Comments start with // in these, with # in the rest.
_SLASHED = re.compile(
    r"\.([ch]|cc|cpp|cs|cxx|hpp|dart|go|java|jsx?|mjs|kts?|php|proto|rs|scala|swift|tsx?)", re.IGNORECASE
)


@dataclass(frozen=True)
class Text:
    """What is to be memorised: a document's path, its text, where its top-level definitions start (character offsets,
    ascending) and its symbols."""

    path: str
    text: str
    boundaries: tuple[int, ...] = ()
    symbols: tuple[Symbol, ...] = ()


_Document = TypeVar("_Document")


def grouped(documents: Iterable[_Document], size: Callable[[_Document], int]) -> Iterator[list[_Document]]:
    """Documents to encode and to keep together, in order; size: bytes of the source of one."""
    group, total = [], 0
    for document in documents:
        group.append(document)
        total += size(document)
        if total >= GROUP_BYTES:
            yield group
            group, total = [], 0
    if group:
        yield group


@dataclass(frozen=True)
class EncodingWindow:
    """Sizes in tokens: of a window in all, and of the part of it that was stored before and is there as context."""

    size: int = 1024
    overlap: int = 256


@dataclass(frozen=True)
class _Tokens:
    """A tokenised text. header, ids: token ids; lines, columns: [n] int32 of the ids; breaks: tokens at which a
    top-level definition starts; line_starts: tokens that start a line."""

    header: list[int]
    ids: list[int]
    lines: np.ndarray
    columns: np.ndarray
    breaks: list[int]
    line_starts: list[int]


@dataclass(frozen=True)
class Window:
    """A piece of document number `document`: its positions from `context` on are the document's tokens from `start`
    on."""

    document: int
    ids: list[int]
    context: int
    start: int


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], np.ndarray]:
    """The ids of a piece of text, and the offset in characters, [n] int64, at which each of them starts.

    No token is added, and the spelling of a special token is text like any other. Raises CodememError for a tokenizer
    that cannot say where its tokens stand.
    """
    if not tokenizer.is_fast:
        raise CodememError(
            f"{type(tokenizer).__name__} cannot say where its tokens stand in the text",
            "use a model with a fast tokenizer",
        )
    encoded = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
    )
    starts = np.array([start for start, _ in encoded["offset_mapping"]], dtype=np.int64)
    return encoded["input_ids"], starts


def header_tokens(tokenizer: PreTrainedTokenizerBase, path: str) -> list[int]:
    """The first line of every encoding window and of every prompt: the path, after what the tokenizer puts before a
    text."""
    line = f"{comment_leader(path)} {path}\n"
    ids: list[int] = tokenizer(line, split_special_tokens=True, verbose=False).input_ids
    return ids


def comment_leader(path: str) -> str:
    """What starts a comment in a document, as its suffix says: "//" or "#"."""
    return "//" if _SLASHED.fullmatch(PurePosixPath(path).suffix) else "#"


@torch.no_grad()
def encode(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sites: dict[int, Site],
    texts: Sequence[Text],
    *,
    window: EncodingWindow = EncodingWindow(),
    batch_tokens: int = BATCH_TOKENS,
) -> list[Entries]:
    """The entries of each text at the memory layers `sites`. Memory is not read, and no logits are computed.

    batch_tokens: positions in one forward pass, padding included; windows of all texts are sorted by length so that
    little is padded. Raises CodememError as `tokenize` does.
    """
    tokens = [_tokenize(tokenizer, text) for text in texts]
    pairs = {
        number: {
            layer: torch.empty(len(item.ids), site.kv_heads, 2, site.d, dtype=model.dtype)
            for layer, site in sites.items()
        }
        for number, item in enumerate(tokens)
    }
    size = model.config.get_text_config().hidden_size
    states = {number: torch.empty(len(item.ids), size) for number, item in enumerate(tokens)}
    for batch in _batches(tokens, window, batch_tokens):
        recorded, final = _record(model, sites, [piece.ids for piece in batch])
        for row, piece in enumerate(batch):
            new = slice(piece.start, piece.start + len(piece.ids) - piece.context)
            states[piece.document][new] = final[row, piece.context : len(piece.ids)].cpu().float()
            for layer, tensor in recorded.items():
                pairs[piece.document][layer][new] = tensor[row, piece.context : len(piece.ids)].cpu()
    return [
        _entries(item, pairs[number], states[number], text)
        for number, (item, text) in enumerate(zip(tokens, texts, strict=True))
    ]


def _record(model: PreTrainedModel, sites: dict[int, Site], batch: list[list[int]]) -> tuple[dict[int, Tensor], Tensor]:
    """Keys and values of a batch of windows, layer -> [batch, width, kv_heads, 2, d], and the final hidden states
    [batch, width, size]."""
    width = max(len(ids) for ids in batch)
    # Padding stands on the right, where causal attention keeps it out of sight, so no mask is needed.
    padded = torch.tensor([ids + [0] * (width - len(ids)) for ids in batch], device=model.device)
    recorded: dict[int, Tensor] = {}
    modules = {layer: site.module for layer, site in sites.items()}
    with handlers(modules, lambda layer: RecordingLayer(recorded, layer)):
        final: Tensor = model.base_model(input_ids=padded, use_cache=False).last_hidden_state
    return recorded, final


def _entries(item: _Tokens, layers: dict[int, Tensor], states: Tensor, text: Text) -> Entries:
    stored = slice(max(0, SINKS - len(item.header)), None)
    return Entries(
        torch.tensor(item.ids, dtype=torch.int32)[stored],
        torch.from_numpy(item.lines)[stored],
        torch.from_numpy(item.columns)[stored],
        {layer: tensor[stored] for layer, tensor in layers.items()},
        text.symbols,
        compress(states[stored]),
    )


def plan(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text],
    window: EncodingWindow = EncodingWindow(),
    batch_tokens: int = BATCH_TOKENS,
) -> list[list[Window]]:
    """The forward passes in which `encode` reads these texts."""
    return _batches([_tokenize(tokenizer, text) for text in texts], window, batch_tokens)


def _batches(tokens: list[_Tokens], window: EncodingWindow, batch_tokens: int) -> list[list[Window]]:
    windows = [piece for number, item in enumerate(tokens) for piece in _windows(number, item, window)]
    batches: list[list[Window]] = []
    for piece in sorted(windows, key=lambda w: len(w.ids), reverse=True):
        if batches and len(batches[-1][0].ids) * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(piece)
        else:
            batches.append([piece])
    return batches


def _windows(number: int, item: _Tokens, window: EncodingWindow) -> list[Window]:
    pieces, start, total = [], 0, len(item.ids)
    while start < total:
        context = max(0, start - window.overlap)
        end = start + max(1, window.size - len(item.header) - (start - context))
        if end < total:
            end = _cut(item, start, end)
        ids = item.header + item.ids[context:end]
        pieces.append(Window(number, ids, len(item.header) + start - context, start))
        start = end
    return pieces


def _cut(item: _Tokens, start: int, end: int) -> int:
    """The last start of a definition, else of a line, in the second half of the tokens from start to end; else end."""
    half = (start + end) // 2
    for places in (item.breaks, item.line_starts):
        last = bisect_right(places, end) - 1
        if last >= 0 and places[last] > half:
            return places[last]
    return end


def _tokenize(tokenizer: PreTrainedTokenizerBase, text: Text) -> _Tokens:
    header = header_tokens(tokenizer, text.path)
    ids, starts = tokenize(tokenizer, text.text)
    visible = _first_visible(text.text)[starts] if len(starts) else starts
    newlines = np.array([i for i, character in enumerate(text.text) if character == "\n"], dtype=np.int64)
    lines = np.searchsorted(newlines, visible)
    line_offsets = np.concatenate(([0], newlines + 1))
    breaks = sorted({bisect_left(starts, boundary) for boundary in text.boundaries})
    line_starts = np.flatnonzero(np.diff(lines, prepend=0)).tolist()
    columns = visible - line_offsets[lines] + 1
    return _Tokens(header, ids, (lines + 1).astype(np.int32), columns.astype(np.int32), breaks, line_starts)


def _first_visible(text: str) -> np.ndarray:
    """For every character the offset of the first one from it on that is not white space, or its own at the end."""
    offsets = np.arange(len(text), dtype=np.int64)
    blank = np.array([character.isspace() for character in text], dtype=bool)
    following = np.where(blank, len(text), offsets)[::-1]
    nearest = np.minimum.accumulate(following)[::-1]
    return np.where(nearest < len(text), nearest, offsets)
