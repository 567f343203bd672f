"""`codemem serve`, `lsp`, `stats` and `complete` beside a daemon, as processes and as commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import USE
from json_docs import answer_of, check_against_documentation
from serving import Daemon

from cli.serve import command
from codemem.errors import CodememError
from codemem.models.pretrained import load_memorizing
from codemem.server import features
from codemem.server.client import connected_or_started
from codemem.server.sockets import address_of, connected
from codemem.server.statistics import Counted, Statistics, today


@pytest.fixture
def beside(indexed, model, monkeypatch):
    """A daemon of the tiny model that `indexed` was read with. Its weights stay in 16 bits: packed ones are for a few
    positions at a time, so that shares would differ by more than their last digits."""
    monkeypatch.setattr("codemem.models.packed.pack", lambda *_: None)
    monkeypatch.setattr("codemem.models.pretrained.packs_path", lambda _: None)
    with Daemon(lambda: load_memorizing(str(model)), address=address_of(str(model))) as daemon:
        with daemon.editor(indexed) as editor:
            editor.ready()
        yield daemon


def without_times(answer: dict) -> dict:
    """What must be the same: how much of a prompt is in the cache shows in the last digits of shares."""
    assert set(answer["ms"]) == {"load", "recall", "prefill", "decode", "retrieval", "total"}
    return rounded({**answer, "ms": None})


def rounded(value):
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list) else value


def test_complete_says_the_same_with_the_daemon_and_without(codemem, indexed, beside, monkeypatch):
    asked = []
    feature = features.FEATURES["codemem/complete"]

    async def counted(ls, params):
        asked.append(params)
        return await feature(ls, params)

    monkeypatch.setitem(features.FEATURES, "codemem/complete", counted)
    cursor = f"{indexed}/use.py:3"
    sampled = ("--recall", "--max-tokens", "5", "--temperature", "0.7", "--seed", "3")
    answers = []
    for options in (("--recall",), ("--no-memory",), sampled, ("--no-recall",)):
        with_it = answer_of(codemem("complete", cursor, "--json", *options))
        alone = answer_of(codemem("complete", cursor, "--json", "--no-daemon", *options))
        assert without_times(with_it) == without_times(alone)
        assert with_it["ms"]["load"] + with_it["ms"]["decode"] <= with_it["ms"]["total"]
        answers.append(with_it)
    check_against_documentation("complete", *answers)
    assert len(asked) == 4
    explained = codemem("complete", cursor, "--recall", "--explain")
    assert explained == codemem("complete", cursor, "--recall", "--explain", "--no-daemon")
    assert "of the attention" in explained[1]
    assert len(asked) == 5
    codemem("complete", cursor, "--with", indexed)
    assert len(asked) == 5, "several memories are read without it"


def test_complete_reads_a_changed_file_as_it_would_alone(codemem, indexed, beside):
    beside.hub.repositories[indexed].close()  # it follows no more, so that it has what is on disk only from the command
    long = "".join(f"def f{number}(x):\n    return area(x, {number})\n" for number in range(60))
    (indexed / "use.py").write_text(long + USE)
    cursor = f"{indexed}/use.py:{long.count(chr(10)) + 3}"
    alone = answer_of(codemem("complete", cursor, "--json", "--recall", "--no-daemon"))
    assert alone["memory"]["documents"] == 2
    # Closed, the repository is opened anew at the next question.
    del beside.hub.repositories[indexed]
    with_it = answer_of(codemem("complete", cursor, "--json"))
    assert without_times(with_it)["text"] == alone["text"]


def test_errors_are_those_of_the_daemon(codemem, indexed, beside, tmp_path):
    other = tmp_path / "else.py"
    other.write_text("x = 1\n")
    status, out, err = codemem("complete", f"{other}:1")
    assert (status, out) == (1, "") and "has a memory" in err


def test_what_an_editor_needs_is_light():
    code = """
