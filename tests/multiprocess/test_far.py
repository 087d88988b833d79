"""Stages far away: behind the bench's proxy, which lets every byte wait."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.toolkit.slow_link import Proxy, free_pair
from edgepp.engine.engine_request import EngineRequest
from edgepp.engine.pipeline import Pipeline
from edgepp.engine.pipeline_options import PipelineOptions
from edgepp.engine.request import GenerateOptions, SamplingOptions
from edgepp.engine.stage_handshake import Endpoint
from edgepp.model.random_checkpoint import TINY
from edgepp.wire.address import Address
from tests.builders.checkpoints import Checkpoints
from tests.cluster import node
from tests.engines import collect

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8 without being told: the proxy needs a second one"
)

DELAY_S = 0.02
FAR = "127.0.0.2"


@pytest.fixture
def tiny(checkpoints: Checkpoints) -> Path:
    return checkpoints(replace(TINY, context=1024))


@pytest.fixture
def far(tiny: Path) -> Iterator[tuple[Endpoint, ...]]:
    """Two stages, every link between which takes ``DELAY_S`` each way."""
    with ExitStack() as owned:
        ports = []
        for layers in ("0-1", "2-3"):
            port = free_pair()
            owned.enter_context(node(tiny, layers, "--exact", "--listen", f"127.0.0.1:{port}"))
            ports.append(port)
        ways = [((FAR, port + n), ("127.0.0.1", port + n)) for port in ports for n in (0, 1)]
        owned.enter_context(Proxy(ways, DELAY_S))
        yield tuple(Endpoint((Address(FAR, port),)) for port in ports)


def ask(tiny: Path, far: tuple[Endpoint, ...], speculate: str, options: GenerateOptions) -> EngineRequest:
    text = [int(token) for token in np.random.default_rng(0).integers(3, TINY.vocabulary, 40)] * 2
    with Pipeline(PipelineOptions(str(tiny), far, exact=True, speculate=speculate)) as pipeline:
        assert min(stage.hop_s for stage in pipeline.stages) > 0.9 * DELAY_S
        request = pipeline.engine.submit(text, options)
        collect(request)
    return request


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_guessing_ahead_changes_the_number_of_trips_and_nothing_else(
    tiny: Path, far: tuple[Endpoint, ...], temperature: float
) -> None:
    sampling = SamplingOptions(temperature=temperature, seed=5)
    options = GenerateOptions(40, ignore_eos=True, sampling=sampling)
    plain = ask(tiny, far, "off", options)
    guessing = ask(tiny, far, "lookup", options)
    model = ask(tiny, far, str(tiny), options)
    assert guessing.ids == plain.ids
    assert model.ids == plain.ids
    assert plain.timing.guessed == 0
    if temperature == 0.0:
        assert model.timing.right > 0  # how many come in time depends on what else the machine does
