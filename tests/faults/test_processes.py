"""Processes that die or lack memory under several answers of a cluster of three nodes with real weights.

Faults at one chosen step of an answer: ``test_processes_at_steps``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import psutil
import pytest

from tests.faults.questions import FOUR, MODEL, Questions
from tests.faults.served import Baseline, Served, Stream, all_right, serving


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


@pytest.mark.parametrize("stage", range(3))
def test_four_streams_go_on_when_a_stage_process_is_killed(cluster: Served, questions: Questions, stage: int) -> None:
    _, process = cluster.stage(stage)
    streams = {name: Stream(*questions.asked[name]) for name in FOUR}
    for stream in streams.values():
        stream.reaches(10)
    process.kill()
    killed_s = time.monotonic()
    all_right(streams, questions, killed_s)


def test_a_whole_node_dies_and_is_started_again(cluster: Served, questions: Questions) -> None:
    streams = {name: Stream(*questions.asked[name]) for name in ("plain", "seeded")}
    for stream in streams.values():
        stream.reaches(10)
    three = cluster.members["three"]
    three.process.kill()  # its stage process ends by itself
    three.process.wait()
    killed_s = time.monotonic()
    all_right(streams, questions, killed_s)
    three.start()


def test_a_stage_process_lacks_memory(cluster: Served, questions: Questions) -> None:
    _, process = cluster.stage(1)
    limit = process.rlimit(psutil.RLIMIT_AS)
    process.rlimit(psutil.RLIMIT_AS, (process.memory_info().vms, limit[1]))
    streams = {name: Stream(*questions.asked[name]) for name in ("long", "plain", "seeded")}
    for name, stream in streams.items():
        result = stream.result()
        result.is_right_or_typed(questions.expected[name])
    if process.is_running():
        process.rlimit(psutil.RLIMIT_AS, limit)
