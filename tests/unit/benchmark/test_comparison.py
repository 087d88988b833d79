"""Two reports compared: what is better or worse beyond both spreads, and what makes them unlike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgepp.benchmark.comparison import compare, read
from edgepp.benchmark.workload import RequestGroup, SingleRun, concurrent_result, single_result
from edgepp.errors import UsageError
from tests.unit.benchmark.filled_report import MACHINE, filled, replaced, timing, wait

# Two reports


def test_a_difference_counts_beyond_both_spreads_only() -> None:
    a = filled()
    b = replaced(
        commit="fedcba987654",
        single=single_result([SingleRun(100, timing(0.5, 0.9, 9)), SingleRun(100, timing(0.5, 1.0, 9))]),
        alone=None,
        requests=[concurrent_result(RequestGroup(1, 25), [[wait(29, 0.5, 1.5)], [wait(29, 0.5, 5.0)]])],
    )
    found = compare(a.to_dict(), b.to_dict())
    verdicts = {one.name: one.verdict for one in found.differences}
    assert verdicts["decode token/s, without the first token"] == "better"
    assert verdicts["prefill token/s"] == "within the spread"
    assert verdicts["1 at once, 25 words: time, s"] == "within the spread"
    assert len(found.only_a) == 4 + 6
    assert found.only_b == ()
    assert found.unlike == ("the commit (0123456789ab, fedcba987654)",)
    loaded = compare(a.to_dict(), replaced(machine=MACHINE | {"load_1m": 3.5}).to_dict())
    assert loaded.unlike == ("the second is from a busy machine",)
    back = {one.name: one for one in compare(b.to_dict(), a.to_dict()).differences}
    assert back["decode token/s, without the first token"].verdict == "worse"
    assert back["decode token/s, without the first token"].ratio == pytest.approx(9 / 18, rel=0.1)


def test_less_is_better_of_times_and_one_round_says_nothing() -> None:
    slow, quick = ([SingleRun(9, timing(first, 2.0, 9))] * 2 for first in (1.0, 0.5))
    found = compare(replaced(single=single_result(slow)).to_dict(), replaced(single=single_result(quick)).to_dict())
    assert {one.name: one.verdict for one in found.differences}["time to the first token, s"] == "better"
    once = compare(replaced(single=single_result(slow[:1])).to_dict(), filled().to_dict())
    assert once.differences[0].verdict == "one round"


def test_a_file_that_is_no_report_is_one_clear_sentence(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text(json.dumps(filled().to_dict()))
    assert read(str(tmp_path)) == read(str(file))
    for broken in ("{", "[]", json.dumps({"bench": "edgepp", "schema": 99})):
        file.write_text(broken)
        with pytest.raises(UsageError, match="report"):
            read(str(tmp_path))
    with pytest.raises(UsageError, match="cannot be read"):
        read(str(tmp_path / "nowhere"))
    for figures in (3, [{}], [{"name": "x", "better": "red", "median": 1, "low": 1, "high": 1, "n": 1}], [4]):
        with pytest.raises(UsageError, match="malformed figures"):
            compare(filled().to_dict() | {"figures": figures}, filled().to_dict())
