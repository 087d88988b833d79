"""`edgepp launch` finds the HTTP server of this machine's cluster by itself."""

from __future__ import annotations

from pathlib import Path

from tests.cluster import Machine
from tests.multiprocess.http_cluster import HttpCluster
from tests.waiting import eventually


def test_launch_finds_the_server_of_this_machine(http_cluster: HttpCluster) -> None:
    done = http_cluster.machine.run("launch", "codex", "--print")
    context = http_cluster.get("/v1/models").json()["data"][0]["context_length"]
    assert done.returncode == 0, done.stderr
    assert f"{http_cluster.url}/v1" in done.stdout
    assert f"{context} tokens of context" in done.stdout


def test_a_server_that_has_ended_is_not_found(tiny: Path, tmp_path: Path) -> None:
    machine = Machine(tmp_path, "one")
    options = ("--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--no-stage")
    with machine.running("serve", "-m", str(tiny), *options) as served:
        url = served.until("listening")["http"]
        eventually("the server is announced", lambda: url in machine.run("launch", "codex", "--print").stdout)
    done = machine.run("launch", "codex", "--print")
    assert done.returncode == 2
    assert "no HTTP server runs on this machine" in done.stderr
