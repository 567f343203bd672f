"""Tiny random models of every architecture that memory attaches to, a tokenizer for them, and both as files."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import gguf
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

MERGES = [("Ġ", "Ġ"), ("ĠĠ", "ĠĠ"), ("d", "e"), ("de", "f")]
END = "<|end|>"
VOCABULARY = 256 + len(MERGES) + 1  # the bytes, what the merges make, and an end of text
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
    "eos_token_id": VOCABULARY - 1,
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
        **_COMMON,
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=24,
        sliding_window=24,
        attn_logit_softcapping=2.0,
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
    "gpt-neox": GPTNeoXConfig(
        **_COMMON, rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
    ),
}


def tiny_model(architecture: str = "llama", seed: int = 0) -> PreTrainedModel:
    """A random model with attention sharp enough that what it attends to matters."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(deepcopy(CONFIGS[architecture])).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "embed" not in name:
                weight.mul_(4)
    return model


def _tokens() -> list[str]:
    alphabet = bytes_to_unicode()
    return [*(alphabet[byte] for byte in range(256)), *("".join(pair) for pair in MERGES), END]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level: one token a byte, except for `de`, `def` and two or four spaces."""
    vocabulary = {token: number for number, token in enumerate(_tokens())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


def four_bit(weight: torch.Tensor) -> torch.Tensor:
    """As GGUF's Q4_1 rounds: a scale and an offset for every 32 numbers; in bf16, as it is loaded."""
    groups = weight.float().view(len(weight), -1, 32)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = (high - low) / 15
    return (((groups - low) / step).round() * step + low).view_as(weight).bfloat16()


def save_directory(directory: Path, seed: int = 0) -> Path:
    """The Llama as a directory of safetensors."""
    tiny_model(seed=seed).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def save_gguf(path: Path, seed: int = 0, pre_tokenizer: str = "smollm") -> Path:
    """The Llama as F32 GGUF, with rows of q and k ordered as llama.cpp has them."""
    model = tiny_model(seed=seed)
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_token_list(_tokens())
    writer.add_token_types([1] * (config.vocab_size - 1) + [3])
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_eos_token_id(config.vocab_size - 1)
    writer.add_add_bos_token(False)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        for projection, count in heads.items():
            if projection in name:
                halves = tensor.reshape(count, 2, tensor.shape[0] // count // 2, tensor.shape[1])
                tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
        stem = names.get_name(name.removesuffix(".weight"))
        assert stem is not None, name
        writer.add_tensor(f"{stem}.weight", tensor.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
