"""A directory of weights: is it whole, and which weights are they?"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codemem.cache import remembered_sha256

_SINGLE = "model.safetensors"
_END = 1024  # bytes, in which a JSON object begins, and ends
_INDEX = "model.safetensors.index.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
# Keys of config.json that differ between copies of the same model.
_INCIDENTAL = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")


def problem_in(directory: Path) -> str | None:
    """What keeps `directory` from being loaded, as the end of a sentence about it; None if it looks whole.

    Reads headers and sizes only, so a download or a copy that stopped halfway is found in milliseconds.
    """
    if not directory.is_dir():
        return "is not a directory"
    for name in ("config.json", "tokenizer.json"):
        if not (directory / name).is_file():
            return f"has no {name}"
    if read_json(directory / "config.json") is None:
        return "has a damaged config.json"
    if not _has_its_end(directory / "tokenizer.json"):
        return "has a damaged tokenizer.json"
    try:
        shards = weight_files(directory)
    except ValueError:
        return f"has a damaged {_INDEX}"
    if not shards:
        pickled = any(directory.glob("*.bin")) or any(directory.glob("*.pt"))
        return "holds pickled weights only; safetensors are needed" if pickled else f"has no {_SINGLE}"
    for shard in shards:
        if not shard.is_file():
            return f"is incomplete: {shard.name} is missing"
        if stored_in(shard) is None:
            return f"is incomplete: {shard.name} is truncated or damaged"
    return None


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files with the weights, sorted. Raises ValueError where their index is damaged."""
    if (directory / _INDEX).is_file():
        index = read_json(directory / _INDEX)
        if index is None or not isinstance(index.get("weight_map"), dict):
            raise ValueError(_INDEX)
        return [directory / name for name in sorted(set(map(str, index["weight_map"].values())))]
    return [directory / _SINGLE] if (directory / _SINGLE).exists() else []


def weights_hash(directory: Path) -> str:
    """Hex sha256 over weights, tokenizer and what in the configuration changes the model's results.

    The checksum of every large file is remembered while the file stays as it is, so that only the first call
    is slow.
    """
    digest = hashlib.sha256()
    tokenizer = [directory / name for name in _TOKENIZER_FILES if (directory / name).is_file()]
    for path in [*weight_files(directory), *tokenizer]:
        digest.update(f"{path.name} {remembered_sha256(path)}\n".encode())
    config = read_json(directory / "config.json") or {}
    relevant = {key: value for key, value in config.items() if key not in _INCIDENTAL}
    digest.update(json.dumps(relevant, sort_keys=True).encode())
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _has_its_end(path: Path) -> bool:
    """Whether a file with one JSON object, which takes long to read, was not cut off."""
    try:
        with path.open("rb") as file:
            first = file.read(_END).lstrip()
            file.seek(-min(path.stat().st_size, _END), os.SEEK_END)
            return first.startswith(b"{") and file.read().rstrip().endswith(b"}")
    except OSError:
        return False


@dataclass(frozen=True)
class Stored:
    """What a safetensors file holds. offsets: where its tensors stand in the file, in bytes; dtypes: as the format
    names them, such as BF16; says: what it says of itself."""

    path: Path
    offsets: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    says: dict[str, str]


def stored_in(path: Path) -> Stored | None:
    """What a safetensors file holds; None where there is none, or it is not as long as its header says: 8 bytes of
    length, the header, the tensors."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length)) if length <= size - 8 else {}
        says, first = header.pop("__metadata__", {}), 8 + length
        ends = [info["data_offsets"][1] for info in header.values()]
        if size != first + max(ends, default=0):
            return None
        offsets = {name: first + info["data_offsets"][0] for name, info in header.items()}
        shapes = {name: tuple(info["shape"]) for name, info in header.items()}
        return Stored(path, offsets, shapes, {name: info["dtype"] for name, info in header.items()}, says)
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None
