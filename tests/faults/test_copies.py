"""Losses in a cluster that keeps copies of keys and values: four streams go on, and nothing is computed again."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.faults.oracle import ENDS_S
from tests.faults.questions import FOUR, MODEL, Questions
from tests.faults.served import Baseline, Stream, serving


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> None:
    """The members check at their end that nothing outlives them."""


def test_four_streams_go_on_over_copies_when_a_stage_process_and_then_a_node_dies(
    tmp_path: Path, questions: Questions
) -> None:
    options = ("--context", "2048", "--max-sequences", "6", "--keep-copies", "1")
    with serving(tmp_path, MODEL, *options) as cluster:
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
        for name, stream in streams.items():
            result = stream.result()
            result.is_right(questions.expected[name])
            result.ended_within(ENDS_S, killed_s)
        three.start()
        baseline.is_restored()
