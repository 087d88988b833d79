"""The host names under which the server answers."""

from __future__ import annotations

import asyncio

import pytest

from edgepp.http_api.access.hosts import HostNames, Hosts
from tests.builders.asgi import Echo, call, scope

NAMES = HostNames(
    ["Proxy.Example"], own_name=lambda: "Mini.fritz.box", own_addresses=lambda: ["203.0.113.7", "fe80::1%en0"]
)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:11434",
        "LOCALHOST.",
        "127.0.0.1:11434",
        "127.8.9.10",
        "[::1]:11434",
        "[::ffff:127.0.0.1]",
        "host.docker.internal:11434",
        "mini",
        "mini.local",
        "mini.fritz.box:80",
        "anything.internal",
        "app.localhost:3000",
        "192.168.1.20:11434",
        "10.0.0.1",
        "[fd00::2]:11434",
        "[fe80::1%25en0]",
        "203.0.113.7",
        "proxy.example:443",
    ],
)
def test_own_names_and_addresses_are_allowed(host: str) -> None:
    assert NAMES.allows(host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "evil.example:11434",
        "127.0.0.1.evil.example",
        "local",
        "8.8.8.8",
        "[2606:4700::1111]",
        "localhost:port",
        "localhost:11434:1",
        "user@localhost",
        "localhost/",
        "",
        " localhost",
        "mini.evil.example",
        "notlocalhost",
        "ⅼocalhost",
    ],
)
def test_other_names_are_refused(host: str) -> None:
    assert not NAMES.allows(host)


def test_a_rebound_name_gets_403_in_the_form_of_the_api() -> None:
    app = Echo()
    found = asyncio.run(call(Hosts(app, NAMES), scope(path="/api/tags", headers=[("Host", "evil.example")])))
    assert found is not None
    assert found.status == 403
    assert "Host header" in found.json["error"]
    assert app.seen == []


def test_two_hosts_are_refused_and_no_host_is_not_a_browser() -> None:
    two = scope(headers=[("Host", "localhost"), ("Host", "localhost")])
    none = {**scope(), "headers": []}
    for asked, status in ((two, 403), (none, 200)):
        found = asyncio.run(call(Hosts(Echo(), NAMES), asked))
        assert found is not None
        assert found.status == status
