"""The compiled part of our own forward pass: `kernels.c`, compiled by the C compiler that is here.

A few positions of a small model take PyTorch longer to start its operations than to compute them; a function of C
takes a microsecond to start. The compiler is asked once for each shape of heads, and what it made is kept in the cache
directory. Where there is none, PyTorch computes, in twice the time.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from ctypes import PyDLL, c_float, c_long, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch

from codemem.models.cache import cache_dir

_SOURCE = Path(__file__).with_name("kernels.c")
_OPTIONS = ("-std=gnu11", "-O3", "-fPIC", "-Wno-psabi")
# What the processor can do, as PyTorch found out, for compilers.
_FEATURES = {
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"),
    "AVX2": ("-mavx2", "-mfma"),
}
_SECONDS = 60  # for which a compiler may take

# Pointers, a count of positions or of something else, and numbers, in the order of the functions' parameters.
_P, _N, _F = c_void_p, c_long, c_float
_FUNCTIONS = {
    "add_and_norm": (_P, _P, _N, _N, _P, _F, _P),
    "gated": (_P, _N, _N, _P),
    "attend": (_P, _N, _N, _P, _P, _F, _F, _P, _P, _N, _P, _P, _N, _P, _P, _P, _P),
    "read_focus": (_P, _P, _P, _N, _N, _F, _P, _P, _P, _P, _P, _N, _N, _P, _P, _P, _P, _P, _P),
}


@cache
def kernels(d: int, group: int) -> Any:
    """The functions of `kernels.c` for heads of size d, of which `group` share a key/value head; None where there is no
    compiler that can make them."""
    capability = torch.backends.cpu.get_cpu_capability()
    options = [*_OPTIONS, *_FEATURES.get(capability, ()), f"-DD={d}", f"-DGROUP={group}"]
    libraries = ["-lm"]
    # PyTorch's own threads, or none: two sets of them would keep each other from computing.
    if openmp := next((Path(torch.__file__).parent / "lib").glob("libgomp*"), None):
        options.append("-fopenmp")
        libraries.append(str(openmp))
    made_of = _SOURCE.read_bytes(), " ".join([*options, *libraries, platform.machine()]).encode()
    folder = cache_dir() / "kernels"
    folder.mkdir(mode=0o700, exist_ok=True)
    file = folder / f"{hashlib.sha256(b'|'.join(made_of)).hexdigest()[:20]}.so"
    if not file.exists() and not _compiled(options, libraries, file):
        return None
    try:
        # While one of its functions runs, no other thread of Python does: they take microseconds, and to ask for
        # the interpreter again, where another thread computes, takes milliseconds.
        library = PyDLL(str(file))
    except OSError:
        return None
    for name, parameters in _FUNCTIONS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = parameters, None
    return library


def compiler() -> str | None:
    """The C compiler: what CC says, or the first that is found."""
    found = (shutil.which(name) for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name)
    return next(filter(None, found), None)


def _compiled(options: Sequence[str], libraries: Sequence[str], file: Path) -> bool:
    """Whether `kernels.c` is in a file now."""
    if (command := compiler()) is None:
        return False
    with tempfile.TemporaryDirectory(dir=file.parent) as folder, suppress(OSError, subprocess.SubprocessError):
        parts, whole = Path(folder) / "kernels.o", Path(folder) / file.name
        # In two steps, so that no OpenMP library is chosen but the one that is named.
        for line in (
            [command, *options, "-c", str(_SOURCE), "-o", str(parts)],
            [command, "-shared", str(parts), *libraries, "-o", str(whole)],
        ):
            subprocess.run(line, check=True, capture_output=True, timeout=_SECONDS)
        whole.replace(file)
        return True
    return False
