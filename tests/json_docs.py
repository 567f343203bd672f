"""JSON is what its documentation says."""

from __future__ import annotations

import json
import re
from pathlib import Path

JSON_DOCS = Path(__file__).parent.parent / "docs" / "json.md"


def answer_of(result: tuple[int, str, str]) -> dict:
    status, out, err = result
    assert status == 0, err
    assert out.endswith("\n") and out.count("\n") == 1, "one line, and nothing beside it"
    return json.loads(out)


def documented(command: str) -> tuple[dict[str, set[str]], dict]:
    """Of a command's section in docs/json.md: field -> types, and the example."""
    section = JSON_DOCS.read_text().split(f"## `codemem {command} --json`\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|([^|]*)\| ([^|]+) \|$", section, re.MULTILINE)
    assert len(rows) == section.count("\n| `"), "every row has a field, a type, a unit and a meaning"
    example = re.search(r"```json\n(.*?)```", section, re.DOTALL)
    assert example is not None
    return {field: set(types.split(" or ")) for field, types, _, _ in rows}, json.loads(example[1])


def type_of(value: object) -> str:
    names = {str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", list: "array"}
    return "null" if value is None else names[type(value)]


def fields_of(value: object, known: dict[str, set[str]], prefix: str = "") -> list[tuple[str, str]]:
    """All fields in a JSON value with their types, named as the documentation names them."""
    found = []
    if isinstance(value, dict):
        any_key = next((field for field in known if re.fullmatch(re.escape(prefix) + r"<\w+>", field)), None)
        for key, inner in value.items():
            field = any_key if any_key and f"{prefix}{key}" not in known else f"{prefix}{key}"
            found += [(field, type_of(inner)), *fields_of(inner, known, f"{field}.")]
    elif isinstance(value, list):
        for inner in value:
            found += fields_of(inner, known, f"{prefix.removesuffix('.')}[].")
    return found


def check_against_documentation(command: str, *answers: dict) -> None:
    known, example = documented(command)
    for answer in (*answers, example):
        for field, kind in fields_of(answer, known):
            assert field in known, f"{field} is not in docs/json.md"
            assert kind in known[field], f"{field} is documented as {known[field]}, but is {kind}"
    seen = {field for answer in answers for field, _ in fields_of(answer, known)}
    assert seen == set(known), "documented, but not in the output"
    assert {field for field, _ in fields_of(example, known)} == set(known)
