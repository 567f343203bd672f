"""`codemem sync`: make memory true to the working tree."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codemem.errors import CodememError

if TYPE_CHECKING:
    from codemem.memory.store import Store
    from codemem.models.memorizing import MemorizingModel


def sync(
    repository: Annotated[Path, typer.Argument(help="The repository, or any place in it.")] = Path("."),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Bring a memory that exists up to date. The model is loaded only if something must be encoded."""
    from cli.console import index_bar, stderr
    from cli.index import print_synced
    from codemem.memory.store import Store
    from indexer import sync as syncing

    with Store(root_of(repository)) as store:
        try:
            with index_bar() as show:
                synced = syncing.sync(store, lambda: model_for(store), show)
        except KeyboardInterrupt:
            stderr.print("interrupted; what is done is kept, and the same command goes on from there")
            raise
    print_synced(synced, as_json)


def root_of(place: Path) -> Path:
    """The folder, from a place in a repository upward, that has a memory. Raises CodememError where there is none."""
    from codemem.memory.manifest import find_root

    root = find_root(place)
    if root is None:
        raise CodememError(f"no folder from {place.resolve()} upward has a memory", f"codemem index {place}")
    return root


def model_for(store: Store) -> MemorizingModel:
    """The model that the store was made with. Raises CodememError where that is another one now."""
    from codemem.models.pretrained import load_memorizing

    pretrained = load_memorizing(store.get("model"))
    store.check(pretrained.fingerprint)
    return pretrained.model
