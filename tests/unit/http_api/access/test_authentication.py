"""API keys: where they are taken from, who needs one, and the form of a refusal."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import pytest

from edgepp.http_api.access.authentication import Authentication
from edgepp.http_api.api_keys import KeyRing, add_key, revoke_key
from tests.builders.asgi import Answered, Echo, Headers, call, scope


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("EDGEPP_HOME", str(tmp_path))
    return add_key("laptop")


def behind_keys(app: Echo, *, required: bool = True, loopback_administers: bool = True) -> Authentication:
    return Authentication(app, KeyRing(), required=required, loopback_administers=loopback_administers)


def asked(
    headers: Headers = (), path: str = "/v1/models", *, required: bool = True, client: str = "192.168.1.9"
) -> tuple[Answered, str | None]:
    app = Echo()
    found = asyncio.run(call(behind_keys(app, required=required), scope("GET", path, headers, client)))
    assert found is not None
    return found, app.seen[0]["state"]["owner"] if app.seen else None


def ways(secret: str) -> list[Headers]:
    basic = base64.b64encode(f"anyone:{secret}".encode()).decode()
    return [
        [("Authorization", f"Bearer {secret}")],
        [("authorization", f"bearer  {secret} ")],
        [("X-API-Key", secret)],
        [("Authorization", f"Basic {basic}")],
        [("Authorization", "Bearer dummy"), ("x-api-key", secret)],
    ]


def test_a_key_is_taken_from_each_header_and_names_its_owner(key: str) -> None:
    for headers in ways(key):
        found, owner = asked(headers)
        assert (found.status, owner) == (200, "laptop")


@pytest.mark.parametrize(
    "headers",
    [
        (),
        [("Authorization", "Bearer edgepp-wrong")],
        [("Authorization", "Bearer")],
        [("Authorization", "Basic !!!")],
        [("Authorization", "Basic /w==")],
        [("x-api-key", "\xff")],
    ],
)
def test_strangers_are_refused(key: str, headers: Headers) -> None:
    found, owner = asked(headers)
    assert (found.status, owner) == (401, None)
    assert found.headers["www-authenticate"] == "Bearer"
    assert found.json["error"]["type"] == "authentication_error"
    assert key not in found.body.decode()


def test_a_key_in_the_url_is_no_key(key: str) -> None:
    asked_with = {**scope("GET", f"/v1/models/{key}", client="192.168.1.9"), "query_string": f"key={key}".encode()}
    found = asyncio.run(call(behind_keys(Echo()), asked_with))
    assert found is not None
    assert found.status == 401
    assert key not in found.body.decode()


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/v1/messages", lambda body: body["error"]["type"] == "authentication_error" and body["type"] == "error"),
        ("/api/tags", lambda body: isinstance(body["error"], str)),
        ("/v1/chat/completions", lambda body: body["error"]["code"] == "invalid_api_key"),
    ],
)
def test_a_refusal_has_the_form_of_its_api(key: str, path: str, shape: object) -> None:
    found, _ = asked(path=path)
    assert found.status == 401
    assert callable(shape)
    assert shape(found.json)


def test_a_change_of_the_keys_acts_on_a_running_server(key: str) -> None:
    app = behind_keys(Echo())

    def status(secret: str) -> int:
        found = asyncio.run(call(app, scope(headers=[("x-api-key", secret)], path="/v1/models", client="10.0.0.2")))
        assert found is not None
        return found.status

    assert status(key) == 200
    second = add_key("phone")
    assert status(second) == 200
    revoke_key("laptop")
    assert (status(key), status(second)) == (401, 200)


def test_without_demand_any_key_or_none_is_accepted(key: str) -> None:
    for headers, owner in (((), ""), ([("x-api-key", "sk-dummy")], ""), ([("x-api-key", key)], "laptop")):
        found, name = asked(headers, required=False, client="127.0.0.1")
        assert (found.status, name) == (200, owner)


def test_monitors_need_no_key_for_the_state(key: str) -> None:
    for path in ("/", "/health", "/ready"):
        assert asked(path=path)[0].status == 200
    assert asked(path="/metrics")[0].status == 401


def administers(headers: Headers = (), *, client: str = "127.0.0.1", loopback_administers: bool = True) -> bool:
    app = Echo()
    guarded = behind_keys(app, required=False, loopback_administers=loopback_administers)
    asyncio.run(call(guarded, scope("POST", "/v1/cluster/drain", headers, client)))
    return bool(app.seen[0]["state"]["administers"])


def test_this_machine_itself_may_administer(key: str) -> None:
    for headers in (
        (),
        [("host", "127.0.0.1:11434")],
        [("host", "[::1]:11434")],
        [("host", "localhost:11434"), ("origin", "http://localhost:11434"), ("sec-fetch-site", "same-origin")],
        [("x-api-key", key)],
    ):
        assert administers(headers), headers
    assert not administers(loopback_administers=False)


@pytest.mark.parametrize(
    "headers",
    [
        [("x-forwarded-for", "198.51.100.7")],
        [("forwarded", "for=198.51.100.7")],
        [("via", "1.1 proxy")],
        [("host", "llm.example")],
        [("host", "mini.local:11434")],
        [("host", "192.168.1.4:11434")],
        [("host", "localhost:11434"), ("origin", "http://localhost:3000")],
        [("host", "localhost:11434"), ("origin", "https://localhost:11434")],
        [("host", "localhost:11434"), ("origin", "chrome-extension://abcdef")],
        [("host", "localhost:11434"), ("origin", "null")],
        [("host", "localhost:11434"), ("sec-fetch-site", "same-site")],
        [("host", "localhost:11434"), ("sec-fetch-site", "cross-site")],
    ],
)
def test_proxies_and_pages_of_others_on_this_machine_may_not(key: str, headers: Headers) -> None:
    assert not administers(headers)


def test_another_machine_needs_a_key_that_may_administer(key: str) -> None:
    owner = add_key("owner", administers=True)
    assert not administers(client="192.168.1.9")
    assert not administers([("x-api-key", key)], client="192.168.1.9")
    assert administers([("x-api-key", owner)], client="192.168.1.9")
    assert administers([("x-api-key", owner), ("x-forwarded-for", "198.51.100.7")], loopback_administers=False)


def test_a_file_of_keys_that_others_may_read_admits_nobody(key: str, tmp_path: Path) -> None:
    (tmp_path / "api_keys.json").chmod(0o644)
    found, _ = asked([("x-api-key", key)])
    assert found.status == 500
    assert "others may read" in found.json["error"]["message"]
