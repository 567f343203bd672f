"""Completions at cross-file uses, as they come: what the model writes there without and with memory.

    python -m benchmarks.cross_file --markdown

A cross-file use is a call of something that a held-out file imports from its own package. The cursor stands behind the
opening bracket or the dot; cursors are drawn with a seed, one a file.
"""

from __future__ import annotations

from benchmarks.corpus import arguments, held_out, remember, report
from codemem.completion.engine import Engine
from codemem.completion.request import Request
from codemem.evaluation.tasks import cross_file_uses, draw
from codemem.models.pretrained import load_memorizing


def main() -> None:
    parser = arguments("Completions at cross-file uses in held-out files.")
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--markdown", action="store_true", help="print a table instead of JSON")
    options = parser.parse_args()
    pretrained = load_memorizing(options.model)
    root, files = held_out(options.package)
    remember(pretrained, root)
    engine = Engine(pretrained.model, pretrained.name)
    rows = []
    found = [cross_file_uses(file.path, file.text, file.language, ()) for file in files]
    for use in draw(found, options.count, seed=0):
        request = Request(use.path, use.text, use.offset)
        without, with_memory = (engine.complete(request, memory=memory) for memory in (False, True))
        rows.append(
            {
                "cursor": use.name,
                "before": use.text[: use.offset].rsplit("\n", 1)[-1].strip(),
                "without": without.text,
                "with": with_memory.text,
                "truth": use.truth,
                "provenance": str(with_memory.provenance[0]) if with_memory.provenance else "",
            }
        )
    if not options.markdown:
        report("cross_file", package=options.package, model=pretrained.name, rows=rows)
        return
    print(
        "| cursor | text before it | without memory | with memory | truth | heaviest line of memory |\n|" + "---|" * 6
    )
    for row in rows:
        cells = [
            row["cursor"],
            *(f"`` {row[key]} ``" for key in ("before", "without", "with", "truth")),
            row["provenance"],
        ]
        print("| " + " | ".join(cell.replace("|", "\\|").replace("\n", "⏎") for cell in cells) + " |")


if __name__ == "__main__":
    main()
