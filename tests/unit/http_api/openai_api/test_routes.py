"""Paths, models, tokens and errors of OpenAI's API."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest

from edgepp.engine.request import GenerateOptions, SamplingOptions
from edgepp.errors import InternalError, StageLost, UsageError
from edgepp.http_api.failures import STATUS, RequestError
from edgepp.http_api.generator import request_error
from edgepp.http_api.openai_api.errors import error_body
from tests.builders.scripted_service import SERVED, ScriptedService, answer
from tests.unit.http_api.openai_api.asgi import post, refused, request

USER = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"


@pytest.fixture
def service() -> ScriptedService:
    return ScriptedService([answer("hello")])


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_every_path_is_there_with_and_without_v1(service: ScriptedService, prefix: str) -> None:
    assert request(service, "GET", f"{prefix}/models").json()["data"][0]["id"] == "smollm2-135m"
    assert request(service, "GET", f"{prefix}/models/smollm2-135m").status_code == 200
    assert post(service, f"{prefix}/chat/completions", messages=USER)["choices"][0]["message"]["content"] == "hello"
    assert post(service, f"{prefix}/completions", prompt="hi")["choices"][0]["text"] == "hello"
    assert request(service, "GET", f"{prefix}/nothing").json()["error"]["param"] is None
    assert request(service, "GET", f"{prefix}/chat/completions").status_code == 405


def test_a_whole_answer_has_these_fields(service: ScriptedService) -> None:
    told = post(service, CHAT, messages=USER, model="HuggingFaceTB/SmolLM2-135M-Instruct")
    assert told.pop("id").startswith("chatcmpl-")
    assert told.pop("created") > 1_700_000_000
    assert set(told.pop("timings")) >= {"prompt_n", "prompt_ms", "predicted_n", "predicted_ms", "predicted_per_second"}
    assert told.pop("usage")["prompt_tokens_details"]["cached_tokens"] == 0
    assert told == {
        "object": "chat.completion",
        "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "system_fingerprint": "fp_5af571cbf074",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
    }


def test_a_request_without_a_model_is_answered_by_the_one_that_runs(service: ScriptedService) -> None:
    assert post(service, CHAT, messages=USER)["model"] == "smollm2-135m"
    assert post(service, CHAT, messages=USER, model="")["model"] == "smollm2-135m"


def test_stream_options_of_an_answer_that_is_not_streamed_are_ignored(service: ScriptedService) -> None:
    assert post(service, CHAT, messages=USER, stream=False, stream_options={"include_usage": True})["usage"]


def test_a_model_tells_the_served_context_by_every_key() -> None:
    service = ScriptedService([answer("x")], model=replace(SERVED, context=1234, thinks=True))
    (model,) = request(service, "GET", "/v1/models").json()["data"]
    keys = ("max_model_len", "context_length", "max_context_length", "loaded_context_length", "context_window")
    assert {model[key] for key in keys} == {1234}
    assert model["meta"]["n_ctx"] == 1234
    assert model["meta"]["n_ctx_train"] == 8192
    assert model["capabilities"] == ["completion", "tools", "thinking"]
    assert model["status"] == {"value": "loaded"}
    assert (model["object"], model["root"], model["owned_by"]) == ("model", "smollm2-135m", "edgepp")


def test_a_model_is_found_by_a_name_with_slashes(service: ScriptedService) -> None:
    told = request(service, "GET", "/v1/models/HuggingFaceTB/SmolLM2-135M-Instruct").json()
    assert told["id"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    missing = request(service, "GET", "/v1/models/some/other")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


def test_lm_studios_clients_read_the_same_model(service: ScriptedService) -> None:
    (model,) = request(service, "GET", "/api/v0/models").json()["data"]
    assert (model["id"], model["state"], model["type"], model["arch"]) == ("smollm2-135m", "loaded", "llm", "llama")
    assert model["max_context_length"] == model["loaded_context_length"] == SERVED.context
    assert model["capabilities"] == ["tool_use"]
    assert request(service, "GET", "/api/v0/models/smollm2-135m:latest").json()["id"] == "smollm2-135m:latest"
    assert request(service, "GET", "/api/v0/models/other").status_code == 404


def test_tokens_of_texts_and_chats(service: ScriptedService) -> None:
    told = post(service, "/tokenize", prompt="hü")
    assert told == {"count": 3, "max_model_len": 2048, "tokens": [104, 195, 188], "token_strs": None}
    assert post(service, "/tokenize", prompt="hi", return_token_strs=True)["token_strs"] == ["h", "i"]
    chat = post(service, "/tokenize", messages=USER)
    assert post(service, "/detokenize", tokens=chat["tokens"])["prompt"] == "user: hi\n"
    tools = [{"type": "function", "function": {"name": "f"}}]
    counted = post(service, f"{CHAT}/input_tokens", messages=USER, tools=tools, max_tokens=3)
    assert counted["input_tokens"] == post(service, "/tokenize", messages=USER, tools=tools)["count"]
    assert counted["input_tokens"] > chat["count"]
    assert not service.played


def test_wrong_tokens_are_refused(service: ScriptedService) -> None:
    assert refused(service, "/detokenize", tokens=[999])["message"] == "the model has no token 999"
    assert refused(service, "/tokenize")["param"] == "prompt"
    assert refused(service, "/tokenize", prompt="x", messages=USER)["param"] == "prompt"
    assert refused(service, "/tokenize", messages=[])["param"] == "messages"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"5", b'{"messages": 1}', b'{"model": "\xff"}', b"[" * 100_000])
def test_a_body_that_is_no_request_is_refused_in_json(service: ScriptedService, body: bytes) -> None:
    for path in (CHAT, "/v1/completions", "/tokenize", "/detokenize"):
        response = request(service, "POST", path, content=body)
        assert response.status_code == 400
        assert response.json()["error"]["type"] == "invalid_request_error"


def test_the_wrong_field_is_named(service: ScriptedService) -> None:
    error = refused(service, CHAT, messages=[USER[0], {"role": "user", "content": [{"type": "text", "text": 5}]}])
    assert error["param"] == "messages[1].content[0].text"


def test_every_failure_has_a_status_a_type_and_the_four_keys() -> None:
    for kind in STATUS:
        error = RequestError(kind, "this", "do that", parameter="p")
        told = error_body(error)["error"]
        assert set(told) == {"message", "type", "param", "code"}
        assert told["message"] == "this (do that)"
        service = ScriptedService([[error]])
        assert refused(service, CHAT, messages=USER)["status"] == STATUS[kind]


def test_a_prompt_that_is_too_long_is_told_in_the_words_that_clients_look_for() -> None:
    error = RequestError("context_length_exceeded", "too long", "shorten it", prompt_tokens=3000, context=2048)
    told = refused(ScriptedService([[error]]), CHAT, messages=USER)
    assert (told["status"], told["code"]) == (400, "context_length_exceeded")
    assert told["message"].startswith("This model's maximum context length is 2048 tokens")
    assert "3000 tokens" in told["message"]


@pytest.mark.parametrize(
    ("error", "status"),
    [(StageLost("stage 1 on two died", "ask again"), 500), (InternalError("a fault"), 500)],
)
def test_errors_of_the_cluster_are_told_in_one_sentence(error: Exception, status: int) -> None:
    told = refused(ScriptedService([[error]]), CHAT, messages=USER)
    assert (told["status"], told["type"]) == (status, "server_error")
    assert str(error) in told["message"]


def test_options_out_of_range_are_the_clients_error(service: ScriptedService) -> None:
    told = refused(service, CHAT, messages=USER, stop=["x" * 2000])
    assert (told["status"], told["type"]) == (400, "invalid_request_error")
    assert "stop string" in told["message"]


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": "x" * 2000}, "stop"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"one": 1}}, "logit_bias"),
        ({"logit_bias": {str(token): 1 for token in range(2000)}}, "logit_bias"),
        ({"top_k": 1 << 40}, "top_k"),
        ({"temperature": -1}, "temperature"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "wizard"}]}, "messages[0].role"),
    ],
)
def test_the_option_that_is_wrong_is_named(service: ScriptedService, fields: dict[str, Any], parameter: str) -> None:
    assert refused(service, CHAT, **({"messages": USER} | fields))["param"] == parameter


def test_an_option_that_only_the_engine_can_check_is_named_too() -> None:
    with pytest.raises(UsageError) as caught:
        SamplingOptions(logit_bias=((5, 1.0),)).check_bias(5)
    error = request_error(caught.value)
    assert refused(ScriptedService([[error]]), CHAT, messages=USER)["param"] == "logit_bias"


def test_a_body_without_messages_names_them(service: ScriptedService) -> None:
    told = refused(service, CHAT)
    assert (told["status"], told["param"], told["message"]) == (400, "messages", "messages is missing")


def test_a_model_that_loads_tells_how_far_it_is() -> None:
    loading = {"state": "loading", "node": "mini", "progress": 0.4, "eta_seconds": 93.5}
    refusal = RequestError("loading", "the layers are being loaded", retry_after_s=60)
    service = ScriptedService([[refusal]], state={"state": "loading", "loading": loading, "stages": []})
    response = request(service, "POST", CHAT, {"messages": USER})
    assert (response.status_code, response.headers["retry-after"]) == (503, "60")
    assert response.json()["loading"] == {"model": "smollm2-135m", **loading}
    assert response.json()["error"]["type"] == "model_loading"


@pytest.mark.parametrize(("state", "progress"), [("loaded", 1.0), ("loading", 0.0)])
def test_a_cluster_that_tells_no_loading_is_as_its_model_is(
    state: Literal["loaded", "loading"], progress: float
) -> None:
    refusal = RequestError("loading", "the layers are being loaded", retry_after_s=2)
    service = ScriptedService([[refusal]], replace(SERVED, state=state), state={"loading": None})
    response = request(service, "POST", CHAT, {"messages": USER})
    told = {"model": "smollm2-135m", "state": state, "node": None, "progress": progress, "eta_seconds": 2}
    assert response.json()["loading"] == told


def test_finish_length_comes_before_tool_calls() -> None:
    service = ScriptedService([answer("cut", finish_reason="length")])
    tools: Any = [{"type": "function", "function": {"name": "f"}}]
    told = post(service, CHAT, messages=USER, tools=tools, max_tokens=3)
    assert told["choices"][0]["finish_reason"] == "length"
    assert service.request.options == GenerateOptions(3, sampling=service.request.options.sampling)
