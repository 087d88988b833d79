"""The answers under way: one thread per answer, from the question to the last piece."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from edgepp.coordinator.fair_shares import FairLimiter
from edgepp.coordinator.json_codec import AnswerSummary, decode_question, encode_summary
from edgepp.coordinator.pipeline_manager import PipelineManager
from edgepp.engine.pipeline import Pipeline
from edgepp.engine.request import FinishReason, GenerateOptions, Timing
from edgepp.engine.text_stream import TextStream
from edgepp.error_boundary import explained
from edgepp.errors import EdgeppError
from edgepp.model.text.conversation import Prompt
from edgepp.wire.message_codec import encode, encode_payload
from edgepp.wire.messages import Answered, Declined, Piece
from edgepp.wire.text_fields import sentence

log = logging.getLogger("edgepp.coordinator")

MAX_ANSWERS = 128
"""Answers at a time, plus one per owner (``FairLimiter``); further questions are declined."""
PIPELINE_WAIT_S = 120.0
"""How long a question waits for a pipeline, also after one was lost before the first token."""
MAX_ATTEMPTS = 3
"""How often an answer is begun, since the question itself may be what makes a stage fail."""

Send = Callable[[list[bytes]], None]
"""Sends frames to the asker. Safe from any thread."""
Asker = tuple[bytes, int]
"""The asker's route and its number for the question."""


class AnswerService:
    """All answers under way."""

    def __init__(self, pipeline_manager: PipelineManager) -> None:
        self._pipeline_manager = pipeline_manager
        self._lock = threading.Lock()
        self._live: dict[Asker, _Live] = {}
        self._limiter = FairLimiter(MAX_ANSWERS)
        self.num_finished = 0
        self.last: Timing | None = None
        """The timing of the newest finished answer."""

    def __len__(self) -> int:
        return len(self._live)

    @property
    def askers(self) -> list[Asker]:
        """The askers whose answers are under way."""
        with self._lock:
            return list(self._live)

    def begin(self, asker: Asker, key: str, question: Mapping[str, Any], send: Send) -> None:
        """Answer a question (the JSON object of ``Ask``) of the node with this ``key`` in a thread of its own.

        Raises:
            EdgeppError: the question is malformed, or too many answers are under way.
        """
        prompt, options = decode_question(question)
        live = _Live(key, asker[1], send)
        with self._lock:
            if asker in self._live:
                raise EdgeppError("a question with this number is being answered already")
            if not self._limiter.acquire(key):
                raise EdgeppError(
                    f"{len(self._live)} answers are under way already, and this machine's share of them is taken",
                    "ask again when one of them has ended",
                )
            self._live[asker] = live
        try:
            target, name = self._answer, "answer"
            threading.Thread(target=target, args=(asker, live, prompt, options), name=name, daemon=True).start()
        except RuntimeError as error:
            self._end(asker)
            raise EdgeppError(f"the coordinator cannot answer more at once: {error}", "ask again later") from error

    def cancel(self, asker: Asker) -> None:
        """Stop an answer; the tokens so far have been sent."""
        with self._lock:
            live = self._live.get(asker)
        self._cancel([] if live is None else [live])

    def cancel_of(self, key: str) -> list[Asker]:
        """Stop all answers for the node with this ``key``; returns their askers."""
        with self._lock:
            found = [(asker, live) for asker, live in self._live.items() if live.key == key]
        self._cancel([live for _, live in found])
        return [asker for asker, _ in found]

    def cancel_all(self, route: bytes | None = None) -> None:
        """Stop all answers, or those for one ``route`` that is lost."""
        with self._lock:
            found = [live for asker, live in self._live.items() if route is None or asker[0] == route]
        self._cancel(found)

    def _cancel(self, answers: list[_Live]) -> None:
        for live in answers:
            live.cancel()
        if answers:
            self._pipeline_manager.wake()

    def _end(self, asker: Asker) -> None:
        with self._lock:
            self._limiter.release(self._live.pop(asker).key)

    def _answer(self, asker: Asker, live: _Live, prompt: Prompt, options: GenerateOptions) -> None:
        """Give one answer: its thread. Whatever happens, the asker is told how it ended, and the slot is released."""
        try:
            try:
                self._stream(live, prompt, options)
            except EdgeppError as error:
                live.send(declined(live.number, error))
            except BaseException as error:  # noqa: BLE001 - a panic of a library in Rust is no Exception
                failure = explained(error)
                log.error("an answer failed: %s; %s", failure, failure.hint)
                live.send(declined(live.number, failure))
        except OSError:
            log.debug("an answer ended after the coordinator was closed")
        finally:
            self._end(asker)

    def _stream(self, live: _Live, prompt: Prompt, options: GenerateOptions) -> None:
        """Answer; begin again where the pipeline is lost before the asker has received anything."""
        asked_s = time.perf_counter()
        until_s = time.monotonic() + PIPELINE_WAIT_S
        failed: EdgeppError | None = None
        for left in reversed(range(MAX_ATTEMPTS)):
            try:
                pipeline = self._pipeline_manager.acquire(until_s - time.monotonic(), lambda: live.cancelled)
            except EdgeppError as error:
                if live.cancelled:
                    live.send(_answered(live.number, AnswerSummary("cancelled", 0, Timing(0.0), ())))
                    return
                raise failed or error from error
            try:
                self._pass_on(live, pipeline, prompt, options, asked_s)
                return
            except EdgeppError as error:
                if not left or live.sent_any or live.cancelled or pipeline.lost is None:
                    raise
                failed = error
                log.info("begins an answer again: %s", error)

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
                break  # the tokens beyond are not needed
        live.pass_on(answer.token_ids[sent:], "")
        reason = answer.finish_reason or "cancelled"
        if answer.finish_reason is not None:
            self.last, self.num_finished = answer.timing, self.num_finished + 1
        live.send(_answered(live.number, _summary(answer, reason)))


