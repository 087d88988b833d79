"""The HTTP server for a client, and the model that the server names."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

from edgepp.cluster.identity import load_cluster, load_identity
from edgepp.errors import EdgeppError, UsageError
from edgepp.http_api.http_options import HTTP_PORT
from edgepp.http_api.running_server import running_server
from edgepp.ui.launch.settings import KEY_VARIABLE, Target
from edgepp.wire.address import Address

_TIMEOUT_S = 10.0
_MAX_BYTES = 1 << 20


def find_target(url: str | None, key: str) -> Target:
    """The server at ``url``, or the server of this machine if ``url`` is None, asked with the API key ``key``.

    Raises:
        UsageError: no server is known, or ``url`` is not the URL of a server.
        EdgeppError: the server does not answer, wants another key, or is no server of edgepp.
    """
    found = url or running_server()
    if found is None:
        raise UsageError("no HTTP server runs on this machine", _server_hint())
    base = _base(found)
    model = _model(base, key)
    name, context = model.get("id"), model.get("context_length")
    if type(name) is not str or not name or type(context) is not int or context < 1:
        raise EdgeppError(f"{base} is no HTTP server of edgepp", "name the URL that `edgepp serve` prints")
    return Target(base, name, context, key)


def _server_hint() -> str:
    """The next step on a machine without a server; on a machine that joined, the address of the one that serves."""
    cluster = load_cluster()
    if cluster is None or cluster.coordinator.node == load_identity().node or not cluster.addresses:
        return "start one with `edgepp serve`, or name one with --url"
    host = Address.parse(cluster.addresses[0]).host
    return (
        f"this machine joined the cluster of {cluster.coordinator.name}: run `edgepp serve --lan` there, and name it "
        f"here with --url http://{Address(host, HTTP_PORT)}, or the URL that it prints"
    )


def _base(url: str) -> str:
    try:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        is_server = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_server = False
    if not is_server:
        raise UsageError(f"'{url}' is no URL of an HTTP server", "write it like http://127.0.0.1:11434")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"


def _model(base: str, key: str) -> dict[str, Any]:
    """The first model of the server."""
    try:
        status, body = _get(f"{base}/v1/models", key)
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a key with control characters
        raise EdgeppError(
            f"nothing answers at {base}: {error or type(error).__name__}",
            "start `edgepp serve`, or name another server with --url",
        ) from error
    if status in (401, 403):
        hint = f"set {KEY_VARIABLE} to a key; `edgepp keys add NAME` makes one"
        raise EdgeppError(f"{base} does not accept the key" if key else f"{base} wants a key", hint)
    try:
        first = json.loads(body)["data"][0]
    except (ValueError, LookupError, TypeError, RecursionError):
        first = None
    return first if isinstance(first, dict) else {}


def _get(url: str, key: str) -> tuple[int, bytes]:
    """HTTP status and body of a GET, sent without a proxy, since servers of edgepp are near."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", parts.path, headers={"Authorization": f"Bearer {key}"} if key else {})
        response = connection.getresponse()
        return response.status, response.read(_MAX_BYTES)
    finally:
        connection.close()
