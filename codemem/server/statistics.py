"""What completions are worth to this user: counts and times, kept on this machine, and not a letter of code.

SQLite in the user's state directory, one row for each completion: the day, how long it took, whether it was shown,
accepted, and still there after a minute. Rows are written in batches, by whichever daemon.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from statistics import quantiles
from typing import Any

from platformdirs import user_state_dir

from codemem.errors import CodememError

# Days for which rows are kept.
MOST_DAYS = 400
_SCHEMA = """
CREATE TABLE IF NOT EXISTS completions (
    id TEXT PRIMARY KEY, day INTEGER NOT NULL, ms REAL NOT NULL, characters INTEGER NOT NULL, shown INTEGER NOT NULL,
    accepted INTEGER NOT NULL, kept INTEGER);
"""


@dataclass
class Counted:
    """One completion. id: random; day: since 1970, UTC; ms: from the request's arrival to the answer; characters:
    offered, 0 where there was nothing to say; shown; accepted: characters; kept: whether what was accepted still stood
    in the document a minute later, None where that is not known."""

    id: str
    day: int
    ms: float
    characters: int
    shown: bool = False
    accepted: int = 0
    kept: bool | None = None


@dataclass(frozen=True)
class Summary:
    """Of the completions of some days. asked: all; offered: those with text; shown, accepted, kept: of these; known:
    accepted ones of which it is known whether they were kept; p50, p90, p99: milliseconds of all that were asked, None
    without any."""

    asked: int
    offered: int
    shown: int
    accepted: int
    kept: int
    known: int
    p50: float | None
    p90: float | None
    p99: float | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def state_dir() -> Path:
    """The user's state directory of codemem, 0700. CODEMEM_STATE names another. Raises CodememError where it cannot be
    made."""
    path = Path(os.environ.get("CODEMEM_STATE") or user_state_dir("codemem")).expanduser().absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
    except OSError as error:
        raise CodememError(
            f"the state directory {path} cannot be used: {error.strerror}",
            "set CODEMEM_STATE to a directory that you can write",
        ) from error
    return path


def today() -> int:
    return int(time.time()) // 86_400


class Statistics:
    """The file of statistics."""

    def __init__(self, folder: Path | None = None) -> None:
        """Open it, in the state directory by default. Raises CodememError where it cannot be."""
        self.file = (folder or state_dir()) / "statistics.db"

    def write(self, rows: list[Counted]) -> None:
        """Add completions, or what has become of them. Raises CodememError."""
        names = ", ".join(field.name for field in fields(Counted))
        marks = ", ".join("?" for _ in fields(Counted))
        with self._connection() as db:
            db.executemany(f"INSERT OR REPLACE INTO completions ({names}) VALUES ({marks})", map(astuple, rows))
            db.execute("DELETE FROM completions WHERE day < ?", (today() - MOST_DAYS,))

    def summary(self, days: int | None = None) -> Summary:
        """Of the last so many days, today included; of all without. Raises CodememError."""
        first = 0 if days is None else today() - days + 1
        with self._connection() as db:
            rows = db.execute(
                "SELECT ms, characters, shown, accepted, kept FROM completions WHERE day >= ?", (first,)
            ).fetchall()
        times = sorted(row[0] for row in rows)
        cuts = quantiles(times, n=100, method="inclusive") if len(times) > 1 else times * 99
        accepted = [row for row in rows if row[3]]
        return Summary(
            asked=len(rows),
            offered=sum(row[1] > 0 for row in rows),
            shown=sum(row[2] for row in rows),
            accepted=len(accepted),
            kept=sum(row[4] == 1 for row in accepted),
            known=sum(row[4] is not None for row in accepted),
            p50=cuts[49] if cuts else None,
            p90=cuts[89] if cuts else None,
            p99=cuts[98] if cuts else None,
        )

    def clear(self) -> None:
        """Forget all. Raises CodememError."""
        with self._connection() as db:
            db.execute("DELETE FROM completions")

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            os.close(os.open(self.file, os.O_CREAT | os.O_RDWR, 0o600))
            db = sqlite3.connect(self.file, timeout=5)
            try:
                db.executescript(_SCHEMA)
                with db:
                    yield db
            finally:
                db.close()
        except (sqlite3.Error, OSError) as error:
            raise CodememError(f"the statistics in {self.file} cannot be used: {error}", f"rm {self.file}") from error
