"""A request's tokens as text, in pieces."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from edgepp.engine.engine_request import EngineRequest, request_failure
from edgepp.engine.loop import EngineLoop
from edgepp.engine.request import FinishReason
from edgepp.errors import EdgeppError

_WAIT_S = 1.0


class TextDecoder(Protocol):
    """Turns token ids into text, in whole characters. Called by the reader's thread."""

    def add(self, token: int) -> str:
        """The text that ``token`` completes, perhaps none."""

    def finish(self) -> str:
        """The text held back so far."""


class StopFilter:
    """EmbeddingAndHead a text before the first complete stop string, and holds back text that may become one.

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
                return text[: at - self._found[self._state]], True
        safe = len(text) - self._depth[self._state]
        self._held = text[safe:]
        return text[:safe], False

    def finish(self) -> str:
        """The text held back, which became no stop string."""
        return self._held


class TextStream:
    """An answer: iterate over it once for the text; then ``finish_reason`` and the rest are known.

    Stop strings are found by the reader, so the engine may have computed a few tokens more than ``token_ids`` holds.
    """

    def __init__(
        self,
        engine: EngineLoop,
        request: EngineRequest,
        detokenizer: TextDecoder,
        spell: Callable[[int], str] = lambda _: "",
    ) -> None:
        self._engine = engine
        self._request = request
        self._detokenizer = detokenizer
        self._spell = spell
        self._filter = StopFilter(request.options.stop)
        self.token_ids: list[int] = []
        self.sampled = request.sampled
        """One per token, if log-probabilities were requested."""
        self.finish_reason: FinishReason | None = None
        self.prompt_tokens = request.prompt_tokens
        self.timing = request.timing
        self.stages = engine.stages

    def __iter__(self) -> Iterator[str]:
        """Pieces of text as they come; leaving the loop early cancels the rest.

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

    def _pieces(self) -> Iterator[str]:
        while self.finish_reason is None:
            match self._next():
                case int() as token:
                    self.token_ids.append(token)
                    text, stopped = self._filter.add(self._detokenizer.add(token))
                    if stopped:
                        self.cancel()
                        self.finish_reason = "stop"
                case EdgeppError() as error:
                    raise error
                case reason:
                    self.finish_reason = reason
                    text, _ = self._filter.add(self._detokenizer.finish())
                    text += self._filter.finish()
            if text:
                yield text

    @property
    def spelled(self) -> dict[int, str]:
        """The text of each token id in ``sampled``, decoded alone; a part of a character is U+FFFD."""
        named = self.sampled[: len(self.token_ids)]
        tokens = {token for one in named for token in (one.token, *(rival for rival, _ in one.top))}
        return {token: self._spell(token) for token in sorted(tokens)}

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
