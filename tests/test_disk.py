"""A disk that is full, and one that is read-only: real ones, mounted in a namespace of a child process's own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNSHARE = ["unshare", "--map-root-user", "--mount"]
CHILD = """
import json, shutil, subprocess, sys
from pathlib import Path
from codemem.errors import CodememError
from codemem.memory.integrity import find_damage
from codemem.memory.snapshot import open_bank
from codemem.memory.store import Store
from indexer import sync as syncing
from test_invariants import FINGERPRINT, MODEL, assert_same, synced

root = Path(sys.argv[1])

def mount(*options):
    subprocess.run(["mount", *options, root], check=True)

def sync():
    try:
        return synced(root).documents
    except CodememError as error:
        return [str(error), error.hint]

def fill():
    with open(root / "filler.bin", "wb", buffering=0) as file:
        try:
            while file.write(bytes(512)):
                pass
        except OSError:
            pass

def held():
    with Store(root) as store:
        assert not find_damage(store)
        return [record.content_hash for record in store.documents()], open_bank(store, MODEL.new_bank())

def begin(size):
    mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs")
    for number in range(6):
        (root / f"f{number}.py").write_text(f"def f{number}():\\n    return {number}\\n" * 6)
    first, (before, _) = sync(), held()
    for number in range(6):  # and now memory has something to do
        with open(root / f"f{number}.py", "r+") as file:
            file.write(f"def g{number}")
    return first, before
"""
FULL = """
first, before = begin("1m")
fill()
full = sync()
(root / "filler.bin").unlink()
after, _ = held()
with Store(root) as store:
    assert not [file for file in store.blobs.iterdir() if file.name.startswith(".")], "nothing half written"
freed, (_, kept) = sync(), held()
subprocess.run(["rm", "-r", root / ".codemem"], check=True)
fresh, (_, scratch) = sync(), held()
assert_same(kept, scratch)
print(json.dumps({"first": first, "full": full, "same": before == after, "freed": freed, "fresh": fresh}))
"""
INDEX = """
mount("-t", "tmpfs", "-o", "size=72m", "tmpfs")
(root / "large.py").write_text("x = 1\\n" * 6000)
with Store(root, create=True) as store:
    store.bind(FINGERPRINT)
    syncing.sync(store, lambda: MODEL, index=False)
room = shutil.disk_usage(root).free
with open(root / "filler.bin", "wb") as file:
    file.write(bytes(room - 1_000_000))
full = sync()
left = [file.name for file in (root / ".codemem" / "index").glob("*")]
(root / "filler.bin").unlink()
held()
print(json.dumps({"full": full, "left": left, "again": sync()}))
"""
READ_ONLY = """
first, before = begin("8m")
mount("-o", "remount,ro")
read_only = sync()
mount("-o", "remount,rw")
after, _ = held()
print(json.dumps({"first": first, "read_only": read_only, "same": before == after, "again": sync()}))
"""


def may_mount() -> bool:
    return bool(shutil.which("unshare")) and not subprocess.run([*UNSHARE, "true"], capture_output=True).returncode


pytestmark = pytest.mark.skipif(not may_mount(), reason="this system lets no process mount a disk of its own")


def outcome(root: Path, script: str) -> dict:
    command = [*UNSHARE, sys.executable, "-c", CHILD + script, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_full_disk(tmp_path):
    found = outcome(tmp_path, FULL)
    message, hint = found["full"]
    assert "the disk is full" in message and "free some space" in hint
    assert found["first"] == found["freed"] == found["fresh"] == 6
    assert found["same"], "memory is what it was"


def test_a_disk_that_is_full_when_the_index_is_written(tmp_path):
    found = outcome(tmp_path, INDEX)
    message, hint = found["full"]
    assert "the index" in message and "cannot be written" in message and "free some space" in hint
    assert found["left"] == [], "nothing half written"
    assert found["again"] == 1


def test_a_read_only_disk(tmp_path):
    found = outcome(tmp_path, READ_ONLY)
    message, hint = found["read_only"]
    assert ("cannot be written" in message or "cannot be opened" in message) and "rights" in hint
    assert found["first"] == found["again"] == 6
    assert found["same"]
