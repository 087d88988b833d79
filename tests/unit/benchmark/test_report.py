"""What `edgepp bench` makes of what it measured: figures, tables, comparisons. Nothing is timed."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgepp.benchmark import baselines, hidden_states, prompts, target
from edgepp.benchmark.markdown import markdown
from edgepp.benchmark.origin_table import parse_layouts
from edgepp.benchmark.report import CodecResult, MeasuredTarget, Spread, StageFacts
from edgepp.benchmark.workload import RequestGroup, SingleRun, concurrent_result, percentile, ratio, single_result
from edgepp.errors import EdgeppError, ModelError, UsageError
from tests.unit.benchmark.filled_report import MACHINE, filled, replaced, timing, wait

# What was measured


def test_the_rates_of_one_request_are_those_of_the_methodology() -> None:
    found = single_result(
        [SingleRun(100, timing(0.5, 1.3, 9)), SingleRun(100, timing(0.5, 1.5, 9)), SingleRun(120, timing(0.5, 1.4, 9))]
    )
    assert found.decode_tokens_per_s.median == pytest.approx(8 / 0.9)
    assert (found.decode_tokens_per_s.low, found.decode_tokens_per_s.high) == pytest.approx((8 / 1.0, 8 / 0.8))
    assert found.e2e_tokens_per_s.median == pytest.approx(9 / 1.4)
    assert found.prefill_tokens_per_s.median == pytest.approx(100 / 0.5)
    assert found.ttft_s.median == pytest.approx(0.5)
    assert found.stages_ms == pytest.approx((400 / 8,))
    assert found.wire_ms + found.coordinator_ms + sum(found.stages_ms) == pytest.approx(900 / 8)


def test_the_origins_rows_have_what_was_measured_here_beside_them() -> None:
    runs = [SingleRun(100, timing(1.0, 2.0, 9))]
    report = replaced(layouts={"PP 2, TP 2": single_result(runs), "PP 1, TP 2": single_result(runs)})
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown(report).splitlines()]
    assert ["PP 2, TP 2", "without", "7.38", "2.51", "8"] in lines
    assert ["PP 2, TP 2", "with", "5.66", "2.46", "4.5"] in lines
    assert ["PP 1, TP 2", "with", "-", "-", "4.5"] in lines
    assert next(line[4] for line in lines if line[:2] == ["PP 2, TP 1", "without"]) != "-", "the pipeline itself"
    assert next(line[4] for line in lines if line[:2] == ["one machine", "without"]) != "-"
    names = [figure["name"] for figure in report.to_dict()["figures"]]
    assert "PP 2, TP 2: decode token/s, without the first token" in names


def test_layouts_are_stages_times_processes() -> None:
    assert parse_layouts("2x1, 2x2,2x1") == ((2, 1), (2, 2))
    for wrong in ("", "2", "2x", "0x1", "2x0", "2x17", "2x2;1x1", "-1x2"):
        with pytest.raises(UsageError, match="not a list of layouts"):
            parse_layouts(wrong)


def test_what_the_stages_still_held_is_no_prefill_and_guesses_are_no_steps() -> None:
    found = single_result([SingleRun(100, timing(0.5, 1.3, 9, reused=60, guessed=4, right=3))])
    assert found.prefill_tokens_per_s.median == pytest.approx(40 / 0.5)
    assert (found.reused, found.guessed, found.right) == (60, 4, 3)
    assert found.stages_ms == ()
    assert "4 tokens were guessed ahead over all rounds, 3 of them right" in markdown(replaced(single=found))


def test_a_row_of_requests_at_once() -> None:
    row = concurrent_result(
        RequestGroup(2, 25), [[wait(29, 0.5, 1.0), wait(29, 1.0, 2.0)], [wait(29, 0.5, 2.0), wait(29, 0.5, 4.0)]]
    )
    assert row.tokens_per_s.median == pytest.approx(((29 + 14.5) / 2 + (14.5 + 7.25) / 2) / 2)
    assert row.time_s == Spread(2.25, 1.5, 3.0, 2)
    assert (row.aggregate_tokens_per_s.low, row.aggregate_tokens_per_s.high) == (58 / 4, 58 / 2)
    assert (row.ttft_p50_s, row.ttft_p99_s) == (0.5, 1.0)
    assert row.name == "2 at once, 25 words"
    assert percentile([3.0, 1.0, 2.0], 99) == 3.0


def test_no_two_prompts_begin_alike() -> None:
    assert len(prompts.words()) == 1632
    first, second = itertools.islice(prompts.numbers(), 2)
    assert len(str(first)) == 8
    assert second == first + 1
    for prompt in (prompts.passage(first, 100), prompts.story(first, 25), prompts.title(first)):
        assert prompt.startswith(str(first))
    assert len(prompts.passage(first, 2000).split()) == 2001
    assert len(prompts.title(first).partition("words: ")[2].split()) == 484


def test_codecs_are_lossless_and_auto_compresses_slow_links_only() -> None:
    states = hidden_states.noise()
    found = hidden_states.measure_codecs("noise", states, 2)
    assert [(one.rows, one.codec) for one in found] == [
        (rows, name) for rows in hidden_states.ROWS for name in hidden_states.CODECS
    ]
    assert all(one.ratio == 1 and one.pays_below_mbit_per_s == 0 for one in found if one.codec == "none")
    assert all(one.ratio > 1.05 and one.pays_below_mbit_per_s > 0 for one in found if one.codec == "zstd")
    chosen = hidden_states.auto_choices("noise", states, [0.5, 1e9])
    assert {one.codec for one in chosen if one.mbit_per_s == 0.5 and one.rows > 4} == {"zstd"}
    assert {one.codec for one in chosen if one.mbit_per_s == 1e9} == {"none"}


def test_when_a_codec_pays_follows_from_its_bytes_and_its_time() -> None:
    one = CodecResult(64, 8192, "float16", "noise", "zstd", Spread(5.0, 5.0, 5.0, 1), 1_000_000, 900_000)
    assert one.pays_below_mbit_per_s == pytest.approx(160)  # 800 kbit in 5 ms
    plain = replace(one, codec="none", codec_ms=Spread(0.0, 0.0, 0.0, 1), sent_bytes=1_000_000)
    assert one.total_ms(160) == pytest.approx(plain.total_ms(160))
    assert one.total_ms(100) < plain.total_ms(100)
    assert one.total_ms(1000) > plain.total_ms(1000)
    assert one.total_ms(100, latency_s=1.0) == pytest.approx(one.total_ms(100) + 1000)


def test_a_model_that_is_not_here_has_no_real_hidden_states(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 1}))
    with pytest.raises(ModelError):
        hidden_states.real(str(tmp_path))


def test_a_ratio_is_formed_within_a_round() -> None:
    """The machine was half as fast in the second round, for both sides."""
    ours = [SingleRun(100, timing(0.5, 1.5, 9)), SingleRun(100, timing(1.0, 3.0, 9))]
    alone = [SingleRun(100, timing(1.0, 1.8, 9)), SingleRun(100, timing(2.0, 3.6, 9))]
    found = ratio(ours, alone)
    decode = found["decode_tokens_per_s"]
    assert (decode.low, decode.median, decode.high) == pytest.approx((0.8, 0.8, 0.8))
    assert found["ttft_s"] == Spread(0.5, 0.5, 0.5, 2)


# The origin's figures


def test_the_origin_is_as_it_is_printed() -> None:
    assert pytest.approx(0.73, abs=0.005) == baselines.PIPELINE_KEPT
    one, four = baselines.STORIES[1, 100], baselines.STORIES[4, 100]
    assert 4 * four.tokens_per_s / one.tokens_per_s == pytest.approx(2.55, abs=0.005)
    assert [len(row) for row in baselines.SENDING.values()] == [3, 3, 3, 2, 3]
    for row in baselines.SENDING.values():
        for sent in row.values():
            assert sent.transmission_ms + sent.codec_ms == pytest.approx(sent.total_ms, abs=0.02)
    # Its link: 64 rows of float16 there and back. Its MB/s: float32 one way, in MiB, by the way there and back.
    plain = baselines.SENDING[64]["none"]
    assert 2 * 64 * 8192 * 16 / plain.total_ms / 1e3 == pytest.approx(baselines.SENDING_MBIT_PER_S, rel=0.01)
    assert 64 * 8192 * 4 / 2**20 / plain.total_ms * 1e3 == pytest.approx(plain.mb_per_s, rel=0.01)
    for answered in (*baselines.STORIES.values(), *baselines.TITLES.values()):
        assert answered.tokens / answered.time_s == pytest.approx(answered.tokens_per_s, rel=0.03)


def test_a_report_shows_each_table_beside_the_origin() -> None:
    lines = markdown(filled()).splitlines()
    assert lines[0] == "# edgepp bench: tiny on 2 stages"
    assert "| decode token/s, without the first token | 9 (8–10) | 4.5 (4–5) | 2 (2–2) |" in lines
    assert "| PP 2, TP 1 | without | 8.04 | 3.01 | 9 (8–10) |" in lines
    story = next(line for line in lines if line.startswith("| 4 | 25 |"))
    assert story.endswith("| 30.5 | 2.01 | 15.2 |")
    assert next(line for line in lines if line.startswith("| 1 | 18 |")).endswith("| 16 | 2.28 | 7 |")
    zstd = next(line for line in lines if line.startswith("| 64 | noise | zstd |"))
    assert zstd == "| 64 | noise | zstd | 5.000 | 1.17 | 238 | 118 | 83.67 | 339.92 |"
    assert "| noise | 13 | zstd |" in lines
    assert "| 1 | 2-3 | two | onnx on cpu | 0.20 | 100 |" in lines
    assert any("Four requests at once get together 2.0 times one request's rate" in line for line in lines)
    assert not any("partial" in line or "busy" in line for line in lines)


def test_what_is_not_whole_or_not_quiet_says_so() -> None:
    said = markdown(replaced(partial="it was stopped by Ctrl-C", requests=[], codecs=[], chosen=[]))
    assert "**This report is partial: it was stopped by Ctrl-C.**" in said
    assert "requests at once" not in said
    assert "The machine was busy" in markdown(replaced(machine=MACHINE | {"load_1m": 3.5}))
    assert "- real hidden states: too large" in markdown(replaced(left_out=["real hidden states: too large"]))


def test_a_cell_cannot_break_a_table() -> None:
    stages = (StageFacts("0-3", "a|b", "onnx", "cpu", None, None),)
    assert "| 0 | 0-3 | a\\|b | onnx on cpu |  |  |" in markdown(
        replaced(target=MeasuredTarget("local", "tiny", stages))
    )


def test_the_json_form_holds_every_figure() -> None:
    form = json.loads(json.dumps(filled().to_dict()))
    names = [one["name"] for one in form["figures"]]
    assert len(names) == len(set(names)) == 8 + 3 * 3 + 1
    assert form["single"]["decode_tokens_per_s"] == {"median": 9.0, "low": 8.0, "high": 10.0, "n": 2}
    assert form["codecs"][1]["pays_below_mbit_per_s"] == 237.7
    assert (form["schema"], form["bench"], form["partial"]) == (1, "edgepp", "")


# What it was measured on


def status(**values: Any) -> dict[str, Any]:
    node = {
        "node": "key-id", "address": "192.168.1.20", "name": "mini", "roles": ["stage"], "state": "ready",
        "backend": "onnx", "device": "cpu", "threads": 4, "memory_bytes": 8 * 10**9, "stream_bytes_per_s": 1e10,
        "flops_per_s": 1e11,
        "rtt_s": 0.001, "version": "0.1.0",
    }  # fmt: skip
    stage = {
        "layers": [0, 4], "node": "mini", "address": "192.168.1.20:5000", "backend": "onnx", "device": "cpu",
        "hop_s": 1e-4, "link_bytes_per_s": 1.2e7,
    }  # fmt: skip
    return {"state": "ready", "reason": "", "model": "/home/me/tiny", "nodes": [node], "stages": [stage]} | values


def test_a_cluster_is_described_without_addresses_and_keys() -> None:
    found = target.cluster(status())
    assert (found.model, found.stages[0].layers, found.stages[0].bytes_per_s) == ("tiny", "0-3", 1.2e7)
    said = json.dumps(replaced(target=found).to_dict()) + markdown(replaced(target=found))
    assert "mini" in said
    assert not any(secret in said for secret in ("192.168", "key-id", "/home/me"))


def test_a_cluster_that_loads_is_not_measured() -> None:
    with pytest.raises(EdgeppError, match="the cluster is waiting: it needs 3 GB more"):
        target.cluster(status(state="waiting", reason="it needs 3 GB more"))
