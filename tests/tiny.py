"""Tiny random models of every architecture that memory attaches to, and a byte tokenizer for them."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Starcoder2Config,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

VOCABULARY = 257  # the bytes, and an end of text
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
    "eos_token_id": 256,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "rope_theta": 10000.0}

# Two key/value heads are grouped-query attention, one is multi-query attention. The small windows of Gemma, Mistral and
# StarCoder2 make their sliding attention slide.
CONFIGS = {
    "llama": LlamaConfig(**_COMMON, num_key_value_heads=2),
    "llama-mqa": LlamaConfig(**_COMMON, num_key_value_heads=1),
    "llama-yarn": LlamaConfig(**_COMMON, num_key_value_heads=2, rope_parameters=_YARN),
    "qwen2": Qwen2Config(**_COMMON, num_key_value_heads=2),
    "qwen3": Qwen3Config(**_COMMON, num_key_value_heads=2, head_dim=16),
    "mistral": MistralConfig(**_COMMON, num_key_value_heads=2, head_dim=8, sliding_window=24),
    "starcoder2": Starcoder2Config(**_COMMON, num_key_value_heads=2, sliding_window=24),
    "gemma2": Gemma2Config(
        **_COMMON, num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=24, sliding_window=24, attn_logit_softcapping=2.0
    ),
    "gemma3": Gemma3TextConfig(
        **_COMMON,
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=24,
        sliding_window=24,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    ),
    "phi3": Phi3Config(**_COMMON, num_key_value_heads=2),
    "gpt-neox": GPTNeoXConfig(**_COMMON, rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}),
}


def tiny_model(architecture: str = "llama", seed: int = 0) -> PreTrainedModel:
    """A random model with attention sharp enough that what it attends to matters."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[architecture]).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "embed" not in name:
                weight.mul_(4)
    return model


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte."""
    alphabet = bytes_to_unicode()
    vocabulary = {alphabet[byte]: byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
