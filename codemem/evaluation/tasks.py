"""Line completion as a task: a cursor in a document, and what stands behind it."""

from __future__ import annotations

import ast
import random
import re
import warnings
from bisect import bisect_right
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

from codemem.syntax import spans, symbols_of

LEAST_OF_USE, LEAST_OF_LINE = 4, 8  # characters of a truth
MOST = 120
FIRST_LINES = 10  # licences and imports

_CALL = re.compile(r"\b([^\W\d]\w*)\(")
_PROSE = re.compile(r"\w*(comment|string|heredoc|char_literal|character_literal|regex)\w*")
_COMMENT_OR_IMPORT = re.compile(
    r"\w*(comment|import|include)\w*|use_declaration|using_directive|extern_crate_declaration"
)
# Imports to a person that are something else to a grammar.
_IMPORT = re.compile(r"(.*=\s*)?require(_relative)?\b\s*['\"(]|package\s")


@dataclass(frozen=True)
class Task:
    """path; text: whole document; offset: cursor in characters; truth: rest of the line from the cursor, without
    trailing white space; kind: "cross-file" | "random"."""

    path: str
    text: str
    offset: int
    truth: str
    kind: str

    @property
    def line(self) -> int:
        """From 1."""
        return self.text.count("\n", 0, self.offset) + 1

    @property
    def column(self) -> int:
        """From 1, in characters."""
        return self.offset - self.text.rfind("\n", 0, self.offset)

    @property
    def name(self) -> str:
        return f"{self.path}:{self.line}:{self.column}"


def cross_file_uses(path: str, text: str, language: str | None, defined_elsewhere: Container[str]) -> list[Task]:
    """The places in a document where something of another document is called, with the cursor behind the opening
    bracket, or behind the dot of a method.

    Python says what comes from another document: what is imported from the document's own package. In other languages
    it is what this document does not define and others do: `defined_elsewhere`, bare names as `definitions` gives them.
    """
    python = language == "python"
    places = _python_uses(path, text) if python else _named_uses(text, language, defined_elsewhere)
    return list(_tasks(path, text, places, "cross-file", LEAST_OF_USE))


def random_lines(path: str, text: str, language: str | None) -> list[Task]:
    """Every line of code behind the first ones of a document, with the cursor behind its indentation."""
    lines = text.split("\n")
    starts = _line_starts(lines)
    passed_over = spans(text, language, _COMMENT_OR_IMPORT)
    docstrings = _docstring_lines(text) if language == "python" else frozenset()
    places = [
        offset
        for number, (line, start) in enumerate(zip(lines, starts, strict=True), 1)
        if number > FIRST_LINES
        and number not in docstrings
        and not _IMPORT.match(line.lstrip())
        and not _inside(passed_over, offset := start + len(line) - len(line.lstrip()))
    ]
    return list(_tasks(path, text, places, "random", LEAST_OF_LINE))


def definitions(text: str, language: str | None) -> frozenset[str]:
    """The bare names of what a document defines."""
    return frozenset(symbol.name.rpartition(".")[2] for symbol in symbols_of(text, language))


def draw(tasks_per_document: Sequence[Sequence[Task]], count: int, seed: int) -> list[Task]:
    """So many tasks, at most one a document as long as there are documents enough, by a seeded draw."""
    chance = random.Random(seed)
    each = [chance.sample(tasks, len(tasks)) for tasks in tasks_per_document if tasks]
    chance.shuffle(each)
    turns = range(max(map(len, each), default=0))
    return [tasks[turn] for turn in turns for tasks in each if turn < len(tasks)][:count]


def _tasks(path: str, text: str, places: Sequence[int], kind: str, least: int) -> Iterator[Task]:
    for offset in places:
        end = text.find("\n", offset)
        truth = text[offset : end if end >= 0 else None].rstrip()
        if len(truth.lstrip()) >= least and len(truth) <= MOST:
            yield Task(path, text, offset, truth, kind)


def _python_uses(path: str, text: str) -> list[int]:
    tree = _parse(text)
    if tree is None:
        return []
    folders = path.removeprefix("src/").split("/")
    imported = {
        (alias.asname or alias.name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.level > 0 or (node.module or "").split(".")[0] == folders[0])
        for alias in node.names
    }
    lines = text.split("\n")
    starts = _line_starts(lines)
    places = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        root, function = node.func, node.func
        while isinstance(root, ast.Attribute):
            root = root.value
        if not isinstance(root, ast.Name) or root.id not in imported or function.end_lineno is None:
            continue
        line = lines[function.end_lineno - 1]
        end = len(line.encode("utf-8", "replace")[: function.end_col_offset].decode("utf-8", "replace"))
        start = starts[function.end_lineno - 1]
        # Not everywhere is the name where the tree says, and the bracket directly behind it: inside of an f-string
        # before Python 3.12, or in `name (x)`.
        if isinstance(function, ast.Attribute):
            if line[:end].endswith(f".{function.attr}"):
                places.append(start + end - len(function.attr))
        elif line[:end].endswith(root.id) and line[end : end + 1] == "(":
            places.append(start + end + 1)
    return places


def _named_uses(text: str, language: str | None, defined_elsewhere: Container[str]) -> list[int]:
    own, prose = definitions(text, language), spans(text, language, _PROSE)
    return [
        call.end()
        for call in _CALL.finditer(text)
        if call[1] not in own and call[1] in defined_elsewhere and not _inside(prose, call.start())
    ]


def _parse(text: str) -> ast.Module | None:
    """The tree, or None for what is no Python. Lines are those that end at "\\n"."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the text does wrong
            return ast.parse(text.replace("\r", " "))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _docstring_lines(text: str) -> frozenset[int]:
    """Lines (from 1) of strings that are statements."""
    tree = _parse(text)
    return frozenset(
        line
        for node in (ast.walk(tree) if tree else ())
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    )


def _line_starts(lines: list[str]) -> list[int]:
    starts = [0]
    for line in lines[:-1]:
        starts.append(starts[-1] + len(line) + 1)
    return starts


def _inside(ascending: list[tuple[int, int]], offset: int) -> bool:
    """Whether one of these spans covers the offset."""
    place = bisect_right(ascending, offset, key=lambda span: span[0]) - 1
    return place >= 0 and offset < ascending[place][1]
