"""How much of indexing is the model: tokens/s of `codemem index` against the bare forward pass over the same windows.

    python -m benchmarks.indexing

The bare forward pass runs the same model over the same windows, in the same batches, up to the final hidden states, and
does nothing with them. It takes turns with indexing, group of files by group of files, so that both see the same
machine.
"""

from __future__ import annotations

import shutil
import time

import torch

from benchmarks.corpus import arguments, bars, report
from codemem.memory.manifest import FOLDER
from codemem.memory.store import Store
from codemem.models.encode import Window, plan
from codemem.models.memorizing import MemorizingModel
from codemem.models.pretrained import load_memorizing
from codemem.texts import grouped
from indexer.documents import Document, parsed, read_document
from indexer.packages import package
from indexer.sync import Progress, sync
from indexer.walk import walk


def forward(model: MemorizingModel, batch: list[Window]) -> None:
    """The final hidden states of a batch of windows, for nothing."""
    width = max(len(window.ids) for window in batch)
    ids = torch.tensor([window.ids + [0] * (width - len(window.ids)) for window in batch])
    with model.reads(attention=False, tokens=False):
        model.base.base_model(input_ids=ids, use_cache=False)


def main() -> None:
    options = arguments("Tokens per second of indexing, against the bare forward pass.").parse_args()
    pretrained = load_memorizing(options.model)
    model = pretrained.model
    root = package(options.package)
    shutil.rmtree(root / FOLDER, ignore_errors=True)
    groups = iter(list(grouped(walk(root).files, lambda file: file.size)))
    bare = {"seconds": 0.0, "positions": 0}

    @torch.no_grad()
    def run_bare(step: Progress) -> None:
        start = time.perf_counter()
        files = next(groups, [])
        read = [document for document in map(read_document, files) if isinstance(document, Document)]
        batches = plan(model.tokenizer, [parsed(d.path, d.text, d.language) for d in read])
        begin = time.perf_counter()
        for batch in batches:
            forward(model, batch)
            bare["positions"] += sum(len(window.ids) for window in batch)
        bare["seconds"] += time.perf_counter() - begin
        paused.append(time.perf_counter() - start)

    paused: list[float] = []
    with Store(root, create=True) as store:
        store.bind(pretrained.fingerprint)
        summary = sync(store, lambda: model, run_bare)
    seconds = summary.seconds - sum(paused)
    shutil.rmtree(root / FOLDER)
    speeds = {"codemem index": summary.tokens / seconds, "bare forward pass": summary.tokens / bare["seconds"]}
    bars(options.plot, f"{options.package}: indexing", "tokens per second", speeds)
    report(
        "indexing",
        package=options.package,
        model=pretrained.name,
        layers=list(model.adapter.layers),
        **{**summary.as_json(), "seconds": round(seconds, 2), "tokens_per_second": round(summary.tokens / seconds, 1)},
        bare_seconds=round(bare["seconds"], 2),
        bare_tokens_per_second=round(summary.tokens / bare["seconds"], 1),
        bare_positions=bare["positions"],
        share_of_bare=round(bare["seconds"] / seconds, 3),
    )


if __name__ == "__main__":
    main()
