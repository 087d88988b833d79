"""Processes that die, sleep, wedge or lack memory, under answers of a cluster of three nodes with real weights."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from edgepp.engine.request import MAX_RECOVERIES, GenerateOptions
from edgepp.engine.stage_watch import LOST_S
from tests.faults.oracle import ENDS_S
from tests.faults.questions import FOUR, MODEL, Questions
from tests.faults.served import Baseline, Served, Status, Stream, serving
from tests.waiting import eventually

WHENS = {"first": 1, "middle": 24, "last": 47}
"""The number of tokens after which a stage process is killed."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    options = ("--context", "2048", "--max-sequences", "6")
    with serving(tmp_path_factory.mktemp("cluster"), MODEL, *options) as started:
        yield started


@pytest.fixture(scope="module")
def baseline(cluster: Served, questions: Questions) -> Baseline:
    return Baseline(cluster, list(questions.asked.values()))


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> None:
    """The cluster lives from test to test, and its members check at their end that nothing outlives them."""


@pytest.fixture(autouse=True)
def restored(cluster: Served, baseline: Baseline) -> Iterator[None]:
    """Begin and end every test with a whole cluster that holds no more than at first."""
    yield
    baseline.is_restored()


def stage_pid(cluster: Served, index: int) -> int:
    """The process of the stage with this index."""
    return int(cluster.whole()["stages"][index]["pid"])


def pids(status: Status) -> list[int]:
    """The stage processes of the plan."""
    return [stage["pid"] for stage in status["stages"]]


@pytest.mark.parametrize("when", WHENS)
@pytest.mark.parametrize("stage", range(3))
def test_a_stage_process_is_killed(cluster: Served, questions: Questions, stage: int, when: str) -> None:
    pid = stage_pid(cluster, stage)
    stream = Stream(*questions.asked["plain"])
    stream.reaches(WHENS[when])
    os.kill(pid, signal.SIGKILL)
    killed_s = time.monotonic()
    result = stream.result()
    result.is_right(questions.expected["plain"])
    result.ended_within(ENDS_S, killed_s)


@pytest.mark.parametrize("stage", range(3))
def test_a_stage_process_is_killed_in_the_middle_of_a_prompt(cluster: Served, questions: Questions, stage: int) -> None:
    process = psutil.Process(stage_pid(cluster, stage))
    process.suspend()
    stream = Stream(*questions.asked["long"])
    eventually("it is being prefilled", lambda: cluster.status()["engine"]["live"])
    process.kill()
    killed_s = time.monotonic()
    result = stream.result()
    result.is_right(questions.expected["long"])  # nothing was shown, so the answer is begun again
    result.ended_within(ENDS_S, killed_s)


@pytest.mark.parametrize("stage", range(3))
def test_four_streams_go_on_when_a_stage_process_is_killed(cluster: Served, questions: Questions, stage: int) -> None:
    pid = stage_pid(cluster, stage)
    streams = {name: Stream(*questions.asked[name]) for name in FOUR}
    for stream in streams.values():
        stream.reaches(10)
    os.kill(pid, signal.SIGKILL)
    killed_s = time.monotonic()
    for name, stream in streams.items():
        result = stream.result()
        result.is_right(questions.expected[name])
        result.ended_within(ENDS_S, killed_s)


def test_a_whole_node_dies_and_is_started_again(cluster: Served, questions: Questions) -> None:
    streams = {name: Stream(*questions.asked[name]) for name in ("plain", "seeded")}
    for stream in streams.values():
        stream.reaches(10)
    three = cluster.members["three"]
    three.process.kill()  # its stage process ends by itself
    three.process.wait()
    killed_s = time.monotonic()
    for name, stream in streams.items():
        result = stream.result()
        result.is_right(questions.expected[name])
        result.ended_within(ENDS_S, killed_s)
    three.start()


@pytest.mark.parametrize("seconds", [1.0, 5.0, 20.0])
def test_a_node_sleeps(cluster: Served, questions: Questions, seconds: float) -> None:
    before = cluster.whole()
    stream = Stream(*questions.asked["plain"])
    stream.reaches(10)
    cluster.members["two"].signal(signal.SIGSTOP)
    slept_s = time.monotonic()
    waking = threading.Timer(seconds, cluster.members["two"].signal, (signal.SIGCONT,))
    waking.start()
    result = stream.result()
    waking.join()
    result.is_right(questions.expected["plain"])
    result.ended_within(ENDS_S, slept_s)
    if seconds < LOST_S:  # else its stage may count as lost and is started again, or the node as gone
        assert pids(cluster.whole()) == pids(before)


@pytest.mark.parametrize(("name", "fault"), [("one", "wedge"), ("two", "hold"), ("three", "wedge")])
def test_a_stage_process_wedges(cluster: Served, questions: Questions, name: str, fault: str) -> None:
    stream = Stream(*questions.asked["plain"])
    stream.reaches(5)
    cluster.members[name].misbehave(fault)
    wedged_s = time.monotonic()
    result = stream.result()
    result.is_right(questions.expected["plain"])
    result.ended_within(ENDS_S, wedged_s)


def test_a_request_that_kills_its_stages_is_not_tried_for_ever(cluster: Served, questions: Questions) -> None:
    for member in cluster.members.values():
        member.misbehave("die 1000")
    neighbour = Stream(*questions.asked["plain"])
    neighbour.reaches(5)
    began_s = time.monotonic()
    poisoned = Stream("ship " * 1100, GenerateOptions(4)).result()
    deaths = []
    for member in cluster.members.values():
        (member.home / "fault").unlink()
        if (member.home / "deaths").exists():
            deaths += (member.home / "deaths").read_text().split()
    assert poisoned.error is not None
    assert poisoned.tokens == []
    poisoned.is_right_or_typed([])
    poisoned.ended_within(ENDS_S, began_s)
    assert 1 <= len(deaths) <= 1 + MAX_RECOVERIES, deaths
    neighbour.result().is_right_or_typed(questions.expected["plain"])


def test_a_stage_process_lacks_memory(cluster: Served, questions: Questions) -> None:
    process = psutil.Process(stage_pid(cluster, 1))
    limit = process.rlimit(psutil.RLIMIT_AS)
    process.rlimit(psutil.RLIMIT_AS, (process.memory_info().vms, limit[1]))
    streams = {name: Stream(*questions.asked[name]) for name in ("long", "plain", "seeded")}
    for name, stream in streams.items():
        result = stream.result()
        result.is_right_or_typed(questions.expected[name])
    if process.is_running():
        process.rlimit(psutil.RLIMIT_AS, limit)


def test_the_coordinator_dies_and_comes_back(cluster: Served, questions: Questions) -> None:
    before = {stage["node"]: stage["pid"] for stage in cluster.whole()["stages"]}
    stream = Stream(*questions.asked["plain"])
    stream.reaches(10)
    one = cluster.members["one"]
    one.process.kill()
    one.process.wait()
    killed_s = time.monotonic()
    result = stream.result()
    assert result.error is not None
    result.is_right_or_typed(questions.expected["plain"])
    result.ended_within(ENDS_S, killed_s)
    one.start()
    began_s = time.monotonic()
    one.expect("listening", 1)
    after = {stage["node"]: stage["pid"] for stage in cluster.whole()["stages"]}
    assert after["two"] == before["two"]
    assert after["three"] == before["three"]
    print(f"\n  measured: whole {time.monotonic() - began_s:.1f} s after its start")  # noqa: T201
    again = Stream(*questions.asked["plain"]).result()
    again.is_right(questions.expected["plain"])
