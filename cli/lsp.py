"""`codemem lsp`: a language server on stdin and stdout, for any editor that speaks LSP."""

from __future__ import annotations

import sys
from typing import Annotated, Optional

import typer

from cli.serve import IDLE_MINUTES, command


def lsp(
    model: Annotated[
        Optional[str],  # noqa: UP045 - typer reads it at run time, on Python 3.10 too
        typer.Option(
            help="A catalog name, hub id, local directory or .gguf file.",
            show_default="that of the memory of the editor's folder",
        ),
    ] = None,
    idle: Annotated[
        float, typer.Option(min=0, help="Minutes without a client after which a daemon that this starts leaves.")
    ] = IDLE_MINUTES,
    _stdio: Annotated[bool, typer.Option("--stdio", help="What editors add; it is so anyway.")] = False,
) -> None:
    """Pass messages on between an editor and the daemon, which is started where none runs."""
    from codemem.memory.manifest import find_root, model_of
    from codemem.server.client import connected_or_started
    from codemem.server.forwarding import forward, read_first
    from codemem.server.sockets import address_of

    head, folders = read_first(sys.stdin.fileno())
    roots = [root for folder in folders if (root := find_root(folder))]
    address = address_of(model or next(map(model_of, roots), None))
    with connected_or_started(address, command(address.model, idle)) as connection:
        forward(connection, sys.stdin.fileno(), sys.stdout.fileno(), head)
