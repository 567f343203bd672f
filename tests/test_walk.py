from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from codemem.errors import CodememError
from indexer.walk import SkipReason, walk


def tree(root: Path, files: dict[str, str]) -> Path:
    for path, text in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return root


def paths(root: Path, **options: int) -> list[str]:
    return [file.path for file in walk(root, **options).files]


def test_files_are_sorted_and_described(tmp_path: Path) -> None:
    tree(tmp_path, {"b.py": "b = 1\n", "a/z.py": "z = 1\n", "a.py": "a = 1\n"})
    files = walk(tmp_path).files
    assert [file.path for file in files] == ["a.py", "a/z.py", "b.py"]
    status = (tmp_path / "a/z.py").stat()
    assert (files[1].absolute, files[1].size, files[1].mtime_ns) == (
        tmp_path / "a/z.py",
        status.st_size,
        status.st_mtime_ns,
    )


def test_an_empty_repository(tmp_path: Path) -> None:
    assert walk(tmp_path).files == ()
    assert walk(tmp_path).skipped == {}


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("package-lock.json", SkipReason.LOCK_FILE),
        ("uv.lock", SkipReason.LOCK_FILE),
        ("go.sum", SkipReason.LOCK_FILE),
        ("jquery.min.js", SkipReason.MINIFIED),
        ("api_pb2.py", SkipReason.GENERATED),
        ("model.g.dart", SkipReason.GENERATED),
        ("logo.PNG", SkipReason.BINARY),
        ("rows.csv", SkipReason.DATA),
        ("notes.txt", SkipReason.UNKNOWN_LANGUAGE),
        (".gitattributes", SkipReason.UNKNOWN_LANGUAGE),
        (".env", SkipReason.SECRET),
        ("server.pem", SkipReason.SECRET),
        ("empty.py", SkipReason.EMPTY),
        ("long.py", SkipReason.TOO_LARGE),
        ("fixtures.json", SkipReason.DATA),
    ],
)
def test_reasons_by_name_and_size(tmp_path: Path, path: str, reason: SkipReason) -> None:
    text = {"empty.py": "", "long.py": "x = 1\n" * 10_000, "fixtures.json": "[1]\n" * 9_000}.get(path, "x = 1\n")
    tree(tmp_path, {path: text, "main.py": "x = 1\n", "package.json": "{}\n"})
    found = walk(tmp_path, max_bytes=50_000)
    assert found.skipped == {path: reason}
    assert [file.path for file in found.files] == ["main.py", "package.json"]


def test_a_skip_reason_prints_as_its_value() -> None:
    assert f"{SkipReason.LOCK_FILE}" == str(SkipReason.LOCK_FILE) == "lock file"


def test_vendored_directories_count_once(tmp_path: Path) -> None:
    tree(
        tmp_path,
        {
            "src/app.ts": "export {}\n",
            "node_modules/left-pad/index.js": "module.exports = 1\n",
            "node_modules/left-pad/package.json": "{}\n",
            "web/node_modules/x/index.js": "1\n",
            "vendor/a/a.go": "package a\n",
            "my-env/pyvenv.cfg": "home = /usr\n",
            "my-env/lib/a.py": "a = 1\n",
            "cache/CACHEDIR.TAG": "Signature\n",
            "cache/b.py": "b = 1\n",
            "app.egg-info/top_level.txt": "app\n",
        },
    )
    found = walk(tmp_path)
    assert [file.path for file in found.files] == ["src/app.ts"]
    assert found.skipped == dict.fromkeys(
        ["app.egg-info/", "cache/", "my-env/", "node_modules/", "vendor/", "web/node_modules/"],
        SkipReason.VENDORED,
    )


def test_build_directories_are_output_beside_a_build_file_only(tmp_path: Path) -> None:
    tree(
        tmp_path,
        {
            "build/release.go": "package build\n",
            "web/package.json": "{}\n",
            "web/dist/app.js": "1\n",
            "rust/Cargo.toml": "[package]\n",
            "rust/target/debug/out.rs": "fn f() {}\n",
            "dotnet/App.csproj": "<Project/>\n",
            "dotnet/obj/a.cs": "class A {}\n",
        },
    )
    assert paths(tmp_path) == ["build/release.go", "rust/Cargo.toml", "web/package.json"]


def test_own_directories_are_passed_over_in_silence(tmp_path: Path) -> None:
    tree(
        tmp_path,
        {".git/hooks/x.py": "x\n", ".codemem/x.py": "x\n", "sub/.git/x.py": "x\n", "sub/y.py": "y\n"},
    )
    found = walk(tmp_path)
    assert [file.path for file in found.files] == ["sub/y.py"]
    assert found.skipped == {}


