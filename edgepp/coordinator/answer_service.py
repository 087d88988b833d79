"""Answers for nodes: one thread per answer, which sends each piece over the cluster's socket."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from edgepp.coordinator.json_codec import AnswerSummary, decode_question, encode_summary
from edgepp.coordinator.live_answer import LiveAnswer
from edgepp.coordinator.live_answers import LiveAnswers
from edgepp.error_boundary import explained
from edgepp.errors import EdgeppError
from edgepp.tracing.request_trace import TraceLog
from edgepp.wire.message_codec import encode, encode_payload
from edgepp.wire.messages.clients import Answered, Declined, Piece
from edgepp.wire.text_fields import sentence

log = logging.getLogger("edgepp.coordinator")

Send = Callable[[list[bytes]], None]
"""Sends frames to the asker. Safe from any thread."""
Asker = tuple[bytes, int]
"""The asker's route and its number for the question."""


class AnswerService:
    """The answers for askers on the cluster's socket."""

    def __init__(self, live_answers: LiveAnswers) -> None:
        self._live_answers = live_answers
        self._lock = threading.Lock()
        self._asked: dict[Asker, LiveAnswer] = {}

    def __len__(self) -> int:
        return len(self._asked)

    @property
    def traces(self) -> TraceLog:
        """The traces of the newest requests."""
        return self._live_answers.traces

    @property
    def askers(self) -> list[Asker]:
        """The askers whose answers are under way."""
        with self._lock:
            return list(self._asked)

    def begin(self, asker: Asker, key: str, question: Mapping[str, Any], send: Send) -> None:
        """Answer a question (the JSON object of ``Ask``) of the node with this ``key`` in a thread of its own.

        Raises:
            EdgeppError: the question is malformed, or too many answers are under way.
        """
        prompt, options = decode_question(question)
        with self._lock:
            if asker in self._asked:
                raise EdgeppError("a question with this number is being answered already")
            live = self._asked[asker] = self._live_answers.begin(key, prompt, options)
        try:
            threading.Thread(target=self._answer, args=(asker, live, send), name="answer", daemon=True).start()
        except RuntimeError as error:
            self._end(asker)
            raise EdgeppError(f"the coordinator cannot answer more at once: {error}", "ask again later") from error

    def cancel(self, asker: Asker) -> None:
        """Stop an answer; the tokens so far have been sent."""
        with self._lock:
            live = self._asked.get(asker)
        if live is not None:
            live.cancel()

    def cancel_of(self, key: str) -> list[Asker]:
        """Stop all answers for the node with this ``key``; returns their askers."""
        with self._lock:
            found = [asker for asker, live in self._asked.items() if live.owner == key]
        for asker in found:
            self.cancel(asker)
        return found

    def cancel_all(self, route: bytes | None = None) -> None:
        """Stop all answers, or those for one ``route`` that is lost."""
        for asker in self.askers:
            if route is None or asker[0] == route:
                self.cancel(asker)

    def _end(self, asker: Asker) -> None:
        with self._lock:
            live = self._asked.pop(asker)
        self._live_answers.end(live)

    def _answer(self, asker: Asker, live: LiveAnswer, send: Send) -> None:
        """Give one answer: its thread. Whatever happens, the asker is told how it ended, and the slot is released."""
        number = asker[1]
        try:
            try:
                _send_pieces(live, number, send)
            except EdgeppError as error:
                send(declined(number, error))
            except BaseException as error:  # noqa: BLE001 - a panic of a library in Rust is no Exception
                failure = explained(error)
                log.error("an answer failed: %s; %s", failure, failure.hint)
                send(declined(number, failure))
        except OSError:
            log.debug("an answer ended after the coordinator was closed")
        finally:
            self._end(asker)


def _send_pieces(live: LiveAnswer, number: int, send: Send) -> None:
    """Send the text and the tokens of an answer as they come, and then how it ended."""
    sent = 0
    for piece in live.pieces():
        tokens = live.token_ids[sent:]
        sent += len(tokens)
        _send_piece(number, tokens, piece.text, send)
    _send_piece(number, live.token_ids[sent:], "", send)
    summary = AnswerSummary(
        live.finish_reason or "cancelled",
        live.prompt_tokens,
        live.timing,
        live.stages,
        tuple(live.sampled[: len(live.token_ids)]),
        live.spelled,
        live.stop_string,
        live.request_id,
        tuple(live.prompt_sampled),
    )
    send([encode(Answered(number)), encode_payload(encode_summary(summary))])


def _send_piece(number: int, tokens: list[int], text: str, send: Send) -> None:
    """Send tokens in messages of at most 200, the text with the first of them."""
    if not tokens and not text:
        return
    parts = [tuple(tokens[i : i + 200]) for i in range(0, len(tokens), 200)] or [()]
    for index, part in enumerate(parts):
        send([encode(Piece(number, part)), b"" if index else text.encode(errors="replace")])


def declined(number: int, error: EdgeppError) -> list[bytes]:
    """The message that tells an asker why its question or call is declined."""
    return [encode(Declined(number, sentence(error), sentence(error.hint)))]
