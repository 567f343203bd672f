"""From a request to a completion."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace

from codemem.completion.begun import Begun
from codemem.completion.decode import Clock, Step, decode
from codemem.completion.filters import refine
from codemem.completion.filters.around import Around
from codemem.completion.filters.repeats import start_of_what_is_below
from codemem.completion.infill import infill_of, with_suffix
from codemem.completion.piece import MAX_TOKENS, piece_at
from codemem.completion.prefix_cache import PrefixCache
from codemem.completion.prompt import POSITIONS, Prompt, build_prompt, with_snippets
from codemem.completion.recall import Votes, ask, focus, large, snippets
from codemem.completion.request import Completion, MemoryUse, Request, typed_on
from codemem.completion.snippets import Snippet, choose, covered
from codemem.completion.stopping import Ending
from codemem.completion.vocabulary import Vocabulary
from codemem.memory.focus import Focus
from codemem.memory.provenance import memory_share, sources
from codemem.models.llama import LlamaDecoder
from codemem.models.memorizing import MemorizingModel

# Share of the votes that the snippets in a cached prompt must have to stay there, and the focus too.
STILL_RIGHT = 0.5
# Tokens that may be typed before memory is asked for snippets again.
ASK_AFTER = 8
# How much longer a position of a prompt with snippets takes to read than one of the prompt without them, at most: 1.5
# times at 1,500 positions, measured.
LONGER = 1.5
# Tokens of snippets that are worth reading the prompt again, and positions that tell how long one takes to read.
LEAST_SNIPPETS = 64
TELLING = 64
_ASKING = "asking"  # what a decoder is for


@dataclass(frozen=True)
class _Written:
    """What was generated last, whole or not, and the text that it came behind."""

    path: str = ""
    before: str = ""
    text: str = ""

    def ahead(self, path: str, before: str) -> str:
        """What of it is still to come where its document was typed on in its sense; else nothing."""
        if path != self.path or not before.startswith(self.before):
            return ""
        return _behind(self.text, before[len(self.before) :])


@dataclass(frozen=True)
class _Answered:
    """The last answer, and to what it was given. made_of: the memory and its version, and whether it was read."""

    request: Request
    made_of: object
    completion: Completion

    def rest(self, request: Request, made_of: object) -> str:
        """What of it is left where it was typed on; nothing where something else changed."""
        typed = typed_on(self.request, request)
        alike = replace(
            self.request, text=request.text, offset=request.offset, deadline=request.deadline, changed=request.changed
        )
        if typed is None or alike != request or made_of != self.made_of:
            return ""
        return _behind(self.completion.text, typed)


@dataclass(frozen=True)
class _Recalled:
    """What memory voted for in a document, as it stood in the prompt, and what attention searches. made_of: the path,
    the version of the memory, and what was wanted of it; asked: the tokens that asked; left_out: whether there
    was no time for more snippets."""

    made_of: tuple[str, int, object]
    asked: list[int]
    snippets: list[Snippet]
    ids: list[int]
    left_out: bool
    focus: Focus | None

    def near(self, made_of: object, asked: list[int]) -> bool:
        """Whether only a few tokens were typed since."""
        typed = len(asked) - len(self.asked)
        alike = (made_of, self.asked[:-1]) == (self.made_of, asked[: len(self.asked) - 1])
        return alike and 0 <= typed < ASK_AFTER

    def stays(self, found: list[Snippet]) -> bool:
        """Whether the snippets are still right where memory would choose those. Of the document itself nothing stays,
        since what may be read of it moves with the cursor."""
        own = any(snippet.path == self.made_of[0] for snippet in self.snippets)
        return not own and covered(found, self.snippets) >= STILL_RIGHT

    def focused(self, called: Votes) -> bool:
        """The same of what attention searches."""
        if self.focus is None or any(path == self.made_of[0] for path, _ in self.focus.windows):
            return False
        return self.focus.share(called) >= STILL_RIGHT


class Engine:
    """Completes code with one memorizing model. name: what the model is called in answers; drafts: tokens that are
    proposed and verified at a time, at most; begun: what was done of the first completion before the model was
    there."""

    def __init__(self, model: MemorizingModel, name: str, *, drafts: int = 7, begun: Begun | None = None) -> None:
        self.model, self.name, self.drafts = model, name, drafts
        self._begun = begun if begun is not None and begun.tokenizer is model.tokenizer else None
        self.vocabulary = Vocabulary(model.tokenizer) if self._begun is None else self._begun.vocabulary
        self.infill = infill_of(model.tokenizer)
        self._cache = PrefixCache(model)
        self._recalled: _Recalled | None = None
        self._written = _Written()
        self._answered: _Answered | None = None
        # What the last prompt was made of, and that prompt.
        self._built: tuple[object, Prompt] | None = (
            None if self._begun is None else (_made_of(self._begun.request), self._begun.prompt)
        )
        self._pace: float | None = None  # seconds for each position of the last prompt that was read at once

    def window(self, request: Request) -> int:
        """Where the prompt's window of the document begins, in characters; what stands before it only memory knows."""
        return self._prompt(request).start

    def _prompt(self, request: Request) -> Prompt:
        """Built once for all that ask about one place: who needs its window, who prepares it, and who completes."""
        made_of = _made_of(request)
        if self._built is None or self._built[0] != made_of:
            self._built = made_of, build_prompt(request, self.model.tokenizer, self.vocabulary)
        return self._built[1]

    def prepare(self, request: Request) -> None:
        """Do in advance what a completion with memory begins with and needs none for, such as while the bank is being
        opened: the weights are packed, and the prompt is read."""
        ids = self._prompt(request).ids
        with self.model.reads(attention=False, tokens=False):
            decoder = self._cache.decoder((request.path, _ASKING), ids)
            if (begun := self._begun) is not None and isinstance(decoder, LlamaDecoder) and begun.prompt.ids == ids:
                decoder.take(begun.ahead)
            self._begun = None
            if new := ids[len(decoder.tokens) : -POSITIONS]:
                begin = time.perf_counter()
                decoder.states(new)
                self._read(len(new), time.perf_counter() - begin)

    def _purpose(self, shown: list[Snippet]) -> str | bool:
        """What the decoder that completes is for: without snippets its prompt is the one that asks memory, unless the
        suffix comes first."""
        return bool(shown) if shown or self.infill is not None else _ASKING

    def forget(self) -> None:
        """Forget what was written last; what was read stays."""
        self._written, self._answered = _Written(), None

    def complete(
        self,
        request: Request,
        *,
        memory: bool = True,
        cancelled: Callable[[], bool] = lambda: False,
        show: Callable[[str], None] = lambda _: None,
    ) -> Completion:
        """The completion at the request's cursor; without `memory`, of the base model alone.

        cancelled: asked before every forward pass; show: gets the text whenever there is more of it.

        Of the document's own entries only those before the prompt's window are read, and none if it has changed since
        it was memorised: what the window shows, and what stands after it, must not come back from memory. Where the
        last answer was typed on, the rest of it is the answer.
        """
        made_of = self.model.bank, self.model.bank.version, memory
        if self._answered is not None and (rest := self._answered.rest(request, made_of)).strip():
            given = self._answered.completion
            show(rest)
            return replace(given, text=rest, ms=dict.fromkeys(given.ms, 0.0))
        completion = self._completed(request, memory, cancelled, show)
        if completion.reason not in ("deadline", "cancelled"):
            self._answered = _Answered(request, made_of, completion)
        return completion

    def _completed(
        self, request: Request, memory: bool, cancelled: Callable[[], bool], show: Callable[[str], None]
    ) -> Completion:
        begin, clock, reason = time.perf_counter(), Clock(), "end of text"

        def goes_on() -> bool:
            nonlocal reason
            if cancelled():
                reason = "cancelled"
            elif request.deadline is not None and 1000 * (time.perf_counter() - begin) > request.deadline:
                reason = "deadline"
            return reason == "end of text"

        prompt = self._prompt(request)
        piece = piece_at(request.path, request.text, request.offset)
        around, unit = Around(request.path, request.text, request.offset, piece), piece.unit
        ending = Ending(piece, around.line_after)
        most = request.max_tokens or MAX_TOKENS[unit]
        before = request.text[: request.offset]
        ahead = self._written.ahead(request.path, before)
        text, bank = "", self.model.bank
        hidden_from = 1 if request.changed else prompt.first_line
        ways = {"attention": memory and request.attention, "tokens": memory and request.tokens}
        with bank.hiding(request.path, hidden_from), self.model.reads(**ways, traced=True) as reading:
            shown, left_out = list[Snippet](), False
            if memory and len(bank) and (request.recall or (request.attention and large(bank))):
                recalled = self._ask(request, prompt, clock, begin)
                prompt = with_snippets(prompt, recalled.ids, self.model.tokenizer)
                shown, left_out, reading.focus = recalled.snippets, recalled.left_out, recalled.focus
            if self.infill is not None:
                prompt = with_suffix(prompt, request, self.model.tokenizer, self.infill)
            steps = decode(
                self.model,
                self._cache.decoder((request.path, self._purpose(shown)), prompt.ids),
                self.vocabulary,
                prompt,
                temperature=request.temperature,
                seed=request.seed,
                clock=clock,
                drafts=self.drafts,
                line=unit == "line",
                written=prompt.healed + ahead.encode(),
                goes_on=goes_on,
            )
            chosen: list[int] = []
            with closing(steps):
                for text in _texts(steps, chosen):
                    if (end := ending.of(text)) is not None:
                        text, reason = text[:end], unit
                        break
                    if (end := start_of_what_is_below(text, around)) is not None:
                        text, reason = text[:end], "what stands below"
                        break
                    if len(chosen) == most:
                        reason = "length"
                        break
                    show(text)
            self._written = _Written(request.path, before, ahead if ahead.startswith(text) else text)
            if reason in ("deadline", "cancelled"):
                text = text[: text.rfind("\n") + 1] if reason == "deadline" else ""
            if reason == "length" and (whole := text[: text.rfind("\n") + 1]).strip():
                text = whole
            text, nothing = refine(text, around)
            if nothing and reason not in ("deadline", "cancelled"):
                reason = nothing
            trace, token_trace = reading.trace or [], reading.token_trace or []
            use = MemoryUse(
                len(bank.documents), len(bank), memory_share(trace), memory_share(token_trace), tuple(shown), left_out
            )
            return Completion(
                text=text,
                model=self.name,
                memory=use if memory else None,
                reason=reason,
                tokens=len(chosen),
                ms={
                    "load": 0.0,
                    "recall": clock.recall * 1000,
                    "prefill": clock.prefill * 1000,
                    "decode": clock.decode * 1000,
                    "retrieval": reading.seconds * 1000,
                    "total": (time.perf_counter() - begin) * 1000,
                },
                provenance=sources(bank, trace, token_trace, chosen),
            )

    def _ask(self, request: Request, prompt: Prompt, clock: Clock, begin: float) -> _Recalled:
        """Ask memory what this completion needs of it: snippets for the prompt, best last, as many as there is time to
        read; and what attention searches.

        Both stay as they were for the document's last prompt while they are still right, since what has read them is
        still in the cache."""
        start, model, last = time.perf_counter(), self.model, self._recalled
        made_of = request.path, model.bank.version, (request.recall, request.attention, request.snippets)
        if last is not None and last.near(made_of, prompt.ids):
            return last
        if last is not None and last.made_of != made_of:
            last = None
        with model.reads(attention=False, tokens=False):
            decoder = self._cache.decoder((request.path, _ASKING), prompt.ids)
        new = len(prompt.ids) - len(decoder.tokens)
        called = ask(model, decoder, prompt.ids)
        self._read(new, time.perf_counter() - start)
        room = self._room(request, len(prompt.ids), time.perf_counter() - begin)
        found, ids, left_out = self._chosen(request, called, room, last)
        searched = None
        if request.attention:
            searched = last.focus if last is not None and last.focused(called) else focus(model.bank, called)
        clock.recall = time.perf_counter() - start
        self._recalled = _Recalled(made_of, prompt.ids, found, ids, left_out, searched)
        return self._recalled

    def _chosen(
        self, request: Request, called: Votes, room: int, last: _Recalled | None
    ) -> tuple[list[Snippet], list[int], bool]:
        """The snippets for a prompt and their tokens, not more than there is room for, and whether that left some
        out."""
        if not request.recall:
            return [], [], False
        if last is None and room < LEAST_SNIPPETS:
            return [], [], True
        best, tokenizer = snippets(self.model, called), self.model.tokenizer
        found, ids = choose(tokenizer, best, request.path, request.snippets)
        if last is not None and last.stays(found):
            return last.snippets, last.ids, last.left_out
        if len(ids) <= room:
            return found, ids, False
        return *choose(tokenizer, best if room >= LEAST_SNIPPETS else [], request.path, room), True

    def _read(self, positions: int, seconds: float) -> None:
        """Note how long positions of a prompt took, where these were enough to tell, or nothing is known yet."""
        if positions >= TELLING or self._pace is None:
            self._pace = seconds / positions

    def _room(self, request: Request, positions: int, gone: float) -> int:
        """The tokens of snippets that there is time to read together with a prompt of so many positions; no end of
        them where nothing limits it. gone: seconds since the request came."""
        ends = [end for end in (request.deadline, request.snippets_within) if end is not None]
        if not ends or self._pace is None:
            return sys.maxsize
        return int((min(ends) / 1000 - gone) / (LONGER * self._pace)) - positions


def _made_of(request: Request) -> tuple[object, ...]:
    """What a request's prompt is made of."""
    return request.path, request.text, request.offset, request.context


def _behind(text: str, typed: str) -> str:
    """What of a text is left behind what was typed of it; nothing where that is something else."""
    return text[len(typed) :] if text.startswith(typed) else ""


def _texts(steps: Iterator[Step], chosen: list[int]) -> Iterator[str]:
    """The text so far after each step, whose token goes to `chosen`; a character whose bytes are not all there yet is
    left out."""
    whole = b""
    for token, new in steps:
        chosen.append(token)
        whole += new
        yield whole.decode("utf-8", errors="ignore")
