"""Damage is found, named and mended, and what is whole is left alone."""

from __future__ import annotations

import json
import os
import threading
import time
from types import SimpleNamespace

import pytest
from json_docs import check_against_documentation

from codemem.memory.store import Store
from indexer.watch import watch


def checks_of(result: tuple[int, str, str]) -> tuple[int, dict[str, list[dict]]]:
    status, out, _ = result
    checks: dict[str, list[dict]] = {}
    for check in json.loads(out)["checks"]:
        checks.setdefault(check["name"], []).append(check)
    return status, checks


def blobs_of(root) -> dict[str, tuple[bytes, int]]:
    """Content and inode of every blob."""
    with Store(root) as store:
        return {
            record.path: (store.blob_path(record.blob).read_bytes(), store.blob_path(record.blob).stat().st_ino)
            for record in store.documents()
        }


def test_a_healthy_memory(codemem, indexed):
    status, checks = checks_of(codemem("doctor", indexed, "--json"))
    assert status == 0
    assert list(checks) == ["python", "torch", "compiler", "faiss", "gpu", "model", "memory", "watcher", "disk"]
    assert all(check["state"] != "broken" for found in checks.values() for check in found)
    assert "2 documents" in checks["memory"][0]["text"]
    status, out, _ = codemem("doctor", indexed)
    assert status == 0 and "every checksum is right" in out
    check_against_documentation("doctor", json.loads(codemem("doctor", indexed, "--json")[1]))


def test_no_memory_is_told_and_not_broken(codemem, tmp_path):
    status, checks = checks_of(codemem("doctor", tmp_path, "--json"))
    assert checks["memory"][0]["state"] == "warning"
    assert checks["memory"][0]["type"] == f"codemem index {tmp_path}"
    assert checks["model"][0]["state"] == "broken" and "codemem models pull" in checks["model"][0]["type"]
    assert status == 1


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_blob_is_named_and_only_it_is_made_again(codemem, indexed, damage):
    before = blobs_of(indexed)
    with Store(indexed) as store:
        (blob,) = [record.blob for record in store.documents() if record.path == "use.py"]
        file = store.blob_path(blob)
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content if damage == "flipped" else content[:-5])
    status, checks = checks_of(codemem("doctor", indexed, "--json"))
    assert status == 1
    assert [c["text"] for c in checks["memory"] if c["state"] == "broken"] == [
        f"the entries of use.py are damaged: {file}"
    ]
    status, _, err = codemem("doctor", indexed, "--repair", "--json")
    assert status == 0 and "encoded 1 documents again, kept 1" in err
    after = blobs_of(indexed)
    assert after["shapes.py"] == before["shapes.py"], "the very same file"
    assert len(after["use.py"][0]) == len(before["use.py"][0])
    assert codemem("doctor", indexed)[0] == 0


@pytest.mark.parametrize("damage", ["text", "middle"])
def test_a_damaged_manifest_is_made_again_over_the_same_blobs(codemem, indexed, model, damage):
    before = blobs_of(indexed)
    file = indexed / ".codemem" / "manifest.db"
    for suffix in ("-wal", "-shm"):
        (indexed / ".codemem" / f"manifest.db{suffix}").unlink(missing_ok=True)
    content = file.read_bytes()
    zeros = b"\0" * (len(content) - 4096)
    file.write_bytes(b"no database " * 99 if damage == "text" else content[:4096] + zeros)
    status, _, err = codemem("complete", f"{indexed}/use.py:3")
    assert status == 1 and "--repair" in err
    status, checks = checks_of(codemem("doctor", indexed, "--json"))
    assert status == 1 and "--repair" in checks["memory"][0]["type"]
    status, _, err = codemem("doctor", indexed, "--repair", "--model", model, "--json")
    assert status == 0, err
    assert "encoded 0 documents again, kept 2" in err
    assert blobs_of(indexed) == before
    assert len(list((indexed / ".codemem").glob("manifest.damaged-*.db"))) == 1


def test_files_that_changed_are_no_damage(codemem, indexed):
    (indexed / "use.py").write_text("x = 1\n")
    status, checks = checks_of(codemem("doctor", indexed, "--json"))
    assert status == 0
    assert [(c["state"], c["text"], c["type"]) for c in checks["memory"][1:]] == [
        ("warning", "1 files have changed since", f"codemem sync {indexed.resolve()}")
    ]


def test_the_watcher_is_named(codemem, indexed):
    stop = threading.Event()

    def follow() -> None:
        with Store(indexed) as store:
            watch(store, lambda: SimpleNamespace(warm=lambda: None), stop, lambda _: None)

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            _, checks = checks_of(codemem("doctor", indexed, "--json"))
            if f"process {os.getpid()} keeps" in checks["watcher"][0]["text"]:
                break
        else:
            pytest.fail("the watcher was not seen")
    finally:
        stop.set()
        thread.join()


def test_a_disk_that_is_nearly_full_is_a_warning(codemem, indexed, monkeypatch):
    monkeypatch.setattr("cli.doctor._LITTLE_SPACE", 10**18)
    status, checks = checks_of(codemem("doctor", indexed, "--json"))
    assert (status, checks["disk"][0]["state"]) == (0, "warning")
