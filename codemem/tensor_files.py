"""Tensors in files that are there whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from codemem.durable import sync
from codemem.errors import CodememError


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file that only the user may read, durably and all or nothing. Raises CodememError where the
    disk is full or not writable."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata=metadata)
        partial.chmod(0o600)
        sync(partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            partial.unlink()
        raise CodememError(
            f"{path} cannot be written: {error}", "free some space or mend the rights, then go on"
        ) from error
