from __future__ import annotations

import re
import time
from typing import get_args

import pytest
import tree_sitter_language_pack
from hypothesis import given, settings
from hypothesis import strategies as st

from codemem import grammars
from codemem.syntax import Symbol, enclosing_symbol, language_of, language_of_shebang, spans, symbols_of

# In these sources `= name` at the end of a line (in a comment) says which symbol is innermost there.
SOURCES = {
    "python": '''
import os

# Says hello.
@cache
def hello(name):  #= hello
    return name  #= hello

LIMIT = 3  #= None

class Session:
    """A session."""  #= Session
    def send(self):  #= Session.send
        def inner():  #= Session.send.inner
            return 1  #= Session.send.inner
        return inner  #= Session.send

    @property
    def closed(self):
        return True  #= Session.closed

if os.name == "nt":
    async def wait():
        pass  #= wait
''',
    "typescript": """
import { x } from "y";

// Adds.
export function add(a: number): number {
  return a;  //= add
}

export const twice = (f: () => void) => {
  f();  //= twice
};

export default memo(() => {
  function once() {
    go();  //= once
  }
});

@Component({ selector: "app" })
export class App<T> extends Base {
  private run(): void {
    go();  //= App.run
  }
  handle = () => {
    go();  //= App.handle
  };
}

interface Shape {
  area(): number;  //= Shape
}

namespace Inner {
  export function deep() {
    return 1;  //= Inner.deep
  }
}

type Name = string
enum Color { Red }
""",
    "javascript": """
const { x } = require("y");

function* walk() {
  yield 1;  //= walk
}

exports.run = async () => {
  await 1;  //= exports.run
};

class A {
  #hidden() {
    return 1;  //= A.#hidden
  }
}
""",
    "go": """
package main

import "fmt"

// F prints.
func F() {
	fmt.Println(1)  //= F
}

func (s *Server[T]) Run(a int) error {
	return nil  //= Server.Run
}

type Server[T any] struct {
	Name string  //= Server
}

type (
	A struct {
		X int  //= A
	}
	B interface{}
)
""",
    "rust": """
use std::fmt;

/// A point.
#[derive(Debug)]
pub struct Point<T> {
    x: T,  //= Point
}

impl<T> fmt::Display for Point<T> {
    fn fmt(&self) {
        ok()  //= Point.fmt
    }
}

mod inner {
    pub fn deep() {
        ok()  //= inner.deep
    }
}

trait Shape {
    fn area(&self) -> f64;  //= Shape.area
}

macro_rules! twice {
    () => {};  //= twice
}
""",
    "java": """
package a.b;

import java.util.List;

/** An app. */
@Service
public class App {
    private int x;

    @Override
    public void run() {
        go();  //= App.run
    }

    static class Inner {
        Inner() {
            go();  //= App.Inner.Inner
        }
    }
}
""",
    "c": """
#include <stdio.h>

/* A node. */
typedef struct node {
    int x;  //= node
} node;

static int *find(node *n) {
    return 0;  //= find
}

#ifdef X
int only_x(void) {
    return 1;  //= only_x
}
#endif

#define TWICE(x) ((x) * 2)
""",
    "cpp": """
#include <vector>

namespace app {

template <class T>
class Box {
  public:
    T get() {
        return t;  //= app.Box.get
    }
};

int &Other::at(int i) {
    return x;  //= app.Other.at
}

}
""",
    "csharp": """
using System;

namespace A.B {
    [Serializable]
    public class C {
        public int P { get; set; }

        void M() {
            Go();  //= A.B.C.M
        }
    }
}
""",
    "ruby": """
require "set"

module A
  # A cat.
  class Cat < Animal
    def meow
      puts 1  #= A.Cat.meow
    end

    def self.make
      new  #= A.Cat.make
    end
  end
end

def top
  1  #= top
end
""",
    "php": """
<?php
namespace A;

/** A class. */
class B extends C {
    public function run() {
        go();  //= B.run
    }
}

function top() {
    go();  //= top
}
""",
    "kotlin": """
package a

class A(val x: Int) {
    fun f(): Int {
        return 1  //= A.f
    }
}

fun String.twice(): Int {
    return 2  //= twice
}
""",
    "elixir": """
defmodule A.B do
  def run(x) do
    x  #= A.B.run
  end
end
""",
}


@pytest.mark.parametrize("language", SOURCES)
def test_the_innermost_symbol_of_every_marked_line(language: str) -> None:
    text = SOURCES[language].removeprefix("\n")
    found, marked = symbols_of(text, language), 0
    for number, line in enumerate(text.split("\n"), start=1):
        if "= " in line and (mark := line.rpartition("= "))[0].endswith(("#", "//")):
            assert str(enclosing_symbol(found, number)) == mark[2], (number, line)
            marked += 1
    assert marked


def test_symbols_in_full() -> None:
    assert symbols_of("@cache\ndef f():\n    pass\n\n\nclass A:\n    x = 1\n", "python") == (
        Symbol("f", 1, 3),
        Symbol("A", 6, 7),
    )


def test_headings_are_symbols() -> None:
    text = "# Guide\n\nHello.\n\n## Install it\n\nType.\n\n## Use it\n\nGo.\n"
    found = symbols_of(text, "markdown")
    assert [symbol.name for symbol in found] == ["Guide", "Guide.Install it", "Guide.Use it"]
    assert enclosing_symbol(found, 7) == "Guide.Install it"
    assert found[-1].end_line == 11


