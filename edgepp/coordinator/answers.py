"""AnswerService under way: a thread each, from a member's question to its last piece."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from edgepp.coordinator.fair_shares import FairPlaces
from edgepp.coordinator.json_codec import AnswerSummary, Prompt, decode_question, encode_summary
from edgepp.coordinator.pipeline_manager import PipelineManager
from edgepp.engine.pipeline import Pipeline
from edgepp.engine.request import GenerateOptions, Timing
from edgepp.engine.text_stream import TextStream
from edgepp.error_boundary import explained
from edgepp.errors import EdgeppError
from edgepp.wire.message_codec import encode, encode_payload
from edgepp.wire.messages import Answered, Declined, Piece
from edgepp.wire.text_fields import sentence

log = logging.getLogger("edgepp.coordinator")

MOST = 128
"""AnswerService at a time beside one of each owner (``FairPlaces``); more are declined."""
WAIT_S = 120.0
"""How long a question waits for a cluster that is loading, and for one that lost a stage before the first token."""
TRIES = 3
"""How often an answer is begun: a question that costs a stage each time must not do so for ever."""

Send = Callable[[list[bytes]], None]
"""Sends a message to the asker. Safe from any thread."""
Asker = tuple[bytes, int]
"""The asker's route and its number for the question."""


class AnswerService:
    """Every answer that is being given."""

    def __init__(self, serving: PipelineManager) -> None:
        self._serving = serving
        self._lock = threading.Lock()
        self._live: dict[Asker, _Live] = {}
        self._places = FairPlaces(MOST)
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
        prompt, options = decode_question(form)
        live = _Live(key, asker[1], send)
        with self._lock:
            if asker in self._live:
                raise EdgeppError("a question with this number is being answered")
            if not self._places.take(key):
                raise EdgeppError(
                    f"{len(self._live)} answers are under way already, and your share of them is taken",
                    "ask again when one of yours has ended",
                )
            self._live[asker] = live
        try:
            target, name = self._answer, "answer"
            threading.Thread(target=target, args=(asker, live, prompt, options), name=name, daemon=True).start()
        except RuntimeError as error:
            self._end(asker)
            raise EdgeppError(f"this machine cannot answer more at once: {error}", "ask again later") from error

    def cancel(self, asker: Asker) -> None:
        """Stop an answer; what was computed of it has been sent."""
        with self._lock:
            live = self._live.get(asker)
        self._cancel([] if live is None else [live])

    def cancel_of(self, key: str) -> list[Asker]:
        """Stop the answers of a node that is no member any more; whom they were for."""
        with self._lock:
            gone = [(asker, live) for asker, live in self._live.items() if live.key == key]
        self._cancel([live for _, live in gone])
        return [asker for asker, _ in gone]

    def cancel_all(self, route: bytes | None = None) -> None:
        """Stop the answers of one asker who is gone, or all."""
        with self._lock:
            gone = [live for asker, live in self._live.items() if route is None or asker[0] == route]
        self._cancel(gone)

    def _cancel(self, gone: list[_Live]) -> None:
        for live in gone:
            live.cancel()
        if gone:
            self._serving.wake()

    def _end(self, asker: Asker) -> None:
        with self._lock:
            self._places.give_back(self._live.pop(asker).key)

    def _answer(self, asker: Asker, live: _Live, prompt: Prompt, options: GenerateOptions) -> None:
        """The thread of one answer. Whatever happens in it, the asker hears how it ended and its place is free."""
        try:
            try:
                self._stream(live, prompt, options)
            except EdgeppError as error:
                live.tell(declined(live.number, error))
            except BaseException as error:  # noqa: BLE001 - a library written in Rust panics with one that is no Exception
                failure = explained(error)
                log.error("an answer failed: %s; %s", failure, failure.hint)
                live.tell(declined(live.number, failure))
        except OSError:
            log.debug("an answer ended when nobody could be told any more")
        finally:
            self._end(asker)

    def _stream(self, live: _Live, prompt: Prompt, options: GenerateOptions) -> None:
        """Answer, and begin again where a stage is lost before anything of the answer was shown."""
        asked_s = time.perf_counter()
        until_s = time.monotonic() + WAIT_S
        failed: EdgeppError | None = None
        for left in reversed(range(TRIES)):
            try:
                pipeline = self._serving.acquire(until_s - time.monotonic(), lambda: live.cancelled)
            except EdgeppError as error:
                if live.cancelled:
                    live.tell(_ended(live.number, AnswerSummary("cancelled", 0, Timing(0.0), ())))
                    return
                raise failed or error from error
            try:
                self._pass_on(live, pipeline, prompt, options, asked_s)
                return
            except EdgeppError as error:
                if not left or live.told or live.cancelled or pipeline.lost is None:
                    raise
                failed = error
                log.info("an answer is begun again: %s", error)

    def _pass_on(
        self, live: _Live, pipeline: Pipeline, prompt: Prompt, options: GenerateOptions, asked_s: float
    ) -> None:
        answer = pipeline.ask(prompt, options, live.key)
        answer.timing.submitted_s = asked_s
        live.bind(answer)
        sent = 0
        for text in answer:
            tokens = answer.token_ids[sent:]
            sent = len(answer.token_ids)
            live.pass_on(tokens, text)
            if live.cancelled:
                break  # what the engine has computed beyond it is not worth anybody's time
        live.pass_on(answer.token_ids[sent:], "")
        reason = answer.finish_reason or "cancelled"
        if answer.finish_reason is not None:
            self.last, self.done = answer.timing, self.done + 1
        sampled = tuple(answer.sampled[: len(answer.token_ids)])
        outcome = AnswerSummary(reason, answer.prompt_tokens, answer.timing, answer.stages, sampled, answer.spelled)
        live.tell(_ended(live.number, outcome))


class _Live:
    """One answer, cancelled before or after it has begun."""

    def __init__(self, key: str, number: int, send: Send) -> None:
        self.key = key
        self.number = number
        self._send = send
        self._lock = threading.Lock()
        self._answer: TextStream | None = None
        self.told = False
        """Whether the asker has seen anything of it."""
        self.cancelled = False

    def tell(self, frames: list[bytes]) -> None:
        """Send the asker something of it."""
        self.told = True
        self._send(frames)

    def pass_on(self, tokens: list[int], text: str) -> None:
        """Send tokens in messages of at most 200, the text with the first of them."""
        if not tokens and not text:
            return
        parts = [tuple(tokens[i : i + 200]) for i in range(0, len(tokens), 200)] or [()]
        for index, part in enumerate(parts):
            self.tell([encode(Piece(self.number, part)), b"" if index else text.encode(errors="replace")])

    def bind(self, answer: TextStream) -> None:
        """Let ``cancel`` stop this answer."""
        with self._lock:
            self._answer = answer
            if self.cancelled:
                answer.cancel()

    def cancel(self) -> None:
        """Stop it, or the answer that it is bound to next."""
        with self._lock:
            self.cancelled = True
            if self._answer is not None:
                self._answer.cancel()


def _ended(number: int, outcome: AnswerSummary) -> list[bytes]:
    """Tells an asker how its answer ended."""
    return [encode(Answered(number)), encode_payload(encode_summary(outcome))]


def declined(number: int, error: EdgeppError) -> list[bytes]:
    """Tells an asker why its question, or a call, comes to nothing."""
    return [encode(Declined(number, sentence(error), sentence(error.hint)))]
