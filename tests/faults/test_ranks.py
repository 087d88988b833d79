"""A rank of a stage dies or hangs under four streams: the stage is restarted as one, and all answers are right."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgepp.coordinator.client import connect_coordinator
from tests.faults.questions import FOUR, MODEL, Questions
from tests.faults.served import Member, Stream, all_right
from tests.waiting import eventually


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> None:
    """The member checks at its end that nothing outlives it."""


@contextmanager
def one_machine(folder: Path, model: str | Path, *options: str) -> Iterator[Member]:
    """`edgepp serve` on one machine, for the calls of this process too."""
    serve = ("serve", "-m", str(model), "--listen", "127.0.0.1:0", "--http", "off", "--memory", "3GB", "--exact")
    member = Member(folder, "one", *serve, *options)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("EDGEPP_HOME", str(member.home))
            member.expect("ready")
            yield member
    finally:
        member.close()


def stages() -> list[dict[str, Any]]:
    """The stages of the cluster once it is ready."""
    found: list[dict[str, Any]] = []

    def look() -> bool:
        with connect_coordinator() as client:
            found[:] = client.status["stages"] if client.status["state"] == "ready" else []
        return bool(found) and all(stage["state"] == "ready" for stage in found)

    eventually("all stages are ready", look)
    return found


def said_why(member: Member) -> list[str]:
    """Why stages ended, as the coordinator told."""
    return [str(one) for one in member.said if "rank" in str(one)]


def test_four_streams_go_on_when_a_rank_dies_or_hangs(tmp_path: Path, questions: Questions) -> None:
    """Two groups with unequal shares: what is lost comes from copies, or is computed again."""
    options = ("--context", "2048", "--max-sequences", "6", "--stages", "2", "--tensor", "2:1", "--keep-copies", "1")
    with one_machine(tmp_path, MODEL, *options) as member:
        for stage, rank, number, reason in (
            (0, 0, signal.SIGKILL, "rank 0 of its stage ended by itself (exit status -9)"),
            (1, 1, signal.SIGKILL, "rank 1 of its stage ended by itself (exit status -9)"),
            (0, 1, signal.SIGSTOP, "rank 1 of its stage hung"),
            (1, 0, signal.SIGSTOP, "rank 0 of its stage hung"),
        ):
            before = stages()
            streams = {name: Stream(*questions.asked[name]) for name in FOUR}
            for stream in streams.values():
                stream.reaches(10)
            os.kill(before[stage]["ranks"][rank]["pid"], number)
            lost_s = time.monotonic()
            all_right(streams, questions, lost_s)
            after = stages()
            assert any(reason in line for line in said_why(member)), said_why(member)
            for index, (old, new) in enumerate(zip(before, after, strict=True)):
                pids, others = ({one["pid"] for one in each["ranks"]} for each in (old, new))
                assert len(others) == 2
                assert pids.isdisjoint(others) if index == stage else pids == others
                assert [one["weight"] for one in new["ranks"]] == [2, 1]


def test_answers_move_off_a_group_and_back_when_one_of_its_machines_is_drained(
    tmp_path: Path, questions: Questions
) -> None:
    """Two machines share every layer; without one of them, the coordinator's machine takes all layers."""
    with one_machine(tmp_path, MODEL, "--context", "2048", "--max-sequences", "6") as one, ExitStack() as others:
        address = str(one.expect("listening")["address"])
        with connect_coordinator() as client:
            token = str(client.call("token")["token"])
        for name in ("two", "three"):
            join = ("join", "--peer", address, "--memory", "1GB", "--layers", "0-29", "--tensor", "2")
            others.callback(Member(tmp_path, name, *join, EDGEPP_TOKEN=token).close)
        until_on("two", "three")
        for undo, machines in ((False, ("one",)), (True, ("two", "three"))):
            streams = {name: Stream(*questions.asked[name]) for name in FOUR}
            for stream in streams.values():
                stream.reaches(5)
            with connect_coordinator() as client:
                client.call("drain", {"node": "two", "undo": undo})
            for name, stream in streams.items():
                stream.result().is_right(questions.expected[name])
            until_on(*machines)


def until_on(*machines: str) -> None:
    """Wait until exactly these machines have all layers, as one stage."""

    def look() -> bool:
        with connect_coordinator() as client:
            state = client.status
        if state["state"] != "ready" or not state["moved"] or len(state["stages"]) != 1:
            return False
        [stage] = state["stages"]
        return {one["node"] for one in stage["ranks"] or [stage]} == set(machines)

    eventually(f"all layers are on {' and '.join(machines)}", look)
