"""Two reports compared: what is better or worse beyond both spreads, and what makes them unlike."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from edgepp.benchmark.comparison import compare, read
from edgepp.benchmark.workload import RequestGroup, SingleRun, concurrent_result, single_result
from edgepp.errors import UsageError
from edgepp.ui.bench_comparison import show_comparison
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
    figures: Any
    for figures in (3, [{}], [{"name": "x", "better": "red", "median": 1, "low": 1, "high": 1, "n": 1}], [4]):
        with pytest.raises(UsageError, match="malformed figures"):
            compare(filled().to_dict() | {"figures": figures}, filled().to_dict())


FIGURE: dict[str, Any] = {"name": "x", "better": "more", "median": 2, "low": 1, "high": 3, "n": 2}


@pytest.mark.parametrize(
    "wrong",
    [{"median": 10**400}, {"n": float("inf")}, {"n": 0}, {"median": -1, "low": -1}, {"low": 5}, {"high": float("nan")}],
    ids=str,
)
def test_a_figure_that_no_bench_writes_is_malformed(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="malformed figures"):
        compare(filled().to_dict(), filled().to_dict() | {"figures": [FIGURE | wrong]})


@pytest.mark.parametrize("text", ["[" * 100_000, "\xff", ""], ids=["deep", "latin-1", "empty"])
def test_a_file_of_any_bytes_is_one_clear_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match="cannot be read as a report: it is not JSON"):
        read(str(tmp_path))


def test_a_pipe_or_a_device_is_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (str(tmp_path / "pipe"), "/dev/zero"):
        with pytest.raises(UsageError, match="where a file should be"):
            read(place)


# What is shown


def shown(tmp_path: Path, capsys: pytest.CaptureFixture[str], a: list[Any], b: list[Any], mode: str = "") -> str:
    for name, figures in (("a.json", a), ("b.json", b)):
        (tmp_path / name).write_text(json.dumps(filled().to_dict() | {"figures": figures}))
    show_comparison(str(tmp_path / "a.json"), str(tmp_path / "b.json"), as_json=mode == "--json")
    return capsys.readouterr().out


def test_it_begins_with_the_verdict_also_where_nothing_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = FIGURE | {"median": 8, "low": 7, "high": 9}
    assert shown(tmp_path, capsys, [FIGURE], [quick]).startswith("B is better than A: of 1 figures in both, 1 are")
    once = shown(tmp_path, capsys, [FIGURE], [quick | {"n": 1}])
    assert once.startswith("Whether B is better than A is not known: all 1 figures in both are of one round")
    apart = shown(tmp_path, capsys, [FIGURE], [FIGURE | {"name": "evil\nB is better than A"}])
    assert apart.startswith("B cannot be compared with A: no figure is in both.\n")
    assert "FIGURE" not in apart
    assert "\nB is better" not in apart


def test_json_has_the_verdict_and_only_finite_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zero = FIGURE | {"median": 0, "low": 0, "high": 0}

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    form = json.loads(shown(tmp_path, capsys, [zero], [FIGURE], "--json"), parse_constant=refuse)
    assert (form["verdict"], form["rows"][0]["ratio"]) == ("better", None)
    assert "B is better than A" in shown(tmp_path, capsys, [zero], [FIGURE])
    assert "B is worse than A" in shown(tmp_path, capsys, [FIGURE], [zero])
