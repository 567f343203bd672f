"""Weights -> a causal language model of transformers, ready to be given a memory.

Touches no network, except that the default model is fetched on first use. transformers is imported by the first model
that is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from codemem.errors import CodememError
from codemem.models.checkpoint import weights_hash
from codemem.models.locate import Located, ready

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_OTHER_MODEL = "give a causal decoder, for example one of `codemem models list`"
# Flags of /proc/cpuinfo: x86 with bf16 dot products or tiles, ARM with bf16 matrix instructions.
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


@dataclass(frozen=True)
class LoadedModel:
    """A causal decoder in eval mode, its tokenizer, the name to show, and the hash of its weights.

    Encode text with `tokenizer(text, add_special_tokens=False)`: some tokenizers add a first token by
    themselves.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    name: str
    weights_hash: str

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of the decoder, which in a model of several is one of them."""
        config: dict[str, Any] = self.model.config.get_text_config().to_dict()
        return config


def load_model(spec: str | None = None, *, device: str | None = None, dtype: torch.dtype | None = None) -> LoadedModel:
    """Load a catalog name, a hub id, a local directory or a .gguf file; None is the default model.

    `device` is a torch device, by default the best one here; `dtype` is by default the best one there.
    Raises CodememError where the model is not on this machine, is damaged, or is not a causal decoder.
    """
    from codemem.models.quiet import quiet

    located, place = ready(spec), device_of(device)
    with quiet():
        _refuse_other_architectures(located)
        model, tokenizer = _load(located, dtype or best_dtype(place))
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise CodememError(
            f"{located.name}: its tokenizer has {len(tokenizer)} tokens, its weights only {rows}",
            _OTHER_MODEL,
        )
    return LoadedModel(model.to(place).eval(), tokenizer, located.name, weights_hash(located.directory))


def device_of(name: str | None) -> torch.device:
    """The device of this name, the best one here for None. Raises CodememError for one that cannot be used."""
    return best_device() if name is None else _checked_device(name)


def best_device() -> torch.device:
    """CUDA, then Apple's MPS, then the processor."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def best_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the hardware multiplies it at least as fast as fp32, else fp32.

    On a processor with avx512_bf16, prefill of a 135M model runs 1.6 times as fast in bf16; without such
    instructions bf16 is emulated and slower.
    """
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if major >= 8 else torch.float32
    return torch.bfloat16 if device.type == "cpu" and _cpu_flags() & _BF16_FLAGS else torch.float32


def _cpu_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return frozenset(flags.split())


def _checked_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CodememError(
            f"the device {name} cannot be used: {reason}", "leave the device out, or give `cpu`"
        ) from error
    return device


def _refuse_other_architectures(located: Located) -> None:
    """Raise CodememError unless the configuration names a causal decoder of transformers' own."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    try:
        config = AutoConfig.from_pretrained(located.directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever the configuration of a stranger provokes
        raise _unloadable(located, error) from error
    wanted = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    stated = config.architectures or [wanted or config.model_type]
    if wanted is None or wanted not in stated or getattr(config, "is_encoder_decoder", False):
        raise CodememError(f"{located.name} is a {stated[0]}, not a causal decoder", _OTHER_MODEL)


def _load(located: Located, dtype: torch.dtype) -> tuple[Any, PreTrainedTokenizerFast]:
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            located.directory,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
        # tokenizer.json is the whole tokenizer; AutoTokenizer would rebuild it from its parts, which takes
        # ten times as long.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(located.directory, local_files_only=True)
    except Exception as error:  # whatever damaged files provoke in the readers
        raise _unloadable(located, error) from error
    model, report = loaded
    if report["missing_keys"]:
        raise CodememError(f"{located.directory} lacks weights: {min(report['missing_keys'])}", _OTHER_MODEL)
    return model, tokenizer


def _unloadable(located: Located, error: Exception) -> CodememError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return CodememError(f"{located.name} in {located.directory} cannot be loaded: {reason}", _OTHER_MODEL)
