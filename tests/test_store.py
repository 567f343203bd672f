"""Memory on disk: what comes back, what a crash leaves, what is refused, and who may read it."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from codemem.errors import CodememError
from codemem.memory.bank import Bank
from codemem.memory.entries import Entries
from codemem.memory.fingerprint import Fingerprint
from codemem.memory.knn import IVFIndex
from codemem.memory.manifest import Record, find_root, model_of
from codemem.memory.order import EXACT_ENTRIES, drifted
from codemem.memory.snapshot import has_room, open_bank, save_snapshot
from codemem.memory.store import Store
from codemem.syntax import Symbol

SHAPES = {1: (2, 4)}
FINGERPRINT = Fingerprint("tiny", "a" * 64, "float32", (1,), 1024, 256)


def entries_of(count: int, seed: int, dtype: torch.dtype = torch.float32) -> Entries:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.arange(count, dtype=torch.int32)
    layers = {1: torch.randn(count, 2, 2, 4, generator=generator).to(dtype)}
    return Entries(numbers, numbers // 10 + 1, numbers % 10 + 1, layers, (Symbol("f", 1, 2),))


def put(store: Store, path: str, entries: Entries, content_hash: str | None = None) -> Record:
    """What the pipeline does with one document."""
    content_hash = content_hash or f"hash of {path}"
    blob = store.blob_name(path, content_hash)
    store.write(blob, entries)
    record = Record(path, content_hash, 100, 1, "python", blob, len(entries))
    store.set_documents([record])
    return record


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path, create=True) as store:
        store.bind(FINGERPRINT)
        yield store


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_entries_come_back_as_they_were_written(store, dtype):
    written = entries_of(7, 1, dtype)
    read = store.read(put(store, "a.py", written).blob)
    assert torch.equal(read.tokens, written.tokens)
    assert torch.equal(read.lines, written.lines)
    assert torch.equal(read.columns, written.columns)
    assert list(read.layers) == [1] and torch.equal(read.layers[1], written.layers[1])
    assert read.layers[1].dtype == dtype
    assert read.symbols == written.symbols


def test_a_document_without_tokens_comes_back(store):
    assert len(store.read(put(store, "a.py", entries_of(0, 1)).blob)) == 0


def test_the_manifest_comes_back(store, tmp_path):
    records = [put(store, f"{name}.py", entries_of(3, 1)) for name in "ba"]
    store.set_skipped({"x.png": "binary", "node_modules/": "vendored", "b.js": "minified"}, {"b.js": (5000, 17)})
    store.set("model", "tiny")
    with Store(tmp_path) as again:
        assert again.documents() == sorted(records, key=lambda record: record.path)
        assert again.skipped() == {"b.js": "minified", "node_modules/": "vendored", "x.png": "binary"}
        assert again.refused() == {"b.js": (5000, 17)}
        assert again.fingerprint == FINGERPRINT
        assert again.get("model") == "tiny"
        again.set_documents([replace(records[0], size=5)], ["a.py"])
    assert [(record.path, record.size) for record in store.documents()] == [("b.py", 5)]


def test_a_second_process_answers_from_what_the_first_wrote(store, tmp_path):
    entries = entries_of(30, 2)
    put(store, "a.py", entries)
    query = (3 * entries.layers[1][17, :, 0]).tolist()
    code = f"""
import torch
from pathlib import Path
from codemem.memory.bank import Bank
from codemem.memory.snapshot import open_bank
from codemem.memory.store import Store
with Store(Path({str(tmp_path)!r})) as store:
    bank = open_bank(store, Bank({{1: (2, 4)}}))
