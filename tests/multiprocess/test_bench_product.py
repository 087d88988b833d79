"""`edgepp bench` on real processes: a local pipeline, a live cluster, Ctrl-C; and links in namespaces. No speed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgepp.model.random_checkpoint import TINY
from tests.builders.checkpoints import Checkpoints
from tests.cluster import EDGEPP, Machine, edgepp, serving
from tests.netns.net import unavailable
from tests.waiting import PATIENCE_S

CLONE = Path(__file__).parents[2]
SHORT = ("--quick", "--rounds", "1", "--requests", "1,3", "--words", "10")


@pytest.fixture
def tiny(checkpoints: Checkpoints) -> Path:
    """Its tokens are bytes: it holds a hundred words of prompt, but no text of 484."""
    return checkpoints(replace(TINY, context=1024))


def check(report: dict[str, Any], stages: int) -> None:
    assert report["partial"] == ""
    assert report["target"]["model"] == "tiny"
    assert [stage["layers"] for stage in report["target"]["stages"]] == ["0-1", "2-3"][:stages]
    for rate in ("decode_tokens_per_s", "e2e_tokens_per_s", "prefill_tokens_per_s", "ttft_s"):
        figure = report["single"][rate]
        assert 0 < figure["low"] <= figure["median"] <= figure["high"]
    assert report["single"]["reused"] == 0
    stories = [row for row in report["requests"] if not row["text"]]
    assert [(row["requests"], row["tokens"]) for row in stories] == [(1, 12), (3, 12)]
    assert len([row for row in report["codecs"] if row["data"] == "real"]) == 15
    assert report["machine"]["cpus"] >= 1


def test_a_local_pipeline_beside_one_process(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    done = edgepp(
        "bench",
        "-m",
        str(tiny),
        "--stages",
        "2",
        "--threads",
        "1",
        "--single",
        "--layouts",
        "1x2,2x1",
        *SHORT,
        "--out",
        str(out),
    )
    assert done.returncode == 0, done.stderr
    assert "ONE PROCESS" in done.stdout
    assert "PP 1, TP 2" in done.stdout
    assert "1/" in done.stderr
    report = json.loads((out / "report.json").read_text())
    check(report, 2)
    assert report["alone"]["decode_tokens_per_s"]["median"] > 0
    assert report["layouts"]["PP 1, TP 2"]["tokens"] == report["single"]["tokens"]
    assert [what.partition(":")[0] for what in report["left_out"]] == ["1 at once, a title", "3 at once, a title"]
    said = (out / "report.md").read_text()
    assert said.startswith("# edgepp bench: tiny on 2 stages")
    assert str(tiny) not in said
    again = edgepp("bench", "-m", str(tiny), *SHORT, "--out", str(out))
    assert again.returncode == 2
    assert "has a report already" in again.stderr
    compared = json.loads(edgepp("bench", "--compare", str(out), str(out), "--json").stdout)
    assert {row["ratio"] for row in compared["rows"]} == {1.0}
    (kept,) = json.loads(edgepp("bench", "--history", "--json").stdout)["entries"]
    assert kept["rates"]["decode_tokens_per_s"]["median"] == pytest.approx(
        report["single"]["decode_tokens_per_s"]["median"], rel=1e-3
    )
    shown = edgepp("bench", "--history").stdout
    assert "tiny, local, 2 stages: 0-1" in shown
    assert "decode token/s: ▁" in shown
    assert [what for what in compared["unlike"] if not what.endswith("is from a busy machine")] == []


def test_a_live_cluster(tiny: Path, tmp_path: Path) -> None:
    one = Machine(tmp_path, "one")
    with serving(one, tiny, "--stages", "2"):
        report = one.json("bench", *SHORT, "--json")
        check(report, 2)
        (node,) = report["target"]["nodes"]
        assert (node["name"], node["backend"]) == ("one", report["target"]["stages"][0]["backend"])
        assert "address" not in node
        assert len(report["left_out"]) == 2
        again = one.json("bench", *SHORT, "--json")
        assert again["single"]["reused"] == 0  # nothing of the first run's prompts helped


def test_without_a_cluster_it_says_how_to_measure_alone(tmp_path: Path) -> None:
    done = Machine(tmp_path, "one").run("bench", "--json")
    assert done.returncode == 1
    assert "this machine belongs to no cluster" in done.stderr
    assert "edgepp bench -m smollm2-135m --stages 2" in done.stderr


def test_ctrl_c_leaves_a_partial_report_and_no_process(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    command = [*EDGEPP, "bench", "-m", str(tiny), "--stages", "2", "--quick", "--rounds", "100000", "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any("one request, round 3 of" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 130
    report = json.loads((out / "report.json").read_text())
    assert report["partial"] == "it was stopped by Ctrl-C"
    assert report["single"]["decode_tokens_per_s"]["n"] >= 2
    assert "**This report is partial" in (out / "report.md").read_text()


def shaped(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run to its end, and see that none of its own namespaces is left; other tests may have theirs meanwhile."""
    command = [sys.executable, "-m", "bench.shaped", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=CLONE) as process:
        stdout, stderr = process.communicate(timeout=4 * PATIENCE_S)
    if shutil.which("ip") is not None:
        named = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
        assert f"edgepp{process.pid}-" not in named
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def test_links_of_a_given_rate(tmp_path: Path) -> None:
    if (reason := unavailable()) is not None:
        pytest.skip(reason)
    done = shaped("--rates", "64,1000", "--rounds", "1", "--noise-only", "--json", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert len(result["rows"]) == 2 * 5 * 3
    for row in result["rows"]:
        assert row["total_ms"] == pytest.approx(row["transmission_ms"] + row["codec_ms"], rel=0.01)
        if row["rows"] == 64:  # long enough to be held to the rate; however busy the machine is
            assert row["reached_mbit_per_s"] < 1.1 * row["mbit_per_s"]
    assert "262.03 + 0.01 = 262.04 (7.63)" in (tmp_path / "links.md").read_text()
    assert json.loads((tmp_path / "links.json").read_text())["rows"] == result["rows"]


def test_answers_over_links_of_a_given_rate(tiny: Path) -> None:
    if (reason := unavailable()) is not None:
        pytest.skip(reason)
    done = shaped(
        *("--decode", "--model", str(tiny), "--rates", "13", "--rounds", "1"),
        *("--prompt-tokens", "32", "--gen", "8", "--json"),
    )
    assert done.returncode == 0, done.stderr
    free, held = json.loads(done.stdout)["rows"]
    assert (free["mbit_per_s"], held["mbit_per_s"]) == (None, 13)
    assert held["link_mbit_per_s"] < 1.1 * 13
    assert min(held["decode_tokens_per_s"], held["there_bytes"], held["back_bytes"]) > 0


def test_what_cannot_be_shaped_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    done = shaped("--rates", "fast")
    assert done.returncode == 2
    assert "'fast' is not a list of rates in Mbit/s" in done.stderr
    monkeypatch.setenv("PATH", "/nowhere")
    if (reason := unavailable.__wrapped__()) is not None:
        done = shaped("--rates", "13")
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: "), reason
