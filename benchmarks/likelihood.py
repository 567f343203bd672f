"""What memory does to the likelihood of held-out files: none, memory, and two controls of the same size.

    python -m benchmarks.likelihood

Controls: "random" has keys and values drawn from a normal distribution with the mean and variance of each real head's,
dimension by dimension; "shuffled" has the real keys, each with another entry's value.
"""

from __future__ import annotations

import time

import torch

from benchmarks.corpus import arguments, bars, held_out, remember, report
from codemem.evaluation.likelihood import nats
from codemem.evaluation.metrics import paired_bootstrap
from codemem.memory.bank import Bank
from codemem.memory.entries import Entries
from codemem.models.memorizing import MemorizingModel
from codemem.models.pretrained import load_memorizing
from codemem.training.gates import pieces


def control(bank: Bank, kind: str) -> Bank:
    """A bank like the one given, of the same size, that holds nothing worth knowing."""
    generator = torch.Generator().manual_seed(0)
    parts = [bank.entries(path) for path in bank.documents]
    layers = {}
    for layer in bank.shapes:
        pairs = torch.cat([entries.layers[layer] for entries in parts])
        if kind == "shuffled":
            pairs[:, :, 1] = pairs[torch.randperm(len(pairs), generator=generator), :, 1]
        else:
            mean, deviation = pairs.float().mean(0), pairs.float().std(0)
            for rows in torch.split(pairs, 16_384):
                rows.copy_(mean + deviation * torch.randn(rows.shape, generator=generator))
        layers[layer] = pairs
    tokens, lines, columns = (torch.cat([getattr(e, name) for e in parts]) for name in ("tokens", "lines", "columns"))
    result = Bank(bank.shapes, bank.dtype)
    result.add(kind, Entries(tokens, lines, columns, layers))
    return result


def nats_of_files(model: MemorizingModel, texts: list[tuple[str, str]], *, enabled: bool) -> list[tuple[float, int]]:
    """Per held-out file the sum of its tokens' negative log-likelihoods and their number."""
    result = []
    for path, text in texts:
        cut = list(pieces(model, path, text))
        total = sum(nats(model, piece, attention=enabled) for piece in cut)
        result.append((total, sum(piece.scored for piece in cut)))
    return result


def main() -> None:
    parser = arguments("Negative log-likelihood per token of held-out files, with and without memory.")
    parser.add_argument("--held-out", type=int, default=20)
    parser.add_argument("--controls", nargs="*", default=["random", "shuffled"])
    options = parser.parse_args()
    pretrained = load_memorizing(options.model)
    model = pretrained.model
    root, files = held_out(options.package, options.held_out)
    bank = remember(pretrained, root)
    texts = [(file.path, file.text) for file in files]
    start = time.perf_counter()
    none = nats_of_files(model, texts, enabled=False)
    counts = [count for _, count in none]
    tokens = sum(counts)
    base = sum(total for total, _ in none) / tokens
    changes: dict[str, float] = {}
    intervals: dict[str, list[float]] = {}
    for arm in ("memory", *options.controls):
        model.bank = bank if arm == "memory" else control(bank, arm)
        result = nats_of_files(model, texts, enabled=True)
        change = paired_bootstrap([total for total, _ in result], [total for total, _ in none], weights=counts)
        changes[arm] = round(change.difference, 4)
        intervals[arm] = [round(change.low, 4), round(change.high, 4)]
    bars(options.plot, f"{options.package}, held-out files: change by memory", "nats per token", changes)
    report(
        "likelihood",
        package=options.package,
        model=pretrained.name,
        layers=list(model.adapter.layers),
        entries=len(bank),
        files=len(files),
        tokens=tokens,
        nats_per_token=round(base, 4),
        change=changes,
        interval_95=intervals,
        seconds=round(time.perf_counter() - start, 1),
    )


if __name__ == "__main__":
    main()
