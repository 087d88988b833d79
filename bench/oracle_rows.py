"""Rates with an oracle's guesses, against one process without guesses and against the event model.

``speculation --oracle`` runs this module.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from bench.toolkit.figures import interleave, ratio, spread_text, table
from bench.toolkit.guess_model import RingCosts, tokens_per_s
from bench.toolkit.local import checked_model
from bench.toolkit.script import Result
from bench.toolkit.side_program import RunRates
from bench.toolkit.sides import Side, rates_text
from edgepp.benchmark.report import ALONE, Spread
from edgepp.stage_process.compute_policy import physical_cores

PLAIN = "no guesses"

Rounds = Sequence[RunRates]
"""One result per round."""


def measured(options: argparse.Namespace) -> Result:
    """One row without guesses, and one row per acceptance; all sides answer the same prompt in each round."""
    checkpoint = checked_model(options, options.stages)
    names = ("threads", "backend", "exact")
    common = {"model": str(checkpoint.path), **{name: getattr(options, name) for name in names}}
    with ExitStack() as stack:
        single = stack.enter_context(Side("single", {**common, "kind": "edgepp", "stages": None}))
        oracle = stack.enter_context(Side("pipeline", {**common, "kind": "oracle", "stages": options.stages}))
        single.wait_ready()
        about = oracle.wait_ready()
        size = checkpoint.vocab_size, options.prompt_tokens, options.gen
        cases: dict[float | str, Callable[[int], RunRates]] = {ALONE: partial(single.round, *size)}
        cases[PLAIN] = partial(oracle.round, *size)  # records the answer that the oracle replays
        cases |= {one: partial(oracle.round, *size, acceptance=one) for one in options.oracle}
        rounds = interleave(cases, options.rounds, rates_text)
    alone, plain = rounds[ALONE], rounds[PLAIN]
    rows = [row(0.0, plain, alone, plain), *(row(one, rounds[one], alone, plain) for one in options.oracle)]
    return {"rows": rows, "step_ms": steps_ms(plain), "cores": physical_cores(), "pinned": about["pinned"]}


def row(acceptance: float, found: Rounds, alone: Rounds, plain: Rounds) -> dict[str, Any]:
    """One acceptance, 0 for no guesses: rates over ``alone``, one process, and ``plain``, the pipeline without guesses.

    The event model has the costs of ``plain`` in the same round, the measured acceptance and the frames in flight.
    """
    single, pipeline, rate = ([one["decode_tokens_per_s"] for one in side] for side in (alone, plain, found))
    guessed, right, drawn = (sum(one.get(name, 0) for one in found) for name in ("guessed", "right", "drawn"))
    share = right / drawn if guessed else 0.0
    frames = in_flight(guessed, right, drawn) if guessed else 1.0
    model = [tokens_per_s(costs(one), share, round(frames)) for one in plain]
    over = Spread.of_ratios(rate, single)
    predicted = Spread.of_ratios(model, single)
    return {
        "acceptance": acceptance,
        "measured_acceptance": share,
        "guessed": guessed,
        "right": right,
        "in_flight": frames,
        "decode_tokens_per_s": statistics.median(rate),
        **ratio(over),
        "over_plain": Spread.of_ratios(rate, pipeline).median,
        "model_ratio": predicted.median,
        "model_error": Spread.of_ratios(model, rate).median - 1,
        "equal": all(one.get("equal", True) for one in found),
    }


def in_flight(guessed: int, right: int, drawn: int) -> float:
    """Mean frames in the ring: a wrong guess voids itself and all guesses behind it."""
    wrong = drawn - right
    return 1 + (guessed - right) / wrong if wrong else 2.0


def costs(plain: RunRates) -> RingCosts:
    """Costs of a step in a round without guesses."""
    step = plain["step_ms"]
    hops = len(step["stages"]) + 1
    stages_s = tuple(ms / 1e3 for ms in step["stages"])
    return RingCosts(stages_s, step["coordinator"] / 1e3, step["wire"] / 1e3 / hops, physical_cores())


def steps_ms(plain: Rounds) -> dict[str, Any]:
    """Median of each part of a step without guesses."""
    steps: list[Mapping[str, Any]] = [one["step_ms"] for one in plain]
    parts = {name: statistics.median(step[name] for step in steps) for name in ("wire", "coordinator")}
    stages = [statistics.median(times) for times in zip(*(step["stages"] for step in steps), strict=True)]
    return {"stages": stages, **parts}


def lines(result: Result) -> Iterator[str]:
    """Lines of the result for people."""
    headings = (
        "acceptance",
        "measured",
        "frames",
        "tok/s",
        "over one process",
        "over plain",
        "model",
        "error",
        "equal",
    )
    yield from table(headings, [_cells(one) for one in result["rows"]])
    step = result["step_ms"]
    stages = " + ".join(f"{ms:.2f}" for ms in step["stages"])
    yield (
        f"ms of a step without guesses: stages {stages}, wire {step['wire']:.2f},"
        f" coordinator {step['coordinator']:.2f}; {result['cores']} cores"
    )


def _cells(one: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        f"{one['acceptance']:g}" if one["guessed"] else PLAIN,
        f"{one['measured_acceptance']:.2f}",
        f"{one['in_flight']:.1f}",
        f"{one['decode_tokens_per_s']:.1f}",
        spread_text(one["ratio"], one["spread"]),
        f"{one['over_plain']:.3g}",
        f"{one['model_ratio']:.3g}",
        f"{one['model_error']:+.1%}",
        "yes" if one["equal"] else "no",
    )
