"""A request's tokens as text, in pieces."""

from __future__ import annotations

import codecs
import queue
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from edgepp.engine.engine_request import EngineRequest, request_failure
from edgepp.engine.loop import EngineLoop
from edgepp.engine.request import FinishReason
from edgepp.engine.ring import StageInfo
from edgepp.engine.sampling import Sampled
from edgepp.errors import EdgeppError

_WAIT_S = 1.0


class TextDecoder(Protocol):
    """Turns token ids into text, in whole characters. Called by the reader's thread."""

    def add(self, token: int) -> str:
        """The text that ``token`` completes, perhaps none."""

    def finish(self) -> str:
        """The text held back so far."""


class StopFilter:
    """Ends a text before the first complete stop string, and holds back text that may become one.

    The result does not depend on how the text is cut into pieces. The automaton is that of Aho and Corasick (1975): the
    mean time per character does not depend on the stop strings, and less than the longest of them is held back.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        """Per state, which is a prefix of stop strings: the state that each character leads to."""
        self._depth = [0]
        """Per state: the characters of its prefix."""
        self._fall = [0]
        """Per state: the state of the longest shorter prefix that its prefix ends with."""
        self._found = [0]
        """Per state: the characters of the longest stop string that its prefix ends with, or 0."""
        for one in stop:
            self._insert(one)
        self._link()
        self._state = 0
        self._held = ""
        self.found: str | None = None
        """The stop string that was reached."""

    def _insert(self, stop: str) -> None:
        state = 0
        for character in stop:
            following = self._next[state].get(character)
            if following is None:
                following = self._next[state][character] = len(self._next)
                self._next.append({})
                self._depth.append(self._depth[state] + 1)
                self._fall.append(0)
                self._found.append(0)
            state = following
        self._found[state] = self._depth[state]

    def _link(self) -> None:
        states = deque(self._next[0].values())
        while states:
            state = states.popleft()
            self._found[state] = self._found[state] or self._found[self._fall[state]]
            for character, following in self._next[state].items():
                self._fall[following] = self._step(self._fall[state], character)
                states.append(following)

    def _step(self, state: int, character: str) -> int:
        while state and character not in self._next[state]:
            state = self._fall[state]
        return self._next[state].get(character, 0)

    def add(self, piece: str) -> tuple[str, bool]:
        """The text that can be shown, and whether a stop string was reached."""
        text = self._held + piece
        for at, character in enumerate(piece, len(self._held) + 1):
            self._state = self._step(self._state, character)
            if self._found[self._state]:
                self._held = ""
                begin = at - self._found[self._state]
                self.found = text[begin:at]
                return text[:begin], True
        safe = len(text) - self._depth[self._state]
        self._held = text[safe:]
        return text[:safe], False

    def finish(self) -> str:
        """The text held back, which became no stop string."""
        return self._held


@dataclass(frozen=True)
class SpelledToken:
    """A token of an answer, by its own bytes, which may be a part of a character."""

    id: int
    raw: bytes
    sampled: Sampled
    """Its log-probability, and the likeliest tokens at its place."""
    begin: int = 0
    """Characters of the answer in front of the token's own text; for parts of a character, in front of that."""


@dataclass(frozen=True)
class TextPiece:
    """The next text of an answer, and the tokens that it is made of; only the last piece may have no text."""

    text: str
    tokens: tuple[SpelledToken, ...] = ()
    """Given where log-probabilities were requested; a token comes with the text that its own text ends in. Where those
    of the prompt were requested too, the token that ended the answer is the last."""


