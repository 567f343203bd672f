"""What is completed, and where it ends. The golden cases show what comes of it; here are the many small decisions, and
what holds for any text."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codemem import grammars
from codemem.completion.piece import REACH, piece_at
from codemem.completion.stopping import Ending
from codemem.completion.textual import end_of_block, end_of_line
from codemem.syntax import parse

GOLDEN = sorted((Path(__file__).parent / "golden").iterdir())
SUFFIXES = [".py", ".ts", ".go", ".java", ".rs", ".c", ".js", ".tsx", ".cpp", ".cs", ".bzl", ".rb"]


def unit(path: str, text: str) -> str:
    """The cursor is at the bar."""
    return piece_at(path, text.replace("‸", "", 1), text.index("‸")).unit


@pytest.mark.parametrize("path", ["a.py", "a.txt"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def f(x):\n    ‸", "block"),
        ("def f(x):‸", "block"),
        ("def f(x):‸  # what it does", "line"),
        ("def f(x‸):", "line"),
        ("async def f(x):\n‸", "block"),
        ("class A:\n    ‸\n", "block"),
        ("    if x:\n        ‸", "block"),
        ("    else:\n‸", "block"),
        ("for x in y:\n    print(x)\n    ‸", "line"),
        ("def f(\n    x,\n) -> int:\n    ‸", "block"),
        ("with a as b:\n\n\n    ‸", "block"),
        ("def f():\n    ‸\n    return x", "line"),
        ("def f():\n    ‸\nx = 1", "block"),
        ("d = {'key':‸", "line"),
        ("x = y[1:‸", "line"),
        ("classic:‸", "line"),
        ("x = ‸", "line"),
        ("‸", "line"),
    ],
)
def test_units_with_and_without_a_tree(path, text, expected):
    assert unit(path, text) == expected


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("a.txt", "if (x) {\n‸", "block"),
        ("a.txt", "if (x) {‸}", "line"),
        ("a.txt", "} else {\n‸", "block"),
        ("a.py", "try:\n    ‸", "block"),
        ("a.py", "try:\n    a()\nexcept E:‸", "block"),
        ("a.py", "match x:‸", "block"),
        ("a.py", "match x:\n    case [1, *_] if y:‸", "block"),
        ("a.py", "def f(x):  # why\n    # how\n    ‸", "block"),
        ("a.py", "def f(x):  # why‸", "line"),
        ("a.py", 'def f(x):\n    """Doc."""\n    ‸', "block"),
        ("a.py", 'def f(x):\n    y = """Doc."""\n    ‸', "line"),
        ("a.py", 'if x:\n    """Doc."""\n    ‸', "line"),
        ("a.py", 'def f(x):\n    """Doc:‸', "line"),
        ("a.py", "@cache\n‸", "line"),
        ("a.py", "f = lambda x:‸", "line"),
        ("a.py", "x: ‸", "line"),
        ("a.py", "d = {‸", "line"),
        ("a.py", "print('if x:‸", "line"),
        ("a.py", "if (a and\n        b):‸", "block"),
        ("a.py", "x = foo(1,\ndef f(x):\n    ‸", "block"),
        ("a.js", "const f = (a) => {‸", "block"),
        ("a.js", "const f = (a) => ‸", "line"),
        ("a.js", "const f = {‸", "line"),
        ("a.js", "f({‸", "line"),
        ("a.js", "class A {\n  m() {\n    ‸\n  }\n}", "block"),
        ("a.js", "class A {\n  ‸\n  m() {\n  }\n}", "line"),
        ("a.js", "switch (x) {\n  case 1:‸", "block"),
        ("a.js", "x = a ? b :‸", "line"),
        ("a.js", "x = `a {‸", "line"),
        ("a.js", "// if {‸", "line"),
        ("a.js", "/* if {‸", "line"),
        ("a.js", "try {‸", "block"),
        ("a.js", "do {\n  ‸\n}", "block"),
        ("a.tsx", "const A = () => {\n  return <div>{‸", "line"),
        ("a.ts", "type A = {‸", "block"),
        ("a.ts", "enum A {‸", "block"),
        ("a.go", "type A struct {‸", "block"),
        ("a.go", "type A interface {‸", "block"),
        ("a.go", "x := []int{‸", "line"),
        ("a.go", "go func() {‸", "block"),
        ("a.go", "func f() {\n\tselect {\n\tcase <-c:‸", "block"),
        ("a.go", "import (‸", "line"),
        ("a.rs", "impl<'a> A<'a> for B<'a> {‸", "block"),
        ("a.rs", "fn f() {\n    let a = B {‸", "line"),
        ("a.rs", "fn f() {\n    let a = unsafe {‸", "block"),
        ("a.rs", "use a::{‸", "line"),
        ("a.rs", "enum A {‸", "block"),
        ("a.rs", "fn f() { x(|a| {‸", "block"),
        ("a.java", "class A {\n  int[] a = {‸", "line"),
        ("a.java", "class A {\n  Runnable a = () -> {‸", "block"),
        ("a.java", "class A {\n  A() {‸", "block"),
        ("a.java", "record A(int x) {‸", "block"),
        ("a.java", "class A { void f() { try {‸", "block"),
        ("a.c", "struct a b = {‸", "line"),
        ("a.c", "struct a {‸", "block"),
        ("a.c", "int f(void)\n{\n‸", "block"),
        ("a.c", "int f(void) { if (x) {} else {‸", "block"),
        ("a.cpp", "namespace a {\nclass B {‸", "block"),
        ("a.cs", "namespace A { class B { int C {‸", "block"),
        ("a.bzl", "def rule(ctx):\n    ‸", "block"),
    ],
)
def test_units(path, text, expected):
    assert unit(path, text) == expected


