from __future__ import annotations

from codemem.completion.snippets import LEAST_LINES, Snippet, choose, spell
from codemem.models.tokenizer import tokenize
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def snippet(path: str, start: int, *lines: str) -> Snippet:
    return Snippet(path, start, start + len(lines) - 1, "\n".join(lines), 1.0)


def long(path: str, start: int = 1, lines: int = 10) -> Snippet:
    return snippet(path, start, *(f"{path} line {number:02d}" for number in range(start, start + lines)))


def cost(*snippets: Snippet) -> int:
    return sum(len(tokenize(TOKENIZER, spell(item, "z.py"))[0]) for item in snippets)


def test_a_snippet_is_spelled_as_comments_of_the_document_it_stands_before():
    item = snippet("src/a b.go", 12, "\tif x {", "", "\t\treturn 1  ", "\t}")
    assert spell(item, "main.py") == "# src/a b.go\n# if x {\n#\n# \treturn 1\n# }\n"
    assert spell(item, "main.go") == "// src/a b.go\n// if x {\n//\n// \treturn 1\n// }\n"
    assert str(item) == "src/a b.go:12-15"


def test_the_best_stands_last_and_the_ids_are_those_of_the_spelling():
    first, second = long("a.py"), long("b.py")
    chosen, ids = choose(TOKENIZER, iter([first, second]), "z.py", 10_000)
    assert chosen == [second, first]
    assert TOKENIZER.decode(ids) == spell(second, "z.py") + spell(first, "z.py")


def test_what_fits_is_taken_to_the_token():
    first, second = long("a.py"), long("b.py", lines=LEAST_LINES)
    assert choose(TOKENIZER, [first, second], "z.py", cost(first, second))[0] == [second, first]
    assert choose(TOKENIZER, [first, second], "z.py", cost(first, second) - 1)[0] == [first]
    assert choose(TOKENIZER, [first], "z.py", 0) == ([], [])


def test_what_does_not_fit_is_cut_at_the_end_of_a_line():
    first, second = long("a.py"), long("b.py", start=5)
    head = Snippet("b.py", 5, 10, "\n".join(second.text.split("\n")[:6]), 1.0)
    budget = cost(first, head)
    for spare in (0, 1):
        chosen, ids = choose(TOKENIZER, [first, second], "z.py", budget + spare)
        assert chosen == [head, first]
        assert len(ids) == budget
    assert str(chosen[0]) == "b.py:5-10"


def test_too_few_lines_are_none_and_a_shorter_one_may_follow():
    first, second = long("a.py"), snippet("b.py", 1, "x = 1")
    least = Snippet("a.py", 1, LEAST_LINES, "\n".join(first.text.split("\n")[:LEAST_LINES]), 1.0)
    assert choose(TOKENIZER, [first, second], "z.py", cost(least))[0] == [least]
    assert choose(TOKENIZER, [first, second], "z.py", cost(least) - 1)[0] == [second]


def test_nothing_is_said_twice():
    first = long("a.py", start=11)
    overlapping, before, after = long("a.py", start=20), long("a.py", start=1), long("a.py", start=21)
    repeated = Snippet("b.py", 1, 12, "\n" + first.text.replace("a.py line", "  a.py line") + "\n", 1.0)
    blank = snippet("c.py", 1, "", "   ")
    chosen, _ = choose(TOKENIZER, [first, overlapping, repeated, blank, before, after], "z.py", 10_000)
    assert chosen == [after, before, first]


def test_only_what_is_left_of_a_cut_snippet_overlaps():
    first, cut = long("a.py"), long("b.py")
    rest = long("b.py", start=8, lines=1)
    head = Snippet("b.py", 1, 6, "\n".join(cut.text.split("\n")[:6]), 1.0)
    chosen, _ = choose(TOKENIZER, [first, cut, rest], "z.py", cost(first, head) + 5)
    assert chosen == [head, first]
    chosen, _ = choose(TOKENIZER, [first, cut, rest], "z.py", cost(first, head))
    assert chosen == [head, first]


def test_no_more_than_asked_for():
    several = [long(f"{number}.py") for number in range(12)]
    assert choose(TOKENIZER, several, "z.py", 10_000)[0] == several[:8][::-1]
    assert choose(TOKENIZER, several, "z.py", 10_000, most=2)[0] == several[:2][::-1]
