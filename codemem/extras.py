"""Libraries that only measuring and drawing need."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from codemem.errors import CodememError


def optional(module: str) -> Any:
    """A module of the extra `eval`. Raises CodememError where it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise CodememError(f"{module.split('.')[0]} is not installed", "pip install 'codemem[eval]'") from error
