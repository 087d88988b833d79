"""Every error of an answer, of any type, reaches the reader of the answer."""

from __future__ import annotations

import asyncio
import json
import queue
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import edgepp
from edgepp.coordinator.answer_service import AnswerService
from edgepp.coordinator.json_codec import encode_question
from edgepp.coordinator.live_answers import LiveAnswers
from edgepp.engine.pipeline import Pipeline
from edgepp.engine.pipeline_options import PipelineOptions
from edgepp.engine.request import GenerateOptions
from edgepp.engine.text_stream import TextStream
from edgepp.errors import EdgeppError, UsageError
from edgepp.layer_range import LayerRange
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from edgepp.model.text.client import TextClient
from edgepp.model.text.conversation import Conversation
from edgepp.python_api.answer import Answer as ApiAnswer
from edgepp.python_api.answer import Begun
from edgepp.python_api.cancellable_thread import run_in_thread
from edgepp.wire.message_codec import decode
from edgepp.wire.messages.clients import Declined
from tests.engines import Panic, collect, local_engine
from tests.waiting import PATIENCE_S

SPLIT = [LayerRange(0, 2), LayerRange(2, 4)]


class Breaking:
    """A detokenizer that fails at its third token."""

    def __init__(self) -> None:
        self.tokens = 0

    def add(self, _token: int) -> str:
        self.tokens += 1
        if self.tokens == 3:
            raise Panic("tokenizer")
        return "a"

    def finish(self) -> str:
        return ""


def test_a_tokenizer_that_panics_ends_the_answer_and_frees_its_place(tmp_path: Path) -> None:
    with local_engine(make_checkpoint(tmp_path / "m", TINY), SPLIT, ["onnx"]) as engine:
        request = engine.submit(list(range(10, 30)), GenerateOptions(300))
        answer = TextStream(engine, request, Breaking())
        with pytest.raises(EdgeppError, match=f"request {request.id}, making text of its tokens, failed: .*Panic"):
            "".join(answer)
        collect(request)  # ends, since it was cancelled
        assert len(request.ids) - request.prompt_tokens <= 300


@pytest.mark.parametrize("error", [Panic("here"), SystemExit(1), ValueError("odd"), EdgeppError("ours")])
def test_every_error_of_an_answer_reaches_its_reader(error: BaseException) -> None:
    def begin() -> Any:
        raise error

    answer = ApiAnswer(lambda: nullcontext(Begun(begin(), lambda: None)))
    with pytest.raises(EdgeppError, match=r"here|SystemExit|odd|ours"):
        asyncio.run(asyncio.wait_for(answer.whole(), 60))


@pytest.mark.parametrize("error", [Panic("here"), SystemExit(1), StopIteration("over")])
def test_every_error_of_opening_reaches_the_caller(error: BaseException) -> None:
    def work(_: object) -> None:
        raise error

    with pytest.raises(EdgeppError, match="opening failed"):
        asyncio.run(asyncio.wait_for(run_in_thread(work, lambda _: None), 60))


def test_a_prompt_that_is_not_text_is_refused_and_the_engine_goes_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with edgepp.Engine(str(make_checkpoint(tmp_path / "m", TINY)), threads=1, backend="onnx") as engine:
            for raw in (True, False):
                with pytest.raises(EdgeppError, match="surrogate"):
                    await engine.ask("half \ud83d of a pair", raw=raw).whole()
            with pytest.raises(UsageError, match="must be text"):
                await engine.ask([{"role": "user", "content": 5}]).whole()  # type: ignore[dict-item]
            answer = await engine.ask("Once upon", GenerateOptions(4, ignore_eos=True), raw=True).whole()
            assert len(answer.token_ids) == 4

    asyncio.run(main())


def test_a_prompt_that_cannot_fit_is_refused_without_being_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoding a million characters takes seconds, and the process that encodes serves all requests."""
    encoded = 0

    def encode(*_: object) -> list[int]:
        nonlocal encoded
        encoded += 1
        return [3] * 256

    monkeypatch.setattr(TextClient, "encode", encode)
    monkeypatch.setattr(TextClient, "encode_chat", encode)
    options = PipelineOptions(str(make_checkpoint(tmp_path / "m", TINY)), backend="onnx", threads=1, context=256)
    with Pipeline(options) as pipeline:
        for prompt in ("a word " * 150_000, Conversation.of("a word " * 150_000)):
            with pytest.raises(
                UsageError, match=r"at least \d+ tokens and an answer do not fit into the context of 256 tokens"
            ):
                pipeline.ask(prompt, GenerateOptions())
        assert not encoded
        with pytest.raises(
            UsageError, match="a prompt of 256 tokens and an answer do not fit into the context of 256 tokens"
        ):
            pipeline.ask("a word " * 20, GenerateOptions())
        assert encoded == 1


@pytest.mark.parametrize("error", [Panic("half \ud83d"), ValueError("odd"), EdgeppError("half \ud83d", "\ud83d")])
def test_every_error_of_an_answer_reaches_the_client_of_a_coordinator(error: BaseException) -> None:
    class Serving:
        def acquire(self, *_: object) -> None:
            raise error

    heard: queue.SimpleQueue[list[bytes]] = queue.SimpleQueue()
    answers = AnswerService(LiveAnswers(Serving()))  # type: ignore[arg-type]
    form = encode_question("hello", GenerateOptions(4))
    form = json.loads(json.dumps(form))
    answers.begin((b"route", 3), "key", form, heard.put)
    message = decode(heard.get(timeout=PATIENCE_S)[0])
    assert isinstance(message, Declined)
    assert message.request_id == 3
