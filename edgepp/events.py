"""What a coordinator and a node tell while they run: one union of plain values, each with a line for people.

``str(event)`` is that line; programs read the fields. Events are made in many threads and taken by one callable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from edgepp.layers import LayerRange


@dataclass(frozen=True)
class Measuring:
    """The speed of this machine is measured, once."""

    def __str__(self) -> str:
        return "measuring this machine once, which takes some seconds"


@dataclass(frozen=True)
class ClusterLeft:
    """This machine belongs to its cluster no more; where it coordinated, the cluster has ended."""

    coordinator: str
    ended: bool = False

    def __str__(self) -> str:
        if self.ended:
            return "this machine has left its cluster, which ends: `edgepp leave`"
        return f"this machine has left the cluster of {self.coordinator}: `edgepp leave`"


# What a coordinator tells.


@dataclass(frozen=True)
class NodePaired:
    """A machine was paired, by an invitation or a token."""

    name: str
    host: str
    way: str

    def __str__(self) -> str:
        return f"{self.name} at {self.host} joined by {self.way}"


@dataclass(frozen=True)
class PairingTrouble:
    """An invitation was not used as it should be: a wrong code, an expired one."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class NodeJoined:
    """A paired node has come."""

    name: str
    host: str
    memory_bytes: int
    backend: str

    def __str__(self) -> str:
        return f"{self.name} joined from {self.host} with {self.memory_bytes / 1e9:.1f} GB ({self.backend})"


@dataclass(frozen=True)
class NodeMoved:
    """A node has another address."""

    name: str
    before: str
    host: str

    def __str__(self) -> str:
        return f"{self.name} moved from {self.before} to {self.host}"


@dataclass(frozen=True)
class NodeChanged:
    """A node stopped, fell silent, came back or left."""

    name: str
    change: str
    """What the node did or is, such as ``is suspect``."""

    def __str__(self) -> str:
        return f"{self.name} {self.change}"


@dataclass(frozen=True)
class NodeRevoked:
    """A node or token was revoked."""

    name: str

    def __str__(self) -> str:
        return f"revoked {self.name}"


@dataclass(frozen=True)
class NodeRefused:
    """Somebody was not let in."""

    name: str
    host: str
    reason: str
    by_token: bool = False

    def __str__(self) -> str:
        return f"refused {self.name} at {self.host}{', which came by a token' * self.by_token}: {self.reason}"


@dataclass(frozen=True)
class PlanMade:
    """Another plan is in force."""

    number: int
    places: tuple[tuple[LayerRange, str], ...]
    """Layers and the name of the node that runs them, in order."""
    reason: str = ""

    def __str__(self) -> str:
        places = ", ".join(f"layers {layers} on {name}" for layers, name in self.places)
        return f"plan {self.number}: {places}{'; ' * bool(self.reason)}{self.reason}"


@dataclass(frozen=True)
class PlanKept:
    """Something is wrong with the plan in force, or with the nodes at hand, and there is no better one."""

    number: int | None
    """None without a plan."""
    reason: str

    def __str__(self) -> str:
        return self.reason if self.number is None else f"plan {self.number} stays: {self.reason}"


@dataclass(frozen=True)
class PlanMissing:
    """The plan in force ended, and there is no other."""

    reason: str

    def __str__(self) -> str:
        return f"no plan: {self.reason}"


@dataclass(frozen=True)
class LayersNotLoaded:
    """A node could not load its layers, or lost them."""

    name: str
    reason: str
    hint: str

    def __str__(self) -> str:
        return f"{self.name} cannot run its layers: {self.reason}{'; ' * bool(self.hint)}{self.hint}"


@dataclass(frozen=True)
class PipelineOpened:
    """Questions can be answered."""

    plan: int
    took_s: float

    def __str__(self) -> str:
        return f"plan {self.plan} is open after {self.took_s:.1f} s: ready to answer"


@dataclass(frozen=True)
class PipelineNotOpened:
    """A plan whose stages are all loaded cannot be opened; it is tried again."""

    plan: int
    reason: str

    def __str__(self) -> str:
        return f"plan {self.plan} cannot be opened: {self.reason}"


@dataclass(frozen=True)
class PipelineLost:
    """The pipeline that answered was lost."""

    reason: str

    def __str__(self) -> str:
        return f"interrupted: {self.reason}"


@dataclass(frozen=True)
class StepFailed:
    """An unexpected error cost one step of the coordinator; it goes on."""

    what: str
    error: str

    def __str__(self) -> str:
        return f"{self.what} failed this time: {self.error}"


# What a node tells.


@dataclass(frozen=True)
class CoordinatorSought:
    """The coordinator does not answer where it was."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"looking for {self.name}: {self.reason}"


@dataclass(frozen=True)
class CoordinatorReached:
    """The node takes part in the cluster of the coordinator at this address."""

    name: str
    address: str

    def __str__(self) -> str:
        return f"joined {self.name} at {self.address}"


@dataclass(frozen=True)
class SlotFailed:
    """A stage process of the node could not load, or ended."""

    slot: int
    reason: str

    def __str__(self) -> str:
        return f"slot {self.slot}: {self.reason}"


@dataclass(frozen=True)
class NodeAssignment:
    """The node's part in the plan, whenever it changes."""

    model: str
    layers: tuple[LayerRange, ...]
    reason: str
    """Why the node has no layers; empty where it has some."""

    def __str__(self) -> str:
        if self.layers:
            return f"this machine runs layers {', '.join(map(str, self.layers))} of {self.model}"
        return f"this machine runs no layers: {self.reason}"


CoordinatorEvent: TypeAlias = (
    Measuring | ClusterLeft | NodePaired | PairingTrouble | NodeJoined | NodeMoved | NodeChanged | NodeRevoked
    | NodeRefused | PlanMade | PlanKept | PlanMissing | LayersNotLoaded | PipelineOpened | PipelineNotOpened
    | PipelineLost | StepFailed
)  # fmt: skip
NodeEvent: TypeAlias = Measuring | ClusterLeft | CoordinatorSought | CoordinatorReached | SlotFailed | NodeAssignment
Event: TypeAlias = CoordinatorEvent | NodeEvent
OnEvent: TypeAlias = Callable[[Event], None]
"""Takes events; safe to call from any thread."""
