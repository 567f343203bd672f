"""Threads beside the one that computes with the model."""

from __future__ import annotations

import threading

import faiss
import torch

from codemem.threads import compute_alone


def test_a_thread_gives_up_its_helpers_and_no_other_does():
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    seen: list[tuple[int, int]] = []

    def look() -> None:
        seen.append((torch.get_num_threads(), faiss.omp_get_max_threads()))

    def alone() -> None:
        compute_alone()
        look()

    for work in (alone, look):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert seen == [(1, 1), before]
    assert (torch.get_num_threads(), faiss.omp_get_max_threads()) == before
