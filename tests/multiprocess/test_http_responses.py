"""The Responses API on a two-stage cluster with real weights."""

from __future__ import annotations

import json
from typing import Any

import httpx

from tests.builders.codex_reader import codex_reads
from tests.multiprocess.http_cluster import HttpCluster
from tests.waiting import PATIENCE_S

FUNCTION = {
    "type": "function",
    "name": "weather",
    "description": "The weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Bern", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
CUSTOM = {"type": "custom", "name": "note", "description": "Writes a note."}
QUESTION = {"input": "What is the weather in Bern?", "temperature": 0, "max_output_tokens": 60}


def answered(cluster: HttpCluster, **body: Any) -> dict[str, Any]:
    response = cluster.post("/v1/responses", **{**QUESTION, **body})
    assert response.status_code == 200, response.text
    told: dict[str, Any] = response.json()
    return told


def test_the_stream_tells_the_answer_that_is_not_streamed(http_cluster: HttpCluster) -> None:
    answered(http_cluster)  # from now on both have the same prefix in the cache
    whole = answered(http_cluster)
    with httpx.stream(
        "POST", f"{http_cluster.url}/v1/responses", json={**QUESTION, "stream": True}, timeout=PATIENCE_S
    ) as stream:
        turn = codex_reads(stream.read())
    assert turn.text == whole["output"][0]["content"][0]["text"]
    assert whole["status"] in ("completed", "incomplete")


def test_the_count_of_a_prompt_is_what_its_answer_used(http_cluster: HttpCluster) -> None:
    asked: dict[str, Any] = {"instructions": "Be brief.", "tools": [FUNCTION, CUSTOM]}
    counted = http_cluster.post("/v1/responses/input_tokens", **QUESTION, **asked).json()["input_tokens"]
    assert answered(http_cluster, **asked)["usage"]["input_tokens"] == counted


def test_a_demanded_call_is_held_to_its_schema(http_cluster: HttpCluster) -> None:
    response = answered(http_cluster, tools=[FUNCTION, CUSTOM], tool_choice={"type": "function", "name": "weather"})
    (call,) = [item for item in response["output"] if item["type"] == "function_call"]
    assert json.loads(call["arguments"])["city"] in ("Bern", "Oslo")
    items = [
        {"role": "user", "content": QUESTION["input"]},
        call,
        {"type": "function_call_output", "call_id": call["call_id"], "output": "rain"},
    ]
    after = answered(http_cluster, input=items, tools=[FUNCTION, CUSTOM], tool_choice="none")
    assert [item["type"] for item in after["output"]] == ["message"]


def test_a_custom_tool_is_called_with_a_text(http_cluster: HttpCluster) -> None:
    response = answered(http_cluster, tools=[CUSTOM], tool_choice={"type": "custom", "name": "note"})
    call = response["output"][-1]
    assert (call["type"], call["name"], type(call["input"])) == ("custom_tool_call", "note", str)


def test_an_answer_is_held_to_a_schema(http_cluster: HttpCluster) -> None:
    form = {"type": "json_schema", "name": "weather", "schema": FUNCTION["parameters"]}
    response = answered(http_cluster, text={"format": form})
    assert json.loads(response["output"][0]["content"][0]["text"])["city"] in ("Bern", "Oslo")


def test_an_answer_that_is_cut_is_incomplete(http_cluster: HttpCluster) -> None:
    response = answered(http_cluster, max_output_tokens=2)
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["usage"]["output_tokens"] == 2


def test_a_prompt_that_is_too_long_is_refused_as_codex_reads_it(http_cluster: HttpCluster) -> None:
    long = "many words " * 5_000
    response = http_cluster.post("/v1/responses", input=long)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")
    response = http_cluster.post("/v1/responses", input=long, stream=True)
    assert (response.status_code, codex_reads(response.content).error) == (200, "context_length_exceeded")
