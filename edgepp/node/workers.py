"""Parts of a node that follow the coordinator's orders: stage slots, the fetching of layers, the measuring of sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from edgepp.cluster.identity import Identity
from edgepp.errors import RemoteProtocolError
from edgepp.node.offer import Offer
from edgepp.node.sum_probe import SumProbe
from edgepp.node.supervisor import Report, StageSupervisor
from edgepp.node.warming import LayerWarmer
from edgepp.wire.messages.nodes import Load, Restart, Retire, Unload, Warm
from edgepp.wire.messages.rank_meetings import MeasureSum, RankAt, SumMeasured

NodeOrder: TypeAlias = Load | Unload | Restart | Retire | Warm | MeasureSum | RankAt
"""Order of the coordinator about what a node computes."""


class NodeWorkers:
    """One thread per stage slot, and one each to warm layers and to measure sums. Must be closed once started."""

    def __init__(
        self, offer: Offer, identity: Identity, driver: str, report: Callable[[Report | SumMeasured], None]
    ) -> None:
        """``driver`` is the coordinator's key; ``report`` is called in the threads."""
        settings = [offer.stage_settings(slot, identity, driver) for slot in range(max(1, offer.stage_slots))]
        memory_bytes = offer.memory_bytes // max(1, offer.stage_slots)
        self._supervisors = [
            StageSupervisor(slot, settings[slot], report, memory_bytes) for slot in range(offer.stage_slots)
        ]
        self._sum_probe = SumProbe(settings[0], report)
        self._warmer = LayerWarmer(lambda: any(supervisor.is_loading for supervisor in self._supervisors))
        self._ranks: tuple[SumProbe | StageSupervisor, ...] = (self._sum_probe, *self._supervisors)
        """Those whose processes connect to such of other nodes."""
        self._threads: tuple[LayerWarmer | SumProbe | StageSupervisor, ...] = (self._warmer, *self._ranks)

    @property
    def has_layers(self) -> bool:
        """Whether the node has a stage process, or starts one."""
        return any(supervisor.is_busy for supervisor in self._supervisors)

    @property
    def resident_bytes(self) -> int:
        """Memory of all stage processes when they became ready."""
        return sum(supervisor.resident_bytes for supervisor in self._supervisors)

    def start(self) -> None:
        """Start all threads."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End all threads and their processes."""
        for thread in self._threads:
            thread.close()

    def admit(self, keys: Sequence[str]) -> None:
        """Admit exactly these keys to the processes of the node."""
        for worker in self._ranks:
            worker.admit(keys)

    def follow(self, order: NodeOrder) -> None:
        """Pass an order to the part of the node that follows it.

        Raises:
            RemoteProtocolError: the node has no such stage slot.
        """
        match order:
            case Warm():
                self._warmer.warm(order)
            case MeasureSum():
                self._sum_probe.measure(order)
            case RankAt():
                for worker in self._ranks:
                    worker.tell(order)
            case _ if order.slot >= len(self._supervisors):
                raise RemoteProtocolError(f"a {type(order).__name__} message for slot {order.slot}")
            case Load():
                self._supervisors[order.slot].assign(order)
            case Unload():
                self._supervisors[order.slot].assign(None)
            case Restart() | Retire():
                self._supervisors[order.slot].order(order)
