"""Costs of a real pipeline, measured in the engine thread, and comparison of the pipeline with its simulation.

Calibration runs have other prompts, lengths and numbers of requests than the compared runs. On one machine stages and
coordinator share cores; the measured costs contain that effect, by rows of a micro-batch.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bench.toolkit.figures import prompt, spread_text, table
from bench.toolkit.least_squares import nonnegative_least_squares
from bench.toolkit.local import arrivals
from bench.toolkit.processors import pin_stages
from bench.toolkit.recording import EngineRecord, RecordedPipeline
from bench.toolkit.script import say
from edgepp.engine.pipeline_options import PipelineOptions
from edgepp.engine.request import GenerateOptions
from edgepp.simulator.costs import CoordinatorCost, Curve, LinkCost, Replica, StageCost
from edgepp.simulator.result import Distribution
from edgepp.simulator.simulate import simulate
from edgepp.simulator.workload import Arrival

CALIBRATE = ((1, 200, 60), (4, 40, 40), (6, 40, 40), (8, 40, 40), (12, 40, 40), (1, 20, 60))
"""(requests at the same time, prompt tokens, answer tokens). 2 requests are left out: their steps have one row, like
those of a single request, and would mix the effect of shared cores into the cost of one row."""
MIN_STEPS = 12
"""Minimum number of steps of one size whose mean counts."""
CHECK = (96, 80)
"""Tokens of prompt and answer in the compared runs."""


def run(pipeline: RecordedPipeline, requests: int, tokens: int, answer: int, turn: int) -> dict[str, Any]:
    """Run ``requests`` requests at the same time; ``turn`` makes the prompts new."""
    vocabulary = len(pipeline.tokenizer.vocabulary())
    prompts = [prompt(vocabulary, tokens, 1000 * turn + number) for number in range(requests)]
    options = GenerateOptions(max_tokens=answer, ignore_eos=True)
    asked = [pipeline.engine.submit(ids, options, owner=f"{turn}-{i}") for i, ids in enumerate(prompts)]
    for request in asked:
        arrivals(request)
    began_s = asked[0].timing.submitted_s
    return {
        "arrivals_s": [request.timing.submitted_s - began_s for request in asked],
        "tokens_per_s": requests * answer / (max(request.timing.last_token_s for request in asked) - began_s),
        "ttft_s": statistics.fmean(request.timing.ttft_s for request in asked),
        "decode_tokens_per_s": statistics.fmean(request.timing.decode_tokens_per_s for request in asked),
    }


FIGURES = ("tokens_per_s", "ttft_s", "decode_tokens_per_s")


def checked(model: str, stages: int, at_once: Sequence[int], rounds: int) -> dict[str, Any]:
    """Measure the costs of a real pipeline, and compare pipeline and simulation for each number of requests.

    Each round measures the costs again, so that the simulation has the machine's present costs.
    """
    fits: list[Replica] = []
    found: dict[int, list[dict[str, Any]]] = {requests: [] for requests in at_once}
    with RecordedPipeline(PipelineOptions(model, stages=stages, threads=1, speculate="off")) as pipeline:
        pin_stages(pipeline.stages, 1)
        run(pipeline, 2, 40, 10, 1)
        for turn in range(rounds):
            pipeline.record.clear()
            for number, setting in enumerate(CALIBRATE):
                run(pipeline, *setting, 1000 * turn + 100 + number)
            fits.append(fitted(pipeline))
            for requests, rows in found.items():
                rows.append(compared(fits[-1], run(pipeline, requests, *CHECK, 1000 * turn + requests)))
            say(f"round {turn + 1} of {rounds}")
    rows = [row(requests, compares) for requests, compares in found.items()]
    errors = [abs(one["error"][name]) for one in rows for name in FIGURES]
    middle = sorted(fits, key=lambda fit: fit.stages[0].decode_s(1, 0))[len(fits) // 2]
    return {
        "rows": rows,
        "median_error": statistics.median(errors),
        "worst_error": max(errors),
        "coordinator_limit_tokens_per_s": {str(batch): limit(middle, batch) for batch in (1, 2, 4)},
        "costs": {"model": model, "stages_measured": stages, **asdict(middle)},
    }


def limit(replica: Replica, rows: int) -> float:
    """Greatest token rate of the coordinator with micro-batches of ``rows`` rows."""
    coordinator = replica.coordinator
    step_s = coordinator.send_s + rows * coordinator.row_s + coordinator.receive_s + coordinator.head_s(rows)
    return rows / step_s


def compared(replica: Replica, real: Mapping[str, Any]) -> dict[str, Any]:
    """One real run and its simulation."""
    arrivals = [Arrival(at_s, f"owner-{i}", *CHECK) for i, at_s in enumerate(real["arrivals_s"])]
    report = simulate([replica], arrivals)
    rates = [outcome.decode_tokens_per_s for outcome in report.outcomes]
    model = {
        "tokens_per_s": report.tokens_per_s,
        "ttft_s": report.ttft_s.mean,
        "decode_tokens_per_s": Distribution.of(rates).mean,
    }
    uses = {"stage_use": report.stage_use, "coordinator_use": report.coordinator_use, "rows": report.rows}
    return {
        "real": {name: real[name] for name in FIGURES},
        "simulated": model | uses,
        "error": {name: model[name] / real[name] - 1 for name in FIGURES},
    }


def row(requests: int, compares: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Medians over the rounds, errors formed within a round, and the spread of the real runs and of the errors."""

    def over(part: str, pick: Callable[[Sequence[float]], Any]) -> dict[str, Any]:
        return {name: pick([one[part][name] for one in compares]) for name in compares[0][part]}

    return {
        "requests": requests,
        **{part: over(part, statistics.median) for part in ("real", "simulated", "error")},
        "spread": over("real", lambda values: [min(values), max(values)]),
        "error_spread": over("error", lambda values: [min(values), max(values)]),
    }


