"""The folders that a client has open, and whether a document is in one of them. Nothing else may be asked about."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from codemem.errors import CodememError


class RefusedError(CodememError):
    """What was asked for is not there, or may not be asked for."""


@dataclass(frozen=True)
class Folder:
    """uri: as the client spells it; path: absolute, without links."""

    uri: str
    path: Path


def folder_of(uri: str) -> Folder:
    """Raises RefusedError for what is no folder here."""
    folder = Folder(uri, path_of(uri))
    if not folder.path.is_dir():
        raise RefusedError(f"{uri} is no folder on this machine")
    return folder


def path_of(uri: str) -> Path:
    """The path of a file URI, absolute and without links. Raises RefusedError for any other."""
    try:
        parts = urlsplit(uri)
        path = unquote(parts.path, errors="strict")
        if parts.scheme == "file" and parts.netloc in ("", "localhost") and path.startswith("/") and "\0" not in path:
            path.encode()
            return Path(os.path.realpath(path))
    except (ValueError, OSError):
        pass
    raise RefusedError(f"{uri[:200]} is not the URI of a file on this machine")


def containing(folders: list[Folder], path: Path) -> Folder:
    """The innermost of the folders that a path is in. Raises RefusedError where it is in none."""
    around = [folder for folder in folders if path.is_relative_to(folder.path)]
    if not around:
        raise RefusedError(f"{path} is outside of the open folders", "open the folder that it is in")
    return max(around, key=lambda folder: len(folder.path.parts))
