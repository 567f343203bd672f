"""Passes of fixed shape: they compute what the other passes do. Where there is a GPU they are recorded there."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from test_decoder import OWN, SOURCE, TOKENIZER, VOCABULARY, ids
from tiny import tiny_model

from codemem.completion.decode import Clock, decode
from codemem.completion.prompt import Prompt
from codemem.models.adapter import uniform_adapter
from codemem.models.memorizing import MemorizingModel
from codemem.models.recorded import ROWS

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")),
]
PIECES = (20, 1, 3, ROWS, 1, ROWS + 1, 5, 1)


def remembering(architecture: str, device: str, dtype: torch.dtype = torch.float32) -> MemorizingModel:
    """With several layers that read memory, so that a pass has parts of every kind."""
    base = tiny_model(architecture)
    adapter = uniform_adapter((1, 2), base.config.num_attention_heads)
    model = MemorizingModel(base.to(device, dtype), TOKENIZER, adapter)
    model.remember(SOURCE, "shapes.py")
    return model


@pytest.mark.parametrize("memory", [False, True], ids=["no memory", "memory"])
@pytest.mark.parametrize("architecture", OWN)
@pytest.mark.parametrize("device", DEVICES)
def test_they_compute_what_other_passes_do(device, architecture, memory):
    """And leave the same traces, though in another shape."""
    here, there = remembering(architecture, device), remembering(architecture, "cpu")
    text, at, decoder, expected = ids(sum(PIECES)), 0, here.decoder(), there.decoder()
    here._weights.recorded = True
    for count in PIECES:
        piece = text[at : at + count]
        with here.reads(attention=memory, tokens=memory, traced=True) as reading:
            found, mine = decoder.read(piece, min(2, count)), [*reading.trace, *reading.token_trace]
        with there.reads(attention=memory, tokens=memory, traced=True) as reading:
            wanted, theirs = expected.read(piece, min(2, count)), [*reading.trace, *reading.token_trace]
        # A GPU searches states in bf16: where it finds another neighbour, two tokens have other shares.
        close = torch.isclose(found.cpu(), wanted, rtol=1e-3, atol=2e-3)
        assert close.float().mean() >= (1 if device == "cpu" else 0.98)
        for (rows, weights), (their_rows, their_weights) in zip(mine, theirs, strict=True):
            same = rows.cpu() == their_rows
            assert same.float().mean() >= (1 if device == "cpu" else 0.8)
            torch.testing.assert_close(weights.cpu()[same], their_weights[same], rtol=1e-3, atol=1e-3)
        at += count
    assert decoder.tokens == text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
@pytest.mark.parametrize("device", DEVICES)
def test_a_position_is_the_same_alone_and_with_others(device, dtype):
    """Bit by bit: on that stands that drafts change nothing."""
    model = remembering("llama", device, dtype)
    decoder, text = model.decoder(), ids(60)
    model._weights.recorded = True
    decoder.read(text[:30])
    alone = torch.cat([decoder.read([token]) for token in text[30:38]])
    for count in (2, 5, ROWS):
        decoder.crop(30)
        assert torch.equal(decoder.read(text[30 : 30 + count], count), alone[:count])


@pytest.mark.parametrize("device", DEVICES)
def test_drafts_change_nothing(device):
    """Nor that the cache is made larger on the way, which wants another recording."""
    model = remembering("llama", device)
    prompt = TOKENIZER(SOURCE[:300]).input_ids + ids(680)

    def generated(drafts: int) -> tuple[list[int], Clock]:
        decoder, clock = model.decoder(), Clock()
        model._weights.recorded, decoder.together = True, ROWS
        with model.reads(traced=True):
            steps = decode(model, decoder, VOCABULARY, Prompt(prompt, b"", 1, 0), drafts=drafts, clock=clock)
            return [step.token for step in islice(steps, 80)], clock

    (plain, alone), (drafted, clock) = generated(0), generated(ROWS - 1)
    assert drafted == plain and len(plain) == 80
    assert alone.passes == 79 and clock.accepted > 0
