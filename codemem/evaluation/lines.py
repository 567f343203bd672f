"""Completing the rest of a line, by every arm, with as little computation as the comparison allows.

The positions before the last ones of a prompt read no memory, so arms with the same prompt share them. The true line is
then run through the model once per arm: what greedy decoding would write is the truth as far as every true token is the
most likely one, and only from the first that is not must anything be generated. Arms often go on alike, so what others
wrote is a draft that one pass verifies (Leviathan et al., Fast Inference from Transformers via Speculative Decoding,
2023).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codemem.completion import recall
from codemem.completion.decode import allowed
from codemem.completion.prompt import Prompt, build_prompt, with_snippets
from codemem.completion.request import Request
from codemem.completion.snippets import choose
from codemem.completion.vocabulary import Vocabulary
from codemem.evaluation.arms import CONTEXT, SNIPPET_TOKENS, Arm, Prompted, RandomBank
from codemem.evaluation.bm25 import WindowIndex
from codemem.evaluation.metrics import edit_similarity, exact, identifier_match
from codemem.evaluation.tasks import Task
from codemem.memory.bank import Bank
from codemem.memory.focus import Focus
from codemem.models.decoder import Decoder
from codemem.models.memorizing import MemorizingModel
from codemem.models.tokenizer import Tokenizer, header_tokens, tokenize

READING = 64  # last positions of a prompt, which read memory
MOST_TOKENS = 48
_DRAFT = 8  # tokens
_AHEAD = 80  # characters behind the truth, so that its last token is the one it has in the document


@dataclass(frozen=True)
class Outcome:
    """What one arm made of one task. text: the line it wrote; nats: the truth's negative log-likelihood; tokens: the
    truth's; prompt: tokens in it; prefill: milliseconds for the prompt, choosing snippets included; decode:
    milliseconds of `steps` tokens that were generated one by one, being neither the truth's nor another arm's."""

    text: str
    exact: bool
    edit: float
    identifiers: bool
    nats: float
    tokens: int
    prompt: int
    prefill: float
    decode: float
    steps: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Prefix:
    """A prompt, and the decoder that reads it. seconds: what the positions took that read no memory, with choosing
    snippets."""

    prompt: Prompt
    decoder: Decoder
    seconds: float

    @property
    def early(self) -> int:
        """How many of the tokens read no memory."""
        return max(0, len(self.prompt.ids) - READING)


@dataclass
class _Asked:
    """What memory voted for behind the plain prompt, and what attention searches of it. asking, focusing: seconds."""

    votes: recall.Votes
    focus: Focus | None
    asking: float
    focusing: float


class LineCompletion:
    """Completes tasks by arms with one model. bank: the memory, without the documents of the tasks; windows: the same
    documents for BM25."""

    def __init__(self, model: MemorizingModel, bank: Bank, windows: WindowIndex) -> None:
        self.model, self.windows = model, windows
        self.bank, self.random = bank, RandomBank(bank)
        self.vocabulary = Vocabulary(model.tokenizer)

    @torch.inference_mode()
    def complete(self, task: Task, arms: Sequence[Arm]) -> dict[str, Outcome]:
        """The outcome of every arm, by its name."""
        self.model.bank = self.bank
        request = Request(task.path, task.text, task.offset, context=CONTEXT)
        plain = self._prefix(build_prompt(request, self.model.tokenizer, self.vocabulary))
        truth = true_tokens(self.model.tokenizer, task, plain.prompt)
        asked = self._ask(plain)
        prefixes: dict[Prompted, _Prefix] = {"plain": plain}
        outcomes: dict[str, Outcome] = {}
        written: list[list[int]] = []
        for arm in arms:
            if arm.prompt not in prefixes:
                prefixes[arm.prompt] = self._prompted(arm.prompt, task, plain, asked)
            self.model.bank = self.random if arm.random else self.bank
            focus, seconds = None, prefixes[arm.prompt].seconds
            if arm.attention and not arm.random:
                focus, seconds = asked.focus, seconds + asked.focusing
                if arm.prompt != "recalled":
                    seconds += asked.asking + (plain.seconds if arm.prompt != "plain" else 0)
            outcomes[arm.name] = self._outcome(task, arm, prefixes[arm.prompt], truth, written, focus, seconds)
        self.model.bank = self.bank
        return outcomes

    def _ask(self, plain: _Prefix) -> _Asked:
        start = time.perf_counter()
        votes = recall.ask(self.model, plain.decoder, plain.prompt.ids)
        asked = time.perf_counter()
        focus = recall.focus(self.bank, votes)
        return _Asked(votes, focus, asked - start, time.perf_counter() - asked)

    def _prompted(self, kind: Prompted, task: Task, plain: _Prefix, asked: _Asked) -> _Prefix:
        tokenizer, start = self.model.tokenizer, time.perf_counter()
        if kind == "longer":
            request = Request(task.path, task.text, task.offset, context=2 * CONTEXT)
            return self._prefix(build_prompt(request, tokenizer, self.vocabulary))
        if kind == "bm25":
            found = self.windows.snippets(task.text[: task.offset], exclude_path=task.path)
            seconds = 0.0
        else:
            found = recall.snippets(self.model, asked.votes)
            seconds = plain.seconds + asked.asking  # the shorter prompt is read for that
        _, ids = choose(tokenizer, found, task.path, SNIPPET_TOKENS)
        seconds += time.perf_counter() - start
        return self._prefix(with_snippets(plain.prompt, ids, tokenizer), seconds)

    def _prefix(self, prompt: Prompt, seconds: float = 0.0) -> _Prefix:
        prefix, start = _Prefix(prompt, self.model.decoder(), seconds), time.perf_counter()
        self._read_early(prefix)
        prefix.seconds += time.perf_counter() - start
        return prefix

    def _read_early(self, prefix: _Prefix) -> None:
        """Have the decoder read what it does not hold of the positions that read no memory."""
        if missing := prefix.prompt.ids[len(prefix.decoder.tokens) : prefix.early]:
            with self.model.reads(attention=False, tokens=False):
                prefix.decoder.states(missing)

    def _read(self, prefix: _Prefix, behind: list[int], last: int) -> Tensor:
        """Logits, or log-probabilities where token memory is read, of the last positions of a prompt and the tokens
        behind it: [last, vocabulary]. What the decoder holds of those before is not computed again."""
        ids, decoder = prefix.prompt.ids + behind, prefix.decoder
        decoder.crop(len(ids) - last)
        self._read_early(prefix)
        return decoder.read(ids[len(decoder.tokens) :], last)

    def _outcome(
        self,
        task: Task,
        arm: Arm,
        prefix: _Prefix,
        truth: list[int],
        written: list[list[int]],
        focus: Focus | None,
        seconds: float,
    ) -> Outcome:
        """focus: what attention searches; seconds: what was done for the arm so far."""
        start = time.perf_counter()
        prefix.decoder.crop(prefix.early)  # the others were read in another way
        with self.model.reads(attention=arm.attention, tokens=arm.tokens, last=None) as reading:
            reading.focus = focus
            logits = self._read(prefix, truth[:-1], max(1, len(truth)))
            seconds += time.perf_counter() - start
            text, decode = self._greedy(prefix, truth, logits, written)
        wanted = torch.tensor(truth, dtype=torch.int64, device=logits.device)
        nats = -float(logits[: len(truth)].log_softmax(dim=-1).gather(1, wanted[:, None]).double().sum())
        return Outcome(
            text=text,
            exact=exact(text, task.truth),
            edit=edit_similarity(text, task.truth),
            identifiers=identifier_match(text, task.truth),
            nats=nats,
            tokens=len(truth),
            prompt=len(prefix.prompt.ids),
            prefill=1000 * seconds,
            decode=1000 * sum(decode),
            steps=len(decode),
        )

    def _greedy(
        self, prefix: _Prefix, truth: list[int], logits: Tensor, written: list[list[int]]
    ) -> tuple[str, list[float]]:
        """The line that greedy decoding writes, and the seconds of each forward pass of one token that it took beyond
        the given.

        logits: at the prompt's end and at all true tokens but the last, which the decoder holds too; written: tokens
        of the lines of other arms, to which this one's are added.
        """
        line = _Line(self.vocabulary, prefix.prompt.healed)
        at, seconds = 0, list[float]()
        most = min(len(truth), MOST_TOKENS)
        while line.goes_on(logits[at]) and at + 1 < most and line.token == truth[at]:
            at += 1
        while not line.ended and (room := MOST_TOKENS - len(line.tokens)) > 0:
            # The first pass is of one token, so that every line that is written has a time.
            draft = _draft(line.tokens, written, room - 1) if seconds else []
            start = time.perf_counter()
            rows = self._read(prefix, line.tokens + draft, len(draft) + 1)
            if not draft:
                seconds.append(time.perf_counter() - start)
            verified = 0
            while line.goes_on(rows[verified]) and verified < len(draft) and line.token == draft[verified]:
                verified += 1
        written.append(line.tokens)
        return line.text, seconds


def true_tokens(tokenizer: Tokenizer, task: Task, prompt: Prompt) -> list[int]:
    """The true tokens behind a plain prompt, up to the one that ends the line, as they are in the whole text; none
    where that splits the text at other places than the prompt does."""
    end = task.offset + len(task.truth)
    ids, starts = tokenize(tokenizer, task.text[prompt.start : end + _AHEAD])
    body = prompt.ids[len(header_tokens(tokenizer, task.path)) :]
    last = int(np.searchsorted(starts, end - prompt.start, side="right"))
    return ids[len(body) : last] if ids[: len(body)] == body else []


def _draft(tokens: list[int], written: list[list[int]], most: int) -> list[int]:
    """What follows in the last line written that began with the same tokens, at most so many."""
    at = len(tokens)
    return next((line[at:][: min(_DRAFT, most)] for line in reversed(written) if line[:at] == tokens), [])


class _Line:
    """The line that is being written. tokens: those written; ended: whether a line's end, or the text's, was."""

    def __init__(self, vocabulary: Vocabulary, healed: bytes) -> None:
        self._vocabulary, self._healed, self._bytes = vocabulary, healed, b""
        self.tokens: list[int] = []
        self.ended = False

    @property
    def token(self) -> int:
        """The last one."""
        return self.tokens[-1]

    def goes_on(self, logits: Tensor) -> bool:
        """Write the most likely token [vocabulary]. Returns whether the line is not at its end."""
        self.tokens.append(int(allowed(logits, self._vocabulary, self._healed).argmax()))
        spelled = self._vocabulary.tokens[self.token]
        self._bytes += spelled[len(self._healed) :]
        self._healed = self._healed[len(spelled) :]
        self.ended = self.token in self._vocabulary.special or b"\n" in self._bytes
        return not self.ended

    @property
    def text(self) -> str:
        return self._bytes.decode("utf-8", errors="ignore").split("\n", 1)[0]
