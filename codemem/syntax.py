"""What tree-sitter knows of a file: language, definitions, the symbol around a line.

Lines are 1-based and end at "\\n" alone, as tree-sitter counts them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath

import tree_sitter_language_pack
from tree_sitter import Language, Node, Parser, Query, QueryCursor, Tree

from codemem.grammars import (
    DEFINITIONS,
    EXTENSIONS,
    FILE_NAMES,
    INTERPRETERS,
    WRAPPERS,
)

# Of the processor. A megabyte of C++ takes about 2; error recovery can be quadratic in what makes no sense.
PARSE_SECONDS = 5.0
MAX_MARKS = 2000  # characters in a row that are no letter or digit: a query is quadratic in unnamed siblings
MAX_NAME = 80  # characters of one name in a symbol; a heading or a C++ operator can be a paragraph

# Kinds of node that define something, in grammars without a row in DEFINITIONS.
_DEFINING_KIND = re.compile(
    r"(\w+_)?(function|func|fun|method|subroutine|procedure|constructor|class|struct|interface|module|enum|trait"
    r"|object|protocol|record|contract|namespace|macro|union|library)"
    r"_(def|defn|decl|definition|declaration|declaration_statement|statement|item|signature)"
)
_NAMING_KIND = re.compile(r"(\w+_)?(identifier|name|word)")
_TYPE_ARGUMENTS = re.compile(r"[<\[(].*", re.DOTALL)
_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)(?:[ \t]+#+)?[ \t]*$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_MARKS = re.compile(r"\W{64,}")
_PIECE = 64 * 1024  # bytes
_SEPARATORS = re.compile(r"::|[\\:]")


@dataclass(frozen=True)
class Symbol:
    """A definition: qualified dotted name, first and last line (1-based, both inside, decorators too)."""

    name: str
    start_line: int
    end_line: int


def language_of(path: str) -> str | None:
    """Name of the language of a file, by its name alone; None where the name says nothing."""
    name = PurePosixPath(path).name
    if name in FILE_NAMES:
        return FILE_NAMES[name]
    if name.startswith(("Dockerfile.", "Containerfile.")):
        return "dockerfile"
    return EXTENSIONS.get(PurePosixPath(name).suffix.lower())


def language_of_shebang(text: str) -> str | None:
    """Name of the language that a first line such as `#!/usr/bin/env python3` asks for."""
    if not text.startswith("#!"):
        return None
    words = text[2:].split("\n", 1)[0].split()
    programs = [word.rsplit("/", 1)[-1] for word in words if not word.startswith("-") and "=" not in word]
    program = next((program for program in programs if program != "env"), "")
    return INTERPRETERS.get(program.rstrip("0123456789."))


def symbols_of(text: str, language: str | None) -> tuple[Symbol, ...]:
    """What `text` defines, by first line, outer before inner; of broken code what can be parsed, of an unknown language
    nothing.

    Never raises. A text that takes longer than PARSE_SECONDS to parse, or has more than MAX_MARKS marks in a
    row, has no symbols.
    """
    if language == "markdown":
        return _headings(text)
    # A lone surrogate cannot be encoded; "?" keeps lines where they are.
    data = text.encode("utf-8", "replace")
    parsed = _parsed(text, data, language)
    return _read(*parsed) if parsed else ()


def spans(text: str, language: str | None, kind: re.Pattern[str]) -> list[tuple[int, int]]:
    """Character offsets (start, end) of the outermost nodes whose kind, a name of the grammar, matches as a whole;
    ascending. Empty where `symbols_of` would be, and for Markdown."""
    data = text.encode("utf-8", "replace")
    parsed = _parsed(text, data, language) if language != "markdown" else None
    if parsed is None:
        return []
    grammar, root = parsed
    wanted = [name for name in _kinds(grammar.language) if kind.fullmatch(name)]
    if not wanted:
        return []
    query = Query(grammar.language, "\n".join(f"({name}) @node" for name in wanted))
    nodes = QueryCursor(query).captures(root).get("node", [])
    found: list[tuple[int, int]] = []
    read, offset = 0, 0  # what is behind the last span, in bytes and in characters
    for node in sorted(nodes, key=lambda node: (node.start_byte, -node.end_byte)):
        if node.start_byte < read:
            continue
        start = offset + len(data[read : node.start_byte].decode("utf-8", "replace"))
        offset = start + len(data[node.start_byte : node.end_byte].decode("utf-8", "replace"))
        read = node.end_byte
        found.append((start, offset))
    return found


def enclosing_symbol(symbols: Iterable[Symbol], line: int) -> str | None:
    """Name of the innermost symbol that holds the 1-based `line`."""
    inner: Symbol | None = None
    for symbol in symbols:
        if symbol.start_line <= line <= symbol.end_line and (
            inner is None or (symbol.start_line, -symbol.end_line) >= (inner.start_line, -inner.end_line)
        ):
            inner = symbol
    return inner.name if inner else None


@dataclass(frozen=True)
class _Grammar:
    language: Language
    query: Query


@cache
def _grammar(name: str) -> _Grammar | None:
    try:
        # Below 1.0 the grammars are in the wheel of the pack; later ones download each at its first use.
        language = tree_sitter_language_pack.get_language(name)  # type: ignore[arg-type]
    except LookupError:
        return None
    kinds = _kinds(language)
    rows = DEFINITIONS.get(name, tuple(kind for kind in kinds if _DEFINING_KIND.fullmatch(kind)))
    patterns = [row if row.startswith("(") else f"({row}) @definition" for row in rows]
    patterns += [f"({kind}) @wrapper" for kind in kinds if kind in WRAPPERS]
    return _Grammar(language, Query(language, "\n".join(patterns)))


def _kinds(language: Language) -> list[str]:
    """The names of a grammar's nodes."""
    return sorted(
        {
            kind
            for number in range(language.node_kind_count)
            if language.node_kind_is_named(number)
            and language.node_kind_is_visible(number)
            and (kind := language.node_kind_for_id(number))
        }
    )


