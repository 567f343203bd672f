"""The messages that LSP does not have, as pygls wants them: what their parameters are, by method. docs/protocol.md
describes them."""

from __future__ import annotations

from typing import Any, Generic, Literal, Optional, TypeVar, Union

import attrs

STATUS = "codemem/status"
STATUS_CHANGED = "codemem/statusChanged"
EXPLAIN = "codemem/explain"
INDEX = "codemem/index"
DID_SHOW = "codemem/didShow"
DID_ACCEPT = "codemem/didAccept"
COMPLETE = "codemem/complete"

# cattrs reads these at run time, on Python 3.10 too.
_Id = Union[int, str]  # noqa: UP007


@attrs.define
class StatusParams:
    uri: Optional[str] = None  # noqa: UP045


@attrs.define
class ExplainParams:
    id: str


@attrs.define
class IndexParams:
    uri: str
    rebuild: bool = False
    workDoneToken: Optional[_Id] = None  # noqa: UP045 - as LSP spells it


@attrs.define
class DidShowParams:
    id: str


@attrs.define
class DidAcceptParams:
    id: str
    length: int
    kind: Literal["all", "line", "word"] = "all"


@attrs.define
class CompleteParams:
    """What `codemem complete` asks. path: absolute; hash: of the file's bytes; options: of `Request`, and memory."""

    path: str
    text: str
    offset: int
    hash: str
    memory: bool
    options: dict[str, Any]


_Params = TypeVar("_Params")


@attrs.define
class Request(Generic[_Params]):
    id: _Id
    method: str
    params: _Params
    jsonrpc: str = "2.0"


@attrs.define
class Notification(Generic[_Params]):
    method: str
    params: _Params
    jsonrpc: str = "2.0"


TYPES: dict[str, Any] = {
    STATUS: Request[StatusParams],
    EXPLAIN: Request[ExplainParams],
    INDEX: Request[IndexParams],
    COMPLETE: Request[CompleteParams],
    DID_SHOW: Notification[DidShowParams],
    DID_ACCEPT: Notification[DidAcceptParams],
}