class _Live:
    """One answer under way, which can be cancelled before or after it has begun."""

    def __init__(self, key: str, number: int, send: Send) -> None:
        self.key = key
        self.number = number
        self._send = send
        self._lock = threading.Lock()
        self._answer: TextStream | None = None
        self.sent_any = False
        """Whether the asker has received anything of the answer."""
        self.cancelled = False

    def send(self, frames: list[bytes]) -> None:
        """Send a message to the asker."""
        self.sent_any = True
        self._send(frames)

    def pass_on(self, tokens: list[int], text: str) -> None:
        """Send tokens in messages of at most 200, the text with the first of them."""
        if not tokens and not text:
            return
        parts = [tuple(tokens[i : i + 200]) for i in range(0, len(tokens), 200)] or [()]
        for index, part in enumerate(parts):
            self.send([encode(Piece(self.number, part)), b"" if index else text.encode(errors="replace")])

    def bind(self, answer: TextStream) -> None:
        """Let ``cancel`` stop this answer."""
        with self._lock:
            self._answer = answer
            if self.cancelled:
                answer.cancel()

    def cancel(self) -> None:
        """Stop the answer, also one that is bound later."""
        with self._lock:
            self.cancelled = True
            if self._answer is not None:
                self._answer.cancel()


def _summary(answer: TextStream, reason: FinishReason) -> AnswerSummary:
    return AnswerSummary(
        reason,
        answer.prompt_tokens,
        answer.timing,
        answer.stages,
        tuple(answer.sampled[: len(answer.token_ids)]),
        answer.spelled,
        answer.stop_string,
    )


def _answered(number: int, outcome: AnswerSummary) -> list[bytes]:
    """The message that tells an asker how its answer ended."""
    return [encode(Answered(number)), encode_payload(encode_summary(outcome))]


def declined(number: int, error: EdgeppError) -> list[bytes]:
    """The message that tells an asker why its question or call is declined."""
    return [encode(Declined(number, sentence(error), sentence(error.hint)))]
