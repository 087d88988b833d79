"""`edgepp serve` with HTTP, and `edgepp keys`: ports, keys, and the names of the model."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

import edgepp
from tests.builders.raw_http import request
from tests.cluster import Machine, Running
from tests.waiting import PATIENCE_S, eventually


@pytest.fixture
def one(tmp_path: Path) -> Machine:
    return Machine(tmp_path, "one")


def started(served: Running) -> dict[str, Any]:
    listening = served.until("listening")
    served.until("ready")
    return listening


def serve(model: Path, *options: str) -> tuple[str, ...]:
    return ("serve", "-m", str(model), "--listen", "127.0.0.1:0", *options)


def ask(url: str, key: str = "", **body: Any) -> httpx.Response:
    asked = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, **body}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.post(f"{url}/v1/chat/completions", json=asked, headers=headers, timeout=PATIENCE_S)


def test_serve_answers_on_loopback_by_default_at_any_port_and_by_its_aliases(one: Machine, tiny: Path) -> None:
    with one.running(*serve(tiny, "--alias", "gpt-4o", "--alias", "local")) as served:
        listening = started(served)
        url = listening["http"]
        assert url.startswith("http://127.0.0.1:")
        assert "http_key" not in listening
        assert ask(url).status_code == 200
        for name in ("gpt-4o", "local"):
            assert ask(url, "sk-anything", model=name).json()["model"]
        assert ask(url, model="gpt-5").status_code == 404
        addresses = {
            c.laddr.ip for c in psutil.Process(served.process.pid).net_connections("tcp") if c.laddr.port == port(url)
        }
        assert addresses <= {"127.0.0.1", "::1"}
        assert one.json("status", "--json")["http"] == {"url": url, "lan_urls": [], "key_required": False}
        assert f"HTTP: {url} on that machine · no key needed" in one.run("status").stdout


def port(url: str) -> int:
    return int(url.rpartition(":")[2])


def test_http_can_be_off_and_a_taken_port_is_refused_before_the_model_is_loaded(one: Machine, tiny: Path) -> None:
    with one.running(*serve(tiny, "--http", "off")) as served:
        assert "http" not in started(served)
        assert one.json("status", "--json")["http"] is None
        assert "HTTP" not in one.run("status").stdout
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = one.run(*serve(tiny, "--http", f"127.0.0.1:{taken.getsockname()[1]}"))
    assert done.returncode == 2
    assert "cannot serve HTTP" in done.stderr
    assert "--http HOST:PORT" in done.stderr


def test_keys_are_made_demanded_and_revoked_while_the_server_runs(one: Machine, tiny: Path) -> None:
    with one.running(*serve(tiny, "--http", "127.0.0.1:0", "--require-key")) as served:
        url = started(served)["http"]
        assert ask(url).status_code == 401
        assert one.json("status", "--json")["http"]["key_required"] is True
        assert "every client needs a key" in one.run("status").stdout
        key = one.json("keys", "add", "laptop", "--json")["key"]
        assert ask(url, key).status_code == 200
        assert [one["name"] for one in one.json("keys", "list", "--json")["keys"]] == ["laptop"]
        assert one.run("keys", "add", "laptop").returncode == 2
        one.json("keys", "revoke", "laptop", "--json")
        assert ask(url, key).status_code == 401
        assert httpx.get(f"{url}/v1/models?key={key}").status_code == 401
        assert key not in " ".join(psutil.Process(served.process.pid).cmdline())
    assert key not in one.run("keys", "list").stdout
    assert not [file for file in one.home.rglob("*") if file.is_file() and key.encode() in file.read_bytes()]


def test_a_client_that_goes_frees_the_stages_and_ctrl_c_ends_running_answers(one: Machine, tiny: Path) -> None:
    with one.running(*serve(tiny, "--http", "127.0.0.1:0", "--context", "4096")) as served:
        url = started(served)["http"]
        endless = {"stream": True, "max_tokens": -1, "ignore_eos": True}

        def live() -> int:
            engine = one.status()["engine"]
            return int(engine["live"]) + int(engine["waiting"])

        with httpx.Client(timeout=PATIENCE_S) as client:
            asked = {"messages": [{"role": "user", "content": "hi"}], **endless}
            with client.stream("POST", f"{url}/v1/chat/completions", json=asked) as response:
                assert next(response.iter_bytes())
            eventually("nothing is live", lambda: live() == 0)
            with client.stream("POST", f"{url}/v1/chat/completions", json=asked) as response:
                assert next(response.iter_bytes())
                served.process.send_signal(signal.SIGINT)
                assert served.process.wait(PATIENCE_S) == 0
        assert served.process.stderr is not None
        assert "Traceback" not in served.process.stderr.read()


def test_many_slow_and_aborted_streams_leave_a_neighbour_alone_and_free_their_slots(one: Machine, tiny: Path) -> None:
    """64 clients that never read their streams, and 64 that abort them."""
    with one.running(*serve(tiny, "--http", "127.0.0.1:0")) as served, ExitStack() as stack:
        url = started(served)["http"]
        alone = ask(url, max_tokens=40, temperature=0).json()["choices"]

        def live() -> int:
            engine = one.status()["engine"]
            return int(engine["live"]) + int(engine["waiting"])

        asked = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 100, "stream": True, "ignore_eos": True}
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port(url)))) for _ in range(128)]
        for client in clients:
            client.sendall(request("POST", "/v1/chat/completions", json.dumps(asked).encode()))
        for client in clients[64:]:
            client.close()
        assert ask(url, max_tokens=40, temperature=0).json()["choices"] == alone
        eventually("every slot is free", lambda: live() == 0)
        statuses = {client.recv(12)[9:] for client in clients[:64]}
        assert statuses <= {b"200", b"429", b"503"}
        assert b"200" in statuses


def test_answers_of_a_cluster_that_closes_first_are_told_when_to_ask_again(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPP_HOME", str(tmp_path / "here"))

    async def main() -> None:
        cluster = edgepp.serve(str(tiny), listen="127.0.0.1:0", threads=1, context=4096, speculate="off")
        async with (
            cluster,
            edgepp.HttpServer(cluster, edgepp.HttpOptions("localhost:0")) as http,
            httpx.AsyncClient(base_url=http.url, timeout=PATIENCE_S) as client,
        ):
            await cluster.ready()
            asked = {"prompt": "Once", "max_tokens": 4000, "ignore_eos": True, "n": 8}
            answer = asyncio.create_task(client.post("/v1/completions", json=asked))
            await asyncio.to_thread(eventually, "an answer is under way", lambda: cluster.status["engine"]["live"])
            await cluster.close()
            refused = await answer
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1

    asyncio.run(asyncio.wait_for(main(), 4 * PATIENCE_S))


def test_a_program_serves_its_cluster_over_http(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEPP_HOME", str(tmp_path / "here"))

    async def main() -> None:
        options = edgepp.HttpOptions("localhost:0", aliases=("mine",))
        async with (
            edgepp.serve(str(tiny), listen="127.0.0.1:0", threads=1) as cluster,
            edgepp.HttpServer(cluster, options) as http,
            httpx.AsyncClient(base_url=http.url, timeout=PATIENCE_S) as client,
        ):
            await cluster.ready()
            asked = {"model": "mine", "prompt": "Once", "max_tokens": 4, "temperature": 0}
            answers = [(await client.post(path, json=asked)).json() for path in ("/v1/completions", "/completions")]
            assert answers[0]["choices"] == answers[1]["choices"]
            assert cluster.status["http"]["url"] == http.url
            await http.close()
            assert cluster.status["http"] is None
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert capfd.readouterr() == ("", "")
