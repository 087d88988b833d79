"""Output of `edgepp serve` about its HTTP server: the page, the base URL, a command to try, and on a LAN a QR code."""

from __future__ import annotations

import io
import sys
from typing import Any

import click
import segno

from edgepp.http_api.server import HttpServer
from edgepp.ui.screen import say

_BODY = '{"messages":[{"role":"user","content":"Why is the sky blue?"}]}'


def facts(http: HttpServer | None) -> dict[str, Any]:
    """Fields of the server in the ``listening`` event of `edgepp serve --json`; with the key if one was made."""
    if http is None:
        return {}
    return {"http": http.url} | ({"http_key": http.new_key} if http.new_key else {})


def greet(http: HttpServer | None) -> None:
    """Print the URLs of the server, a command to try, and for a LAN its key and QR code; nothing without a server."""
    if http is None:
        return
    if http.taken_port is not None:
        say(f"Another program uses port {http.taken_port}, the usual one for clients, so HTTP has another port.")
    say(f"Chat and cluster in a browser: {http.url}/")
    say(f"Clients of OpenAI, Anthropic and Ollama: {http.url}  (with /v1 for OpenAI)")
    key = " -H 'Authorization: Bearer KEY'" if http.is_key_required else ""
    say(f"  curl {http.url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{_BODY}'")
    if http.is_exposed:
        _greet_lan(http)


def _greet_lan(http: HttpServer) -> None:
    say("Other machines need an API key; `edgepp keys add NAME` makes one at any time. They reach this machine at")
    for url in http.lan_urls:
        say(f"  {url}")
    if http.new_key:
        say(f"The first key, which is not shown again:\n\n    {http.new_key}\n")
    elif not http.has_keys:
        say("There is no key yet, so other machines are refused.")
    else:
        say("A key is printed only when it is made; `edgepp keys list` shows the names of the keys.")
    if http.options.lan and http.lan_urls and sys.stdout.isatty():
        if not http.new_key:
            say("The QR code holds the address alone, without a key:")
        click.echo(_qr_code(http.lan_urls[0] + (f"/#key={http.new_key}" if http.new_key else "/")))


def _qr_code(url: str) -> str:
    text = io.StringIO()
    segno.make(url, error="l").terminal(out=text, compact=True)
    return text.getvalue()
