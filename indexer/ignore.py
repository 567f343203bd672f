"""Which paths a repository ignores: .gitignore, .git/info/exclude and .codememignore, with git's rules.

In one list of rules the last match decides; a list nearer to the path outranks one further up; within git's
own lists .gitignore outranks .git/info/exclude (gitignore(5)). .codememignore may stand in every directory
too, and all of them outrank git's lists, so that `!generated/` there brings back what git ignores and a
plain rule is final.

As in git, a file below an ignored directory cannot be brought back: the walk never asks about it. Unlike
git, a tracked file that matches a rule is ignored, and the user's global excludes file is not read. Matching
is case-sensitive, and a bracket expression with a slash in it matches nothing.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

GIT_IGNORE = ".gitignore"
CODEMEM_IGNORE = ".codememignore"

_REPEATED = re.compile(r"(?<![^/])(?:\*\*/){2,}")
# What has no wildcards, not up to a slash, and stars behind it that end the pattern or are followed by a slash.
_STARRED = re.compile(r"([^*?\[\\]*[^*?\[\\/])\*{2,}(/.*)?", re.DOTALL)


@dataclass(frozen=True)
class Rule:
    """One line of an ignore file. `regex` matches the whole path below `base`, or the name alone."""

    base: str  # "" or a directory with its trailing slash, relative to the top of the walk's rules
    regex: re.Pattern[str]
    ignores: bool
    directories_only: bool
    name_only: bool


@dataclass(frozen=True)
class Rules:
    """The rules in force in one directory, lowest rank first."""

    git: tuple[Rule, ...] = ()
    codemem: tuple[Rule, ...] = ()

    def below(self, directory: Path, base: str) -> Rules:
        """The rules inside `directory`, whose path from the top is `base` ("" or ending in a slash)."""
        exclude = _exclude_file(directory)
        return Rules(
            self.git + (_read(exclude, base) if exclude else ()) + _read(directory / GIT_IGNORE, base),
            self.codemem + _read(directory / CODEMEM_IGNORE, base),
        )

    def verdict(self, path: str, is_directory: bool) -> tuple[bool, bool]:
        """(ignored, wanted): wanted when a .codememignore names the path with `!`."""
        own = _last_match(self.codemem, path, is_directory)
        if own is not None:
            return own, not own
        return bool(_last_match(self.git, path, is_directory)), False


def rules_above(root: Path) -> tuple[Rules, str]:
    """Rules that hold at `root` from the repository around it, and the path of `root` in it ("" or "a/b/").

    A root without a repository around it, or the top of one, has no rules from above; nor has one that the
    repository around it ignores, since it was asked for by name.
    """
    top = next((folder for folder in (root, *root.parents) if os.path.lexists(folder / ".git")), root)
    rules, base = Rules(), ""
    for part in root.relative_to(top).parts:
        rules = rules.below(top / base, base)
        if rules.verdict(base + part, is_directory=True)[0]:
            return Rules(), ""
        base += f"{part}/"
    return rules, base


def _last_match(rules: tuple[Rule, ...], path: str, is_directory: bool) -> bool | None:
    name = path.rsplit("/", 1)[-1]
    for rule in reversed(rules):
        if rule.directories_only and not is_directory:
            continue
        if rule.regex.fullmatch(name if rule.name_only else path[len(rule.base) :]):
            return rule.ignores
    return None


def _read(file: Path, base: str) -> tuple[Rule, ...]:
    try:
        if not stat.S_ISREG(file.lstat().st_mode):  # git does not follow a link here either
            return ()
        text = file.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError:
        return ()
    return tuple(rule for line in text.split("\n") if (rule := _rule(line, base)))


def _rule(line: str, base: str) -> Rule | None:
    pattern = _without_trailing_spaces(line.removesuffix("\r"))
    if not pattern or pattern.startswith("#"):
        return None
    ignores = not pattern.startswith("!")
    pattern = pattern.removeprefix("!")
    directories_only = pattern.endswith("/")
    pattern = pattern.removesuffix("/")
    name_only = "/" not in pattern
    regex = _regex(pattern) if name_only else _path_regex(pattern)
    return Rule(base, regex, ignores, directories_only, name_only) if regex else None


def _without_trailing_spaces(line: str) -> str:
    bare = line.rstrip(" ")
    escaped = (len(bare) - len(bare.rstrip("\\"))) % 2 == 1
    return bare + " " if escaped and len(bare) < len(line) else bare


def _path_regex(pattern: str) -> re.Pattern[str] | None:
    """As `_regex`, of a pattern with a slash. git first takes off what has no wildcards; stars behind it then stand at
    the beginning, where they match slashes."""
    starred = _STARRED.fullmatch(pattern.removeprefix("/"))
    if starred is None:
        return _regex(pattern)
    start, behind = re.escape(starred[1]), starred[2]
    if behind is None:
        return re.compile(start + ".*", re.DOTALL)
    rest = _regex(behind)
    return rest and re.compile(f"{start}(?:.*/)?{rest.pattern.removeprefix('^')}", re.DOTALL)


def _regex(pattern: str) -> re.Pattern[str] | None:
    """The pattern as a regular expression for one path as a whole; None for what git never matches.

    pathspec's own matching counts everything below a matched directory as matched, which is wrong once a
    nearer rule has brought that directory back. So it translates one pattern here and `fullmatch` keeps to
    the path itself.
    """
    if pattern and not pattern.strip("*"):
        pattern = "*"  # two stars are special only beside a slash
    pattern = pattern.removeprefix("/")
    if pattern.endswith("/**"):
        pattern += "/*"  # everything below, but not the directory itself
    pattern = _REPEATED.sub("**/", pattern)
    if pattern in ("**", "**/*"):
        return re.compile(".+", re.DOTALL)
    try:
        regex = GitIgnoreSpecPattern("/" + pattern).regex
    except (ValueError, re.error):
        return None
    return regex if regex is None else re.compile(regex.pattern, re.DOTALL)


def _exclude_file(directory: Path) -> Path | None:
    """info/exclude of the repository whose top is `directory`; a worktree or submodule has a .git file."""
    git = directory / ".git"
    try:
        if git.is_file():
            git = directory / git.read_text("utf-8").removeprefix("gitdir:").strip()
            common = git / "commondir"
            if common.is_file():
                git = git / common.read_text("utf-8").strip()
        return git / "info" / "exclude" if git.is_dir() else None
    except (OSError, ValueError):
        return None
