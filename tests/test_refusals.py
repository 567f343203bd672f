"""Decoders that memory cannot be attached to are refused by name."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BloomConfig,
    CohereConfig,
    GPT2Config,
    GPTJConfig,
    MambaConfig,
    OPTConfig,
    T5Config,
)

from codemem.errors import CodememError
from codemem.models.adapter import uniform_adapter
from codemem.models.memorizing import MemorizingModel

SMALL = {"vocab_size": 257, "bos_token_id": None, "eos_token_id": 256, "pad_token_id": None}
REFUSED = {
    "GPT2LMHeadModel": GPT2Config(**SMALL, n_embd=32, n_layer=4, n_head=4),
    "OPTForCausalLM": OPTConfig(
        **{**SMALL, "pad_token_id": 1},
        hidden_size=32,
        ffn_dim=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        word_embed_proj_dim=32,
    ),
    "BloomForCausalLM": BloomConfig(**SMALL, hidden_size=32, n_layer=4, n_head=4),
    "GPTJForCausalLM": GPTJConfig(**SMALL, n_embd=32, n_layer=4, n_head=4, rotary_dim=4),
    "MambaForCausalLM": MambaConfig(**SMALL, hidden_size=32, num_hidden_layers=4),
    # Rotary, but it turns neighbouring dimensions rather than halves.
    "CohereForCausalLM": CohereConfig(
        **SMALL, hidden_size=32, intermediate_size=32, num_hidden_layers=4, num_attention_heads=4
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_decoders_are_refused_by_name(name):
    model = AutoModelForCausalLM.from_config(REFUSED[name]).eval()
    assert type(model).__name__ == name
    with pytest.raises(CodememError, match=name) as refusal:
        MemorizingModel(model, tiny_tokenizer())
    assert refusal.value.hint


def test_an_encoder_decoder_is_refused_by_name():
    config = T5Config(vocab_size=257, d_model=32, d_ff=32, num_layers=2, num_heads=4, d_kv=8)
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    with pytest.raises(CodememError, match="T5ForConditionalGeneration"):
        MemorizingModel(model, tiny_tokenizer())


def test_a_layer_that_is_not_there_is_refused():
    with pytest.raises(CodememError, match="no attention layer 9"):
        MemorizingModel(tiny_model(), tiny_tokenizer(), uniform_adapter((1, 9), 6))


@torch.no_grad()
def test_a_refused_model_still_works():
    model = AutoModelForCausalLM.from_config(REFUSED["CohereForCausalLM"]).eval()
    ids = torch.arange(20)[None]
    before = model(input_ids=ids).logits
    with pytest.raises(CodememError):
        MemorizingModel(model, tiny_tokenizer())
    assert torch.equal(before, model(input_ids=ids).logits)
