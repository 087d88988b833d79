"""Targets of measurements on this machine: a checked model, a local pipeline, stage processes behind links."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.toolkit.processors import pin_stages
from bench.toolkit.slow_link import FAR, HERE, SlowLink, free_pair, slowed
from edgepp.engine.engine_request import EngineRequest
from edgepp.engine.pipeline import Pipeline
from edgepp.engine.pipeline_options import PipelineOptions
from edgepp.errors import EdgeppError, UsageError
from edgepp.layer_range import LayerRange, split_evenly
from edgepp.model.fetch import fetch
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.node.stage_handle import StageProcess
from edgepp.stage_process.compute_policy import ComputePolicy
from edgepp.stage_process.config import StageSettings
from edgepp.wire.address import Address


def checked_model(options: argparse.Namespace, stages: int) -> Checkpoint:
    """The model of ``options``, fetched if necessary.

    Raises:
        EdgeppError: there is no such model, it has fewer layers than ``stages``, prompt and answer do not fit its
            context, or the answer is too short for a decode rate.
    """
    if options.gen < 2:
        raise UsageError("a decode rate needs at least 2 generated tokens", "raise --gen")
    checkpoint = Checkpoint.open(fetch(options.model))
    split_evenly(checkpoint.num_layers, stages)
    check_context(options.prompt_tokens + options.gen, checkpoint.context)
    return checkpoint


def check_context(tokens: int, context: int) -> None:
    """Check that prompt and answer of ``tokens`` in all fit ``context``.

    Raises:
        UsageError: they do not fit.
    """
    if tokens > context:
        raise UsageError(
            f"prompt and answer do not fit into the model's context of {context} tokens", f"ask for fewer than {tokens}"
        )


@contextmanager
def local_pipeline(options: PipelineOptions) -> Iterator[Pipeline]:
    """A pipeline of stage processes on this machine, each pinned to its own CPUs if possible."""
    with Pipeline(options) as pipeline:
        pin_stages(pipeline.stages, options.threads or 1)
        yield pipeline


def arrivals(request: EngineRequest, came: list[float] | None = None) -> list[float]:
    """Wait for the last token of a request; returns the time of each token, appended to ``came`` as it arrives.

    Raises:
        EdgeppError: the answer failed.
    """
    came = [] if came is None else came
    while not isinstance(event := request.events.get(), str):
        if isinstance(event, EdgeppError):
            raise event
        came.append(time.perf_counter())
    return came


@contextmanager
def stage_processes(
    folder: Path,
    layers: Sequence[LayerRange],
    link: SlowLink,
    *,
    model: str = "",
    threads: int,
    backend_name: str,
    awake: bool,
    exact: bool = False,
) -> Iterator[tuple[Address, ...]]:
    """Run stage processes with a link of one kind at every hop; yields their addresses.

    ``model`` is the name under which the stages serve the model; empty: the folder.

    Raises:
        EdgeppError: a stage or the link does not start.
    """
    with ExitStack() as owned:
        children = []
        for part in layers:
            settings = StageSettings(ComputePolicy(threads, awake=awake), backend_name, Address(HERE, free_pair()))
            children.append(StageProcess(settings.config(folder, model or str(folder), part, exact=exact)))
            owned.callback(children[-1].stop)
        ports = [child.wait_ready().address.port for child in children]
        if not link.direct:
            ways = [((FAR, port + n), (HERE, port + n)) for port in ports for n in (0, 1)]
            owned.enter_context(slowed(link, ways))
        yield tuple(Address(HERE if link.direct else FAR, port) for port in ports)
