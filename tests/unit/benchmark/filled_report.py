"""A whole report of figures that were never measured, and parts of reports."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgepp.benchmark.report import AutoChoice, BenchmarkReport, CodecResult, MeasuredTarget, Spread, StageFacts
from edgepp.benchmark.workload import ObservedAnswer, RequestGroup, SingleRun, concurrent_result, ratio, single_result
from edgepp.engine.timing import StageTimes, Timing

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
        settings={"rounds": 2, "warm": True, "single": True, "layouts": []},
        target=MeasuredTarget("local", "tiny", stages),
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


# The report


def replaced(**values: Any) -> BenchmarkReport:
    return replace(filled(), **values)