@pytest.mark.parametrize(
    ("path", "text", "indent"),
    [
        ("a.py", "  def f():\n    ‸", 2),
        ("a.py", "if (a and\n        b):‸", 0),
        ("a.js", "f(a,\n    (b) => {‸", 4),
        ("a.go", "\tif x {\n\n\t\t‸", 1),
        ("a.c", "  int f(int a,\n        int b)\n  {‸", 2),
        ("a.txt", "a\n    b\n‸", 4),
    ],
)
def test_the_indentation_of_the_header(path, text, indent):
    assert piece_at(path, text.replace("‸", ""), text.index("‸")).indent == indent


def shown(path: str, before: str, written: str, step: int = 1) -> str:
    """What is shown of a text that comes in pieces of so many characters."""
    ending = Ending(piece_at(path, before, len(before)), "")
    for length in [*range(step, len(written), step), len(written)]:
        if (end := ending.of(written[:length])) is not None:
            assert 0 <= end <= length
            return written[:end]
    return written


# Any text.

PIECES = [
    "\n",
    "\n    ",
    "\t",
    " ",
    "x",
    "é😀",
    "(",
    ")",
    "{",
    "}",
    "[",
    "]",
    '"',
    "'",
    "`",
    '"""',
    "${",
    ":",
    ",",
    ";",
    "=",
    "#",
]
PIECES += [
    "//",
    "/*",
    "*/",
    "\\",
    "\r\n",
    "\0",
    "\ud800",
    "def f():",
    "if x:",
    "case 1:",
    "match x",
    "=> {",
    "else",
    "@",
]
CODE = st.lists(st.sampled_from([*PIECES, *(path.read_text("utf-8")[:700] for path in GOLDEN)]), max_size=25).map(
    "".join
)


@settings(max_examples=150, deadline=None)
@given(suffix=st.sampled_from(SUFFIXES), before=CODE, after=CODE, written=CODE, step=st.integers(1, 9))
def test_any_text_at_any_place_has_a_piece_and_an_end(suffix, before, after, written, step):
    piece = piece_at(f"a{suffix}", before + after, len(before))
    assert piece == piece_at(f"a{suffix}", before + after, len(before))
    assert written.startswith(shown(f"a{suffix}", before, written, step))


