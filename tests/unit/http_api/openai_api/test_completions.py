"""Legacy completions: prompts in every form, echo, log-probabilities, and streams."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgepp.http_api.failures import RequestError
from edgepp.http_api.generation import (
    ChoiceEnded,
    Ended,
    PromptLogprobs,
    Started,
    TextDelta,
    TokenLogprob,
    Usage,
)
from tests.builders.scripted_service import ScriptedService, answer
from tests.unit.http_api.openai_api.asgi import post, refused, request

PATH = "/v1/completions"


@pytest.fixture
def service() -> ScriptedService:
    return ScriptedService([answer(" upon", " a time")])


def stream(service: ScriptedService, **body: Any) -> list[dict[str, Any]]:
    text = request(service, "POST", PATH, body | {"stream": True}).text
    frames = [frame for frame in text.split("\n\n") if not frame.startswith(":")]
    assert frames[-2:] == ["data: [DONE]", ""]
    return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("Once", ["Once"]),
        (["Once"], ["Once"]),
        (["Once", "Twice"], ["Once", "Twice"]),
        ([1, 2, 3], [(1, 2, 3)]),
        ([[1, 2], [3]], [(1, 2), (3,)]),
        ("", [""]),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_prompts_are_texts_or_token_ids(
    service: ScriptedService, prompt: Any, prompts: list[Any], streamed: bool
) -> None:
    request(service, "POST", PATH, {"prompt": prompt, "stream": streamed})
    assert [played.request.prompt for played in service.played] == prompts


@pytest.mark.parametrize("prompt", [[], [1, "a"], ["a", [1]] * 33, [[1], 2], None, 5, {"a": 1}, [-1], [[True]]])
def test_wrong_prompts_are_refused(service: ScriptedService, prompt: Any) -> None:
    error = refused(service, PATH, prompt=prompt)
    assert error["status"] == 400
    assert error["param"].startswith("prompt")
    assert not service.played


def test_several_prompts_have_numbered_choices_and_one_usage(service: ScriptedService) -> None:
    told = post(service, PATH, prompt=["Once", "Twice"])
    assert [(choice["index"], choice["text"]) for choice in told["choices"]] == [
        (0, " upon a time"),
        (1, " upon a time"),
    ]
    assert (told["usage"]["prompt_tokens"], told["usage"]["completion_tokens"]) == (14, 4)
    chunks = stream(service, prompt=["Once", "Twice"], stream_options={"include_usage": True})
    assert chunks[-1]["usage"] == told["usage"]
    assert chunks[-1]["choices"] == []
    texts = ["", ""]
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        texts[choice["index"]] += choice["text"]
    assert texts == [" upon a time", " upon a time"]


def test_one_prompt_that_fails_fails_the_request() -> None:
    service = ScriptedService([answer("a"), [RequestError("overloaded", "too much")]])
    assert refused(service, PATH, prompt=["a", "b"])["message"] == "too much"


def test_echo_begins_with_the_prompt(service: ScriptedService) -> None:
    assert post(service, PATH, prompt="Once", echo=True)["choices"][0]["text"] == "Once upon a time"
    assert post(service, PATH, prompt=list(b"Once"), echo=True)["choices"][0]["text"] == "Once upon a time"
    chunks = stream(service, prompt="Once", echo=True)
    assert [choice["text"] for chunk in chunks for choice in chunk["choices"]] == ["Once", " upon", " a time", ""]


def test_no_token_is_generated_for_an_echo_alone(service: ScriptedService) -> None:
    told = post(service, PATH, prompt="Once", echo=True, max_tokens=0)
    assert (told["choices"][0]["text"], told["choices"][0]["finish_reason"]) == ("Once", "length")
    assert (told["usage"]["prompt_tokens"], told["usage"]["completion_tokens"]) == (4, 0)
    assert not service.played


@pytest.mark.parametrize(("max_tokens", "tokens"), [(None, 16), (5, 5), (-1, 2048), (9999, 2048), (10**30, 2048)])
def test_the_length_is_sixteen_unless_asked(service: ScriptedService, max_tokens: Any, tokens: int) -> None:
    post(service, PATH, prompt="Once", max_tokens=max_tokens)
    assert service.request.options.max_tokens == tokens


def test_logprobs_have_offsets_into_the_text() -> None:
    usage = Usage(prompt_tokens=1, completion_tokens=3)
    places = {" a": 0, "b": 2, " c": 3}
    tokens = [
        TokenLogprob(text, -0.5, ((text, -0.5), ("x", float("-inf"))), begin=place) for text, place in places.items()
    ]
    script = [
        Started(1),
        TextDelta(0, " ab", (tokens[0], tokens[1])),
        TextDelta(0, " c", (tokens[2],)),
        ChoiceEnded(0, "stop", usage=usage),
        Ended(usage),
    ]
    service = ScriptedService([script])
    told = post(service, PATH, prompt="Once", logprobs=1)["choices"][0]["logprobs"]
    assert service.request.options.sampling.logprobs == 1
    assert told == {
        "tokens": [" a", "b", " c"],
        "token_logprobs": [-0.5, -0.5, -0.5],
        "top_logprobs": [{" a": -0.5, "x": -9999.0}, {"b": -0.5, "x": -9999.0}, {" c": -0.5, "x": -9999.0}],
        "text_offset": [0, 2, 3],
    }
    chunks = stream(service, prompt="Once", logprobs=1)
    parts = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    assert [offset for part in parts for offset in part["text_offset"]] == [0, 2, 3]


def scored(*, first: str = "On") -> ScriptedService:
    """Answers ``Once`` with the log-probability of its second token, and one token more."""
    usage = Usage(prompt_tokens=2, completion_tokens=1)
    second = TokenLogprob("ce", -2.5, (("\ufffd", -0.25), ("\ufffd", -1.5)))
    script = [
        Started(2),
        PromptLogprobs(0, first, (second,)),
        TextDelta(0, " upon", (TokenLogprob(" upon", -0.5, ((" upon", -0.5),)),)),
        ChoiceEnded(0, "length", usage=usage),
        Ended(usage),
    ]
    return ScriptedService([script])


@pytest.mark.parametrize("streamed", [False, True])
def test_echo_with_logprobs_scores_the_prompt(streamed: bool) -> None:
    service = scored()
    if streamed:
        parts = [one for chunk in stream(service, prompt="Once", echo=True, logprobs=1) for one in chunk["choices"]]
        text = "".join(part["text"] for part in parts)
        given = [part["logprobs"] for part in parts if part["logprobs"]]
        told = {name: [value for part in given for value in part[name]] for name in given[0]}
    else:
        (choice,) = post(service, PATH, prompt="Once", echo=True, logprobs=1)["choices"]
        text, told = choice["text"], choice["logprobs"]
    assert service.request.options.prompt_logprobs == service.request.options.sampling.logprobs == 1
    assert text == "Once upon"
    assert told == {
        "tokens": ["On", "ce", " upon"],
        "token_logprobs": [None, -2.5, -0.5],
        "top_logprobs": [None, {"\ufffd": -0.25}, {" upon": -0.5}],
        "text_offset": [0, 2, 4],
    }


@pytest.mark.parametrize("streamed", [False, True])
def test_a_prompt_is_scored_without_an_answer(streamed: bool) -> None:
    service, asked = scored(), {"prompt": "Once", "echo": True, "logprobs": 0, "max_tokens": 0}
    if streamed:
        chunks = stream(service, **asked, stream_options={"include_usage": True})
        parts = [one for chunk in chunks for one in chunk["choices"]]
        assert [(part["text"], part["finish_reason"]) for part in parts] == [("Once", None), ("", "length")]
        told, usage = parts[0]["logprobs"], chunks[-1]["usage"]
    else:
        answered = post(service, PATH, **asked)
        (choice,) = answered["choices"]
        assert (choice["text"], choice["finish_reason"]) == ("Once", "length")
        told, usage = choice["logprobs"], answered["usage"]
    assert told["token_logprobs"] == [None, -2.5]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (2, 0)
    assert (service.request.options.max_tokens, service.request.options.prompt_logprobs) == (1, 0)


def test_a_token_that_the_tokenizer_adds_is_no_text_of_the_prompt() -> None:
    (choice,) = post(scored(first="<s>"), PATH, prompt="Once", echo=True, logprobs=1)["choices"]
    assert choice["logprobs"]["text_offset"] == [0, 0, 4]


@pytest.mark.parametrize("logprobs", [None, 1])
def test_of_the_answers_that_are_made_the_likeliest_per_token_are_told(logprobs: int | None) -> None:
    usage = Usage(prompt_tokens=4, completion_tokens=5)
    script = [
        Started(4),
        TextDelta(0, " long", tuple(TokenLogprob(text, -1.0) for text in (" ", "lo", "ng"))),
        TextDelta(2, " worst", (TokenLogprob(" worst", -3.0),)),
        TextDelta(1, " best", (TokenLogprob(" best", -0.5),)),
        *(ChoiceEnded(choice, "stop", usage=usage) for choice in range(3)),
        Ended(usage),
    ]
    service = ScriptedService([script])
    told = post(service, PATH, prompt=["Once", "Twice"], n=2, best_of=3, logprobs=logprobs)
    assert (service.request.num_choices, service.request.options.sampling.logprobs) == (3, logprobs or 0)
    choices = [(choice["index"], choice["text"]) for choice in told["choices"]]
    assert choices == [(0, " best"), (1, " long"), (2, " best"), (3, " long")]
    assert [choice["logprobs"] is None for choice in told["choices"]] == [logprobs is None] * 4
    assert told["usage"]["completion_tokens"] == 10


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        ({"suffix": "the end"}, "suffix"),
        ({"best_of": 3, "stream": True}, "best_of"),
        ({"best_of": 17}, "best_of"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"n": 99}, "n"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    service: ScriptedService, fields: dict[str, Any], parameter: str
) -> None:
    assert refused(service, PATH, prompt="Once", **fields)["param"] == parameter


@pytest.mark.parametrize(
    "fields", [{"suffix": ""}, {"suffix": None}, {"best_of": 1}, {"n": 2, "best_of": 2}, {"user": "x"}]
)
def test_what_changes_nothing_is_accepted(fields: dict[str, Any]) -> None:
    usage = Usage(1, 0, 1)
    script = [
        Started(1),
        TextDelta(0, "a"),
        TextDelta(1, "b"),
        ChoiceEnded(0, "stop"),
        ChoiceEnded(1, "stop"),
        Ended(usage),
    ]
    service = ScriptedService([script if fields.get("n") == 2 else answer("a")])
    assert post(service, PATH, prompt="Once", **fields)["choices"][0]["text"] == "a"
