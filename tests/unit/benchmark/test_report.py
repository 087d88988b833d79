"""What `edgepp bench` makes of what it measured: figures, tables, comparisons. Nothing is timed."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgepp.benchmark import baselines, hidden_states, prompts, target
from edgepp.benchmark.comparison import compare, read
from edgepp.benchmark.markdown import markdown
from edgepp.benchmark.measurement import FULL, QUICK, BenchmarkSettings, Measurement
from edgepp.benchmark.report import AutoChoice, BenchmarkReport, CodecResult, Spread, StageFacts, Target
from edgepp.benchmark.workload import (
    ObservedAnswer,
    RequestGroup,
    SingleRun,
    concurrent_result,
    percentile,
    ratio,
    single_result,
)
from edgepp.cli.commands import cli
from edgepp.engine.request import GenerateOptions
from edgepp.engine.timing import StageTimes, Timing
from edgepp.errors import EdgeppError, ModelError, PeerLost, StageLost, UsageError
from edgepp.ui import bench_plot

MACHINE = {
    "cpu": "a CPU",
    "cores": 2,
    "cpus": 4,
    "memory_gib": 8.0,
    "system": "Linux x86_64",
    "python": "3.11.7",
    "load_1m": 0.1,
    "libraries": {"edgepp": "0.1.0"},
}
SHORT = BenchmarkSettings(rounds=2, warm=False, prompt_words=5, answer=9, requests=(1, 4), words=(25,))


def timing(first_s: float, last_s: float, tokens: int, **more: int) -> Timing:
    return Timing(10.0, 10.0 + first_s, 10.0 + last_s, tokens, **more, stages=[StageTimes(0.0, 0.4, 0.08)])


def wait(tokens: int, *arrivals_s: float) -> ObservedAnswer:
    return ObservedAnswer(prompt_tokens=20, reused=5, tokens=tokens, arrivals_s=arrivals_s)


def filled() -> BenchmarkReport:
    """A whole report of a pipeline that is twice as fast as one process."""
    stages = (
        StageFacts("0-1", "one", "onnx", "cpu", 1e-4, None),
        StageFacts("2-3", "two", "onnx", "cpu", 2e-4, 1.25e7),
    )
    report = BenchmarkReport(
        began="2026-11-22 05:00 +0000",
        settings={"rounds": 2, "warm": True, "single": True},
        target=Target("local", "tiny", stages),
        version="0.1.0",
        commit="0123456789ab",
        machine=MACHINE,
    )
    ours, alone = [timing(0.5, 1.3, 9), timing(0.5, 1.5, 9)], [timing(1.0, 2.6, 9), timing(1.0, 3.0, 9)]
    runs, runs_alone = ([SingleRun(100, one) for one in side] for side in (ours, alone))
    report.single, report.alone, report.ratio = single_result(runs), single_result(runs_alone), ratio(runs, runs_alone)
    report.requests = [
        concurrent_result(RequestGroup(1, 25), [[wait(29, 0.5, 1.0)], [wait(29, 0.5, 2.0)]]),
        concurrent_result(RequestGroup(4, 25), [[wait(29, 0.5, 2.0)] * 4, [wait(29, 0.5, 4.0)] * 4]),
        concurrent_result(RequestGroup(1, 10, text=True), [[wait(18, 0.5, 2.0)], [wait(18, 0.5, 2.0)]]),
    ]
    report.codecs = [
        CodecResult(64, 8192, "float16", "noise", "none", Spread(0.01, 0.01, 0.02, 5), 1_048_576, 1_048_576),
        CodecResult(64, 8192, "float16", "noise", "zstd", Spread(5.0, 4.0, 6.0, 5), 1_048_576, 900_000),
    ]
    report.chosen = [AutoChoice(13, "noise", 64, "zstd"), AutoChoice(1000, "noise", 64, "none")]
    return report


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


# The report


def replaced(**values: Any) -> BenchmarkReport:
    return replace(filled(), **values)


def test_a_report_shows_each_table_beside_the_origin() -> None:
    lines = markdown(filled()).splitlines()
    assert lines[0] == "# edgepp bench: tiny on 2 stages"
    assert "| decode token/s, without the first token | 9 (8–10) | 4.5 (4–5) | 2 (2–2) |" in lines
    assert "| PP 2, TP 1 | without | 8.04 | 3.01 |" in lines
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
    assert "| 0 | 0-3 | a\\|b | onnx on cpu |  |  |" in markdown(replaced(target=Target("local", "tiny", stages)))


def test_the_json_form_holds_every_figure() -> None:
    form = json.loads(json.dumps(filled().to_dict()))
    names = [one["name"] for one in form["figures"]]
    assert len(names) == len(set(names)) == 8 + 3 * 3 + 1
    assert form["single"]["decode_tokens_per_s"] == {"median": 9.0, "low": 8.0, "high": 10.0, "n": 2}
    assert form["codecs"][1]["pays_below_mbit_per_s"] == 237.7
    assert (form["schema"], form["bench"], form["partial"]) == (1, "edgepp", "")


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


# The order of things, with answers that cost nothing


@dataclass
class Given:
    """An answer of a model that is asked nothing."""

    options: GenerateOptions
    finish_reason: str = "length"
    prompt_tokens: int = 10
    token_ids: list[int] = field(default_factory=list)
    timing: Timing = field(default_factory=lambda: timing(0.5, 1.5, 9))

    async def whole(self) -> Given:
        async for _ in self:
            continue
        return self

    async def __aiter__(self) -> AsyncIterator[str]:
        for token in range(self.options.max_tokens):
            self.token_ids.append(token)
            yield "x"


class Model:
    """Answers, until it has been asked so often; loses a stage at its question number ``loses``."""

    def __init__(self, until: int = 1000, context: int = 1000, loses: int = 0) -> None:
        self.prompts: list[str] = []
        self.opened = 0
        self._until = until
        self._context = context
        self._loses = loses

    async def open(self) -> None:
        self.opened += 1

    def ask(self, prompt: Any, options: GenerateOptions | None = None, *, raw: bool = False) -> Any:
        self.prompts.append(prompt)
        if len(self.prompts) > self._until:
            raise PeerLost("the coordinator is gone")
        if len(self.prompts) == self._loses:
            raise StageLost("stage 1 stopped answering")
        assert options is not None
        assert options.ignore_eos
        short = len(str(prompt).split()) > self._context
        return Given(options, finish_reason="context" if short else "length")


def measure(
    model: Model, alone: Model | None = None, settings: BenchmarkSettings = SHORT
) -> tuple[BenchmarkReport, list[str]]:
    report = replaced(single=None, alone=None, requests=[], codecs=[], chosen=[])
    report.settings = {"rounds": 2, "warm": False, "single": alone is not None}
    steps: list[str] = []

    def report_progress(done: int, total: int, what: str) -> None:
        assert done < total
        steps.append(what)

    bench = Measurement("no-such-model", settings, report, report_progress)
    bench._measure_codecs = lambda: None  # type: ignore[method-assign]  # timed; has tests of its own
    try:
        asyncio.run(bench.run(model, alone))
    except EdgeppError as error:
        report.partial = str(error)
    return report, steps


def test_sides_are_asked_in_turn_and_rows_round_after_round() -> None:
    model, alone = Model(), Model()
    report, steps = measure(model, alone)
    assert steps[:4] == [
        "one request, warm-up",
        "one process, warm-up",
        "one request, round 1 of 2",
        "one process, round 1 of 2",
    ]
    assert steps[6:10] == [
        "1 at once, 25 words, round 1 of 2",
        "4 at once, 25 words, round 1 of 2",
        "1 at once, a title, round 1 of 2",
        "4 at once, a title, round 1 of 2",
    ]
    assert len(steps) == 6 + 8
    assert len(model.prompts) == len(set(model.prompts)) == 3 + 2 * (1 + 4 + 1 + 4)
    assert alone.prompts == model.prompts[:3]
    assert [row.tokens for row in report.requests] == [29, 29, 18, 18]
    assert report.single is not None
    assert report.single.decode_tokens_per_s.n == 2


def test_a_row_that_does_not_fit_the_context_is_left_out() -> None:
    report, _ = measure(Model(context=100))
    assert [row.text for row in report.requests] == [False, False]
    assert len(report.left_out) == 2
    assert "do not fit the model's context" in report.left_out[0]


@pytest.mark.parametrize("question", [2, 6])
def test_a_stage_that_is_lost_on_a_busy_machine_costs_one_more_try(question: int) -> None:
    model = Model(loses=question)
    report, _ = measure(model)
    assert not report.partial
    assert model.opened == 1
    assert "stage 1 stopped answering" in report.left_out[0]
    assert len(report.requests) == 4
    assert report.single is not None
    assert report.single.decode_tokens_per_s.n == 2


def test_what_was_measured_before_a_loss_stands_in_the_report() -> None:
    report, _ = measure(Model(until=4))
    assert report.partial == "the coordinator is gone"
    assert report.single is not None
    assert [row.name for row in report.requests] == ["1 at once, 25 words"]


def test_the_default_is_the_origins_table() -> None:
    rows = FULL.rows()
    assert {(row.requests, row.words) for row in rows if not row.text} == set(baselines.STORIES)
    assert {row.requests for row in rows if row.text} == set(baselines.TITLES)
    assert {(row.requests, row.words) for row in QUICK.rows() if not row.text} < set(baselines.STORIES)


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
