"""From a request to a completion."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

from codemem.completion.decode import Clock, decode
from codemem.completion.prompt import build_prompt
from codemem.completion.request import Completion, MemoryUse, Request
from codemem.completion.stopping import MAX_TOKENS, end_of_block, end_of_line, header_indent, unit_at
from codemem.completion.vocabulary import Vocabulary
from codemem.memory.provenance import memory_share, sources
from codemem.models.memorizing import MemorizingModel


class Engine:
    """Completes code with one memorizing model. name: what the model is called in answers."""

    def __init__(self, model: MemorizingModel, name: str) -> None:
        self.model, self.name = model, name
        self.vocabulary = Vocabulary(model.tokenizer)

    def complete(self, request: Request, *, memory: bool = True) -> Completion:
        """The completion at the request's cursor; without `memory`, of the base model alone.

        Of the document's own entries only those before the prompt's window are read, and none if it has changed since
        it was memorised: what the window shows, and what stands after it, must not come back from memory.
        """
        begin, clock = time.perf_counter(), Clock()
        prompt = build_prompt(request, self.model.tokenizer, self.vocabulary)
        unit = unit_at(request.text, request.offset)
        indent = header_indent(request.text, request.offset)
        most = request.max_tokens or MAX_TOKENS[unit]
        text, tokens, reason = "", 0, "end of text"
        hidden_from = 1 if request.changed else prompt.first_line
        with self.model.bank.hiding(request.path, hidden_from), self.model.reads(enabled=memory) as reading:
            steps = decode(
                self.model,
                self.vocabulary,
                prompt,
                temperature=request.temperature,
                seed=request.seed,
                clock=clock,
            )
            with closing(steps):
                for tokens, text in enumerate(_texts(steps), start=1):
                    end = end_of_line(text) if unit == "line" else end_of_block(text, indent)
                    if end is not None:
                        text, reason = text[:end], unit
                        break
                    if tokens == most:
                        reason = "length"
                        break
            text = text.rstrip()
            trace, bank = reading.trace or [], self.model.bank
            use = MemoryUse(len(bank.documents), len(bank), memory_share(trace)) if memory else None
            return Completion(
                text=text,
                model=self.name,
                memory=use,
                reason=reason if text else "empty",
                tokens=tokens,
                ms={
                    "load": 0.0,
                    "prefill": clock.prefill * 1000,
                    "decode": clock.decode * 1000,
                    "retrieval": reading.seconds * 1000,
                    "total": (time.perf_counter() - begin) * 1000,
                },
                provenance=sources(bank, trace),
            )


def _texts(steps: Iterator[bytes]) -> Iterator[str]:
    """The text so far after each step; a character whose bytes are not all there yet is left out."""
    whole = b""
    for new in steps:
        whole += new
        yield whole.decode("utf-8", errors="ignore")
