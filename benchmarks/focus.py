"""What attention should search of a large memory: all of it, or what token memory votes for, more or less of it.

    python -m benchmarks.focus --beside openai-agents==0.24.0

Lines of documents held out of a package, whose other documents are in memory beside those of other packages, which are
of no use. The true line is run through the model once for every way.
"""

from __future__ import annotations

from statistics import mean, median
from time import perf_counter
from typing import Any

import torch

from benchmarks.corpus import arguments, bars, remember, report
from cli.adapt import CORPUS
from codemem.completion import recall
from codemem.completion.prompt import build_prompt
from codemem.completion.request import Request
from codemem.completion.vocabulary import Vocabulary
from codemem.evaluation.arms import CONTEXT
from codemem.evaluation.evaluate import Source, split
from codemem.evaluation.lines import READING, true_tokens
from codemem.memory.banks import Banks
from codemem.models.pretrained import load_memorizing
from indexer.packages import documents, package

# Entries that are searched, and lines around a window that was voted for.
WAYS = {f"{entries:,} entries": (entries, margin) for entries, margin in ((2_048, 10), (4_096, 20), (8_192, 20))}


def main() -> None:
    parser = arguments("What attention should search of a large memory.")
    parser.set_defaults(package=CORPUS[0])
    parser.add_argument("--beside", nargs="*", default=[], help="packages that are in memory too")
    parser.add_argument("--tasks", type=int, default=60)
    options = parser.parse_args()
    model = (pretrained := load_memorizing(options.model)).model
    found = [Source(d.path, d.text, d.language) for d in documents(package(options.package))]
    divided = split(found, 0.3, options.tasks, 1)
    bank = remember(pretrained, package(options.package))
    for document in divided.held_out:
        bank.drop(document.path)
    others = {f"../{name}/": remember(pretrained, package(name)) for name in options.beside}
    memory = Banks(bank, others)
    vocabulary = Vocabulary(model.tokenizer)
    rows: dict[str, list[tuple[float, float, int, float]]] = {}
    for task in divided.tasks:
        model.bank = memory
        request = Request(task.path, task.text, task.offset, context=CONTEXT)
        prompt = build_prompt(request, model.tokenizer, vocabulary)
        truth, decoder = true_tokens(model.tokenizer, task, prompt), model.decoder()
        if not truth:
            continue
        wanted = torch.tensor(truth)
        votes = recall.ask(model, decoder, prompt.ids)
        ways: dict[str, Any] = {"all": None} | {name: recall.around(memory, votes, *way) for name, way in WAYS.items()}
        for tokens in (False, True):
            for name, searched in {"nothing": None, **ways}.items():
                decoder.crop(max(0, len(prompt.ids) - READING))
                start = perf_counter()
                with model.reads(attention=name != "nothing", tokens=tokens, last=None) as reading:
                    reading.focus = searched
                    ids = prompt.ids[len(decoder.tokens) :] + truth[:-1]
                    logits = decoder.read(ids, len(truth)).log_softmax(-1)
                seconds = perf_counter() - start
                nats = -float(logits.gather(1, wanted[:, None]).sum())
                right = float((logits.argmax(-1) == wanted).sum())
                label = f"{name} and token memory" if tokens else name
                rows.setdefault(label, []).append((nats, right, len(truth), seconds))
    results = {
        name: {
            "nats_per_token": round(sum(row[0] for row in each) / sum(row[2] for row in each), 4),
            "tokens_right": round(sum(row[1] for row in each) / sum(row[2] for row in each), 4),
            "ms": round(1000 * median(row[3] for row in each), 1),
        }
        for name, each in rows.items()
    }
    bars(options.plot, "What attention searches", "nats/token", {k: v["nats_per_token"] for k, v in results.items()})
    report(
        "focus",
        package=options.package,
        beside=options.beside,
        model=pretrained.name,
        entries=len(memory),
        tasks=len(next(iter(rows.values()))),
        tokens_a_line=round(mean(row[2] for row in next(iter(rows.values()))), 1),
        searched=results,
    )


if __name__ == "__main__":
    main()