def parse(text: str, language: str, seconds: float) -> tuple[Language, Node] | None:
    """The grammar of a language and the root of the tree of `text`; None where there is no grammar, too many marks, or
    too little time."""
    parsed = _parsed(text, text.encode("utf-8", "replace"), language, seconds)
    return (parsed[0].language, parsed[1]) if parsed else None


def _parsed(text: str, data: bytes, language: str | None, seconds: float | None = None) -> tuple[_Grammar, Node] | None:
    """The grammar of a language and the root of the tree of `text`, encoded as `data`; None where there is no
    grammar, too many marks or too little time, PARSE_SECONDS unless said."""
    grammar = _grammar(language) if language else None
    if grammar is None or any(len(run) > MAX_MARKS for run in _MARKS.findall(text)):
        return None
    tree = _parse(grammar.language, data, PARSE_SECONDS if seconds is None else seconds)
    return (grammar, tree.root_node) if tree else None


def _parse(language: Language, data: bytes, seconds: float) -> Tree | None:
    """The tree, or None after so many seconds of the processor, so that a text has a tree on a busy machine too.
    Progress is reported only where the source is read in pieces."""
    end = time.thread_time() + seconds
    try:
        return Parser(language).parse(
            lambda byte, _: data[byte : byte + _PIECE],
            progress_callback=lambda _byte, _error: time.thread_time() > end,  # True stops
        )
    except ValueError:
        return None


