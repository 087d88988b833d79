"""The addresses at which the HTTP server listens, and keys on all of its connections."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import psutil
import pytest

from edgepp.errors import EdgeppError, UsageError
from edgepp.http_api.api_keys import add_key
from edgepp.http_api.http_options import HTTP_PORT, HttpOptions
from edgepp.http_api.server import HttpServer
from tests.builders.raw_http import CHAT, RawClient, connected, question
from tests.builders.scripted_service import ScriptedService, answer


def test_the_first_free_port_is_taken_and_a_given_one_must_be_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        monkeypatch.setattr("edgepp.http_api.http_options.HTTP_PORT", taken)

        async def act() -> None:
            async with HttpServer(ScriptedService([answer("x")])) as server:
                assert server.taken_port == HTTP_PORT
                assert not server.url.endswith(f":{taken}")
                assert not server.is_exposed
            with pytest.raises(UsageError, match="cannot serve HTTP"):
                await HttpServer(ScriptedService([]), HttpOptions(f"127.0.0.1:{taken}")).open()
            for elsewhere in ("192.0.2.77:0", "192.0.2.77", "nowhere.invalid"):
                with pytest.raises(UsageError, match="cannot serve HTTP"):
                    await HttpServer(ScriptedService([]), HttpOptions(elsewhere)).open()
            async with HttpServer(ScriptedService([answer("x")]), HttpOptions("127.0.0.1")) as server:
                assert server.url.startswith("http://127.0.0.1:")
                assert server.taken_port == HTTP_PORT

        asyncio.run(act())


def test_a_start_that_fails_leaves_no_port_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEPP_HOME", str(tmp_path / "file"))

    def listening() -> list[int]:
        connections = psutil.Process().net_connections("tcp")
        return [one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN]

    before = listening()

    async def act() -> None:
        server = HttpServer(ScriptedService([]), HttpOptions("127.0.0.1:0"))
        with pytest.raises(UsageError, match="cannot make"):
            await server.open()
        with pytest.raises(EdgeppError, match="not open"):
            _ = server.url

    asyncio.run(act())
    assert listening() == before


def test_localhost_is_both_versions_of_ip() -> None:
    async def act() -> None:
        async with HttpServer(ScriptedService([answer("x")]), HttpOptions("localhost:0")) as server:
            port = int(server.url.rpartition(":")[2])
            for host in ("127.0.0.1", "::1"):
                try:
                    reader, writer = await asyncio.open_connection(host, port)
                except OSError:
                    assert host == "::1"  # not every machine has IPv6
                    continue
                client = RawClient(reader, writer)
                assert (await client.ask("GET", "/v1/models")).status == 200
                writer.transport.abort()

    asyncio.run(act())


def test_a_key_that_is_demanded_is_demanded_of_every_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPP_HOME", str(tmp_path))
    key = add_key("laptop")

    async def act() -> None:
        options = HttpOptions("127.0.0.1:0", require_key=True)
        async with HttpServer(ScriptedService([answer("x")]), options) as server, connected(server) as client:
            for path in ("/v1/models", "/api/tags", "/metrics", "/openapi.json", "/nowhere"):
                refused = await client.ask("GET", path)
                assert refused.status == 401, path
                assert refused.headers["www-authenticate"] == "Bearer"
            assert (await client.ask("GET", "/")).status == 200
            assert (await client.ask("GET", "/v1/models", b"", f"Authorization: Bearer {key}")).status == 200
            assert (await client.ask("POST", CHAT, question(stream=False))).status == 401
            assert (await client.ask("POST", CHAT, question(stream=False), f"x-api-key: {key}")).status == 200

    asyncio.run(act())
