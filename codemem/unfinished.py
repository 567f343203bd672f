"""Text that breaks off, as all text before a cursor does: what is open at its end, by tree-sitter.

A grammar knows whole code. So the text is parsed for its brackets and quotes, which come out right however broken the
rest is, and once more with those closed that are open at its end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from tree_sitter import Language, Node, Query, QueryCursor

from codemem.grammars import BLOCKS, INDENTED, QUOTES
from codemem.syntax import parse

PARSE_SECONDS = 0.1  # 500 lines take 2 to 3 ms

_CLOSING = {"(": ")", "[": "]", "{": "}", "${": "}"}
_DOCUMENTED = ("function_definition", "class_definition")
_STRING_PREFIX = "rRbBuUfFtT"  # of Python


@dataclass(frozen=True)
class Open:
    """What is not closed. at: where it begins, in bytes; closing: what would close it; quoted: whether it is a string
    or a comment."""

    at: int
    closing: str
    quoted: bool = False


@dataclass(frozen=True)
class Unfinished:
    """data: the text in UTF-8; opened: what is open at its end, innermost last; root: of its tree with that closed."""

    language: str
    data: bytes
    opened: tuple[Open, ...]
    root: Node

    @property
    def quoted(self) -> bool:
        """Whether the text ends in a string, or in a comment of several lines."""
        return any(open.quoted for open in self.opened)

    def last_token(self) -> Node | None:
        """The token that the text ends with, comments and the docstring of a definition left out, for which the colon
        before it is returned; None where there is none, and in a string or a comment."""
        token = None if self.quoted else self._last_token()
        if token is not None and token.type == "string_end":
            return _before_docstring(token) or token
        return token

    def opens(self, token: Node) -> bool | None:
        """Whether a token opens a block; None where broken code does not tell."""
        kinds = BLOCKS[self.language].get(token.type)
        if kinds is None or token.parent is None:
            return False
        return None if token.parent.type == "ERROR" else token.parent.type in kinds.split()

    def in_statement(self, start: int) -> bool:
        """Whether the text ends in a string, or in brackets that are not a block's, that began at a byte or later."""
        if not self.opened:
            return False
        inside = next((open for open in self.opened if open.quoted), self.opened[-1])
        if inside.at < start:
            return False
        token = self.root.descendant_for_byte_range(inside.at, inside.at + 1)
        return inside.quoted or (token is not None and self.opens(token) is False)

    def header(self, opener: Node) -> str:
        """The line in which what has the block begins."""
        node = opener.parent or opener
        if node.start_byte == opener.start_byte:
            node = node.parent or node
        start = self.data.rfind(b"\n", 0, node.start_byte) + 1
        return self.data[start:].split(b"\n", 1)[0].decode("utf-8", "replace")

    def end_of_block(self, at: int) -> int | None:
        """Where the block that a token at a byte opens has ended, in bytes; -1 while it has not; None where broken code
        does not tell."""
        token = self.root.descendant_for_byte_range(at, at + 1)
        if token is None or token.parent is None or not self.opens(token):
            return None
        if token.type == "{":
            return -1 if any(open.at == at for open in self.opened) else self._end_in_row(token.parent)
        if self.language in INDENTED:
            block = next((node for node in _behind(token) if node.type == "block"), None)
            if block is None:
                return None
            end = self.data.find(b"\n", block.end_byte)
            return end if end >= 0 and self.data[end:].strip() else -1
        kinds = (*BLOCKS[self.language][":"].split(), "}")
        following = next((node for node in _behind(token.parent) if node.type in kinds), None)
        if following is None or following.start_byte >= len(self.data):
            return -1
        return len(self.data[: following.start_byte].rstrip())

    def _end_in_row(self, block: Node) -> int:
        """The end of the outermost piece of code that ends in the row in which a block does, as with the `});` of a
        function in a call; where something goes on in that row, as with `} else {`, that of the brackets."""
        row, outermost = block.end_point.row, block
        while (outer := outermost.parent) is not None and outer.type != "ERROR" and outer.end_point.row == row:
            outermost = outer
        rest = self.data[outermost.end_byte :].split(b"\n", 1)[0]
        end, marks = outermost.end_byte, b";,"
        if rest.strip(b" \t\r;,)]}"):
            end, marks = block.end_byte, b")];,"
        while self.data[end : end + 1] and self.data[end] in marks:
            end += 1
        return end

    def _last_token(self) -> Node | None:
        """The last one that is no comment; None where there is none, and in a comment that ends with its line."""
        end = len(self.data)
        while end := len(self.data[:end].rstrip()):
            node = self.root.descendant_for_byte_range(end - 1, end)
            while node is not None and node.parent is not None and "comment" in node.parent.type:
                node = node.parent
            if node is None or "comment" not in node.type:
                return node
            if not self.data.endswith(b"*/", 0, end) and b"\n" not in self.data[end:]:
                return None
            end = node.start_byte
        return None


