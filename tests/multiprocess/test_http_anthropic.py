"""Anthropic's API on two stages with real weights, asked by Anthropic's SDK."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic.types import Message, RawMessageStreamEvent

from tests.builders.sdk_types import strictly
from tests.multiprocess.http_cluster import MODEL, HttpCluster
from tests.waiting import PATIENCE_S

GREEDY: dict[str, Any] = {"extra_body": {"temperature": 0}}
QUESTION: Any = {"role": "user", "content": "Name the four seasons."}
READ: Any = {
    "name": "read_file",
    "description": "Read a file.",
    "input_schema": {
        "type": "object",
        "properties": {"path": {"type": "string", "enum": ["a.txt", "b.txt"]}},
        "required": ["path"],
        "additionalProperties": False,
    },
    "strict": True,
}


@pytest.fixture
def client(http_cluster: HttpCluster) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=http_cluster.url, api_key="any", max_retries=0, timeout=PATIENCE_S) as made:
        yield made


def ask(client: anthropic.Anthropic, **fields: Any) -> Message:
    fields = {"model": MODEL, "max_tokens": 24, "messages": [QUESTION], **GREEDY, **fields}
    message: Message = client.messages.create(**fields)
    return message


def text_of(message: Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_a_streamed_answer_is_the_one_that_is_not_streamed(client: anthropic.Anthropic) -> None:
    whole = ask(client)
    with client.messages.stream(model=MODEL, max_tokens=24, messages=[QUESTION], **GREEDY) as stream:
        events = list(stream)
        accumulated = stream.get_final_message()
    assert accumulated.to_dict()["content"] == whole.to_dict()["content"]
    assert (accumulated.stop_reason, accumulated.usage) == (whole.stop_reason, whole.usage)
    assert text_of(whole)
    raw = [event for event in events if event.type.startswith(("message_", "content_block_"))]
    assert (raw[0].type, raw[-1].type) == ("message_start", "message_stop")


def test_every_event_of_the_wire_is_one_of_the_sdks_types(client: anthropic.Anthropic) -> None:
    for event in client.messages.create(model=MODEL, max_tokens=8, messages=[QUESTION], stream=True, **GREEDY):
        strictly(RawMessageStreamEvent, event.to_dict(mode="python"))


def test_the_count_is_that_of_the_answers_usage(client: anthropic.Anthropic) -> None:
    shapes: list[dict[str, Any]] = [
        {},
        {"system": "Be brief."},
        {"system": [{"type": "text", "text": "x-anthropic-billing-header: 1"}], "tools": [READ]},
        {"tools": [READ], "tool_choice": {"type": "none"}},
        {"messages": [QUESTION, {"role": "assistant", "content": "The four"}]},
    ]
    for shape in shapes:
        counted = client.messages.count_tokens(**{"model": MODEL, "messages": [QUESTION], **shape})
        assert ask(client, max_tokens=1, **shape).usage.input_tokens == counted.input_tokens, shape


def test_a_header_that_changes_costs_nothing(client: anthropic.Anthropic) -> None:
    def system(build: int) -> list[Any]:
        header = {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.1.36.{build};"}
        rules = " ".join(f"Rule {number}: keep to rule {number}." for number in range(40))
        return [header, {"type": "text", "text": rules, "cache_control": {"type": "ephemeral"}}]

    ask(client, system=system(1))
    usage = ask(client, system=system(2)).usage
    cached = usage.cache_read_input_tokens or 0
    assert cached >= 0.9 * (cached + usage.input_tokens)


def test_a_forced_call_names_the_tool_with_whole_arguments(client: anthropic.Anthropic) -> None:
    choice: Any = {"type": "tool", "name": "read_file", "disable_parallel_tool_use": True}
    message = ask(client, max_tokens=200, tools=[READ], tool_choice=choice)
    (call,) = (block for block in message.content if block.type == "tool_use")
    assert (message.stop_reason, call.name) == ("tool_use", "read_file")
    assert call.input in ({"path": "a.txt"}, {"path": "b.txt"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "spring, summer", "is_error": False}
    history = [QUESTION, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    assert text_of(ask(client, tools=[READ], messages=history))


def test_an_answer_cut_off_in_a_call_tells_of_the_length(client: anthropic.Anthropic) -> None:
    message = ask(client, max_tokens=3, tools=[READ], tool_choice={"type": "any"})
    assert message.stop_reason == "max_tokens"


def test_the_stop_sequence_is_named_and_not_shown(client: anthropic.Anthropic) -> None:
    whole = text_of(ask(client))
    word = whole.split()[3]
    message = ask(client, stop_sequences=["never said", word])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", word)
    assert text_of(message) == whole[: whole.index(word)]


def test_an_assistants_last_message_is_continued(client: anthropic.Anthropic) -> None:
    whole = text_of(ask(client))
    beginning = whole[: whole.index(" ", len(whole) // 2)]
    rest = text_of(ask(client, messages=[QUESTION, {"role": "assistant", "content": beginning + " "}]))
    assert (beginning + rest).startswith(whole)


def test_a_schema_holds_the_answer(client: anthropic.Anthropic) -> None:
    schema = {
        "type": "object",
        "properties": {"title": {"type": "string", "enum": ["Seasons", "Weather"]}},
        "required": ["title"],
        "additionalProperties": False,
    }
    message = ask(client, max_tokens=60, output_config={"format": {"type": "json_schema", "schema": schema}})
    assert json.loads(text_of(message))["title"] in ("Seasons", "Weather")


def test_a_prompt_that_is_too_long_is_told_with_both_numbers(client: anthropic.Anthropic) -> None:
    long: Any = {"role": "user", "content": "season " * 20_000}
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > \d+ maximum"):
        ask(client, messages=[long])


def test_a_request_that_fills_the_cache_says_nothing(client: anthropic.Anthropic) -> None:
    message = ask(client, max_tokens=0)
    assert (message.content, message.stop_reason, message.usage.output_tokens) == ([], "max_tokens", 0)


def test_errors_of_paths_that_apis_share_have_the_form_of_the_clients_api(client: anthropic.Anthropic) -> None:
    refusals = (
        lambda: client.models.retrieve("nothing"),
        lambda: client.beta.files.list(),
        lambda: client.post("/v1/complete", cast_to=object, body={"prompt": "x"}),
    )
    for refused in refusals:
        with pytest.raises(anthropic.NotFoundError) as caught:
            refused()
        assert caught.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
        assert caught.value.body["type"] == "error"  # type: ignore[index]


def test_the_answer_may_ask_for_more_than_fits(client: anthropic.Anthropic) -> None:
    message = ask(client, max_tokens=20_000, stop_sequences=[" "])
    assert message.stop_reason == "stop_sequence"
