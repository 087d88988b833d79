"""Error of predictions: calibrate on short pieces of a model, predict pipelines, measure and compare them, in one run.

    python -m bench.prediction --model smollm2-135m --stages 1,2,3,4 --requests 1,2,4,8 --links 0:0,5:0,1:20

A link is MS:MBIT, its delay each way and its rate; 0:0 is loopback. `calibration` describes the calibration, which
measures none of the predicted quantities; no factor is fitted to them. A calibration runs before and after every
pipeline, and the mean of the two counts, so that a slowdown of the machine does not count as an error; `drift` compares
the last calibration with the first. Every pipeline is measured `--rounds` times, up and down the list in turn, and
medians count. Measurements that other programs disturb are repeated for up to `--patience` seconds; `others` is the
number of cores that other programs used in the measurements that count.

    decode   token/s of all requests together while all decode: sum of the rates of the requests over `--cycles` steps
    of
             each, predicted for the mean context of the measurement
    ttft     seconds from a short prompt to its first token, in an idle pipeline
    prefill  tokens of a long prompt / its seconds
    error    predicted / measured - 1

`compute_ms` and `wire_ms`, predicted and measured, are the computing time of all stages in a decode step, and the rest
of its round trip; only the measured rest includes waiting for busy stages. Every request has its own owner, so no
prompt cache helps, and there is no speculation.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench.calibration import ROWS, CalibratedMachine, CalibrationSample, Calibrator
from bench.toolkit.figures import table
from bench.toolkit.quiet import Quiet
from bench.toolkit.rig import Rig
from bench.toolkit.script import Result, ScriptArguments, count, counts, say, script
from bench.toolkit.slow_link import SlowLink
from edgepp.errors import UsageError
from edgepp.layer_range import split_evenly
from edgepp.model.fetch import fetch
from edgepp.model.shape import shape_of
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.plan.machines import Model, Stage, Workload
from edgepp.plan.predict import predict


@dataclass(frozen=True)
class PredictedFigure:
    """One number that is predicted and measured."""

    stages: int
    link: SlowLink
    what: str
    """``decode``: token/s of all requests; ``prefill``: prompt token/s; ``ttft``: seconds to the first token."""
    requests: int
    prompt: int


@dataclass(frozen=True)
class MeasuredFigure:
    """Result of one measurement."""

    value: float
    others: float
    """Cores that other programs used meanwhile."""
    position: int = 0
    """Mean position of the rows of decode steps; 0 for other figures."""
    compute_s: float = 0.0
    """Computing seconds of all stages in a decode step."""
    wire_s: float = 0.0
    """Seconds of the rest of the round trip of that step."""


@dataclass(frozen=True)
class PredictionRound:
    """One measurement, and the machine from the calibrations before and after it."""

    found: MeasuredFigure
    machine: CalibratedMachine


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = ScriptArguments(__doc__)
    parser.shared("model", "threads", "backend")
    parser.add_argument("--stages", type=counts, default=[1, 2, 3, 4], help="stage processes (1,2,3,4)")
    parser.add_argument("--requests", type=counts, default=[1, 2, 4, 8], help="requests that decode at once (1,2,4,8)")
    parser.add_argument("--links", type=links, default=links("0:0,5:0,1:20"), help="MS:MBIT,... (0:0,5:0,1:20)")
    parser.add_argument(
        "--prompts", type=counts, default=[64, 256], help="prompt tokens: for decode and ttft, for prefill"
    )
    parser.add_argument("--cycles", type=count, default=16, help="steps of each request that are timed (%(default)s)")
    parser.add_argument("--rounds", type=count, default=2, help="measurements of everything (%(default)s)")
    parser.add_argument(
        "--patience", type=float, default=1.0, help="seconds to repeat disturbed measurements (%(default)s)"
    )
    return parser.parse_args()


def links(text: str) -> list[SlowLink]:
    """Parse links such as ``0:0,5:0,1:20``: milliseconds and Mbit/s."""
    try:
        pairs = [tuple(map(float, part.split(":"))) for part in text.split(",")]
        return [
            SlowLink(f"{ms:g}ms:{mbit:g}Mbit", ms, mbit or math.inf) if ms or mbit else SlowLink() for ms, mbit in pairs
        ]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not MS:MBIT,...") from None


def figures(options: argparse.Namespace) -> dict[tuple[int, SlowLink], list[PredictedFigure]]:
    """Figures to predict, by pipeline."""
    short, long = options.prompts[0], options.prompts[-1]
    found = {}
    for link in options.links:
        for stages in options.stages:
            decode = [PredictedFigure(stages, link, "decode", requests, short) for requests in options.requests]
            alone = [PredictedFigure(stages, link, "ttft", 1, short), PredictedFigure(stages, link, "prefill", 1, long)]
            found[stages, link] = [*decode, *alone]
    return found


def checked(options: argparse.Namespace) -> Checkpoint:
    """The model, fetched if necessary.

    Raises:
        EdgeppError: there is no such model, or the options do not fit the model.
    """
    if options.cycles < 2:
        raise UsageError("a decode rate needs at least 2 steps", "raise --cycles")
    checkpoint = Checkpoint.open(fetch(options.model))
    split_evenly(checkpoint.num_layers, max(options.stages))
    if checkpoint.num_layers < 3:
        raise UsageError(
            f"a model of {checkpoint.num_layers} layers is too small for calibration",
            "name a model with 3 layers or more",
        )
    return checkpoint


def measure(rig: Rig, figure: PredictedFigure, cycles: int) -> MeasuredFigure:
    """Measure one figure once."""
    if figure.what == "decode":
        steady = rig.steady(figure.requests, figure.prompt, cycles)
        return MeasuredFigure(steady.tokens_per_s, rig.others, steady.position, steady.compute_s, steady.wire_s)
    seconds, _ = rig.first_token_s(figure.prompt)
    return MeasuredFigure(seconds if figure.what == "ttft" else figure.prompt / seconds, rig.others)


def measure_all(
    options: argparse.Namespace, checkpoint: Checkpoint
) -> tuple[dict[PredictedFigure, list[PredictionRound]], list[CalibrationSample]]:
    """Measure every pipeline in turn, up and down the list, with a calibration before, between and after them."""
    model, quiet = Model.of(options.model, shape_of(options.model, checkpoint)), Quiet(options.patience)
    rounds: dict[PredictedFigure, list[PredictionRound]] = {}
    pipelines = list(figures(options).items())
    turns = [turn for number in range(options.rounds) for turn in pipelines[:: -1 if number % 2 else 1]]
    common = (options.threads, options.backend)
    with Calibrator(
        checkpoint.path, checkpoint.num_layers, options.links, *common, options.cycles, quiet
    ) as calibrator:
        samples = [calibrator.sample()]
        for number, ((stages, link), wanted) in enumerate(turns):
            with Rig(checkpoint.path, stages, link, *common, quiet) as rig:
                rig.steady(1, options.prompts[0], 2)
                found = {figure: measure(rig, figure, options.cycles) for figure in wanted}
            samples.append(calibrator.sample())
            machine = CalibratedMachine(model, tuple(samples[-2:]), options.threads)
            for figure, one in found.items():
                rounds.setdefault(figure, []).append(PredictionRound(one, machine))
            say(f"{number + 1} of {len(turns)}: {stages} stages, {link.name}")
    return rounds, samples


def predicted(figure: PredictedFigure, machine: CalibratedMachine, position: int) -> tuple[float, float, float]:
    """Prediction of ``figure``; for decode also the computing seconds of the stages and the seconds of the hops."""
    stage, coordinator = machine.machines(figure.stages)
    stages = [Stage(stage, layers) for layers in split_evenly(machine.model.size.layers, figure.stages)]
    asked = position if figure.what == "decode" else figure.prompt
    work = Workload(prompt=asked, answer=1, requests=(figure.requests,))
    found = predict(machine.model, stages, machine.links(figure.link), work, coordinator)
    if figure.what == "decode":
        one = found.one
        return one.tokens_per_s, sum(stage.busy_s for stage in one.stages), one.parts["wire"]
    return (found.prefill.ttft_s if figure.what == "ttft" else found.prefill.tokens_per_s), 0.0, 0.0


def row(figure: PredictedFigure, rounds: Sequence[PredictionRound]) -> dict[str, Any]:
    """Row of the table: medians of the measurements and of their predictions."""
    predictions = [predicted(figure, one.machine, one.found.position) for one in rounds]
    values = [one.found.value for one in rounds]
    middle, expected = statistics.median(values), statistics.median(value for value, _, _ in predictions)
    decode = {
        "each": middle / figure.requests,
        "position": round(statistics.fmean(one.found.position for one in rounds)),
        "compute_ms": [median_ms(part for _, part, _ in predictions), median_ms(one.found.compute_s for one in rounds)],
        "wire_ms": [median_ms(part for _, _, part in predictions), median_ms(one.found.wire_s for one in rounds)],
    }
    return {
        "stages": figure.stages,
        "link": figure.link.name,
        "what": figure.what,
        "requests": figure.requests,
        "prompt": figure.prompt,
        "predicted": expected,
        "measured": middle,
        "error": expected / middle - 1,
        "rounds": [[value, one.found.value] for (value, _, _), one in zip(predictions, rounds, strict=True)],
        "others": max(one.found.others for one in rounds),
        **(decode if figure.what == "decode" else {}),
    }


def median_ms(seconds: Iterable[float]) -> float:
    """The median, in milliseconds."""
    return statistics.median(seconds) * 1e3


def measured(options: argparse.Namespace) -> Result:
    """The whole run: calibrate, predict, measure."""
    rounds, samples = measure_all(options, checked(options))
    rows = [row(figure, some) for figure, some in rounds.items()]
    errors = [abs(one["error"]) for one in rows]
    model = next(iter(rounds.values()))[0].machine.model
    first, last, all_of = (
        CalibratedMachine(model, tuple(some), options.threads) for some in (samples[:1], samples[-1:], samples)
    )
    return {
        "settings": len(rows),
        "median_error": statistics.median(errors),
        "worst_error": max(errors),
        "rows": rows,
        "drift": drift(samples[0], samples[-1]),
        "calibration": {"first": about(first), "last": about(last), "mean": about(all_of)},
    }


def about(machine: CalibratedMachine) -> dict[str, Any]:
    """Figures of a calibration."""
    parts = machine.parts
    return {
        "step_ms": parts.step_s * 1e3,
        "pass_ms": {str(rows): seconds * 1e3 for rows, seconds in sorted(parts.pass_s.items())},
        "position_us": parts.position_s * 1e6,
        "attend_us": parts.attend_s * 1e6,
        "ends_ms": {str(rows): seconds * 1e3 for rows, seconds in sorted(machine.ends_s.items())},
        "hop_ms": {"awake": machine.hop_s(awake=True) * 1e3, "asleep": machine.hop_s(awake=False) * 1e3},
        "contention": machine.contention,
        "links": {
            name: {"latency_ms": speed.latency_s * 1e3, "mbit_per_s": speed.bytes_per_s * 8e-6}
            for name, speed in machine.samples[-1].links.items()
        },
    }


def drift(before: CalibrationSample, after: CalibrationSample) -> dict[str, float]:
    """Seconds of the last calibration / seconds of the first - 1: medians over the same steps."""
    pairs = list(zip(before.timed, after.timed, strict=True))
    return {
        "decode": statistics.median(b.seconds / a.seconds for a, b in pairs if not a.attended_pairs) - 1,
        "prefill": statistics.median(b.seconds / a.seconds for a, b in pairs if a.attended_pairs) - 1,
        "ends": statistics.median(after.ends_s[rows] / before.ends_s[rows] for rows in ROWS) - 1,
    }


def lines(found: Result) -> Iterator[str]:
    """Lines of the result for people."""
    headings = (
        "link", "stages", "requests", "what", "predicted", "measured", "error", "others", "rounds: predicted/measured",
        "ms of a step: predicted/measured",
    )  # fmt: skip
    yield from table(headings, [_cells(one) for one in found["rows"]])
    drifted = ", ".join(f"{name} {value:+.1%}" for name, value in found["drift"].items())
    yield f"drift from the first calibration to the last: {drifted}"
    yield f"{found['settings']} settings: median error {found['median_error']:.1%}, worst {found['worst_error']:.1%}"


def _cells(one: Result) -> tuple[str, ...]:
    parts = [name for name in ("compute", "wire") if f"{name}_ms" in one]
    return (
        str(one["link"]),
        str(one["stages"]),
        str(one["requests"]),
        str(one["what"]),
        f"{one['predicted']:.3g}",
        f"{one['measured']:.3g}",
        f"{one['error']:+.1%}",
        f"{one['others']:.2f}",
        ", ".join(f"{expected:.3g}/{value:.3g}" for expected, value in one["rounds"]),
        ", ".join(f"{name} {one[f'{name}_ms'][0]:.1f}/{one[f'{name}_ms'][1]:.1f}" for name in parts),
    )


if __name__ == "__main__":
    script("prediction", parse, measured, lines)