best = bank.search(1, torch.tensor({query}).view(2, 1, 4), 30)
print(len(bank), bank.documents, *[bank.place(int(row)) for row in best[:, 0, 0]], sep="|")
"""
    first = open_bank(store, Bank(SHAPES))
    rows = first.search(1, torch.tensor(query).view(2, 1, 4), 30)[:, 0, 0].tolist()
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert answer == "|".join(["30", "('a.py',)", *(str(first.place(row)) for row in rows)]) + "\n"


def test_only_the_user_can_read_it(store, tmp_path):
    old = os.umask(0o022)
    try:
        put(store, "a.py", entries_of(EXACT_ENTRIES + 1, 3))
        save_snapshot(store, open_bank(store, Bank(SHAPES)))
    finally:
        os.umask(old)
    found = {str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    directories = {name for name in found if (tmp_path / name).is_dir()}
    assert {".codemem", ".codemem/blobs", ".codemem/index"} <= directories
    assert ".codemem/manifest.db-wal" in found
    assert any(name.endswith(".faiss") for name in found)
    assert {name: mode for name, mode in found.items() if mode != (0o700 if name in directories else 0o600)} == {}


def test_git_and_backups_leave_it_alone(store, tmp_path):
    assert (tmp_path / ".codemem" / ".gitignore").read_text() == "*\n"
    tag = (tmp_path / ".codemem" / "CACHEDIR.TAG").read_bytes()
    assert tag.startswith(b"Signature: 8a477f597d28d172789f06886806bc55")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    status = subprocess.run(
        ["git", "-C", tmp_path, "status", "--porcelain", "--untracked-files=all"], capture_output=True, text=True
    )
    assert status.stdout == ""


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"weights": "b" * 64}, "weights aaaaaaaaaaaa, not bbbbbbbbbbbb"),
        ({"layers": (1, 2)}, r"layers \(1,\), not \(1, 2\)"),
        ({"dtype": "bfloat16"}, "dtype float32, not bfloat16"),
        ({"window": 512}, "window 1024, not 512"),
        ({"format": 3}, "format 4, not 3"),
    ],
)
def test_entries_of_another_fingerprint_are_refused(store, changed, words):
    other = replace(FINGERPRINT, model="qwen", **changed)
    for ask in (store.check, store.bind):
        with pytest.raises(CodememError, match=f"made by tiny and cannot be read by qwen: .*{words}") as refusal:
            ask(other)
        assert f"codemem index {store.root} --model qwen --rebuild" in refusal.value.hint
        assert "--model tiny" in refusal.value.hint
    assert store.fingerprint == FINGERPRINT


def test_another_name_of_the_same_weights_is_the_same_model(store):
    store.check(replace(FINGERPRINT, model="copy of tiny"))


def test_a_store_that_was_never_filled_says_what_to_type(tmp_path):
    with pytest.raises(CodememError, match="has no memory") as refusal:
        Store(tmp_path)
    assert refusal.value.hint == f"codemem index {tmp_path}"
    with Store(tmp_path, create=True) as store, pytest.raises(CodememError, match="is empty"):
        store.check(FINGERPRINT)


def test_replacing_forgets_everything_of_the_model_before(store):
    put(store, "a.py", entries_of(EXACT_ENTRIES + 1, 3))
    save_snapshot(store, open_bank(store, Bank(SHAPES)))
    other = replace(FINGERPRINT, model="wide", weights="c" * 64)
    store.bind(other, replace=True)
    assert store.fingerprint == other
    assert store.documents() == [] and list(store.blobs.iterdir()) == []
    # The same layer with heads of another size: an index of the old ones would not fit.
    wide = {1: (2, 6)}
    count = 4 * EXACT_ENTRIES
    numbers = torch.zeros(count, dtype=torch.int32)
    put(store, "b.py", Entries(numbers, numbers + 1, numbers + 1, {1: torch.randn(count, 2, 2, 6)}))
    bank = open_bank(store, Bank(wide))
    assert bank.indexes == {}
    assert (bank.search(1, torch.randn(2, 1, 6), 3) >= 0).all()


def test_blobs_are_named_by_fingerprint_path_and_content(store):
    names = {store.blob_name(path, content) for path in ("a.py", "b.py") for content in ("1", "2")}
    first = store.blob_name("a.py", "1")
    store.bind(replace(FINGERPRINT, weights="d" * 64), replace=True)
    assert len({*names, store.blob_name("a.py", "1")}) == 5
    store.bind(FINGERPRINT, replace=True)
    assert store.blob_name("a.py", "1") == first


def test_a_killed_writer_leaves_no_half_blob_under_a_final_name(tmp_path):
    code = f"""
