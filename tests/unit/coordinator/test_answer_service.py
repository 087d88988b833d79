"""The coordinator's answers over fake pipelines."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from edgepp.coordinator import answer_service, live_answers
from edgepp.coordinator.answer_service import AnswerService
from edgepp.coordinator.json_codec import decode_summary, encode_question
from edgepp.coordinator.live_answers import LiveAnswers
from edgepp.engine.request import GenerateOptions
from edgepp.engine.text_stream import TextPiece
from edgepp.engine.timing import Timing
from edgepp.errors import EdgeppError, StageFault, StageLost, UsageError
from edgepp.wire.message_codec import decode, decode_payload
from edgepp.wire.messages import Message
from edgepp.wire.messages.clients import Answered, Declined, Piece
from tests.waiting import PATIENCE_S, eventually

FORM = json.loads(json.dumps(encode_question("hi", GenerateOptions())))
LOST = StageLost("stage 1 (layers 15-29) on node mini is gone", "ask again")
WAIT_S = PATIENCE_S


class PanicException(BaseException):
    """Stands in for the exception of a library in Rust that panics."""


class FakeAnswer:
    """Gives one token per text, and then raises ``error`` or finishes."""

    def __init__(self, texts: list[str], error: BaseException | None, release: threading.Event | None) -> None:
        self._texts, self._error, self._release = texts, error, release
        self._cancelled = False
        self.token_ids: list[int] = []
        self.sampled: list[Any] = []
        self.prompt_sampled: list[Any] = []
        self.spelled: dict[int, str] = {}
        self.finish_reason: str | None = None
        self.stop_string: str | None = None
        self.prompt_tokens = 1
        self.timing = Timing(0.0)
        self.stages = ()

    def pieces(self) -> Iterator[TextPiece]:
        for number, text in enumerate(self._texts):
            self.token_ids.append(number)
            yield TextPiece(text)
        if self._release is not None:
            assert self._release.wait(WAIT_S)
        if self._error is not None:
            raise self._error
        self.finish_reason = "cancelled" if self._cancelled else "stop"

    def cancel(self) -> None:
        self._cancelled = True
        if self._release is not None:
            self._release.set()


class FakePipeline:
    def __init__(
        self,
        *texts: str,
        error: BaseException | None = None,
        release: threading.Event | None = None,
        refuses: BaseException | None = None,
    ) -> None:
        self._make: Callable[[], FakeAnswer] = lambda: FakeAnswer(list(texts), error, release)
        self._refuses = refuses
        self.asked = 0

    def ask(self, *_: object) -> FakeAnswer:
        self.asked += 1
        if self._refuses is not None:
            raise self._refuses
        return self._make()


class FakePipelineManager:
    """Gives one pipeline."""

    def __init__(self, pipeline: FakePipeline) -> None:
        self.pipeline = pipeline
        self.woken = 0

    def acquire(self, _wait_s: float, given_up: Callable[[], bool]) -> FakePipeline:
        if given_up():
            raise EdgeppError("the cluster cannot answer yet: no plan")
        return self.pipeline

    def wake(self) -> None:
        self.woken += 1


class Asked:
    """An ``AnswerService`` over a fake pipeline, and the messages that it sends."""

    def __init__(self, pipeline: FakePipeline) -> None:
        self.pipeline_manager = FakePipelineManager(pipeline)
        self.live_answers = LiveAnswers(self.pipeline_manager)  # type: ignore[arg-type]
        self.answers = AnswerService(self.live_answers)
        self.sent: queue.SimpleQueue[list[bytes]] = queue.SimpleQueue()

    def ask(self, number: int = 1, key: str = "ann", route: bytes = b"r") -> None:
        self.answers.begin((route, number), key, FORM, self.sent.put)

    def ending(self, number: int = 1) -> tuple[Message, list[bytes], str]:
        """The last message of an answer, its frames, and the text before it; the answer's thread has ended."""
        text = ""
        while True:
            frames = self.sent.get(timeout=WAIT_S)
            message = decode(frames[0])
            if isinstance(message, Piece):
                text += frames[1].decode()
            elif message.request_id == number:  # type: ignore[union-attr]
                self.quiet()
                return message, frames, text

    def quiet(self) -> None:
        eventually("all have ended", lambda: not len(self.live_answers))


@pytest.mark.parametrize(
    "pipeline",
    [
        FakePipeline("shown", error=LOST),
        FakePipeline(error=StageFault("stage 0 failed: no memory")),
        FakePipeline(refuses=UsageError("the prompt is empty")),
    ],
    ids=["given up", "its own fault", "refused"],
)
def test_an_error_of_the_pipeline_ends_an_answer(pipeline: FakePipeline) -> None:
    asked = Asked(pipeline)
    asked.ask()
    message, _, _ = asked.ending()
    assert isinstance(message, Declined)
    assert pipeline.asked == 1


@pytest.mark.parametrize(
    "error",
    [PanicException("a byte index is out of range"), MemoryError(), KeyError("x"), ValueError("\ud800\x1b]52;")],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("when", ["refuses", "error"])
def test_any_exception_ends_the_answer_and_releases_its_slot(error: BaseException, when: str) -> None:
    asked = Asked(FakePipeline(**{when: error}))  # type: ignore[arg-type]
    asked.ask()
    message, _, _ = asked.ending()
    assert isinstance(message, Declined)
    assert ("memory ran out" if isinstance(error, MemoryError) else type(error).__name__) in message.reason
    assert message.reason.isprintable()


def test_an_asker_that_cannot_be_reached_holds_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(FakePipeline("a"))

    def send(_: list[bytes]) -> None:
        raise OSError("the mailbox is closed")

    asked.answers.begin((b"r", 1), "ann", FORM, send)
    asked.quiet()
    monkeypatch.setattr(answer_service.threading.Thread, "start", no_thread)
    with pytest.raises(EdgeppError, match="cannot answer more"):
        asked.ask()
    assert len(asked.live_answers) == 0


def no_thread(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_a_cancelled_answer_ends_with_the_tokens_so_far() -> None:
    release = threading.Event()
    asked = Asked(FakePipeline("a", release=release))
    asked.ask()
    assert isinstance(decode(asked.sent.get(timeout=WAIT_S)[0]), Piece)
    asked.answers.cancel((b"r", 1))
    message, frames, _ = asked.ending()
    assert isinstance(message, Answered)
    assert decode_summary(decode_payload(frames)).finish_reason == "cancelled"
    assert asked.pipeline_manager.woken == 1


def test_a_greedy_member_takes_no_slot_of_another_member(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_answers, "MAX_ANSWERS", 8)
    release = threading.Event()
    asked = Asked(FakePipeline("a", release=release))
    for number in range(5):
        asked.ask(number, key="greedy")
    with pytest.raises(EdgeppError, match="the asker's share of them is taken"):
        asked.ask(5, key="greedy")
    for number, key in enumerate(["ann", "bob", "cay", "dee", "eve"]):
        asked.ask(100 + number, key=key)
    assert len(asked.live_answers) == 10
    asked.answers.cancel_of("greedy")
    asked.quiet()
    asked.ask(200, key="greedy")
    asked.quiet()
