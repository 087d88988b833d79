"""A coordinator without a pipeline; a test puts messages into its inbox."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from edgepp.cluster.identity import PairedNode, load_identity, new_cluster
from edgepp.coordinator.coordinator import Coordinator
from edgepp.coordinator.pipeline_manager import PipelineManager
from edgepp.coordinator.pipeline_order import PipelineOrder
from edgepp.coordinator.planner import Planner
from edgepp.coordinator.recent_events import RecentEvents
from edgepp.engine.pipeline import Pipeline
from edgepp.engine.pipeline_options import PipelineOptions
from edgepp.engine.request import SamplingOptions
from edgepp.errors import EdgeppError, NotReady
from edgepp.placement.values import PlacementRequest
from edgepp.wire.address import Address
from edgepp.wire.transport import Sender
from tests.stages import GUEST
from tests.unit.coordinator.planned_cluster import SIZE


def _no_pipeline(*_: Any) -> Any:
    raise EdgeppError("there is no pipeline")


class _Frontend:
    sampling = SamplingOptions()


class _NoPipelines(PipelineManager):
    """Opens no pipeline, whatever the plan, and lets no answer wait for one."""

    def ensure_open(self, wanted: PipelineOrder) -> None:
        """Reach no node."""

    def acquire(self, wait_s: float, given_up: Callable[[], bool]) -> Pipeline:
        raise NotReady("there is no pipeline")


def idle_coordinator() -> Coordinator:
    """A coordinator in ``EDGEPP_HOME`` that has paired with ``GUEST``; end it with ``close_coordinator``."""
    identity = load_identity()
    cluster = new_cluster(identity)
    cluster = cluster.__class__(cluster.id, cluster.coordinator, (PairedNode.of("mini", GUEST.key),))
    pipeline_manager = _NoPipelines(_Frontend(), PipelineOptions("m"), lambda _: None)  # type: ignore[arg-type]
    request = PlacementRequest(SIZE, context=1024, max_sequences=1)
    planner = Planner(request, "m", False, identity.node, kv_bits=0, base_plan_id=1000)
    return Coordinator(
        identity,
        cluster,
        Address("127.0.0.1", 0),
        planner,
        pipeline_manager,
        RecentEvents(lambda _: None),
        _no_pipeline,
    )


def tell_coordinator(coordinator: Coordinator, sender: Sender, frames: list[bytes]) -> None:
    """Have one message handled."""
    coordinator.inbox.put(sender, [memoryview(frame) for frame in frames])
    coordinator.dispatcher.handle_waiting()


def tick(coordinator: Coordinator) -> None:
    """Have the periodic work done once."""
    coordinator._tick(time.monotonic())


def close_coordinator(coordinator: Coordinator) -> None:
    """Release its sockets and threads."""
    coordinator._outbox.put(None)
    coordinator.run()
    coordinator.pipeline_manager.close()
