"""Nodes that are drained or stopped: the others have their layers first."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.cluster import Machine, serving, wait_for
from tests.waiting import PATIENCE_S, eventually


@pytest.fixture
def one(tmp_path: Path) -> Machine:
    return Machine(tmp_path, "one")


@pytest.fixture
def two(tmp_path: Path) -> Machine:
    return Machine(tmp_path, "two")


def test_a_node_is_drained_and_used_again_and_stops_when_the_others_have_its_layers(
    one: Machine, two: Machine, tiny: Path
) -> None:
    with serving(one, tiny) as (_, address):
        token = one.json("token", "--json")["token"]
        with two.running("join", "--peer", address, EDGEPP_TOKEN=token) as node:
            state = wait_for(one, 2)
            before = {stage["node"] for stage in state["stages"]}
            assert before == {"one", "two"}

            done = one.run("drain", "two", "--json")
            assert done.returncode == 0, done.stderr
            told = json.loads(done.stdout.splitlines()[-1])
            assert (told["event"], told["name"], told["draining"]) == ("drained", "two", True)
            state = one.json("status", "--json")
            assert [stage["node"] for stage in state["stages"]] == ["one"]
            drained = next(found for found in state["nodes"] if found["name"] == "two")
            assert drained["draining"]
            assert "--undo two" in drained["reason"]

            assert "two may run layers again" in one.run("drain", "two", "--undo").stdout
            wait_for(one, 2)
            assert "only the coordinator's own machine" in two.run("drain", "one").stderr

            node.process.send_signal(signal.SIGINT)
            notes = []
            while (said := node.until("note")["text"]) and "stopping" not in said:
                notes.append(said)
            assert any("moving this node's layers to the others" in note for note in notes)
            assert node.process.wait(PATIENCE_S) == 0
        assert [stage["node"] for stage in wait_for(one, 1)["stages"]] == ["one"]
        refused = one.run("drain", "one")
        assert refused.returncode == 1
        assert "the cluster needs one: without it, " in refused.stderr
        unknown = one.run("drain", "nobody")
        assert "no present node is called 'nobody'" in unknown.stderr


def test_a_node_whose_output_ended_moves_its_layers_too(one: Machine, two: Machine, tiny: Path) -> None:
    """As under `| tee`, which Ctrl-C ends as well."""
    with serving(one, tiny) as (_, address):
        token = one.json("token", "--json")["token"]
        with two.running("join", "--peer", address, EDGEPP_TOKEN=token) as node:
            wait_for(one, 2)
            assert node.process.stdout is not None
            node.process.stdout.close()
            node.process.send_signal(signal.SIGINT)
            assert node.process.wait(PATIENCE_S) == 141
            assert [stage["node"] for stage in one.json("status", "--json")["stages"]] == ["one"]


def test_a_second_ctrl_c_stops_a_node_at_once(one: Machine, two: Machine, tiny: Path) -> None:
    with serving(one, tiny) as (served, address):
        token = one.json("token", "--json")["token"]
        with two.running("join", "--peer", address, EDGEPP_TOKEN=token) as node:
            wait_for(one, 2)
            served.process.send_signal(signal.SIGSTOP)
            try:
                node.process.send_signal(signal.SIGTERM)
                while "moving" not in node.until("note")["text"]:
                    continue
                node.process.send_signal(signal.SIGINT)
                assert node.process.wait(PATIENCE_S) == 0
            finally:
                served.process.send_signal(signal.SIGCONT)
        eventually("one has all layers", lambda: len(one.status()["stages"]) == 1)
