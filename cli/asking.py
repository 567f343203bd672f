"""Asking the daemon, where one runs. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from codemem.errors import CodememError


def ask_daemon(root: Path, model: str | None, params: dict[str, Any]) -> dict[str, Any] | None:
    """What the daemon of a repository's model answers to codemem/complete, None where none runs, or it goes away.
    Raises CodememError for an error of ours."""
    from codemem.memory.manifest import model_of
    from codemem.server.client import Client
    from codemem.server.sockets import address_of, connected

    try:
        connection = connected(address_of(model or model_of(root)))
    except CodememError:
        return None
    if connection is None:
        return None
    try:
        with Client(connection, [root]) as client:
            answer: dict[str, Any] = client.ask("codemem/complete", params)
            return answer
    except OSError:  # it has gone
        return None
