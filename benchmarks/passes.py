"""Milliseconds of a forward pass behind a prompt, with the token chosen: by what is read of memory, over one position
and over eight; and the same without what makes it fast here, compiled functions or, on a GPU, the recording.

    python -m benchmarks.passes
"""

from __future__ import annotations

import statistics
import time

from benchmarks.corpus import arguments, bars, remember, report
from benchmarks.decoding import places, searched
from codemem.completion.decode import choose
from codemem.completion.engine import Engine
from codemem.completion.prompt import build_prompt
from codemem.completion.request import Request
from codemem.models.llama import LlamaDecoder
from codemem.models.packed import pack
from codemem.models.pretrained import load_memorizing
from codemem.models.recorded import ROWS
from indexer.packages import documents, package

READS = {
    "no memory": (False, False),
    "attention memory": (True, False),
    "token memory": (False, True),
    "both memories": (True, True),
}


WARMING = 3  # passes that are not counted
# Of computing, on the CPU and on a GPU.
WAYS = (("compiled", "by PyTorch"), ("recorded", "launched"))


def passes(engine: Engine, ids: list[int], count: int, way: str) -> dict[str, list[float]]:
    """What is read -> median milliseconds over one position and over ROWS, taken in turns. way: one of WAYS."""
    model, decoder = engine.model, engine.model.decoder()
    assert isinstance(decoder, LlamaDecoder), "there is no forward pass of our own for this model"
    decoder.weights.recorded, decoder.weights.compiled = way == "recorded", way == "compiled"
    if way == "by PyTorch":
        for matrix in decoder.weights.matrices:
            matrix.packed = pack([layer.weight for layer in matrix.layers], tiled=False)
    chosen = searched(engine, ids)
    with model.reads(attention=False, tokens=False):
        decoder.crop(0)
        decoder.read(ids[:-1])
    times: dict[str, dict[int, list[float]]] = {name: {1: [], ROWS: []} for name in READS}
    for number in range(WARMING + count):
        for rows in (1, ROWS):
            for name, (attention, tokens) in READS.items():
                decoder.crop(len(ids) - 1)
                with model.reads(attention=attention, tokens=tokens, traced=True) as reading:
                    reading.focus = chosen
                    start = time.perf_counter()
                    choose(decoder.read(ids[-1:] * rows, rows)[0])
                    taken = 1000 * (time.perf_counter() - start)
                if number >= WARMING:
                    times[name][rows].append(taken)
    return {name: [round(statistics.median(each), 2) for each in found.values()] for name, found in times.items()}


def main() -> None:
    parser = arguments("Milliseconds of a forward pass.")
    parser.add_argument("--count", type=int, default=200, help="passes of each kind")
    options = parser.parse_args()
    pretrained = load_memorizing(options.model)
    root = package(options.package)
    bank = remember(pretrained, root)
    engine = Engine(pretrained.model, pretrained.name)
    (place,) = places(documents(root, (".py",)), 1, 1)
    request = Request(place.path, place.text, place.offset)
    ids = build_prompt(request, pretrained.model.tokenizer, engine.vocabulary).ids
    gpu = pretrained.model.device.type == "cuda"
    with bank.hiding(place.path):
        found = {way: passes(engine, ids, options.count, way) for way in WAYS[gpu]}
    bars(
        options.plot,
        f"{pretrained.name}: a forward pass over one position",
        "milliseconds",
        {f"{name}, {how}": times[0] for how, each in found.items() for name, times in each.items()},
    )
    report(
        "passes",
        package=options.package,
        model=pretrained.name,
        entries=len(bank),
        prompt=len(ids),
        positions=[1, ROWS],
        milliseconds=found,
    )


if __name__ == "__main__":
    main()
