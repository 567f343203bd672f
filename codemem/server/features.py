"""What a client may ask and say, by method: the functions that pygls calls with its session. docs/protocol.md describes
them."""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lsprotocol import types
from pygls.exceptions import JsonRpcException

from codemem.completion.request import Request
from codemem.errors import CodememError
from codemem.server import messages
from codemem.server.documents import Document
from codemem.server.ledger import Given
from codemem.server.protocol import refusal
from codemem.server.repository import Repository
from codemem.server.workspace import RefusedError, containing, folder_of, path_of

if TYPE_CHECKING:
    from codemem.server.language_server import Session

# Milliseconds for a completion that nobody asked for by name: later than that, people have typed on.
AUTOMATIC_DEADLINE = 2000.0
# Seconds after which it is looked whether what was accepted still stands.
KEPT_AFTER = 60.0
# Lines of memory that codemem/explain names.
SOURCES = 12
# What `codemem complete` may set of a request.
_OPTIONS = ("context", "max_tokens", "temperature", "seed", "attention", "tokens", "recall", "deadline")

_Params = TypeVar("_Params")


def _answering(feature: Callable[[Session, _Params], Awaitable[Any]]) -> Callable[[Session, _Params], Awaitable[Any]]:
    """A feature whose failures a client can read."""

    @functools.wraps(feature)
    async def answer(ls: Session, params: _Params) -> Any:
        try:
            return await feature(ls, params)
        except RefusedError as error:
            raise refusal(error, types.ErrorCodes.InvalidParams) from error
        except CodememError as error:
            raise refusal(error) from error
        except JsonRpcException:
            raise
        except Exception as error:
            ls.report_server_error(error, JsonRpcException)
            what = f"codemem failed unexpectedly: {type(error).__name__} (CODEMEM_DEBUG=1 shows where)"
            raise JsonRpcException(what, types.ErrorCodes.InternalError) from error

    return answer


def _initialized(ls: Session, _: Any) -> None:
    ls.hub.refresh()
    ls.poke()


def _initialize(ls: Session, params: types.InitializeParams) -> None:
    uris = [folder.uri for folder in params.workspace_folders or ()]
    if not uris and (params.root_uri or params.root_path):
        uris = [params.root_uri or Path(params.root_path or "").as_uri()]
    _add_folders(ls, uris)


def _folders_changed(ls: Session, params: types.DidChangeWorkspaceFoldersParams) -> None:
    removed = {folder.uri for folder in params.event.removed}
    ls.folders = [folder for folder in ls.folders if folder.uri not in removed]
    _add_folders(ls, [folder.uri for folder in params.event.added])
    ls.hub.refresh()
    ls.poke()


def _add_folders(ls: Session, uris: list[str]) -> None:
    for uri in uris:
        try:
            ls.folders.append(folder_of(uri))
        except RefusedError:
            continue  # nothing in it will be answered


def _saved(ls: Session, params: types.DidSaveTextDocumentParams) -> None:
    """The watcher sees the file."""


@_answering
async def _inline_completion(ls: Session, params: types.InlineCompletionParams) -> types.InlineCompletionList:
    begin = time.perf_counter()
    repository, path = ls.place(params.text_document.uri)
    document = ls.documents[params.text_document.uri]
    if repository is None or not repository.opened:
        return types.InlineCompletionList([])
    automatic = params.context.trigger_kind == types.InlineCompletionTriggerKind.Automatic
    request = _request(document, path, params.position, AUTOMATIC_DEADLINE if automatic else None)
    completion = await ls.result(repository.complete(request, ls.id))
    if completion.reason == "cancelled":
        return types.InlineCompletionList([])
    before = request.text[: request.offset].rpartition("\n")[2]
    ms = 1000 * (time.perf_counter() - begin)
    given = ls.ledger.add(completion, repository.root, document.uri, before, ms)
    if not completion.text:
        return types.InlineCompletionList([])
    _look_up(ls, repository, given)
    here = types.Range(params.position, params.position)
    command = types.Command("codemem: accepted", "codemem.didAccept", arguments=[given.id])
    return types.InlineCompletionList([types.InlineCompletionItem(completion.text, range=here, command=command)])


def _request(document: Document, path: str, position: types.Position, deadline: float | None) -> Request:
    return Request(path, document.normal, document.normal_offset(position), deadline=deadline)


