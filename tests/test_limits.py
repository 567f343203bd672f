"""A memory that may not grow for ever: what stays, what goes, and when."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from json_docs import answer_of, check_against_documentation
from tiny import tiny_model, tiny_tokenizer

from codemem.errors import CodememError
from codemem.memory.fingerprint import Fingerprint
from codemem.memory.limits import capacity, parse_bytes, surplus
from codemem.memory.store import Store
from codemem.models.memorizing import MemorizingModel
from indexer.changes import compare
from indexer.sync import Synced, sync

FINGERPRINT = Fingerprint("tiny", "a" * 64, "float32", (2,), 1024, 256)
LINE = "x = 1\n"


@pytest.fixture(scope="module")
def model():
    return MemorizingModel(tiny_model(), tiny_tokenizer())


@pytest.fixture
def limited(tmp_path, model):
    return Limited(tmp_path, model)


class Limited:
    """Files of 10 lines, c.py modified last, and a memory of them."""

    def __init__(self, root: Path, model: MemorizingModel) -> None:
        self.root, self.model = root, model
        for age, name in enumerate("cba"):
            self.write(name, 1_000_000_000 - age)
        self.each = self.sync().entries // 3

    def write(self, name: str, seconds: int, text: str = LINE * 10) -> None:
        file = self.root / f"{name}.py"
        file.write_text(text)
        os.utime(file, (seconds, seconds))

    def sync(self, **limits: int) -> Synced:
        with Store(self.root, create=True) as store:
            store.bind(FINGERPRINT)
            for key, value in {"entry_bytes": self.model.new_bank().entry_bytes, **limits}.items():
                store.set(key, str(value))
            return sync(store, lambda: self.model)

    def held(self) -> list[str]:
        with Store(self.root) as store:
            changes = compare(self.root, store)
            assert not (changes.new or changes.changed or changes.gone), "what is over the limit is not stale"
            return [record.path for record in store.documents()]


def test_the_newest_that_fit_stay(limited):
    done = limited.sync(max_entries=2 * limited.each)
    assert limited.held() == ["b.py", "c.py"]
    assert (done.dropped, done.skipped, done.entries) == (1, {"over the limit": 1}, 2 * limited.each)
    assert limited.sync().encoded == 0
    assert limited.held() == ["b.py", "c.py"]


def test_memory_under_a_limit_depends_on_the_tree_alone(limited, tmp_path_factory):
    limited.sync(max_entries=2 * limited.each)
    limited.write("a", 1_000_000_001)
    limited.write("d", 999_000_000)
    limited.sync()
    assert limited.held() == ["a.py", "c.py"]
    assert limited.sync().encoded == 0
    other = tmp_path_factory.mktemp("scratch")
    fresh = Limited.__new__(Limited)
    fresh.root, fresh.model = other, limited.model
    for file in limited.root.glob("*.py"):
        seconds = file.stat().st_mtime
        fresh.write(file.stem, int(seconds), file.read_text())
    fresh.sync(max_entries=2 * limited.each)
    assert fresh.held() == limited.held()


def test_without_the_limit_all_come_back(limited):
    limited.sync(max_entries=limited.each)
    assert limited.held() == ["c.py"]
    done = limited.sync(max_entries=0)
    assert limited.held() == ["a.py", "b.py", "c.py"]
    assert (done.encoded, done.restored) == (0, 2)


def test_one_document_that_is_larger_than_the_limit_is_not_read_again_and_again(limited):
    done = limited.sync(max_entries=limited.each - 1)
    assert limited.held() == [] and done.entries == 0
    assert limited.sync().encoded == 0


def test_a_limit_in_bytes_holds_on_disk(limited, model):
    with Store(limited.root) as store:
        assert capacity(store) is None
        store.set("max_bytes", str(10_000))
        store.set("max_entries", "7")
        assert capacity(store) == min(7, 10_000 // model.new_bank().entry_bytes)


def test_blobs_of_other_branches_stay_until_the_bytes_are_needed_oldest_first(limited):
    for number in range(4):  # four former contents of b.py
        limited.write("b", 1_000_000_100 + number, f"y = {number}\n" * 400)
        limited.sync()
    limited.write("b", 1_000_000_200)
    limited.sync()
    with Store(limited.root) as store:
        kept = surplus(store)
        assert len(kept) == 4
        left = [store.known_blobs()[file.stem].left_ns for file, _ in kept]
        assert left == sorted(left) and all(left)
        most = store.nbytes - int(1.5 * kept[0][1])  # SQLite's journal has a few bytes too
    limited.sync(max_bytes=most)
    with Store(limited.root) as store:
        assert surplus(store) == kept[2:]
        assert store.nbytes <= most
    assert len(limited.held()) == 3


def test_prune_deletes_what_nothing_needs(limited, codemem):
    limited.write("b", 1_000_000_100, "y = 1\n" * 10)
    limited.sync()
    blobs = limited.root / ".codemem" / "blobs"
    (blobs / ".half.123").write_bytes(b"of a killed run")
    old = limited.root / ".codemem" / "index" / "replaced"
    old.mkdir(parents=True)
    (old / "layer2.npz").write_bytes(b"old")
    before = {file.name for file in blobs.iterdir()}
    tried = answer_of(codemem("prune", limited.root, "--dry-run", "--json"))
    assert {file.name for file in blobs.iterdir()} == before
    status, out, _ = codemem("prune", limited.root, "--dry-run")
    assert status == 0 and str(old / "layer2.npz") in out
    done = answer_of(codemem("prune", limited.root, "--json"))
    check_against_documentation("prune", done)
    assert (tried["files"], tried["bytes"]) == (done["files"], done["bytes"]) == (3, tried["bytes"])
    assert len(list(blobs.iterdir())) == 3 and not old.exists()
    assert limited.sync().encoded == 0
    assert answer_of(codemem("prune", limited.root, "--json"))["files"] == 0


def test_limits_are_given_once_and_shown(codemem, tmp_path, model):
    from tiny import save_directory

    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "a.py").write_text(LINE)
    directory = save_directory(tmp_path / "tiny")
    assert codemem("index", repository, "--model", directory, "--max-bytes", "2GB", "--max-entries", 3)[0] == 0
    found = json.loads(codemem("status", repository, "--json")[1])
    assert (found["max_bytes"], found["max_entries"], found["skipped"]) == (2 * 10**9, 3, {"over the limit": 1})
    assert "at most 2,000 MB; at most 3 entries" in codemem("status", repository)[1]
    assert codemem("index", repository, "--max-entries", 0)[0] == 0
    assert json.loads(codemem("status", repository, "--json")[1])["documents"] == 1
    status, _, err = codemem("index", repository, "--max-bytes", "much")
    assert status == 1 and "much is no number of bytes" in err


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("17", 17), ("2GB", 2 * 10**9), ("1.5 m", 1_500_000), ("3kb", 3000), ("1T", 10**12)]
)
def test_bytes_are_read_as_people_write_them(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "1 XB", "1e9"])
def test_other_texts_are_no_bytes(text):
    with pytest.raises(CodememError):
        parse_bytes(text)
