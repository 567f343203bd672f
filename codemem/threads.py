"""Threads beside the one that computes with the model."""

from __future__ import annotations

import ctypes
from pathlib import Path


def compute_alone() -> None:
    """Let the thread that calls this compute without helpers from now on; other threads keep theirs.

    OpenMP keeps helpers for every thread that computes. Where there are more of them than processors, all of them fall
    asleep between two pieces of work, and a forward pass takes 1.4 times as long, in whatever thread it runs.
    """
    import faiss
    import torch

    torch.get_num_threads()  # a thread's first question sets its helpers
    faiss.omp_set_num_threads(1)
    for library in (Path(torch.__file__).parent / "lib").glob("libgomp*"):  # PyTorch's own is there on Linux
        ctypes.CDLL(str(library)).omp_set_num_threads(1)
