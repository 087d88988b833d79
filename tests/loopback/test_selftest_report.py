"""The report of a selftest: on one page, and without personal names."""

from __future__ import annotations

import getpass
import json
import platform
from pathlib import Path
from typing import Any

import pytest

from edgepp.errors import UsageError
from edgepp.selftest.anonymity import Anonymiser
from edgepp.selftest.report import SelftestReport
from edgepp.selftest.result import CheckResult, CheckRun
from edgepp.selftest.run import CHECKS, chosen


@pytest.fixture
def anonymiser(monkeypatch: pytest.MonkeyPatch) -> Anonymiser:
    monkeypatch.setattr(platform, "node", lambda: "annas-macbook.local")
    monkeypatch.setattr(getpass, "getuser", lambda: "anna")
    return Anonymiser(["kitchen-pi", "annas-macbook"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kitchen-pi lost KITCHEN-PI", "node-2 lost node-2"),
        ("layers 0-14 on annas-macbook, not on savannas", "layers 0-14 on node-1, not on savannas"),
        ("for anna.", "for user."),
        ("connect 192.168.7.20:5700 failed", "connect address-1:5700 failed"),
        ("10.0.0.1 and fd77::3 and 10.0.0.1", "address-1 and address-2 and address-1"),
        ("at 127.0.0.1 and ::1", "at loopback and loopback"),
        ("no folder /Users/anna/models/x here", "no folder <path> here"),
        ("no folder ~/models here", "no folder <path> here"),
        ("cluster 5f0a9c3be1d24470 of a4:83:e7:12:34:56", "cluster id-1 of hardware-1"),
        ("serial: C02XK0AAJGH5", "serial: <serial>"),
        ("mlx 0.32.4 at 12:30:45, 3 token/s, +1.5 %, commit 016983ece67c", None),
    ],
)
def test_personal_names_are_replaced_and_figures_stay(anonymiser: Anonymiser, text: str, expected: str | None) -> None:
    assert anonymiser.text(text) == (text if expected is None else expected)


def test_values_and_keys_of_json_are_replaced(anonymiser: Anonymiser) -> None:
    value = anonymiser.value({"kitchen-pi": [1, {"who": "anna"}], "n": 2.5, "none": None})
    assert value == {"node-2": [1, {"who": "user"}], "n": 2.5, "none": None}


def _node(name: str) -> dict[str, Any]:
    return {
        "name": name, "roles": ["stage"], "backend": "onnx", "device": "cpu", "threads": 2, "memory_bytes": 8 << 30,
        "stream_bytes_per_s": 5e9, "flops_per_s": 1e11, "version": "0.1.0", "address": "192.168.7.20",
    }  # fmt: skip


def test_a_report_is_written_twice_and_names_nobody(tmp_path: Path) -> None:
    report = SelftestReport(cluster=True, model="/home/anna/smollm2", status={"nodes": [_node("kitchen-pi")]})
    lost = CheckResult(False, "kitchen-pi did not answer at 192.168.7.20")
    kept = CheckResult.held_to("longest hop 0.4 ms", 0.4, 50.0, "ms")
    report.runs += [CheckRun("hops", "hops and links", kept, 1.0), CheckRun("kill", "a stage killed", lost, 2.0)]
    files = report.write(tmp_path / "new" / "folder")
    value = json.loads(files[0].read_text())
    assert value["failed"] == 1
    assert value["nodes"][0]["name"] == "node-1"
    assert [check["check"] for check in value["checks"]] == ["hops", "kill"]
    page = files[1].read_text()
    assert "1 of 2 checks passed, 1 failed; smollm2" in page
    assert "| kill: a stage killed | **failed** | node-1 did not answer at address-1 |" in page
    for text in (files[0].read_text(), page):
        assert not any(name in text for name in ("kitchen-pi", "192.168", "anna"))


def test_a_report_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        SelftestReport(cluster=False).write(tmp_path / "file")


def test_a_limit_is_for_the_right_side() -> None:
    assert CheckResult.held_to("", 2.0, 1.0, "ms").ok is False
    assert CheckResult.held_to("", 24.0, 24.0, "tokens", at_least=True).ok is True
    assert CheckResult.held_to("", 23.0, 24.0, "tokens", at_least=True).against == "23 tokens, at least 24"


def test_checks_are_chosen_by_name() -> None:
    assert [check.name for check in chosen(["kill", "exact"], cluster=False)] == ["exact", "kill"]
    assert "drain" not in [check.name for check in chosen([], cluster=False)]
    assert len(chosen([], cluster=True)) == len(CHECKS)
    with pytest.raises(UsageError, match="no check 'speeed'"):
        chosen(["speeed"], cluster=False)
