"""What is measured on this machine: a model that fits the options, a pipeline over it, stage processes behind links."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.toolkit.processors import pin_stages
from bench.toolkit.slow_link import FAR, HERE, SlowLink, free_pair, slowed
from edgepp.engine.engine_request import EngineRequest
from edgepp.engine.pipeline import Pipeline, PipelineOptions
from edgepp.errors import EdgeppError, UsageError
from edgepp.layers import LayerRange, split_evenly
from edgepp.model.fetch import fetch
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.node.stage_handle import StageProcess
from edgepp.stage_process.compute_policy import ComputePolicy
from edgepp.stage_process.config import StageSettings
from edgepp.wire.transport import Address


def checked_model(options: argparse.Namespace, stages: int) -> Checkpoint:
    """The model of ``options``, fetched if need be, once it is known to hold a prompt and an answer.

    Raises:
        EdgeppError: the model does not hold them or cannot be split so, no decode rate can be formed, or there is no
            such model.
    """
    if options.gen < 2:
        raise UsageError("a decode rate needs at least 2 generated tokens", "raise --gen")
    checkpoint = Checkpoint.open(fetch(options.model))
    split_evenly(checkpoint.num_layers, stages)
    check_context(options.prompt_tokens + options.gen, checkpoint.context)
    return checkpoint


def check_context(tokens: int, context: int) -> None:
    """See that a prompt and its answer fit.

    Raises:
        UsageError: they do not.
    """
    if tokens > context:
        raise UsageError(
            f"prompt and answer do not fit into the model's context of {context} tokens", f"ask for fewer than {tokens}"
        )


@contextmanager
def local_pipeline(options: PipelineOptions) -> Iterator[Pipeline]:
    """A pipeline of stage processes of this machine, each pinned to CPUs of its own where that can be."""
    with Pipeline(options) as pipeline:
        pin_stages(pipeline.stages, options.threads or 1)
        yield pipeline


def arrivals(request: EngineRequest, came: list[float] | None = None) -> list[float]:
    """Wait for a request's last token: when each came, in ``came`` as soon as it has.

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
    """Stage processes with a link of one kind at every hop: where they are reached.

    ``model`` is what they are asked for by; the folder unless given.

    Raises:
        EdgeppError: a stage, or the link, does not come up.
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
