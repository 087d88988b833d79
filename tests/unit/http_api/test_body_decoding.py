"""Bodies as values of a type, and the sentences about bodies that are none."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from edgepp.http_api.anthropic_api.message_body import MessagesBody
from edgepp.http_api.body_decoding import converted, decoded
from edgepp.http_api.failures import RequestError
from edgepp.http_api.ollama_api.chat import ChatRequest
from edgepp.http_api.openai_api.chat_request import ChatBody
from edgepp.http_api.openai_api.completions_request import CompletionBody
from edgepp.http_api.openai_api.response_body import ResponsesBody


class Message(msgspec.Struct):
    role: Literal["user", "assistant"]
    content: str | list[str | dict[str, Any]] | None = None


class Body(msgspec.Struct):
    messages: list[Message]
    choice: Literal["none", "auto"] | Message | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    limit: Annotated[int, Meta(ge=-1)] | None = None
    name: Annotated[str, Meta(min_length=1, max_length=3)] | None = None
    stream: bool | None = None
    bias: dict[str, Annotated[float, Meta(le=100)]] | None = None
    extra: dict[str, Any] | None = None


def refused(body: bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        decoded(body, Body)
    assert caught.value.kind == "invalid_request"
    return caught.value


@pytest.mark.parametrize(
    ("fields", "parameter", "sentence"),
    [
        ("", "messages", "messages is missing"),
        ('"messages": [{}]', "messages[0].role", "messages[0].role is missing"),
        ('"messages": null', "messages", "messages must be a list, not null"),
        ('"messages": {}', "messages", "messages must be a list, not an object"),
        ('"messages": [5]', "messages[0]", "messages[0] must be an object, not 5"),
        (
            '"messages": [{"role": "wizard"}]',
            "messages[0].role",
            'messages[0].role must be one of assistant, user, not "wizard"',
        ),
        ('"messages": [{"role": 5}]', "messages[0].role", "messages[0].role must be one of assistant, user, not 5"),
        (
            '"messages": [{"role": "user", "content": 5}]',
            "messages[0].content",
            "messages[0].content must be text or a list, not 5",
        ),
        (
            '"messages": [{"role": "user", "content": [[]]}]',
            "messages[0].content[0]",
            "messages[0].content[0] must be text or an object, not a list",
        ),
        ('"messages": [], "choice": "x"', "choice", 'choice must be one of auto, none or an object, not "x"'),
        (
            '"messages": [], "choice": {"role": " - at `$.x`"}',
            "choice.role",
            'choice.role must be one of assistant, user, not " - at `$.x`"',
        ),
        ('"messages": [], "temperature": "hot"', "temperature", 'temperature must be a number, not "hot"'),
        ('"messages": [], "temperature": true', "temperature", "temperature must be a number, not true"),
        ('"messages": [], "temperature": -0.5', "temperature", "temperature must be at least 0, not -0.5"),
        ('"messages": [], "temperature": 101', "temperature", "temperature must be at most 100, not 101"),
        ('"messages": [], "temperature": 1e999', "temperature", "temperature is a number too large to be read"),
        ('"messages": [], "limit": 1.5', "limit", "limit must be a whole number, not 1.5"),
        ('"messages": [], "limit": -2', "limit", "limit must be at least -1, not -2"),
        (f'"messages": [], "limit": {"9" * 5000}', "limit", "limit is a number too large to be read"),
        ('"messages": [], "name": ""', "name", 'name must have at least 1 character, not ""'),
        ('"messages": [], "name": "long"', "name", 'name must have at most 3 characters, not "long"'),
        ('"messages": [], "stream": 1', "stream", "stream must be true or false, not 1"),
        ('"messages": [], "bias": {"7": "x"}', "bias", "a value in bias must be a number"),
        ('"messages": [], "bias": {"7": 101}', "bias", "a value in bias must be at most 100"),
        (
            '"messages": [], "extra": {"a": [{"b": 1e999}]}',
            "extra",
            "a value in extra is a number too large to be read",
        ),
        (f'"messages": [], "stream": "{"x" * 90}"', "stream", f'stream must be true or false, not "{"x" * 39}…'),
    ],
)
def test_a_wrong_field_is_told_by_place_demand_and_value(fields: str, parameter: str, sentence: str) -> None:
    error = refused(f"{{{fields}}}".encode())
    assert (error.parameter, str(error)) == (parameter, sentence)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "the body is empty"),
        (b" \n", "the body is empty"),
        (b"[]", "the body must be an object, not a list"),
        (b"null", "the body must be an object, not null"),
        (b'{"messages"', "the body is not JSON: it ends too early"),
        (b"{messages: []}", "the body is not JSON: object keys must be strings (byte 1)"),
        (b'{"messages": [],}', "the body is not JSON: trailing comma in object (byte 16)"),
        (b'\xef\xbb\xbf{"messages": [],}', "the body is not JSON: trailing comma in object (byte 19)"),
        (b'{"x":' + b"[" * 100_000, "the body is nested too deeply"),
        (
            b'{"messages": [], "name": "\\ud800"}',
            "the body is not JSON: a text has half of a surrogate pair",
        ),
    ],
)
def test_a_body_that_is_no_object_is_told_in_a_sentence(body: bytes, sentence: str) -> None:
    error = refused(body)
    assert (error.parameter, str(error)) == (None, sentence)


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": [{"role": "user", "content": "\xff"}]}',
        b'{"messages": [{"role": "user", "content": "caf\xe9"}]}',
        b'{"messages": [], "name": "\xf0\x9f\x98\x80 \xc3("}',
    ],
)
def test_bytes_that_are_not_utf8_are_told_with_their_place_in_the_body(body: bytes) -> None:
    with pytest.raises(UnicodeDecodeError) as told_by_python:
        body.decode()
    start = told_by_python.value.start
    assert f"byte {start} is 0x{body[start]:02x}" in str(refused(body))
    assert start > 20


def test_a_byte_order_mark_is_no_part_of_the_body() -> None:
    body = b'{"messages": [{"role": "user", "content": "\xef\xbb\xbfx"}]}'
    assert decoded(b"\xef\xbb\xbf" + body, Body) == decoded(body, Body)
    assert decoded(body, Body).messages[0].content == "\ufeffx"


def test_a_value_inside_a_body_is_told_with_its_place_there() -> None:
    assert converted(["a", {"b": 1}], list[str | dict[str, Any]], "input[2].output") == ["a", {"b": 1}]
    with pytest.raises(RequestError, match=r"input\[2\]\.output\[1\] must be text or an object, not 5") as caught:
        converted(["a", 5], list[str | dict[str, Any]], "input[2].output")
    assert caught.value.parameter == "input[2].output[1]"
    with pytest.raises(RequestError, match=r"tools\[0\]\.role is missing"):
        converted([{}], list[Message], "tools")
    with pytest.raises(RequestError, match=r"tool\.role is missing"):
        converted({}, Message, "tool")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("kind", [ChatBody, CompletionBody, ResponsesBody, MessagesBody, ChatRequest])
@given(data=st.data())
def test_no_sentence_speaks_of_python(kind: type[msgspec.Struct], data: st.DataObject) -> None:
    required: dict[str, Any] = {"messages": [], "prompt": "x"} if kind is not ResponsesBody else {}
    name = data.draw(st.sampled_from(kind.__struct_encode_fields__))
    body = msgspec.json.encode(required | {name: data.draw(JSON)})
    error = None
    try:
        decoded(body, kind)
    except RequestError as caught:
        error = caught
    if error is not None:
        assert error.parameter is not None
        assert error.parameter.startswith(name)
        subject = f"(a value in )?{re.escape(error.parameter)}"
        what = "text|a (whole )?number|true or false|a list|an object|one of [a-z_, ]+"
        demand = f"must be (({what})( or )?)+|must be at (least|most) -?[0-9.]+"
        fault = f"is missing|is a number too large to be read|({demand})(, not .+)?"
        assert re.fullmatch(f"{subject} ({fault})", str(error), re.DOTALL)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (ChatBody, {"messages": [], "max_tokens": 40.0, "n": 2.0, "top_k": 1e1, "seed": -3.0, "top_logprobs": 0.0}),
        (CompletionBody, {"prompt": [[1.0, 2], [3.0]], "logprobs": 1.0, "best_of": 2.0}),
        (ResponsesBody, {"max_output_tokens": 1e300, "top_logprobs": 5.0}),
        (MessagesBody, {"messages": [], "max_tokens": 1024.0, "top_k": 5.0}),
        (ChatRequest, {"top_logprobs": 3.0, "options": {"num_predict": 40.0}}),
    ],
)
def test_a_whole_number_may_have_a_decimal_point(kind: type[Any], body: dict[str, Any]) -> None:
    value = decoded(msgspec.json.encode(body), kind)
    for name, written in body.items():
        assert getattr(value, name) == written
        assert not isinstance(getattr(value, name), float)
    if kind is ChatRequest:
        assert isinstance(value.options["num_predict"], float)  # which the options themselves read


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ('"limit": 1.5', "limit must be a whole number, not 1.5"),
        ('"limit": -2.0', "limit must be at least -1, not -2"),
        ('"limit": 1.0, "name": 2.0', "name must be text, not 2.0"),
        ('"limit": 1.0, "stream": 1.0', "stream must be true or false, not 1.0"),
        ('"limit": 1e999', "limit is a number too large to be read"),
    ],
)
def test_other_numbers_are_not_made_whole(fields: str, sentence: str) -> None:
    assert sentence in str(refused(b'{"messages": [], %s}' % fields.encode()))


def test_a_body_with_many_such_numbers_is_refused_soon() -> None:
    with pytest.raises(RequestError, match="too many"):
        decoded(msgspec.json.encode({"prompt": [1.0] * 100_000}), CompletionBody)
