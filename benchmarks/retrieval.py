"""What reading memory costs while generating, and how good the search is.

    python -m benchmarks.retrieval

Both on prompts from held-out files: seconds per generated token with and without memory, taken in turns, and recall@k
of the bank's index against exact search for the very queries that those prompts and tokens make.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict

import torch
from torch import Tensor
from transformers import DynamicCache

from benchmarks.corpus import arguments, bars, held_out, remember, report
from codemem.memory.bank import Bank
from codemem.memory.knn import ExactIndex, Hidden, IVFIndex
from codemem.models.memorizing import MemorizingModel
from codemem.models.pretrained import load_memorizing
from codemem.training.gates import pieces

Queries = dict[int, list[Tensor]]


class RecordingBank(Bank):
    """A view of a bank that keeps the queries it answers."""

    def __init__(self, bank: Bank) -> None:
        vars(self).update(vars(bank))
        self.queries: Queries = defaultdict(list)

    def search(self, layer: int, queries: Tensor, k: int) -> Tensor:
        self.queries[layer].append(queries)
        return super().search(layer, queries, k)


@torch.inference_mode()
def seconds_per_token(
    model: MemorizingModel, prompt: Tensor, tokens: int, *, enabled: bool
) -> tuple[list[float], float]:
    """The time of each of so many greedy steps after a prompt [1, T], and that of the prompt itself."""
    cache = DynamicCache(config=model.base.config)
    with model.reads(attention=enabled, tokens=enabled):
        ids, times = prompt, []
        for _ in range(tokens + 1):
            start = time.perf_counter()
            logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            ids = logits[:, -1:].argmax(-1)
            times.append(time.perf_counter() - start)
    return times[1:], times[0]


def recall(bank: Bank, queries: Queries, k: int) -> dict[int, float]:
    """Share of the k exact nearest neighbours that the bank's index finds, by layer."""
    found = {}
    for layer, recorded in queries.items():
        kv_heads, d = bank.shapes[layer]
        exact = ExactIndex(kv_heads, d, torch.float32, torch.device("cpu"))
        for path in bank.documents:
            exact.add(bank.entries(path).layers[layer][:, :, 0].transpose(0, 1).float())
        hits = total = 0
        for batch in torch.split(torch.cat(recorded, dim=1), 64, dim=1):
            nearest = exact.search(batch, k, Hidden(torch.zeros(len(bank), dtype=torch.bool)))
            returned = bank.search(layer, batch, k)
            hits += int((nearest.unsqueeze(-1) == returned.unsqueeze(-2)).any(-1).sum())
            total += nearest.numel()
        found[layer] = round(hits / total, 4)
    return found


def main() -> None:
    parser = arguments("Time per generated token with memory, and recall of the index on real queries.")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=24, help="generated after each prompt")
    parser.add_argument("--nprobe", type=int, help="cells searched, in place of the index's own number")
    options = parser.parse_args()
    pretrained = load_memorizing(options.model)
    model = pretrained.model
    root, files = held_out(options.package)
    remembered = remember(pretrained, root)
    if options.nprobe:
        for index in remembered.indexes.values():
            assert isinstance(index, IVFIndex)
            index.nprobe = options.nprobe
    long = [piece for file in files for piece in list(pieces(model, file.path, file.text))[1:2] if piece.scored == 256]
    prompts = [piece.ids for piece in (long * options.prompts)[: options.prompts]]
    steps: dict[bool, list[float]] = {True: [], False: []}
    prefill: dict[bool, list[float]] = {True: [], False: []}
    ratios = []
    for prompt in prompts:
        medians = {}
        for enabled in (False, True):
            times, first = seconds_per_token(model, prompt, options.tokens, enabled=enabled)
            steps[enabled] += times
            prefill[enabled].append(first)
            medians[enabled] = statistics.median(times)
        ratios.append(medians[True] / medians[False])
    bank = RecordingBank(remembered)
    model.bank = bank
    for prompt in prompts:
        seconds_per_token(model, prompt, 8, enabled=True)
    queries, bank.queries = bank.queries, defaultdict(list)
    asked = sum(batch.shape[0] * batch.shape[1] for recorded in queries.values() for batch in recorded)
    by_layer = recall(bank, queries, model.adapter.k)
    shown = {
        f"{'with' if enabled else 'without'} memory": 1000 * statistics.median(steps[enabled])
        for enabled in (False, True)
    }
    bars(options.plot, f"{options.package}: time per generated token", "milliseconds", shown)
    report(
        "retrieval",
        package=options.package,
        model=pretrained.name,
        entries=len(bank),
        layers=list(model.adapter.layers),
        nprobe={str(layer): getattr(index, "nprobe", None) for layer, index in bank.indexes.items()},
        ms_per_token_without=round(1000 * statistics.median(steps[False]), 2),
        ms_per_token_with=round(1000 * statistics.median(steps[True]), 2),
        ratio_median=round(statistics.median(ratios), 3),
        ratio_range=[round(min(ratios), 3), round(max(ratios), 3)],
        ms_prefill_without=round(1000 * statistics.median(prefill[False]), 1),
        ms_prefill_with=round(1000 * statistics.median(prefill[True]), 1),
        recall_by_layer=by_layer,
        recall=round(statistics.mean(by_layer.values()), 4),
        queries=asked,
    )


if __name__ == "__main__":
    main()
