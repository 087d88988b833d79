"""Orders of a rollout that wait until the pipeline runs over the stages of a new plan. Pure: stages in, orders out.

The stage processes of the former plan run until then, so that answers go on, and their sequences can move.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

from edgepp.coordinator.load_orders import Order
from edgepp.layer_range import LayerRange
from edgepp.wire.messages.nodes import Load, Restart, Retire, Unload, Warm
from edgepp.wire.messages.rank_meetings import MeasureSum, RankAt

RolloutOrder: TypeAlias = tuple[str, Load | Unload | Restart | Retire | Warm | RankAt | MeasureSum]
"""A node id, and the message to send to that node."""


class RunningStage(NamedTuple):
    """A stage that the pipeline runs over."""

    node: str
    slot: int
    plan_id: int
    layers: LayerRange
    rank: int = 0


class Handover:
    """The stages that the pipeline runs over, and the orders that wait until it has moved."""

    def __init__(self) -> None:
        self._running: tuple[RunningStage, ...] = ()
        self._left: dict[tuple[str, int], int] = {}
        """Plan id of each stage that a new plan leaves or loads again, by node and slot."""
        self._unloads: dict[tuple[str, int], Unload] = {}
        """Orders that are held back, by node and slot."""

    def hold_back(self, orders: Sequence[Order]) -> list[Order]:
        """The orders of a new plan that are given now: all but those to unload what the pipeline still runs over."""
        self._left |= {(stage.node, stage.slot): stage.plan_id for stage in self._running}
        given: list[Order] = []
        for node, order in orders:
            if isinstance(order, Unload) and (node, order.slot) in self._left:
                self._unloads[node, order.slot] = order
            else:
                self._unloads.pop((node, order.slot), None)
                given.append((node, order))
        return given

    def moved_to(self, stages: Iterable[RunningStage], model: str) -> list[RolloutOrder]:
        """The orders that are due when the pipeline has moved to ``stages``; none where it ran over these before.

        They end the stages that were left, and let each node keep the files of its neighbour's layers at hand.
        """
        running = tuple(stages)
        if running == self._running:
            return []
        self._running = running
        orders: list[RolloutOrder] = [(node, unload) for (node, _), unload in self._unloads.items()]
        for (node, slot), plan_id in self._left.items():
            if (node, slot) not in self._unloads:
                orders.append((node, Retire(plan_id, slot)))
        self._left, self._unloads = {}, {}
        first_ranks = [stage for stage in running if stage.rank == 0]
        for stage, neighbour in zip(first_ranks, (*first_ranks[1:], *first_ranks[:1]), strict=True):
            if stage.node != neighbour.node:
                layers = neighbour.layers
                orders.append((stage.node, Warm(stage.plan_id, model, layers.start, layers.stop)))
        return orders
