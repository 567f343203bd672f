from __future__ import annotations

import sysconfig
import zipfile
from pathlib import Path

import pytest

from codemem.cache import cache_dir
from codemem.errors import CodememError
from indexer.packages import documents, is_requirement, package, stdlib, stdlib_documents

WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks; the cache is empty."""
    place = tmp_path / "shelf"
    place.mkdir()
    monkeypatch.setenv("CODEMEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(place))
    return place


def wheel(shelf: Path, name: str, version: str) -> Path:
    path = shelf / f"{name}-{version}-py3-none-any.whl"
    metadata = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/__init__.py", f"VERSION = '{version}'\n")
        archive.writestr(f"{name}/readme.md", "# Read me\n")
        archive.writestr(f"{metadata}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{metadata}/WHEEL", WHEEL)
        archive.writestr(f"{metadata}/RECORD", "")
    return path


@pytest.mark.parametrize("spec", ["mcp==2.3.0", "pydantic-ai-slim==1.0.0rc1", "a.b_c==1!2.0+local"])
def test_a_requirement_names_its_version(spec: str):
    assert is_requirement(spec)


@pytest.mark.parametrize(
    "spec", ["mcp", "mcp>=2", "mcp==", "==2", ".", "a/b==1", "--index-url==1", "mcp==../x", "a==1\n"]
)
def test_anything_else_is_none(spec: str, shelf: Path):
    assert not is_requirement(spec)
    with pytest.raises(CodememError, match="not a package with its version"):
        package(spec)


def test_a_package_is_unpacked_once_and_never_installed(shelf: Path, capsys: pytest.CaptureFixture[str]):
    built = [wheel(shelf, "demo", version) for version in ("1.0.1", "1.0.2")]
    roots = [package(f"demo=={version}") for version in ("1.0.1", "1.0.2")]
    assert [(root / "demo/__init__.py").read_text() for root in roots] == ["VERSION = '1.0.1'\n", "VERSION = '1.0.2'\n"]
    assert roots[0] == cache_dir() / "benchmarks" / "demo-1.0.1"
    assert sorted(path.name for path in roots[0].iterdir()) == ["demo"]
    assert sorted(roots[0].parent.iterdir()) == roots
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "downloading demo==1.0.1" in captured.err
    built[0].unlink()
    assert package("demo==1.0.1") == roots[0]
    assert capsys.readouterr().err == ""


def test_what_pip_cannot_find_is_named_with_pips_reason(shelf: Path):
    with zipfile.ZipFile(shelf / "sourceonly-1.0.zip", "w") as archive:
        archive.writestr("sourceonly-1.0/setup.py", "raise SystemExit('this ran')")
    with pytest.raises(CodememError) as raised:
        package("sourceonly==1.0")
    message = str(raised.value)
    assert message == "sourceonly==1.0 cannot be downloaded: No matching distribution found for sourceonly==1.0"
    assert raised.value.hint is not None
    assert raised.value.hint.endswith("-m pip download --no-deps --only-binary=:all: sourceonly==1.0")
    assert list((cache_dir() / "benchmarks").iterdir()) == []


def test_documents_are_what_memory_would_hold(tmp_path: Path):
    for path, text in {
        "app/main.py": "x = 1\n",
        "app/page.ts": "let x = 1;\n",
        "app/test/main.py": "x = 2\n",
        "app/testing/main.py": "x = 3\n",
        "ignored.py": "x = 4\n",
        ".env": "TOKEN=1\n",
        ".codememignore": "ignored.py\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    def paths(*suffixes: str, without: frozenset[str] = frozenset()) -> list[str]:
        return [document.path for document in documents(tmp_path, suffixes, without=without)]

    assert paths() == ["app/main.py", "app/page.ts", "app/test/main.py", "app/testing/main.py"]
    assert paths(".ts", ".go") == ["app/page.ts"]
    assert paths(".py", without=frozenset({"test"})) == ["app/main.py", "app/testing/main.py"]


def test_the_standard_library_is_its_modules():
    assert stdlib() == Path(sysconfig.get_path("stdlib"))
    paths = {document.path for document in stdlib_documents()}
    assert {"ast.py", "json/decoder.py", "unittest/case.py"} <= paths
    assert not [
        path for path in paths if {"test", "tests", "idlelib", "lib2to3", "site-packages"} & set(path.split("/"))
    ]
    assert all(path.endswith(".py") for path in paths)
