"""Logs of a real cluster as JSON: the id of a request at every stage, and neither prompts nor keys."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import httpx

from tests.cluster import EDGEPP, Machine, Running
from tests.waiting import PATIENCE_S, eventually

WORD = "xylophonequagga"
ID = "mine:1.2-3_x"


def test_the_id_of_a_request_is_at_every_stage_and_nothing_else_of_it(tiny: Path, tmp_path: Path) -> None:
    one, file = Machine(tmp_path, "one"), tmp_path / "log"
    key = json.loads(one.run("keys", "add", "someone", "--json").stdout)["key"]
    serve = ("serve", "-m", str(tiny), "--listen", "127.0.0.1:0", "--stages", "2", "--threads", "1", "--json")
    with file.open("w") as stderr:
        process = subprocess.Popen(
            [*EDGEPP, *serve, "--require-key", "--log-format", "json"],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=one.env(),
        )
    try:
        running = Running(process)
        url = running.until("listening")["http"]
        running.until("ready")
        asked = {"messages": [{"role": "user", "content": WORD}], "max_tokens": 3, "ignore_eos": True}
        with httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=PATIENCE_S) as client:
            assert client.post("/v1/chat/completions", json=asked, headers={"x-request-id": ID}).status_code == 200
            client.post("/v1/chat/completions", json=asked | {"max_tokens": "\n{}"}, headers={"x-request-id": "a\tb"})
            client.get("/%0a%7B%22level%22:%22error%22%7D%e2%80%a8")

        def freed() -> bool:
            return len([line for line in lines(file) if line["event"] == "http_request"]) == 3

        eventually("all requests are logged", freed)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE_S)
    check(file, key)


def lines(file: Path) -> list[dict[str, Any]]:
    """All lines but one that is being written; each is an object."""
    return [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]


def check(file: Path, key: str) -> None:
    found = lines(file)
    assert all({"time", "level", "node", "stage", "request", "event"} <= line.keys() for line in found)
    assert {line["node"] for line in found} <= {"", "one"}
    mine = [line for line in found if line["request"] == ID]
    opened = {line["stage"] for line in mine if line["event"] == "sequence_opened"}
    assert len(opened) == 2
    assert "" not in opened
    events = [line["event"] for line in mine if not line["stage"]]
    ordered = ["request_came", "request_admitted", "request_ended", "request_answered", "http_request"]
    assert sorted(events) == sorted(ordered)
    (answered,) = (line for line in mine if line["event"] == "request_answered")
    assert (answered["outcome"], answered["tokens"]) == ("length", 3)
    text = file.read_text()
    assert WORD not in text
    assert key not in text
    assert not [line for line in found if line["level"] == "error"]
