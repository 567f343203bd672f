"""What packed weights save, and what they lose: true text token by token, with the weights packed and in 16 bits.

    python -m benchmarks.weights --model MODEL

Each document is read both ways, one after the other; memory is empty.
"""

from __future__ import annotations

import statistics
import time

import torch

from benchmarks.corpus import arguments, bars, report
from codemem.models.llama import LlamaDecoder
from codemem.models.memorizing import MemorizingModel
from codemem.models.pretrained import load_memorizing
from codemem.models.tokenizer import tokenize
from indexer.packages import documents, package

CONTEXT = 512  # tokens of a document that are read at once, before those that are measured
WAYS = ("packed", "16 bits")


def read_alone(model: MemorizingModel, ids: list[int], packed: bool) -> tuple[list[float], list[int], float]:
    """Nats of each token behind the first CONTEXT + 1, the most likely one in its place, and seconds a token."""
    decoder = model.decoder()
    assert isinstance(decoder, LlamaDecoder)
    matrices = decoder.weights.matrices
    packs, compiled = [matrix.packed for matrix in matrices], decoder.weights.compiled
    try:
        if not packed:
            decoder.weights.compiled = False
            for matrix in matrices:
                matrix.packed = None
        decoder.read(ids[:CONTEXT])
        start = time.perf_counter()
        rows = torch.cat([decoder.read([token]) for token in ids[CONTEXT:-1]])
        seconds = (time.perf_counter() - start) / len(rows)
    finally:
        decoder.weights.compiled = compiled
        for matrix, pack in zip(matrices, packs, strict=True):
            matrix.packed = pack
    truth = torch.tensor(ids[CONTEXT + 1 :])
    nats = -rows.log_softmax(dim=-1).gather(1, truth[:, None]).squeeze(1)
    return nats.tolist(), rows.argmax(dim=-1).tolist(), seconds


def main() -> None:
    parser = arguments("Packed weights against the same in 16 bits.")
    parser.add_argument("--documents", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=48, help="of each that are measured")
    options = parser.parse_args()
    pretrained = load_memorizing(options.model)
    nats: dict[str, list[float]] = {way: [] for way in WAYS}
    likely: dict[str, list[int]] = {way: [] for way in WAYS}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for document in documents(package(options.package), (".py",)):
        ids = tokenize(pretrained.model.tokenizer, document.text)[0][: CONTEXT + 1 + options.tokens]
        if len(ids) < CONTEXT + 1 + options.tokens:
            continue
        for way in WAYS:
            lost, first, each = read_alone(pretrained.model, ids, way == "packed")
            nats[way] += lost
            likely[way] += first
            seconds[way].append(each)
        if len(seconds["packed"]) == options.documents:
            break
    ms = {way: round(1000 * statistics.median(times), 1) for way, times in seconds.items()}
    bars(options.plot, f"{pretrained.name}: time per token", "milliseconds", ms)
    alike = [one == other for one, other in zip(*likely.values(), strict=True)]
    report(
        "weights",
        model=pretrained.name,
        package=options.package,
        documents=len(seconds["packed"]),
        tokens=len(nats["packed"]),
        ms_per_token=ms,
        faster=round(statistics.median(s / p for p, s in zip(*seconds.values(), strict=True)), 2),
        nats={way: round(statistics.mean(found), 4) for way, found in nats.items()},
        same_most_likely=round(statistics.mean(alike), 4),
    )


if __name__ == "__main__":
    main()
