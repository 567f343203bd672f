"""The repository into memory: what a run reads, what the next one need not, and what interrupts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from codemem.errors import CodememError
from codemem.memory.bank import Bank
from codemem.memory.fingerprint import Fingerprint
from codemem.memory.snapshot import open_bank
from codemem.memory.store import Store
from codemem.models.memorizing import MemorizingModel
from codemem.models.tokenizer import tokenize
from codemem.texts import GROUP_BYTES, grouped
from indexer import documents
from indexer.changes import compare
from indexer.documents import text_of
from indexer.sync import Progress, Synced, sync
from indexer.walk import MAX_BYTES, SourceFile

TOKENIZER = tiny_tokenizer()
FINGERPRINT = Fingerprint("tiny", "a" * 64, "float32", (2,), 1024, 256)
SECRET = f"key_id = '{'AKIA' + 'Q3EGRTWPLK7ZXN4V'}'\n"


@pytest.fixture(scope="module")
def model():
    return MemorizingModel(tiny_model(), TOKENIZER)


@pytest.fixture
def repository(tmp_path, model):
    return Repository(tmp_path / "repository", model)


class Repository:
    """A folder of sources and its memory."""

    def __init__(self, root: Path, model: MemorizingModel) -> None:
        self.root, self.model = root, model
        root.mkdir()

    def write(self, **files: str | bytes) -> None:
        """Write files: `a="x"` is a.py."""
        for name, content in files.items():
            self.put(f"{name}.py", content)

    def put(self, path: str, content: str | bytes) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    def sync(self, report=lambda _: None) -> Synced:
        with Store(self.root, create=True) as store:
            store.bind(FINGERPRINT)
            return sync(store, lambda: self.model, report)

    def bank(self) -> Bank:
        """What a process that comes later reads."""
        with Store(self.root) as store:
            bank = open_bank(store, self.model.new_bank())
            assert {record.path: record.entries for record in store.documents()} == {
                path: len(bank.entries(path)) for path in bank.documents
            }
            return bank

    def held(self) -> dict[str, int]:
        """Document -> entries."""
        bank = self.bank()
        return {path: len(bank.entries(path)) for path in bank.documents}

    def skipped(self) -> dict[str, str]:
        with Store(self.root) as store:
            return store.skipped()

    def stale(self) -> tuple[int, int, int]:
        """New, changed and gone files."""
        with Store(self.root) as store:
            changes = compare(self.root, store)
            return len(changes.new), len(changes.changed), len(changes.gone)


def tokens_in(*texts: str) -> int:
    return sum(len(tokenize(TOKENIZER, text)[0]) for text in texts)


A, B, C = "def a():\n    return 1\n", "def b():\n    return a() + 1\n", "class C:\n    pass\n"


def test_the_summary_counts_what_is_there_and_what_was_done(repository):
    repository.write(a=A, b=B)
    repository.put("logo.png", b"\x89PNG")
    repository.put("node_modules/x/index.js", "x")
    repository.put("src/c.py", C)
    with Store(repository.root, create=True) as store:
        store.bind(FINGERPRINT)
        summary = sync(store, lambda: repository.model)
        files = [file for file in store.folder.rglob("*") if file.is_file()]
        assert summary.bytes == sum(file.stat().st_size for file in files)
    assert summary.documents == 3
    assert summary.entries == summary.tokens == tokens_in(A, B, C)
    assert summary.skipped == {"binary": 1, "vendored": 1}
    assert summary.dropped == 0
    assert summary.seconds > 0
    assert summary.tokens_per_second == pytest.approx(summary.tokens / summary.seconds)
    assert repository.held() == {"a.py": tokens_in(A), "b.py": tokens_in(B), "src/c.py": tokens_in(C)}
    assert (summary.encoded, summary.kept) == (3, 0)
    assert json.loads(json.dumps(summary.as_json()))["documents"] == 3


def test_progress_ends_with_all_bytes_done(repository):
    big = "x = 1\n" * (GROUP_BYTES // 12 + 1)
    repository.write(a=big, b=big, c=big, d=A)
    steps: list[Progress] = []
    repository.sync(steps.append)
    assert [step.path for step in steps] == ["b.py", "d.py", "building the index"], "large enough for one"
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert {step.total for step in steps} == {3 * len(big) + len(A)} == {steps[-1].done}
    assert steps[-1].tokens == tokens_in(big) * 3 + tokens_in(A)


def test_groups_hold_all_files_in_order_and_end_when_they_are_large_enough():
    files = tuple(
        SourceFile(str(i), Path(str(i)), size, 0) for i, size in enumerate((10, GROUP_BYTES, 5, 5, 40_000, 1))
    )
    groups = list(grouped(files, lambda file: file.size))
    assert [file for group in groups for file in group] == list(files)
    assert [len(group) for group in groups] == [2, 3, 1]


def test_a_second_run_encodes_nothing(repository):
    repository.write(a=A, b=B)
    first = repository.sync()
    second = repository.sync()
    assert (second.tokens, second.documents, second.entries) == (0, first.documents, first.entries)
    assert repository.stale() == (0, 0, 0)


def test_only_what_changed_is_encoded(repository):
    repository.write(a=A, b=B)
    repository.sync()
    longer = A + "\n\n" + C
    repository.write(a=longer, c=C)
    assert repository.stale() == (1, 1, 0)
    summary = repository.sync()
    assert summary.tokens == tokens_in(longer, C)
    assert repository.held() == {"a.py": tokens_in(longer), "b.py": tokens_in(B), "c.py": tokens_in(C)}
    assert summary.documents == 3 and summary.dropped == 0


def test_a_file_that_was_touched_is_not_encoded_again(repository):
    repository.write(a=A)
    repository.sync()
    os.utime(repository.root / "a.py", ns=(1, 1))
    assert repository.stale() == (0, 0, 0), "the content is what counts"
    summary = repository.sync()
    assert (summary.tokens, summary.encoded, summary.kept) == (0, 0, 1)
    assert repository.stale() == (0, 0, 0)


def test_a_file_with_the_same_content_elsewhere_is_another_document(repository):
    repository.write(a=A)
    repository.sync()
    (repository.root / "a.py").rename(repository.root / "moved.py")
    summary = repository.sync()
    assert (summary.tokens, summary.dropped) == (tokens_in(A), 1)
    assert list(repository.held()) == ["moved.py"]


def gone_by_deletion(repository: Repository) -> None:
    (repository.root / "b.py").unlink()


def gone_by_gitignore(repository: Repository) -> None:
    repository.put(".gitignore", "b.py\n")


def gone_by_emptying(repository: Repository) -> None:
    repository.write(b="")


def gone_by_becoming_binary(repository: Repository) -> None:
    repository.write(b=b"\0\1\2\3" * 30)


def gone_by_another_encoding(repository: Repository) -> None:
    repository.write(b="# é\n".encode("latin-1"))


def gone_by_growing(repository: Repository) -> None:
    repository.write(b="x = 1\n" * (MAX_BYTES // 6 + 1))


def gone_by_becoming_a_link(repository: Repository) -> None:
    gone_by_deletion(repository)
    (repository.root / "b.py").symlink_to(repository.root / "a.py")


@pytest.mark.parametrize(
    ("go", "reason"),
    [
        (gone_by_deletion, None),
        (gone_by_gitignore, "ignored"),
        (gone_by_emptying, "empty"),
        (gone_by_becoming_binary, "binary"),
        (gone_by_another_encoding, "not utf-8"),
        (gone_by_growing, "too large"),
        (gone_by_becoming_a_link, "symlink"),
    ],
)
def test_what_may_not_be_remembered_any_more_is_not_read_any_more(repository, go, reason):
    repository.write(a=A, b=B)
    repository.sync()
    go(repository)
    repository.sync()
    assert list(repository.held()) == ["a.py"]
    assert repository.skipped().get("b.py") == reason
    assert repository.stale() == (0, 0, 0), "memory is what the tree allows"
    assert repository.sync().tokens == 0


def test_what_was_refused_is_read_as_soon_as_it_may_be(repository):
    repository.write(a=b"\0\1")
    assert repository.sync().documents == 0
    repository.write(a=A)
    assert repository.stale() == (1, 0, 0)
    repository.sync()
    assert repository.held() == {"a.py": tokens_in(A)}
    assert repository.skipped() == {}


def test_an_empty_repository_has_an_empty_memory(repository):
    summary = repository.sync()
    assert (summary.documents, summary.entries, summary.tokens, summary.skipped) == (0, 0, 0, {})
    assert repository.held() == {}


def test_odd_files_are_counted_and_passed_over(repository):
    repository.write(a=A, empty="", latin="# é\n".encode("latin-1"), huge="x = 1\n" * (MAX_BYTES // 6 + 1))
    (repository.root / "link.py").symlink_to("a.py")
    (repository.root / "dangling.py").symlink_to("nowhere.py")
    os.mkfifo(repository.root / "pipe.py")
    summary = repository.sync()
    assert list(repository.held()) == ["a.py"]
    assert summary.skipped == {"empty": 1, "not utf-8": 1, "symlink": 2, "too large": 1, "unreadable": 1}


def test_a_file_that_vanishes_or_turns_into_a_link_during_the_run_is_passed_over(repository):
    big = "x = 1\n" * (GROUP_BYTES // 6 + 1)
    repository.write(a=big, b=B, c=C)

    def report(step: Progress) -> None:
        if step.path == "a.py":
            (repository.root / "b.py").unlink()
            (repository.root / "c.py").unlink()
            (repository.root / "c.py").symlink_to("/etc/hostname")

    repository.sync(report)
    assert list(repository.held()) == ["a.py"]
    assert repository.skipped() == {"b.py": "unreadable", "c.py": "unreadable"}


def test_text_is_memorised_as_people_see_it(repository):
    raw = b"\xef\xbb\xbfdef a():\r\n    return 'x'\r\n"
    repository.write(a=raw)
    repository.sync()
    assert repository.held() == {"a.py": tokens_in(text_of(raw))}


def test_symbols_come_with_the_entries(repository):
    repository.put("door.py", "class Door:\n    def open(self):\n        return 1\n")
    repository.sync()
    bank = repository.bank()
    assert {str(bank.place(row)) for row in range(len(bank))} == {
        "door.py:1 in Door",
        "door.py:2 in Door.open",
        "door.py:3 in Door.open",
    }


def test_an_interrupted_run_keeps_what_is_finished_and_the_next_goes_on(repository):
    big = [f"# {name}\n" + "x = 1\n" * (GROUP_BYTES // 6) for name in "abc"]
    repository.write(**dict(zip("abc", big, strict=True)))

    def interrupt(step: Progress) -> None:
        if step.path == "a.py":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        repository.sync(interrupt)
    assert list(repository.held()) == ["a.py"]
    assert repository.sync().tokens == tokens_in(*big[1:])
    assert list(repository.held()) == ["a.py", "b.py", "c.py"]


def test_a_damaged_blob_is_encoded_again(repository):
    repository.write(a=A, b=B)
    repository.sync()
    with Store(repository.root) as store:
        file = store.blob_path(store.documents()[0].blob)
    file.write_bytes(file.read_bytes()[:-1])
    assert repository.sync().tokens == tokens_in(A)
    assert len(repository.held()) == 2


def test_a_branch_away_and_back_encodes_nothing(repository):
    def git(*arguments: str) -> None:
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", "-C", repository.root, *who, *arguments], check=True, capture_output=True)

    repository.write(a=A, b=B)
    git("init", "-q", "-b", "main")
    git("add", ".")
    git("commit", "-qm", "one")
    repository.sync()
    before = repository.held()
    git("checkout", "-qb", "other")
    repository.write(a=A + A, c=C)
    (repository.root / "b.py").unlink()
    git("add", "-A")
    git("commit", "-qm", "two")
    assert repository.sync().tokens == tokens_in(A + A, C)
    assert repository.held() == {"a.py": tokens_in(A + A), "c.py": tokens_in(C)}
    git("checkout", "-q", "main")
    assert repository.sync().tokens == 0
    assert repository.held() == before
    git("checkout", "-q", "other")
    assert repository.sync().tokens == 0
    assert repository.held() == {"a.py": tokens_in(A + A), "c.py": tokens_in(C)}


def test_memory_after_many_changes_is_that_of_indexing_from_scratch(repository, tmp_path):
    repository.write(a=A, b=B, c=C)
    repository.sync()
    repository.write(a=B, d=C)
    repository.sync()
    (repository.root / "c.py").unlink()
    repository.write(b=A + C)
    repository.sync()
    changed = repository.bank()
    other = Repository(tmp_path / "scratch", repository.model)
    other.write(a=B, b=A + C, d=C)
    other.sync()
    fresh = other.bank()
    assert sorted(changed.documents) == sorted(fresh.documents)
    for path in fresh.documents:
        one, two = changed.entries(path), fresh.entries(path)
        assert torch.equal(one.tokens, two.tokens) and torch.equal(one.lines, two.lines)
        torch.testing.assert_close(one.layers[2], two.layers[2], rtol=1e-3, atol=1e-3)


def test_two_writers_at_once_are_told(repository):
    repository.write(a=A)
    repository.sync()
    code = f"""
