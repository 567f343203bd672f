"""`codemem`: the commands, and what an error looks like.

One module per command. A command's module imports torch and the library's heavy parts inside its function,
so that `codemem --help` answers at once.
"""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from contextlib import suppress
from importlib.metadata import version
from typing import Annotated

import typer

from cli import (
    adapt,
    complete,
    doctor,
    evaluate,
    index,
    lsp,
    models,
    prune,
    serve,
    stats,
    status,
    sync,
    watch,
)
from codemem.errors import CodememError

app = typer.Typer(
    name="codemem",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# The commands, in the order in which --help shows them: app.command()(index.index) for one function,
# app.add_typer(models.app) for a group.
app.command()(index.index)
app.command()(sync.sync)
app.command()(watch.watch)
app.command()(complete.complete)
app.command()(status.status)
app.command()(serve.serve)
app.command()(lsp.lsp)
app.command()(stats.stats)
app.command()(adapt.adapt)
app.command("eval")(evaluate.evaluate)
app.command()(prune.prune)
app.command()(doctor.doctor)
app.add_typer(models.app, name="models")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"codemem {version('codemem')}")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="CODEMEM_DEBUG", help="Show a traceback when something fails.")
    ] = False,
) -> None:
    """Code completion whose attention reads a memory of your repository."""
    if debug:
        os.environ["CODEMEM_DEBUG"] = "1"


def run() -> None:
    """The console script: `main`, and then the process ends at once. To free gigabytes piece by piece takes half a
    second more, and the system frees them anyway."""
    code: int | str | None = 0
    try:
        main()
    except SystemExit as error:
        code = error.code
    with suppress(OSError):  # whoever read the output has gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def main() -> None:
    """Run the command line. Exits with 0, 1 for an error that the user can mend, 2 for a wrong command line or
    a fault of ours, and 130 after Ctrl-C."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if os.environ.get("CODEMEM_DEBUG") == "1":
            traceback.print_exc()
        if type(error).__name__ == "OutOfMemoryError":  # of torch, which need not be imported
            again = shlex.join(("codemem", *sys.argv[1:]))
            error = CodememError("the GPU has too little memory free", f"CUDA_VISIBLE_DEVICES=-1 {again}")
        if isinstance(error, CodememError):
            print(f"error: {error}", file=sys.stderr)
            if error.hint:
                print(f"hint: {error.hint}", file=sys.stderr)
            sys.exit(1)
        summary = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"error: codemem failed unexpectedly: {summary} (CODEMEM_DEBUG=1 shows where)", file=sys.stderr)
        sys.exit(2)
