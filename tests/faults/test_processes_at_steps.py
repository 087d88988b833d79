"""Processes that die, sleep or wedge at one step of an answer, in a cluster of three nodes with small random weights.

The step is chosen in the stage process (``faulty_stage``), so neither speed nor chance moves it. With real weights:
``test_processes``.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from edgepp.coordinator.plan_timing import RETURN_WAIT_S
from edgepp.engine.request import MAX_RECOVERIES, GenerateOptions
from edgepp.engine.stage_watch import LOST_S
from edgepp.model.fetch import fetch
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from edgepp.model.text.conversation import Conversation
from tests.faults.oracle import ENDS_S
from tests.faults.questions import FOUR, MODEL, Questions
from tests.faults.served import NAMES, Baseline, Served, Stream, serving
from tests.waiting import eventually

WHENS = {"first": 1, "middle": 24, "last": 47}
"""The number of tokens after which a stage process is killed, of 48."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights for some milliseconds of computing, with the tokenizer of the real model."""
    shape = replace(TINY, layers=6, vocabulary=49_152, tied=False, context=2048)
    return make_checkpoint(tmp_path_factory.mktemp("model") / "small", shape, seed=2, tokenizer=Path(fetch(MODEL)))


@pytest.fixture(scope="module")
def asked(model: Path) -> Questions:
    """All questions, put to these weights."""
    lasting = Conversation.of("Name five rivers."), GenerateOptions(600, ignore_eos=True)
    made = Questions.put_to(model, lasting=lasting)
    assert len(set(made.expected["plain"])) > 24, "an answer that repeats itself would hide a wrong position"
    return made


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Served]:
    options = ("--context", "2048", "--max-sequences", "6")
    with serving(tmp_path_factory.mktemp("cluster"), model, *options) as started:
        yield started


@pytest.fixture(scope="module")
def baseline(cluster: Served, asked: Questions) -> Baseline:
    return Baseline(cluster, [asked.asked[name] for name in (*FOUR, "long")])


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> None:
    """The cluster lives from test to test, and its members check at their end that nothing outlives them."""


@pytest.fixture(autouse=True)
def restored(cluster: Served, baseline: Baseline) -> Iterator[None]:
    """Begin and end every test with a whole cluster that holds no more than at first."""
    yield
    baseline.is_restored()


def has_stopped(process: psutil.Process) -> None:
    """Wait until the stage process has come to the step at which it stops itself."""
    eventually("the stage is at the step", lambda: process.status() == psutil.STATUS_STOPPED)


def after(asked: Questions, tokens: int) -> int:
    """The position beyond which a step computes one more token than ``tokens`` of the plain question."""
    return asked.prompt_tokens["plain"] + tokens - 1


@pytest.mark.parametrize("when", WHENS)
@pytest.mark.parametrize("stage", range(3))
def test_a_stage_process_is_killed(cluster: Served, asked: Questions, stage: int, when: str) -> None:
    node, process = cluster.stage(stage)
    node.misbehave(f"stop {after(asked, WHENS[when])}")
    stream = Stream(*asked.asked["plain"])
    has_stopped(process)
    assert stream.tokens <= WHENS[when]
    process.kill()
    killed_s = time.monotonic()
    result = stream.result()
    result.is_right(asked.expected["plain"])
    result.ended_within(ENDS_S, killed_s)


@pytest.mark.parametrize("stage", range(3))
def test_a_stage_process_is_killed_in_the_middle_of_a_prompt(cluster: Served, asked: Questions, stage: int) -> None:
    _, process = cluster.stage(stage)
    process.suspend()
    stream = Stream(*asked.asked["long"])
    eventually("it is being prefilled", lambda: cluster.status()["engine"]["live"])
    process.kill()
    killed_s = time.monotonic()
    result = stream.result()
    result.is_right(asked.expected["long"])  # nothing was shown, so the answer is begun again
    result.ended_within(ENDS_S, killed_s)


@pytest.mark.parametrize("seconds", [1.0, 5.0, 20.0])
def test_a_node_sleeps(cluster: Served, asked: Questions, seconds: float) -> None:
    before = cluster.whole()
    (index,) = [index for index, stage in enumerate(before["stages"]) if stage["node"] == "two"]
    two, process = cluster.stage(index)
    two.misbehave(f"stop {after(asked, 10)}")
    stream = Stream(*asked.asked["plain"])
    has_stopped(process)
    two.signal(signal.SIGSTOP)
    slept_s = time.monotonic()
    waking = threading.Timer(seconds, two.signal, (signal.SIGCONT,))
    waking.start()
    result = stream.result()
    waking.join()
    result.is_right(asked.expected["plain"])
    result.ended_within(ENDS_S, slept_s)
    if seconds < LOST_S:  # else its stage may count as lost and is started again, or the node as gone
        assert [one["pid"] for one in cluster.whole()["stages"]] == [one["pid"] for one in before["stages"]]


@pytest.mark.parametrize(("name", "fault"), [("one", "wedge"), ("two", "hold"), ("three", "wedge")])
def test_a_stage_process_wedges(cluster: Served, asked: Questions, name: str, fault: str) -> None:
    cluster.members[name].misbehave(f"{fault} {after(asked, 5)}")
    wedged_s = time.monotonic()
    result = Stream(*asked.asked["plain"]).result()
    assert not (cluster.members[name].home / "fault").exists(), "no step was at fault"
    result.is_right(asked.expected["plain"])
    result.ended_within(ENDS_S, wedged_s)


def test_a_request_that_kills_its_stages_is_not_tried_for_ever(cluster: Served, asked: Questions) -> None:
    for member in cluster.members.values():
        member.misbehave("die 1000")
    neighbour = Stream(*asked.asked["lasting"])
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
    neighbour.result().is_right_or_typed(asked.expected["lasting"])


def test_the_coordinator_dies_and_comes_back(cluster: Served, asked: Questions) -> None:
    before = {stage["node"]: stage["pid"] for stage in cluster.whole()["stages"]}
    cluster.members["three"].misbehave(f"stop {after(asked, 10)}")
    held = psutil.Process(before["three"])
    stream = Stream(*asked.asked["plain"])
    has_stopped(held)
    one = cluster.members["one"]
    one.process.kill()
    one.process.wait()
    held.resume()
    killed_s = time.monotonic()
    result = stream.result()
    assert result.error is not None
    result.is_right_or_typed(asked.expected["plain"])
    result.ended_within(ENDS_S, killed_s)
    one.start()
    began_s = time.monotonic()
    one.expect("listening", 1)
    pids = {stage["node"]: stage["pid"] for stage in cluster.whole()["stages"]}
    whole_s = time.monotonic() - began_s
    if whole_s < RETURN_WAIT_S:  # else a member may have come so late that another one took its layers
        assert [pids[name] for name in NAMES[1:]] == [before[name] for name in NAMES[1:]]
    print(f"\n  measured: whole {whole_s:.1f} s after its start")  # noqa: T201
    again = Stream(*asked.asked["plain"]).result()
    again.is_right(asked.expected["plain"])
