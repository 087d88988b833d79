"""A request's tokens as text, piece by piece."""

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
    """Turns token ids into text, never half a character."""

    def add(self, token: int) -> str:
        """The text that this token completes."""

    def finish(self) -> str:
        """What was held back."""


class StopFilter:
    """Cuts a text where the first stop string is complete, holding back what might become one.

    However the text is cut into pieces, the result is the same. It is an automaton (Aho and Corasick 1975): each
    character takes the same time on average whatever the stop strings are, and less than the longest is held back.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        """By state, which stands for a beginning of some stop strings: the state that a character leads to."""
        self._depth = [0]
        """Characters of that beginning."""
        self._fall = [0]
        """The state of the longest other beginning with which it ends."""
        self._found = [0]
        """Characters of the longest stop string with which it ends; 0 where there is none."""
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
        """(text that is safe to show, whether a stop string was reached)."""
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
        """What was held back and turned out to be no stop string."""
        return self._held


class TextStream:
    """Iterate over it once for the text; then ``finish_reason`` and the rest are known.

    Stop strings are found here, so a token or two more may have been computed than ``token_ids`` shows.
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
        """One for each token, where log-probabilities were asked for."""
        self.finish_reason: FinishReason | None = None
        self.prompt_tokens = request.prompt_tokens
        self.timing = request.timing
        self.stages = engine.stages

    def __iter__(self) -> Iterator[str]:
        """Pieces of text as they come; leaving early cancels the rest.

        Raises:
            EdgeppError: the answer cannot be finished; what was yielded so far stands.
        """
        try:
            yield from self._pieces()
        except BaseException as error:  # the boundary of one answer: nobody reads what else would be computed
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
        """The text of each token that ``sampled`` names, by itself; a part of a character is U+FFFD."""
        named = self.sampled[: len(self.token_ids)]
        tokens = {token for one in named for token in (one.token, *(rival for rival, _ in one.top))}
        return {token: self._spell(token) for token in sorted(tokens)}

    def cancel(self) -> None:
        """Stop generating, and free what the answer holds on the stages; iterating on gives what came before."""
        self._engine.cancel(self._request)

    def _next(self) -> int | FinishReason | EdgeppError:
        while True:
            try:
                return self._request.events.get(timeout=_WAIT_S)
            except queue.Empty:
                if self._engine.lost is not None and self._request.events.empty():
                    return self._engine.lost
