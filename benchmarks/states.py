"""What keeping final hidden states small loses: nats per token and the neighbours found, against float32.

    python -m benchmarks.states

The states of three documents of a seeded order are the queries, those of the following ones the memory; token memory
with the constant weight and temperature of an untrained mixture, searched exactly.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.corpus import arguments, report
from cli.adapt import CORPUS
from codemem.memory.states import compress, turn
from codemem.models.loading import LoadedModel, load_model
from codemem.models.mixture import DEFAULT_LAMBDA, DEFAULT_TEMPERATURE
from codemem.models.token_memory import NEIGHBOURS
from codemem.models.tokenizer import tokenize
from indexer.packages import documents, package

WINDOW = 1000


@torch.inference_mode()
def states_of(loaded: LoadedModel, text: str) -> tuple[Tensor, Tensor, Tensor]:
    """Of a text's first tokens the states [n, size], the next tokens [n], and the model's probability of them [n]."""
    ids = torch.tensor([tokenize(loaded.tokenizer, text)[0][:WINDOW]])
    final = loaded.model.base_model(input_ids=ids).last_hidden_state[0, 4:-1]
    output: Any = loaded.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    log_probs = output(final).float().log_softmax(-1)
    following = ids[0, 5:]
    return final.float(), following, log_probs.gather(1, following[:, None])[:, 0].exp()


def rounded(states: Tensor, bits: int) -> Tensor:
    """The states with one scale each, in so many bits."""
    most = 2 ** (bits - 1) - 1
    scales: Tensor = states.abs().amax(dim=1, keepdim=True) / most
    return (states / scales).round() * scales


def main() -> None:
    parser = arguments("What keeping final hidden states small loses.")
    parser.set_defaults(package=CORPUS[0])
    parser.add_argument("--tokens", type=int, default=17_000)
    options = parser.parse_args()
    loaded = load_model(options.model)
    files = [d for d in documents(package(options.package), (".py",)) if d.size > 2000]
    random.Random(0).shuffle(files)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    while sum(len(each[1]) for each in found) < options.tokens:
        found.append(states_of(loaded, files[len(found)].text))
    keys, key_tokens = (torch.cat([each[i] for each in found[3:]]) for i in (0, 1))
    queries, targets, probabilities = (torch.cat([each[i] for each in found[:3]]) for i in (0, 1, 2))
    turned_keys, turned_queries = turn(keys), turn(queries)
    centre = keys.mean(0)
    _, _, components = torch.pca_lowrank(keys - centre, 256, niter=2)

    def neighbours(keys: Tensor, queries: Tensor) -> tuple[float, Tensor]:
        middle = keys.mean(0)
        similarity = normalize(queries - middle, dim=1) @ normalize(keys - middle, dim=1).T
        best, rows = similarity.topk(NEIGHBOURS, dim=1)
        right = key_tokens[rows] == targets[:, None]
        memory = ((best * DEFAULT_TEMPERATURE).softmax(dim=1) * right).sum(dim=1)
        mixed = DEFAULT_LAMBDA * memory + (1 - DEFAULT_LAMBDA) * probabilities
        return -float(mixed.log().mean()), rows

    kept = {
        "float32": (keys, queries),
        "8 bits, turned (as kept)": (compress(keys).decode(), turned_queries),
        "8 bits": (rounded(keys, 8), queries),
        "4 bits, turned": (rounded(turned_keys, 4), turned_queries),
        "4 bits": (rounded(keys, 4), queries),
        **{
            f"8 bits of {size} principal components": (
                rounded((keys - centre) @ components[:, :size], 8),
                (queries - centre) @ components[:, :size],
            )
            for size in (256, 128, 64)
        },
    }
    _, exact = neighbours(keys, queries)
    rows = {}
    for name, (small, asking) in kept.items():
        nats, got = neighbours(small, asking)
        shared = (exact.unsqueeze(-1) == got.unsqueeze(-2)).any(-1).float().mean()
        rows[name] = {"nats_per_token": round(nats, 4), "neighbours_shared": round(float(shared), 4)}
    without = -float(probabilities.log().mean())
    report(
        "states",
        package=options.package,
        keys=len(keys),
        queries=len(queries),
        size=keys.shape[1],
        without_memory=round(without, 4),
        kept=rows,
    )


if __name__ == "__main__":
    main()
