"""What the store promises: memory equals that of indexing from scratch, whatever happened before, and a process that is
killed leaves nothing half done and loses nothing finished."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from tiny import tiny_model, tiny_tokenizer

import codemem.texts
from codemem.memory.bank import Bank
from codemem.memory.fingerprint import Fingerprint
from codemem.memory.integrity import find_damage
from codemem.memory.snapshot import follow, open_bank
from codemem.memory.store import Store
from codemem.models.memorizing import MemorizingModel
from indexer.documents import hash_of
from indexer.sync import Synced, sync
from indexer.walk import walk

FINGERPRINT = Fingerprint("tiny", "a" * 64, "float32", (2,), 1024, 256)
MODEL = MemorizingModel(tiny_model(), tiny_tokenizer())
PATHS = ["a.py", "b.py", "src/c.py", "src/d.py", "src/deep/e.py", "notes.md"]
CONTENTS = [f"def f{number}():\n    return {number}\n" * (1 + number * 7 % 5) for number in range(6)] + ["", "\0\1"]
RULES = ["", "b.py\n", "src/\n", "*.md\n", "src/*\n!src/deep/\n"]


def synced(root: Path) -> Synced:
    with Store(root, create=True) as store:
        store.bind(FINGERPRINT)
        return sync(store, lambda: MODEL)


def assert_same(one: Bank, other: Bank) -> None:
    assert sorted(one.documents) == sorted(other.documents)
    assert len(one) == len(other)
    for path in one.documents:
        mine, theirs = one.entries(path), other.entries(path)
        assert torch.equal(mine.tokens, theirs.tokens) and torch.equal(mine.lines, theirs.lines)
        assert mine.symbols == theirs.symbols and mine.windows == theirs.windows
        torch.testing.assert_close(mine.layers, theirs.layers, rtol=1e-3, atol=1e-3)


class Edits(RuleBasedStateMachine):
    """People edit, rename, delete, ignore and switch branches; every step is followed by a sync."""

    steps, seconds = 0, 0.0

    @initialize()
    def begin(self) -> None:
        self.root = Path(mkdtemp(prefix="codemem-edits-"))
        self.branches = 1
        self.git("init", "-q", "-b", "branch0")
        self.git("commit", "-q", "--allow-empty", "-m", "empty")
        synced(self.root)
        with Store(self.root) as store:
            self.live = open_bank(store, MODEL.new_bank())

    def git(self, *arguments: str) -> None:
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "core.fsync=none"]
        subprocess.run(["git", "-C", self.root, *who, *arguments], check=True, capture_output=True)

    def settle(self) -> None:
        start = time.perf_counter()
        synced(self.root)
        with Store(self.root) as store:
            follow(store, self.live)
            held = {record.path for record in store.documents()}
            skipped = store.skipped()
        Edits.steps, Edits.seconds = Edits.steps + 1, Edits.seconds + time.perf_counter() - start
        assert held == {file.path for file in walk(self.root).files} - set(skipped)
        assert held == set(self.live.documents)

    @rule(path=st.sampled_from(PATHS), content=st.sampled_from(CONTENTS))
    def write(self, path: str, content: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(content)
        self.settle()

    @rule(path=st.sampled_from(PATHS), line=st.sampled_from(["x = 1\n", "def g():\n    return 2\n"]))
    def edit(self, path: str, line: str) -> None:
        if (self.root / path).is_file():
            with open(self.root / path, "a") as file:
                file.write(line)
        self.settle()

    @rule(path=st.sampled_from(PATHS))
    def delete(self, path: str) -> None:
        (self.root / path).unlink(missing_ok=True)
        self.settle()

    @rule(path=st.sampled_from(PATHS), to=st.sampled_from(PATHS))
    def rename(self, path: str, to: str) -> None:
        if (self.root / path).is_file():
            (self.root / to).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).rename(self.root / to)
        self.settle()

    @rule(rules=st.sampled_from(RULES))
    def ignore(self, rules: str) -> None:
        (self.root / ".gitignore").write_text(rules)
        self.settle()

    @rule(number=st.integers(0, 2))
    def switch(self, number: int) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "work")
        if number < self.branches:
            self.git("checkout", "-qf", f"branch{number}")
        else:
            self.git("checkout", "-qb", f"branch{self.branches}")
            self.branches += 1
        self.settle()

    def teardown(self) -> None:
        """The same as indexing from scratch: on disk, and in the bank that followed."""
        with Store(self.root) as store:
            kept = open_bank(store, MODEL.new_bank())
            assert not find_damage(store)
        shutil.rmtree(self.root / ".codemem")
        synced(self.root)
        with Store(self.root) as store:
            fresh = open_bank(store, MODEL.new_bank())
        assert_same(kept, fresh)
        assert_same(self.live, fresh)
        shutil.rmtree(self.root)


def test_after_500_edits_memory_is_that_of_indexing_from_scratch():
    torch.set_num_threads(1)
    run = settings(
        max_examples=12,
        stateful_step_count=50,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    machine = Edits.TestCase()
    machine.settings = run
    machine.runTest()
    print(f"{Edits.steps} edits, {1000 * Edits.seconds / Edits.steps:.0f} ms each")
    assert Edits.steps >= 500


# Killed processes.

KILLS = 50


def write_files(root: Path, chosen: random.Random, count: int) -> None:
    for number in chosen.sample(range(12), count):
        (root / f"f{number}.py").write_text(f"def f():\n    return {chosen.random()}\n" * 12)


def run_until_killed(root: str, ready: Event) -> None:
    """What the child process does: a sync in small groups, so that there are many moments to be killed at."""
    codemem.texts.GROUP_BYTES = 500
    torch.set_num_threads(1)
    ready.set()
    synced(Path(root))


def finished(root: Path) -> set[str]:
    """The blobs that are on disk under their final names."""
    blobs = root / ".codemem" / "blobs"
    return {file.stem for file in blobs.glob("*.safetensors")} if blobs.is_dir() else set()


def test_killed_at_50_moments_nothing_is_half_done_and_nothing_finished_is_lost(tmp_path, monkeypatch):
    chosen, context = random.Random(0), multiprocessing.get_context("forkserver")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a process that has helpers is not forked
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # before Python 3.14 it does not get that by itself
    context.set_forkserver_preload([__name__, "codemem.memory.snapshot"])
    write_files(tmp_path, chosen, 12)
    synced(tmp_path)
    begun, longest = time.monotonic(), 0.2
    killed = in_the_middle = 0
    # How many moments are between two documents depends on how fast the machine is just then: so many must be.
    while killed < KILLS or (in_the_middle < KILLS // 5 and killed < 4 * KILLS):
        write_files(tmp_path, chosen, 8)
        before, ready = len(finished(tmp_path)), context.Event()
        child = context.Process(target=run_until_killed, args=(str(tmp_path), ready))
        child.start()
        assert ready.wait(60)
        start = time.monotonic()
        child.join(timeout=chosen.uniform(0, longest))
        if not child.is_alive():
            longest = time.monotonic() - start
            continue
        child.kill()
        child.join()
        killed += 1
        longest *= 1.05
        done = finished(tmp_path)
        in_the_middle += before < len(done) < before + 8
        with Store(tmp_path) as store:
            assert not find_damage(store), "what is alive is whole"
            open_bank(store, MODEL.new_bank())
            wanted = {store.blob_name(file.path, hash_of(file.absolute.read_bytes())) for file in walk(tmp_path).files}
        after = synced(tmp_path)
        assert after.encoded == len(wanted - done), "nothing that was finished is encoded again"
        assert after.documents == 12
    seconds = time.monotonic() - begun
    print(f"{killed} kills, {in_the_middle} of them between the first and the last of 8 documents, {seconds:.0f} s")
    assert in_the_middle >= KILLS // 5


# Content that must go.


@pytest.mark.parametrize("how", ["deleted", "ignored"])
def test_what_must_go_is_never_read_again(tmp_path, how):
    secret = "def the_secret_way():\n    return 42\n"
    (tmp_path / "a.py").write_text("x = 1\n" * 40)
    (tmp_path / "gone.py").write_text(secret * 9)
    synced(tmp_path)
    with Store(tmp_path) as store:
        live = open_bank(store, MODEL.new_bank())
    keys = live.entries("gone.py").layers[2][:, :, 0].transpose(0, 1).clone()
    if how == "deleted":
        (tmp_path / "gone.py").unlink()
    else:
        (tmp_path / ".gitignore").write_text("gone.py\n")
    synced(tmp_path)
    with Store(tmp_path) as store:
        follow(store, live)
        later = open_bank(store, MODEL.new_bank())
    for bank in (live, later):
        rows = bank.search(2, keys, len(bank))
        assert {bank.place(row).path for row in rows.flatten().tolist() if row >= 0} == {"a.py"}
