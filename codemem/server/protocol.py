"""The protocol: JSON-RPC and LSP's life cycle, by pygls, for one client of several.

pygls is made for a server that has one client and ends with it. Here `exit` ends the connection alone, a message that
is not understood is answered rather than shown to a person, positions are UTF-16 whatever else a client could do, and
documents are kept by `documents`, which counts lines as LSP does.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from lsprotocol import types
from pygls.exceptions import JsonRpcException
from pygls.protocol import LanguageServerProtocol, lsp_method

from codemem.errors import CodememError
from codemem.server import messages

if TYPE_CHECKING:
    from codemem.server.language_server import Session

# Requests of one client that may be under way at once.
MOST_REQUESTS = 64
_ALWAYS = (types.INITIALIZE, types.EXIT)


class Protocol(LanguageServerProtocol):
    """What one client says and hears."""

    _server: Session
    _initialized = False

    def receive(self, body: bytes) -> None:
        """Handle a message, or say what is wrong with it."""
        try:
            message = json.loads(body)
        except (ValueError, RecursionError):
            return self.refuse("what came is not JSON", types.ErrorCodes.ParseError)
        if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
            return self.refuse("what came is no JSON-RPC 2.0 message", types.ErrorCodes.InvalidRequest)
        number, method = message.get("id"), message.get("method")
        request = "id" in message and "method" in message
        answer_to = number if isinstance(number, (int, str)) else None
        if request and (fault := self._fault(method, number)):
            return self.refuse(*fault, answer_to)
        if not request and "method" in message and not self._initialized and method not in _ALWAYS:
            return None
        try:
            self.handle_message(self.structure_message(message))
        except Exception:  # whatever a stranger's message provokes in the readers
            if request:
                self.refuse(f"{method}: its parameters are wrong", types.ErrorCodes.InvalidParams, answer_to)
        return None

    def _fault(self, method: object, number: object) -> tuple[str, int] | None:
        """Why a request is not taken: what to say, and LSP's code."""
        if not isinstance(method, str) or not isinstance(number, (int, str)):
            return "a request needs a method and an id", types.ErrorCodes.InvalidRequest
        if method == types.INITIALIZE and self._initialized:
            return "initialize may come once", types.ErrorCodes.InvalidRequest
        if not self._initialized and method not in _ALWAYS:
            return f"{method}: initialize comes first", types.ErrorCodes.ServerNotInitialized
        if self._shutdown:
            return f"{method}: shutdown came before", types.ErrorCodes.InvalidRequest
        if len(self._request_futures) >= MOST_REQUESTS:  # pygls keeps those of notifications too, when they are done
            running = {key: future for key, future in self._request_futures.items() if not future.done()}
            self._request_futures = running
        if len(self._request_futures) >= MOST_REQUESTS:
            return f"{method}: {MOST_REQUESTS} requests are under way already", types.LSPErrorCodes.RequestFailed
        return None

    def refuse(self, message: str, code: int = types.ErrorCodes.ParseError, number: int | str | None = None) -> None:
        """Answer with an error."""
        error = types.ResponseError(code=code, message=message)
        self._send_response(number, error=error)  # type: ignore[arg-type]  # null where a message has no id

    def ask(self, method: str, params: dict[str, Any]) -> None:
        """Send a request whose answer does not matter. pygls would remember it until it comes."""
        self._send_data({"jsonrpc": self.VERSION, "id": uuid.uuid4().hex, "method": method, "params": params})

    def get_message_type(self, method: str) -> Any:  # type: ignore[override]
        """As in pygls, which keeps every server that ever asked in a cache."""
        return messages.TYPES.get(method) or types.METHOD_TO_TYPES.get(method, (None,))[0]

    def get_result_type(self, method: str) -> Any:  # type: ignore[override]
        return types.METHOD_TO_TYPES.get(method, (None, None))[1]

    @lsp_method(types.INITIALIZE)
    def lsp_initialize(self, params: types.InitializeParams) -> Generator[Any, Any, types.InitializeResult]:
        if params.capabilities.general is not None:
            params.capabilities.general.position_encodings = None  # then it is UTF-16, which every client can
        self._initialized = True
        return (yield from super().lsp_initialize(params))

    @lsp_method(types.EXIT)
    def lsp_exit(self, *_: Any) -> None:  # type: ignore[override]
        if self.writer is not None:
            self.writer.close()

    @lsp_method(types.TEXT_DOCUMENT_DID_OPEN)
    def lsp_text_document__did_open(self, params: types.DidOpenTextDocumentParams) -> None:
        self._server.opened(params)

    @lsp_method(types.TEXT_DOCUMENT_DID_CHANGE)
    def lsp_text_document__did_change(self, params: types.DidChangeTextDocumentParams) -> None:
        self._server.changed(params)

    @lsp_method(types.TEXT_DOCUMENT_DID_CLOSE)
    def lsp_text_document__did_close(self, params: types.DidCloseTextDocumentParams) -> None:
        self._server.closed(params)


def refusal(error: CodememError, code: int = types.LSPErrorCodes.RequestFailed) -> JsonRpcException:
    """An error of ours as a client gets it."""
    return JsonRpcException(str(error), code, {"hint": error.hint} if error.hint else None)