import sys
from filelock import FileLock
with FileLock({str(repository.root / ".codemem" / "lock")!r}):
    print("held", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(CodememError, match=r"another process \(\d+\) is indexing") as refusal:
            repository.sync()
        assert refusal.value.hint
        other.stdin.close()
    assert repository.sync().documents == 1, "as soon as the other one has finished"


def test_secret_values_are_never_memorised(repository):
    repository.write(a=A, b=B + SECRET)
    repository.sync()
    with Store(repository.root) as store:
        assert {record.path: record.secrets for record in store.documents()} == {"a.py": 0, "b.py": 1}
    tokens, _ = repository.bank().tokens("b.py", 3, 3)
    text = TOKENIZER.decode(tokens)
    assert "Q3EGRTWPLK7ZXN4V" not in text and "*" * 16 in text
    assert repository.stale() == (0, 0, 0)


def test_what_a_first_run_has_remembered_when_it_is_interrupted_is_not_read_again(repository):
    repository.write(a=A, b=B)

    def interrupted(progress: Progress) -> None:
        raise KeyboardInterrupt

    with Store(repository.root, create=True) as store, pytest.raises(KeyboardInterrupt):
        store.bind(FINGERPRINT)
        sync(store, lambda: repository.model, interrupted)
    assert repository.stale() == (0, 0, 0)


def test_new_rules_for_secrets_look_at_all_documents_and_encode_only_those_with_secrets(repository, monkeypatch):
    with monkeypatch.context() as older:
        older.setattr("indexer.documents.masked", lambda text: (text, 0))
        older.setattr("indexer.sync.SCANNER", "0")
        repository.write(a=A, b=B + SECRET)
        repository.sync()
    done = repository.sync()
    assert (done.encoded, done.kept) == (1, 1)
    tokens, _ = repository.bank().tokens("b.py", 3, 3)
    assert "Q3EGRTWPLK7ZXN4V" not in TOKENIZER.decode(tokens)
    assert repository.sync().encoded == 0


def test_nothing_that_takes_long_is_done_without_a_rest_before_it(repository, monkeypatch):
    done = []
    for name in ("read_raw", "masked"):
        real = getattr(documents, name)
        monkeypatch.setattr(documents, name, lambda given, name=name, real=real: done.append(name) or real(given))
    repository.write(a="x = 1\n", b="y = 2\n", c="z = 3\n")
    with Store(repository.root, create=True) as store:
        store.bind(FINGERPRINT)
        sync(store, lambda: repository.model, rest=lambda: done.append("rest"))
    assert done.count("read_raw") == done.count("masked") == 3
    assert all(before == "rest" for before, after in pairwise(done) if after != "rest")
