"""The Grafana dashboard: each of its queries asked of a real Prometheus that scrapes a running cluster."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.cluster import Machine
from tests.waiting import PATIENCE_S, eventually

DASHBOARD = Path(__file__).parents[2] / "docs" / "monitoring" / "grafana-dashboard.json"
NEEDS_EVENT = "Empty until "
"""Beginning of the description of a panel that has no data before something has happened."""

pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="there is no prometheus command")


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def listening_ports(pid: int) -> list[int]:
    """The TCP ports on which a process listens."""
    connections = psutil.Process(pid).net_connections("tcp")
    return [one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN]


@contextmanager
def prometheus(target: str, folder: Path) -> Iterator[httpx.Client]:
    """A Prometheus that scrapes ``target`` four times per second, and a client of its API."""
    config = folder / "prometheus.yml"
    scraped = {"job_name": "edgepp", "static_configs": [{"targets": [target]}]}
    config.write_text(json.dumps({"global": {"scrape_interval": "250ms"}, "scrape_configs": [scraped]}))
    options = ("--web.listen-address=127.0.0.1:0", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}")
    process = subprocess.Popen(["prometheus", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = eventually("it listens", lambda: listening_ports(process.pid))[0]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=PATIENCE_S) as client:
            yield client
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def asked(client: httpx.Client, query: str) -> list[float]:
    """The numbers that a query gives now; fails where Prometheus cannot parse it."""
    for variable, value in (("$model", ".*"), ("$__rate_interval", "1m")):
        query = query.replace(variable, value)
    assert "$" not in query
    answer = client.get("/query", params={"query": query}).json()
    assert answer["status"] == "success", f"{query}: {answer}"
    numbers = (float(sample["value"][1]) for sample in answer["data"]["result"])
    return [number for number in numbers if not math.isnan(number)]


def tokens_scraped(client: httpx.Client) -> float:
    try:
        return sum(asked(client, "edgepp_generation_tokens_total"))
    except httpx.ConnectError:
        return -1.0


def test_each_panel_has_data_after_answers(tiny: Path, tmp_path: Path) -> None:
    one = Machine(tmp_path, "one")
    with one.running("serve", "-m", str(tiny), "--listen", "127.0.0.1:0", "--stages", "2") as running:
        url = running.until("listening")["http"]
        running.until("ready")
        body = {"messages": [{"role": "user", "content": "hi hi hi hi"}], "max_tokens": 24, "ignore_eos": True}
        with prometheus(url.removeprefix("http://"), tmp_path) as client:
            for answers in (1, 2):  # a rate needs two values
                httpx.post(f"{url}/v1/chat/completions", json=body, timeout=PATIENCE_S).raise_for_status()
                eventually("the answer is scraped", lambda n=answers: tokens_scraped(client) == 24 * n)
            queries = [(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]
            empty = {title for title, query in queries if not asked(client, query)}
            (annotation,) = json.loads(DASHBOARD.read_text())["annotations"]["list"]
            asked(client, annotation["expr"])
    assert empty == {panel["title"] for panel in panels() if panel["description"].startswith(NEEDS_EVENT)}


def test_the_file_can_be_provisioned_with_any_data_source() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    variables = {variable["name"]: variable["type"] for variable in dashboard["templating"]["list"]}
    assert variables == {"datasource": "datasource", "model": "query"}
    identities = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(identities)) == len(identities)
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    for panel in panels():
        assert panel["description"], panel["title"]
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)
