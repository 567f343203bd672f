"""What is shown of what a model writes: cases in source files, by a scripted model through the whole engine.

A case is named by its first comment, `‸` is the cursor, `>` comments are what the model writes there, `=` comments what
is shown of it, and `!` the reason why nothing is.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from codemem.completion.engine import Engine
from codemem.completion.request import Request
from codemem.completion.scripted import scripted_model
from codemem.models.tokenizer import comment_leader

FOLDER = Path(__file__).parent / "golden"


def cases(file: Path):
    leader = comment_leader(file.name)
    for part in file.read_text("utf-8").split(f"{leader}: ")[1:]:
        name, _, rest = part.partition("\n")
        lines = rest.rstrip("\n").split("\n")
        said = {
            mark: "\n".join(line[len(leader) + 2 :] for line in lines if line.startswith(leader + mark))
            for mark in ">=!"
        }
        code = "\n".join(line for line in lines if not line.startswith(tuple(leader + mark for mark in ">=!"))) + "\n"
        yield pytest.param(file, code, said[">"], said["="], said["!"], id=f"{file.name}: {name}")


@pytest.mark.parametrize(
    ("file", "code", "written", "shown", "reason"),
    [case for file in sorted(FOLDER.iterdir()) for case in cases(file)],
)
def test_what_is_shown(file, code, written, shown, reason):
    offset = code.index("‸")
    text = code.replace("‸", "")
    if offset == len(text) - 1 and text.endswith("\n"):
        text = text[:-1]
    model = scripted_model(text[:offset] + written)
    completion = Engine(model, "scripted").complete(Request(f"golden{file.suffix}", text, offset, max_tokens=500))
    assert completion.text == shown
    assert completion.reason == reason if reason else completion.text
