"""One machine, a pipeline and shared layers over links of a given rate and delay: measured, predicted, and chosen.

    sudo python -m bench.shaped_tensor --model FOLDER --threads 1 --json
    sudo python -m bench.shaped_tensor --delays 0.1,0.5 --mbit 1000 --rounds 3

Two network namespaces are two machines with real `edgepp serve` and `edgepp join`. For each delay (one way) a cluster
with --policy speed says what its planner chose and, after a few answers, what `edgepp plan` predicts; then each way is
measured with a cluster of its own, which predicts itself after these answers. Needs Linux, root, /dev/net/tun, and the
ip and tc commands. METHODOLOGY.md defines the numbers.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from typing import Any

from bench.toolkit.cable import discipline, unavailable
from bench.toolkit.figures import table
from bench.toolkit.local import checked_model
from bench.toolkit.script import Result, ScriptArguments, say, script
from bench.toolkit.two_hosts import TwoHosts, two_hosts
from edgepp.errors import EdgeppError, UsageError
from edgepp.layer_range import split_evenly
from edgepp.plan.layout import ClusterQuestion, make_layout
from edgepp.plan.live_cluster import from_status
from edgepp.plan.machines import Workload
from edgepp.plan.planned_model import read_model
from edgepp.plan.ways import ways

WAYS = ("one", "pipeline", "tensor")
MAX_WORSE = 0.05
"""Part by which what the planner chose may measure worse than the best way."""
MAX_WRONG = 0.10
"""Part by which a prediction may differ from what is measured."""
_ANSWERS_BEFORE = 2
"""Answers before a prediction."""


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = ScriptArguments(__doc__)
    parser.shared("model", "threads", "prompt-tokens", "gen", rounds=3)
    parser.add_argument("--delays", type=_delays, default=[0.1, 0.5], help="ms one way, separated by commas (0.1,0.5)")
    parser.add_argument("--mbit", type=float, default=1000.0, help="Mbit/s each way (%(default)s)")
    return parser.parse_args()


def _delays(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = [-1.0]
    if not all(0 <= delay <= 1000 for delay in found):
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of delays in ms, such as 0.1,0.5")
    return found


def measured(options: argparse.Namespace) -> Result:
    """Measure every way at every delay."""
    if (reason := unavailable()) is not None:
        raise UsageError(reason)
    checkpoint = checked_model(options, 2)
    return {"links": [_link(options, delay_ms, checkpoint.num_layers) for delay_ms in options.delays]}


def _link(options: argparse.Namespace, delay_ms: float, layers: int) -> dict[str, Any]:
    """What the planner chose and predicts at one delay, and the measured speed of each way."""
    say(f"{options.mbit:g} Mbit/s, {delay_ms:g} ms one way")
    with two_hosts(delay_ms, discipline(options.mbit), options.model, options.threads) as hosts:
        with hosts.cluster(("--policy", "speed"), ()) as cluster:
            status = cluster.settled()
            chosen = _way_of(status)
            before = [cluster.ask(turn, options.prompt_tokens, options.gen) for turn in range(_ANSWERS_BEFORE)]
            predicted = _predicted(cluster.settled(), int(before[-1]["prompt_tokens"]), options.gen)
        found = {way: _measure(options, hosts, way, layers) for way in WAYS}
    best = max(found, key=lambda way: found[way]["decode_tokens_per_s"])
    rates = {way: one["decode_tokens_per_s"] for way, one in found.items()}
    return {
        "delay_ms": delay_ms,
        "mbit_per_s": options.mbit,
        "sums": status["sums"],
        "chosen": chosen,
        "best": best,
        "chosen_to_best": rates[chosen] / rates[best],
        "measured": found,
        "predicted": predicted,
        "wrong": {way: _wrong(predicted[way], found[way]) for way in WAYS if way in predicted},
        "wrong_running": {way: _wrong(found[way]["predicted_running"], found[way]) for way in WAYS},
    }


def _wrong(predicted: dict[str, float], found: dict[str, Any]) -> dict[str, float]:
    """Part by which each prediction is above what was measured."""
    return {name: predicted[name] / found[name] - 1 for name in ("decode_tokens_per_s", "ttft_s")}


def _way_of(status: dict[str, Any]) -> str:
    """Which way a cluster runs its model."""
    if any(stage["ranks"] for stage in status["stages"]):
        return "tensor"
    return "pipeline" if len({stage["node_id"] for stage in status["stages"]}) > 1 else "one"


def _predicted(status: dict[str, Any], prompt: int, answer: int) -> dict[str, dict[str, float]]:
    """What `edgepp plan` predicts of each way on a live cluster; of a machine alone, of that one way.

    ``prompt`` and ``answer`` are numbers of tokens.
    """
    model = read_model(status["model"])
    question = ClusterQuestion(model, Workload(prompt, answer, (1,)), context=status["context"])
    cluster = from_status(status, model.size)
    layouts = {way.name: way.layout for way in ways(question, cluster)} or {"one": make_layout(question, cluster)}
    return {
        name: {"decode_tokens_per_s": 1 / found.prediction.one.tpot_s, "ttft_s": found.prediction.prefill.ttft_s}
        for name, found in layouts.items()
    }


def _measure(options: argparse.Namespace, hosts: TwoHosts, way: str, layers: int) -> dict[str, Any]:
    """Medians of the answers of a cluster that runs the model in one way."""
    first, second = split_evenly(layers, 2)
    whole = f"0-{layers - 1}"
    serve, joins = {
        "one": (("--policy", "speed"), ()),
        "pipeline": (("--layers", str(first)), (("far", ("--layers", str(second))),)),
        "tensor": (
            ("--no-stage",),
            tuple((host, ("--layers", whole, "--tensor", "2")) for host in ("near", "far")),
        ),
    }[way]
    with hosts.cluster(serve, joins, far=False) as cluster:
        if (ran := _way_of(cluster.settled())) != way:
            raise EdgeppError(f"the cluster for '{way}' runs its model as '{ran}'")
        cluster.ask(0, options.prompt_tokens, options.gen)  # warms up
        answers = [cluster.ask(turn, options.prompt_tokens, options.gen) for turn in range(1, options.rounds + 1)]
        prompt = int(answers[-1]["prompt_tokens"])
        found: dict[str, Any] = {"predicted_running": _predicted(cluster.settled(), prompt, options.gen)[way]}
    for name in ("decode_tokens_per_s", "ttft_s"):
        values = [float(answer[name]) for answer in answers]
        found |= {name: statistics.median(values), f"{name}_range": [min(values), max(values)]}
    return found


def faults(_: argparse.Namespace, result: Result) -> EdgeppError | None:
    """An error where the planner chose what measures clearly worse, or a prediction is far off."""
    wrong = []
    for link in result["links"]:
        if link["chosen_to_best"] < 1 - MAX_WORSE:
            wrong.append(f"at {link['delay_ms']:g} ms the planner chose '{link['chosen']}', best is '{link['best']}'")
        wrong += [
            f"at {link['delay_ms']:g} ms the {name} of '{way}' is predicted {100 * off:+.0f} % off{where}"
            for kind, where in (("wrong", ""), ("wrong_running", ", while it runs"))
            for way, both in link[kind].items()
            for name, off in both.items()
            if abs(off) > MAX_WRONG
        ]
    return EdgeppError("; ".join(wrong)) if wrong else None


def lines(result: Result) -> Iterator[str]:
    """Lines of the result for people."""
    rows = []
    for link in result["links"]:
        for way in WAYS:
            got, said, off = link["measured"][way], link["predicted"].get(way), link["wrong"].get(way)
            itself = link["wrong_running"][way]
            rows.append(
                (
                    f"{link['delay_ms']:g} ms",
                    way + (" (chosen)" if way == link["chosen"] else ""),
                    f"{got['decode_tokens_per_s']:.2f}",
                    f"{said['decode_tokens_per_s']:.2f} ({100 * off['decode_tokens_per_s']:+.0f} %)" if said else "",
                    f"{100 * itself['decode_tokens_per_s']:+.0f} %",
                    f"{got['ttft_s']:.2f}",
                    f"{said['ttft_s']:.2f} ({100 * off['ttft_s']:+.0f} %)" if said else "",
                    f"{100 * itself['ttft_s']:+.0f} %",
                )
            )
    headings = ("one way", "way", "decode token/s", "predicted", "by itself", "first token s", "predicted", "by itself")
    yield from table(headings, rows)


if __name__ == "__main__":
    script("shaped_tensor", parse, measured, lines, faults)