def _headings(text: str) -> tuple[Symbol, ...]:
    """Markdown's ATX headings, each with all that is below it (CommonMark 0.31, 4.2 and 4.5).

    Without tree-sitter, whose Markdown scanner ends the process with a segmentation fault on some thousand
    nested blocks, as in "* * * * ...".
    """
    lines = text.split("\n")
    found: list[tuple[int, int, str]] = []  # row, level, title
    fence = ""
    for row, line in enumerate(lines):
        if mark := _FENCE.match(line):
            if not fence:
                fence = mark[1]
            elif mark[1].startswith(fence) and not line[mark.end() :].strip():
                fence = ""
        elif not fence and (heading := _HEADING.match(line)):
            found.append((row, len(heading[1]), _clean(heading[2])))
    last_row = len(lines) - 1 - (not lines[-1] and len(lines) > 1)
    symbols: list[Symbol] = []
    above: list[tuple[int, str]] = []
    for place, (row, level, title) in enumerate(found):
        above = [outer for outer in above if outer[0] < level] + [(level, title)]
        end = next((later - 1 for later, other, _ in found[place + 1 :] if other <= level), last_row)
        symbols.append(Symbol(".".join(name for _, name in above if name), row + 1, end + 1))
    return tuple(symbol for symbol in symbols if symbol.name)


@dataclass(frozen=True)
class _Around:
    """A node around the one being read: a definition with its qualified name, or a wrapper without one."""

    end: int  # byte
    first_row: int
    last_row: int
    name: str | None


def _read(grammar: _Grammar, root: Node) -> tuple[Symbol, ...]:
    names: dict[Node, str | None] = {}  # of each definition; None where the name is the node's own
    wrappers: set[Node] = set()
    for _, captures in QueryCursor(grammar.query).matches(root):
        wrappers.update(captures.get("wrapper", ()))
        for node in captures.get("definition", ()):
            parts = [_clean(_text(part)) for part in captures.get("name", ())]
            names.setdefault(node, ".".join(parts) or None)

    symbols: list[Symbol] = []
    around: list[_Around] = []
    nodes = [*wrappers, *names]
    nodes.sort(key=lambda node: (node.start_byte, -node.end_byte, node not in wrappers))
    for node in nodes:
        while around and around[-1].end <= node.start_byte:
            around.pop()
        first, last = node.start_point.row, _last_row(node)
        if node in wrappers:
            around.append(_Around(node.end_byte, first, last, None))
            continue
        name = names[node] or _own_name(node)
        if not name:
            continue
        for outer in reversed(around):
            if outer.name is not None:
                break
            if outer.last_row == last:
                first = outer.first_row
        owner = next((outer for outer in reversed(around) if outer.name is not None), None)
        if owner and owner.name == name and owner.first_row == first:
            continue  # `typedef struct node {...} node;` is one thing, not node.node
        qualified = f"{owner.name}.{name}" if owner else name
        symbols.append(Symbol(qualified, first + 1, last + 1))
        around.append(_Around(node.end_byte, first, last, qualified))
    return tuple(symbols)


def _own_name(node: Node) -> str:
    """The name that a node's own fields give; "" for an anonymous one."""
    named = node.child_by_field_name("name")
    if named is None:
        named = node
        while (inner := _declarator(named)) is not None:
            named = inner
    if named is node:
        found = next((child for child in node.named_children if _NAMING_KIND.fullmatch(child.type)), None)
        if found is None:
            return ""
        named = found
    return _clean(_text(named))


def _declarator(node: Node) -> Node | None:
    """What C wraps a name in, as in `int *(*f)(int)`; a C++ reference does it without naming the field."""
    inner = node.child_by_field_name("declarator")
    if inner is None and node.type in ("reference_declarator", "parenthesized_declarator"):
        inner = next((child for child in node.named_children if child.type.endswith("declarator")), None)
    return inner


def _clean(name: str) -> str:
    """A name as a part of a dotted one: without type arguments, on one line, of bounded length."""
    bare = _TYPE_ARGUMENTS.sub("", name) or name  # an operator such as <=> is all type arguments
    parts = _SEPARATORS.sub(".", " ".join(bare.split())).split(".")
    return ".".join(part for part in parts if part)[:MAX_NAME]


def _text(node: Node) -> str:
    return (node.text or b"").decode("utf-8", "replace")


def _last_row(node: Node) -> int:
    """The row of the last character: some nodes end with their newline, at column 0 of the next row."""
    end = node.end_point
    return end.row - 1 if end.column == 0 and end.row > node.start_point.row else end.row
