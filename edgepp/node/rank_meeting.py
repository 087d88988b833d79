"""The node's side of a stage whose ranks run on several nodes: one rank starts, and learns where the others listen."""

from __future__ import annotations

import queue
from collections.abc import Callable

from edgepp.errors import EdgeppError
from edgepp.model.tensor_shares import MAX_RANKS
from edgepp.node.stage_handle import OnProgress, Ready, StageProcess
from edgepp.stage_process.config import StageConfig, lost_rank
from edgepp.wire.address import Address
from edgepp.wire.messages.nodes import Load
from edgepp.wire.messages.rank_meetings import RankAt, RankListens

_CHECK_INTERVAL_S = 0.1
"""How often a waiting rank looks whether it still has to wait."""


class RankMeeting:
    """Reports about the other ranks of the stage of one slot. ``tell`` is safe from any thread."""

    def __init__(self) -> None:
        self._told: queue.SimpleQueue[RankAt] = queue.SimpleQueue()
        self._others: dict[int, RankAt] = {}

    def tell(self, message: RankAt) -> None:
        """Note where another rank listens."""
        self._told.put(message)

    def join(
        self,
        load: Load,
        child: StageProcess,
        report: Callable[[RankListens], None],
        given_up: Callable[[], bool],
        on_progress: OnProgress,
    ) -> Ready:
        """Report where the rank ``child`` listens, let it connect to the others, and wait until it has loaded.

        Raises:
            EdgeppError: the child reported an error or died, or ``given_up()`` became true.
        """
        while not self._told.empty():
            self._told.get()  # of an earlier process
        port = Address.parse(child.wait_rank()).port
        report(RankListens(load.group, port))
        self._others = {}
        while len(self._others) < len(load.weights) - 1:
            if given_up():
                raise EdgeppError("another assignment has arrived")
            if child.wait(0) is not None:
                child.wait_rank()  # raises, with the reason
            try:
                message = self._told.get(timeout=_CHECK_INTERVAL_S)
            except queue.Empty:
                continue
            if message.group == load.group and message.rank != load.rank and message.rank < len(load.weights):
                self._others[message.rank] = message
        ranks = [self._others.get(rank) for rank in range(len(load.weights))]
        keys = [one.key if one else _own_key(child.config) for one in ranks]
        child.join_ranks([one.addresses if one else "" for one in ranks], keys)
        return child.wait_ready(on_progress)

    def lost(self, status: int) -> str:
        """Name of the lost rank that made a process end with ``status``, for people; empty for another cause."""
        rank = lost_rank(status, MAX_RANKS)
        if rank is None:
            return ""
        other = self._others.get(rank)
        return f"it lost rank {rank} of the stage{f', on {other.name}' if other else ''}"


def _own_key(config: StageConfig) -> str:
    return config.keys.public if config.keys else ""
