"""Paths and methods of no route, in the form of the API that the path belongs to."""

from __future__ import annotations

import asyncio

import pytest

from edgepp.http_api.app import make_app
from edgepp.http_api.http_options import HttpOptions, Limits
from tests.builders.asgi import Answered, call, scope
from tests.builders.scripted_service import ScriptedService, answer


def ask(method: str, path: str) -> Answered:
    app = make_app(ScriptedService([answer("x")]), HttpOptions(), Limits(), key_required=False)
    found = asyncio.run(call(app, {**scope(method, path), "query_string": b""}))
    assert found is not None
    return found


@pytest.mark.parametrize("path", ["/v1/nowhere", "/nowhere", "/v1", "/v1/chat", "/favicon.ico", "/v1/models/a/b/c"])
def test_an_unknown_path_gets_404_in_openais_form(path: str) -> None:
    found = ask("GET", path)
    assert found.status == 404
    assert {"message", "type", "param", "code"} <= set(found.json["error"])


def test_an_unknown_path_gets_404_in_the_form_of_its_api() -> None:
    assert isinstance(ask("GET", "/api/nowhere").json["error"], str)
    found = ask("GET", "/v1/messages/batches").json
    assert (found["type"], found["error"]["type"]) == ("error", "not_found_error")
    assert found["request_id"]


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/chat/completions", "/v1/messages", "/api/chat", "/v1/models"]
)
def test_a_wrong_method_gets_405_and_the_right_ones(path: str) -> None:
    found = ask("PATCH", path)
    assert found.status == 405
    assert ({"GET", "POST"} & set(found.headers["allow"].split(", "))) != set()
    assert found.json["error"]


def test_options_tell_the_methods() -> None:
    found = ask("OPTIONS", "/v1/models")
    assert (found.status, found.headers["allow"]) == (204, "GET, HEAD, OPTIONS")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models",
        "/models",
        "//v1//models/",
        "/v1/v1/models",
        "/api/v1/models",
        "/openai/models",
        "/ollama/v1/models",
    ],
)
def test_slashes_and_bases_of_other_servers_lead_to_the_same_route(path: str) -> None:
    assert ask("GET", path).json["object"] == "list"


@pytest.mark.parametrize("path", ["/v1/health", "/v1/metrics", "/v1/openapi.json"])
def test_other_routes_are_found_below_v1_too(path: str) -> None:
    assert ask("GET", path).body == ask("GET", path.removeprefix("/v1")).body
    assert ask("POST", "/v1/tokenize").status != 404


def test_an_error_below_a_wrong_base_has_the_form_of_the_api_that_is_meant() -> None:
    assert "/api/nothing" in ask("POST", "/ollama/api/nothing").json["error"]
    assert ask("GET", "/api/v1/nothing").json["error"]["code"] == "not_found"
    assert ask("GET", "/api/v1/chat/completions").json["error"]["code"] == "method_not_allowed"
    assert ask("GET", "/anthropic/v1/messages").json["type"] == "error"


def test_a_path_is_repeated_in_part_and_without_control_characters() -> None:
    found = ask("GET", "/\x1b]0;x\x07" + "x" * 10_000)
    assert found.status == 404
    assert len(found.body) < 1000
    assert "\x1b" not in found.json["error"]["message"]
