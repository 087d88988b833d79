"""Simulate pipelines, or compare the simulation with a real pipeline.

    python -m bench.simulation --pipelines 4 --stages 8 --requests 1000 --rate 6 --prompt 100-200 --answer 100-200
    python -m bench.simulation --stages 2,4,8,16 --requests 1,16,64
    python -m bench.simulation --stages 2,4 --requests 1 --acceptance 0.5,0.7,0.9
    python -m bench.simulation --trace requests.csv --mean-between-failures 3600 --recover
    python -m bench.simulation --check --save costs.json

The costs of a model are divided evenly over the stages: measured costs (--costs FILE, written by --check --save) or
given costs (--decode-ms, --prefill-ms, --head-ms). --check measures the costs of a real pipeline on this machine, then
sends the same requests to the pipeline and to the simulation.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.simulation_check import checked, costs_of, model_of, table_of_check
from bench.toolkit.figures import table
from bench.toolkit.script import Result, ScriptArguments, count, counts, script
from edgepp.errors import UsageError
from edgepp.simulator.costs import Curve, LinkCost, Replica
from edgepp.simulator.result import Report
from edgepp.simulator.simulate import ROUTING_POLICIES, simulate
from edgepp.simulator.workload import Arrival, Failure, RecoveryPolicy, at_once, failures, poisson, read_trace

COSTS = Path(__file__).parent / "simulation_costs.json"


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = ScriptArguments(__doc__)
    add = parser.add_argument
    add("--costs", type=Path, default=COSTS, help="a file that --save wrote (bench/simulation_costs.json)")
    add("--decode-ms", type=curve, help="the whole model's decode step by rows, as 1:20,8:45")
    add("--prefill-ms", type=amount, help="the whole model's time per token of a chunk")
    add("--head-ms", type=curve, help="the coordinator's norm, head and sampling by rows, as 1:3,8:9")
    add("--hop-ms", type=amount, help="one way of a hop, without its bytes")
    add("--mbit", type=amount, help="Mbit/s of every link; unlimited unless given here or in the costs")
    add("--row-bytes", type=count, help="bytes of one hidden state")
    add("--pipelines", type=counts, default=[1], help="replicas that share the requests; as 1,2,4 each in turn (1)")
    add("--stages", type=counts, default=[2], help="machines of a pipeline; as 2,4,8 each in turn (2)")
    add("--budget", type=count, help="positions that all sequences of a pipeline may take; unlimited unless given")
    add("--routing", choices=ROUTING_POLICIES, default="least-loaded", help="(%(default)s)")
    add("--requests", type=counts, default=[8], help="number of requests; as 1,8,64 each in turn (8)")
    add("--rate", type=amount, help="requests per second, at random; all at once unless given")
    add("--prompt", type=span, default=(64, 64), help="tokens, or a range of them (64)")
    add("--answer", type=span, default=(128, 128), help="tokens, or a range of them (128)")
    add("--owners", type=count, default=0, help="number of owners; each request has its own unless given")
    add("--shared", type=count, default=0, help="tokens that all prompts of an owner begin with (%(default)s)")
    add("--acceptance", type=probabilities, default=[None], help="of guesses; as 0.5,0.7 each in turn (no guesses)")
    add("--trace", type=Path, help="CSV of requests: at_s,owner,prompt,answer[,shared,conversation]")
    add(
        "--fail",
        type=failure,
        action="append",
        default=[],
        help="AT_S:PIPELINE:STAGE, failure of a machine; repeatable",
    )
    add("--mean-between-failures", type=amount, help="mean seconds between failures of one machine")
    add(
        "--away",
        type=amount,
        default=0.0,
        help="seconds until a failed machine or a spare is back (%(default)s)",
    )
    add("--detect", type=amount, default=2.0, help="seconds until a failure is detected (%(default)s)")
    add("--reload", type=amount, default=20.0, help="seconds until the stages are loaded again (%(default)s)")
    add("--recover", action="store_true", help="requests continue after a failure; otherwise they end in an error")
    add("--seed", type=int, default=0, help="(%(default)s)")
    add("--check", action="store_true", help="measure a real pipeline and compare")
    parser.shared("model", rounds=3)  # with --check
    add("--at-once", type=counts, default=[1, 4, 8], help="with --check: requests at once (1,4,8)")
    add("--save", type=Path, help="with --check: write the measured costs to this file")
    options = parser.parse_args()
    if options.save is not None and not (options.check and options.save.parent.is_dir()):
        parser.error("--save goes with --check, and names a file in a folder that exists")
    return options


def amount(text: str) -> float:
    """Parse a number that is not negative."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of 0 or more")
    return value


