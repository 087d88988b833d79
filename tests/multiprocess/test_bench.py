"""The bench scripts run to their end, promise what they print, and leave nothing behind. No speed is asserted."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import to_gguf
from edgepp.model.random_checkpoint import TINY
from edgepp.model.weights.checkpoint import Checkpoint
from tests.builders.checkpoints import Checkpoints
from tests.waiting import PATIENCE_S

CLONE = Path(__file__).parents[2]
RATES = {"prefill_tokens_per_s", "decode_tokens_per_s", "e2e_tokens_per_s", "ttft_s"}
SHORT = ["--prompt-tokens", "20", "--gen", "4", "--rounds", "1"]


@pytest.fixture
def tiny(checkpoints: Checkpoints) -> Path:
    shape = replace(TINY, bits=4, group_size=32, dtype="float16")
    return checkpoints(shape)


def command(script: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"bench.{script}", *arguments]


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(script, *arguments), capture_output=True, text=True, timeout=4 * PATIENCE_S, check=False, cwd=CLONE
    )


def result(script: str, *arguments: str) -> dict[str, Any]:
    """What a script prints with --json: one line."""
    done = run(script, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    parsed: dict[str, Any] = json.loads(line)
    assert parsed["machine"]["cpus"] >= 1
    assert "commit" in parsed
    return parsed


def check_rates(side: dict[str, Any]) -> None:
    assert all(side[rate] > 0 for rate in RATES)
    assert all(low <= side[rate] <= high for rate, (low, high) in side["spread"].items())


def test_pipeline(tiny: Path) -> None:
    found = result("pipeline_gain", "--model", str(tiny), "--stages", "2", "--threads", "1", *SHORT)
    for name, stages in (("single", 1), ("pipeline", 2)):
        check_rates(found[name])
        assert len(found[name]["stages"]) == len(found[name]["step_ms"]["stages"]) == stages
    assert all(found["ratio"][name] > 0 for name in ("decode", "prefill", "e2e"))


def test_requests(tiny: Path) -> None:
    settings = ["--requests", "1,3", "--words", "10,20", "--rounds", "1", "--no-text"]
    found = result("concurrency", "--model", str(tiny), "--stages", "1,2", "--threads", "1", *settings)
    assert [(row["stages"], row["requests"], row["words"], row["tokens"]) for row in found["rows"]] == [
        (stages, requests, words, tokens)
        for words, tokens in ((10, 12), (20, 23))
        for requests in (1, 3)
        for stages in (1, 2)
    ]
    assert all((row["ratio"] == 1.0) == (row["stages"] == 1) for row in found["rows"])
    for row in found["rows"]:
        assert len(row["step_ms"]["stages"]) == row["stages"]
        assert min(*row["step_ms"]["stages"], row["ratio"]) > 0
        low, high = row["aggregate_spread"]
        assert 0 < low <= row["aggregate_tokens_per_s"] <= high
        assert 0 < row["tokens_per_s"] <= row["aggregate_tokens_per_s"] * 1.001
        assert 0 < row["ttft_p50_s"] <= row["ttft_p99_s"] <= row["time_s"] * 1.001 * row["requests"]
        assert row["itl_p50_s"] <= row["itl_p99_s"]
        assert not row["text"]


def test_requests_that_the_context_cuts_short_are_no_measurement(tiny: Path) -> None:
    done = run("concurrency", "--model", str(tiny), "--requests", "1", "--words", "1000", "--no-text")
    assert done.returncode == 2
    assert "1150 tokens do not fit the model's context" in done.stderr


def test_pipeline_prints_a_table_before_its_json_line(tiny: Path) -> None:
    done = run("pipeline_gain", "--model", str(tiny), "--stages", "1", *SHORT)
    *table, line = done.stdout.splitlines()
    assert json.loads(line)["bench"] == "pipeline_gain"
    assert any(text.startswith("pipeline / single: decode") for text in table)


@pytest.mark.skipif(sys.platform != "linux", reason="the proxy needs a second loopback address, which only Linux has")
def test_speculation(tiny: Path) -> None:
    sizes = ["--gen", "12", "--words", "8", "--delay-ms", "2", "--rounds", "1"]
    found = result("speculation", "--model", str(tiny), "--exact", *sizes)
    assert [row["task"] for row in found["rows"]] == ["copy", "chat", "story", "random"]
    for row in found["rows"]:
        assert row["same_answers"] == "2 of 2"
        assert row["right"] <= row["guessed"]


def test_an_oracles_guesses_change_no_answer(tiny: Path) -> None:
    sizes = ["--stages", "2", "--threads", "1", "--prompt-tokens", "20", "--gen", "24", "--rounds", "1"]
    found = result("speculation", "--model", str(tiny), "--exact", "--oracle", "0.5,1", *sizes)
    assert [row["acceptance"] for row in found["rows"]] == [0, 0.5, 1]
    for row in found["rows"]:
        low, high = row["spread"]
        assert 0 < low <= row["ratio"] <= high
        assert row["equal"]
        assert row["model_ratio"] > 0
        assert row["right"] <= row["guessed"]


def test_a_draft_of_some_layers_is_a_model_of_its_own(tiny: Path, tmp_path: Path) -> None:
    settings = ["--layers", "0,2-3", "--keep", "3,4", "--gen", "6", "--threads", "1", "--out", str(tmp_path / "draft")]
    found = result("draft_pair", "--model", str(tiny), *settings)
    assert [len(row["layers"]) for row in found["rows"]] == [3, 3, 4]
    assert all(0 <= row["acceptance"] <= 1 for row in found["rows"])
    assert found["rows"][2]["acceptance"] >= 0.9  # all layers, as a prompt and not token by token
    whole, draft = Checkpoint.open(tiny), Checkpoint.open(tmp_path / "draft")
    assert draft.num_layers == 3
    name = "model.layers.{}.mlp.down_proj.weight"
    assert np.array_equal(draft.array(name.format(1)), whole.array(name.format(2)))


def test_waiting(tiny: Path) -> None:
    found = result("latency", "--model", str(tiny), "--long", "100", "--history", "100", "--rounds", "1")
    assert found["during_long_prompt"]["ratio"] > 0
    assert found["second_turn"]["second_ttft_s"] > 0


def test_leaks(tiny: Path) -> None:
    found = result("leaks", "--model", str(tiny), "--requests", "30", "--tolerance", "1.0")
    assert sum(found["ended"].values()) == 30
    assert found["after"]["live"] == found["after"]["waiting"] == 0


def test_http_neighbour() -> None:
    found = result("http_neighbour", "--clients", "4", "--tokens", "20", "--rounds", "1")
    assert found["p99_ratio"] > 0
    assert found["during"]["live"] >= 4
    assert (found["after"]["live"], found["after"]["connections"]) == (0, 0)


def test_link(tiny: Path) -> None:
    found = result("hop", "--rounds", "1", "--model", str(tiny))
    assert len(found["rows"]) == 6 * 4 * 2
    for row in found["rows"]:
        assert row["width"] == 8192
        assert row["dtype"] == "float16"
        assert row["total_ms"] == pytest.approx(row["transmission_ms"] + row["codec_ms"], rel=0.01)
        assert row["mb_per_s"] > 0
    assert {row["ratio"] for row in found["rows"] if row["codec"] == "none"} == {1.0}
    assert 0 < found["hop_us"]["median"] <= found["hop_us"]["p95"]


def test_link_without_a_model_sends_noise_only(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 1}))
    done = run("hop", "--rounds", "1", "--model", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    assert "is not complete on this disk" in done.stderr
    assert {row["data"] for row in json.loads(done.stdout)["rows"]} == {"random"}


def test_compare_leaves_out_what_cannot_run(tiny: Path, tmp_path: Path) -> None:
    nothing = tmp_path / "no-such-python"
    sides = ["--sides", "edgepp-1,edgepp-2,mlx-lm-f32,llama.cpp", "--gguf", str(tiny / "config.json")]
    found = result("other_engines", "--model", str(tiny), *SHORT, *sides, "--llama-python", str(nothing))
    assert set(found["sides"]) == {"edgepp-1", "edgepp-2", "mlx-lm-f32"}
    assert str(nothing) in found["left_out"]["llama.cpp"]
    for side in found["sides"].values():
        check_rates(side)
    assert found["ratio"]["edgepp-2 / mlx-lm-f32"]["decode"] > 0


@pytest.mark.parametrize(
    ("script", "arguments", "what"),
    [
        ("pipeline_gain", ["--threads", "0"], "'0' is not a whole number of at least 1"),
        ("pipeline_gain", ["--model", "no-such-model"], "there is no model called 'no-such-model'"),
        ("pipeline_gain", ["--gen", "1"], "at least 2 generated tokens"),
        ("hop", ["--dtype", "int4"], "invalid choice: 'int4'"),
        ("hop", ["--model", "no-such-model"], "there is no model called 'no-such-model'"),
        ("concurrency", ["--requests", "1,0"], "'0' is not a whole number of at least 1"),
        ("other_engines", ["--sides", "edgepp-1,vllm"], "'vllm' is none of edgepp-1"),
        ("other_engines", ["--gguf", "no-such-file"], "there is no file no-such-file"),
        ("simulation", ["--costs", "/"], "/: Is a directory"),
        ("random_checkpoint", ["/dev/null/x"], "/dev/null/x: Not a directory"),
    ],
)
def test_a_mistake_is_one_sentence(script: str, arguments: list[str], what: str) -> None:
    done = run(script, *arguments)
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert what in line


def test_with_json_a_mistake_is_an_event_too() -> None:
    done = run("simulation", "--costs", "/", "--json")
    assert done.returncode == 1
    event = json.loads(done.stdout)
    assert (event["event"], event["message"]) == ("error", "/: Is a directory")


SCRIPTS = sorted(file.stem for file in (CLONE / "bench").glob("*.py") if "__main__" in file.read_text())


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_help_and_a_line_in_the_methodology(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"bench.{script}").parse()
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: python -m bench.{script} ")
    assert said.count(f"python -m bench.{script}") > 1  # an example
    assert f"| `{script}` |" in (CLONE / "bench" / "METHODOLOGY.md").read_text()


def test_ctrl_c_leaves_no_process(tiny: Path) -> None:
    arguments = ["--model", str(tiny), "--prompt-tokens", "20", "--gen", "4", "--rounds", "100000"]
    with subprocess.Popen(
        command("pipeline_gain", *arguments), stderr=subprocess.PIPE, text=True, cwd=CLONE
    ) as process:
        assert process.stderr is not None
        assert any("warm-up: pipeline" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        process.stderr.read()
        assert process.wait(PATIENCE_S) == 130


def test_gguf_blocks_hold_the_same_numbers() -> None:
    random = np.random.default_rng(0)
    scales, biases = random.standard_normal((2, 6, 2)).astype(np.float16)

    codes = random.integers(0, 16, (6, 128), np.uint8)
    blocks = to_gguf.q4_1(codes, scales, biases).reshape(6, 4, 20)
    affine = blocks[..., :4].copy().view(np.float16)
    assert np.array_equal(affine[..., 0], scales.repeat(2, axis=1))
    assert np.array_equal(affine[..., 1], biases.repeat(2, axis=1))
    unpacked = np.concatenate((blocks[..., 4:] & 15, blocks[..., 4:] >> 4), axis=-1)
    assert np.array_equal(unpacked.reshape(codes.shape), codes)

    codes = random.integers(0, 256, (6, 128)).astype(np.uint8)
    blocks = to_gguf.q8_0(codes, scales).reshape(6, 4, 34)
    assert np.array_equal(blocks[..., :2].copy().view(np.float16)[..., 0], scales.repeat(2, axis=1))
    assert np.array_equal(blocks[..., 2:].view(np.int8).reshape(codes.shape), codes.astype(np.int16) - 128)

    rows = np.arange(8)[:, None]
    assert to_gguf.interleaved(rows, heads=2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_recovery_costs(tiny: Path) -> None:
    found = result("recovery", "--model", str(tiny), "--parts", "cost", *SHORT)
    cost = found["cost"]
    assert set(cost["rates"]) == {"neither", "log", "log and copies"}
    assert all(ratio["decode"] > 0 for ratio in cost["ratios"].values())
    used = cost["bytes_per_token"]
    assert used["log alone: memory"] > 0, "the bench's own switch leaves the log out"
    assert used["copies alone: memory"] > 0
    assert used["copies alone: wire"] > 0
