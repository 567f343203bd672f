"""GGUF to safetensors, once per file: 135M parameters take 15 s to read as GGUF, under one second after."""

from __future__ import annotations

import io
import json
import mmap
import struct
import sys
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from codemem.cache import cache_dir, locked, publish, say
from codemem.errors import CodememError
from codemem.models.checkpoint import problem_in

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Raised whenever a conversion gives something else than before: older copies are then no longer found.
CONVERSION = 1
# Values of `tokenizer.ggml.pre` whose text is cut into single digits before anything else (llama.cpp,
# src/llama-vocab.cpp). transformers knows nothing of them and joins `    1` to three spaces and ` 1`, which
# these models never saw.
_SINGLE_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r"})


def converted_path(sha256: str) -> Path:
    """Where the converted copy of the GGUF file with this checksum stands, or would stand."""
    return cache_dir() / "models" / f"{sha256[:20]}-{CONVERSION}"


def convert(gguf: Path, sha256: str) -> Path:
    """Convert `gguf` to a directory in the cache: bf16 safetensors, config, tokenizer. Returns it.

    Does nothing where a whole copy is there. Safe against other processes, and against being killed at any
    point.
    Raises CodememError where the file is not a GGUF file, is damaged, or holds an architecture that cannot
    be read.
    """
    target = converted_path(sha256)
    with open(gguf, "rb") as file:
        if file.read(4) != b"GGUF":
            raise CodememError(f"{gguf} is not a GGUF file", "codemem models list")
    with locked(target.name):
        if problem_in(target) is not None:
            say(f"converting {gguf.name} to safetensors, once (15-40 s for a model under 1B parameters)")
            with Console(file=sys.stderr).status(f"converting {gguf.name}"):
                publish(target, lambda partial: _write(gguf, partial))
    return target


def _write(gguf: Path, directory: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from codemem.models.quiet import quiet

    try:
        with quiet(), redirect_stderr(io.StringIO()):  # one of its progress bars has no switch
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                dtype=torch.bfloat16,
                quantization_config=GgufConfig(dequantize=True),
                local_files_only=True,
                output_loading_info=True,
            )
            model, report = loaded
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
            if report["missing_keys"]:
                raise ValueError(f"it lacks {min(report['missing_keys'])}")
            _restore_digits(gguf, tokenizer)
            model.save_pretrained(directory)
            tokenizer.save_pretrained(directory)
            _drop_tokens_without_weights(directory, model.get_input_embeddings().weight.shape[0])
    except Exception as error:  # whatever a damaged file provokes in the readers
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CodememError(
            f"{gguf} cannot be converted: it is truncated, damaged or of an unsupported kind ({reason})",
            "copy or download the file again, or give another model: codemem models list",
        ) from error


def _restore_digits(gguf: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    from tokenizers import pre_tokenizers

    if _pre_tokenizer_name(gguf) in _SINGLE_DIGITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )


def _drop_tokens_without_weights(directory: Path, rows: int) -> None:
    """Remove tokens that transformers adds to a vocabulary that lacks them, such as `<|endoftext|>`."""
    path, settings_path = directory / "tokenizer.json", directory / "tokenizer_config.json"
    tokenizer, settings = json.loads(path.read_text("utf-8")), json.loads(settings_path.read_text("utf-8"))
    gone = {token["content"] for token in tokenizer["added_tokens"] if token["id"] >= rows}
    if gone:
        tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["id"] < rows]
        settings = {key: value for key, value in settings.items() if not (isinstance(value, str) and value in gone)}
        path.write_text(json.dumps(tokenizer, ensure_ascii=False), "utf-8")
        settings_path.write_text(json.dumps(settings, indent=2), "utf-8")


def _pre_tokenizer_name(gguf: Path) -> str | None:
    """The metadata value `tokenizer.ggml.pre`: key and string, each after its length (GGUF v3)."""
    key = b"tokenizer.ggml.pre"
    wanted = struct.pack("<Q", len(key)) + key + struct.pack("<I", 8)
    with open(gguf, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = content.find(wanted)
        if at < 0:
            return None
        at += len(wanted)
        (length,) = struct.unpack("<Q", content[at : at + 8])
        return content[at + 8 : at + 8 + length].decode("utf-8", errors="replace")
