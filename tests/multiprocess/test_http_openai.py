"""OpenAI's API of a two-stage cluster with real weights, through the openai SDK and plain HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from edgepp.engine.sampling import with_logprobs
from edgepp.model.fetch import fetch
from tests import reference
from tests.builders.sdk_types import strictly
from tests.multiprocess.http_cluster import MODEL, HttpCluster, serving_http
from tests.waiting import PATIENCE_S

USER: Any = [{"role": "user", "content": "Name three colours of the rainbow."}]
GREEDY: dict[str, Any] = {"model": MODEL, "messages": USER, "temperature": 0, "max_tokens": 16}
CHAT = "/v1/chat/completions"
WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Bern", "Basel"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
TOOLS: Any = [{"type": "function", "function": WEATHER}]


@pytest.fixture
def sdk(http_cluster: HttpCluster) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{http_cluster.url}/v1", api_key="any", max_retries=0, timeout=PATIENCE_S) as client:
        yield client


def text(sdk: openai.OpenAI, **options: Any) -> str:
    answer = sdk.chat.completions.create(**(GREEDY | options))
    return answer.choices[0].message.content or ""


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_tokens": 1},
        {"n": 2, "temperature": 1, "seed": 7},
        {"logprobs": True, "top_logprobs": 3},
        {"stop": [" and", ","]},
        {"response_format": {"type": "json_object"}, "max_tokens": 30},
    ],
    ids=str,
)
def test_a_stream_accumulated_by_the_sdk_is_the_unstreamed_answer(sdk: openai.OpenAI, options: dict[str, Any]) -> None:
    whole = sdk.chat.completions.create(**(GREEDY | options))
    chunks = list(
        sdk.chat.completions.create(**(GREEDY | options), stream=True, stream_options={"include_usage": True})
    )
    for choice in whole.choices:
        mine = [one for chunk in chunks for one in chunk.choices if one.index == choice.index]
        assert "".join(one.delta.content or "" for one in mine) == choice.message.content
        assert [one.finish_reason for one in mine if one.finish_reason] == [choice.finish_reason]
        if choice.logprobs is not None:
            told = [token.token for one in mine if one.logprobs for token in one.logprobs.content or []]
            assert told == [token.token for token in choice.logprobs.content or []]
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    strictly(ChatCompletion, whole, allowed={"timings"})
    for chunk in chunks:
        strictly(ChatCompletionChunk, chunk, allowed={"timings"})


def test_completions_continue_texts_and_token_ids(http_cluster: HttpCluster, sdk: openai.OpenAI) -> None:
    options: Any = {"model": MODEL, "temperature": 0, "max_tokens": 8}
    whole = sdk.completions.create(prompt="Once upon a time", **options)
    strictly(Completion, whole, allowed={"timings"})
    tokens = http_cluster.post("/tokenize", prompt="Once upon a time").json()["tokens"]
    assert http_cluster.post("/v1/tokenize", prompt="").json()["tokens"] == []
    by_ids = sdk.completions.create(prompt=tokens, **options)
    streamed = sdk.completions.create(prompt=tokens, stream=True, **options)
    assert whole.choices[0].text == by_ids.choices[0].text
    assert "".join(choice.text for chunk in streamed for choice in chunk.choices) == whole.choices[0].text
    several = sdk.completions.create(prompt=["Once upon a time", "Two and two"], echo=True, **options)
    assert several.choices[0].text == "Once upon a time" + whole.choices[0].text
    assert several.choices[1].text.startswith("Two and two")
    assert several.usage is not None
    assert several.usage.completion_tokens == 16


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_texts_are_scored_as_an_evaluation_harness_does(
    http_cluster: HttpCluster, sdk: openai.OpenAI, max_tokens: int
) -> None:
    """The log-likelihood of a continuation, and whether the model would say it, by ``echo`` and ``logprobs``."""
    path = fetch("smollm2-135m")
    options: Any = {"model": MODEL, "temperature": 0, "max_tokens": max_tokens, "logprobs": 1, "echo": True}
    texts = [("The capital of France is", " Paris"), ("Two and two are", " ninety"), ("A" + " very" * 30, " long")]
    contexts = [http_cluster.post("/tokenize", prompt=context).json()["tokens"] for context, _ in texts]
    prompts = [http_cluster.post("/tokenize", prompt=context + more).json()["tokens"] for context, more in texts]
    told = sdk.completions.create(prompt=prompts, **options)  # the SDK's type has no null, which servers write
    for choice, context, prompt in zip(told.choices, contexts, prompts, strict=True):
        logits = reference.logits(path, prompt)
        expected = [with_logprobs(row, token, 1) for row, token in zip(logits, prompt[1:], strict=False)]
        assert choice.logprobs is not None
        scores, tops = choice.logprobs.token_logprobs or [], choice.logprobs.top_logprobs or []
        assert (len(scores), scores[0], tops[0]) == (len(prompt) + max_tokens, None, None)
        assert scores[1 : len(prompt)] == pytest.approx([one.logprob for one in expected], abs=1e-3)
        greedy = [score == max(top.values()) for score, top in zip(scores, tops, strict=True) if top is not None]
        mine = slice(len(context) - 1, len(prompt) - 1)
        assert greedy[mine] == [one.logprob == one.top[0][1] for one in expected[mine]]
    assert told.usage is not None
    assert told.usage.prompt_tokens_details is not None
    assert (told.usage.completion_tokens, told.usage.prompt_tokens_details.cached_tokens) == (3 * max_tokens, 0)
    chunks = list(sdk.completions.create(prompt=prompts[0], stream=True, **options))
    streamed = [one.logprobs for chunk in chunks for one in chunk.choices if one.logprobs is not None]
    (whole, *_) = told.choices
    assert whole.logprobs is not None
    assert [score for part in streamed for score in part.token_logprobs or []] == whole.logprobs.token_logprobs
    assert [at for part in streamed for at in part.text_offset or []] == whole.logprobs.text_offset
    assert "".join(one.text for chunk in chunks for one in chunk.choices) == whole.text


def test_the_token_that_ends_an_answer_is_scored_behind_its_prompt(sdk: openai.OpenAI) -> None:
    prompt = "<|im_start|>user\nSay hi<|im_end|>\n<|im_start|>assistant\nHi!"
    options: Any = {"prompt": prompt, "max_tokens": 1, "logprobs": 1, "logit_bias": {"2": 100}, "temperature": 0}
    told = sdk.completions.create(model=MODEL, echo=True, **options).choices[0]
    assert told.logprobs is not None
    assert (told.finish_reason, told.text) == ("stop", prompt)
    assert (told.logprobs.tokens or [])[-1] == "<|im_end|>"
    assert (told.logprobs.text_offset or [])[-1] == len(prompt)


def test_tokens_are_counted_as_they_are_prefilled(http_cluster: HttpCluster, sdk: openai.OpenAI) -> None:
    for more in ({}, {"tools": TOOLS}):
        counted = http_cluster.post(f"{CHAT}/input_tokens", messages=USER, **more).json()["input_tokens"]
        tokenized = http_cluster.post("/tokenize", messages=USER, **more).json()
        usage = sdk.chat.completions.create(**(GREEDY | more | {"max_tokens": 1})).usage
        assert usage is not None
        assert counted == tokenized["count"] == len(tokenized["tokens"]) == usage.prompt_tokens
    prompt = http_cluster.post("/detokenize", tokens=tokenized["tokens"]).json()["prompt"]
    assert "Name three colours of the rainbow." in prompt


def test_the_context_is_the_length_at_which_prompts_are_refused(http_cluster: HttpCluster, sdk: openai.OpenAI) -> None:
    (model,) = sdk.models.list().data
    assert model.model_extra is not None
    context = model.model_extra["max_model_len"]
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.completions.create(model=MODEL, prompt=[100] * context, max_tokens=1)
    assert refused.value.code == "context_length_exceeded"
    assert str(context) in str(refused.value)
    with sdk.completions.create(model=MODEL, prompt=[100] * (context - 1), max_tokens=32_000, stream=True):
        pass  # accepted; the reader goes away at once
    http_cluster.wait_until_idle()


def test_an_answer_has_the_length_that_was_asked_for(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(**(GREEDY | {"max_tokens": 9, "max_completion_tokens": 3}))
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_stop_strings_are_not_told(sdk: openai.OpenAI) -> None:
    plain = text(sdk)
    stop = plain[len(plain) // 2 :][:4]
    answer = sdk.chat.completions.create(**GREEDY, stop=[stop])
    assert answer.choices[0].message.content == plain[: plain.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_a_seed_repeats_an_answer(sdk: openai.OpenAI) -> None:
    first, again = (text(sdk, temperature=1.5, seed=11) for _ in range(2))
    assert first == again


def test_biases_and_log_probabilities_are_those_of_tokens(http_cluster: HttpCluster, sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(**(GREEDY | {"max_tokens": 1}), logprobs=True, top_logprobs=5)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    (token,) = logprobs.content
    assert token.logprob == max(one.logprob for one in token.top_logprobs)
    assert len(token.top_logprobs) == 5
    assert bytes(token.bytes or []).decode() == token.token
    (token_id,) = http_cluster.post("/tokenize", prompt=token.token).json()["tokens"]
    banned = text(sdk, max_tokens=1, logit_bias={str(token_id): -100})
    assert banned == token.top_logprobs[1].token


def test_an_answer_is_held_to_its_schema(sdk: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}, "number": {"type": "integer", "maximum": 9}},
        "required": ["colour", "number"],
        "additionalProperties": False,
    }
    forms: list[Any] = [
        {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}},
        {"type": "json_schema", "schema": schema},
    ]
    for form in forms:
        told = json.loads(text(sdk, response_format=form, max_tokens=60))
        assert told["colour"] in ("red", "green")
        assert set(told) == {"colour", "number"}


class Colour(BaseModel):
    name: Literal["red", "green"]
    share: int | None


def test_structured_output_is_parsed_by_the_sdk(sdk: openai.OpenAI) -> None:
    options = GREEDY | {"max_tokens": 60, "response_format": Colour}
    parsed = sdk.chat.completions.parse(**options).choices[0].message.parsed
    assert isinstance(parsed, Colour)
    with sdk.chat.completions.stream(**options) as events:
        assert events.get_final_completion().choices[0].message.parsed == parsed


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}], ids=str)
@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_that_must_be_called_is_called(sdk: openai.OpenAI, choice: Any, stream: bool) -> None:
    options: dict[str, Any] = GREEDY | {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False}
    options["max_tokens"] = 80
    if stream:
        with sdk.chat.completions.stream(**options) as events:
            answer: Any = events.get_final_completion()
    else:
        answer = sdk.chat.completions.create(**options)
    (told,) = answer.choices
    (call,) = told.message.tool_calls or []
    assert told.finish_reason == "tool_calls"
    assert call.id
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in ("Bern", "Basel")
    asked = [
        *USER,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [call.model_dump(exclude={"function": {"parsed_arguments"}})],
        },
        {"role": "tool", "tool_call_id": call.id, "content": "rain"},
    ]
    assert sdk.chat.completions.create(**(GREEDY | {"messages": asked, "tools": TOOLS, "max_tokens": 4})).usage


def test_a_call_that_is_cut_ends_by_length(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(**(GREEDY | {"max_tokens": 3}), tools=TOOLS, tool_choice="required")
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("note", ["nothing", "a title", "a developer's note"])
def test_a_second_turn_has_its_beginning_from_the_cache(sdk: openai.OpenAI, note: str) -> None:
    def ask(messages: list[Any]) -> ChatCompletion:
        return sdk.chat.completions.create(**(GREEDY | {"messages": messages}))

    chat = [{"role": "system", "content": f"You teach painting, {note} beside. " * 8}, *USER]
    first = ask(chat)
    assert first.usage is not None
    chat.append({"role": "assistant", "content": first.choices[0].message.content})
    if note == "a title":
        ask([{"role": "user", "content": "Write a title of three words for a chat about rainbows."}])
    if note == "a developer's note":
        chat.append({"role": "developer", "content": "There are 1000 tokens left."})
    second = ask([*chat, {"role": "user", "content": "Why?"}])
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert (second.usage.prompt_tokens_details.cached_tokens or 0) >= 0.9 * first.usage.prompt_tokens


def test_usage_adds_up_to_what_the_cluster_counts(http_cluster: HttpCluster, sdk: openai.OpenAI) -> None:
    before = http_cluster.status()["engine"]
    usages = [sdk.chat.completions.create(**(GREEDY | {"max_tokens": 2})).usage for _ in range(3)]
    after = http_cluster.status()["engine"]
    assert sum(one.prompt_tokens for one in usages if one) == after["prompt_tokens"] - before["prompt_tokens"]
    cached = [one.prompt_tokens_details.cached_tokens or 0 for one in usages if one and one.prompt_tokens_details]
    assert sum(cached) == after["reused_tokens"] - before["reused_tokens"]
    assert cached[-1] > 0


def test_answers_and_errors_name_their_requests(sdk: openai.OpenAI) -> None:
    raw = sdk.chat.completions.with_raw_response.create(**(GREEDY | {"max_tokens": 1}))
    assert raw.headers["x-request-id"]
    assert raw.parse()._request_id == raw.headers["x-request-id"]
    chosen = sdk.chat.completions.with_raw_response.create(
        **(GREEDY | {"max_tokens": 1}), extra_headers={"x-request-id": "mine-1"}
    )
    assert chosen.headers["x-request-id"] == "mine-1"
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.chat.completions.create(**GREEDY, stop=["x" * 2000])
    assert refused.value.request_id


def test_the_asynchronous_sdk_reads_the_same_answer(http_cluster: HttpCluster, sdk: openai.OpenAI) -> None:
    async def streamed() -> list[str]:
        url = f"{http_cluster.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0, timeout=PATIENCE_S) as client:

            async def one() -> str:
                chunks = await client.chat.completions.create(**GREEDY, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

            return await asyncio.gather(*(one() for _ in range(4)))

    assert asyncio.run(streamed()) == [text(sdk)] * 4


def test_a_history_with_two_calls_at_once_is_read(sdk: openai.OpenAI) -> None:
    calls = [
        {
            "id": f"call_{city}",
            "type": "function",
            "function": {"name": "get_weather", "arguments": f'{{"city": "{city}"}}'},
        }
        for city in ("Bern", "Basel")
    ]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "rain"} for call in calls]
    messages: Any = [*USER, {"role": "assistant", "content": None, "tool_calls": calls}, *results]
    answer = sdk.chat.completions.create(**(GREEDY | {"messages": messages}), tools=TOOLS)
    assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")


def test_every_name_of_the_model_is_answered(sdk: openai.OpenAI) -> None:
    (model,) = sdk.models.list().data
    assert model.model_extra is not None
    for name in (*model.model_extra["aliases"], f"{MODEL}:latest", f"{MODEL}:LATEST".upper()):
        answer = sdk.chat.completions.create(**(GREEDY | {"model": name, "max_tokens": 1}))
        assert answer.model == name
        assert sdk.models.retrieve(name).id == name


def test_a_cluster_that_cannot_answer_yet_says_so_and_still_tells_its_model(tmp_path: Path) -> None:
    with serving_http(tmp_path, "--no-stage", ready=False) as cluster:
        (model,) = cluster.get("/v1/models").json()["data"]
        assert (model["id"], model["status"]) == (MODEL, {"value": "loading"})
        refused = cluster.post(CHAT, messages=USER, stream=True)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["type"] == "model_loading"
    assert set(refused.json()["loading"]) == {"model", "state", "node", "progress", "eta_seconds"}


def test_a_reader_that_goes_away_frees_the_stages(http_cluster: HttpCluster, sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.create(**(GREEDY | {"max_tokens": 1000}), stream=True) as stream:
        next(iter(stream))
    http_cluster.wait_until_idle()
    endless = {"max_tokens": 1000, "extra_body": {"ignore_eos": True}}
    with pytest.raises(openai.APITimeoutError):
        sdk.with_options(timeout=0.5).chat.completions.create(**(GREEDY | endless))
    http_cluster.wait_until_idle()
    assert text(sdk)


def test_a_token_that_the_model_does_not_have_is_told_by_the_field_that_names_it(http_cluster: HttpCluster) -> None:
    response = http_cluster.post(CHAT, messages=USER, logit_bias={"999999": 1})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "logit_bias"


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        (CHAT, {"messages": USER, "model": "gpt-5"}, 404, "model_not_found"),
        (CHAT, {"messages": []}, 400, None),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "unsupported_content"),
        (CHAT, {"messages": USER, "temperature": 101}, 400, None),
        (CHAT, {"messages": USER, "logit_bias": {"999999": 1}}, 400, None),
        (CHAT, {"messages": USER, "response_format": {"type": "json_schema", "schema": {"type": "x"}}}, 400, None),
        ("/v1/completions", {"prompt": [999_999]}, 400, None),
        ("/v1/completions", {"prompt": []}, 400, None),
        ("/v1/embeddings", {"input": "x"}, 501, "not_implemented"),
        ("/detokenize", {"tokens": [999_999]}, 400, None),
        ("/v1/nothing", {}, 404, "not_found"),
        ("/v1/models", {}, 405, "method_not_allowed"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_told_in_openais_form(
    http_cluster: HttpCluster, path: str, body: dict[str, Any], status: int, code: str | None
) -> None:
    for stream in (False, True):
        response = http_cluster.post(path, **body, stream=stream)
        assert response.status_code == status, response.text
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == code
        assert error["message"]
        assert response.headers["x-request-id"]


def test_streams_pass_every_proxy(http_cluster: HttpCluster) -> None:
    body = GREEDY | {"stream": True}
    with httpx.stream("POST", http_cluster.url + CHAT, json=body, timeout=PATIENCE_S) as response:
        lines = list(response.iter_lines())
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache, no-transform"
    assert response.headers["x-accel-buffering"] == "no"
    assert "content-encoding" not in response.headers
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all(line == "" or line.startswith((":", "data: ")) for line in lines)
