"""The events of answers, over streams that a test holds and releases."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from edgepp.engine.request import GenerateOptions, SamplingOptions
from edgepp.engine.sampling import Sampled
from edgepp.engine.text_stream import SpelledToken, TextPiece
from edgepp.errors import (
    ContextExceeded,
    EdgeppError,
    ModelError,
    NotReady,
    Overloaded,
    PlanError,
    PromptRefused,
    StageFault,
    StageLost,
    UsageError,
)
from edgepp.http_api.failures import RequestError
from edgepp.http_api.generation import (
    ChoiceEnded,
    Ended,
    GenerationEvent,
    GenerationRequest,
    Idle,
    Queued,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallEnded,
    ToolCallStarted,
)
from edgepp.http_api.generator import Generator
from edgepp.model.text.conversation import EncodedPrompt
from edgepp.tool_calls.tool_use import (
    AnswerPart,
    CallArguments,
    CallEnded,
    CallStarted,
    Reasoning,
    Text,
)
from tests.unit.http_api.streamed_cluster import (
    NEVER_S,
    PROMPT,
    TOOLS,
    Cluster,
    Form,
    Stream,
    request,
    run,
    text_of,
)
from tests.waiting import PATIENCE_S


def test_an_answer_is_its_start_its_text_and_its_end() -> None:
    events = run(Cluster([Stream(["Hel", "lo"])]))
    assert events[0] == Started(7)
    assert text_of(events) == "Hello"
    ended, whole = events[-2:]
    assert isinstance(ended, ChoiceEnded)
    assert isinstance(whole, Ended)
    assert (ended.finish_reason, whole.usage.completion_tokens) == ("stop", 2)
    assert (whole.usage.prompt_tokens, whole.usage.cached_tokens) == (7, 4)


def test_choices_are_interleaved_and_their_prompt_counts_once() -> None:
    first, second = threading.Event(), threading.Event()
    streams = [Stream(["a", first, "c"]), Stream(["x", second])]

    async def main() -> list[GenerationEvent]:
        events = []
        asked = request(num_choices=2)
        async for event in Generator(cluster, idle_s=NEVER_S).generate(asked):
            events.append(event)
            if event == TextDelta(1, "x"):
                second.set()
            if isinstance(event, ChoiceEnded) and event.choice == 1:
                first.set()
        return events

    cluster = Cluster(streams)
    events = asyncio.run(asyncio.wait_for(main(), PATIENCE_S))
    assert (text_of(events), text_of(events, 1)) == ("ac", "x")
    assert [event.choice for event in events if isinstance(event, ChoiceEnded)] == [1, 0]
    whole = events[-1]
    assert isinstance(whole, Ended)
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (7, 3)
    assert sum(isinstance(event, Started) for event in events) == 1


def test_a_seed_is_counted_up_over_the_choices() -> None:
    cluster = Cluster([Stream(["a"]), Stream(["b"])])
    asked = GenerationRequest(PROMPT, GenerateOptions(sampling=SamplingOptions(seed=5)), num_choices=2)
    run(cluster, asked)
    assert [options.sampling.seed for options in cluster.asked] == [5, 6]


CALL: list[AnswerPart] = [CallStarted("add"), CallArguments('{"a":'), CallArguments(" 1}"), CallEnded()]


def test_calls_have_ids_of_their_own_and_their_arguments_whole() -> None:
    cluster = Cluster([Stream(["call"])], Form({"call": [Reasoning("hm"), Text("I "), Text("add"), *CALL, *CALL]}))
    events = run(cluster, request(tool_use=TOOLS))
    assert events[1:3] == [ReasoningDelta(0, "hm"), TextDelta(0, "I add")]
    started = [event for event in events if isinstance(event, ToolCallStarted)]
    assert [(one.call, one.name) for one in started] == [(0, "add"), (1, "add")]
    assert len({one.id for one in started}) == 2
    assert all(one.id for one in started)
    assert [event for event in events if isinstance(event, ToolCallDelta)] == [
        ToolCallDelta(0, 0, '{"a": 1}'),
        ToolCallDelta(0, 1, '{"a": 1}'),
    ]
    assert ToolCallEnded(0, 1, '{"a": 1}') in events
    ended = events[-2]
    assert isinstance(ended, ChoiceEnded)
    assert ended.usage.reasoning_tokens in (0, 1)


@pytest.mark.parametrize(
    ("reason", "parts", "expected"),
    [
        ("stop", CALL, "tool_calls"),
        ("stop", CALL[:2], "stop"),
        ("length", CALL, "length"),
        ("stop", [Text("x")], "stop"),
    ],
)
def test_length_comes_before_tool_calls_and_tool_calls_before_stop(
    reason: str, parts: list[AnswerPart], expected: str
) -> None:
    ended = run(Cluster([Stream(["x"], reason)], Form({"x": parts})), request(tool_use=TOOLS))[-2]
    assert isinstance(ended, ChoiceEnded)
    assert ended.finish_reason == expected


def test_what_a_parser_holds_back_comes_at_the_end() -> None:
    events = run(Cluster([Stream(["x"])], Form({"x": [], "": [Text("held")]})))
    assert text_of(events) == "held"


def test_log_probabilities_come_with_the_text_of_their_tokens() -> None:
    token = SpelledToken(5, b"hi", Sampled(5, -0.5, ((5, -0.5), (6, -1.5))))
    asked = replace(request(), options=GenerateOptions(sampling=SamplingOptions(logprobs=2)))
    events = run(Cluster([Stream([TextPiece("hi", (token,))])]), asked)
    expected = TokenLogprob("hi", -0.5, (("<5>", -0.5), ("<6>", -1.5)), b"hi", (b"<5>", b"<6>"))
    assert [event.logprobs for event in events if isinstance(event, TextDelta)] == [(expected,)]


def test_silence_is_told_before_the_prompt_is_accepted_and_after() -> None:
    accepted, more = threading.Event(), threading.Event()
    cluster = Cluster([Stream([accepted, "a", more, "b"])], reason="the layers are being loaded")

    async def main() -> list[GenerationEvent]:
        events = []
        async for event in Generator(cluster, idle_s=0.01).generate(request()):
            events.append(event)
            if len([one for one in events if isinstance(one, Queued)]) == 3:
                accepted.set()
            if isinstance(event, Idle):
                more.set()
        return events

    events = asyncio.run(asyncio.wait_for(main(), PATIENCE_S))
    assert events[0] == Queued("the layers are being loaded")
    kinds = [type(event) for event in events if not isinstance(event, TextDelta)]
    assert kinds.index(Started) > max(at for at, kind in enumerate(kinds) if kind is Queued)
    assert kinds.index(Idle) > kinds.index(Started)
    assert text_of(events) == "ab"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ContextExceeded(90, 80), "context_length_exceeded"),
        (PromptRefused("the template wants a user first"), "invalid_request"),
        (UsageError("half a surrogate pair"), "invalid_request"),
        (ModelError("the tokenizer took too long"), "invalid_request"),
        (NotReady("the layers are being loaded"), "loading"),
        (Overloaded("128 answers are under way"), "rate_limited"),
        (StageLost("stage 1 on mini is gone"), "overloaded"),
        (PlanError("3 layers have no host"), "overloaded"),
        (StageFault("stage 1 on mini failed"), "internal"),
        (EdgeppError("something"), "internal"),
        (KeyError("a fault"), "internal"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
@pytest.mark.parametrize("where", ["prompt", "answer"])
def test_errors_say_in_terms_of_a_request_what_is_wrong(error: Exception, kind: str, where: str) -> None:
    cluster = Cluster([Stream([error])], refuses=error if where == "prompt" else None)
    with pytest.raises(RequestError) as caught:
        run(cluster)
    assert caught.value.kind == kind
    if isinstance(error, EdgeppError):
        assert str(caught.value) == str(error)
    if kind == "context_length_exceeded":
        assert (caught.value.prompt_tokens, caught.value.context) == (90, 80)
    if kind == "loading":
        assert caught.value.retry_after_s == 9.0
    assert (caught.value.retry_after_s is not None) is (kind in ("loading", "rate_limited", "overloaded"))


def test_text_before_an_error_is_given() -> None:
    text: list[str] = []

    async def main() -> None:
        async for event in Generator(cluster, idle_s=NEVER_S).generate(request()):
            if isinstance(event, TextDelta):
                text.append(event.text)  # noqa: PERF401 - what came before the error counts

    cluster = Cluster([Stream(["one ", "two", StageLost("stage 1 on mini is gone")])])
    with pytest.raises(RequestError, match="is gone"):
        asyncio.run(asyncio.wait_for(main(), PATIENCE_S))
    assert "".join(text) == "one two"


def test_a_parser_that_fails_ends_the_answer_and_all_of_its_choices() -> None:
    streams = [Stream(["x", threading.Event()]), Stream([threading.Event()])]
    with pytest.raises(RequestError) as caught:
        run(Cluster(streams, Form({})), request(num_choices=2, tool_use=TOOLS))
    assert caught.value.kind == "internal"
    assert all(stream.stopped.is_set() for stream in streams)


def test_a_request_is_encoded_after_the_model_has_changed() -> None:
    cluster = Cluster([Stream(["a"])], reason="the cluster is changing its model", is_held=True)
    encoded: list[bool] = []
    encode = cluster.encode

    def look(*arguments: Any) -> EncodedPrompt:
        encoded.append(cluster.is_held)
        return encode(*arguments)

    cluster.encode = look  # type: ignore[method-assign]

    async def main() -> list[GenerationEvent]:
        events = []
        async for event in Generator(cluster, idle_s=NEVER_S).generate(request()):
            events.append(event)
            if isinstance(event, Queued):
                asyncio.get_running_loop().call_later(0.05, setattr, cluster, "is_held", False)
        return events

    events = asyncio.run(asyncio.wait_for(main(), PATIENCE_S))
    assert encoded == [False]
    assert text_of(events) == "a"


def test_nothing_is_parsed_in_the_answer_to_a_raw_prompt() -> None:
    asked = GenerationRequest("Once upon", GenerateOptions(), tool_use=TOOLS)
    assert text_of(run(Cluster([Stream(["a <tool_call>"])], Form({})), asked)) == "a <tool_call>"


@pytest.mark.parametrize("how", ["closed", "cancelled"])
def test_a_reader_that_leaves_cancels_every_choice(how: str) -> None:
    streams = [Stream(["a", threading.Event()]), Stream([threading.Event()])]

    async def read(begun: asyncio.Event) -> None:
        async with aclosing(Generator(Cluster(streams), idle_s=NEVER_S).generate(request(num_choices=2))) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    begun.set()
                    if how == "closed":
                        break

    async def main() -> None:
        begun = asyncio.Event()
        task = asyncio.create_task(read(begun))
        await begun.wait()
        if how == "cancelled":
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))
    assert all(stream.stopped.is_set() for stream in streams)
    assert all(stream.over.wait(PATIENCE_S) for stream in streams)
