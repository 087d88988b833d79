"""Cost of the boundary log and of copies of keys and values in a run without faults: rates, memory and traffic."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from bench.faults.marked_edgepp import stage_command
from bench.toolkit.figures import interleave, medians, prompt, ratios
from bench.toolkit.local import arrivals, local_pipeline
from edgepp.engine.frontend import ModelFrontend
from edgepp.engine.pipeline import Pipeline
from edgepp.engine.pipeline_options import PipelineOptions
from edgepp.engine.request import GenerateOptions
from edgepp.node import stage_handle

STAGES = 3
_RATES = ("prefill_tokens_per_s", "decode_tokens_per_s")
_PONG_S = 2.5
"""Seconds after which each stage has told what it holds now."""


def standing_costs(options: argparse.Namespace, frontend: ModelFrontend) -> dict[str, Any]:
    """Rates of three pipelines in turn: without boundary log, with it, and with copies as well; and their bytes."""
    with ExitStack() as own:
        with _without_log():
            none = own.enter_context(local_pipeline(_options(options, keep_copies=False)))
        pipelines = {
            "neither": none,
            "log": own.enter_context(local_pipeline(_options(options, keep_copies=False))),
            "log and copies": own.enter_context(local_pipeline(_options(options, keep_copies=True))),
        }
        vocabulary = frontend.checkpoint.vocab_size

        def case(pipeline: Pipeline) -> Callable[[int], dict[str, float]]:
            return lambda turn: _run(pipeline, prompt(vocabulary, options.prompt_tokens, turn), options.gen)

        cases = {name: case(pipeline) for name, pipeline in pipelines.items()}
        found = interleave(cases, options.rounds, lambda one: f"decode {one['decode_tokens_per_s']:.1f}")
        used = {name: _bytes(pipeline, options, vocabulary) for name, pipeline in pipelines.items()}
    rates = {name: medians(one, _RATES) for name, one in found.items()}
    return {
        "rates": rates,
        "ratios": {
            "log / neither": ratios(found["log"], found["neither"], ("decode", "prefill")),
            "log and copies / log": ratios(found["log and copies"], found["log"], ("decode", "prefill")),
            "log and copies / neither": ratios(found["log and copies"], found["neither"], ("decode", "prefill")),
        },
        "bytes_per_token": _differences(used),
    }


def _options(options: argparse.Namespace, *, keep_copies: bool) -> PipelineOptions:
    return PipelineOptions(options.model, stages=STAGES, threads=1, keep_copies=keep_copies, speculate="off")


@contextmanager
def _without_log() -> Iterator[None]:
    """Let the stage processes that are started meanwhile keep no log."""
    changed: Any = stage_handle
    usual, os.environ["EDGEPP_WITHOUT"] = changed.python_command, "log"
    changed.python_command = stage_command
    try:
        yield
    finally:
        changed.python_command = usual
        del os.environ["EDGEPP_WITHOUT"]


def _run(pipeline: Pipeline, ids: list[int], tokens: int) -> dict[str, float]:
    began_s = time.perf_counter()
    request = pipeline.engine.submit(ids, GenerateOptions(tokens, ignore_eos=True))
    came = arrivals(request)
    return {
        "prefill_tokens_per_s": len(ids) / (came[0] - began_s),
        "decode_tokens_per_s": (len(came) - 1) / (came[-1] - came[0]),
    }


def _bytes(pipeline: Pipeline, options: argparse.Namespace, vocabulary: int) -> dict[str, float]:
    """Bytes of memory and of received traffic that one more answer takes, of all stages, per token."""
    time.sleep(_PONG_S)
    before = pipeline.engine.stage_stats
    _run(pipeline, prompt(vocabulary, options.prompt_tokens, options.rounds + 1), options.gen)
    time.sleep(_PONG_S)
    after = pipeline.engine.stage_stats
    tokens = options.prompt_tokens + options.gen
    pairs = list(zip(before, after, strict=True))
    return {
        "memory": sum(b.kv_bytes - a.kv_bytes for a, b in pairs) / tokens,
        "wire": sum(b.received_bytes - a.received_bytes for a, b in pairs) / tokens,
    }


def _differences(used: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    found = {f"{name}: {what}": value for name, one in used.items() for what, value in one.items()}
    for what in ("memory", "wire"):
        found[f"log alone: {what}"] = used["log"][what] - used["neither"][what]
        found[f"copies alone: {what}"] = used["log and copies"][what] - used["log"][what]
    return found
