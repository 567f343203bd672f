"""The shape of a Llama-like decoder, as its configuration says it: all that our own forward pass must know beside the
weights. Needs neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# config.model_type of decoders whose layers are these, with or without biases and query/key norms -> their class.
MODEL_TYPES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_COUNTS = (
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_size",
    "intermediate_size",
    "vocab_size",
)
ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn"})


@dataclass(frozen=True)
class Shape:
    """layers, heads, kv_heads: how many; d: size of a head; size: of a hidden state; inner: of one inside the MLP;
    vocabulary: rows of the embedding; epsilon: of the norms; tied: whether the output layer has the embedding's
    weights; rope: transformers' `rope_parameters`; input_biases: of queries, keys and values; output_biases: of what
    attention gives; mlp_biases: of the MLP's three matrices; head_norms: whether queries and keys are normalised."""

    layers: int
    heads: int
    kv_heads: int
    d: int
    size: int
    inner: int
    vocabulary: int
    epsilon: float
    tied: bool
    rope: dict[str, Any]
    input_biases: bool
    output_biases: bool
    mlp_biases: bool
    head_norms: bool

    def weights(self) -> dict[str, tuple[int, ...]]:
        """The name of every weight, as transformers has it in files, and its shape."""
        size, inner, queries, keys = self.size, self.inner, self.heads * self.d, self.kv_heads * self.d
        matrices = {
            "self_attn.q_proj": (queries, size, self.input_biases),
            "self_attn.k_proj": (keys, size, self.input_biases),
            "self_attn.v_proj": (keys, size, self.input_biases),
            "self_attn.o_proj": (size, queries, self.output_biases),
            "mlp.gate_proj": (inner, size, self.mlp_biases),
            "mlp.up_proj": (inner, size, self.mlp_biases),
            "mlp.down_proj": (size, inner, self.mlp_biases),
        }
        each: dict[str, tuple[int, ...]] = {f"{name}_layernorm.weight": (size,) for name in ("input", "post_attention")}
        each |= {f"{name}.weight": (outputs, inputs) for name, (outputs, inputs, _) in matrices.items()}
        each |= {f"{name}.bias": (outputs,) for name, (outputs, _, biased) in matrices.items() if biased}
        if self.head_norms:
            each |= {f"self_attn.{name}_norm.weight": (self.d,) for name in "qk"}
        layers = {f"model.layers.{n}.{name}": shape for n in range(self.layers) for name, shape in each.items()}
        table = self.vocabulary, size
        return layers | {"model.norm.weight": (size,), "model.embed_tokens.weight": table, self.head: table}

    @property
    def head(self) -> str:
        """The name of the output layer's weights."""
        return "model.embed_tokens.weight" if self.tied else "lm_head.weight"


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """The shape that a configuration of transformers or a config.json describes; None where our forward pass is not for
    such a model, or the configuration leaves out what only transformers knows."""
    kind = config.get("model_type")
    rope = _rope(config)
    if kind not in MODEL_TYPES or rope is None or _slides(config) or config.get("hidden_act") != "silu":
        return None
    if not all(isinstance(config.get(name), int) for name in _COUNTS) or "rms_norm_eps" not in config:
        return None
    heads, size = config["num_attention_heads"], config["hidden_size"]
    biases = kind == "qwen2" or (kind != "mistral" and bool(config.get("attention_bias", False)))
    return Shape(
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config["num_key_value_heads"],
        d=config.get("head_dim") or size // heads,
        size=size,
        inner=config["intermediate_size"],
        vocabulary=config["vocab_size"],
        epsilon=config["rms_norm_eps"],
        tied=config.get("tie_word_embeddings", False),
        rope=rope,
        input_biases=biases,
        output_biases=biases and kind != "qwen2",
        mlp_biases=kind == "llama" and bool(config.get("mlp_bias", False)),
        head_norms=kind == "qwen3",
    )


def _slides(config: Mapping[str, Any]) -> bool:
    """Whether some layers see only a window of the text."""
    if set(config.get("layer_types") or ["full_attention"]) != {"full_attention"}:
        return True
    if config["model_type"] in ("qwen2", "qwen3") and not config.get("use_sliding_window", False):
        return False
    # Mistral has a window unless its configuration says that it has none.
    return config.get("sliding_window", 0 if config["model_type"] == "mistral" else None) is not None


def _rope(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """transformers' `rope_parameters`, also from the older `rope_theta` and `rope_scaling`; None for others."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope.setdefault("rope_type", rope.get("type", "default"))
    rope.setdefault("rope_theta", config.get("rope_theta"))
    known = rope["rope_type"] in ROPE_TYPES and rope["rope_theta"] is not None
    partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor")) or 1.0
    return rope if known and partial == 1.0 else None
