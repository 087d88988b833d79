"""The entry of a report in the history of `edgepp bench`."""

from __future__ import annotations

from edgepp.benchmark.machine import busy
from edgepp.benchmark.report import NAMES, BenchmarkReport, Spread
from edgepp.plan.bench_history import HistoryEntry, Rate


def entry(report: BenchmarkReport) -> HistoryEntry | None:
    """The entry of ``report``; None if the report has no rate of one request."""
    if report.single is None:
        return None
    target, about = report.target, report.machine
    stages = ", ".join(f"{stage.layers} {stage.backend}" for stage in target.stages)
    count = f"{len(target.stages)} stage{'' if len(target.stages) == 1 else 's'}"
    rates: dict[str, Spread] = {name: getattr(report.single, name) for name in NAMES}
    if report.requests:
        most = max(report.requests, key=lambda row: row.requests)
        rates[f"together_{most.requests}_tokens_per_s"] = most.aggregate_tokens_per_s
    return HistoryEntry(
        time=report.began,
        version=report.version,
        commit=report.commit,
        machine=f"{about['cpu']}, {about['cpus']} CPUs, {about['system']}",
        model=target.model,
        shape=f"{target.kind}, {count}: {stages}",
        busy=busy(about),
        rates={name: Rate(one.median, one.low, one.high) for name, one in rates.items()},
    )
