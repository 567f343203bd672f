"""A model that writes what it is told to, for tests of all that stands above decoding: no weights, milliseconds.

    model = scripted_model("def area(r):\\n    return pi * r ** 2\\n")
    Engine(model, "scripted").complete(Request("a.py", "def area(r):\\n    return ", 24)).text    # "pi * r ** 2"

Everything but the choice of the next token is real: it has layers, remembers documents, and reads its memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from codemem.completion.vocabulary import Vocabulary
from codemem.models.decoder import Decoder
from codemem.models.memorizing import MemorizingModel

_CERTAIN = 1e6
# Bytes before the cursor that must be alike, tried in this order.
_TAILS = (256, 128, 64, 32, 16, 8, 4)


class ScriptedDecoder:
    """A decoder that writes on as one of several texts does.

    inner: reads, remembers and fills the cache; script: the texts; a text that is written goes on as the one that has
    its end, the more of it the better, and where that ends so does the text. Where none has it, `inner` goes on.
    """

    def __init__(self, inner: Decoder, vocabulary: Vocabulary, script: Sequence[bytes], end: int | None) -> None:
        self._inner, self._vocabulary, self._script, self._end = inner, vocabulary, script, end
        self.together = inner.together

    @property
    def tokens(self) -> list[int]:
        return self._inner.tokens

    def crop(self, length: int) -> None:
        self._inner.crop(length)

    def states(self, ids: Sequence[int], last: int = 1) -> Tensor:
        return self._inner.states(ids, last)

    def read(self, ids: Sequence[int], last: int = 1) -> Tensor:
        logits = self._inner.read(ids, last).clone()
        for position in range(last):
            count = len(self.tokens) - last + position + 1
            token = self._next(b"".join(self._vocabulary.tokens[token] for token in self.tokens[:count]))
            if token is not None:
                logits[position, token] += _CERTAIN
        return logits

    def _next(self, written: bytes) -> int | None:
        body = written.partition(b"\n")[2]  # without the path
        for tail in (body, *(body[-length:] for length in _TAILS if length < len(body))):
            for text in self._script:
                at = text.find(tail)
                if at == 0 or (at > 0 and len(tail) >= _TAILS[-1]):
                    rest = text[at + len(tail) :]
                    return self._vocabulary.tokens.index(rest[:1]) if rest else self._end
        return None


class _Scripted(MemorizingModel):
    script: tuple[bytes, ...] = ()

    def decoder(self) -> Decoder:
        vocabulary = Vocabulary(self.tokenizer)
        return ScriptedDecoder(super().decoder(), vocabulary, self.script, self.tokenizer.all_special_ids[0])


def scripted_model(*script: str) -> MemorizingModel:
    """A memorizing model with tiny random weights and one token a byte, which writes what its script says."""
    alphabet = bytes_to_unicode()  # type: ignore[no-untyped-call]
    words = [*(alphabet[byte] for byte in range(256)), "<|end|>"]
    backend = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        bos_token_id=None,
        eos_token_id=256,
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")  # type: ignore[no-untyped-call]
    base = LlamaForCausalLM(config).eval()  # type: ignore[no-untyped-call]
    model = _Scripted(base, tokenizer)
    model.script = tuple(text.encode() for text in script)
    return model