@settings(max_examples=100, deadline=None)
@given(suffix=st.sampled_from(SUFFIXES), before=CODE, after=CODE, below=CODE)
def test_what_stands_far_below_decides_nothing(suffix, before, after, below):
    near = f"{after}\nx = 1\n"
    path, offset = f"a{suffix}", len(before)
    assert piece_at(path, before + near, offset) == piece_at(path, before + near + below, offset)


@settings(max_examples=60, deadline=None)
@given(file=st.sampled_from(GOLDEN), data=st.data())
def test_any_place_in_code(file, data):
    text = file.read_text("utf-8")
    offset = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(offset, min(len(text), offset + 80)))
    piece = piece_at(file.name, text, offset)
    assert text[offset:end].startswith(shown(file.name, text[:offset], text[offset:end], 7))
    assert piece.opener is None or piece.before.encode()[piece.opener :][:1] in (b"{", b":")


def test_a_long_text_is_read_from_a_line_that_is_not_indented():
    text = "".join(f"def f{number}():\n    return {number}\n" for number in range(4000)) + "def f():\n    "
    piece = piece_at("a.py", text, len(text))
    assert piece.unit == "block" and piece.before.startswith("def") and len(piece.before) <= REACH
    assert shown("a.py", text, "return 1\n\ndef g", 3) == "return 1"


@pytest.mark.parametrize("text", ["(" * 30_000, "{\n" * 15_000, "x = 1\n" * 5_000, '"' * 30_000, "# a\n" * 8_000])
@pytest.mark.parametrize("path", ["a.py", "a.ts"])
def test_no_text_takes_long(path, text):
    start = time.process_time()
    piece_at(path, text, len(text))
    shown(path, text, "x\n" * 3)
    assert time.process_time() - start < 3


def test_every_row_of_the_tables_is_of_its_grammar():
    assert set(grammars.BLOCKS) == set(grammars.QUOTES)
    assert set(grammars.BLOCKS) >= grammars.INDENTED
    for language, tokens in grammars.BLOCKS.items():
        parsed = parse("x", language, 1.0)
        assert parsed is not None
        kinds = [kind for kinds in tokens.values() for kind in kinds.split()]
        assert not [kind for kind in kinds if parsed[0].id_for_node_kind(kind, True) is None], language


# Without a tree. Generated text; the bar is where it should be cut, no bar: go on.
@pytest.mark.parametrize(
    "text",
    [
        "x + 1|\n",
        "x + 1|\nreturn",
        "x + 1",
        "",
        "\n",
        "\n    ",
        "\n    return x|\n",
        "   |\nx".replace("|", ""),
        "\n\n    y = 2|\n    z",
    ],
)
def test_end_of_line(text):
    end = text.find("|")
    assert end_of_line(text.replace("|", ""), 0) == (None if end < 0 else end)


@pytest.mark.parametrize(
    ("indent", "text"),
    [
        (0, "\n    return x|\n\n\ndef g"),
        (0, "\n    return x|\nx"),
        (0, "\n    if x:\n        y\n\n    return z|\n\nclass"),
        (0, "\n    return x\n"),
        (0, "\n    return x\n\n\n"),
        (4, "\n        return x|\n\n    def g"),
        (4, "\n        return x|\ndef g"),
        (0, "\n    return x;\n}|\n"),
        (0, "\n    return x;\n}"),
        (0, "\n    return x;\n});|\nmore"),
        (4, "\n        f(x);\n    } else {|\n        g(x);"),
        (0, "return x|\nelse"),
        (0, ""),
    ],
)
def test_end_of_block(indent, text):
    end = text.find("|")
    assert end_of_block(text.replace("|", ""), indent) == (None if end < 0 else end)
