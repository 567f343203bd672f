"""How soon memory is true to the working tree: nothing to do, one edited file, a branch switch away and back; and what
reading a text costs that is not saved.

    python -m benchmarks.following --package openai-agents==0.24.0

A bank stays in memory and follows, as in a daemon, which keeps its index when it is idle. After each edit a completion
is asked whether it names the edited line as its source. The kept index is brought up to date apart from the syncs, as
the watcher does it.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import Queue
from typing import Any

from benchmarks.corpus import arguments, bars, report
from codemem.completion.engine import Engine
from codemem.completion.request import Request
from codemem.memory.banks import Banks
from codemem.memory.snapshot import follow, open_bank
from codemem.memory.store import Store
from codemem.models.pretrained import Pretrained, load_memorizing
from indexer.buffers import remember_buffer
from indexer.packages import package
from indexer.sync import Progress, Synced, build_index, sync
from indexer.watch import watch

BRANCH_FILES = 200
# Lines of the files that are edited: "a 500-line file".
LINES = (400, 600)
# In every edit, since what an earlier run stored would not be encoded again.
SALT = f"{time.time_ns():x}"[-8:]


def main() -> None:
    parser = arguments("How soon memory is true to the working tree.")
    parser.add_argument("--edits", type=int, default=20, help="files that are edited, one after the other")
    chosen = parser.parse_args()
    pretrained = load_memorizing(chosen.model)
    root = repository(chosen.package)
    with Store(root, create=True) as store:
        store.bind(pretrained.fingerprint)
        done = sync(store, lambda: pretrained.model, show)
    results: dict[str, Any] = {
        "documents": done.documents,
        "entries": done.entries,
        "lines": sum(len(file.read_bytes().splitlines()) for file in root.rglob("*.py")),
        **nothing_to_do(root),
        **edits(root, pretrained, chosen.edits),
        **branches(root, pretrained),
    }
    seconds = {name: results[name] for name in ("nothing_command_s", "edit_to_memory_s", "typed_s", "back_s")}
    bars(chosen.plot, f"{chosen.package}: memory follows", "seconds", seconds)
    report("following", package=chosen.package, model=pretrained.name, **results)


def show(step: Progress) -> None:
    print(f"\rindexing {step.done / max(step.total, 1):.0%}", end="", file=sys.stderr)


def git(root: Path, *words: str) -> None:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", "-C", root, *who, *words], check=True, capture_output=True)


def repository(requirement: str) -> Path:
    """A package as a git repository of its own, on branch main, with the memory that the package has."""
    source = package(requirement)
    root = source.with_name(f"{source.name}-in-git")
    if not (root / ".git").is_dir():
        shutil.copytree(source, root, dirs_exist_ok=True)
        git(root, "init", "-q", "-b", "main")
        git(root, "add", "-A")
        git(root, "commit", "-qm", "as published")
    git(root, "checkout", "-qf", "main")
    git(root, "reset", "-q", "--hard")
    return root


def nothing_to_do(root: Path) -> dict[str, float]:
    """Seconds of a sync of a tree that is as memory has it: the command, and what it says of itself."""
    command = [sys.executable, "-c", "from cli.app import main; main()", "sync", str(root), "--json"]
    whole, inside = [], []
    for _ in range(5):
        start = time.perf_counter()
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        whole.append(time.perf_counter() - start)
        inside.append(json.loads(answer)["seconds"])
        assert json.loads(answer)["encoded"] == 0
    return {"nothing_command_s": round(statistics.median(whole), 3), "nothing_s": round(statistics.median(inside), 4)}


def edits(root: Path, pretrained: Pretrained, count: int) -> dict[str, object]:
    """For files of some 500 lines that get a new line anywhere: seconds until memory has a text that is not saved, and,
    once it is, until the watcher has it in the store and in a bank that answers with it."""
    chosen, model = random.Random(0), pretrained.model
    fitting = [file for file in sorted(root.rglob("*.py")) if LINES[0] <= file.read_text().count("\n") <= LINES[1]]
    answers: Queue[Synced] = Queue()
    stop = threading.Event()
    with Store(root) as store:
        bank = open_bank(store, model.new_bank())
    bank.build()
    model.warm()  # as the watcher does before the first edit
    model.bank = banks = Banks(bank)
    engine = Engine(model, pretrained.name)

    def follow_tree() -> None:
        with Store(root) as store:

            def synced(done: Synced) -> None:
                for path in follow(store, bank)[0]:
                    banks.settle(path)
                bank.build()
                answers.put(done)

            watch(store, lambda: model, stop, synced, index=False, batch_tokens=1024)

    thread = threading.Thread(target=follow_tree)
    thread.start()
    answers.get()
    typed, saved, syncing, named = [], [], [], 0
    try:
        for number, file in enumerate(chosen.sample(fitting, min(count, len(fitting)))):
            path, lines = file.relative_to(root).as_posix(), file.read_text().split("\n")
            at, line = chosen.randrange(len(lines)), f"marker_{number} = measured_{SALT}(first, second, third)"
            text = "\n".join((*lines[:at], line, *lines[at:]))
            start = time.perf_counter()
            assert remember_buffer(model, banks, root, path, text, batch_tokens=1024) is None
            typed.append(time.perf_counter() - start)
            start = time.perf_counter()
            file.write_text(text)
            done = answers.get(timeout=120)
            saved.append(time.perf_counter() - start)
            syncing.append(done.seconds)
            assert done.encoded == 1
            # With what stands behind the index, which is put into it afterwards, when nobody waits.
            probe = f"marker_{number} = measured_{SALT}("
            sources = engine.complete(Request("probe.py", probe, len(probe), max_tokens=4, recall=False)).provenance
            named += (path, at + 1) in {(source.path, source.line) for source in sources}
            while bank.tidy():
                pass
    finally:
        stop.set()
        thread.join()
        model.bank = model.new_bank()
        git(root, "reset", "-q", "--hard")
        with Store(root) as store:
            sync(store, lambda: model, index=False)
    return {
        "edits": len(saved),
        "answered_with_the_line": named,
        "typed_s": round(statistics.median(typed), 2),
        "typed_most_s": round(max(typed), 2),
        "edit_to_memory_s": round(statistics.median(saved), 2),
        "edit_to_memory_p90_s": round(sorted(saved)[int(0.9 * len(saved))], 2),
        "edits_within_2_s": sum(seconds < 2 for seconds in saved),
        "edit_to_memory_most_s": round(max(saved), 2),
        "edit_sync_s": round(statistics.median(syncing), 2),
    }


def branches(root: Path, pretrained: Pretrained) -> dict[str, object]:
    """A branch on which 200 files have another line, there and back."""
    chosen = random.Random(1)
    files = [file for file in sorted(root.rglob("*.py")) if file.read_text().strip()]
    chosen.shuffle(files)
    git(root, "branch", "-f", "other", "main")
    git(root, "checkout", "-q", "other")
    for file in files[:BRANCH_FILES]:
        file.write_text(file.read_text() + f"\n# another branch, {SALT}\n")
    git(root, "commit", "-qam", "other")
    git(root, "checkout", "-q", "main")

    def switch(branch: str) -> Synced:
        git(root, "checkout", "-q", branch)
        with Store(root) as store:
            return sync(store, lambda: pretrained.model, show, index=False)

    there = switch("other")
    start = time.perf_counter()
    with Store(root) as store:
        build_index(store)
    index_s = time.perf_counter() - start
    back, again = switch("main"), switch("other")
    switch("main")
    return {
        "branch_files": min(BRANCH_FILES, len(files)),
        "there_encoded": there.encoded,
        "there_s": round(there.seconds, 2),
        "back_encoded": back.encoded,
        "back_s": round(back.seconds, 2),
        "there_index_s": round(index_s, 1),
        "again_encoded": again.encoded,
        "again_s": round(again.seconds, 2),
    }


if __name__ == "__main__":
    main()
