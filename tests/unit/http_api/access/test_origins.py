"""Web pages and desktop programs: who may use the server, and what preflights allow."""

from __future__ import annotations

import asyncio

import pytest

from edgepp.http_api.access.origins import OriginNames, Origins
from tests.builders.asgi import Answered, Echo, call, scope

NONE = OriginNames()


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost",
        "http://localhost:3000",
        "https://127.0.0.1:8443",
        "http://[::1]:5173",
        "https://tauri.localhost",
        "http://tauri.localhost",
        "vscode-webview://1a2b3c",
        "vscode-file://vscode-app",
        "app://obsidian.md",
        "tauri://localhost",
        "chrome-extension://abcdefghijklmnop",
        "http://192.168.1.20:11434",
    ],
)
def test_this_machine_and_installed_programs_are_allowed(origin: str) -> None:
    assert NONE.allows(origin, "192.168.1.20:11434")


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://localhost.evil.example",
        "http://evil.example:11434",
        "http://192.168.1.21:11434",
        "http://192.168.1.20:8080",
        "null",
        "file://",
        "",
        "http://",
        "http://[::1",
        "data:text/html,x",
        "ftp://localhost",
        "xapp://x",
    ],
)
def test_other_pages_are_not(origin: str) -> None:
    assert not NONE.allows(origin, "192.168.1.20:11434")


@pytest.mark.parametrize("origin", ["https://chat.example", "null", "file://"])
def test_an_origin_is_allowed_by_its_option(origin: str) -> None:
    assert OriginNames([origin]).allows(origin, "localhost")
    assert not OriginNames([origin]).allows("https://evil.example", "localhost")
    assert OriginNames(["*"]).allows(origin, "localhost")


def answered(names: OriginNames, method: str = "POST", **headers: str) -> tuple[Answered, Echo]:
    app = Echo()
    asked = scope(method, "/v1/chat/completions", [(name.replace("_", "-"), value) for name, value in headers.items()])
    found = asyncio.run(call(Origins(app, names), asked))
    assert found is not None
    return found, app


def test_a_page_of_another_site_reaches_nothing() -> None:
    for headers in (
        {"origin": "https://evil.example"},
        {"origin": "https://evil.example", "sec_fetch_site": "same-origin"},
        {"origin": "null", "sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "cross-site"},
    ):
        for method in ("GET", "POST", "OPTIONS"):
            found, app = answered(NONE, method, access_control_request_method="POST", **headers)
            assert found.status == 403
            assert found.json["error"]["type"] == "permission_error"
            assert "access-control-allow-origin" not in found.headers
            assert app.seen == []


def test_an_allowed_page_may_read_the_response() -> None:
    found, app = answered(NONE, origin="vscode-webview://1a2b", sec_fetch_site="cross-site")
    assert found.status == 200
    assert found.headers["access-control-allow-origin"] == "vscode-webview://1a2b"
    assert "x-request-id" in found.headers["access-control-expose-headers"]
    assert found.headers["vary"] == "Origin"
    assert len(app.seen) == 1


def test_a_program_that_is_no_browser_is_let_through() -> None:
    found, _ = answered(NONE)
    assert found.status == 200
    assert "access-control-allow-origin" not in found.headers
    assert found.headers["vary"] == "Origin"


def test_a_preflight_allows_what_sdks_send_and_nothing_else() -> None:
    found, app = answered(
        NONE,
        "OPTIONS",
        origin="http://localhost:3000",
        access_control_request_method="POST",
        access_control_request_headers="Authorization, x-api-key,x-stainless-retry-count, anthropic-version, x-evil",
        access_control_request_private_network="true",
    )
    assert found.status == 204
    assert app.seen == []
    allowed = found.headers["access-control-allow-headers"].split(", ")
    assert allowed == ["authorization", "x-api-key", "x-stainless-retry-count", "anthropic-version"]
    assert "POST" in found.headers["access-control-allow-methods"]
    assert found.headers["access-control-allow-private-network"] == "true"
    assert found.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert found.headers["vary"] == "Origin"
    assert int(found.headers["access-control-max-age"]) > 0
