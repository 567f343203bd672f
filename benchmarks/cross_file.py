"""Completions at cross-file uses, as they come: what the model writes there without and with memory.

    python -m benchmarks.cross_file --markdown

A cross-file use is a call of something that a held-out file imports from its own package. The cursor stands behind the
opening bracket or the dot; cursors are drawn with a seed, one a file.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.corpus import arguments, held_out, remember, report
from codemem.completion.engine import Engine
from codemem.completion.request import Request
from codemem.models.pretrained import load_memorizing
from indexer.documents import Document


@dataclass(frozen=True)
class Use:
    """A cursor at a cross-file use. line, column: from 1; truth: the rest of the line."""

    document: Document
    offset: int
    line: int
    column: int
    truth: str


def uses(document: Document) -> Iterator[Use]:
    """The places in a document where something imported from its own package is called."""
    top = document.path.split("/", 1)[0]
    tree = ast.parse(document.text)
    imported = {
        (alias.asname or alias.name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.level > 0 or (node.module or "").split(".")[0] == top)
        for alias in node.names
    }
    lines = document.text.splitlines(keepends=True)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        root, function = node.func, node.func
        while isinstance(root, ast.Attribute):
            root = root.value
        if not isinstance(root, ast.Name) or root.id not in imported or function.end_lineno is None:
            continue
        line = lines[function.end_lineno - 1]
        end = len(line.encode()[: function.end_col_offset].decode())
        # Behind the dot of a method, behind the bracket of a function.
        column = end - len(function.attr) if isinstance(function, ast.Attribute) else end + 1
        truth = line[column:].rstrip("\n")
        if len(truth.strip()) >= 4:
            offset = sum(map(len, lines[: function.end_lineno - 1])) + column
            yield Use(document, offset, function.end_lineno, column + 1, truth)


def drawn(files: list[Document], count: int, seed: int = 0) -> list[Use]:
    """So many uses, at most one a file as long as there are files enough, by a seeded draw."""
    draw = random.Random(seed)
    each = [draw.sample(found, len(found)) for file in files if (found := list(uses(file)))]
    draw.shuffle(each)
    return [found[turn] for turn in range(count) for found in each if turn < len(found)][:count]


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
    for use in drawn(files, options.count):
        request = Request(use.document.path, use.document.text, use.offset)
        without, with_memory = (engine.complete(request, memory=memory) for memory in (False, True))
        rows.append(
            {
                "cursor": f"{use.document.path}:{use.line}:{use.column}",
                "before": use.document.text[: use.offset].rsplit("\n", 1)[-1].strip(),
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
