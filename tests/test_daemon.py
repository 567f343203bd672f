"""The daemon over its socket: documents, completions, what they came from, indexing, several clients."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from serving import LIBRARY, USE, Daemon, pretrained, remember, repository

from codemem.errors import CodememError
from codemem.memory import knn
from codemem.server import features, hub
from codemem.server.statistics import Statistics

SCRIPT = ("value = first + second + third\n", "wide = area(width, height)\n", "x = '\U0001f600' + suffix\n")


@pytest.fixture(scope="module")
def loaded():
    return pretrained(*SCRIPT)


@pytest.fixture
def root(tmp_path, loaded) -> Path:
    return repository(tmp_path / "repository", loaded)


@pytest.fixture
def daemon(loaded):
    with Daemon(loaded) as daemon:
        yield daemon


@pytest.fixture
def editor(daemon, root):
    with daemon.editor(root) as editor:
        editor.ready()
        yield editor


def test_it_says_what_it_can(daemon, root):
    with daemon.editor(root, general={"positionEncodings": ["utf-8", "utf-16"]}) as editor:
        can, info = editor.server["capabilities"], editor.server["serverInfo"]
        assert can["positionEncoding"] == "utf-16"
        assert can["inlineCompletionProvider"] == {}
        assert can["textDocumentSync"]["openClose"] and can["textDocumentSync"]["change"] == 2
        assert can["textDocumentSync"]["save"]
        assert can["workspace"]["workspaceFolders"] == {"supported": True, "changeNotifications": True}
        assert info["name"] == "codemem" and info["version"]


def test_a_completion_and_where_it_came_from(editor, root):
    editor.open(root / "use.py")
    item = editor.complete(root / "use.py", 2, 8)
    assert item["insertText"] == "first + second + third"
    here = {"line": 2, "character": 8}
    assert item["range"] == {"start": here, "end": here}
    assert item["command"]["command"] == "codemem.didAccept" and item["command"]["title"] == "codemem: accepted"
    (number,) = item["command"]["arguments"]
    why = editor.ask("codemem/explain", {"id": number})
    assert why["id"] == number and why["text"] == item["insertText"]
    assert 0 <= why["share"] <= 1 and 0 <= why["tokenShare"] <= 1 and why["reason"] == "line" and why["ms"]["total"] > 0
    source = why["sources"][0]
    assert set(source) == {"uri", "path", "line", "column", "symbol", "weight", "text"}
    assert source["uri"] == (root / source["path"]).as_uri()
    lines = (root / source["path"]).read_text().split("\n")
    assert source["text"].strip() == lines[source["line"] - 1].strip()
    assert 1 <= source["column"] <= len(lines[source["line"] - 1]) + 1
    with pytest.raises(CodememError, match="no completion is remembered"):
        editor.ask("codemem/explain", {"id": "x"})


def test_text_as_it_is_typed_is_completed(editor, root):
    file = root / "new.py"
    editor.open(file, "")
    editor.insert(file, 0, 0, "# hällo \U0001f600\r\n")
    editor.insert(file, 1, 0, "val = 1")
    editor.insert(file, 1, 3, "ue")  # value = 1
    editor.change(
        file, {"range": {"start": {"line": 1, "character": 8}, "end": {"line": 1, "character": 9}}, "text": ""}
    )
    assert editor.text(file, 1, 8) == "first + second + third"
    editor.change(file, {"text": "x = '\U0001f600' + "})
    assert editor.text(file, 0, 11) == "suffix", "columns count UTF-16 units"
    assert editor.text(file, 0, 400) == "suffix", "behind the end is at the end"


def test_what_is_not_open_or_outside_is_refused(editor, root, tmp_path):
    outside = tmp_path / "other.py"
    outside.write_text(USE)
    (root / "link.py").symlink_to(outside)
    for file in (outside, root / ".." / "other.py", root / "link.py"):
        editor.open(file)
        with pytest.raises(CodememError, match="outside of the open folders"):
            editor.complete(file, 2, 8)
    with pytest.raises(CodememError, match="is not open"):
        editor.complete(root / "lib.py", 0, 1)
    for uri in (
        "untitled:Untitled-1",
        "https://example.org/a.py",
        "file://elsewhere/a.py",
        "file:///a%00b",
        "file:///%ff",
    ):
        with pytest.raises(CodememError, match="is not the URI of a file"):
            editor.ask("codemem/status", {"uri": uri})
    with pytest.raises(CodememError, match="outside"):
        editor.ask("codemem/index", {"uri": tmp_path.as_uri()})


def test_text_that_is_typed_is_read_in_other_files(editor, root):
    file, other = root / "fresh.py", root / "use.py"
    editor.open(file, "")
    editor.insert(file, 0, 0, "def perimeter(sides):\n    return sum(sides)\n")
    editor.open(other)

    def sources() -> set[str]:
        item = editor.complete(other, 2, 8)
        return {s["path"] for s in editor.ask("codemem/explain", {"id": item["command"]["arguments"][0]})["sources"]}

    end = time.monotonic() + 60
    while "fresh.py" not in sources():
        assert time.monotonic() < end
        time.sleep(0.05)
    editor.close(file)
    assert "fresh.py" not in sources(), "it was never saved"


def test_a_saved_file_is_followed_and_a_deleted_one_is_gone(editor, root):
    before = editor.status()["folders"][0]
    (root / "more.py").write_text("def volume(a, b, c):\n    return a * b * c\n")
    after = editor.ready(documents=3)["folders"][0]
    assert after["entries"] > before["entries"] and after["bytes"] > before["bytes"]
    (root / "more.py").unlink()
    assert editor.ready(documents=2)["folders"][0]["entries"] == before["entries"]


def test_cancelling_stops_the_model_within_a_token(editor, root, daemon, loaded):
    file = root / "use.py"
    editor.open(file)
    begun, go, steps = threading.Event(), threading.Event(), []
    decoder = type(loaded.model).decoder

    def slow(model):
        inner = decoder(model)
        read = inner.read

        def one(ids, last=1):
            steps.append(ids)
            begun.set()
            go.wait(10)
            return read(ids, last)

        inner.read = one
        return inner

    loaded.model.decoder = lambda: slow(loaded.model)
    try:
        editor._send({"id": 77, "method": "textDocument/inlineCompletion", "params": editor.place(file, 2, 8)})
        assert begun.wait(10)
        editor.tell("$/cancelRequest", {"id": 77})
        answer = editor._receive()
        while answer.get("id") != 77:
            answer = editor._receive()
        assert answer["error"]["code"] == -32800, "at once, although the model is at it"
        time.sleep(0.1)
        go.set()
        daemon.hub.scheduler.between(lambda: None).result(10)
        assert len(steps) == 1
    finally:
        del loaded.model.decoder


def test_a_folder_without_memory_says_how_to_make_one_and_it_is_made(daemon, tmp_path):
    folder = tmp_path / "plain"
    folder.mkdir()
    (folder / "lib.py").write_text(LIBRARY)
    (folder / "use.py").write_text(USE)
    with daemon.editor(folder, window={"workDoneProgress": True}) as editor:
        status = editor.until(lambda status: status["state"] == "off")["folders"][0]
        assert (status["uri"], status["documents"]) == (folder.as_uri(), 0)
        assert "has no memory" in status["message"] and status["hint"] == f"codemem index {folder}"
        editor.open(folder / "use.py")
        assert editor.complete(folder / "use.py", 2, 8) is None
        done = editor.ask("codemem/index", {"uri": folder.as_uri()})
        assert set(done) == {"documents", "entries", "encoded", "dropped", "kept", "seconds"}
        assert (done["documents"], done["encoded"]) == (2, 2)
        kinds = [told["params"]["value"]["kind"] for told in editor.told if told["method"] == "$/progress"]
        assert kinds[0] == "begin" and kinds[-1] == "end"
        assert "window/workDoneProgress/create" in {told["method"] for told in editor.told}
        editor.ready(documents=2)
        assert editor.text(folder / "use.py", 2, 8) == "first + second + third"
        again = editor.ask("codemem/index", {"uri": folder.as_uri(), "rebuild": True, "workDoneToken": "mine"})
        assert again["encoded"] == 2
        assert "mine" in {told["params"].get("token") for told in editor.told}


def test_the_status_is_told_as_it_changes(daemon, root, loaded):
    go = threading.Event()
    with daemon.editor(root) as first:
        first.ready()
    daemon.stop()

    def load():
        go.wait(10)
        return loaded

    with Daemon(load) as slow, slow.editor(root) as editor:
        status = editor.status()
        assert status["state"] == "starting" and status["model"] == "scripted" and status["pid"] > 0
        editor.open(root / "use.py")
        assert editor.complete(root / "use.py", 2, 8) is None, "nothing yet, rather than waiting"
        go.set()
        while not editor.told or editor.told[-1]["params"]["state"] != "ready":
            editor._receive()
        states = [told["params"]["state"] for told in editor.told if told["method"] == "codemem/statusChanged"]
        assert states[0] == "starting" and states[-1] == "ready"
        assert editor.told[-1]["params"] == editor.status()


def test_a_memory_of_another_model_is_an_error_with_a_hint(daemon, tmp_path):
    other = pretrained("x = 1\n")
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "lib.py").write_text(LIBRARY)
    remember(folder, replace(other, fingerprint=replace(other.fingerprint, weights="else", model="else")))
    with daemon.editor(folder) as editor:
        status = editor.until(lambda status: status["state"] == "error")["folders"][0]
        assert "was made by else" in status["message"] and "--model else" in status["hint"]


def test_a_model_that_cannot_be_loaded_is_told_and_the_daemon_leaves(root):
    def load():
        raise CodememError("no such model", "codemem models list")

    with Daemon(load) as daemon:
        with daemon.editor(root) as editor:
            status = editor.until(lambda status: status["state"] == "error")["folders"][0]
            assert (status["message"], status["hint"]) == ("no such model", "codemem models list")
        assert daemon.ended(20)


def test_two_repositories_never_mix(daemon, root, tmp_path, loaded):
    other = tmp_path / "second"
    other.mkdir()
    (other / "shapes.py").write_text("def circle(radius):\n    return 3 * radius ** 2\n")
    (other / "use.py").write_text(USE)
    remember(other, loaded)
    with daemon.editor(root, other) as editor, daemon.editor(other) as second:
        editor.until(lambda status: [folder["state"] for folder in status["folders"]] == ["ready", "ready"])
        for file in (root / "use.py", other / "use.py", root / "use.py"):
            editor.open(file)
            item = editor.complete(file, 2, 8)
            found = editor.ask("codemem/explain", {"id": item["command"]["arguments"][0]})["sources"]
            assert {source["path"] for source in found} == {"lib.py" if file.parent == root else "shapes.py"}
        second.open(other / "use.py")
        assert second.text(other / "use.py", 2, 8)
        with pytest.raises(CodememError, match="outside"):
            second.complete(root / "use.py", 2, 8)
        removed = {"event": {"added": [], "removed": [{"uri": root.as_uri(), "name": "x"}]}}
        editor.tell("workspace/didChangeWorkspaceFolders", removed)
        with pytest.raises(CodememError, match="outside"):
            editor.complete(root / "use.py", 2, 8)


def test_the_newest_request_of_a_document_wins_and_other_windows_go_on(daemon, root):
    with daemon.editor(root) as one, daemon.editor(root) as two:
        one.ready()
        for editor in (one, two):
            editor.open(root / "use.py")
        gate = threading.Event()
        daemon.hub.scheduler.between(lambda: gate.wait(10))
        for number in (1001, 1002):
            one._send(
                {"id": number, "method": "textDocument/inlineCompletion", "params": one.place(root / "use.py", 2, 8)}
            )
        answers = {}

        def read(number: int) -> list:
            while number not in answers:
                answer = one._receive()
                answers[answer.get("id")] = answer
            return answers[number]["result"]["items"]

        assert read(1001) == [], "at once, since another has taken its place"
        threading.Timer(0.1, gate.set).start()
        assert two.text(root / "use.py", 2, 8)
        assert len(read(1002)) == 1


def test_it_leaves_when_nobody_is_there(loaded, root):
    with Daemon(loaded, idle=1.0) as daemon:
        with daemon.editor(root) as editor:
            editor.ready()
            time.sleep(1.3)
            assert editor.status()["state"] == "ready", "somebody is"
        assert daemon.ended(20)
        assert not daemon.address.socket.exists()


def test_shutdown_and_exit_end_the_connection_alone(daemon, root):
    editor, other = daemon.editor(root), daemon.editor(root)
    assert editor.ask("shutdown", None) is None
    with pytest.raises(CodememError, match="shutdown came before"):
        editor.status()
    editor.tell("exit", None)
    with pytest.raises(ConnectionError):
        editor._receive()
    assert other.status()["pid"]


def test_counting(editor, root, monkeypatch, daemon):
    monkeypatch.setattr(features, "KEPT_AFTER", 0.5)
    file = root / "use.py"
    editor.open(file)
    items = [editor.complete(file, 2, 8) for _ in range(3)]
    numbers = [item["command"]["arguments"][0] for item in items]
    (session,) = daemon.hub.sessions

    def accept(number: str) -> bool:
        """Whether it was kept."""
        editor.tell("codemem/didShow", {"id": number})
        editor.tell("codemem/didAccept", {"id": number, "kind": "word", "length": 5})
        editor.tell("codemem/didAccept", {"id": number, "kind": "all", "length": 22})
        editor.status()
        end = time.monotonic() + 20
        while (kept := session.ledger[number].counted.kept) is None:
            assert time.monotonic() < end
            time.sleep(0.02)
        return kept

    editor.tell("codemem/didShow", {"id": numbers[0]})
    editor.insert(file, 2, 8, items[1]["insertText"])
    assert accept(numbers[1])
    editor.change(file, {"text": "nothing is left"})
    assert not accept(numbers[2])
    editor.tell("codemem/didAccept", {"id": "unknown", "kind": "all", "length": 3})
    editor.tell("codemem/didShow", {"id": "unknown"})
    editor.status()
    editor.__exit__()
    end = time.monotonic() + 20
    while (summary := Statistics().summary(1)).known < 2:
        assert time.monotonic() < end, summary
        time.sleep(0.05)
    assert (summary.asked, summary.offered, summary.shown, summary.accepted, summary.kept) == (3, 3, 3, 2, 1)
    assert 0 < summary.p50 <= summary.p90 <= summary.p99
    content = Statistics().file.read_bytes()
    assert b"first" not in content and b"use.py" not in content and str(root).encode() not in content
    assert Statistics().file.stat().st_mode & 0o777 == 0o600


def test_a_memory_that_outgrows_its_index_is_opened_anew_beside_it(editor, root, daemon, monkeypatch):
    monkeypatch.setattr(knn, "EXACT_ENTRIES", 200)
    monkeypatch.setattr(knn.ExactIndex, "outgrown", lambda index, rows: rows > 200)
    repository = daemon.hub.repositories[root]
    before = repository._live
    editor.open(root / "typed.py", "def typed(value):\n    return value\n")
    end = time.monotonic() + 60
    while "typed.py" not in before.banks.documents:
        assert time.monotonic() < end
        time.sleep(0.02)
    (root / "large.py").write_text("def large(first, second):\n    return first + second\n" * 10)
    entries = editor.ready(documents=3)["folders"][0]["entries"]
    after = repository._live
    assert after is not before and len(after.banks.bank) == entries
    assert {type(index) for index in after.banks.bank.built} == {knn.IVFIndex}
    assert after.banks.written("typed.py") is not None, "what is typed is not lost"
    editor.open(root / "use.py")
    assert editor.text(root / "use.py", 2, 8) == "first + second + third"
    # What is added to such an index is put into it when there is nothing else to do.
    monkeypatch.setattr(knn, "TAIL_ROWS", 8)
    (root / "more.py").write_text("def more(first, second):\n    return first - second\n")
    entries = editor.ready(documents=4)["folders"][0]["entries"]
    indexes = after.banks.bank.built
    end = time.monotonic() + 60
    while any(len(index) != entries or index._tail.shape[1] > 8 for index in indexes):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_what_nobody_has_open_is_forgotten_after_a_while(daemon, root, loaded, monkeypatch):
    monkeypatch.setattr(hub, "RELEASE", 0.1)
    with daemon.editor() as other:
        with daemon.editor(root) as editor:
            editor.ready()
            editor.open(root / "use.py")
            assert editor.text(root / "use.py", 2, 8)
            assert len(loaded.model.bank)
        end = time.monotonic() + 60
        while daemon.hub.repositories or len(loaded.model.bank):
            assert time.monotonic() < end
            time.sleep(0.05)
        assert other.status()["folders"] == []
