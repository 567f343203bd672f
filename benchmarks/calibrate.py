"""Train the gates that come with codemem for a model, on packages that are not reported on.

    python -m benchmarks.calibrate --layers 16 18 20 24 --out codemem/models/adapters/smollm2-135m.safetensors

Files of two packages, by a seeded shuffle: most go into the bank, each package the other's distractor; some are trained
on, and some measured on before and after.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

import torch

from benchmarks.corpus import CALIBRATION, report
from codemem.memory.bank import Bank
from codemem.models.adapter import uniform_adapter
from codemem.models.encode import Text, encode
from codemem.models.loading import load_model
from codemem.models.memorizing import MemorizingModel
from codemem.syntax import outline
from codemem.training.gates import Piece, calibrate, loss, pieces, trained_adapter
from indexer.documents import Document
from indexer.packages import documents, package

MEMORY_BYTES = 180_000
TRAINING_FILES, MEASURED_FILES = 14, 8


def split(requirement: str, seed: int) -> tuple[list[Document], list[Document], list[Document]]:
    """A package's files: for memory, for training, for measuring."""
    files = [document for document in documents(package(requirement), (".py",)) if 1024 <= document.size <= 65_536]
    random.Random(seed).shuffle(files)
    memory, size = [], 0
    while size < MEMORY_BYTES:
        memory.append(files.pop())
        size += memory[-1].size
    return memory, files[:TRAINING_FILES], files[TRAINING_FILES : TRAINING_FILES + MEASURED_FILES]


@torch.no_grad()
def measured(model: MemorizingModel, cut: list[Piece], *, enabled: bool) -> float:
    values = []
    for piece in cut:
        with model.reads(attention=enabled, tokens=False, last=piece.scored + 1):
            values.append(float(loss(model, piece)))
    return sum(values) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--layers", type=int, nargs="+", required=True)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    start = time.perf_counter()
    torch.manual_seed(options.seed)
    loaded = load_model(options.model)
    heads = loaded.model.config.num_attention_heads
    model = MemorizingModel(loaded.model, loaded.tokenizer, uniform_adapter(tuple(options.layers), heads))
    model.bank = Bank(model.shapes, loaded.model.dtype)
    parts = [split(requirement, options.seed) for requirement in CALIBRATION]
    for document in (document for memory, _, _ in parts for document in memory):
        text = Text(document.path, document.text, outline(document.text, document.language).boundaries)
        (entries,) = encode(model.base, model.tokenizer, model.sites, [text])
        model.bank.add(document.path, entries)
    texts = [(document.path, document.text) for _, training, _ in parts for document in training]
    cut = [piece for _, _, files in parts for file in files for piece in list(pieces(model, file.path, file.text))[1:4]]
    none, before = (measured(model, cut, enabled=enabled) for enabled in (False, True))
    for step, value in calibrate(model, texts, steps=options.steps, seed=options.seed):
        print(f"step {step + 1}: {value:.3f} nats/token", file=sys.stderr)
    after = measured(model, cut, enabled=True)
    found = {
        "nats_per_token": round(none, 4),
        "untrained": round(before - none, 4),
        "trained": round(after - none, 4),
        "pieces": len(cut),
        "entries": len(model.bank),
    }
    recipe = {
        "corpus": ", ".join(CALIBRATION),
        "steps": str(options.steps),
        "seed": str(options.seed),
        "held out": str(found),
    }
    trained_adapter(model, loaded.name, recipe).save(options.out)
    shares = {layer: [round(b, 2) for b in model.gates[layer].bias.tolist()] for layer in model.adapter.layers}
    report("calibrate", model=loaded.name, bias=shares, seconds=round(time.perf_counter() - start, 1), **found)


if __name__ == "__main__":
    main()
