"""What `edgepp serve` says about its HTTP server."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import pytest

from edgepp.http_api.http_options import HttpOptions
from edgepp.http_api.server import HttpServer
from edgepp.ui import serve_http

KEY = "edgepp-0123456789"


@dataclass
class _Server:
    """What the greeting reads of a server."""

    url: str = "http://127.0.0.1:11434"
    taken_port: int | None = None
    new_key: str = ""
    is_key_required: bool = False
    is_exposed: bool = False
    has_keys: bool = False
    lan_urls: tuple[str, ...] = ()
    options: HttpOptions = field(default_factory=HttpOptions)


def said(capsys: pytest.CaptureFixture[str], server: _Server) -> str:
    serve_http.greet(cast(HttpServer, server))
    return capsys.readouterr().out


def test_nothing_is_said_of_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    serve_http.greet(None)
    assert capsys.readouterr().out == ""
    assert serve_http.facts(None) == {}


def test_the_url_and_a_command_to_try(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, _Server())
    assert "in a browser: http://127.0.0.1:11434/\n" in text
    assert "http://127.0.0.1:11434  (with /v1 for OpenAI)" in text
    assert "curl http://127.0.0.1:11434/v1/chat/completions" in text
    assert "KEY" not in text
    assert "Another program" not in text


def test_a_taken_port_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, _Server(url="http://127.0.0.1:11435", taken_port=11434))
    assert "Another program uses port 11434" in text
    assert "http://127.0.0.1:11435" in text


def test_the_first_key_is_shown_once_and_in_the_fragment_of_the_qr_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(serve_http, "_qr_code", lambda url: drawn.append(url) or "")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    lan = _Server(
        new_key=KEY, is_key_required=True, is_exposed=True, has_keys=True, lan_urls=("http://192.168.1.20:11434",),
        options=HttpOptions(lan=True),
    )  # fmt: skip
    text = said(capsys, lan)
    assert text.count(KEY) == 1
    assert "-H 'Authorization: Bearer KEY'" in text
    assert "http://192.168.1.20:11434" in text
    assert "without a key" not in text
    assert drawn == [f"http://192.168.1.20:11434/#key={KEY}"]
    assert serve_http.facts(cast(HttpServer, lan)) == {"http": lan.url, "http_key": KEY}
    lan.new_key = ""
    again = said(capsys, lan)
    assert KEY not in again
    assert "The QR code holds the address alone, without a key" in again
    assert "edgepp keys list" in again
    assert drawn[1:] == ["http://192.168.1.20:11434/"]


def test_a_server_that_nobody_can_use_yet_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    exposed = _Server(is_key_required=True, is_exposed=True, lan_urls=("http://192.168.1.20:8080",))
    assert "There is no key yet" in said(capsys, exposed)


def test_a_qr_code_is_drawn() -> None:
    assert len(serve_http._qr_code(f"http://192.168.1.20:11434/#key={KEY}").splitlines()) > 10
