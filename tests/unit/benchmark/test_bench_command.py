"""The command `edgepp bench` without a measurement: mistakes, comparisons and pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgepp.cli.commands import cli
from edgepp.errors import EdgeppError, UsageError
from edgepp.ui import bench_plot
from tests.unit.benchmark.filled_report import filled, replaced

# The command


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--stages", "2"], "--stages needs -m MODEL"),
        (["-m", "x", "--peer", "h:1"], "-m and --peer exclude each other"),
        (["--words", "10,none"], "'10,none' is not a list of numbers of words per answer"),
        (["--requests", "0"], "'0' is not a list of numbers of simultaneous requests"),
        (["--compare", "nowhere", "nothing"], "nowhere cannot be read as a report"),
        (["-m", "no-such-model"], "there is no model called 'no-such-model'"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["bench", *arguments])
    assert isinstance(done.exception, EdgeppError)
    assert what in str(done.exception)
    assert list(tmp_path.iterdir()) == []  # no folder is left of what was not measured


def test_reports_side_by_side(tmp_path: Path) -> None:
    for name, report in (("a", filled()), ("b", replaced(alone=None, partial="stopped"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(report.to_dict()))
    places = [str(tmp_path / "a"), str(tmp_path / "b")]
    shown = CliRunner().invoke(cli, ["bench", "--compare", *places])
    assert (
        "B is neither better nor worse than A: of 14 figures in both, 0 are better and 0 worse beyond both spreads"
        in shown.output
    )
    assert "Other differences: the second is partial." in shown.output
    rows = json.loads(CliRunner().invoke(cli, ["bench", "--compare", *places, "--json"]).output)["rows"]
    assert {row["ratio"] for row in rows} == {1.0}


def test_a_missing_matplotlib_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match="matplotlib") as error:
        bench_plot.draw(filled(), tmp_path)
    assert error.value.hint == "pip install 'edgepp[plot]'"


def test_plots_are_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    written = bench_plot.draw(filled(), tmp_path)
    assert [path.name for path in written] == ["requests.png", "links.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
