from __future__ import annotations

import pytest

from codemem.evaluation.tasks import Task, cross_file_uses, definitions, draw, random_lines

PYTHON = '''\
from __future__ import annotations
import json
from json import dumps
from app.tools import Runner, helper as help_with, shared
from .near import near

def run(name: str) -> None:
    """Calls near(name, 1) and others."""
    runner = Runner(name, depth=3)
    runner.start(name, depth=3)
    Runner.create("é", near(name, 1))
    print(dumps(name), help_with(name, "ü"))   
    shared.pool.take(first=1)
    near()
    near (name, 2)
    near(%s)
    # near(name, 3)
''' % ("x" * 121)  # noqa: W291

GO = """\
package app

import "fmt"

// Serve(port, 1) in a comment
func Start(port int) {
	fmt.Println("Serve(port, 2)")
	server := tools.Serve(port, true)
	Start(port, again)
	unknown(port, again)
}
"""


def shown(tasks: list[Task]) -> list[tuple[str, str]]:
    """The line before each cursor and the truth behind it."""
    return [(task.text[: task.offset].rsplit("\n", 1)[-1].strip(), task.truth) for task in tasks]


def test_python_uses_are_calls_of_what_comes_from_the_own_package():
    assert sorted(shown(cross_file_uses("app/main.py", PYTHON, "python", ()))) == [
        ('Runner.', 'create("é", near(name, 1))'),
        ('Runner.create("é", near(', "name, 1))"),
        ("print(dumps(name), help_with(", 'name, "ü"))'),
        ("runner = Runner(", "name, depth=3)"),
        ("shared.pool.", "take(first=1)"),
    ]  # fmt: skip


def test_the_package_of_a_source_folder_is_below_it():
    text = "from app.tools import run\nrun(1, 2)\n"
    assert [task.truth for task in cross_file_uses("src/app/a.py", text, "python", ())] == ["1, 2)"]
    assert cross_file_uses("src/other/a.py", text, "python", ()) == []


def test_a_task_knows_its_place():
    (task,) = cross_file_uses("a/b.py", "from .c import d\n\n\f\nx = 'é' + d(1234)", "python", ())
    assert (task.line, task.column, task.name, task.kind) == (4, 13, "a/b.py:4:13", "cross-file")
    assert task.text[task.offset :] == task.truth == "1234)"


@pytest.mark.parametrize("text", ["from .c import d\nd(1234", "from .c import d\nd('\0')", "(" * 5000])
def test_python_that_does_not_parse_has_no_uses(text: str):
    assert cross_file_uses("a.py", text, "python", ("d",)) == []


def test_what_python_warns_of_in_a_document_is_the_documents_matter(recwarn: pytest.WarningsRecorder):
    assert len(cross_file_uses("a.py", "from .c import d\nd('\\d', 1 is 1)\n", "python", ())) == 1
    assert not recwarn.list


def test_elsewhere_a_use_is_a_call_of_what_only_others_define():
    elsewhere = {"Serve", "Start", "Println"}
    assert definitions(GO, "go") == {"Start"}
    assert shown(cross_file_uses("a.go", GO, "go", elsewhere)) == [
        ("fmt.Println(", '"Serve(port, 2)")'),
        ("server := tools.Serve(", "port, true)"),
    ]


def test_names_behind_characters_of_several_bytes_are_found():
    text = "// é\nconst é = 'Serve(1, 2)';\n/* ü */ Serve(é, 'ü');\n"
    assert shown(cross_file_uses("a.js", text, "javascript", {"Serve"})) == [("/* ü */ Serve(", "é, 'ü');")]


def test_random_lines_are_code():
    lines = [f"line_{number} = {number}" for number in range(1, 11)]
    lines += [
        "def run(name):",
        '    """What near(name) does,',
        "    in several words.",
        '    """',
        "    import json, collections",
        "    from app import (",
        "        first_name,",
        "    )",
        "    # a comment of several words",
        "    result = compute(name)  # said so   ",
        "    x = 1",
        "    return " + "x" * 120,
        "    return result",
    ]
    found = random_lines("a.py", "\n".join(lines), "python")
    assert shown(found) == [
        ("", "def run(name):"),
        ("", "result = compute(name)  # said so"),
        ("", "return result"),
    ]
    assert found[1].name == "a.py:20:5"
    assert {task.kind for task in found} == {"random"}


def test_random_lines_of_python_that_does_not_parse_are_those_the_tree_can_tell():
    text = "\n" * 10 + "value = compute(1)\nimport collections\n# comment comment\nv = (\n"
    assert [task.truth for task in random_lines("a.py", text, "python")] == ["value = compute(1)"]


def test_random_lines_of_other_languages_pass_over_comments_and_imports():
    text = "\n" * 10 + (
        "import {\n  first_name,\n} from 'somewhere';\n/* a comment\n   over two lines */\n"
        "const tools = require('./tools');\nconst total = sum(first_name, 2);\n"
    )
    assert [task.truth for task in random_lines("a.js", text, "javascript")] == ["const total = sum(first_name, 2);"]
    assert random_lines("a.go", "\n" * 10 + "package application\n", "go") == []
    assert [task.truth for task in random_lines("a", "\n" * 10 + "  plain text line\n", None)] == ["plain text line"]


def test_a_draw_takes_one_of_each_document_before_another_of_any():
    tasks = [
        [Task(f"{path}.py", "", offset, "", "random") for offset in range(size)]
        for path, size in enumerate((9, 1, 0, 2))
    ]
    drawn = draw(tasks, 6, seed=1)
    assert sorted(task.path for task in drawn[:3]) == ["0.py", "1.py", "3.py"]
    assert sorted(task.path for task in drawn[3:5]) == ["0.py", "3.py"]
    assert drawn[5].path == "0.py"
    assert len(set(drawn)) == 6
    assert len(draw(tasks, 100, seed=1)) == 12
    assert draw(tasks, 6, seed=1) == drawn
    assert draw(tasks, 6, seed=2) != drawn
    assert draw([], 3, seed=0) == []
