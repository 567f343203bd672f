"""The server: one client of the daemon, what it has open and how it is told how things are."""

from __future__ import annotations

import asyncio
import functools
import os
import sys
import time
import traceback
import uuid
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsprotocol import types
from pygls.lsp.server import LanguageServer
from pygls.protocol import default_converter

from codemem.completion.request import Completion
from codemem.completion.scheduler import Job
from codemem.server import messages
from codemem.server.documents import Documents
from codemem.server.features import FEATURES
from codemem.server.ledger import Given, Ledger
from codemem.server.protocol import Protocol
from codemem.server.repository import Repository
from codemem.server.workspace import Folder, RefusedError, containing, path_of

if TYPE_CHECKING:
    from codemem.server.hub import Hub

# Seconds without typing after which memory reads what was typed, and at most between two such times while it goes on.
QUIET, LONGEST = 0.4, 3.0
# Seconds between two messages about the status.
PACE = 0.5

_converter = functools.cache(default_converter)  # making one takes longer than answering


class Session(LanguageServer):
    """One client: its folders, its open documents, and what it was given."""

    protocol: Protocol

    def __init__(self, hub: Hub) -> None:
        super().__init__("codemem", version("codemem"), protocol_cls=Protocol, converter_factory=_converter)
        self.hub, self.id = hub, uuid.uuid4().hex
        self.folders: list[Folder] = []
        self.documents, self.ledger = Documents(), Ledger()
        self._timers: dict[str, tuple[float, asyncio.TimerHandle]] = {}  # uri -> since when, and the timer
        self._told: dict[str, Any] | None = None
        self._told_at = 0.0
        self._telling: asyncio.TimerHandle | None = None
        self._bars: dict[str, int | str] = {}  # a folder's uri -> the token of its progress
        for method, feature in FEATURES.items():
            options = types.InlineCompletionOptions() if method == types.TEXT_DOCUMENT_INLINE_COMPLETION else None
            self.feature(method, options)(feature)

    def report_server_error(self, error: Exception, source: Any) -> None:
        """pygls would show it to a person; whoever asked has an answer, and nobody else wants to know."""
        if os.environ.get("CODEMEM_DEBUG") == "1":
            traceback.print_exception(error, file=sys.stderr)

    def end(self) -> None:
        """The client has gone."""
        for future in tuple(self.protocol._request_futures.values()):
            future.cancel()
        for uri in self.documents.uris:
            self._close(uri)
        if self._telling:
            self._telling.cancel()

    # Documents.

    def place(self, uri: str) -> tuple[Repository | None, str]:
        """The repository of a document and its path there, None where its folder has no memory. Raises RefusedError for
        one outside of the open folders."""
        path = path_of(uri)
        repository = self.hub.repository(containing(self.folders, path))
        return repository, path.relative_to(repository.root).as_posix() if repository else path.name

    def opened(self, params: types.DidOpenTextDocumentParams) -> None:
        self.documents.open(params.text_document)
        self._take_in(params.text_document.uri)

    def changed(self, params: types.DidChangeTextDocumentParams) -> None:
        self.documents.change(params)
        uri, now = params.text_document.uri, time.monotonic()
        since, timer = self._timers.pop(uri, (now, None))
        if timer:
            timer.cancel()
        delay = max(0.0, min(QUIET, since + LONGEST - now))
        self._timers[uri] = since, asyncio.get_running_loop().call_later(delay, self._take_in, uri)

    def closed(self, params: types.DidCloseTextDocumentParams) -> None:
        self._close(params.text_document.uri)

    def _take_in(self, uri: str) -> None:
        """Let memory read a document as it is here."""
        self._timers.pop(uri, None)
        document = self.documents.get(uri)
        if document is not None and (place := self._known(uri)):
            place[0].type(place[1], document.text)

    def _close(self, uri: str) -> None:
        if timer := self._timers.pop(uri, None):
            timer[1].cancel()
        self.documents.close(uri)
        if not (place := self._known(uri)):
            return
        others = [other.documents.get(uri) for other in self.hub.sessions if other is not self]
        texts = [document.text for document in others if document]
        if texts:
            place[0].type(place[1], texts[0])
        else:
            place[0].settle(place[1])

    def _known(self, uri: str) -> tuple[Repository, str] | None:
        """As `place`, None where there is nothing to remember it in."""
        try:
            repository, path = self.place(uri)
        except RefusedError:
            return None
        return (repository, path) if repository else None

    # Completions.

    async def result(self, job: Job) -> Completion:
        """What a job gives; it is cancelled where the request is."""
        try:
            return await asyncio.shield(asyncio.wrap_future(job.future))
        except asyncio.CancelledError:
            job.cancel()
            raise

    def check_kept(self, given: Given) -> None:
        """Note whether what was accepted still stands in its document."""
        if document := self.documents.get(given.uri):
            given.counted.kept = given.stands(document.normal)
            self.ledger.note(given.counted)

    # Telling how things are.

    def poke(self) -> None:
        """Tell the client the status, if it has changed, and no more than twice a second."""
        if self._telling is None:
            wait = max(0.0, self._told_at + PACE - time.monotonic())
            self._telling = asyncio.get_running_loop().call_later(wait, self._tell)

    def _tell(self) -> None:
        self._telling, self._told_at = None, time.monotonic()
        if not self.folders:
            return
        status = self.hub.status(self.folders)
        if status == self._told:
            return
        self._told = status
        self.protocol.notify(messages.STATUS_CHANGED, status)
        for folder in status["folders"]:
            self._move_bar(folder["uri"], folder.get("percent"))

    def _move_bar(self, uri: str, percent: int | None) -> None:
        if percent is None:
            self.end_bar(uri)
            return
        if uri not in self._bars:
            self.begin_bar(uri, None)
        if uri in self._bars:
            report = types.WorkDoneProgressReport(percentage=percent, message=f"{percent} %")
            self._progress(self._bars[uri], report)

    def begin_bar(self, uri: str, token: int | str | None) -> None:
        """Show that a folder is being indexed, under the client's token or, where it can do that, one of ours."""
        window = self.client_capabilities.window
        if token is None:
            if uri in self._bars or not (window and window.work_done_progress):
                return
            token = uuid.uuid4().hex
            self.protocol.ask(types.WINDOW_WORK_DONE_PROGRESS_CREATE, {"token": token})
        self.end_bar(uri)
        self._bars[uri] = token
        name = Path(path_of(uri)).name
        self._progress(token, types.WorkDoneProgressBegin(title=f"codemem reads {name}", percentage=0))

    def end_bar(self, uri: str) -> None:
        if token := self._bars.pop(uri, None):
            self._progress(token, types.WorkDoneProgressEnd())

    def _progress(self, token: int | str, value: Any) -> None:
        self.protocol.notify(types.PROGRESS, types.ProgressParams(token=token, value=value))