import sys
import cli.app, cli.complete, cli.lsp, codemem.server.client, codemem.server.forwarding, codemem.server.sockets
print(sorted({"torch", "transformers", "faiss", "numpy", "pygls", "lsprotocol", "asyncio"} & set(sys.modules)))
"""
    heavy = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert set(json.loads(heavy.replace("'", '"'))) <= {"asyncio"}, "filelock brings that one"


class Lsp:
    """A process of `codemem lsp`, as an editor runs it."""

    def __init__(self, folder: Path, model: Path) -> None:
        words = [*command(str(model))[:3], "lsp", "--stdio"]  # the model is that of the folder's memory
        self.process = subprocess.Popen(
            words, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.number = 0
        self.ask("initialize", {"processId": None, "rootUri": folder.as_uri(), "capabilities": {}})
        self.send({"method": "initialized", "params": {}})

    def send(self, message: dict) -> None:
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        self.process.stdin.flush()

    def ask(self, method: str, params: object) -> dict:
        self.number += 1
        self.send({"id": self.number, "method": method, "params": params})
        while True:
            length = 0
            while (line := self.process.stdout.readline()).strip():
                name, _, value = line.partition(b":")
                length = int(value) if name == b"Content-Length" else length
            assert line, self.process.stderr.read()
            answer = json.loads(self.process.stdout.read(length))
            if answer.get("id") == self.number:
                return answer["result"]

    def end(self) -> int:
        self.process.stdin.close()
        code = self.process.wait(20)
        self.process.stdout.close()
        self.process.stderr.close()
        return code


def test_racing_starters_get_one_daemon_which_comes_back_after_being_killed(indexed, model):
    racers = [subprocess.Popen(command(str(model)), stderr=subprocess.PIPE, text=True) for _ in range(1)]
    editors = [Lsp(indexed, model) for _ in range(3)]
    try:
        first = {editor.ask("codemem/status", {})["pid"] for editor in editors}
        assert len(first) == 1, "one daemon"
        lost = [racer for racer in racers if racer.pid not in first]
        for racer in lost:
            assert racer.wait(60) == 1 and "runs already" in racer.stderr.read()
        (pid,) = first
        os.kill(pid, signal.SIGKILL)
        assert all(editor.process.wait(20) == 0 for editor in editors), "an editor starts its server again"
        again = Lsp(indexed, model)
        editors.append(again)
        second = again.ask("codemem/status", {})["pid"]
        assert second != pid
        end = time.monotonic() + 90
        while again.ask("codemem/status", {})["state"] != "ready":
            assert time.monotonic() < end
            time.sleep(0.1)
        uri = (indexed / "use.py").as_uri()
        item = {"uri": uri, "languageId": "python", "version": 1, "text": USE}
        again.send({"method": "textDocument/didOpen", "params": {"textDocument": item}})
        place = {"line": 2, "character": 11}
        asked = {"textDocument": {"uri": uri}, "position": place, "context": {"triggerKind": 1}}
        assert len(again.ask("textDocument/inlineCompletion", asked)["items"]) <= 1
        os.kill(second, signal.SIGTERM)
        assert again.process.wait(20) == 0
        end = time.monotonic() + 20
        while address_of(str(model)).socket.exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        assert connected(address_of(str(model))) is None
        assert "Traceback" not in address_of(str(model)).log.read_text()
    finally:
        for process in (*racers, *(editor.process for editor in editors)):
            process.kill()
            process.communicate()


def test_a_daemon_that_cannot_start_says_why(model):
    fails = [sys.executable, "-c", "import sys; print('error: no room', file=sys.stderr); sys.exit(1)"]
    with pytest.raises(CodememError, match="does not start: no room"):
        connected_or_started(address_of(str(model)), fails)


def test_stats_prints_what_its_documentation_says(codemem):
    empty = answer_of(codemem("stats", "--json"))
    Statistics().write(
        [
            Counted("a", today(), 100.0, 10, shown=True, accepted=10, kept=True),
            Counted("b", today(), 200.0, 10, shown=True, accepted=5),
            Counted("c", today(), 300.0, 0),
            Counted("d", today() - 3, 400.0, 9, shown=True, accepted=9, kept=False),
            Counted("e", today() - 3000, 400.0, 9, shown=True),
        ]
    )
    answer = answer_of(codemem("stats", "--json"))
    check_against_documentation("stats", empty, answer)
    assert answer["today"] == {
        "asked": 3, "offered": 2, "shown": 2, "accepted": 2, "kept": 1, "known": 1, "p50": 200.0,
        "p90": pytest.approx(280.0), "p99": pytest.approx(298.0),
    }  # fmt: skip
    assert answer["all"]["asked"] == 4, "what is older than a year is forgotten"
    status, out, _ = codemem("stats")
    assert status == 0 and "2 (100%)" in out and "200 ms" in out
    codemem("stats", "--clear")
    assert answer_of(codemem("stats", "--json"))["all"]["asked"] == 0


@pytest.mark.weights
def test_with_the_embedded_model(tmp_path, codemem, monkeypatch):
    monkeypatch.delenv("CODEMEM_CACHE")
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "shapes.py").write_text("def area_of_rectangle(width, height):\n    return width * height\n")
    (folder / "use.py").write_text("from shapes import area_of_rectangle\n\nprint(area_of_rec")
    with Daemon(load_memorizing, address=address_of(None)) as daemon, daemon.editor(folder) as editor:
        editor.until(lambda status: status["model"] == "smollm2-135m" and daemon.hub.model.done(), 60)
        assert editor.ask("codemem/index", {"uri": folder.as_uri()})["documents"] == 2
        editor.ready(documents=2)
        editor.open(folder / "use.py")
        item = editor.complete(folder / "use.py", 2, 17)
        assert item["insertText"].startswith("tangle(")
        why = editor.ask("codemem/explain", {"id": item["command"]["arguments"][0]})
        assert why["share"] > 0 and why["sources"][0]["path"] == "shapes.py"
        assert why["sources"][0]["text"].strip() in (folder / "shapes.py").read_text()
