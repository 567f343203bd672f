"""The files of a repository that are worth remembering, and why the others are not.

The walk decides by name and size alone; what only the content shows is decided in `documents`.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from codemem.errors import CodememError
from codemem.syntax import language_of
from indexer.ignore import Rules, rules_above
from indexer.secrets import any_of, secret_name

MAX_BYTES = 1024 * 1024  # of one file: some 25,000 lines; what is longer is hardly ever written by hand
MAX_DATA_BYTES = 32 * 1024  # of one file in a data format: people write the small ones, programs the large ones


class SkipReason(str, Enum):
    """Why a path is not remembered; the value is what people and JSON read."""

    IGNORED = "ignored"
    VENDORED = "vendored"
    BINARY = "binary"
    MINIFIED = "minified"
    GENERATED = "generated"
    LOCK_FILE = "lock file"
    TOO_LARGE = "too large"
    SECRET = "secret"
    DATA = "data"
    UNREADABLE = "unreadable"
    SYMLINK = "symlink"
    EMPTY = "empty"
    NOT_UTF8 = "not utf-8"
    UNKNOWN_LANGUAGE = "unknown language"
    OVER_LIMIT = "over the limit"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class SourceFile:
    """A file to read. `path` is relative to the root, with slashes; `size` in bytes."""

    path: str
    absolute: Path
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Walk:
    """`files` by path; `skipped`: path to reason, a pruned directory once and with a trailing slash."""

    files: tuple[SourceFile, ...]
    skipped: dict[str, SkipReason]


# Never entered and never counted.
OWN = frozenset({".git", ".codemem", ".hg", ".svn", ".jj"})

_VENDORED_NAMES = """
    node_modules bower_components jspm_packages vendor _vendor third_party third-party thirdparty 3rdparty
    site-packages dist-packages .venv venv virtualenv __pycache__ __pypackages__ .tox .nox .eggs .mypy_cache
    .pytest_cache .ruff_cache .hypothesis .ipynb_checkpoints .gradle .m2 .idea .next .nuxt .svelte-kit
    .angular .turbo .parcel-cache .yarn .pnpm-store .terraform .bundle Pods Carthage DerivedData .dart_tool
    elm-stuff .stack-work .cache htmlcov .vs .vscode-test
