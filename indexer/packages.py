"""Code that is on no one's disk yet: published packages, to calibrate and to measure on; and the standard library."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Set
from pathlib import Path, PurePosixPath

from codemem.cache import cache_folder, say
from codemem.errors import CodememError
from indexer.documents import Document, read_document
from indexer.walk import walk

_REQUIREMENT = re.compile(r"[A-Za-z0-9][\w.-]*==\w[\w.!+-]*", re.ASCII)
# Folders of the standard library that do not look like what people write against it.
_NOT_LIBRARY = frozenset({"test", "tests", "idlelib", "lib2to3"})


def is_requirement(spec: str) -> bool:
    """Whether this is a package with its version: name==version."""
    return _REQUIREMENT.fullmatch(spec) is not None


def package(requirement: str) -> Path:
    """The unpacked wheel of a package, downloaded once into the cache; its code is never installed or run.

    Raises CodememError for what is no requirement with a version, and where pip finds no wheel.
    """
    if not is_requirement(requirement):
        raise CodememError(f"{requirement} is not a package with its version", "give name==version, as in mcp==2.3.0")
    folder = cache_folder("benchmarks") / requirement.replace("==", "-")
    if not folder.is_dir():
        say(f"downloading {requirement}, needed once")
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder.parent) as scratch:
            code = Path(scratch) / "code"
            with zipfile.ZipFile(_download(requirement, Path(scratch))) as wheel:
                wheel.extractall(code)
            for metadata in code.glob("*.dist-info"):
                shutil.rmtree(metadata)
            try:
                code.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster
                    raise
    return folder


def target(spec: str) -> tuple[str, Path]:
    """Name and folder of what a command line means: a package with its version, or a folder."""
    if is_requirement(spec):
        return spec, package(spec)
    root = Path(spec).resolve()
    return root.name, root


def stdlib() -> Path:
    """The standard library of the Python that runs."""
    return Path(sysconfig.get_path("stdlib"))


def documents(root: Path, suffixes: tuple[str, ...] = (), *, without: Set[str] = frozenset()) -> list[Document]:
    """The files below root that would be memorised, by path.

    suffixes: of the files' names, all if empty; without: names of folders to leave out. Raises CodememError as `walk`
    does.
    """
    read = (
        read_document(file)
        for file in walk(root).files
        if file.path.endswith(suffixes or "") and without.isdisjoint(PurePosixPath(file.path).parts)
    )
    return [document for document in read if isinstance(document, Document)]


def stdlib_documents() -> list[Document]:
    """The Python files of the standard library, without its tests and what was installed beside it."""
    return documents(stdlib(), (".py",), without=_NOT_LIBRARY)


def _download(requirement: str, directory: Path) -> Path:
    # Only wheels: to download anything else, pip runs its code.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", requirement]
    options = ["--dest", str(directory), "--quiet", "--no-input", "--disable-pip-version-check"]
    # pip works in TMPDIR: there, too, an interrupted download must leave nothing behind.
    environment = {**os.environ, "TMPDIR": str(directory)}
    result = subprocess.run(
        command + options, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    wheels = list(directory.glob("*.whl"))
    if result.returncode == 0 and wheels:
        return wheels[0]
    said = result.stderr.strip().splitlines() or [f"pip ended with {result.returncode}"]
    again = " ".join(command)
    if "No module named pip" in said[-1]:
        again = f"{sys.executable} -m ensurepip"
    raise CodememError(f"{requirement} cannot be downloaded: {said[-1].removeprefix('ERROR:').strip()}", again)
