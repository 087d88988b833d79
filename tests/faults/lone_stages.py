"""Stage processes without a node, an engine over them, and proxies between the two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import zmq

from edgepp import backend
from edgepp.backend.base import BackendOptions
from edgepp.engine.engine_request import EngineRequest
from edgepp.engine.engine_thread import EngineParts
from edgepp.engine.loop import EngineLoop
from edgepp.engine.network_ring import NetworkRing
from edgepp.engine.plan_check import Expectation
from edgepp.engine.same_weights import PipelineWeights
from edgepp.engine.stage_handshake import Endpoint, ask, greet
from edgepp.errors import EdgeppError
from edgepp.layer_range import LayerRange
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.node.stage_handle import Ready, StageProcess
from edgepp.stage_process.compute_policy import ComputePolicy
from edgepp.stage_process.config import StageSettings
from edgepp.wire.address import Address
from edgepp.wire.messages.control import Ping, Pong
from edgepp.wire.security import KeyPair
from tests.faults.oracle import Footprint, Outcome, outcome, settles
from tests.faults.proxy import FrameProxy
from tests.waiting import PATIENCE_S


class LoneStages:
    """Stage processes of one model on loopback, each behind a proxy."""

    def __init__(
        self, path: Path, handles: Sequence[StageProcess], readies: Sequence[Ready], keys: KeyPair | None = None
    ) -> None:
        self.path = path
        self.keys = keys
        self.handles = handles
        self.addresses = [ready.address for ready in readies]
        self.proxies: list[FrameProxy] = []

    @property
    def processes(self) -> list[psutil.Process]:
        """The stage processes."""
        return [psutil.Process(handle.pid) for handle in self.handles]

    def footprint(self) -> Footprint:
        """What the stages and this process hold open."""
        return Footprint.of({"the stages": self.processes, "the test": [psutil.Process()]})

    def open_engine(self, *, proxied: bool = False) -> EngineLoop:
        """An engine over all stages."""

        def open_parts() -> EngineParts:
            checkpoint = Checkpoint.open(self.path)
            expected = Expectation(
                "tiny",
                checkpoint.fingerprint,
                checkpoint.num_layers,
                checkpoint.hidden_size,
                True,
                vocabulary=checkpoint.vocab_size,
                context=checkpoint.context,
                weights=PipelineWeights.of(checkpoint),
            )
            addresses = [proxy.address for proxy in self.proxies] if proxied else self.addresses
            public = self.keys.public if self.keys else ""
            endpoints = [Endpoint((address,), public) for address in addresses]
            ring = NetworkRing(endpoints, expected, "test", ("none",), self.keys)
            ends = backend.choose("auto", checkpoint).load_embedding_and_head(checkpoint, BackendOptions(exact=True))
            return EngineParts(ring, ends)

        return EngineLoop(open_parts, eos=frozenset())

    @contextmanager
    def behind_proxies(self) -> Iterator[list[FrameProxy]]:
        """A proxy in front of each stage, for as long as the block."""
        with ExitStack() as stack:
            self.proxies = [FrameProxy(address) for address in self.addresses]
            for proxy in self.proxies:
                stack.callback(proxy.close)
            yield self.proxies

    def states(self) -> list[Pong]:
        """What each stage says of itself."""
        return [state(address, self.keys) for address in self.addresses]

    def hold_nothing(self) -> None:
        """Wait until no stage holds a sequence, or keys and values."""

        def complaint() -> str:
            held = [(pong.sequences, pong.kv_bytes) for pong in self.states()]
            return "" if held == [(0, 0)] * len(held) else f"(sequences, bytes) {held}"

        settles(complaint, "the stages still hold something")


def state(address: Address, keys: KeyPair | None = None) -> Pong:
    """What the stage at ``address`` says of itself."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        peer = greet(context, Endpoint((address,), keys.public if keys else ""), "watch", keys)
        try:
            pong = ask(peer.control, Ping(1), PATIENCE_S, str(peer))
        finally:
            peer.control.close()
    finally:
        context.term()
    assert isinstance(pong, Pong), pong
    return pong


@contextmanager
def lone_stages(
    path: Path, *ranges: LayerRange, keys: KeyPair | None = None, head: bool = False
) -> Iterator[LoneStages]:
    """A stage process for each layer range, ended with the block; encrypted if all are to have these keys.

    With ``head``, the last one has the output head too.
    """
    settings = StageSettings(ComputePolicy.shared(1, len(ranges)), keys=keys)
    admitted = (keys.public,) if keys else ()
    with ExitStack() as stack:
        handles = []
        for layers in ranges:
            has_head = head and layers == ranges[-1]
            config = settings.config(path, "tiny", layers, exact=True, admit=admitted, head=has_head)
            handles.append(StageProcess(config))
            stack.callback(handles[-1].stop)
        yield LoneStages(path, handles, [handle.wait_ready() for handle in handles], keys)


def read(request: EngineRequest) -> Outcome:
    """What a request of an engine comes to."""

    def take(tokens: list[int]) -> None:
        while True:
            match request.events.get(timeout=PATIENCE_S):
                case int() as token:
                    tokens.append(token)
                case EdgeppError() as error:
                    raise error
                case _:
                    return

    return outcome(take)