import torch
from pathlib import Path
from codemem.memory.entries import Entries
from codemem.memory.fingerprint import Fingerprint
from codemem.memory.store import Store
numbers = torch.zeros(200_000, dtype=torch.int32)
with Store(Path({str(tmp_path)!r}), create=True) as store:
    for i in range(100_000):
        store.write(str(i), Entries(numbers, numbers + 1, numbers + 2, {{1: torch.zeros(200_000, 2, 2, 4)}}))
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    blobs = tmp_path / ".codemem" / "blobs"
    deadline = time.monotonic() + 60
    while len(list(blobs.glob("*.safetensors"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with Store(tmp_path) as store:
        finished = list(blobs.glob("*.safetensors"))
        assert len(finished) >= 3
        assert all(len(store.read(file.stem)) == 200_000 for file in finished)
        store.sweep()
        assert list(blobs.iterdir()) == []


def test_a_full_disk_is_an_error_and_leaves_nothing(store):
    """A limit on the size of files stands for a full disk: the system refuses to write in the middle of a blob."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(CodememError, match="cannot be written") as failure:
            store.write("full", entries_of(1000, 1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert failure.value.hint
    assert list(store.blobs.iterdir()) == []
    assert not store.has("full")


@pytest.mark.parametrize("keep", [0, 5, 0.5, 0.999])
def test_a_truncated_blob_is_not_there_and_reading_it_says_so(store, keep):
    record = put(store, "a.py", entries_of(50, 1))
    assert store.has(record.blob)
    file = store.blob_path(record.blob)
    content = file.read_bytes()
    file.write_bytes(content[: keep if keep in (0, 5) else int(len(content) * keep)])
    assert not store.has(record.blob)
    with pytest.raises(CodememError, match="is missing or damaged") as failure:
        store.read(record.blob)
    assert failure.value.hint == f"codemem doctor {store.root} --repair"


def test_a_missing_blob_and_a_strangers_file_are_damage_too(store):
    assert not store.has("0" * 64)
    save_file({"tokens": torch.zeros(1)}, store.blob_path("1" * 64))
    for blob in ("0" * 64, "1" * 64):
        with pytest.raises(CodememError, match="is missing or damaged"):
            store.read(blob)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / ".codemem").write_text("a file in its place")
    with pytest.raises(CodememError, match=r"\.codemem cannot be opened") as failure:
        Store(tmp_path, create=True)
    assert failure.value.hint
    with pytest.raises(CodememError, match="has no memory"):
        Store(tmp_path)


def test_blobs_that_cannot_be_written_are_an_error(store):
    store.blobs.rmdir()
    store.blobs.write_text("a file in its place")
    with pytest.raises(CodememError, match=r"blobs/x\S* cannot be written"):
        store.write("x", entries_of(1, 1))


def test_a_damaged_manifest_is_an_error(tmp_path):
    (tmp_path / ".codemem").mkdir()
    (tmp_path / ".codemem" / "manifest.db").write_bytes(b"no database at all, but a few bytes of text" * 9)
    with pytest.raises(CodememError, match="cannot be opened") as failure:
        Store(tmp_path)
    assert failure.value.hint


def test_sweep_deletes_what_no_document_needs(store):
    kept = put(store, "a.py", entries_of(3, 1))
    gone = put(store, "b.py", entries_of(3, 2))
    (store.blobs / ".half.123").write_bytes(b"of a killed run")
    store.set_documents([], ["b.py"])
    assert store.has(gone.blob), "a branch that comes back finds its blobs"
    assert store.sweep() == 2
    assert list(store.blobs.iterdir()) == [store.blob_path(kept.blob)]


def test_find_root_is_the_nearest_memory_upward(tmp_path):
    inner = tmp_path / "project" / "src" / "deep"
    inner.mkdir(parents=True)
    assert find_root(inner) is None or tmp_path not in find_root(inner).parents
    Store(tmp_path, create=True).close()
    assert find_root(inner) == tmp_path.resolve()
    Store(tmp_path / "project", create=True).close()
    assert find_root(inner) == (tmp_path / "project").resolve()
    assert find_root(tmp_path) == tmp_path.resolve()
    (tmp_path / "project" / "src" / ".codemem").mkdir()
    assert find_root(inner) == (tmp_path / "project").resolve(), "a folder without a manifest is no memory"


def test_model_of(tmp_path):
    assert model_of(tmp_path) is None
    with Store(tmp_path, create=True) as store:
        assert model_of(tmp_path) is None
        store.set("model", "/models/tiny")
    assert model_of(tmp_path) == "/models/tiny"


# Snapshots.

LARGE = EXACT_ENTRIES // 4


def keys_and_places(bank: Bank, path: str) -> list[tuple[int, int]]:
    """Line and column of what the bank finds for every 400th key of a document; all cells of the index are searched."""
    bank.build()
    index = bank.indexes[1]
    if isinstance(index, IVFIndex):
        index.nprobe = 10**6
    keys = bank.entries(path).layers[1][::400, :, 0].transpose(0, 1)
    assert keys.shape[1]
    # One of the nearest to a key is the key itself, though a longer one beside it may score higher.
    rows = bank.search(1, keys, 2000)
    found = []
    for number in range(keys.shape[1]):
        places = [bank.place(row) for row in rows[0, number].tolist() if row >= 0]
        found += [
            (p.line, p.column) for p in places if p.path == path and (p.line - 1) * 10 + p.column - 1 == number * 400
        ]
    return found


def snapshot_folders(store: Store) -> list[Path]:
    return list((store.folder / "index").iterdir())


@pytest.fixture
def large(store):
    """Five documents, too many entries for exact search, and their snapshot."""
    for number in range(5):
        put(store, f"{number}.py", entries_of(LARGE, number))
    save_snapshot(store, open_bank(store, Bank(SHAPES)))
    return store


def test_a_bank_from_a_snapshot_is_the_bank_that_was_saved(large):
    bank = open_bank(large, Bank(SHAPES))
    assert isinstance(bank.indexes[1], IVFIndex) and len(bank.indexes[1]) == 5 * LARGE, "nothing is built again"
    fresh = open_bank(large, Bank(SHAPES, index="ivf"))
    queries = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
    found, expected = bank.search(1, queries, 10), fresh.search(1, queries, 10)
    assert [bank.place(r) for r in found.flatten().tolist()] == [fresh.place(r) for r in expected.flatten().tolist()]


def test_a_memory_that_a_gpu_has_no_room_for_is_kept_on_the_processor(large, monkeypatch):
    there = SimpleNamespace(device=torch.device("cuda"), entry_bytes=800, state_size=16)
    each = 800 * 5 // 4 + 16 + 64 * 6
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000 * each, 1 << 40))
    assert has_room(there, 1000) and not has_room(there, 1001)
    monkeypatch.setattr("codemem.memory.snapshot.has_room", lambda *_: False)
    bank = open_bank(large, Bank(SHAPES, device="meta", capacity=3 * LARGE))
    assert bank.device.type == "cpu" and len(bank) == bank.capacity == 3 * LARGE


def test_documents_may_go_change_and_come_between_snapshot_and_bank(large):
    large.set_documents([], ["1.py"])
    put(large, "3.py", entries_of(LARGE, 33), "another content")
    put(large, "new.py", entries_of(LARGE, 77))
    bank = open_bank(large, Bank(SHAPES))
    assert len(bank.indexes[1]) == 5 * LARGE, "the snapshot still serves"
    assert sorted(bank.documents) == ["0.py", "2.py", "3.py", "4.py", "new.py"]
    assert len(bank) == 5 * LARGE
    queries = torch.randn(2, 50, 4, generator=torch.Generator().manual_seed(1))
    seen = {bank.place(row).path for row in bank.search(1, queries, 500).flatten().tolist() if row >= 0}
    assert seen == set(bank.documents), "no dead entry, and some of every document that lives"
    for path, seed in (("0.py", 0), ("3.py", 33), ("new.py", 77)):
        held = bank.entries(path)
        assert torch.equal(held.layers[1], entries_of(len(held), seed).layers[1])
        assert keys_and_places(bank, path)

    # And once more, from the snapshot of this bank.
    save_snapshot(large, bank)
    again = open_bank(large, Bank(SHAPES))
    assert sorted(again.documents) == sorted(bank.documents) and len(again) == len(bank)
    seen = {again.place(row).path for row in again.search(1, queries, 500).flatten().tolist() if row >= 0}
    assert seen == set(bank.documents)
    assert len(snapshot_folders(large)) == 1, "the snapshot before is gone"


def test_what_comes_back_has_its_rows_in_the_snapshot(large):
    """A branch there and back: the indexes are brought up to date for the other branch, once, and for this one not at
    all."""
    here = {record.path: record for record in large.documents()}["3.py"]
    assert not drifted(large)
    there = put(large, "3.py", entries_of(LARGE, 33), "another content")
    assert drifted(large)
    save_snapshot(large, open_bank(large, Bank(SHAPES)))
    assert not drifted(large), "the dead rows of a snapshot are no reason to make it again and again"
    for record, seed in ((here, 3), (there, 33)):
        large.set_documents([record])
        assert not drifted(large)
        bank = open_bank(large, Bank(SHAPES))
        assert len(bank.indexes[1]) == bank._rows == 6 * LARGE, "nothing is missing"
        assert torch.equal(bank.entries("3.py").layers[1], entries_of(LARGE, seed).layers[1])
        assert keys_and_places(bank, "3.py")


def test_a_snapshot_of_mostly_dead_documents_is_not_used(large):
    large.set_documents([], ["1.py", "2.py", "3.py"])
    bank = open_bank(large, Bank(SHAPES))
    assert bank.indexes == {}
    assert bank.documents == ("0.py", "4.py")


@pytest.mark.parametrize("name", ["order.json", "layer1.npz", "layer1.faiss"])
@pytest.mark.parametrize("damage", ["", "half", "[1, 2]", "{}x", None])
def test_a_damaged_snapshot_is_ignored(large, name, damage):
    (folder,) = snapshot_folders(large)
    file = folder / name
    if damage is None:
        file.unlink()
    else:
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2] if damage == "half" else damage.encode())
    bank = open_bank(large, Bank(SHAPES))
    assert bank.indexes == {}
    assert len(bank) == 5 * LARGE


def test_a_bank_that_became_small_keeps_no_snapshot(large):
    large.set_documents([], ["1.py", "2.py", "3.py", "4.py"])
    save_snapshot(large, open_bank(large, Bank(SHAPES)))
    assert snapshot_folders(large) == []
    assert open_bank(large, Bank(SHAPES)).documents == ("0.py",)


def test_a_missing_blob_is_named_when_the_bank_is_opened(store):
    record = put(store, "a.py", entries_of(3, 1))
    store.blob_path(record.blob).unlink()
    with pytest.raises(CodememError, match=record.blob):
        open_bank(store, Bank(SHAPES))


def test_a_manifest_of_another_version_is_refused_and_can_be_replaced(store):
    store.set("fingerprint", '{"model": "tiny", "something": "new"}')
    with pytest.raises(CodememError, match="another version of codemem") as refusal:
        store.bind(FINGERPRINT)
    assert "--rebuild" in refusal.value.hint
    store.bind(FINGERPRINT, replace=True)
    assert store.fingerprint == FINGERPRINT


def test_nobody_replaces_what_another_is_writing(store, tmp_path):
    with Store(tmp_path) as other, store.writing():
        with store.writing():  # of the same store it may be nested
            pass
        with pytest.raises(CodememError, match=r"another process \(\d+\) is indexing"):
            other.bind(FINGERPRINT, replace=True)
    with Store(tmp_path) as other:
        other.bind(FINGERPRINT, replace=True)


def test_a_manifest_that_breaks_while_it_is_read_is_an_error(store):
    store._db.execute("DROP TABLE documents")
    with pytest.raises(CodememError, match="cannot be read"):
        store.documents()
