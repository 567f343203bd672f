"""llama.cpp as it is measured: a process whose interpreter has llama-cpp-python, and nothing of codemem.

    python benchmarks/llama_cpp_peer.py MODEL.gguf    # JSON lines in: {"ids", "most"}; out: {"text", "tokens", "ms"}

Greedy, 2 threads, and what the last prompt begins with stays in its cache.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

THREADS = 2
CONTEXT = 2048


def line_of(model: Any, ids: list[int], most: int) -> tuple[str, int]:
    """What the model writes behind a prompt up to the end of the line, and how many tokens that took."""
    written = b""
    count = 0
    for token in model.generate(ids, top_k=1, temp=0.0, repeat_penalty=1.0):
        count += 1
        written += model.detokenize([token], prev_tokens=ids)
        if b"\n" in written.lstrip() or count == most or token == model.token_eos():
            break
    return written.decode("utf-8", errors="ignore"), count


def main() -> None:
    from llama_cpp import Llama  # type: ignore[import-not-found]

    model = Llama(sys.argv[1], n_ctx=CONTEXT, n_threads=THREADS, n_threads_batch=THREADS, verbose=False)
    for request in map(json.loads, sys.stdin):
        start = time.perf_counter()
        text, tokens = line_of(model, request["ids"], request["most"])
        ms = 1000 * (time.perf_counter() - start)
        print(json.dumps({"text": text, "tokens": tokens, "ms": ms}), flush=True)


if __name__ == "__main__":
    main()
