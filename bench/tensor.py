"""Gain of several processes that share each layer over one process, and over a pipeline of as many processes.

    python -m bench.tensor --model smollm2-135m --tensor 2:1 --threads 1 --json
    python -m bench.tensor --exchange     only the cost of a sum over two ranks

All sides answer in turn. METHODOLOGY.md defines the numbers.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

from bench.toolkit.figures import interleave, medians, ratio_text, ratios, table
from bench.toolkit.local import checked_model
from bench.toolkit.rank_parts import LINKS, exchange_us, token_parts
from bench.toolkit.script import Result, ScriptArguments, script
from bench.toolkit.side_program import RATES
from bench.toolkit.sides import RATE_HEADINGS, Side, rate_cells, rates_text
from edgepp.model.tensor_shares import parse_weights

SIDES = ("single", "tensor", "pipeline")
SUMS = {(1, 576): 2000, (1, 2048): 2000, (64, 2048): 200}
"""Shapes of hidden states, and how many sums of each are timed."""


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = ScriptArguments(__doc__)
    parser.shared("model", "threads", "prompt-tokens", "gen", "rounds", "backend")
    parser.add_argument("--tensor", default="2", help="number of ranks, or their shares, like 5:3 (%(default)s)")
    parser.add_argument("--exchange", action="store_true", help="measure only the sums between two ranks")
    return parser.parse_args()


def measured(options: argparse.Namespace) -> Result:
    """Measure the sums alone, then all sides in turn, then the parts of a token."""
    exchange = {links: exchange_us(SUMS, links) for links in LINKS}
    if options.exchange:
        return {"exchange_us": exchange}
    weights = parse_weights(options.tensor)
    checkpoint = checked_model(options, len(weights))
    common = {"kind": "edgepp", "model": str(checkpoint.path), "threads": options.threads, "backend": options.backend}
    places: dict[str, dict[str, Any]] = {
        "single": {"stages": None},
        "tensor": {"stages": 1, "tensor": weights},
        "pipeline": {"stages": len(weights)},
    }
    with ExitStack() as stack:
        sides = [stack.enter_context(Side(name, {**common, **places[name]})) for name in SIDES]
        for side in sides:
            side.wait_ready()
        size = checkpoint.vocab_size, options.prompt_tokens, options.gen
        results = interleave({side.name: partial(side.round, *size) for side in sides}, options.rounds, rates_text)
    found = {name: medians(results[name], RATES) for name in SIDES}
    rates = ("decode", "prefill", "e2e")
    parts = token_parts(checkpoint.path, weights, options.backend, options.threads, options.gen, options.rounds)
    return {
        **found,
        "ratio": ratios(results["tensor"], results["single"], rates),
        "pipeline": {**found["pipeline"], "ratio": ratios(results["pipeline"], results["single"], rates)},
        "token_ms": parts["ms"],
        "token_cpu_ms": parts["cpu_ms"],
        "exchange_us": exchange,
    }


def lines(result: Result) -> Iterator[str]:
    """Lines of the result for people."""
    for kind, sums in result["exchange_us"].items():
        costs = ", ".join(f"{shape} {us['median']:.0f} µs (least {us['min']:.0f})" for shape, us in sums.items())
        yield f"a sum over two ranks, {kind}: {costs}"
    if "ratio" not in result:
        return
    yield from table(("", *RATE_HEADINGS), [(name, *rate_cells(result[name])) for name in SIDES])
    yield f"tensor / single: {ratio_text(result['ratio'])}"
    yield f"pipeline / single: {ratio_text(result['pipeline']['ratio'])}"
    for what, parts in (("ms", result["token_ms"]), ("ms of processor time", result["token_cpu_ms"])):
        yield f"{what} of a token: " + ", ".join(f"{name} {ms:.2f}" for name, ms in parts.items())


if __name__ == "__main__":
    script("tensor", parse, measured, lines)
