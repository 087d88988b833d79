"""Draining: a drained node gets no layers; a node that leaves hears when the others have its layers."""

from __future__ import annotations

import pytest

from edgepp.coordinator.assignments import node_assignments
from edgepp.coordinator.node_draining import Drains
from edgepp.errors import UsageError
from edgepp.wire.message_codec import decode
from edgepp.wire.messages import Message
from edgepp.wire.messages.nodes import Drained, Leaving
from tests.unit.coordinator.planned_cluster import AIR, HERE, MINI, Cluster


class Harness:
    """Two nodes that hold a model, and the messages and events of a drain."""

    def __init__(self, *nodes: str, memory: int = 1_000_000_000) -> None:
        self.cluster = Cluster()
        for node in nodes or (HERE, MINI):
            self.cluster.join(node, memory)
        self.cluster.until_complete(10.0)
        self.sent: list[tuple[bytes, Message]] = []
        self.events: list[str] = []
        self.moved = True
        """Whether answers have moved to the stages of a plan as soon as these are loaded."""
        self.drains = Drains(
            self.cluster.members,
            self.cluster.planner,
            lambda: self.moved and self.cluster.planner.complete(self.cluster.members),
            self._send,
            lambda event: self.events.append(str(event)),
        )

    def _send(self, route: bytes, frames: object) -> bool:
        self.sent.append((route, decode(frames[0])))  # type: ignore[index]
        return True

    def settle(self) -> None:
        """Let the planner decide, and its loads succeed."""
        self.cluster.load(self.cluster.after(2.0))
        self.cluster.until_complete(5.0)

    def leave(self, node: str, incarnation: int = 1) -> None:
        self.drains.leaving(node, Leaving(incarnation))


def test_a_drained_node_gets_no_layers_until_that_is_undone() -> None:
    harness = Harness()
    told = harness.drains.drain("b", undo=False)
    assert told == {"node": MINI, "name": "b", "draining": True, "layers": [[15, 30]]}
    harness.settle()
    assert harness.cluster.ranges == {HERE: "0-29"}
    why = node_assignments(harness.cluster.planner, harness.cluster.members)[MINI]["reason"]
    assert "edgepp drain --undo b" in why
    assert harness.drains.drain(MINI, undo=False)["layers"] == []  # again: nothing changes
    assert harness.drains.drain(MINI[:4], undo=True)["draining"] is False
    harness.settle()
    assert set(harness.cluster.ranges) == {HERE, MINI}
    assert harness.events == ["b is being drained", "b may run layers again"]


def test_a_node_that_is_started_again_is_not_drained() -> None:
    harness = Harness()
    harness.drains.drain("b", undo=False)
    harness.settle()
    harness.cluster.members.left(MINI)
    harness.cluster.join(MINI, incarnation=2)
    harness.settle()
    assert set(harness.cluster.ranges) == {HERE, MINI}


def test_a_node_that_the_model_needs_is_not_drained() -> None:
    harness = Harness(memory=180_000_000)
    before = harness.cluster.ranges
    assert set(before) == {HERE, MINI}
    with pytest.raises(UsageError, match="the cluster needs b: without it, ") as refused:
        harness.drains.drain("b", undo=False)
    assert refused.value.hint
    harness.cluster.after(2.0)
    assert harness.cluster.ranges == before
    assert harness.events == []


def test_a_node_without_layers_can_be_drained_whatever_the_others_hold() -> None:
    harness = Harness(HERE)
    harness.cluster.join(AIR, 1)
    harness.cluster.after(2.0)
    assert harness.drains.drain("c", undo=False)["layers"] == []


@pytest.mark.parametrize("name", ["", "nobody", "bbb"])
def test_an_unknown_node_is_named(name: str) -> None:
    with pytest.raises(UsageError, match=f"no present node is called '{name}'"):
        Harness().drains.drain(name, undo=False)


def test_a_node_that_left_is_unknown() -> None:
    harness = Harness()
    harness.cluster.members.left(MINI)
    with pytest.raises(UsageError, match="no present node"):
        harness.drains.drain("b", undo=False)


def test_a_node_that_leaves_hears_so_once_the_others_have_loaded_its_layers() -> None:
    harness = Harness()
    harness.leave(MINI)
    orders = harness.cluster.after(0.2)
    assert harness.cluster.ranges == {HERE: "0-29"}
    harness.leave(MINI)  # told again
    harness.drains.tick()
    assert harness.sent == []
    harness.cluster.load(orders)
    harness.drains.tick()
    harness.drains.tick()
    assert harness.sent == [(MINI.encode(), Drained(1))]
    assert harness.events == ["b is leaving"]


def test_a_node_that_the_model_needs_leaves_at_once() -> None:
    harness = Harness(memory=180_000_000)
    harness.leave(MINI)
    assert harness.sent == [(MINI.encode(), Drained(1))]
    assert set(harness.cluster.ranges) == {HERE, MINI}


def test_a_drained_node_leaves_at_once() -> None:
    harness = Harness()
    harness.drains.drain("b", undo=False)
    harness.settle()
    harness.leave(MINI)
    harness.drains.tick()
    assert harness.sent == [(MINI.encode(), Drained(1))]


def test_a_node_that_is_gone_or_another_process_hears_nothing() -> None:
    harness = Harness()
    harness.leave(MINI, incarnation=2)
    harness.leave(AIR)
    harness.leave(MINI)
    harness.cluster.members.left(MINI)
    harness.settle()
    harness.drains.tick()
    assert harness.sent == []
