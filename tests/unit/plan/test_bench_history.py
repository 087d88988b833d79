"""The history of `edgepp bench`: kept line by line, checked when read, shown and drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from edgepp.benchmark.history_entry import entry
from edgepp.errors import UsageError
from edgepp.http_api.bench_history import routes
from edgepp.plan import bench_history
from edgepp.plan.bench_history import FILE, HistoryEntry, Rate, append_entry, read_entries, series
from edgepp.ui.bench_history import draw, show_history, sparkline
from tests.builders.scripted_service import ScriptedService
from tests.unit.benchmark.filled_report import filled


def run(at: int, decode: float = 10.0, model: str = "tiny") -> HistoryEntry:
    rates = {"decode_tokens_per_s": Rate(decode, decode - 1, decode + 1)}
    return HistoryEntry(
        f"2026-11-2{at} 05:00 +0000", "0.1.0", f"{at:012x}", "a CPU", model, "local, 2 stages", False, rates
    )


def test_entries_come_back_in_their_order_for_the_owner_alone(tmp_path: Path) -> None:
    assert read_entries(tmp_path) == []
    runs = [run(2), run(1), run(3)]
    for one in runs:
        append_entry(tmp_path, one)
    assert read_entries(tmp_path) == runs
    assert (tmp_path / FILE).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b'{"time": 1}', b"\xff\xfe", b'{"rates": {"x": {"median": "fast"}}}', b"null"]
)
def test_a_line_that_is_no_entry_is_named(line: bytes, tmp_path: Path) -> None:
    append_entry(tmp_path, run(1))
    with (tmp_path / FILE).open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(UsageError, match="no entry in line 2"):
        read_entries(tmp_path)


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("")
    (tmp_path / FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="cannot be written"):
        append_entry(tmp_path, run(1))


def test_a_full_history_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_history, "MAX_BYTES", 300)
    append_entry(tmp_path, run(1))
    with pytest.raises(UsageError, match="is full"):
        append_entry(tmp_path, run(2))


def test_only_what_is_alike_makes_a_series() -> None:
    found = series([run(1), run(2, model="other"), run(3)])
    assert [[one.time[:10] for one in runs] for runs in found.values()] == [
        ["2026-11-22"],
        ["2026-11-21", "2026-11-23"],
    ]


def test_a_report_becomes_an_entry_with_its_shape_and_spread() -> None:
    kept = entry(filled())
    assert kept is not None
    assert kept.shape == "local, 2 stages: 0-1 onnx, 2-3 onnx"
    assert kept.label == "0.1.0 0123456789ab"
    decode = kept.rates["decode_tokens_per_s"]
    assert (decode.median, decode.low, decode.high) == pytest.approx((9.0, 8.0, 10.0))
    assert "together_4_tokens_per_s" in kept.rates
    assert entry(replace(filled(), single=None)) is None


def test_a_sparkline_spans_lowest_to_highest() -> None:
    assert sparkline([1.0, 8.0, 4.5]) == "▁█▅"
    assert sparkline([3.0, 3.0]) == "▁▁"


def test_the_history_is_shown_by_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEPP_HOME", str(tmp_path))
    show_history(None, None, as_json_object=False)
    assert "no run is kept yet" in capsys.readouterr().out
    for at, decode in ((1, 10.0), (2, 20.0)):
        append_entry(tmp_path, run(at, decode))
    append_entry(tmp_path, run(3, model="other"))
    show_history("tiny", None, as_json_object=False)
    told = capsys.readouterr().out
    assert "decode token/s: ▁█  10 to 20" in told
    assert "other" not in told


def test_the_history_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = draw([run(1), run(2, 20.0), run(3, model="other")], tmp_path / "plots")
    assert [file.name for file in files] == ["history.svg", "history.png"]
    assert "<svg" in files[0].read_text()


def test_the_page_gets_it_over_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPP_HOME", str(tmp_path))
    append_entry(tmp_path, run(1))
    told = TestClient(Starlette(routes=routes(ScriptedService([])))).get("/bench/history").json()
    assert told["entries"][0]["rates"] == {"decode_tokens_per_s": {"median": 10.0, "low": 9.0, "high": 11.0}}
