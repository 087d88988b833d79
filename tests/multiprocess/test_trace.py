"""Traces and logs of real requests: `edgepp trace`, `edgepp chat --trace`, over real stages and HTTP."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgepp.model.random_checkpoint import TINY, make_checkpoint
from tests.builders.chrome_format import read
from tests.cluster import Machine, chat, serving
from tests.waiting import PATIENCE_S, eventually

WAYS = {"way to stage 0", "way to stage 1", "way back"}


def ask(url: str, tokens: int, **more: Any) -> httpx.Response:
    asked = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": tokens, "ignore_eos": True, **more}
    return httpx.post(f"{url}/v1/chat/completions", json=asked, timeout=PATIENCE_S)


def test_traces_of_a_cluster(tiny: Path, tmp_path: Path) -> None:
    one = Machine(tmp_path, "one")
    serve = ("serve", "-m", str(tiny), "--listen", "127.0.0.1:0", "--stages", "2", "--trace-requests", "last:4")
    serve = (*serve, "--trace", str(tmp_path / "all.json"))
    with one.running(*serve) as running:
        url = running.until("listening")["http"]
        running.until("ready")
        parts_of_an_answer_add_up_to_its_timings(one, url, tmp_path / "trace.json")
        so_do_those_of_a_prompt_and_a_streamed_answer(one, url)
        the_newest_requests_are_listed_and_found_by_each_name(one, url)
        a_chat_writes_the_trace_of_its_answer(one, tmp_path / "chat.json")
    kept = read((tmp_path / "all.json").read_text())
    assert len(kept["metadata"]["requests"]) == 4
    assert {event["pid"] for event in kept["traceEvents"]} == set(range(4 * 3))


def parts_of_an_answer_add_up_to_its_timings(one: Machine, url: str, file: Path) -> None:
    """To 2 %; between a token's two clock readings a busy machine may let others work, but not at every answer."""

    def traced() -> dict[str, Any] | None:
        answer = ask(url, 60)
        found: dict[str, Any] = one.json("trace", answer.json()["id"], "--output", str(file), "--json")
        assert found["request"] == answer.headers["x-request-id"]
        assert found["tokens"] == 60
        return found if adds_up(found, answer.json()["timings"]) else None

    found = eventually("the parts of an answer add up", traced)
    assert found is not None
    assert found["answer_us"].keys() > WAYS
    assert found["clock_error_us"] > 0
    assert found["records_dropped"] == 0
    events = read(file.read_text())["traceEvents"]
    processes = {event["pid"] for event in events}
    assert processes == {0, 1, 2}
    spans = {(event["pid"], event["name"]) for event in events if event["ph"] in "Xb"}
    assert {(0, "tokenise"), (0, "queue"), (0, "head"), (0, "sample"), (0, "detokenise"), (0, "write")} <= spans
    assert {(1, "compute prefill"), (2, "compute decode"), (1, "receive"), (2, "queue"), (2, "encode")} <= spans
    assert [event["args"]["how"] for event in events if event["name"] == "ended"] == ["length"]


def so_do_those_of_a_prompt_and_a_streamed_answer(one: Machine, url: str) -> None:
    def traced() -> bool:
        answer = ask(url, 20, messages=[{"role": "user", "content": "word " * 20}], stream=True)
        last = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")][-1]
        found = one.json("trace", "last", "--summary", "--json")
        assert last["id"] in found["aliases"]
        assert found["beside_us"]["write"] > 0
        prompt_us = sum(found["prompt_us"].values())
        return adds_up(found, last["timings"]) and prompt_us >= last["timings"]["prompt_ms"] * 1e3 * 0.98

    eventually("the parts of a streamed answer add up", traced)


def adds_up(found: dict[str, Any], timings: dict[str, Any]) -> bool:
    """Whether the parts of a trace are together as long as the answer."""
    return bool(sum(found["answer_us"].values()) == pytest.approx(timings["predicted_ms"] * 1e3, rel=0.02))


def the_newest_requests_are_listed_and_found_by_each_name(one: Machine, url: str) -> None:
    for number in range(5):
        httpx.post(
            f"{url}/v1/chat/completions",
            json={"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "ignore_eos": True},
            headers={"x-request-id": f"mine-{number}"},
            timeout=PATIENCE_S,
        )
    listed = one.json("trace", "--json")["requests"]
    assert [request["request"] for request in listed] == [f"mine-{number}" for number in (4, 3, 2, 1)]
    assert listed[0]["ended"] == "length"
    assert "PART" in one.run("trace", "mine-2", "--summary").stdout
    gone = one.run("trace", "mine-0")
    assert gone.returncode == 1
    assert "`edgepp trace` lists them" in gone.stderr


def a_chat_writes_the_trace_of_its_answer(one: Machine, file: Path) -> None:
    answer = one.json("chat", "-p", "hi", "-n", "8", "--ignore-eos", "--trace", str(file), "--json")
    assert read(file.read_text())["metadata"]["request"].startswith("ask_")
    assert answer["completion_tokens"] == 8


def test_a_chat_of_this_process_alone_is_traced_too(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    chat("-m", str(tiny), "--alone", "-p", "hi", "-n", "8", "--ignore-eos", "--trace", str(file))
    trace = read(file.read_text())
    assert {event["name"] for event in trace["traceEvents"]} > {"compute decode", "head", "tokenise"}


def test_each_rank_of_each_stage_is_traced(tmp_path: Path) -> None:
    shape = replace(TINY, heads=8, kv_heads=4, bits=4, group_size=32, dtype="float16", hidden=128)
    model, file = make_checkpoint(tmp_path / "shared", shape), tmp_path / "chat.json"
    options = ("--stages", "2", "--tensor", "2", "--threads", "1", "--speculate", "off", "--ignore-eos")
    chat("-m", str(model), *options, "-p", "hi", "-n", "8", "--trace", str(file))
    trace = read(file.read_text())
    errors = trace["metadata"]["clock_error_us"]
    assert set(errors) == {
        *("coordinator", "stage 0, layers 0-1", "stage 1, layers 2-3"),
        *("stage 0, layers 0-1, rank 1", "stage 1, layers 2-3, rank 1"),
    }
    assert min(errors.values()) >= 0
    begun = [event for event in trace["traceEvents"] if event.get("cat") == "compute" and "compute" in event["name"]]
    for name, in_a_step in (("attention", 4), ("MLP", 4), ("sum", 7)):  # rank 1 tells its times before the last sum
        found = [event for event in trace["traceEvents"] if event.get("cat") == "rank" and event["name"] == name]
        assert {event["pid"] for event in found} == {1, 2, 3, 4}
        assert len(found) == len(begun) * in_a_step


def test_traces_can_be_off(tiny: Path, tmp_path: Path) -> None:
    one = Machine(tmp_path, "one")
    with serving(one, tiny, "--http", "off", "--trace-requests", "off"):
        one.json("chat", "-p", "hi", "-n", "2", "--json")
        refused = one.run("trace", "last")
    assert refused.returncode == 1
    assert "--trace-requests" in refused.stderr
