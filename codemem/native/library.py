"""The functions of C in this folder, compiled by the compiler that is here.

A few positions of a small model take PyTorch longer to start its operations than to compute them, and its products of
4-bit weights are of numbers in 16 bits. The compiler is asked once for each shape of heads, and what it made is kept in
the cache directory. Where there is none, PyTorch computes, in three times the time.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from ctypes import CDLL, PyDLL, c_float, c_long, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from codemem.cache import cache_folder
from codemem.durable import sync

_FOLDER = Path(__file__).parent
_OPTIONS = ("-std=gnu11", "-O3", "-fPIC", "-Wno-psabi")
# What the processor can do, as PyTorch found out, for compilers.
_FEATURES = {
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"),
    "AVX2": ("-mavx2", "-mfma"),
}
_VNNI = ("-mavx512vnni",)
# Functions are for sizes that are multiples of this.
STEP = 16
_SECONDS = 60  # for which a compiler may take

# Pointers, sizes, and numbers, in the order of the functions' parameters.
_P, _N, _F = c_void_p, c_long, c_float
_FUNCTIONS: dict[str, dict[str, tuple[Any, ...]]] = {
    "layer": {
        "add_and_norm": (_P, _P, _P, _P),
        "gated": (_P, _N, _N, _P),
        "attend": (_P, _P, _P),
        "embed": (_P, _P, _P),
        "begin": (_P, _P),
        "finish": (_P, _P, _P),
        "layers": (_P, _N, _P, _P),
        "norm": (_P, _P, _P),
        "pack_keys": (_P, _N, _N, _P, _P),
        "read_focus": (_P, _P, _P, _P, _N, _N, _F, _P),
    },
    "matrix": {
        "multiply": (_P, _N, _P, _P),
    },
    "states": {
        "queries": (_P, _N, _N, _P, _P, _P),
        "rank": (_P, _N, _N, _N, _P, _P, _P, _P),
        "search": (_P, _P, _N, _N, _P, _N, _P),
        "nearest_states": (_P, _P, _N, _P, _N, _P, _P),
    },
    "mixture": {
        "mix": (_P, _N, _N, _P, _P, _N, _P, _P, _P, _P, _P, _P, _P),
    },
}


@cache
def library(name: str, **constants: float) -> Any:
    """The functions of `name`.c, which takes pointers as `Tensor.data_ptr` gives them, with what it calls constants;
    None where there is no compiler that can make them. Who calls holds the tensors. While one of them runs, no other
    thread of Python does: they take microseconds, and to ask for the interpreter again, where another thread computes,
    takes milliseconds."""
    # With PyTorch's own threads, or alone: two sets of threads would keep each other from computing.
    openmp = threads()
    loaded = (_loaded(name, constants, with_openmp) for with_openmp in ((openmp, None) if openmp else (None,)))
    functions = next((found for found in loaded if found is not None), None)
    return None if functions is None else _typed(name, functions)


@cache
def releasing(name: str, functions: Any) -> Any:
    """The same functions, for calls that take many milliseconds: other threads of Python run meanwhile."""
    return _typed(name, CDLL(functions._name))


def opened(name: str, file: Path, openmp: Path | None) -> Any:
    """Those that an earlier process compiled into a file, with the library of its threads, for such calls too. Needs no
    PyTorch. Raises OSError."""
    if openmp is not None:
        CDLL(str(openmp))  # before another of its name is found
    return _typed(name, CDLL(str(file)))


def threads() -> Path | None:
    """PyTorch's library of threads."""
    import torch

    return next((Path(torch.__file__).parent / "lib").glob("libgomp*"), None)


@cache
def sources() -> str:
    """Hex sha256 of the functions' sources and of the records that they take."""
    files = sorted(file for file in _FOLDER.iterdir() if file.suffix in (".c", ".h") or file.name == "records.py")
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _typed(name: str, functions: Any) -> Any:
    for function, parameters in _FUNCTIONS[name].items():
        getattr(functions, function).argtypes, getattr(functions, function).restype = parameters, None
    return functions


def _loaded(name: str, constants: Mapping[str, float], openmp: Path | None) -> PyDLL | None:
    """A source, compiled if it is not yet; None where that or to load it fails."""
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    defined = (f"-D{constant}={value}" for constant, value in constants.items())
    features = [*_FEATURES.get(capability, ()), *(_VNNI if capability == "AVX512" and _multiplies_bytes() else ())]
    options = [*_OPTIONS, *features, *defined, *(["-fopenmp"] if openmp else [])]
    libraries = ["-lm", *([str(openmp)] if openmp else [])]
    source = _FOLDER / f"{name}.c"
    texts = (file.read_bytes() for file in (source, *sorted(_FOLDER.glob("*.h"))))
    made_of = b"".join((*texts, " ".join((*options, *libraries, platform.machine())).encode()))
    try:
        file = cache_folder("native") / f"{name}-{hashlib.sha256(made_of).hexdigest()[:20]}.so"
        if not file.exists() and not _compiled(source, options, libraries, file):
            return None
        return PyDLL(str(file))
    except OSError:
        return None


def _multiplies_bytes() -> bool:
    """Whether the processor has instructions for products of 8-bit integers, beside AVX512."""
    import torch

    asked = getattr(torch.cpu, "_is_vnni_supported", None)
    return asked is not None and bool(asked())


def compiler() -> str | None:
    """The C compiler: what CC says, or the first that is found."""
    found = (shutil.which(name) for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name)
    return next(filter(None, found), None)


def _compiled(source: Path, options: Sequence[str], libraries: Sequence[str], file: Path) -> bool:
    """Whether a source is compiled into a file now."""
    if (command := compiler()) is None:
        return False
    with tempfile.TemporaryDirectory(dir=file.parent) as folder, suppress(OSError, subprocess.SubprocessError):
        parts, whole = Path(folder) / "parts.o", Path(folder) / file.name
        # In two steps, so that no OpenMP library is chosen but the one that is named.
        for line in (
            [command, *options, "-c", str(source), "-o", str(parts)],
            [command, "-shared", str(parts), *libraries, "-o", str(whole)],
        ):
            subprocess.run(line, check=True, capture_output=True, timeout=_SECONDS)
        sync(whole)  # half of one would end every process that opens it
        whole.replace(file)
        return True
    return False
