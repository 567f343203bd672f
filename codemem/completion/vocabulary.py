"""The bytes that each token stands for, and which tokens can continue a piece of text."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from codemem.models.tokenizer import Tokenizer, spell

# <|file_sep|>, and DeepSeek's spelling of the same with a full-width bar.
_MARK = re.compile(r"<[|\uff5c].+[|\uff5c]>")


class Vocabulary:
    """A tokenizer's tokens as bytes.

    Byte-level tokenizers (GPT-2, Llama 3, Qwen, SmolLM) spell bytes with visible characters; SentencePiece ones (Gemma,
    Llama 2) spell a space as U+2581 and a single byte as <0xNN>.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def special(self) -> frozenset[int]:
        """Ids of tokens that are no text; generation ends at them.

        Beside those with a role (end of text) they are those that separate files or parts of a prompt. Qwen's tokenizer
        does not call these special, so their spelling decides too.
        """
        added = self._tokenizer.backend_tokenizer.get_added_tokens_decoder().items()
        marks = (number for number, token in added if token.special or _MARK.fullmatch(token.content))
        return frozenset((*self._tokenizer.all_special_ids, *marks))

    @cached_property
    def tokens(self) -> list[bytes]:
        """Token id -> its bytes; nothing for special tokens."""
        backend = self._tokenizer.backend_tokenizer
        spelled = "ByteLevel" in f"{backend.decoder}{backend.pre_tokenizer}"
        vocabulary = backend.get_vocab()
        result, numbers, tokens = [b""] * (max(vocabulary.values()) + 1), vocabulary.values(), list(vocabulary)
        for number, text in zip(numbers, _spelled(tokens) if spelled else map(_unspelled, tokens), strict=True):
            result[number] = text
        for number in self.special:
            result[number] = b""
        return result

    def spell(self, text: bytes) -> list[int]:
        """The tokens of a text, without the last characters of which not all bytes are there."""
        return spell(self._tokenizer, text.decode("utf-8", errors="ignore")).ids

    @cached_property
    def _sorted(self) -> tuple[list[bytes], list[int]]:
        """The tokens that are text, in the order of their bytes, and their ids."""
        numbers = sorted((number for number, token in enumerate(self.tokens) if token), key=self.tokens.__getitem__)
        return [self.tokens[number] for number in numbers], numbers

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.tokens))

    def continuing(self, text: bytes) -> list[int]:
        """The tokens that begin with `text`, and those that `text` begins with: the ones that can come where it must
        stand."""
        spelled, numbers = self._sorted
        # Nothing that begins with a text comes behind this in the order.
        found = numbers[bisect_left(spelled, text) : bisect_left(spelled, text + b"\xff" * self._longest)]
        for length in range(1, len(text)):
            at = bisect_left(spelled, text[:length])
            if at < len(spelled) and spelled[at] == text[:length]:
                found.append(numbers[at])
        return found


def _unspelled(token: str) -> bytes:
    """The bytes of a token of SentencePiece."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode()


def _spelled(tokens: Sequence[str]) -> list[bytes]:
    """The bytes of tokens that are spelled in the letters of `_alphabet`; of those that are not, what they are
    themselves. All at once: a vocabulary has a hundred thousand."""
    byte_of = np.full(0x200, -1, dtype=np.int16)  # of each letter
    for letter, byte in _alphabet().items():
        byte_of[ord(letter)] = byte
    letters = np.frombuffer("".join(tokens).encode("utf-32-le"), dtype="<u4")
    found = byte_of[np.minimum(letters, len(byte_of) - 1)]
    ends = np.cumsum(np.fromiter(map(len, tokens), dtype=np.int64, count=len(tokens)))
    spelled, whole = found.astype(np.uint8).tobytes(), ends.tolist()
    result = [spelled[start:end] for start, end in zip([0, *whole], whole, strict=False)]
    for number in np.searchsorted(ends, np.nonzero(found < 0)[0], side="right").tolist():
        result[number] = tokens[number].encode()
    return result


def _alphabet() -> dict[str, int]:
    """The characters with which byte-level tokenizers spell bytes: visible ones of Latin-1 stand for themselves, the
    others for the rest in their order, from U+0100 on (GPT-2)."""
    themselves = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = sorted(set(range(0x100)) - set(themselves))
    return {chr(byte): byte for byte in themselves} | {chr(0x100 + n): byte for n, byte in enumerate(rest)}
