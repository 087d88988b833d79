"""Events of a running node; those of the machine itself, which a coordinator has too, come first."""

from __future__ import annotations

from dataclasses import dataclass

from edgepp.layer_range import LayerRange


@dataclass(frozen=True)
class Measuring:
    """The speed of this machine is being measured, once."""

    def __str__(self) -> str:
        return "measuring the speed of this machine, which takes some seconds, once"


@dataclass(frozen=True)
class ClusterLeft:
    """This machine has left its cluster; if this machine coordinated the cluster, the cluster has ended."""

    coordinator: str
    ended: bool = False

    def __str__(self) -> str:
        if self.ended:
            return "the cluster has ended, because `edgepp leave` ran on this machine"
        return f"this machine has left the cluster of {self.coordinator}, because `edgepp leave` ran here"


@dataclass(frozen=True)
class CoordinatorLost:
    """The coordinator does not answer at its last address; the node looks for it."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"looking for {self.name}: {self.reason}"


@dataclass(frozen=True)
class CoordinatorReached:
    """The node reached the coordinator and is a member of its cluster."""

    name: str
    address: str

    def __str__(self) -> str:
        return f"joined {self.name} at {self.address}"


@dataclass(frozen=True)
class Woke:
    """This machine has slept, and connects again at once; or its clock was set forward by as much."""

    slept_s: float

    def __str__(self) -> str:
        return f"this machine slept for {self.slept_s:.0f} s, and connects again"


@dataclass(frozen=True)
class StageFailed:
    """A stage process of the node could not load, or ended."""

    stage_slot: int
    reason: str

    def __str__(self) -> str:
        return f"the stage in slot {self.stage_slot} failed: {self.reason}"


@dataclass(frozen=True)
class AssignmentChanged:
    """The layers of this node in the plan changed."""

    model: str
    layers: tuple[LayerRange, ...]
    reason: str
    """Why the node has no layers; empty where it has some."""

    def __str__(self) -> str:
        if self.layers:
            return f"this machine runs layers {', '.join(map(str, self.layers))} of {self.model}"
        return f"this machine runs no layers: {self.reason}"
