"""A quicker import of torch."""

from __future__ import annotations

import subprocess
import sys

LEAN = """
import sys
from codemem.models.lean import import_torch, whole_torch
import_torch()
import torch
"""
# An operator whose form without data only that module knows.
ON_META = "torch.ops.aten._cdist_forward(torch.empty(2, 3, device='meta'), torch.empty(4, 3, device='meta'), 2.0, None)"


def run(code: str, start: str = LEAN) -> str:
    result = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_what_only_compilers_need_is_not_imported():
    named = """
print([name for name in sys.modules if name in ("torch._meta_registrations", "torch._decomp.decompositions")])
print(hasattr(torch, "_meta_registrations"))
"""
    drawn = "print(torch.rand(2, generator=torch.Generator().manual_seed(3)).tolist())"
    assert run(named + drawn) == "[]\nFalse\n" + run(drawn, "import torch\n")


def test_it_can_be_imported_later():
    tried = f"""
def shape():
    try:
        return tuple({ON_META}.shape)
    except NotImplementedError:
        return None

print(shape())
whole_torch()
print(shape(), torch._meta_registrations is sys.modules["torch._meta_registrations"])
"""
    assert run(tried) == "None\n(2, 4) True\n"


def test_a_torch_that_is_there_is_left_as_it_is():
    assert run("before = set(sys.modules)\nimport_torch()\nprint(set(sys.modules) == before)") == "True\n"
