"""One-line completions beside llama.cpp with the same weights: same prompts, 2 threads, greedy, nothing beside them.

    python -m benchmarks.against_llama_cpp --peer PYTHON_WITH_LLAMA_CPP --gguf SmolLM2-135M-Instruct.Q4_1.gguf

Each cursor is asked for twice, by everybody in turn: in a document that was not read yet, and after the next character
was typed, when the prompt is in everybody's cache but for its end.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from pathlib import Path

from benchmarks.corpus import arguments, bars, remember, report
from benchmarks.decoding import Place, places
from codemem.completion.engine import Engine
from codemem.completion.piece import MAX_TOKENS
from codemem.completion.prompt import build_prompt
from codemem.completion.request import Request
from codemem.models.pretrained import load_memorizing
from indexer.packages import documents, package

# Arm -> how it reads memory.
OURS = {
    "codemem, no memory": {"attention": False, "tokens": False, "recall": False},
    "codemem, both memories": {"attention": True, "tokens": True, "recall": False},
}
PEER = "llama.cpp"


class Peer:
    """A running `llama_cpp_peer`."""

    def __init__(self, python: str, gguf: Path) -> None:
        script = Path(__file__).with_name("llama_cpp_peer.py")
        self._process = subprocess.Popen(
            [python, script, gguf], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def line(self, ids: list[int], most: int) -> tuple[str, int, float]:
        """Text, tokens and milliseconds."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"ids": ids, "most": most}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return answer["text"], answer["tokens"], answer["ms"]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def compare(engines: dict[str, Engine], peer: Peer, cursors: list[Place]) -> dict[str, dict[str, dict[str, float]]]:
    """Milliseconds and tokens of each arm, first and after the next character. engines: one an arm, with its own
    cache."""
    seen: dict[str, dict[str, list[float]]] = {arm: {} for arm in (*OURS, PEER)}
    for place in cursors:
        for step, offset in (("first", place.offset), ("typed_on", place.offset + 1)):
            for arm, ways in OURS.items():
                request = Request(place.path, place.text, offset, max_tokens=MAX_TOKENS["line"], **ways)
                engines[arm].forget()  # what was read stays, as in llama.cpp, and not what was written
                start = time.perf_counter()
                done = engines[arm].complete(request)
                seen[arm].setdefault(step, []).append(1000 * (time.perf_counter() - start))
                seen[arm].setdefault(f"{step}_tokens", []).append(done.tokens)
            engine = engines[arm]
            prompt = build_prompt(Request(place.path, place.text, offset), engine.model.tokenizer, engine.vocabulary)
            healed = engine.vocabulary.tokens.index(prompt.healed) if prompt.healed else None
            ids = prompt.ids if healed is None else [*prompt.ids, healed]
            _, tokens, ms = peer.line(ids, MAX_TOKENS["line"])
            seen[PEER].setdefault(step, []).append(ms)
            seen[PEER].setdefault(f"{step}_tokens", []).append(tokens)
    return {
        arm: {
            step: {
                "median_ms": round(statistics.median(times[step]), 1),
                "p95_ms": round(statistics.quantiles(times[step], n=20)[-1], 1),
                "tokens": round(statistics.mean(times[f"{step}_tokens"]), 2),
                "ratio": round(statistics.median(o / t for o, t in zip(times[step], seen[PEER][step], strict=True)), 3),
            }
            for step in ("first", "typed_on")
        }
        for arm, times in seen.items()
    }


def main() -> None:
    parser = arguments("One-line completions beside llama.cpp.")
    parser.add_argument("--peer", required=True, help="an interpreter that has llama-cpp-python")
    parser.add_argument("--gguf", type=Path, required=True, help="the weights, as llama.cpp reads them")
    parser.add_argument("--cursors", type=int, default=100)
    options = parser.parse_args()
    pretrained = load_memorizing(options.model)
    root = package(options.package)
    bank = remember(pretrained, root)
    engines = {arm: Engine(pretrained.model, pretrained.name) for arm in OURS}
    peer = Peer(options.peer, options.gguf)
    try:
        for engine in engines.values():
            engine.complete(Request("warm.py", "x = 1\ny = ", 10))
        peer.line([1, 2, 3], 1)
        results = compare(engines, peer, places(documents(root, (".py",)), options.cursors, 3))
    finally:
        peer.close()
    shown = {arm: found["typed_on"]["median_ms"] for arm, found in results.items()}
    bars(options.plot, f"{options.package}: a line after the next character", "milliseconds", shown)
    report("against_llama_cpp", package=options.package, entries=len(bank), cursors=options.cursors, arms=results)


if __name__ == "__main__":
    main()
