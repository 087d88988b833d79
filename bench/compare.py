"""The same weights, prompt and threads through edgepp, mlx-lm and llama.cpp, in turn.

    python bench/compare.py --model smollm2-135m --threads 1

llama.cpp runs through llama-cpp-python (the extra `compare`), under another interpreter if --llama-python names one.
Its GGUF files are made of the checkpoint unless --gguf gives one: `llama.cpp` has the very same weights, and
`llama.cpp-q4_0` the same rounded anew to the format that it has its fastest kernels for. `mlx-lm` runs the checkpoint
as it is, `mlx-lm-f32` with float32 scales, which a CPU likes better. What cannot run is left out, with the reason.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import (
    Arguments,
    Side,
    Work,
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
from to_gguf import Converter

from edgepp import backend
from edgepp.errors import EdgeppError, UsageError
from edgepp.layers import split_evenly
from edgepp.model.checkpoint import Checkpoint
from edgepp.model.fetch import fetch

SIDES = ("edgepp-1", "edgepp-2", "llama.cpp", "llama.cpp-q4_0", "mlx-lm", "mlx-lm-f32")
STAGES = 2


@dataclass(frozen=True)
class Plan:
    """One side: what its process is told, under which interpreter it runs, and the tokens of one run."""

    config: Mapping[str, Any]
    prompt_tokens: int
    generate: int
    python: str = sys.executable


def sides(text: str) -> tuple[str, ...]:
    """Names of sides, separated by commas, from a command line."""
    names = tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in SIDES]:
        raise argparse.ArgumentTypeError(f"'{unknown[0]}' is none of {', '.join(SIDES)}")
    return names


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = Arguments(__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="a name, hub repository or folder (%(default)s)")
    parser.add_argument("--threads", type=count, default=1, help="compute threads a process (%(default)s)")
    parser.add_argument("--prompt-tokens", type=count, default=512, help="(%(default)s)")
    parser.add_argument("--gen", type=count, default=128, help="tokens to generate, two at least (%(default)s)")
    parser.add_argument("--mlx-prompt", type=count, default=8, help="the same for mlx-lm (%(default)s)")
    parser.add_argument("--mlx-gen", type=count, default=4, help="the same for mlx-lm (%(default)s)")
    parser.add_argument("--rounds", type=count, default=5, help="measured rounds, after one to warm up (%(default)s)")
    parser.add_argument("--backend", choices=backend.NAMES, default="auto", help="edgepp's (%(default)s)")
    parser.add_argument("--sides", type=sides, default=SIDES, help="some of " + ",".join(SIDES) + " (all)")
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="the weights for llama.cpp, instead of made ones")
    parser.add_argument(
        "--llama-python", metavar="PYTHON", default=sys.executable, help="has llama-cpp-python (this interpreter)"
    )
    return parser.parse_args()


def checked(options: argparse.Namespace) -> Checkpoint:
    """The model, fetched if need be, once the options are known to fit it.

    Raises:
        EdgeppError: they do not, or there is no such model.
    """
    if min(options.gen, options.mlx_gen) < 2:
        raise UsageError("a decode rate needs at least 2 generated tokens", "raise --gen or --mlx-gen")
    if options.gguf is not None and not options.gguf.is_file():
        raise UsageError(f"there is no file {options.gguf}")
    checkpoint = Checkpoint.open(fetch(options.model))
    split_evenly(checkpoint.num_layers, STAGES)
    if options.prompt_tokens + options.gen > checkpoint.context:
        raise UsageError(f"prompt and answer do not fit into the model's context of {checkpoint.context} tokens")
    return checkpoint


def planned(name: str, options: argparse.Namespace, checkpoint: Checkpoint, work: Path) -> Plan:
    """How side ``name`` is run; makes its GGUF file in ``work`` if it needs one.

    Raises:
        EdgeppError: it cannot be run.
    """
    alone = share_cpus(1, options.threads)
    common = {"model": str(checkpoint.path), "threads": options.threads, "cpus": alone and alone[0]}
    tokens = options.prompt_tokens, options.gen
    match name.partition("-"):
        case "edgepp", _, "1":
            config = common | {"kind": "edgepp", "stages": None, "backend": options.backend, "stage_cpus": None}
            return Plan(config, *tokens)
        case "edgepp", _, _:
            spread = share_cpus(STAGES, options.threads)
            config = common | {"kind": "edgepp", "stages": STAGES, "backend": options.backend, "stage_cpus": spread}
            return Plan(config | {"cpus": None}, *tokens)
        case "mlx", _, _:
            config = common | {"kind": "mlx-lm", "float32": name == "mlx-lm-f32"}
            return Plan(config, options.mlx_prompt, options.mlx_gen)
        case _, _, rounded:
            gguf = options.gguf
            if rounded or gguf is None:
                gguf = work / f"{name}.gguf"
                say(f"making a GGUF file for {name}")
                Converter(checkpoint, rounded or "q4_1").write(gguf)
            config = common | {"kind": "llama.cpp", "model": str(gguf), "context": sum(tokens)}
            return Plan(config, *tokens, options.llama_python)


def measured(options: argparse.Namespace, checkpoint: Checkpoint) -> dict[str, Any]:
    """Every side that can run, in turn."""
    work: dict[str, Work] = {}
    plans: dict[str, Plan] = {}
    started: dict[str, tuple[Side, dict[str, Any]]] = {}
    left_out: dict[str, str] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgepp-compare-")))
        for name in options.sides:
            try:
                plan = plans[name] = planned(name, options, checkpoint, folder)
                side = stack.enter_context(Side(name, plan.config, plan.python))
                started[name] = side, side.wait_ready()
            except EdgeppError as error:
                left_out[name] = str(error)
                say(f"left out: {error}{f'; {error.hint}' if error.hint else ''}")
        for name, (side, _) in started.items():
            work[name] = side.work(checkpoint.vocab_size, plans[name].prompt_tokens, plans[name].generate)
        if not work:
            raise EdgeppError("no side can run")
        results = interleave(work, options.rounds)
        found = {
            name: summary(results[name])
            | {"prompt_tokens": plans[name].prompt_tokens, "generated": plans[name].generate}
            | {"resident_bytes": side.resident_bytes, **about}
            for name, (side, about) in started.items()
        }
    ours = [name for name in work if name.startswith("edgepp")]
    ratios = {
        f"{own} / {other}": ratio(results[own], results[other], _comparable(plans[own], plans[other]))
        for own in ours
        for other in work
        if other not in ours
    }
    return {"sides": found, "ratio": ratios, "left_out": left_out}


def _comparable(ours: Plan, other: Plan) -> tuple[str, ...]:
    """The rates that two sides can be compared by: without equal token counts only decoding."""
    equal = (ours.prompt_tokens, ours.generate) == (other.prompt_tokens, other.generate)
    return ("decode", "prefill", "e2e") if equal else ("decode",)


def table(result: Mapping[str, Any]) -> Iterator[str]:
    """The result for people."""
    yield f"{'':16}{'tokens':>10}{rate_columns()}"
    for name, side in result["sides"].items():
        tokens = f"{side['prompt_tokens']}+{side['generated']}"
        yield f"{name:16}{tokens:>10}{rate_columns(side)}"
    for pair, ratios in result["ratio"].items():
        yield f"{pair}: {ratio_text(ratios)}"
    for name, reason in result["left_out"].items():
        yield f"{name} was left out: {reason}"


def main() -> None:
    """Measure and report."""
    options = parse()
    checkpoint = checked(options)
    settings = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(options).items()
        if name not in ("json", "sides", "llama_python")
    }
    result = {"bench": "compare", **settings, **measured(options, checkpoint)}
    report(result, table(result), json_only=options.json)


if __name__ == "__main__":
    script(main)