def unfinished(text: str, language: str) -> Unfinished | None:
    """None for a language that is not in `grammars.BLOCKS`, and where it takes too long to parse the text."""
    if language not in BLOCKS:
        return None
    data = text.encode("utf-8", "replace")
    comment = -1 if language in INDENTED else data.rfind(b"/*")
    if comment < data.rfind(b"*/"):
        comment = -1
    parsed = parse(text if comment < 0 else f"{text}*/", language, PARSE_SECONDS)
    if parsed is None:
        return None
    grammar, root = parsed
    opened = _opened(QueryCursor(_marks(grammar, language)).captures(root).get("mark", []), data, language)
    if comment >= 0 and (node := root.descendant_for_byte_range(comment, comment + 1)) and "comment" in node.type:
        opened.append(Open(comment, "*/", quoted=True))
    if opened:
        closing = "".join(open.closing for open in reversed(opened))
        # In a row of its own, unless that would break a string.
        row = "" if any(open.quoted and open.closing in _short_quotes(language) for open in opened) else "\n"
        if (parsed := parse(f"{text}{row}{closing}", language, PARSE_SECONDS)) is None:
            return None
        root = parsed[1]
    return Unfinished(language, data, tuple(opened), root)


def _opened(marks: list[Node], data: bytes, language: str) -> list[Open]:
    """What `marks` leave open. Of strings that end with their line only those of the last one count: the others have
    ended."""
    short = _short_quotes(language)
    last_row = data.rfind(b"\n") + 1
    opened: list[Open] = []
    for node in sorted(marks, key=lambda node: node.start_byte):
        at, kind = node.start_byte, node.type
        mark = data[at : node.end_byte].decode("utf-8", "replace")
        if kind in _CLOSING.values():
            # tree-sitter adds marks of no length where it misses some.
            if mark:
                _close(opened, kind)
        elif kind in _CLOSING:
            opened.append(Open(at, _CLOSING[kind]))
        elif (quote := mark.lstrip(_STRING_PREFIX)) and (at >= last_row or quote not in short):
            if opened and opened[-1] == Open(opened[-1].at, quote, quoted=True) and kind != "string_start":
                opened.pop()
            elif kind != "string_end":
                opened.append(Open(at, quote, quoted=True))
    return opened


def _close(opened: list[Open], closing: str) -> None:
    """Take what a bracket closes off, with all inside it. What seems to stand in an open string closes nothing outside
    it, and other brackets than a curly one close nothing outside that."""
    for place in reversed(range(len(opened))):
        if opened[place].quoted:
            return
        if opened[place].closing == closing:
            del opened[place:]
            return
        if opened[place].closing == "}":
            return


def _before_docstring(end: Node) -> Node | None:
    """The colon of the definition whose docstring ends here; None where the string is another one."""
    string = end.parent
    if string is not None and string.parent is not None and string.parent.type == "expression_statement":
        string = string.parent
    block = string.parent if string is not None else None
    if block is None or block.parent is None or block.parent.type not in _DOCUMENTED:
        return None
    first = next((node for node in block.named_children if node.type != "comment"), None)
    return next((node for node in block.parent.children if node.type == ":"), None) if first == string else None


def _behind(node: Node) -> Iterator[Node]:
    """The siblings that follow a node."""
    while (following := node.next_sibling) is not None:
        yield following
        node = following


def _short_quotes(language: str) -> list[str]:
    return QUOTES[language][0].split()


@cache
def _marks(grammar: Language, language: str) -> Query:
    """Finds brackets, and what strings begin and end with."""
    tokens = [*_CLOSING, *_CLOSING.values(), *" ".join(QUOTES[language]).split()]
    kinds = [json.dumps(token) for token in dict.fromkeys(tokens) if grammar.id_for_node_kind(token, False) is not None]
    kinds += [
        f"({kind})" for kind in ("string_start", "string_end") if grammar.id_for_node_kind(kind, True) is not None
    ]
    query: Query = Query(grammar, f"[{' '.join(kinds)}] @mark")
    return query
