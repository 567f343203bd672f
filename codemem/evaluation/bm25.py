"""Snippets by the words that they share with the code before the cursor: BM25 over windows of lines.

The usual retriever for code completion (Zhang et al., RepoCoder, 2023), and the one that memory is compared with.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice

import numpy as np

from codemem.completion.snippets import Snippet
from codemem.extras import optional

WINDOW, STRIDE = 20, 10  # lines
_PART = re.compile(r"[^\W\d_]+|\d+")
# Where camelCase and HTTPServer have their seams.
_SEAM = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class WindowIndex:
    """The windows of some documents, each a path and a text.

    Raises CodememError where bm25s is not installed.
    """

    def __init__(self, documents: Iterable[tuple[str, str]]) -> None:
        # To import bm25s starts JAX where that is installed, and JAX takes three quarters of a GPU's memory.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        bm25s = optional("bm25s")
        self._windows: list[Snippet] = []
        words: list[list[str]] = []
        for path, text in documents:
            lines = text.removesuffix("\n").split("\n")
            words_of_lines = [split(line) for line in lines]
            for start in range(0, max(len(lines) - STRIDE, 1), STRIDE):
                window = slice(start, start + WINDOW)
                found = [word for line in words_of_lines[window] for word in line]
                if found:
                    kept = lines[window]
                    self._windows.append(Snippet(path, start + 1, start + len(kept), "\n".join(kept), 0.0))
                    words.append(found)
        self._index = bm25s.BM25()
        if words:
            self._index.index(words, show_progress=False)

    def __len__(self) -> int:
        return len(self._windows)

    def snippets(self, query_text: str, count: int = 16, exclude_path: str | None = None) -> list[Snippet]:
        """The windows that share most with the last lines of a text, best first; their weights are the scores."""
        query = split("\n".join(query_text.split("\n")[-WINDOW:]))
        if not query or not self._windows:
            return []
        scores = self._index.get_scores(query)
        best = (int(number) for number in np.argsort(-scores, kind="stable") if scores[number] > 0)
        found = (replace(self._windows[number], weight=float(scores[number])) for number in best)
        return list(islice((snippet for snippet in found if snippet.path != exclude_path), count))


def split(text: str) -> list[str]:
    """The words of a text: identifiers taken apart at underscores and within camelCase, lower-cased, and numbers."""
    return [word.lower() for part in _PART.findall(text) for word in _SEAM.split(part)]