def test_links_are_not_followed(tmp_path: Path) -> None:
    outside = tree(tmp_path / "outside", {"secret.py": "x = 1\n"})
    root = tree(tmp_path / "root", {"a.py": "a = 1\n"})
    (root / "link.py").symlink_to(outside / "secret.py")
    (root / "folder").symlink_to(outside)
    (root / "loop").symlink_to(root)
    (root / "broken.py").symlink_to(root / "nowhere.py")
    found = walk(root)
    assert [file.path for file in found.files] == ["a.py"]
    assert found.skipped == dict.fromkeys(["broken.py", "folder", "link.py", "loop"], SkipReason.SYMLINK)


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "sub").mkdir()
    os.mkfifo(tmp_path / "sub" / ".gitignore")
    assert walk(tmp_path).skipped == dict.fromkeys(["pipe.py", "sub/.gitignore"], SkipReason.UNREADABLE)


def test_a_name_that_is_not_utf8_is_counted(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.py")).write_text("x = 1\n")
    except OSError:
        pytest.skip("this file system wants UTF-8 names")
    assert walk(tmp_path).skipped == {"caf\\xe9.py": SkipReason.UNREADABLE}


def test_an_unreadable_directory_is_counted() -> None:
    root = Path(tempfile.mkdtemp())
    try:
        tree(root, {"a.py": "a = 1\n", "locked/b.py": "b = 1\n"})
        root.chmod(0o755)
        (root / "locked").chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)  # root reads everything
        try:
            found = walk(root)
        finally:
            os.seteuid(user)
    finally:
        (root / "locked").chmod(0o700)
        shutil.rmtree(root)
    assert [file.path for file in found.files] == ["a.py"]
    assert found.skipped == {"locked/": SkipReason.UNREADABLE}


def test_a_root_that_cannot_be_walked(tmp_path: Path) -> None:
    with pytest.raises(CodememError, match="does not exist") as missing:
        walk(tmp_path / "nowhere")
    assert missing.value.hint
    (tmp_path / "file.py").write_text("x = 1\n")
    with pytest.raises(CodememError, match="is not a directory"):
        walk(tmp_path / "file.py")


def test_nested_ignore_files_and_negation(tmp_path: Path) -> None:
    tree(
        tmp_path,
        {
            ".gitignore": "*.sql\n/generated/\nlogs/*\n!logs/keep/\n",
            "generated/a.py": "a\n",
            "sub/generated/a.py": "a\n",
            "sub/.gitignore": "!schema.sql\n",
            "sub/schema.sql": "SELECT 1;\n",
            "other.sql": "SELECT 1;\n",
            "logs/a.py": "a\n",
            "logs/keep/a.py": "a\n",
        },
    )
    found = walk(tmp_path)
    assert [file.path for file in found.files] == ["logs/keep/a.py", "sub/generated/a.py", "sub/schema.sql"]
    assert [path for path, reason in found.skipped.items() if reason is SkipReason.IGNORED] == [
        "generated/",
        "logs/a.py",
        "other.sql",
    ]


def test_codememignore_outranks_git_and_brings_back_all_but_secrets(tmp_path: Path) -> None:
    tree(
        tmp_path,
        {
            ".gitignore": "gen/\n.env.py\n",
            ".codememignore": "docs/\n!gen/\n!vendor/\n!*.min.js\n!.env\n",
            "docs/.gitignore": "!*\n",
            "docs/a.md": "# A\n",
            "gen/a.py": "a\n",
            "vendor/b.py": "b\n",
            "c.min.js": "c\n",
            ".env": "KEY=1\n",
        },
    )
    found = walk(tmp_path)
    assert [file.path for file in found.files] == ["c.min.js", "gen/a.py", "vendor/b.py"]
    assert found.skipped["docs/"] is SkipReason.IGNORED
    assert found.skipped[".env"] is SkipReason.SECRET


def test_a_subdirectory_obeys_the_repository_around_it(tmp_path: Path) -> None:
    tree(
        tmp_path,
        {
            ".git/info/exclude": "private.py\n",
            ".gitignore": "/pkg/out.py\nhidden/\n",
            "pkg/out.py": "x\n",
            "pkg/private.py": "x\n",
            "pkg/in.py": "x\n",
            "hidden/asked.py": "x\n",
        },
    )
    assert paths(tmp_path / "pkg") == ["in.py"]
    assert paths(tmp_path / "hidden") == ["asked.py"]  # named by the user, so its being ignored does not count