"""
_VENDORED = frozenset(_VENDORED_NAMES.split())

# Names that build tools give their output and people give their sources. Output is nearly always ignored by
# the repository already, so such a directory is taken for output only beside the file that makes the tool
# write there.
_BUILD_FILES = {
    "build": (
        "setup.py",
        "pyproject.toml",
        "package.json",
        "CMakeLists.txt",
        "build.gradle*",
        "pubspec.yaml",
    ),
    "dist": ("setup.py", "pyproject.toml", "package.json", "*.cabal"),
    "out": ("package.json", "CMakeLists.txt", "build.gradle*"),
    "target": ("Cargo.toml", "pom.xml", "build.sbt", "project.clj"),
    "bin": ("*.csproj", "*.fsproj", "*.vbproj"),
    "obj": ("*.csproj", "*.fsproj", "*.vbproj"),
    "deps": ("mix.exs",),
    "_build": ("mix.exs", "dune-project", "rebar.config", "conf.py"),
    "coverage": ("package.json",),
    "zig-cache": ("build.zig",),
    "zig-out": ("build.zig",),
}

# A directory that holds one of these is an environment or a cache, whatever its name.
_VENDORED_MARKS = frozenset({"pyvenv.cfg", "conda-meta", "CACHEDIR.TAG"})

# Patterns of file names in lower case, in the order in which they are tried.
_NAMES = (
    (
        SkipReason.LOCK_FILE,
        """*.lock *.lockb *.lockfile *.lock.hcl package-lock.json npm-shrinkwrap.json pnpm-lock.yaml go.sum
        packages.lock.json package.resolved conda-lock.yml deno.lock""",
    ),
    (SkipReason.MINIFIED, "*.min.js *.min.mjs *.min.css *-min.js *.bundle.js *.chunk.js"),
    (
        SkipReason.GENERATED,
        """*_pb2.py *_pb2.pyi *_pb2_grpc.py *.pb.go *.pb.cc *.pb.h *.pb.ts *_pb.js *_pb.d.ts *.g.dart
        *.freezed.dart *.g.cs *.designer.cs *.generated.* *_generated.go zz_generated* *.map parser.out""",
    ),
    (
        SkipReason.BINARY,
        """*.png *.jpg *.jpeg *.gif *.bmp *.ico *.icns *.webp *.avif *.tif *.tiff *.psd *.mp3 *.mp4 *.m4a
        *.wav *.ogg *.flac *.avi *.mov *.webm *.mkv *.ttf *.otf *.woff *.woff2 *.eot *.pdf *.doc *.docx *.xls
        *.xlsx *.ppt *.pptx *.zip *.gz *.tgz *.bz2 *.xz *.zst *.7z *.rar *.tar *.jar *.war *.whl *.egg *.apk
        *.deb *.rpm *.dmg *.iso *.exe *.dll *.so *.so.* *.dylib *.a *.o *.obj *.lib *.class *.pyc *.pyo *.pyd
        *.wasm *.bin *.dat *.db *.sqlite *.sqlite3 *.pkl *.pickle *.npy *.npz *.pt *.pth *.onnx *.safetensors
        *.gguf *.h5 *.hdf5 *.parquet *.arrow *.feather *.mo *.ds_store *.swp""",
    ),
    (
        SkipReason.DATA,
        "*.csv *.tsv *.jsonl *.ndjson *.geojson *.ipynb *.svg *.log *.snap *.har *.po *.pot *.srt *.vtt",
    ),
)
_NAME_PATTERNS = tuple((reason, any_of(patterns.split())) for reason, patterns in _NAMES)
_DATA_LANGUAGES = frozenset({"json", "xml", "yaml"})


def walk(root: Path, *, max_bytes: int = MAX_BYTES) -> Walk:
    """All files below `root` that may be read as source.

    Ignore rules are in `ignore`; .git, .codemem and the directories of other version control systems are
    passed over in silence. The files of a nested repository or submodule are walked like any others, under
    its own ignore files and those above it: the code outside calls them. A `!` rule in a .codememignore
    brings back what would be skipped by its name, vendored directories included, but never a secret. Links
    are not followed: one could lead out of the repository or round in circles. A file without a suffix
    stays, since its first line may name an interpreter.

    Raises CodememError where `root` is no directory or cannot be listed; nothing below it raises.
    """
    root = Path(os.path.abspath(root))
    if not root.is_dir():
        problem = "is not a directory" if root.exists() else "does not exist"
        raise CodememError(f"{root} {problem}", "codemem index DIRECTORY")
    rules, base = rules_above(root)
    files: list[SourceFile] = []
    skipped: dict[str, SkipReason] = {}
    waiting: list[tuple[str, Rules, bool]] = [("", rules, True)]  # directory, rules above it, named by a ! rule
    while waiting:
        directory, rules, wanted = waiting.pop()
        try:
            with os.scandir(root / directory) as scan:
                entries = list(scan)
        except OSError as error:
            if not directory:
                raise CodememError(f"cannot list {root}: {error.strerror}", f"ls -ld {root}") from error
            skipped[directory] = SkipReason.UNREADABLE
            continue
        siblings = frozenset(entry.name for entry in entries)
        if not wanted and siblings & _VENDORED_MARKS:
            skipped[directory] = SkipReason.VENDORED
            continue
        rules = rules.below(root / directory, base + directory)
        for entry in entries:
            if entry.name in OWN:
                continue
            path = directory + entry.name
            is_directory = entry.is_dir(follow_symlinks=False)
            ignored, wanted = rules.verdict(base + path, is_directory)
            if is_directory:
                path += "/"
            if not _is_text(path):  # neither JSON nor SQLite could hold the name
                skipped[os.fsencode(path).decode("utf-8", "backslashreplace")] = SkipReason.UNREADABLE
            elif ignored:
                skipped[path] = SkipReason.IGNORED
            elif is_directory:
                if not wanted and _is_vendored(entry.name, siblings):
                    skipped[path] = SkipReason.VENDORED
                else:
                    waiting.append((path, rules, wanted))
            else:
                found = _file(path, root / path, max_bytes, wanted)
                if isinstance(found, SkipReason):
                    skipped[path] = found
                else:
                    files.append(found)
    files.sort(key=lambda file: file.path)
    return Walk(tuple(files), dict(sorted(skipped.items())))


def verdict(root: Path, path: str, size: int) -> SkipReason | None:
    """Why the walk of `root` would pass over a path in it, None where it would not; of a text of `size` bytes that is
    open in an editor, and need not be on disk."""
    root = Path(os.path.abspath(root))
    rules, base = rules_above(root)
    *folders, name = PurePosixPath(path).parts
    directory, wanted = "", True
    for folder in folders:
        siblings = _names(root / directory)
        if not wanted and siblings & _VENDORED_MARKS:
            return SkipReason.VENDORED
        rules = rules.below(root / directory, base + directory)
        ignored, wanted = rules.verdict(base + directory + folder, is_directory=True)
        if ignored or folder in OWN:
            return SkipReason.IGNORED
        if not wanted and _is_vendored(folder, siblings):
            return SkipReason.VENDORED
        directory += f"{folder}/"
    if not wanted and _names(root / directory) & _VENDORED_MARKS:
        return SkipReason.VENDORED
    rules = rules.below(root / directory, base + directory)
    ignored, wanted = rules.verdict(base + directory + name, is_directory=False)
    return SkipReason.IGNORED if ignored else _named(path, wanted) or _sized(path, size, MAX_BYTES, wanted)


def _names(directory: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(directory))
    except OSError:
        return frozenset()


def _is_text(path: str) -> bool:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _is_vendored(name: str, siblings: frozenset[str]) -> bool:
    if name in _VENDORED or name.endswith((".egg-info", ".dist-info")):
        return True
    return any(fnmatchcase(sibling, mark) for mark in _BUILD_FILES.get(name, ()) for sibling in siblings)


def _file(path: str, absolute: Path, max_bytes: int, wanted: bool) -> SourceFile | SkipReason:
    """The file to read, or why not. `wanted`: a `!` rule names it, so its name matters only as a secret's."""
    try:
        status = absolute.lstat()
    except OSError:
        return SkipReason.UNREADABLE
    if stat.S_ISLNK(status.st_mode):
        return SkipReason.SYMLINK
    if not stat.S_ISREG(status.st_mode):  # opening a pipe or a device could wait for ever
        return SkipReason.UNREADABLE
    reason = _named(path, wanted) or _sized(path, status.st_size, max_bytes, wanted)
    return reason or SourceFile(path, absolute, status.st_size, status.st_mtime_ns)


def _named(path: str, wanted: bool) -> SkipReason | None:
    """Why a file of this name is not read, None where it is."""
    if secret_name(path):
        return SkipReason.SECRET
    if not wanted and (reason := _name_reason(path)):
        return reason
    if language_of(path) is None and (PurePosixPath(path).suffix or path.rpartition("/")[2].startswith(".")):
        return SkipReason.UNKNOWN_LANGUAGE
    return None


def _sized(path: str, size: int, max_bytes: int, wanted: bool) -> SkipReason | None:
    """Why a file of so many bytes is not read, None where it is."""
    if size == 0:
        return SkipReason.EMPTY
    if size > max_bytes:
        return SkipReason.TOO_LARGE
    if language_of(path) in _DATA_LANGUAGES and size > MAX_DATA_BYTES and not wanted:
        return SkipReason.DATA
    return None


def _name_reason(path: str) -> SkipReason | None:
    name = path.rpartition("/")[2].lower()
    return next((reason for reason, pattern in _NAME_PATTERNS if pattern.match(name)), None)
