"""codemem: a pretrained decoder that remembers a repository.

What is named here is the public interface. It is loaded on first use, so that importing codemem imports neither torch
nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from codemem.errors import CodememError

if TYPE_CHECKING:
    from codemem.memory.bank import Bank
    from codemem.models.adapter import Adapter
    from codemem.models.loading import load_model
    from codemem.models.memorizing import MemorizingModel
    from codemem.models.pretrained import load_memorizing

__all__ = ["Adapter", "Bank", "CodememError", "MemorizingModel", "load_memorizing", "load_model"]

_HOMES = {
    "Adapter": "codemem.models.adapter",
    "Bank": "codemem.memory.bank",
    "MemorizingModel": "codemem.models.memorizing",
    "load_memorizing": "codemem.models.pretrained",
    "load_model": "codemem.models.loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