def test_info_exclude_of_a_worktree(tmp_path: Path) -> None:
    tree(
        tmp_path,
        {
            "main/.git/info/exclude": "private.py\n",
            "main/.git/worktrees/w/commondir": "../..\n",
            "w/.git": f"gitdir: {tmp_path}/main/.git/worktrees/w\n",
            "w/private.py": "x\n",
            "w/a.py": "x\n",
        },
    )
    assert paths(tmp_path / "w") == ["a.py"]


NAMES = ["a", "b", "foo", "bar", "x.py", "y.py", "foo.py", "a b.py", "[z].py", "#h.py", "!n.py", "é.py"]
DIRECTORIES = ["a", "b", "foo", "bar", "x.py"]
PIECES = [
    "a",
    "b",
    "foo",
    "bar",
    "*",
    "**",
    "?",
    "*.py",
    "x.*",
    "fo?",
    "[ab]",
    "[!a]",
    "[z-a]",
    "é.py",
    "a b.py",
]


@st.composite
def patterns(draw: st.DrawFn) -> str:
    pieces = draw(st.lists(st.sampled_from(PIECES), min_size=1, max_size=3))
    line = draw(st.sampled_from(["", "", "/", "!", "!/"])) + "/".join(pieces)
    return line + draw(st.sampled_from(["", "", "/", " ", "\r", "**", "\\"]))


SPECIAL = [
    "",
    "# comment",
    "\\#h.py",
    "\\!n.py",
    "\\[z].py",
    "*",
    "!*/",
    "/*",
    "**",
    "/**",
    "/",
    "!",
    "//",
    "[",
    "a[",
    "!a/[",
]
LINES = st.one_of(patterns(), st.sampled_from(SPECIAL))
DIRECTORY = st.lists(st.sampled_from(DIRECTORIES), max_size=3).map("/".join)


@settings(max_examples=60, deadline=None)
@example(files=[("a", "a")], ignores={}, exclude=["a", "!/a**"])
@example(files=[("a", "a"), ("", "ab"), ("b/a", "a")], ignores={}, exclude=["/a***"])
@example(files=[("b/a", "a"), ("b", "ab"), ("b", "c")], ignores={}, exclude=["b/a**"])
@example(files=[("a", "b"), ("", "ab"), ("ac", "b"), ("ac/d", "b"), ("", "acb")], ignores={}, exclude=["/a**/b"])
@example(files=[("a", "b"), ("a/c", "b"), ("ac", "b")], ignores={}, exclude=["/a**/"])
@example(files=[("a", "a")], ignores={}, exclude=["/**", "!a/"])
@example(files=[("a", "b"), ("a/c", "b"), ("ac", "b"), ("", "ab")], ignores={}, exclude=["/a**/**"])
@example(files=[("a", "b"), ("a/c", "bd"), ("ac", "b"), ("", "ab")], ignores={}, exclude=["/a**/b**"])
@given(
    files=st.lists(st.tuples(DIRECTORY, st.sampled_from(NAMES)), min_size=1, max_size=12),
    ignores=st.dictionaries(DIRECTORY, st.lists(LINES, min_size=1, max_size=5), max_size=4),
    exclude=st.lists(LINES, max_size=2),
)
def test_ignores_what_git_ignores(
    files: list[tuple[str, str]], ignores: dict[str, list[str]], exclude: list[str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        git = ["git", "-C", folder, "-c", "core.excludesFile=/dev/null", "-c", "core.quotePath=false"]
        subprocess.run([*git, "init", "-q", "--template="], check=True)
        (root / ".git/info").mkdir()
        (root / ".git/info/exclude").write_text("\n".join(exclude), newline="")
        for directory, name in files:
            place(root / directory / name, "x = 1\n")
        for directory, lines in ignores.items():
            place(root / directory / ".gitignore", "\n".join(lines))
        listed = subprocess.run([*git, "ls-files", "-zo", "--exclude-standard"], check=True, capture_output=True)
        expected = {path for path in listed.stdout.decode().split("\0") if path}
        found = walk(root)
        kept = {file.path for file in found.files}
        kept |= {path for path, reason in found.skipped.items() if reason is not SkipReason.IGNORED}
        assert kept == expected


def place(path: Path, text: str) -> None:
    """Write a file unless a file stands where one of its directories, or a directory where it, should be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, newline="")
    except OSError:
        return
