"""Text to entries: a document is read in overlapping windows, and what its memory layers computed is kept.

Every window starts with the document's path, as prompts do. The first positions of a window are attention sinks, whose
keys and values mean nothing elsewhere; the path takes them. Then come up to `overlap` tokens that an earlier window has
stored, as context, and the new ones. Where windows begin is decided by the text around that place alone, so an edit
changes the windows around it and no others. So the entries of a document depend on its path and its text alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from codemem.memory.entries import Entries
from codemem.memory.states import States, compress
from codemem.models.memory_layer import RecordingLayer
from codemem.models.site import Site
from codemem.models.tokenizer import Tokenizer, header_tokens, tokenize
from codemem.texts import Text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Attention sinks at the start of a window (Xiao et al., Efficient Streaming Language Models with Attention Sinks,
# 2023).
SINKS = 4
BATCH_TOKENS = 4096
CUT_TOKENS = 16  # of a line, that decide whether a window ends before it


@dataclass(frozen=True)
class EncodingWindow:
    """Sizes in tokens: of a window in all, and of the part of it that was stored before and is there as context."""

    size: int = 768
    overlap: int = 128


@dataclass(frozen=True)
class _Tokens:
    """A tokenised text. header, ids: token ids; lines, columns: [n] int32 of the ids; line_starts: tokens that start a
    line; read: how many of the ids are read."""

    header: list[int]
    ids: list[int]
    lines: np.ndarray
    columns: np.ndarray
    line_starts: list[int]
    read: int


@dataclass(frozen=True)
class Window:
    """A piece of document number `document`: its positions from `context` on are the document's tokens from `start`
    on."""

    document: int
    ids: list[int]
    context: int
    start: int


@dataclass(frozen=True)
class Reader:
    """A model that reads windows. size: of a hidden state; dtype: of keys and values; read: for each window of a batch,
    the keys before the rotary embedding and the values of its positions, memory layer -> [n, kv_heads, 2, d], and the
    final hidden states [n, size]."""

    size: int
    dtype: torch.dtype
    read: Callable[[Sequence[Sequence[int]]], Iterable[tuple[dict[int, Tensor], Tensor]]]


@torch.no_grad()
def encode(
    reader: Reader,
    tokenizer: Tokenizer,
    sites: dict[int, Site],
    texts: Sequence[Text],
    *,
    window: EncodingWindow = EncodingWindow(),
    batch_tokens: int = BATCH_TOKENS,
    before: Sequence[Entries | None] = (),
    pause: Callable[[], None] = lambda: None,
) -> list[Entries]:
    """The entries of each text at the memory layers `sites`. Memory is not read, and no logits are computed.

    batch_tokens: positions in one forward pass, padding included; windows of all texts are sorted by length so that
    little is padded. before: the entries of earlier versions of the texts, at the same paths; what windows that begin
    with the same tokens computed then is taken from there. pause: called before every forward pass. Raises CodememError
    as `tokenize` does.
    """
    tokens = [_tokenize(tokenizer, text) for text in texts]
    drafts = [_Draft(item, _windows(number, item, window), sites, reader) for number, item in enumerate(tokens)]
    waiting: list[Window] = []
    for draft, entries in zip_longest(drafts, before[: len(drafts)]):
        waiting += draft.windows if entries is None else draft.reuse(entries, window)
    for batch in _batches(waiting, batch_tokens):
        pause()
        for piece, (recorded, final) in zip(batch, reader.read([piece.ids for piece in batch]), strict=True):
            layers = {layer: tensor[piece.context :].cpu() for layer, tensor in recorded.items()}
            states = compress(final[piece.context :].float())
            drafts[piece.document].put(piece, layers, States(states.codes.cpu(), states.scales.cpu()))
    return [draft.entries(text) for draft, text in zip(drafts, texts, strict=True)]


class _Draft:
    """The entries of a text while they are computed, window by window."""

    def __init__(self, tokens: _Tokens, windows: list[Window], sites: dict[int, Site], reader: Reader) -> None:
        self.tokens, self.windows, count = tokens, windows, tokens.read
        self._layers = {
            layer: torch.empty(count, site.kv_heads, 2, site.d, dtype=reader.dtype) for layer, site in sites.items()
        }
        self._states = States(
            torch.empty(count, reader.size, dtype=torch.int8), torch.empty(count, dtype=torch.float32)
        )

    def reuse(self, before: Entries, window: EncodingWindow) -> list[Window]:
        """Take what an earlier version's windows computed of the same tokens. Returns the windows that are left."""
        if len(self.tokens.header) < SINKS or before.states is None:
            return self.windows  # the first tokens were not stored
        ids, ends = before.tokens.tolist(), (*before.windows[1:], len(before))
        contexts = [max(0, start - window.overlap) for start in before.windows]
        known = list(zip(before.windows, contexts, ends, strict=False))
        left, header = [], len(self.tokens.header)
        for piece in self.windows:
            wanted, own = piece.ids[header:], piece.context - header
            for start, context, end in known:
                # Attention is causal: what a window begins with is computed as if nothing came after it.
                alike = start - context == own and ids[start] == wanted[own]
                if alike and ids[context : min(end, context + len(wanted))] == wanted:
                    rows = slice(start, start + len(wanted) - own)
                    layers = {layer: tensor[rows] for layer, tensor in before.layers.items()}
                    self.put(piece, layers, before.states[rows])
                    break
            else:
                left.append(piece)
        return left

    def put(self, piece: Window, layers: dict[int, Tensor], states: States) -> None:
        """Set what a window computed of its new tokens: [n, kv_heads, 2, d] a layer, and n states."""
        rows = slice(piece.start, piece.start + len(piece.ids) - piece.context)
        self._states.codes[rows], self._states.scales[rows] = states.codes, states.scales
        for layer, tensor in layers.items():
            self._layers[layer][rows] = tensor

    def entries(self, text: Text) -> Entries:
        """The entries without those of attention sinks."""
        sinks = max(0, SINKS - len(self.tokens.header))
        stored = slice(sinks, self.tokens.read)
        return Entries(
            torch.tensor(self.tokens.ids, dtype=torch.int32)[stored],
            torch.from_numpy(self.tokens.lines)[stored],
            torch.from_numpy(self.tokens.columns)[stored],
            {layer: tensor[stored] for layer, tensor in self._layers.items()},
            text.symbols,
            self._states[stored],
            tuple(max(0, piece.start - sinks) for piece in self.windows),
        )


