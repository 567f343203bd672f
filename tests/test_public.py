"""What `import codemem` offers, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import codemem


def test_importing_codemem_imports_nothing_heavy():
    code = "import codemem, sys; print(sorted({'torch', 'transformers', 'faiss', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_every_public_name_is_there():
    code = "from codemem import *; print(Adapter, Bank, CodememError, MemorizingModel, load_memorizing, load_model)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert set(codemem.__all__) <= set(dir(codemem))
    assert {getattr(codemem, name).__name__ for name in codemem.__all__} == set(codemem.__all__)


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Bnak'"):
        _ = codemem.Bnak
