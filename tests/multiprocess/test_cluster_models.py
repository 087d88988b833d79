"""The models of a real cluster as the HTTP APIs see them: SmolLM2 on two stage processes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import TypeVar

import psutil
import pytest

import edgepp
from edgepp.engine.request import GenerateOptions, SamplingOptions
from edgepp.http_api.cluster_models import ClusterModels
from edgepp.http_api.failures import RequestError
from edgepp.http_api.generation import (
    ChoiceEnded,
    Ended,
    GenerationEvent,
    GenerationRequest,
    Started,
    TextDelta,
)
from edgepp.model.text.conversation import Conversation, Prompt
from edgepp.python_api import ServedCluster
from tests.waiting import PATIENCE_S, eventually

T = TypeVar("T")
LONG = GenerationRequest("Once upon a time", GenerateOptions(1500, ignore_eos=True))


def with_models(work: Callable[[ServedCluster, ClusterModels], Awaitable[T]], context: int = 2048) -> T:
    """The result of ``work`` with a ready cluster."""

    async def main() -> T:
        cluster = edgepp.serve("smollm2-135m", stages=2, listen="127.0.0.1:0", threads=1, context=context)
        async with cluster:
            await cluster.ready()
            return await work(cluster, ClusterModels(cluster, ("claude-small",), idle_s=0.5))

    return asyncio.run(asyncio.wait_for(main(), 4 * PATIENCE_S))


def question(text: str) -> Conversation:
    return Conversation([{"role": "user", "content": text}])


def asked(prompt: Prompt, tokens: int = 8, **more: int) -> GenerationRequest:
    return GenerationRequest(prompt, GenerateOptions(tokens, ignore_eos=True), owner="ann", num_choices=1, **more)


async def events_of(models: ClusterModels, request: GenerationRequest) -> list[GenerationEvent]:
    return [event async for event in models.generate(request)]


def under_way(cluster: ServedCluster) -> int:
    return int(cluster.status["answers"]["under_way"])


async def answer_or_error(
    models: ClusterModels, request: GenerationRequest, on_text: Callable[[], None] = lambda: None
) -> list[GenerationEvent] | RequestError:
    """The answer, or why it failed; ``on_text`` is called at its first text."""
    events: list[GenerationEvent] = []
    try:
        async for event in models.generate(request):
            events.append(event)
            if isinstance(event, TextDelta):
                on_text()
                on_text = bool
    except RequestError as error:
        return error
    return events


def test_the_model_answers_by_all_its_names_and_its_numbers_are_those_of_its_answers() -> None:
    async def work(cluster: ServedCluster, models: ClusterModels) -> None:
        served = models.model
        assert (served.name, served.state, served.context, served.trained_context) == (
            "smollm2-135m",
            "loaded",
            2048,
            8192,
        )
        assert served.num_parameters == 134_515_008
        assert len(served.digest) == 64
        for name in (None, "", "smollm2-135m", "SmolLM2-135m:latest", "smollm2:135m", "claude-small"):
            assert models.served(name) is served, name
        for name in ("claude-big", "/etc", "~", "..", "x" * 5000, "smollm2-360m-bf16", "a\0b"):
            with pytest.raises(RequestError, match="not served here"):
                models.served(name)
        ids = await models.encode(question("Say hi"))
        events = await events_of(models, asked(question("Say hi")))
        assert Started(len(ids)) in events
        whole = events[-1]
        assert isinstance(whole, Ended)
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (len(ids), 8)
        again = (await events_of(models, asked(question("Say hi"))))[-1]
        assert isinstance(again, Ended)
        assert again.usage.cached_tokens >= 0.9 * len(ids)
        assert await models.decode(await models.encode("Once upon")) == "Once upon"
        assert not under_way(cluster)

    with_models(work)


def test_a_prompt_of_the_whole_context_is_refused_and_one_token_less_is_not() -> None:
    async def work(_: ServedCluster, models: ClusterModels) -> None:
        context = models.model.context
        fits = (await events_of(models, asked((5,) * (context - 1), tokens=500)))[-1]
        assert isinstance(fits, Ended)
        assert fits.usage.completion_tokens == 1
        with pytest.raises(RequestError) as caught:
            await events_of(models, asked((5,) * context))
        assert (caught.value.kind, caught.value.prompt_tokens, caught.value.context) == (
            "context_length_exceeded",
            context,
            context,
        )
        for bad in (question("half \ud83d"), Conversation([]), (1 << 40,)):
            with pytest.raises(RequestError) as caught:
                await events_of(models, asked(bad))
            assert caught.value.kind == "invalid_request"
        with pytest.raises(RequestError):
            await models.decode([1 << 40])

    with_models(work, context=256)


def test_a_reader_that_leaves_frees_its_place_and_neighbours_go_on() -> None:
    async def work(cluster: ServedCluster, models: ClusterModels) -> None:
        neighbour = asyncio.create_task(events_of(models, asked("One, two, three", tokens=40)))
        async with aclosing(models.generate(replace(LONG, num_choices=2))) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    break
        ended = (await neighbour)[-2]
        assert isinstance(ended, ChoiceEnded)
        assert ended.finish_reason == "length"
        await asyncio.to_thread(eventually, "their places are free", lambda: not under_way(cluster))

    with_models(work)


def test_an_answer_goes_on_after_a_lost_stage_and_tells_so() -> None:
    async def work(cluster: ServedCluster, models: ClusterModels) -> None:
        stage = psutil.Process(cluster.status["stages"][0]["pid"])
        answered = await answer_or_error(models, LONG, stage.kill)
        assert isinstance(answered, list)
        assert isinstance(answered[-1], Ended)
        assert cluster.status["engine"]["recoveries"]
        assert cluster.status["stages"][0]["pid"] != stage.pid

    with_models(work)


def test_a_cluster_without_stages_refuses_after_a_set_time_with_its_reason() -> None:
    async def main() -> RequestError:
        async with edgepp.serve("smollm2-135m", stages=0, listen="127.0.0.1:0") as cluster:
            models = ClusterModels(cluster, load_wait_s=0.2)
            assert models.model.state == "loading"
            assert models.served("smollm2-135m")
            assert await models.encode(question("Say hi"))
            with pytest.raises(RequestError) as caught:
                await events_of(models, asked(question("Say hi")))
            return caught.value

    error = asyncio.run(asyncio.wait_for(main(), 4 * PATIENCE_S))
    assert error.kind == "loading"
    assert error.retry_after_s
    assert "no node" in str(error)


def test_the_choices_of_one_request_share_its_prompt() -> None:
    async def work(_: ServedCluster, models: ClusterModels) -> None:
        options = GenerateOptions(6, ignore_eos=True, sampling=SamplingOptions(temperature=1.0, seed=3, logprobs=1))
        prompt = "Once upon a time there was a miller who had three sons, a mill, a donkey and a cat."
        events = await events_of(models, GenerationRequest(prompt, options, num_choices=3))
        ends = [event.usage for event in events if isinstance(event, ChoiceEnded)]
        computed = sorted(usage.prompt_tokens - usage.cached_tokens for usage in ends)
        assert computed[:2] == [2, 2]
        whole = events[-1]
        assert isinstance(whole, Ended)
        assert (whole.usage.prompt_tokens, whole.usage.cached_tokens) == (computed[-1], 0)
        tokens = [token for event in events if isinstance(event, TextDelta) for token in event.logprobs]
        assert len(tokens) == 18
        assert all(token.top for token in tokens)

    with_models(work)