def fitted(pipeline: RecordedPipeline) -> Replica:
    """The pipeline's costs, by least squares over what was recorded."""
    record, stages = pipeline.record, pipeline.stages
    link_s = statistics.median(record.lone_s) / (len(stages) + 1)
    rates = [stage.bytes_per_s for stage in stages if stage.bytes_per_s]
    link = LinkCost(max(0.0, link_s), min(rates)) if rates else LinkCost(max(0.0, link_s))
    fixed_s, row_s = nonnegative_least_squares(
        [(1.0, rows) for rows, _ in record.embedding], [took for _, took in record.embedding]
    )
    taken_s, sampled_s = nonnegative_least_squares(
        [(taken, rows) for taken, rows, _ in record.rest], [rest for _, _, rest in record.rest]
    )
    head = means([(rows, took + rows * sampled_s) for rows, took in record.heads])
    coordinator = CoordinatorCost(head, statistics.fmean(record.sending_s) + fixed_s, row_s, taken_s)
    return Replica(
        stages=tuple(stage_cost(record, i) for i in range(len(stages))),
        links=(link,) * (len(stages) + 1),
        coordinator=coordinator,
        row_bytes=record.row_bytes,
        chunk=min(stage.chunk for stage in stages),
        context=pipeline.context,
    )


def stage_cost(record: EngineRecord, index: int) -> StageCost:
    """The costs of one stage."""
    numbers = often([rows for rows, *_ in record.decoded])
    steps = [step for step in record.decoded if step[0] in numbers]
    columns = [[float(rows == number) for number in numbers] + [positions] for rows, positions, _ in steps]
    *base, look_s = nonnegative_least_squares(columns, [took[index] for *_, took in steps])
    chunks = [(1.0, tokens, tokens * (before + tokens / 2)) for tokens, before, _ in record.prefilled]
    chunk_s, token_s, back_s = nonnegative_least_squares(chunks, [took[index] for _, _, took in record.prefilled])
    return StageCost(rising(numbers, base), token_s, chunk_s, look_s, back_s)


def means(samples: Sequence[tuple[int, float]]) -> Curve:
    """Mean seconds by rows."""
    by_rows: defaultdict[int, list[float]] = defaultdict(list)
    for rows, took in samples:
        by_rows[rows].append(took)
    numbers = often([rows for rows, _ in samples])
    return rising(numbers, [statistics.fmean(by_rows[number]) for number in numbers])


def often(rows: Sequence[int]) -> list[int]:
    """Numbers of rows with enough steps for a mean."""
    return sorted(number for number, times in Counter(rows).items() if times >= MIN_STEPS)


def rising(rows: Sequence[int], seconds: Sequence[float]) -> Curve:
    """A curve that does not fall; neighbours out of order get their mean."""
    pools: list[list[float]] = []
    for value in seconds:
        pools.append([value])
        while len(pools) > 1 and statistics.fmean(pools[-2]) > statistics.fmean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    level = [statistics.fmean(pool) for pool in pools for _ in pool]
    return tuple(zip(rows, level, strict=True))


def costs_of(saved: Mapping[str, Any]) -> Replica:
    """A pipeline from a file of costs."""

    def points(curve: Sequence[Sequence[float]]) -> Curve:
        return tuple((int(rows), float(seconds)) for rows, seconds in curve)

    return Replica(
        stages=tuple(StageCost(**stage | {"decode": points(stage["decode"])}) for stage in saved["stages"]),
        links=tuple(LinkCost(**link) for link in saved["links"]),
        coordinator=CoordinatorCost(**saved["coordinator"] | {"head": points(saved["coordinator"]["head"])}),
        row_bytes=saved["row_bytes"],
        chunk=saved["chunk"],
        context=saved["context"],
    )


def model_of(stages: Sequence[Any]) -> StageCost:
    """Costs of the layers of all ``stages`` on one machine."""
    rows = sorted({number for stage in stages for number, _ in stage.decode})
    return StageCost(
        decode=tuple((number, sum(stage.decode_s(number, 0) for stage in stages)) for number in rows),
        token_s=sum(stage.token_s for stage in stages),
        chunk_s=sum(stage.chunk_s for stage in stages),
        row_position_s=sum(stage.row_position_s for stage in stages),
        token_position_s=sum(stage.token_position_s for stage in stages),
    )


def table_of_check(result: Mapping[str, Any]) -> Iterator[str]:
    """Lines of the comparison for people."""
    headings = ("requests", "figure", "real (spread)", "simulated", "error (spread)")
    yield from table(headings, [_cells(one, name) for one in result["rows"] for name in FIGURES])
    yield f"error: median {result['median_error']:.1%}, worst {result['worst_error']:.1%}"
    limits = ", ".join(
        f"{rows}: {tokens_per_s:.0f}" for rows, tokens_per_s in result["coordinator_limit_tokens_per_s"].items()
    )
    yield f"the coordinator's limit in token/s by rows of a micro-batch: {limits}"


def _cells(one: Mapping[str, Any], name: str) -> tuple[str, ...]:
    low, high = one["error_spread"][name]
    return (
        str(one["requests"]),
        name,
        spread_text(one["real"][name], one["spread"][name], ".4g"),
        f"{one['simulated'][name]:.4g}",
        f"{one['error'][name]:+.1%} ({low:+.0%} to {high:+.0%})",
    )
