"""Watching: what people and their tools do to files, and what memory holds afterwards."""

from __future__ import annotations

import multiprocessing
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tiny import tiny_model, tiny_tokenizer

from codemem.errors import CodememError
from codemem.memory.fingerprint import Fingerprint
from codemem.memory.order import drifted, snapshot_order
from codemem.memory.store import Store
from codemem.models.memorizing import MemorizingModel
from indexer.sync import Synced, sync
from indexer.watch import watch

FINGERPRINT = Fingerprint("tiny", "a" * 64, "float32", (2,), 1024, 256)
A, B = "def a():\n    return 1\n", "def b():\n    return 2\n"


class Watched:
    """A repository that is watched by a thread. `next` is what the next sync did that changed something."""

    def __init__(self, root: Path, model: MemorizingModel) -> None:
        self.root, self.loads, self._model = root, 0, model
        self.done: queue.Queue[Synced] = queue.Queue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        self.first = self.next()

    def _watch(self) -> None:
        with Store(self.root, create=True) as store:
            store.bind(FINGERPRINT)
            watch(store, self._load, self._stop, self.done.put)

    def _load(self) -> MemorizingModel:
        self.loads += 1
        return self._model

    def next(self) -> Synced:
        return self.done.get(timeout=20)

    def quiet(self) -> bool:
        time.sleep(0.6)
        return self.done.empty()

    def documents(self) -> list[str]:
        with Store(self.root) as store:
            return [record.path for record in store.documents()]

    def close(self) -> None:
        self._stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture(scope="module")
def model():
    return MemorizingModel(tiny_model(), tiny_tokenizer())


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "repository"
    root.mkdir()
    (root / "a.py").write_text(A)
    return root


@pytest.fixture
def watched(root, model):
    watched = Watched(root, model)
    yield watched
    watched.close()


def git(root: Path, *arguments: str) -> None:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", "-C", root, *who, *arguments], check=True, capture_output=True)


def test_it_begins_with_what_changed_before(watched):
    assert (watched.first.encoded, watched.first.documents) == (1, 1)
    assert watched.quiet(), "what the store itself writes is no change"


def test_a_saved_a_new_and_a_deleted_file(watched):
    (watched.root / "a.py").write_text(A + B)
    assert watched.next().encoded == 1
    (watched.root / "b.py").write_text(B)
    assert watched.next().encoded == 1
    (watched.root / "a.py").unlink()
    assert watched.next().dropped == 1
    assert watched.documents() == ["b.py"]
    assert watched.loads == 1


def test_a_file_that_is_replaced_as_editors_do_it(watched):
    temporary = watched.root / ".a.py.swp123"
    temporary.write_text(A + B)
    os.replace(temporary, watched.root / "a.py")
    done = watched.next()
    assert (done.encoded, done.dropped, done.documents) == (1, 0, 1)
    assert watched.quiet()


def test_a_burst_is_one_sync(watched):
    for number in range(40):
        (watched.root / f"f{number}.py").write_text(A)
    done = watched.next()
    assert (done.encoded, done.documents) == (40, 41)
    assert watched.quiet()


def test_a_file_that_is_written_in_pieces_is_read_when_it_is_whole(watched):
    with open(watched.root / "slow.py", "w") as file:
        for _ in range(8):
            file.write(B)
            file.flush()
            time.sleep(0.05)
    done = watched.next()
    assert done.encoded == 1 and watched.quiet()
    with Store(watched.root) as store:
        assert store.documents()[1].size == 8 * len(B)


def test_a_file_that_is_only_touched_changes_nothing(watched):
    os.utime(watched.root / "a.py")
    assert watched.quiet()


def test_ignore_files_are_read_again(watched):
    (watched.root / "b.py").write_text(B)
    watched.next()
    (watched.root / ".gitignore").write_text("b.py\n")
    assert watched.next().dropped == 1
    (watched.root / ".gitignore").write_text("")
    done = watched.next()
    assert (done.encoded, done.restored) == (0, 1)


def test_a_branch_is_one_batch_and_the_way_back_encodes_nothing(root, model):
    git(root, "init", "-q", "-b", "main")
    for number in range(30):
        (root / f"f{number}.py").write_text(A)
    git(root, "add", ".")
    git(root, "commit", "-qm", "one")
    git(root, "checkout", "-qb", "other")
    for number in range(30):
        (root / f"f{number}.py").write_text(B)
    git(root, "commit", "-qam", "two")
    git(root, "checkout", "-q", "main")
    watched = Watched(root, model)
    git(root, "checkout", "-q", "other")
    there = watched.next()
    assert (there.encoded, there.dropped) == (30, 0)
    git(root, "checkout", "-q", "main")
    back = watched.next()
    assert (back.encoded, back.restored) == (0, 30)
    assert watched.quiet()
    watched.close()


def test_a_folder_that_moves_in_and_out_is_followed(watched, tmp_path):
    outside = tmp_path / "package"
    outside.mkdir()
    (outside / "c.py").write_text(B)
    outside.rename(watched.root / "package")
    assert watched.next().encoded == 1
    (watched.root / "package").rename(outside)
    assert watched.next().dropped == 1


def test_a_store_that_another_writes_to_is_waited_for(watched):
    with Store(watched.root) as other, other.writing():
        (watched.root / "b.py").write_text(B)
        assert watched.quiet()
    assert watched.next().encoded == 1


def test_the_index_is_made_beside_edits(watched):
    (watched.root / "large.py").write_text("x = 1\n" * 6000)
    assert watched.next().encoded == 1
    (watched.root / "b.py").write_text(B)
    assert watched.next().encoded == 1
    with Store(watched.root) as store:
        deadline = time.monotonic() + 60
        while drifted(store) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not drifted(store)
        folder, order = snapshot_order(store)
        assert folder is not None and "large.py" in {path for path, _, _ in order}
    assert watched.quiet(), "the index is no change"


def test_an_index_that_is_half_made_goes_with_the_watcher(root, model):
    watched = Watched(root, model)
    (root / "large.py").write_text("x = 1\n" * 6000)
    watched.next()
    deadline = time.monotonic() + 20
    while not multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert multiprocessing.active_children()
    watched.close()
    assert not multiprocessing.active_children()
    with Store(root) as store:
        sync(store, lambda: model)
        assert not drifted(store)
        assert len(list((store.folder / "index").iterdir())) == 1


def test_a_second_watcher_is_told_who_is_first(watched):
    code = f"""
from pathlib import Path
from codemem.memory.store import Store
with Store(Path({str(watched.root)!r})) as store, store.watching():
    pass
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"another process ({os.getpid()}) is watching" in answer.stderr


def test_a_folder_without_watches_left_is_looked_at_now_and_then(root, model, monkeypatch):
    def refuse(*_):
        raise OSError(28, "inotify watch limit reached")

    monkeypatch.setattr("watchdog.observers.api.BaseObserver.start", refuse)
    monkeypatch.setattr("indexer.watch.POLLING", 0.1)
    watched = Watched(root, model)
    (root / "b.py").write_text(B)
    assert watched.next().encoded == 1
    watched.close()


def test_what_cannot_be_written_ends_it_with_an_error(root, model):
    with Store(root, create=True) as store:
        store.bind(FINGERPRINT)
        store.blobs.rmdir()
        store.blobs.write_text("a file in its place")
        with pytest.raises(CodememError):
            watch(store, lambda: model, threading.Event(), lambda _: None)
