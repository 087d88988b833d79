"""Losses in a cluster that keeps copies of keys and values: four streams go on, and nothing is computed again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from edgepp.engine.request import GenerateOptions, SamplingOptions
from edgepp.model.text.conversation import Conversation
from tests.faults.questions import FOUR, MODEL, Questions
from tests.faults.served import Baseline, Served, Stream, all_right, serving


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    options = ("--context", "2048", "--max-sequences", "6", "--keep-copies", "1")
    with serving(tmp_path_factory.mktemp("cluster"), MODEL, *options) as started:
        yield started


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> None:
    """The cluster lives from test to test, and its members check at their end that nothing outlives them."""


def test_four_streams_go_on_over_copies_when_a_stage_process_and_then_a_node_dies(
    cluster: Served, questions: Questions
) -> None:
    baseline = Baseline(cluster, [questions.asked[name] for name in FOUR])
    streams = {name: Stream(*questions.asked[name]) for name in FOUR}
    for stream in streams.values():
        stream.reaches(10)
    os.kill(cluster.whole()["stages"][1]["pid"], signal.SIGKILL)
    for stream in streams.values():
        stream.reaches(25)
    three = cluster.members["three"]
    three.process.kill()
    three.process.wait()
    killed_s = time.monotonic()
    all_right(streams, questions, killed_s)
    three.start()
    baseline.is_restored()


_FEW = 64
"""Positions that the copies may lack: what was decoded since the last piece, and what was under way."""
_TEXT = " ".join(f"Sentence {number} is about the number {number * number}." for number in range(32))
_ASKED = (
    (Conversation.of(_TEXT), GenerateOptions(160, ignore_eos=True)),
    (Conversation.of(_TEXT), GenerateOptions(160, ignore_eos=True, sampling=SamplingOptions(0.7, seed=4))),
)


@pytest.fixture(scope="module")
def undisturbed(cluster: Served) -> list[list[int]]:
    """The tokens of both answers without a loss."""
    return [stream.result().tokens for stream in [Stream(*asked) for asked in _ASKED]]


@pytest.mark.parametrize("lost", [(1, 2), (1, 1), (0, 1)])
def test_a_second_loss_soon_after_the_first_finds_copies_of_nearly_all_positions(
    cluster: Served, undisturbed: list[list[int]], lost: tuple[int, int]
) -> None:
    streams = [Stream(*asked) for asked in _ASKED]
    for stage in lost:
        for stream in streams:
            stream.reaches(stream.tokens + 16)
        _lose(cluster, stage)
    for stream, tokens in zip(streams, undisturbed, strict=True):
        stream.result().is_right(tokens)
        assert [one.how for one in stream.recoveries] == ["copies", "copies"]
        assert max(one.prefilled for one in stream.recoveries) <= _FEW


def _lose(cluster: Served, stage: int) -> None:
    """Kill the process of a stage, and wait until another one runs the stage."""
    pid = cluster.whole()["stages"][stage]["pid"]
    os.kill(pid, signal.SIGKILL)
    cluster.wait("another process", lambda state: state["state"] == "ready" and state["stages"][stage]["pid"] != pid)
