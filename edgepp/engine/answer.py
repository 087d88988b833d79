"""A request's tokens as text, piece by piece."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from edgepp.engine.engine import Engine
from edgepp.engine.live import FinishReason, Request
from edgepp.errors import EdgeppError

_WAIT_S = 1.0


class Detokenizer(Protocol):
    """Turns token ids into text, never half a character."""

    def add(self, token: int) -> str:
        """The text that this token completes."""

    def finish(self) -> str:
        """What was held back."""


class StopFilter:
    """Cuts a text at the first stop string, holding back what might become one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = [s for s in stop if s]
        self._held = ""

    def add(self, piece: str) -> tuple[str, bool]:
        """(text that is safe to show, whether a stop string was reached)."""
        text = self._held + piece
        found = min((at for s in self._stop if (at := text.find(s)) >= 0), default=-1)
        if found >= 0:
            self._held = ""
            return text[:found], True
        keep = max((n for s in self._stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def finish(self) -> str:
        """What was held back and turned out to be no stop string."""
        return self._held


class Answer:
    """Iterate over it once for the text; then ``finish_reason`` and the rest are known.

    Stop strings are found here, so a token or two more may have been computed than ``token_ids`` shows.
    """

    def __init__(
        self, engine: Engine, request: Request, detokenizer: Detokenizer, spell: Callable[[int], str] = lambda _: ""
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
        self.prompt_tokens = request.prompt
        self.timing = request.timing
        self.stages = engine.stages

    def __iter__(self) -> Iterator[str]:
        """Pieces of text as they come.

        Raises:
            EdgeppError: the answer cannot be finished; what was yielded so far stands.
        """
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
        """Stop generating and free the slots; iterating on gives what came before."""
        self._engine.cancel(self._request)

    def _next(self) -> int | FinishReason | EdgeppError:
        while True:
            try:
                return self._request.events.get(timeout=_WAIT_S)
            except queue.Empty:
                if self._engine.lost is not None and self._request.events.empty():
                    return self._engine.lost