class TextStream:
    """An answer: iterate over it, or over its ``pieces``, once; then ``finish_reason`` and the rest are known.

    ``prompt_tokens`` is known from the beginning, ``timing.reused`` when the first piece comes. Stop strings are found
    by the reader, so the engine may have computed a few tokens more than ``token_ids`` holds.
    """

    def __init__(
        self,
        engine: EngineLoop,
        request: EngineRequest,
        detokenizer: TextDecoder,
        spell: Callable[[int], bytes] = lambda _: b"",
    ) -> None:
        self._engine = engine
        self._request = request
        self._detokenizer = detokenizer
        self._spell = spell
        self._filter = StopFilter(request.options.stop)
        self._tokens = _TokensOfText()
        self.token_ids: list[int] = []
        self.sampled = request.sampled
        """One per token, if log-probabilities were requested."""
        self.prompt_sampled = request.prompt_sampled
        """One per token of the prompt but the first, if requested; complete when the first token comes."""
        self.finish_reason: FinishReason | None = None
        self.stop_string: str | None = None
        """The stop string that ended the text, if one did."""
        self.prompt_tokens = request.prompt_tokens
        self.timing = request.timing

    @property
    def stages(self) -> tuple[StageInfo, ...]:
        """The stages that compute the answer; when it has ended, those that gave its last token."""
        return self._request.stages

    def __iter__(self) -> Iterator[str]:
        """Pieces of text as they come; leaving the loop early cancels the rest.

        Raises:
            EdgeppError: the answer cannot be finished; the text yielded so far is right.
        """
        pieces = self.pieces()
        try:
            for piece in pieces:
                if piece.text:
                    yield piece.text
        finally:
            pieces.close()

    def pieces(self) -> Generator[TextPiece, None, None]:
        """Pieces of text with their tokens as they come; leaving the loop early cancels the rest.

        Raises:
            EdgeppError: the answer cannot be finished; the text yielded so far is right.
        """
        try:
            yield from self._pieces()
        except BaseException as error:  # the boundary of one answer: nobody reads the rest
            self.cancel()
            if isinstance(error, EdgeppError | KeyboardInterrupt | GeneratorExit):
                raise
            raise request_failure(error, self._request.id, "making text of its tokens") from error

    def _pieces(self) -> Iterator[TextPiece]:
        while self.finish_reason is None:
            match self._next():
                case int() as token:
                    text, stopped = self._filter.add(self._decoded(token))
                    if stopped:
                        self.cancel()
                        self.finish_reason = "stop"
                case EdgeppError() as error:
                    raise error
                case reason:
                    text, stopped = self._filter.add(self._detokenizer.finish())
                    text += self._filter.finish()
                    self.finish_reason = "stop" if stopped else reason
            self.stop_string = self._filter.found
            if self.finish_reason is not None:
                yield TextPiece(text, (*self._tokens.finish(len(text), cut=stopped), *self._end()))
            elif text:
                yield TextPiece(text, self._tokens.take(len(text)))

    def _end(self) -> list[SpelledToken]:
        """The token that ended the answer, where the prompt's log-probabilities were requested: who scores texts counts
        one token behind the prompt, whatever it is."""
        end, options = self._request.end, self._request.options
        if end is None or self._filter.found or options.prompt_logprobs is None or options.sampling.logprobs is None:
            return []
        return [SpelledToken(end.token, self._spell(end.token), end, self._tokens.shown)]

    def _decoded(self, token: int) -> str:
        """The text that the next token completes."""
        self.token_ids.append(token)
        began_s = time.perf_counter()
        text = self._detokenizer.add(token)
        if self._request.trace is not None:
            self._request.trace.span("detokenise", began_s, time.perf_counter(), len(text))
        if self._request.options.sampling.logprobs is not None:
            sampled = self.sampled[len(self.token_ids) - 1]
            self._tokens.add(token, self._spell(token), sampled, len(text))
        return text

    @property
    def spelled(self) -> dict[int, str]:
        """The text of each token id in ``sampled`` and ``prompt_sampled``, alone; a part of a character is U+FFFD."""
        named = self.prompt_sampled + self.sampled[: len(self.token_ids)]
        tokens = {token for one in named for token in (one.token, *(rival for rival, _ in one.top))}
        return {token: self.spell(token).decode(errors="replace") for token in sorted(tokens)}

    def spell(self, token: int) -> bytes:
        """The bytes of any token's text, such as one of the likeliest tokens that ``sampled`` names."""
        return self._spell(token)

    def cancel(self) -> None:
        """Stop generating. Further iteration yields the text of tokens that were sampled before."""
        self._engine.cancel(self._request)

    def _next(self) -> int | FinishReason | EdgeppError:
        while True:
            try:
                return self._request.events.get(timeout=_WAIT_S)
            except queue.Empty:
                if self._engine.lost is not None and self._request.events.empty():
                    return self._engine.lost


class _TokensOfText:
    """Tokens that wait for their text, which comes later where it may become a stop string."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[SpelledToken, int]] = deque()
        """Each with the place in the text of the answer where its own text ends."""
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._decoded = self._ahead = 0
        """Characters of the answer so far, and those behind them that tokens spell and the detokenizer holds back."""
        self.shown = 0
        """Characters of the answer that were shown."""

    def add(self, token: int, raw: bytes, sampled: Sampled, characters: int) -> None:
        """Add the next token, with which ``characters`` characters are complete, also those of earlier tokens."""
        spelled = SpelledToken(token, raw, sampled, self._decoded + self._ahead)
        spelt = len(self._utf8.decode(raw))
        self._ahead = 0 if characters else self._ahead + spelt
        self._decoded += characters
        self._waiting.append((spelled, self._decoded))

    def take(self, characters: int) -> tuple[SpelledToken, ...]:
        """The tokens whose own text ends within the next ``characters`` characters."""
        self.shown += characters
        return self._while(lambda token, end: token.begin < self.shown and end <= self.shown)

    def finish(self, characters: int, *, cut: bool) -> tuple[SpelledToken, ...]:
        """The tokens of the last ``characters`` characters, behind which a stop string may have ``cut`` the text."""
        self.shown += characters
        return self._while(lambda token, _: token.begin < self.shown or not cut)

    def _while(self, belongs: Callable[[SpelledToken, int], bool]) -> tuple[SpelledToken, ...]:
        taken: list[SpelledToken] = []
        while self._waiting and belongs(*self._waiting[0]):
            taken.append(self._waiting.popleft()[0])
        return tuple(taken)
