"""One process against a pipeline of stage processes on this machine, with the same threads a stage.

    python bench/pipeline.py --model smollm2-135m --stages 2 --threads 1

Each stage is held to its threads and, where the system can and has the CPUs, pinned to CPUs of its own. METHODOLOGY.md
defines the numbers.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from measure import (
    Arguments,
    Side,
    count,
    interleave,
    rate_columns,
    ratio,
    ratio_text,
    report,
    say,
    script,
    share_cpus,
    summary,
)
from sides import Result

from edgepp import backend
from edgepp.errors import UsageError
from edgepp.layers import split_evenly
from edgepp.model.checkpoint import Checkpoint
from edgepp.model.fetch import fetch

RATIOS = ("decode", "prefill", "e2e")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = Arguments(__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="a name, hub repository or folder (%(default)s)")
    parser.add_argument("--stages", type=count, default=2, help="stage processes of the pipeline (%(default)s)")
    parser.add_argument("--threads", type=count, default=1, help="compute threads a stage (%(default)s)")
    parser.add_argument("--prompt-tokens", type=count, default=512, help="(%(default)s)")
    parser.add_argument("--gen", type=count, default=128, help="tokens to generate, two at least (%(default)s)")
    parser.add_argument("--rounds", type=count, default=5, help="measured rounds, after one to warm up (%(default)s)")
    parser.add_argument("--backend", choices=backend.NAMES, default="auto", help="(%(default)s)")
    return parser.parse_args()


def checked(options: argparse.Namespace) -> Checkpoint:
    """The model, fetched if need be, once the options are known to fit it.

    Raises:
        EdgeppError: they do not, or there is no such model.
    """
    if options.gen < 2:
        raise UsageError("a decode rate needs at least 2 generated tokens", "raise --gen")
    checkpoint = Checkpoint.open(fetch(options.model))
    split_evenly(checkpoint.num_layers, options.stages)
    if options.prompt_tokens + options.gen > checkpoint.context:
        raise UsageError(f"prompt and answer do not fit into the model's context of {checkpoint.context} tokens")
    return checkpoint


def measured(options: argparse.Namespace, checkpoint: Checkpoint) -> dict[str, Any]:
    """Both sides, in turn."""
    alone, spread = share_cpus(1, options.threads), share_cpus(options.stages, options.threads)
    common = {"kind": "edgepp", "model": str(checkpoint.path), "threads": options.threads, "backend": options.backend}
    configs: Mapping[str, Mapping[str, Any]] = {
        "single": common | {"stages": None, "cpus": alone and alone[0], "stage_cpus": None},
        "pipeline": common | {"stages": options.stages, "cpus": None, "stage_cpus": spread},
    }
    if spread is None:
        say("the stages are not pinned: this system cannot, or has too few CPUs")
    with ExitStack() as stack:
        sides = [stack.enter_context(Side(name, config)) for name, config in configs.items()]
        about = {side.name: side.wait_ready() for side in sides}
        work = {side.name: side.work(checkpoint.vocab_size, options.prompt_tokens, options.gen) for side in sides}
        results = interleave(work, options.rounds)
        found = {
            side.name: summary(results[side.name])
            | {"step_ms": middle(results[side.name]), "resident_bytes": side.resident_bytes, **about[side.name]}
            for side in sides
        }
    return {**found, "ratio": ratio(results["pipeline"], results["single"], RATIOS), "pinned": spread}


def middle(results: Sequence[Result]) -> Any:
    """Where a decode step's time went in the run of middle decode speed."""
    return sorted(results, key=lambda result: float(result["decode_tok_s"]))[len(results) // 2]["step_ms"]


def table(result: Mapping[str, Any]) -> Iterator[str]:
    """The result for people."""
    yield f"{'':10}{rate_columns()}"
    for name in ("single", "pipeline"):
        yield f"{name:10}{rate_columns(result[name])}"
    yield f"pipeline / single: {ratio_text(result['ratio'])}"
    for name in ("single", "pipeline"):
        step = result[name]["step_ms"]
        stages = " + ".join(f"{ms:.2f}" for ms in step["stages"])
        rest = f"wire {step['wire']:.2f}, coordinator {step['coordinator']:.2f}"
        yield f"{name}, ms of a decode step: stages {stages}, {rest}"


def main() -> None:
    """Measure and report."""
    options = parse()
    checkpoint = checked(options)
    settings = {name: value for name, value in vars(options).items() if name != "json"}
    result = {"bench": "pipeline", **settings, **measured(options, checkpoint)}
    report(result, table(result), json_only=options.json)


if __name__ == "__main__":
    script(main)
