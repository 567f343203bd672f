"""A tiny Llama and its byte-level tokenizer, as a directory of safetensors and as a GGUF file."""

from __future__ import annotations

from pathlib import Path

import gguf
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

MERGES = [("Ġ", "Ġ"), ("ĠĠ", "ĠĠ"), ("d", "e"), ("de", "f")]


def _vocabulary() -> list[str]:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*alphabet, *("".join(pair) for pair in MERGES), "<|end|>"]


def tiny_model(seed: int = 0) -> LlamaForCausalLM:
    """Two layers, four heads over two KV heads, 16 numbers a head, random weights of that seed."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(_vocabulary()),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: index for index, token in enumerate(_vocabulary())}
    tokenizer = Tokenizer(models.BPE(vocabulary, MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def save_directory(directory: Path, seed: int = 0) -> Path:
    tiny_model(seed).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def save_gguf(path: Path, seed: int = 0, pre_tokenizer: str = "smollm") -> Path:
    """The same model as F32 GGUF, with rows of q and k ordered as llama.cpp has them."""
    model = tiny_model(seed)
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
    writer.add_token_list(_vocabulary())
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