def _look_up(ls: Session, repository: Repository, given: Given) -> None:
    """Keep the lines that memory was read from, as they are now: it may change before somebody asks."""
    places = [(source.path, source.line) for source in given.completion.provenance[:SOURCES]]

    def note() -> None:
        given.texts = repository.lines(places)

    ls.hub.scheduler.between(note)


@_answering
async def _status(ls: Session, params: messages.StatusParams) -> dict[str, Any]:
    if params.uri is None:
        return ls.hub.status(ls.folders)
    return ls.hub.status([containing(ls.folders, path_of(params.uri))])


@_answering
async def _explain(ls: Session, params: messages.ExplainParams) -> dict[str, Any]:
    given = ls.ledger[params.id]
    await asyncio.wrap_future(ls.hub.scheduler.between(lambda: None))  # after the lines were looked up
    completion, root = given.completion, given.root
    use = completion.memory
    sources = zip(completion.provenance, given.texts, strict=False)
    snippets = reversed(use.snippets) if use else ()
    return {
        "id": given.id,
        "text": completion.text,
        "share": use.share if use else 0.0,
        "tokenShare": use.token_share if use else 0.0,
        "reason": completion.reason,
        "ms": completion.ms,
        "sources": [{"uri": (root / source.path).as_uri(), **asdict(source), "text": text} for source, text in sources],
        "snippets": [
            {
                "uri": (root / snippet.path).as_uri(),
                "path": snippet.path,
                "firstLine": snippet.start_line,
                "lastLine": snippet.end_line,
                "weight": snippet.weight,
            }
            for snippet in snippets
        ],
    }


@_answering
async def _index(ls: Session, params: messages.IndexParams) -> dict[str, Any]:
    folder = containing(ls.folders, path_of(params.uri))
    ls.begin_bar(folder.uri, params.workDoneToken)
    try:
        return await ls.hub.index(folder, params.rebuild)
    finally:
        ls.end_bar(folder.uri)
        ls.poke()


def _did_show(ls: Session, params: messages.DidShowParams) -> None:
    if given := ls.ledger.get(params.id):
        given.counted.shown = True
        ls.ledger.note(given.counted)


def _did_accept(ls: Session, params: messages.DidAcceptParams) -> None:
    given = ls.ledger.get(params.id)
    if given is None or params.length < 1:
        return
    if not given.counted.accepted:
        asyncio.get_running_loop().call_later(KEPT_AFTER, ls.check_kept, given)
    given.counted.shown = True
    given.counted.accepted = min(max(given.counted.accepted, params.length), len(given.completion.text))
    ls.ledger.note(given.counted)


@_answering
async def _complete(ls: Session, params: messages.CompleteParams) -> dict[str, Any]:
    """What `codemem complete` asks: the same answer that it would give by itself."""
    path = Path(os.path.realpath(params.path))
    repository = ls.hub.repository(containing(ls.folders, path))
    if repository is None:
        raise RefusedError(f"no folder above {path} has a memory", f"codemem index {path.parent}")
    options = params.options
    plain = all(isinstance(value, (int, float, type(None))) for value in options.values())
    if not plain or not options.keys() <= set(_OPTIONS) or not 0 <= params.offset <= len(params.text):
        raise RefusedError(f"{messages.COMPLETE}: its parameters are wrong")
    while not repository.opened:
        if repository.status.state == "error":
            raise CodememError(repository.status.message or "", repository.status.hint)
        await asyncio.sleep(0.02)
    request = Request(path.relative_to(repository.root).as_posix(), params.text, params.offset, **options)
    return asdict(await ls.result(repository.complete_saved(request, params.hash, params.memory, ls.id)))


FEATURES: dict[str, Callable[[Session, Any], Any]] = {
    types.INITIALIZE: _initialize,
    types.INITIALIZED: _initialized,
    types.WORKSPACE_DID_CHANGE_WORKSPACE_FOLDERS: _folders_changed,
    types.TEXT_DOCUMENT_DID_SAVE: _saved,
    types.TEXT_DOCUMENT_INLINE_COMPLETION: _inline_completion,
    messages.STATUS: _status,
    messages.EXPLAIN: _explain,
    messages.INDEX: _index,
    messages.DID_SHOW: _did_show,
    messages.DID_ACCEPT: _did_accept,
    messages.COMPLETE: _complete,
}
