"""`codemem stats`: what completions were worth."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from codemem.server.statistics import Summary

# What is shown, by name, and of how many days.
_SPANS = {"today": 1, "week": 7, "month": 30, "all": None}


def stats(
    clear: Annotated[bool, typer.Option("--clear", help="Forget all of it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Show how many completions were shown, accepted and kept, and how long they took.

    Counted on this machine, for this machine: numbers and times, no code.
    """
    from codemem.server.statistics import Statistics

    statistics = Statistics()
    if clear:
        statistics.clear()
    found = {name: statistics.summary(days) for name, days in _SPANS.items()}
    if as_json:
        answer = {name: summary.as_json() for name, summary in found.items()}
        typer.echo(json.dumps({"file": str(statistics.file), **answer}))
        return
    _print(found)


def _print(found: dict[str, Summary]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in ("asked", "offered", "shown", "accepted", "kept 1 min", "p50", "p90", "p99"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, one in found.items():
        table.add_row(
            name,
            f"{one.asked:,}",
            f"{one.offered:,}",
            f"{one.shown:,}",
            f"{one.accepted:,}{_share(one.accepted, one.shown)}",
            f"{one.kept:,}{_share(one.kept, one.known)}",
            *("" if ms is None else f"{ms:,.0f} ms" for ms in (one.p50, one.p90, one.p99)),
        )
    Console().print(table)


def _share(part: int, whole: int) -> str:
    return f" ({part / whole:.0%})" if whole else ""
