"""bench.prediction runs to its end, promises what it prints, and leaves nothing behind. No speed is asserted."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edgepp.model.random_checkpoint import TINY
from tests.builders.checkpoints import Checkpoints
from tests.waiting import PATIENCE_S

CLONE = Path(__file__).parents[2]
SMALL = ["--requests", "1,2", "--cycles", "3", "--rounds", "1", "--patience", "0"]


@pytest.fixture
def tiny(checkpoints: Checkpoints) -> Path:
    shape = replace(TINY, bits=4, group_size=32, dtype="float16", context=2048)
    return checkpoints(shape)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.prediction", *arguments],
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE_S,
        check=False,
        cwd=CLONE,
    )


def test_predictions_beside_measurements(tiny: Path) -> None:
    done = run("--model", str(tiny), "--stages", "1,2", *SMALL, "--links", "0:0,1:50", "--prompts", "8,70")
    assert done.returncode == 0, done.stderr
    *table, line = done.stdout.splitlines()
    found = json.loads(line)
    rows = found["rows"]
    kinds = {(row["stages"], row["link"], row["what"], row["requests"]) for row in rows}
    assert len(kinds) == len(rows) == found["settings"] == 2 * 2 * (2 + 2)
    for row in rows:
        assert row["predicted"] > 0
        assert row["measured"] > 0
        assert row["error"] == pytest.approx(row["predicted"] / row["measured"] - 1, abs=2e-3 * (1 + row["error"]))
    errors = [abs(row["error"]) for row in rows]
    assert found["median_error"] == pytest.approx(statistics.median(errors), rel=0.01)
    assert found["worst_error"] == pytest.approx(max(errors), rel=0.01)
    assert set(found["drift"]) == {"decode", "prefill", "ends"}
    assert "16 settings: median error" in table[-1]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--links", "fast"], "'fast' is not MS:MBIT"),
        (["--cycles", "1"], "at least 2 steps"),
        (["--model", "no-such-model"], "there is no model called 'no-such-model'"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], what: str) -> None:
    done = run(*arguments)
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert what in line
