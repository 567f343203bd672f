"""The bytes that each token stands for, and which tokens can continue a piece of text."""

from __future__ import annotations

import re
from bisect import bisect_left
from functools import cached_property

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
        alphabet, vocabulary = _alphabet(), backend.get_vocab()
        letters = {ord(letter): byte for letter, byte in alphabet.items()}
        in_letters = re.compile(f"[{re.escape(''.join(alphabet))}]*").fullmatch
        result = [b""] * (max(vocabulary.values()) + 1)
        for token, number in vocabulary.items():
            if number in self.special:
                continue
            if spelled and in_letters(token):
                result[number] = token.translate(letters).encode("latin-1")
            elif not spelled and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                result[number] = bytes([int(token[3:5], 16)])
            else:
                result[number] = (token if spelled else token.replace("\u2581", " ")).encode()
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


def _alphabet() -> dict[str, int]:
    """The characters with which byte-level tokenizers spell bytes: visible ones of Latin-1 stand for themselves, the
    others for the rest in their order, from U+0100 on (GPT-2)."""
    themselves = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = sorted(set(range(0x100)) - set(themselves))
    return {chr(byte): byte for byte in themselves} | {chr(0x100 + n): byte for n, byte in enumerate(rest)}
