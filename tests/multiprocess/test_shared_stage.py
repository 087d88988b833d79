"""Two machines that share each layer of one stage: real processes, each machine with a configuration of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgepp.engine.request import GenerateOptions
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from tests.cluster import Machine, Running, serving, wait_for
from tests.faults.served import Stream
from tests.waiting import eventually

SHAPE = replace(TINY, heads=8, kv_heads=4, bits=4, group_size=32, dtype="float16", hidden=128)
ASK = ("--raw", "-p", "Once upon a time", "--ignore-eos", "--temperature", "0", "--json")
SHARE = ("--layers", "0-3", "--tensor", "2")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "tiny", SHAPE)


@dataclass
class Cluster:
    one: Machine
    served: Running
    address: str

    @contextmanager
    def joined(self, name: str, *options: str) -> Iterator[Running]:
        machine = Machine(self.one.home, name)
        code = self.one.json("invite", "--json")["code"]
        with machine.running("join", code, "--peer", self.address, *options) as running:
            yield running


@contextmanager
def cluster(tmp_path: Path, model: Path, *options: str) -> Iterator[Cluster]:
    one = Machine(tmp_path, "one")
    with serving(one, model, "--no-stage", "--exact", "--speculate", "off", *options) as (served, address):
        yield Cluster(one, served, address)


def rank_process(running: Running) -> psutil.Process:
    """The process of a machine's rank."""
    [child] = [
        child
        for child in psutil.Process(running.process.pid).children()
        if "edgepp.stage_process.main" in " ".join(child.cmdline())
    ]
    return child


def until_note(running: Running, text: str) -> str:
    """The next note that contains ``text``."""
    while text not in (said := running.until("note")["text"]):
        pass
    return str(said)


def test_two_machines_are_one_stage_and_outlive_a_killed_rank(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPP_HOME", Machine(tmp_path, "one").env()["EDGEPP_HOME"])  # this process asks as one
    alone = Machine(tmp_path, "alone").json("chat", "-m", str(model), "--alone", "--exact", "-n", "16", *ASK)
    with cluster(tmp_path, model) as started, ExitStack() as stack:
        two = stack.enter_context(started.joined("two", *SHARE))
        said = two.until("assignment")["reason"]
        assert "two waits for another machine" in said
        assert "edgepp join --layers 0-3 --tensor 2" in said
        three = stack.enter_context(started.joined("three", *SHARE))
        state = wait_for(started.one, 1)
        [stage] = state["stages"]
        assert stage["layers"] == [0, 4]
        assert {rank["node"] for rank in stage["ranks"]} == {"two", "three"}
        assert sum(rank["weight"] for rank in stage["ranks"]) in (2, 4)
        assert stage["has_head"], "the ranks of the last stage share the head too"
        assert started.one.json("chat", "-n", "16", *ASK)["token_ids"] == alone["token_ids"]
        expected = started.one.json("chat", "-m", str(model), "--alone", "--exact", "-n", "700", *ASK)["token_ids"]
        [pair] = eventually("sums are measured", lambda: status(started)["sums"])
        assert set(pair["nodes"]) == {"two", "three"}
        assert pair["problem"] == "" or pair["latency_s"] is None
        findings = {one["check"]: one for one in json.loads(started.one.run("doctor", "--json").stdout)}
        assert "sums over" in findings["sums"]["found"]
        for killed in (two, three):
            answers_through_a_loss(started, killed, expected)


def answers_through_a_loss(started: Cluster, killed: Running, expected: list[int]) -> None:
    """One rank is killed in the middle of an answer: the stage is lost, both ranks start again, the answer goes on."""
    process = rank_process(killed)
    stream = Stream("Once upon a time", GenerateOptions(700, ignore_eos=True))
    stream.reaches(20)
    process.kill()
    stream.result().is_right(expected)
    assert wait_for(started.one, 1)["plan_version"] == 1


def status(started: Cluster) -> dict[str, Any]:
    return started.one.status()


def test_a_machine_that_is_gone_is_named_and_leaves_no_stage(tmp_path: Path, model: Path) -> None:
    with cluster(tmp_path, model) as started, ExitStack() as stack:
        machines = {name: stack.enter_context(started.joined(name, *SHARE)) for name in ("two", "three")}
        wait_for(started.one, 1)
        other = status(started)["stages"][0]["ranks"][1]["node"]
        node = psutil.Process(machines[other].process.pid)
        children = node.children(recursive=True)
        for process in (node, *children):  # the node first, so that it does not tell of its rank; the other rank does
            process.kill()
        lost = until_note(started.served, "rank 1 of the stage")
        assert f"it lost rank 1 of the stage, on {other}" in lost
        eventually("the state says what it waits for", lambda: "waits for another machine" in status(started)["reason"])
