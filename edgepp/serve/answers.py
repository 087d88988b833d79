"""Answers under way: a thread each, from a member's question to its last piece."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from edgepp.engine.answer import Answer
from edgepp.engine.request import Timing
from edgepp.errors import EdgeppError
from edgepp.serve.forms import Outcome, answered, read_question
from edgepp.serve.serving import Serving
from edgepp.wire.messages import Answered, Declined, Message, Piece, encode, encode_payload

log = logging.getLogger("edgepp.serve")

MOST = 64
"""Answers at a time; more are declined."""
WAIT_S = 120.0
"""How long a question waits for a cluster that is loading."""

Send = Callable[[list[bytes]], None]
"""Sends a message to the asker. Safe from any thread."""
Asker = tuple[bytes, int]
"""The asker's route and its number for the question."""


class Answers:
    """Every answer that is being given."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._lock = threading.Lock()
        self._live: dict[Asker, _Live] = {}
        self.done = 0
        self.last: Timing | None = None
        """The times of the newest whole answer."""

    def __len__(self) -> int:
        return len(self._live)

    @property
    def askers(self) -> list[Asker]:
        """Who is waiting for the rest of an answer."""
        with self._lock:
            return list(self._live)

    def begin(self, asker: Asker, key: str, form: Mapping[str, Any], send: Send) -> None:
        """Answer a question of the node with this ``key`` in a thread of its own.

        Raises:
            EdgeppError: the question makes no sense, or there are too many.
        """
        prompt, options = read_question(form)
        with self._lock:
            if len(self._live) >= MOST:
                raise EdgeppError(f"{MOST} answers are under way already", "ask again when one of them has ended")
            if asker in self._live:
                raise EdgeppError("a question with this number is being answered")
            live = self._live[asker] = _Live(key)
        target = self._answer
        threading.Thread(target=target, args=(asker, live, prompt, options, send), name="answer", daemon=True).start()

    def cancel(self, asker: Asker) -> None:
        """Stop an answer; what was computed of it has been sent."""
        with self._lock:
            live = self._live.get(asker)
        if live is not None:
            live.cancel()

    def cancel_of(self, key: str) -> list[Asker]:
        """Stop the answers of a node that is no member any more; whom they were for."""
        with self._lock:
            gone = [(asker, live) for asker, live in self._live.items() if live.key == key]
        for _, live in gone:
            live.cancel()
        return [asker for asker, _ in gone]

    def cancel_all(self, route: bytes | None = None) -> None:
        """Stop the answers of one asker who is gone, or all."""
        with self._lock:
            gone = [live for asker, live in self._live.items() if route is None or asker[0] == route]
        for live in gone:
            live.cancel()

    def _answer(self, asker: Asker, live: _Live, prompt: Any, options: Any, send: Send) -> None:
        number = asker[1]
        try:
            self._stream(number, live, prompt, options, send)
        except EdgeppError as error:
            send([encode(Declined(number, str(error)[:500], error.hint[:500]))])
        except Exception as error:
            log.exception("an answer failed")
            send([encode(Declined(number, f"{type(error).__name__}: {error}"[:500], "please report this"))])
        finally:
            with self._lock:
                del self._live[asker]

    def _stream(self, number: int, live: _Live, prompt: Any, options: Any, send: Send) -> None:
        asked_s = time.perf_counter()
        pipeline = self._serving.acquire(WAIT_S, lambda: live.cancelled)
        answer = pipeline.ask(prompt, options, live.key)
        answer.timing.submitted_s = asked_s
        live.bind(answer)
        sent = 0
        for text in answer:
            tokens = answer.token_ids[sent:]
            sent = len(answer.token_ids)
            for message, piece in _pieces(number, tokens, text):
                send([encode(message), piece])
        for message, piece in _pieces(number, answer.token_ids[sent:], ""):
            send([encode(message), piece])
        if answer.finish_reason is not None:
            self.last, self.done = answer.timing, self.done + 1
            sampled = tuple(answer.sampled[: len(answer.token_ids)])
            outcome = Outcome(
                answer.finish_reason, answer.prompt_tokens, answer.timing, answer.stages, sampled, answer.spelled
            )
            send([encode(Answered(number)), encode_payload(answered(outcome))])


class _Live:
    """One answer, cancelled before or after it has begun."""

    def __init__(self, key: str) -> None:
        self.key = key
        self._lock = threading.Lock()
        self._answer: Answer | None = None
        self.cancelled = False

    def bind(self, answer: Answer) -> None:
        with self._lock:
            self._answer = answer
            if self.cancelled:
                answer.cancel()

    def cancel(self) -> None:
        with self._lock:
            self.cancelled = True
            if self._answer is not None:
                self._answer.cancel()


def _pieces(number: int, tokens: list[int], text: str) -> list[tuple[Message, bytes]]:
    """Tokens in messages of at most 200, the text with the first of them."""
    if not tokens and not text:
        return []
    parts = [tuple(tokens[i : i + 200]) for i in range(0, len(tokens), 200)] or [()]
    return [(Piece(number, part), text.encode() if i == 0 else b"") for i, part in enumerate(parts)]