def test_a_hash_in_a_fence_is_no_heading() -> None:
    text = "# One\n\n```sh\n# comment\n~~~\n```\n\n#tag\n\n## Two ##\n"
    assert symbols_of(text, "markdown") == (Symbol("One", 1, 10), Symbol("One.Two", 10, 10))


def test_text_that_ended_the_process_in_the_markdown_grammar() -> None:
    assert symbols_of("* " * 10_000, "markdown") == ()


@pytest.mark.parametrize(
    ("text", "language"),
    [("fn f() {\n" * 5_000, "svelte"), ("(" * 200_000, "python")],  # 40 s of parsing, 80 s of querying
)
def test_a_text_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch, text: str, language: str) -> None:
    monkeypatch.setattr("codemem.syntax.PARSE_SECONDS", 0.2)
    start = time.perf_counter()
    assert symbols_of(text, language) == ()
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize("language", [None, "klingon", ""])
def test_an_unknown_language_has_no_symbols(language: str | None) -> None:
    assert symbols_of("def f(): pass\n", language) == ()


@settings(max_examples=60, deadline=None)
@given(
    language=st.sampled_from(sorted(SOURCES)),
    cuts=st.lists(st.tuples(st.integers(0, 600), st.text(max_size=4)), max_size=6),
)
def test_broken_code_never_raises(language: str, cuts: list[tuple[int, str]]) -> None:
    text = SOURCES[language]
    for place, insert in cuts:
        text = text[:place] + insert + text[place + 5 :]
    found = symbols_of(text, language)
    assert all(1 <= symbol.start_line <= symbol.end_line <= text.count("\n") + 1 for symbol in found)


def test_deep_nesting_and_lone_surrogates() -> None:
    assert symbols_of("f(" * 20_000, "python") == ()
    assert symbols_of("x = '\udcff'\ndef f(): pass\n", "python") == (Symbol("f", 2, 2),)
    assert symbols_of("", "python") == ()


def test_every_language_of_the_tables_has_a_grammar() -> None:
    tables = (grammars.FILE_NAMES, grammars.EXTENSIONS, grammars.INTERPRETERS)
    named = {language for table in tables for language in table.values()} | set(grammars.DEFINITIONS)
    assert named <= set(get_args(tree_sitter_language_pack.SupportedLanguage))
    for language in sorted(grammars.DEFINITIONS):
        symbols_of("x\n", language)  # compiles the queries


def test_a_file_of_twice_the_length_takes_not_much_more_than_twice_the_time() -> None:
    """The best of some turns: on a busy machine most are slow."""
    half, whole = SOURCES["python"] * 70, SOURCES["python"] * 140
    assert half.count("\n") > 1500
    times: dict[str, list[float]] = {half: [], whole: []}
    for _ in range(7):
        for text, taken in times.items():
            start = time.perf_counter()
            symbols_of(text, "python")
            taken.append(time.perf_counter() - start)
    assert min(times[whole]) < 4 * min(times[half])


@pytest.mark.parametrize(
    ("path", "language"),
    [
        ("a/b.py", "python"),
        ("a.PYI", "python"),
        ("a.jsx", "javascript"),
        ("a.tsx", "tsx"),
        ("Dockerfile", "dockerfile"),
        ("docker/Dockerfile.dev", "dockerfile"),
        ("sub/Makefile", "make"),
        ("CMakeLists.txt", "cmake"),
        ("main.tf", "terraform"),
        ("a.txt", None),
        ("LICENSE", None),
        (".py", None),
    ],
)
def test_language_by_name(path: str, language: str | None) -> None:
    assert language_of(path) == language


@pytest.mark.parametrize(
    ("first", "language"),
    [
        ("#!/usr/bin/env python3\n", "python"),
        ("#!/usr/bin/python3.11\n", "python"),
        ("#!/usr/bin/env -S deno run --allow-all\n", "typescript"),
        ("#!/bin/sh -e\n", "bash"),
        ("#!/usr/bin/env FOO=1 ruby\n", "ruby"),
        ("#!/opt/thing\n", None),
        ("#!\n", None),
        ("# python\n", None),
    ],
)
def test_language_by_first_line(first: str, language: str | None) -> None:
    assert language_of_shebang(first) == language


def test_the_innermost_symbol() -> None:
    symbols = (Symbol("A", 1, 10), Symbol("A.f", 2, 5), Symbol("A.g", 7, 7), Symbol("A.g.h", 7, 7))
    assert [enclosing_symbol(symbols, line) for line in (1, 3, 6, 7, 10, 11)] == [
        "A",
        "A.f",
        "A",
        "A.g.h",
        "A",
        None,
    ]


def test_spans_are_the_outermost_nodes_of_a_kind_in_characters() -> None:
    text = "é = f'ü{g('ö')}'  # ä\nh('\ud800', 1)\n"
    found = [text[start:end] for start, end in spans(text, "python", re.compile("string|comment"))]
    assert found == ["f'ü{g('ö')}'", "# ä", "'\ud800'"]
    assert spans(text, "python", re.compile("strin")) == []
    assert spans("# Title\n", "markdown", re.compile(".*")) == []
    assert spans(text, None, re.compile(".*")) == []