def transformers_reader(model: PreTrainedModel, sites: Iterable[int]) -> Reader:
    """The windows of a batch in one forward pass of transformers' model."""
    from codemem.models.interface import attention_modules, handlers

    attention = attention_modules(model)
    modules = {layer: attention[layer] for layer in sites}

    def read(batch: Sequence[Sequence[int]]) -> Iterator[tuple[dict[int, Tensor], Tensor]]:
        width = max(map(len, batch))
        # Padding stands on the right, where causal attention keeps it out of sight, so no mask is needed.
        padded = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in batch], device=model.device)
        recorded: dict[int, Tensor] = {}
        with handlers(modules, lambda layer: RecordingLayer(recorded, layer)):
            final: Tensor = model.base_model(input_ids=padded, use_cache=False).last_hidden_state
        for row, ids in enumerate(batch):
            yield {layer: tensor[row, : len(ids)] for layer, tensor in recorded.items()}, final[row, : len(ids)]

    return Reader(model.config.get_text_config().hidden_size, model.dtype, read)


def plan(
    tokenizer: Tokenizer,
    texts: Sequence[Text],
    window: EncodingWindow = EncodingWindow(),
    batch_tokens: int = BATCH_TOKENS,
) -> list[list[Window]]:
    """The forward passes in which `encode` reads these texts."""
    tokens = [_tokenize(tokenizer, text) for text in texts]
    windows = [piece for number, item in enumerate(tokens) for piece in _windows(number, item, window)]
    return _batches(windows, batch_tokens)


