"""How soon memory is true to the working tree: nothing to do, one edited file, a branch switch away and back.

python -m benchmarks.following --package openai-agents==0.24.0
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

from benchmarks.corpus import arguments, report
from codemem.memory.snapshot import follow, open_bank
from codemem.memory.store import Store
from codemem.models.pretrained import Pretrained, load_memorizing
from indexer.packages import package
from indexer.sync import Progress, Synced, sync
from indexer.watch import watch

BRANCH_FILES = 200
# Lines of the files that are edited: "a 500-line file".
LINES = (400, 600)


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--edits", type=int, default=5, help="files that are edited, one after the other")
    parser.add_argument(
        "--live", action="store_true", help="keep the bank in memory and let it answer, as a daemon does"
    )
    chosen = parser.parse_args()
    pretrained = load_memorizing(chosen.model)
    root = repository(chosen.package)
    with Store(root, create=True) as store:
        store.bind(pretrained.fingerprint)
        done = sync(store, lambda: pretrained.model, show)
    results = {
        "documents": done.documents,
        "entries": done.entries,
        "lines": sum(len(file.read_bytes().splitlines()) for file in root.rglob("*.py")),
        **nothing_to_do(root),
        **edits(root, pretrained, chosen.edits, chosen.live),
        **branches(root, pretrained),
    }
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


def edits(root: Path, pretrained: Pretrained, count: int, live: bool) -> dict[str, object]:
    """Seconds from a saved edit of one line until the watcher has it in the store, or in a live bank that answers with
    it; for files of some 500 lines, the line anywhere."""
    chosen = random.Random(0)
    fitting = [file for file in sorted(root.rglob("*.py")) if LINES[0] <= file.read_text().count("\n") <= LINES[1]]
    answers: Queue[Synced] = Queue()
    stop = threading.Event()
    model = pretrained.model
    if live:
        with Store(root) as store:
            model.bank = open_bank(store, model.new_bank())
            model.bank.build()

    def follow_tree() -> None:
        with Store(root) as store:

            def synced(done: Synced) -> None:
                if live:
                    follow(store, model.bank)
                answers.put(done)

            watch(store, lambda: model, stop, synced, batch_tokens=1024)

    thread = threading.Thread(target=follow_tree)
    thread.start()
    answers.get()
    seconds, syncing = [], []
    try:
        for file in chosen.sample(fitting, min(count, len(fitting))):
            lines = file.read_text().split("\n")
            at = chosen.randrange(len(lines))
            lines.insert(at, f"# edited: {chosen.random()}")
            start = time.perf_counter()
            file.write_text("\n".join(lines))
            done = answers.get(timeout=120)
            seconds.append(time.perf_counter() - start)
            syncing.append(done.seconds)
            assert done.encoded == 1
            if live:
                place = model.bank.documents
                assert str(file.relative_to(root)) in place
    finally:
        stop.set()
        thread.join()
        git(root, "reset", "-q", "--hard")
        with Store(root) as store:
            sync(store, lambda: model)
    return {
        "edits": len(seconds),
        "edit_to_memory_s": round(statistics.median(seconds), 2),
        "edit_to_memory_most_s": round(max(seconds), 2),
        "edit_sync_s": round(statistics.median(syncing), 2),
        "answered_by": "live bank" if live else "store",
    }


def branches(root: Path, pretrained: Pretrained) -> dict[str, object]:
    """A branch on which 200 files have another line, there and back."""
    chosen = random.Random(1)
    files = [file for file in sorted(root.rglob("*.py")) if file.read_text().strip()]
    chosen.shuffle(files)
    git(root, "branch", "-f", "other", "main")
    git(root, "checkout", "-q", "other")
    for file in files[:BRANCH_FILES]:
        file.write_text(file.read_text() + "\n# another branch\n")
    git(root, "commit", "-qam", "other")
    git(root, "checkout", "-q", "main")

    def switch(branch: str) -> Synced:
        git(root, "checkout", "-q", branch)
        with Store(root) as store:
            return sync(store, lambda: pretrained.model, show)

    there, back, again = switch("other"), switch("main"), switch("other")
    switch("main")
    return {
        "branch_files": min(BRANCH_FILES, len(files)),
        "there_encoded": there.encoded,
        "there_s": round(there.seconds, 2),
        "back_encoded": back.encoded,
        "back_s": round(back.seconds, 2),
        "again_encoded": again.encoded,
        "again_s": round(again.seconds, 2),
    }


if __name__ == "__main__":
    main()
