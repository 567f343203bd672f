"""`codemem watch`: keep memory true to the working tree while it is edited."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Annotated

import typer


def watch(
    repository: Annotated[Path, typer.Argument(help="The repository, or any place in it.")] = Path("."),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs, one line a sync.")] = False,
) -> None:
    """Bring a memory up to date now and after every change, until Ctrl-C."""
    from cli.console import stderr
    from cli.sync import model_for, root_of
    from codemem.memory.store import Store
    from codemem.server.indexing import BATCH_TOKENS
    from indexer import watch as watching
    from indexer.sync import Synced

    def show(synced: Synced) -> None:
        if as_json:
            typer.echo(json.dumps(synced.as_json()))
            return
        restored = f", {synced.restored} restored" if synced.restored else ""
        typer.echo(
            f"{time.strftime('%H:%M:%S')}  {synced.encoded} encoded, {synced.dropped} dropped{restored} in "
            f"{synced.seconds:.1f} s: {synced.documents} documents, {synced.entries:,} entries"
        )

    root, stop = root_of(repository), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with Store(root) as store:
        os.nice(watching.NICENESS)
        stderr.print(f"watching {root}, Ctrl-C ends it", style="dim", markup=False, soft_wrap=True)
        watching.watch(store, lambda: model_for(store), stop, show, batch_tokens=BATCH_TOKENS)
