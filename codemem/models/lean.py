"""A quicker `import torch` for a process that completes once and ends."""

from __future__ import annotations

import importlib
import sys
from contextlib import suppress
from types import ModuleType

# How PyTorch's operators behave on tensors without data. torch imports it for its side effects, which take a quarter of
# its whole import; compilers need them, and models that are set up on the device "meta".
_META = "torch._meta_registrations"
# What that imports in its turn and everything needs: without it there is no torch.Generator.
_NEEDED = "torch._prims.rng_prims"


def import_torch() -> None:
    """Import torch without that, as far as it is not imported yet. Later imports get the module itself."""
    if "torch" in sys.modules:
        return
    sys.modules[_META] = ModuleType(_META)
    try:
        torch = importlib.import_module("torch")
    finally:
        del sys.modules[_META]
    vars(torch).pop("_meta_registrations", None)
    importlib.import_module(_NEEDED)


def whole_torch() -> None:
    """Import what `import_torch` left out, where it did."""
    with suppress(ModuleNotFoundError):
        importlib.import_module(_META)
