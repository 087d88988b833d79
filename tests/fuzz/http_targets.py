"""Bodies of HTTP requests, from JSON to the response of the scripted service."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from random import Random
from typing import Any

import msgspec
from msgspec import inspect
from starlette.types import ASGIApp

from edgepp.http_api.access.json_shape import exceeds
from edgepp.http_api.app import ROUTE_LISTS, make_app
from edgepp.http_api.body_decoding import decoded
from edgepp.http_api.failures import RequestError
from edgepp.http_api.http_options import HttpOptions, Limits
from edgepp.http_api.operation import Operation
from tests.builders.asgi import call, scope
from tests.builders.scripted_service import AnyName, answer
from tests.ceiling import ceiling
from tests.fuzz.mutation import JUNK, mutated_json
from tests.fuzz.target import Target, check_sentence

_SERVICE = AnyName([answer("a", "b")])
_ROUTES = [route for routes in ROUTE_LISTS for route in routes(_SERVICE)]
_OPERATIONS = [route for route in _ROUTES if isinstance(route, Operation) and route.body is not None]
_LOOP = asyncio.new_event_loop()
_MAX_SENTENCE = 1000


@cache
def _app() -> ASGIApp:
    return make_app(_SERVICE, HttpOptions(), Limits(), key_required=False)


def check_body(raw: bytes) -> None:
    """A body is refused with its place, or read as a value that encodes to an equal one; the server never fails.

    The first byte chooses the operation.
    """
    operation, body = _OPERATIONS[(raw[0] if raw else 0) % len(_OPERATIONS)], raw[1:]
    with ceiling():
        try:
            value = decoded(body, operation.body)
        except RequestError as error:
            check_sentence(error)
        else:
            assert msgspec.json.decode(msgspec.json.encode(value), type=operation.body) == value
        _SERVICE.played.clear()
        asked = scope(operation.method, operation.path, [("Content-Type", "application/json")])
        response = _LOOP.run_until_complete(call(_app(), asked, body, stays=True))
    assert response is not None
    assert response.status < 500 or response.status == 501, response.body
    if response.status >= 400:
        assert "error" in response.json
        assert len(response.body) < _MAX_SENTENCE + 2 * len(body)


def _examples(kind: inspect.Type, depth: int = 0) -> Iterator[Any]:
    """A few values of a type."""
    match kind:
        case inspect.Metadata():
            yield from _examples(kind.type, depth)
        case inspect.UnionType():
            for one in kind.types:
                yield from _examples(one, depth)
        case inspect.StructType() if depth < 4:
            yield from _structs(kind, depth + 1)
        case inspect.ListType():
            yield list(_examples(kind.item_type, depth + 1))[:12]
        case inspect.DictType():
            yield {"a": next(_examples(kind.value_type, depth + 1), None)}
        case inspect.LiteralType():
            yield from kind.values
        case inspect.IntType() | inspect.FloatType():
            yield kind.ge if kind.ge is not None else 1
        case _:
            yield from _PLAIN.get(type(kind), ())


_PLAIN: Mapping[type, Sequence[Any]] = {
    inspect.StrType: ("a",),
    inspect.BoolType: (True, False),
    inspect.AnyType: ("a", [{"type": "text", "text": "a"}], {"type": "object"}),
}


def _structs(kind: inspect.StructType, depth: int) -> Iterator[Any]:
    """Objects of a struct: with the required fields, with all, and with each field alone."""
    fields = {field.encode_name: list(_examples(field.type, depth)) for field in kind.fields}
    required = {field.encode_name: fields[field.encode_name][0] for field in kind.fields if field.required}
    yield required
    yield {name: values[0] for name, values in fields.items() if values}
    for name, values in fields.items():
        yield from ({**required, name: value} for value in values)


_CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
_TOLD: tuple[dict[str, Any], ...] = (
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}]},
    {"role": "assistant", "content": None, "tool_calls": [_CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "x"},
    {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "f", "input": {}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "x"}]},
    {"type": "function_call", "call_id": "c2", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c2", "output": "x"},
)
_TOOLS: tuple[dict[str, Any], ...] = (
    {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}},
    {"type": "function", "name": "f", "parameters": {"type": "object"}},
    {"name": "f", "description": "d", "input_schema": {"type": "object"}},
)
_FORMATS: tuple[dict[str, Any], ...] = (
    {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}},
    {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}}},
    {"format": {"type": "object"}, "options": {"temperature": 0.5, "num_predict": 3, "stop": ["x"]}},
    {"stream": True, "n": 2, "logprobs": True, "top_logprobs": 3, "seed": 7, "stop": ["a", "b"]},
)


def _bodies() -> Iterator[bytes]:
    for number, operation in enumerate(_OPERATIONS):
        head = bytes((number,))
        for value in _examples(inspect.type_info(operation.body)):
            yield head + json.dumps(value).encode()
        whole = {"model": "m", "max_tokens": 5, "messages": _TOLD, "input": _TOLD, "tools": _TOOLS[number % 3 :][:1]}
        for added in _FORMATS:
            yield head + json.dumps({**whole, **added}).encode()
        for message in _TOLD:
            yield head + json.dumps({**whole, "messages": [message], "input": [message]}).encode()


def _mutated(raw: bytes, draw: Random) -> bytes:
    head = bytes((draw.randrange(256),)) if draw.random() < 0.1 else raw[:1]
    return head + (mutated_json(raw[1:], draw, (*JUNK, *_TOLD, *_TOOLS)) or raw[1:])


def check_shape(raw: bytes) -> None:
    """The bound of levels and values never refuses JSON that Python's decoder finds within it, nor lets more pass."""
    levels, values = 6, 40
    with ceiling():
        refused = exceeds(raw, levels, values)
        try:
            value = json.loads(raw)
        except (ValueError, RecursionError):
            return
    depth, commas = _measured(value)
    if refused is None:
        assert depth <= levels
    elif depth <= levels:
        assert commas > values // 8 or raw.count(b'"') > values, refused


def _measured(value: Any) -> tuple[int, int]:
    """Levels and values of decoded JSON."""
    if not isinstance(value, list | dict):
        return 0, 1
    inner = [_measured(one) for one in (value.values() if isinstance(value, dict) else value)]
    return 1 + max((depth for depth, _ in inner), default=0), 1 + sum(count for _, count in inner)


def _shapes() -> Iterator[bytes]:
    yield from (b"[]", b'{"a": [1, {"b": "[[[\\\\""}]}', b"[" * 6 + b"]" * 6, b"[" + b"1," * 39 + b"1]", b'"' * 200)


TARGETS = (
    Target("http-bodies", check_body, _bodies, _mutated),
    Target("json-shape", check_shape, _shapes),
)
