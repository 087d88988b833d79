"""The cluster over HTTP: what clients see of it, the feed, the planner's answers, and who may change it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.types import Message

from edgepp.http_api.app import make_app
from edgepp.http_api.cluster_api import feed
from edgepp.http_api.cluster_api.routes import qr_svg
from edgepp.http_api.cluster_api.view import changed, cluster_view
from edgepp.http_api.http_options import HttpOptions, Limits
from tests.builders.asgi import Answered, Headers, call, scope
from tests.builders.cluster_state import STATUS
from tests.builders.scripted_service import ScriptedService
from tests.waiting import PATIENCE_S

JSON = ("content-type", "application/json")


def ask(
    method: str, path: str, body: object = None, headers: Headers = (), client: str = "127.0.0.1", **options: Any
) -> tuple[Answered, ScriptedService]:
    service = ScriptedService([], state=STATUS)
    app = make_app(service, HttpOptions(**options), Limits(), key_required=False)
    asked = scope(method, path, [*headers, *([JSON] if body is not None else [])], client)
    pieces = () if body is None else (json.dumps(body).encode(),)
    found = asyncio.run(call(app, {**asked, "query_string": b""}, *pieces))
    assert found is not None
    return found, service


def test_the_view_has_links_with_rate_and_latency_and_neither_pids_nor_the_cluster_id() -> None:
    found, _ = ask("GET", "/v1/cluster")
    told = found.json
    assert [(one["from"], one["to"], one["latency_s"]) for one in told["links"]] == [
        ("aa", "aa", 0.0001),
        ("aa", "bb", 0.0003),
        ("bb", "aa", 0.0002),
    ]
    assert (told["links"][1]["rate"], told["links"][1]["traffic"]) == (1.2e8, 51000.0)
    assert b"4711" not in found.body
    assert "cluster" not in told
    assert told["nodes"][0]["memory_free_bytes"] % (64 << 20) == 0


def test_who_may_not_administer_sees_no_addresses_and_no_events() -> None:
    told = ask("GET", "/v1/cluster")[0].json
    assert told["administers"]
    assert (told["nodes"][0]["address"], len(told["events"])) == ("192.168.1.4", 1)
    for found in (
        ask("GET", "/v1/cluster", client="192.168.1.9")[0],
        ask("GET", "/v1/cluster", headers=[("x-forwarded-for", "198.51.100.1")])[0],
        ask("GET", "/v1/cluster", require_key=True)[0],
    ):
        assert not found.json["administers"]
        assert found.json["events"] == []
        assert b"192.168.1" not in found.body


def test_only_what_differs_is_a_change() -> None:
    before = cluster_view(STATUS, administers=True)
    after = cluster_view({**STATUS, "rates": {"tokens_per_s": 13.0}, "uptime_s": 5.0}, administers=True)
    assert changed(before, after) == {"rates": {"tokens_per_s": 13.0}}
    assert changed(before, cluster_view(STATUS, administers=True)) == {}


def test_a_cluster_without_stages_is_a_view_too() -> None:
    assert cluster_view({"model": "m", "nodes": [], "stages": []}, administers=False)["links"] == []


async def events(service: ScriptedService, act: Any, wanted: int) -> list[tuple[str, Any]]:
    """The first events of the feed; ``act`` is called after the first one."""
    app = make_app(service, HttpOptions(), Limits(), key_required=False)
    found: list[tuple[str, Any]] = []
    enough = asyncio.Event()

    body: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        if body:
            return body.pop()
        await enough.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        for text in message.get("body", b"").decode().split("\n\n"):
            lines = dict(line.split(": ", 1) for line in text.splitlines() if not line.startswith(":"))
            if "data" in lines:
                found.append((lines["event"], json.loads(lines["data"])))
                act(len(found))
        if len(found) >= wanted:
            enough.set()

    await asyncio.wait_for(app({**scope("GET", "/v1/cluster/events"), "query_string": b""}, receive, send), PATIENCE_S)
    return found


def test_the_feed_begins_with_all_and_goes_on_with_changes_until_the_client_goes() -> None:
    service = ScriptedService([], state=STATUS)

    def act(number: int) -> None:
        service.state = {**STATUS, "rates": {"tokens_per_s": 12.0 + number}}

    told = asyncio.run(events(service, act, 2))[:2]  # a third may come before the server sees that the client is gone
    assert [kind for kind, _ in told] == ["snapshot", "change"]
    assert told[0][1]["nodes"][1]["name"] == "mini"
    assert told[1][1] == {"rates": {"tokens_per_s": 13.0}}


def test_streams_are_counted_given_back_and_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "STREAM_S", 0.0)
    monkeypatch.setattr(feed, "MAX_STREAMS_OF_OWNER", 1)
    service = ScriptedService([], state=STATUS)
    app = make_app(service, HttpOptions(), Limits(), key_required=False)
    asked = {**scope("GET", "/v1/cluster/events"), "query_string": b""}

    async def ask_twice() -> list[int]:
        found = [await call(app, dict(asked), stays=True) for _ in range(2)]
        return [one.status for one in found if one is not None]

    assert asyncio.run(ask_twice()) == [200, 200]
    monkeypatch.setattr(feed, "MAX_STREAMS", 0)
    refused, _ = ask("GET", "/v1/cluster/events")
    assert (refused.status, refused.headers["retry-after"]) == (429, "10")


def test_the_planner_answers_for_other_models_and_machines() -> None:
    now = ask("POST", "/v1/cluster/plan", {"model": "llama-3.1-8b-4bit"})[0].json
    then, _ = ask(
        "POST", "/v1/cluster/plan", {"model": "llama-3.1-8b-4bit", "machines": [{"hw": "m4", "mem": "16GB"}] * 2}
    )
    assert now["fits"]
    assert [one["name"] for one in then.json["nodes"]] == ["studio", "mini", "m4-1", "m4-2"]
    assert then.json["decode"][0]["tokens_per_s"] > 0
    alone = ask("POST", "/v1/cluster/plan", {"without": ["bb"]})[0].json
    assert [one["name"] for one in alone["nodes"]] == ["studio"]
    large = ask("POST", "/v1/cluster/plan", {"model": "llama-3.3-70b-4bit"})[0].json
    assert not large["fits"]
    assert "does not fit" in large["reason"]


@pytest.mark.parametrize(
    "body",
    [
        {"model": "/etc/passwd"},
        {"model": "../x"},
        {"machines": [{"hw": "abacus"}]},
        {"machines": [{"name": "x"}]},
        {"machines": [{"mem": "16GB"}] * 9},
        {"machines": [{"mem": "-1GB"}]},
        {"link": "fast", "machines": [{"mem": "16GB"}]},
        {"without": ["aa"]},
        {"context": 0},
        {"unknown": 1},
    ],
)
def test_a_wrong_question_is_refused_in_a_sentence(body: dict[str, Any]) -> None:
    found, _ = ask("POST", "/v1/cluster/plan", body)
    assert found.status == 400
    assert found.json["error"]["message"]


def test_models_and_hardware_can_be_chosen_by_name() -> None:
    told = ask("GET", "/v1/cluster/choices")[0].json
    assert "smollm2-135m" in [one["name"] for one in told["models"]]
    assert "m4" in [one["name"] for one in told["hardware"]]
    assert not any(one["name"].startswith("tpu") for one in told["hardware"])


def test_an_invitation_has_a_code_a_command_and_a_qr_code() -> None:
    told = ask("POST", "/v1/cluster/invite")[0].json
    assert (told["command"], told["expires_in_s"]) == ("edgepp join 7-tango-lemon", 600.0)
    assert told["command_without_multicast"].endswith("--peer 192.168.1.4:5700")
    assert told["qr_svg"].startswith("<svg")
    assert "script" not in told["qr_svg"]
    assert qr_svg("a") != qr_svg("b")


def test_a_drain_reaches_the_cluster_and_is_refused_for_a_node_that_there_is_not() -> None:
    found, service = ask("POST", "/v1/cluster/drain", {"node": "mini"})
    assert (found.json["layers"], service.drained) == ([[0, 15]], [("mini", False)])
    assert ask("POST", "/v1/cluster/drain", {"node": "mini", "undo": True})[1].drained == [("mini", True)]
    assert ask("POST", "/v1/cluster/drain", {"node": "none"})[0].status == 400
    assert ask("POST", "/v1/cluster/drain", {})[0].status == 400


CHANGES = (
    ("/v1/cluster/invite", None),
    ("/cluster/invite", None),
    ("/v1/cluster/drain", {"node": "mini"}),
    ("/v1/models/load", {"model": "other"}),
    ("/models/load", {"model": "other"}),
)


@pytest.mark.parametrize(("path", "body"), CHANGES)
def test_a_change_is_refused_to_all_but_this_machine_and_keys_that_may(path: str, body: object) -> None:
    for found, service in (
        ask("POST", path, body, client="192.168.1.9"),
        ask("POST", path, body, [("origin", "http://localhost:3000")]),
        ask("POST", path, body, [("x-forwarded-for", "198.51.100.1")]),
        ask("POST", path, body, require_key=True),
    ):
        assert found.status == 403
        assert "administer" in found.json["error"]["message"]
        assert service.drained == []
        assert service.model.name == "smollm2-135m"
    assert ask("POST", path, body)[0].status == 200
