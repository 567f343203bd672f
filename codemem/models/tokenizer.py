"""Text to tokens and back: what this library asks of a tokenizer, and one read from its files without transformers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from tokenizers import AddedToken, Encoding, processors
from tokenizers import Tokenizer as Backend

from codemem.errors import CodememError
from codemem.models.checkpoint import read_json

_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_LISTS = ("additional_special_tokens", "extra_special_tokens")
# With these transformers makes another tokenizer of the same tokenizer.json.
_CHANGING_FILES = ("special_tokens_map.json", "added_tokens.json")
_CHANGING_SETTINGS = ("add_bos_token", "add_eos_token", "fix_mistral_regex")

# Comments start with // in these, with # in the rest.
_SLASHED = re.compile(
    r"\.([ch]|cc|cpp|cs|cxx|hpp|dart|go|java|jsx?|mjs|kts?|php|proto|rs|scala|swift|tsx?)", re.IGNORECASE
)


class Tokenizer(Protocol):
    """transformers' fast tokenizers are this, and `PlainTokenizer` is."""

    @property
    def backend_tokenizer(self) -> Backend:
        """The tokenizer of the library `tokenizers`."""

    @property
    def all_special_ids(self) -> Sequence[int]:
        """The tokens with a role, such as the end of a text."""


@dataclass(frozen=True)
class PlainTokenizer:
    """A tokenizer as its files have it; see `Tokenizer`."""

    backend_tokenizer: Backend
    all_special_ids: tuple[int, ...]

    def __len__(self) -> int:
        return int(self.backend_tokenizer.get_vocab_size())


def spell(tokenizer: Tokenizer, text: str, *, begin: bool = False) -> Encoding:
    """The tokens of a text; the spelling of a special token is text like any other. begin: with what the tokenizer puts
    around a whole text. Raises CodememError for a tokenizer that cannot say where its tokens stand."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise CodememError(
            f"{type(tokenizer).__name__} cannot say where its tokens stand in the text",
            "use a model with a fast tokenizer",
        )
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    encoding: Encoding = backend.encode(text, add_special_tokens=begin)
    return encoding


def tokenize(tokenizer: Tokenizer, text: str) -> tuple[list[int], np.ndarray]:
    """The ids of a piece of text, and the offset in characters, [n] int64, at which each of them starts.

    No token is added, and the spelling of a special token is text like any other. Raises CodememError for a tokenizer
    that cannot say where its tokens stand.
    """
    encoded = spell(tokenizer, text)
    return encoded.ids, np.array([start for start, _ in encoded.offsets], dtype=np.int64)


def header_tokens(tokenizer: Tokenizer, path: str) -> list[int]:
    """The first line of every encoding window and of every prompt: the path, after what the tokenizer puts before a
    text."""
    return spell(tokenizer, f"{comment_leader(path)} {path}\n", begin=True).ids


def comment_leader(path: str) -> str:
    """What starts a comment in a document, as its suffix says: "//" or "#"."""
    return "//" if _SLASHED.fullmatch(PurePosixPath(path).suffix) else "#"


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of tokens, special ones included."""
    text: str = tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)
    return text


def read_tokenizer(directory: Path) -> PlainTokenizer | None:
    """The tokenizer in a directory with a whole tokenizer.json; None where transformers would make another of it."""
    settings = read_json(directory / "tokenizer_config.json") or {}
    if any((directory / name).exists() for name in _CHANGING_FILES) or any(map(settings.get, _CHANGING_SETTINGS)):
        return None
    try:
        backend = Backend.from_file(str(directory / "tokenizer.json"))
    except Exception:  # the library raises nothing more particular
        return None
    if any(name in settings for name in _CHANGING_SETTINGS):
        backend.post_processor = processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])
    added = backend.get_added_tokens_decoder()
    if any(_described(added.get(int(id))) != token for id, token in settings.get("added_tokens_decoder", {}).items()):
        return None
    special = {_content(settings.get(f"{role}_token")) for role in _ROLES} - {None}
    special |= {_content(token) for name in _LISTS for token in settings.get(name) or ()}
    ids = {token.content: id for id, token in added.items()}
    return PlainTokenizer(backend, tuple(ids[content] for content in special)) if special <= ids.keys() else None


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _described(token: AddedToken | None) -> dict[str, Any]:
    names = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return {name: getattr(token, name, None) for name in names}
