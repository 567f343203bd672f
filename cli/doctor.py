"""`codemem doctor`: what is wrong here, and what to type."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer

from codemem.errors import CodememError

if TYPE_CHECKING:
    from codemem.memory.manifest import Manifest

# Bytes below which a disk is nearly full: indexing a repository of 100,000 lines takes some.
_LITTLE_SPACE = 5_000_000_000


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. type: the command that mends it, if there is one."""

    name: str
    state: Literal["ok", "warning", "broken"]
    text: str
    type: str | None = None


def doctor(
    repository: Annotated[Path, typer.Argument(help="The repository, or any place in it.")] = Path("."),
    repair: Annotated[
        bool, typer.Option("--repair", help="Make again what is damaged in the memory, and nothing else.")
    ] = False,
    model: Annotated[
        Optional[str],  # noqa: UP045 - typer reads it at run time, on Python 3.10 too
        typer.Option(help="Which model made the memory, where a damaged manifest cannot tell."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Check Python, torch, compiler, FAISS, GPU, model, memory, watcher and disk. Exits with 1 where something is
    broken."""
    from cli.console import stderr
    from codemem.memory.manifest import find_root

    root = find_root(repository)
    if repair:
        if root is None:
            raise CodememError(
                f"no folder from {repository.resolve()} upward has a memory", f"codemem index {repository}"
            )
        _repair(root, model)
    with stderr.status("checking"):
        checks = [*_installation(), *_memory(root, repository)]
    if as_json:
        typer.echo(json.dumps({"checks": [asdict(check) for check in checks]}))
    else:
        for check in checks:
            typer.echo(f"{check.state:8} {check.name:9} {check.text}" + (f"; type: {check.type}" if check.type else ""))
    if any(check.state == "broken" for check in checks):
        raise typer.Exit(1)


def _installation() -> Iterator[Check]:
    import faiss
    import torch
    import transformers

    from codemem.native.library import compiler

    yield Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    threads = torch.get_num_threads()
    yield Check("torch", "ok", f"{torch.__version__}, {threads} threads; transformers {transformers.__version__}")
    found = compiler()
    text = found or "none; a token takes three times as long as where one is"
    yield Check("compiler", "ok" if found else "warning", text, None if found else _install_compiler())
    yield Check("faiss", "ok", f"{faiss.__version__}, {faiss.get_compile_options().strip() or 'no special options'}")
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        yield Check("gpu", "ok", f"{name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free")
    else:
        metal = torch.backends.mps.is_available()
        yield Check("gpu", "ok", "Metal" if metal else "none; the processor computes")


def _install_compiler() -> str:
    """The command that installs a C compiler, where it is known."""
    if platform.system() == "Darwin":
        return "xcode-select --install"
    managers = {"apt-get": "apt-get install gcc", "dnf": "dnf install gcc", "apk": "apk add gcc musl-dev"}
    return next((f"sudo {line}" for name, line in managers.items() if shutil.which(name)), "install a C compiler")


def _memory(root: Path | None, place: Path) -> Iterator[Check]:
    from codemem.memory.manifest import Manifest

    spec: str | None = None
    checks: list[Check] = []
    if root is None:
        text = f"no folder from {place.resolve()} upward has one"
        checks.append(Check("memory", "warning", text, f"codemem index {place}"))
    else:
        try:
            with Manifest(root) as manifest:
                spec = manifest.get("model")
                checks += _store(manifest)
        except CodememError as error:
            checks.append(Check("memory", "broken", str(error), error.hint))
    yield _model(spec)
    yield from checks
    free = shutil.disk_usage(root or place.resolve()).free
    state: Literal["ok", "warning"] = "ok" if free > _LITTLE_SPACE else "warning"
    yield Check("disk", state, f"{free / 1e9:.1f} GB free")


def _model(spec: str | None) -> Check:
    from codemem.models.locate import locate

    try:
        located = locate(spec)
    except CodememError as error:
        return Check("model", "broken", str(error), error.hint)
    return Check("model", "ok", f"{located.name} in {located.directory}")


def _store(manifest: Manifest) -> Iterator[Check]:
    from codemem.memory.integrity import find_damage
    from indexer.changes import compare

    root, mend = manifest.root, f"codemem doctor {manifest.root} --repair"
    if problem := manifest.problem():
        yield Check("memory", "broken", f"the manifest is damaged: {problem}", mend)
        return
    if not os.access(manifest.folder, os.W_OK):
        yield Check("memory", "broken", f"{manifest.folder} cannot be written", f"chmod -R u+rwX {manifest.folder}")
    damage, records = find_damage(manifest), manifest.documents()
    for path, blob in damage.documents.items():
        yield Check("memory", "broken", f"the entries of {path} are damaged: {manifest.blob_path(blob)}", mend)
    for file in damage.index:
        yield Check("memory", "broken", f"the index is damaged: {file}", mend)
    if not damage:
        entries = sum(record.entries for record in records)
        text = (
            f"{len(records)} documents, {entries:,} entries, {manifest.nbytes / 1e6:,.0f} MB, every checksum is right"
        )
        yield Check("memory", "ok", text)
    changes = compare(root, manifest)
    if stale := len(changes.new) + len(changes.changed) + len(changes.gone):
        yield Check("memory", "warning", f"{stale} files have changed since", f"codemem sync {root}")
    watcher = manifest.watcher()
    text = f"process {watcher} keeps memory up to date" if watcher else "none; memory changes by codemem sync alone"
    yield Check("watcher", "ok", text, None if watcher else f"codemem watch {root}")


def _repair(root: Path, model: str | None) -> None:
    from cli.console import index_bar, stderr
    from cli.sync import model_for
    from codemem.memory.integrity import discard, find_damage, set_aside
    from codemem.memory.manifest import Manifest
    from codemem.memory.store import Store
    from codemem.models.pretrained import load_memorizing
    from indexer.sync import sync

    with stderr.status("looking for damage"):
        whole = Manifest.readable(root)
    if not whole:
        try:
            aside = set_aside(root)
        except OSError as error:
            raise CodememError(f"the manifest of {root} cannot be renamed: {error}", "check its rights") from error
        stderr.print(f"the damaged manifest is now {aside}", style="dim", markup=False, soft_wrap=True)
        with Store(root, create=True) as store, stderr.status("loading the model"):
            pretrained = load_memorizing(model)
            store.bind(pretrained.fingerprint)
            store.set("model", model or pretrained.name)
    with Store(root) as store, index_bar() as show:
        discard(store, find_damage(store))
        done = sync(store, lambda: model_for(store), show)
    stderr.print(f"encoded {done.encoded} documents again, kept {done.kept}", style="dim")