def probabilities(text: str) -> list[float | None]:
    """Parse numbers from 0 to 1, separated by commas."""
    found: list[float | None] = []
    for part in text.split(","):
        if (value := amount(part)) > 1:
            raise argparse.ArgumentTypeError(f"'{part}' is not a number from 0 to 1")
        found.append(value)
    return found


def span(text: str) -> tuple[int, int]:
    """Parse a number of tokens, or a range with both ends included."""
    low, _, high = text.partition("-")
    return count(low), count(high or low)


def curve(text: str) -> Curve:
    """Parse milliseconds by rows, as 1:20,8:45."""
    points = (part.partition(":") for part in text.split(","))
    return tuple((count(rows), amount(ms) / 1e3) for rows, _, ms in points)


def failure(text: str) -> Failure:
    """Parse AT_S:PIPELINE:STAGE."""
    try:
        at_s, replica, stage = text.split(":")
        return Failure(float(at_s), int(replica), int(stage))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not AT_S:PIPELINE:STAGE") from None


def one_pipeline(options: argparse.Namespace, stages: int) -> Replica:
    """The pipeline of the command line, with ``stages`` stages.

    Raises:
        UsageError: the file of costs cannot be read, or a cost is invalid.
    """
    try:
        found = costs_of(json.loads(options.costs.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{options.costs} holds no costs: {error!r:.100}", "write one with --check --save") from error
    model, link, coordinator = model_of(found.stages), found.links[0], found.coordinator
    if options.decode_ms is not None:
        model = replace(model, decode=options.decode_ms, row_position_s=0.0)
    if options.prefill_ms is not None:
        model = replace(model, token_s=options.prefill_ms / 1e3, chunk_s=0.0, token_position_s=0.0)
    if options.hop_ms is not None:
        link = replace(link, latency_s=options.hop_ms / 1e3)
    if options.mbit is not None:
        link = LinkCost(link.latency_s, options.mbit * 1e6 / 8)
    if options.head_ms is not None:
        coordinator = replace(coordinator, head=options.head_ms)
    row_bytes = options.row_bytes or found.row_bytes
    return Replica.even(model, stages, link, coordinator, row_bytes, found.chunk, found.context, options.budget)


def load(options: argparse.Namespace, requests: int) -> tuple[Arrival, ...]:
    """``requests`` arrivals, or the arrivals of the trace.

    Raises:
        UsageError: the trace cannot be read.
    """
    if options.trace is not None:
        with options.trace.open(newline="", encoding="utf-8") as trace:
            return read_trace(trace)
    if options.rate is None:
        return at_once(requests, options.prompt[0], options.answer[0], options.owners, options.shared)
    return poisson(requests, options.rate, options.prompt, options.answer, options.owners, options.shared, options.seed)


def simulated(
    options: argparse.Namespace, pipelines: int, stages: int, requests: int, acceptance: float | None
) -> dict[str, Any]:
    """Simulate one case of the command line."""
    cluster = [one_pipeline(options, stages)] * pipelines
    arrivals = [replace(arrival, acceptance=acceptance) for arrival in load(options, requests)]
    losses = [replace(one, returns_s=one.at_s + options.away) for one in options.fail]
    if options.mean_between_failures is not None:
        until_s = max(arrival.at_s for arrival in arrivals)
        losses += failures([stages] * pipelines, options.mean_between_failures, options.away, until_s, options.seed)
    recovery = RecoveryPolicy(options.detect, options.reload, options.recover)
    began_s = time.perf_counter()
    found = simulate(cluster, arrivals, losses, options.routing, recovery)
    took_s = time.perf_counter() - began_s
    case = {"pipelines": pipelines, "stages": stages, "acceptance": acceptance}
    return {**case, "took_s": took_s, **summary(found)}


def summary(found: Report) -> dict[str, Any]:
    """A report without its long lists."""
    names = ("tokens_per_s", "requests_per_s", "seconds", "requests", "answered", "failed", "refused", "tokens", "rows")
    uses = ("stage_use", "bubbles", "coordinator_use")
    return {
        **{name: getattr(found, name) for name in (*names, *uses)},
        **{name: asdict(getattr(found, name)) for name in ("ttft_s", "itl_s", "queue_s")},
        "preempted": sum(use.preempted for use in found.replicas),
        **{name: sum(getattr(one, name) for one in found.outcomes) for name in ("reused", "guessed", "right")},
        "recoveries": [asdict(recovery) for recovery in found.recoveries],
    }


def one_simulation(result: Result) -> Iterator[str]:
    """Lines of the result for people."""
    yield (
        f"{result['requests']} requests: {result['answered']} answered, {result['failed']} failed,"
        f" {result['refused']} refused; {result['seconds']:.1f} s, simulated in {result['took_s']:.1f} s"
    )
    yield (
        f"{result['tokens_per_s']:.1f} token/s, {result['requests_per_s']:.2f} requests/s,"
        f" {result['rows']:.1f} rows per batch"
    )
    yield (
        f"stages compute {result['stage_use']:.0%} of the time, bubbles {result['bubbles']:.0%},"
        f" coordinator {result['coordinator_use']:.0%};"
        f" {result['preempted']} preempted, {result['reused']} tokens reused,"
        f" {result['right']} of {result['guessed']} guesses right"
    )
    headings = ("mean", "p50", "p90", "p99", "maximum")
    times = (("ttft_s", "first token s"), ("itl_s", "between tokens s"), ("queue_s", "queue s"))
    rows = [(what, *(f"{result[name][column]:.3f}" for column in headings)) for name, what in times]
    yield from table(("", *headings), rows)
    for one in result["recoveries"]:
        stall = one["stall_s"]
        yield (
            f"at {one['at_s']:.0f} s stage {one['stage']} of pipeline {one['replica']} failed:"
            f" {one['failed']} requests failed, {one['resumed']} continued {stall['p50']:.1f} s later"
            f" (median; {stall['maximum']:.1f} at most), {one['lost_positions']} positions lost;"
            f" it was down for {one['down_s']:.0f} s"
        )


COLUMNS = (
    ("pipelines", "pipes"),
    ("stages", "stages"),
    ("requests", "requests"),
    ("acceptance", "acceptance"),
    ("tokens_per_s", "token/s"),
    ("ttft_s.p50", "first p50 s"),
    ("ttft_s.p99", "p99 s"),
    ("itl_s.p50", "gap p50 s"),
    ("itl_s.p99", "p99 s"),
    ("bubbles", "bubbles"),
    ("coordinator_use", "coordinator"),
    ("rows", "rows"),
    ("failed", "failed"),
    ("losses", "losses"),
)


def comparison(results: Sequence[Result]) -> Iterator[str]:
    """One line for each of several simulations."""
    rows = [[_figure(result, name) for name, _ in COLUMNS] for result in results]
    yield from table([heading for _, heading in COLUMNS], rows)


def _figure(result: Result, name: str) -> str:
    first, _, then = name.partition(".")
    value = len(result["recoveries"]) if first == "losses" else result[first][then] if then else result[first]
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) and value < 1000 else f"{value:.0f}"


def measured(options: argparse.Namespace) -> Result:
    """Simulate, or check the simulation."""
    if options.check:
        result = checked(options.model, options.stages[0], options.at_once, options.rounds)
        if options.save is not None:
            options.save.write_text(json.dumps(result["costs"], indent=1) + "\n", encoding="utf-8")
        return result
    each = itertools.product(options.pipelines, options.stages, options.requests, options.acceptance)
    runs = [simulated(options, *numbers) for numbers in each]
    return runs[0] if len(runs) == 1 else {"runs": runs}


def lines(result: Result) -> Iterator[str]:
    """Lines of the result for people."""
    if result["check"]:
        return table_of_check(result)
    return comparison(result["runs"]) if "runs" in result else one_simulation(result)


if __name__ == "__main__":
    script("simulation", parse, measured, lines)
