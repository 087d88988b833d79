"""A public load tool on the load of `bench.concurrency`: does aiperf measure over HTTP what edgepp measures itself?

    python3 -m venv ~/aiperf && ~/aiperf/bin/pip install aiperf==0.13.0
    python -m bench.aiperf_check --aiperf ~/aiperf/bin/aiperf --stages 2 --threads 1 --requests 8 --words 50

One cluster answers both in turn; METHODOLOGY.md defines the numbers. aiperf has an environment of its own, because it
brings 140 packages.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.toolkit.figures import interleave, spread_text, table
from bench.toolkit.http_load import InProcess, MeasuredCluster, cluster_with_http, together
from bench.toolkit.script import Result, ScriptArguments, count, script
from edgepp.benchmark.prompts import numbers
from edgepp.benchmark.report import Spread
from edgepp.benchmark.workload import RequestGroup, ask_at_once, percentile
from edgepp.errors import EdgeppError, UsageError

SIDES = ("edgepp", "aiperf")
FIGURES = ("aggregate_tokens_per_s", "ttft_p50_s", "itl_s")
_PATIENCE_S = 900.0

Figures = Mapping[str, float]
"""The figures of one round of one side, by the names in ``FIGURES``."""


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = ScriptArguments(__doc__)
    parser.shared("model", "stages", "threads", "backend", rounds=5)
    parser.add_argument("--aiperf", required=True, help="the command aiperf, version 0.13 or later")
    parser.add_argument("--requests", type=count, default=8, help="requests at once (%(default)s)")
    parser.add_argument("--words", type=count, default=50, help="words of a story (%(default)s)")
    return parser.parse_args()


def measured(options: argparse.Namespace) -> Result:
    """Measure both sides in turn."""
    group = RequestGroup(options.requests, options.words)
    first_words = numbers()
    with asyncio.Runner() as runner:
        place = cluster_with_http(options.model, options.stages, options.threads, options.backend)
        opened = runner.run(place.__aenter__())
        try:
            aiperf = Aiperf(options.aiperf, options.model, opened.url, str(opened.cluster.frontend.path))
            sides = {
                "edgepp": lambda _turn: runner.run(_asked(opened, group, first_words)),
                "aiperf": lambda _turn: runner.run(asyncio.to_thread(aiperf.run, group, first_words)),
            }
            found = interleave(sides, options.rounds)
        finally:
            runner.run(place.__aexit__(None, None, None))
    return {**compared(found), "pinned": opened.pinned}


async def _asked(opened: MeasuredCluster, group: RequestGroup, numbers: Iterator[int]) -> Figures:
    answers = await ask_at_once(InProcess(opened.cluster), group, numbers)
    spans = [(answer.time_s - answer.arrivals_s[0]) / (answer.tokens - 1) for answer in answers]
    return {
        "aggregate_tokens_per_s": together(answers),
        "ttft_p50_s": percentile([answer.arrivals_s[0] for answer in answers], 50),
        "itl_s": sum(spans) / len(spans),
    }


@dataclass(frozen=True)
class Aiperf:
    """aiperf and the server that it asks."""

    command: str
    model: str
    url: str
    tokenizer: str
    """The folder of the model."""

    def run(self, group: RequestGroup, numbers: Iterator[int]) -> Figures:
        """Ask all requests of ``group`` at the same time.

        Raises:
            UsageError: there is no such command.
            EdgeppError: aiperf failed.
        """
        with tempfile.TemporaryDirectory(prefix="edgepp-aiperf-") as name:
            folder = Path(name)
            texts = [json.dumps({"text": group.prompt(next(numbers))}) for _ in range(group.requests)]
            (folder / "prompts.jsonl").write_text("\n".join(texts) + "\n")
            self._profile(group, folder)
            return _figures(json.loads((folder / "out" / "profile_export_aiperf.json").read_text()))

    def _profile(self, group: RequestGroup, folder: Path) -> None:
        body = {
            "max_completion_tokens": group.tokens,
            "ignore_eos": True,
            "temperature": 0,
            "repetition_penalty": 1,
        }
        line = [
            *(self.command, "profile", "--model", self.model, "--url", self.url, "--tokenizer", self.tokenizer),
            *("--endpoint-type", "chat", "--streaming", "--use-server-token-count", "--ui", "none"),
            *("--input-file", str(folder / "prompts.jsonl"), "--custom-dataset-type", "single_turn"),
            *("--concurrency", str(group.requests), "--request-count", str(group.requests)),
            *("--extra-inputs", json.dumps(body), "--output-artifact-dir", str(folder / "out")),
            *("--no-server-metrics", "--no-gpu-telemetry"),  # polled three times per second, besides the load
        ]
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        try:
            done = subprocess.run(
                line, env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=_PATIENCE_S
            )
        except OSError as error:
            raise UsageError(f"{self.command} cannot be run: {error.strerror}", "name it with --aiperf") from error
        if done.returncode != 0 or not (folder / "out" / "profile_export_aiperf.json").exists():
            raise EdgeppError(f"aiperf failed: {(done.stdout + done.stderr)[-1000:]}")


def _figures(export: Mapping[str, Any]) -> Figures:
    if export["completed_request_count"]["avg"] < export["request_count"]["avg"] or export["request_error_rate"]["avg"]:
        raise EdgeppError("requests of aiperf failed")
    return {
        "aggregate_tokens_per_s": export["output_token_throughput"]["avg"],
        "ttft_p50_s": export["time_to_first_token"]["p50"] / 1e3,
        "itl_s": export["inter_token_latency"]["avg"] / 1e3,
    }


def compared(found: Mapping[str, list[Figures]]) -> Result:
    """Medians of both sides, and of the ratios within a round, each with its spread."""
    columns = {side: {name: [one[name] for one in found[side]] for name in FIGURES} for side in SIDES}
    medians = {side: {name: _with_spread(Spread.of(columns[side][name])) for name in FIGURES} for side in SIDES}
    ratios = {
        name: _with_spread(Spread.of_ratios(columns["aiperf"][name], columns["edgepp"][name])) for name in FIGURES
    }
    return {**medians, "ratio": ratios}


def _with_spread(value: Spread) -> dict[str, Any]:
    return {"median": value.median, "spread": [value.low, value.high]}


def lines(result: Result) -> Iterator[str]:
    """Lines of the result for people."""
    rows = [
        (name, *(spread_text(result[side][name]["median"], result[side][name]["spread"], ".4g") for side in SIDES),
         spread_text(result["ratio"][name]["median"], result["ratio"][name]["spread"]))
        for name in FIGURES
    ]  # fmt: skip
    yield from table(("", *SIDES, "ratio"), rows)


if __name__ == "__main__":
    script("aiperf_check", parse, measured, lines)