def _batches(windows: list[Window], batch_tokens: int) -> list[list[Window]]:
    batches: list[list[Window]] = []
    for piece in sorted(windows, key=lambda w: len(w.ids), reverse=True):
        if batches and len(batches[-1][0].ids) * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(piece)
        else:
            batches.append([piece])
    return batches


def _windows(number: int, item: _Tokens, window: EncodingWindow) -> list[Window]:
    most = max(1, window.size - window.overlap - len(item.header))
    pieces, start = [], 0
    for end in _cuts(item, window.size // 3, most):
        context, end = max(0, start - window.overlap), min(end, item.read)
        if start >= end:
            break
        ids = item.header + item.ids[context:end]
        pieces.append(Window(number, ids, len(item.header) + start - context, start))
        start = end
    return pieces


def _cuts(item: _Tokens, spread: int, most: int) -> list[int]:
    """Where windows of at most `most` new tokens end, ascending, the last at the document's end.

    They end before the lines whose first tokens have a lesser checksum than those of any other line that starts up to
    `spread` tokens away, ends of the document apart; so an edit moves no end that is further away (content-defined
    chunking by local minima, after Bjørner et al., Content-dependent chunking for differential compression, the local
    maximum approach, 2010). What is still too long is cut before the line of the least checksum in the second half of
    what is allowed.
    """
    total, lines = len(item.ids), np.array(item.line_starts, dtype=np.int64)
    lines = lines[lines > 0]
    sums = np.array([_checksum(item.ids[at : at + CUT_TOKENS]) for at in lines], dtype=np.int64)

    def least(first: int, last: int) -> int | None:
        """Of the lines that start at tokens first to last that of the least checksum, the first of several."""
        inside = slice(*np.searchsorted(lines, (first, last + 1)))
        return int(lines[inside][sums[inside].argmin()]) if len(lines[inside]) else None

    ends, start = [], 0
    inner = lines[(lines >= spread) & (lines <= total - spread)]
    for end in (*(int(at) for at in inner if least(at - spread, at + spread) == at), total):
        while end - start > most:
            start = least(start + most // 2 + 1, start + most) or start + most
            ends.append(start)
        if end > start:
            ends.append(end)
            start = end
    return ends


def _checksum(ids: list[int]) -> int:
    return zlib.crc32(np.array(ids, dtype=np.int32).tobytes())


def _tokenize(tokenizer: Tokenizer, text: Text) -> _Tokens:
    header = header_tokens(tokenizer, text.path)
    ids, starts = tokenize(tokenizer, text.text)
    visible = _first_visible(text.text)[starts] if len(starts) else starts
    newlines = np.array([i for i, character in enumerate(text.text) if character == "\n"], dtype=np.int64)
    lines = np.searchsorted(newlines, visible)
    line_offsets = np.concatenate(([0], newlines + 1))
    line_starts = np.flatnonzero(np.diff(lines, prepend=0)).tolist()
    columns = visible - line_offsets[lines] + 1
    read = len(ids) if text.until is None else int(np.searchsorted(starts, text.until))
    return _Tokens(header, ids, (lines + 1).astype(np.int32), columns.astype(np.int32), line_starts, read)


def _first_visible(text: str) -> np.ndarray:
    """For every character the offset of the first one from it on that is not white space, or its own at the end."""
    offsets = np.arange(len(text), dtype=np.int64)
    blank = np.array([character.isspace() for character in text], dtype=bool)
    following = np.where(blank, len(text), offsets)[::-1]
    nearest = np.minimum.accumulate(following)[::-1]
    return np.where(nearest < len(text), nearest, offsets)
