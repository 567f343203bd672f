"""What an adapter learns from: repositories, and each one's documents divided into those that are remembered, those
that are trained on, and those that are only measured on."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from codemem.errors import CodememError
from codemem.texts import Text

LEAST_BYTES, MOST_BYTES = 1024, 65_536  # of a document that can be chosen
# Of a repository that is smaller than the budgets: how much of it is measured on, and how much trained on.
_DEVELOPMENT_SHARE, _TRAINING_SHARE = 0.15, 0.35
_DISTRACTORS_TO_MEMORY = 0.5  # bytes of distractors at most, to those of the repositories in memory


@dataclass(frozen=True)
class Repository:
    """Documents that belong together. distractor: they are only ever remembered, never predicted."""

    name: str
    texts: tuple[Text, ...]
    distractor: bool = False


@dataclass(frozen=True)
class Budget:
    """Bytes of source, of all repositories together. memory: in the bank, beside `distractors`; training, development:
    to choose pieces from."""

    memory: int = 1_100_000
    distractors: int = 500_000
    training: int = 300_000
    development: int = 150_000

    def of_repository(self, repositories: int) -> int:
        """Bytes that are used of one of so many repositories that are not distractors."""
        return (self.memory + self.training + self.development) // max(1, repositories)


@dataclass(frozen=True)
class Corpus:
    """The documents of a calibration, in seeded order, none of them twice.

    memory: (name in the bank, document) of the repositories and the distractors; the name begins with that of the
    repository, since two may have the same paths. training, development: (name of the repository, document), documents
    that are never in the bank.
    """

    memory: tuple[tuple[str, Text], ...]
    training: tuple[tuple[str, Text], ...]
    development: tuple[tuple[str, Text], ...]

    @property
    def digest(self) -> str:
        """64 hexadecimal digits of everything in it, in its order."""
        lines = [
            "\0".join((part, name, text.path, hash_of(text)))
            for part, documents in (
                ("memory", self.memory),
                ("training", self.training),
                ("development", self.development),
            )
            for name, text in documents
        ]
        return hashlib.sha256("\n".join(lines).encode("utf-8", "replace")).hexdigest()


def bytes_of(text: Text) -> int:
    return len(text.text.encode("utf-8", "replace"))


def hash_of(text: Text) -> str:
    """SHA-256 of the text, in hex."""
    return hashlib.sha256(text.text.encode("utf-8", "replace")).hexdigest()


def suitable(size: int) -> bool:
    """Whether a document of so many bytes can be chosen."""
    return LEAST_BYTES <= size <= MOST_BYTES


def neighbourhood(sizes: Sequence[int], wanted: int, seed: str) -> list[int]:
    """Places in a list of documents, ordered by path, whose sizes add up to `wanted` bytes at least: all, or a run that
    starts at a place drawn by chance and goes on from the first after the last.

    A run, since documents that stand together belong together, and in use memory holds the whole repository: documents
    drawn one by one out of a large one would be strangers to each other.
    """
    chosen, found = [], 0
    start = random.Random(seed).randrange(len(sizes)) if sizes else 0
    for offset in range(len(sizes)):
        if found >= wanted:
            break
        chosen.append((start + offset) % len(sizes))
        found += sizes[chosen[-1]]
    return sorted(chosen)


def split(repositories: Sequence[Repository], budget: Budget, seed: int) -> Corpus:
    """Divide the documents of all repositories, by a seeded shuffle of each.

    Documents outside LEAST_BYTES to MOST_BYTES are left out, and of those with the same text all but the first. Raises
    CodememError where two repositories have one name, and where there is too little to learn from.
    """
    names = [repository.name for repository in repositories]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise CodememError(f"two repositories of the corpus are called {repeated[0]}", "give each of them once")
    real = [repository for repository in repositories if not repository.distractor]
    seen: set[str] = set()
    memory: list[tuple[str, Text]] = []
    training: list[tuple[str, Text]] = []
    development: list[tuple[str, Text]] = []
    near = 0
    for repository in sorted(repositories, key=lambda repository: repository.distractor):
        documents = _distinct(repository, seen)
        random.Random(f"{seed} {repository.name}").shuffle(documents)
        total = sum(map(bytes_of, documents))
        if not repository.distractor:
            share = len(real)
            measured = _taken(documents, min(budget.development // share, int(_DEVELOPMENT_SHARE * total)))
            development += [(repository.name, text) for text in measured]
            learned = _taken(documents, min(budget.training // share, int(_TRAINING_SHARE * total)))
            training += [(repository.name, text) for text in learned]
            remembered = _taken(documents, budget.memory // share)
            near += sum(map(bytes_of, remembered))
        else:
            wanted = min(budget.distractors, int(_DISTRACTORS_TO_MEMORY * near))
            remembered = _taken(documents, wanted // (len(repositories) - len(real)))
        memory += [(f"{repository.name}/{text.path}", text) for text in remembered]
    if len(training) < 2 or not development or not memory:
        raise CodememError(
            f"the corpus has too few documents of {LEAST_BYTES} to {MOST_BYTES:,} bytes: {len(memory)} to remember, "
            f"{len(training)} to train on, {len(development)} to measure on",
            "give more or larger folders: codemem adapt --corpus FOLDER --corpus FOLDER",
        )
    for part in (memory, training, development):
        random.Random(seed).shuffle(part)
    return Corpus(tuple(memory), tuple(training), tuple(development))


def _distinct(repository: Repository, seen: set[str]) -> list[Text]:
    """A repository's suitable documents by path, without those whose text is among the `seen`, which grow."""
    kept = []
    for text in sorted(repository.texts, key=lambda text: text.path):
        if suitable(bytes_of(text)) and text.text not in seen:
            seen.add(text.text)
            kept.append(text)
    return kept


def _taken(documents: list[Text], wanted: int) -> list[Text]:
    """Take documents out of the list, in its order, as long as they have no more than `wanted` bytes together; at least
    the smallest, if there is one."""
    taken: list[Text] = []
    for text in documents:
        if bytes_of(text) <= wanted:
            taken.append(text)
            wanted -= bytes_of(text)
    taken = taken or sorted(documents, key=bytes_of)[:1]
    for text in taken:
        documents.remove(text)
    return taken
