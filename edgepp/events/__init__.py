"""Events of a running coordinator or node: plain values, one class per kind of event.

``str(event)`` is a line for people; programs read the fields. Many threads make events; one callable receives them.
Programs find every event here, as ``edgepp.events``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from edgepp.events.of_coordinator import (
    DraftFailed,
    DraftLoaded,
    LayersNotLoaded,
    ModelChanged,
    ModelNotChanged,
    NodeChanged,
    NodeJoined,
    NodeMoved,
    NodePaired,
    NodeRefused,
    NodeRevoked,
    PairingFailed,
    PipelineLost,
    PipelineNotOpened,
    PipelineOpened,
    PlanKept,
    PlanMade,
    PlanMissing,
    StageSuspected,
    StepFailed,
)
from edgepp.events.of_node import (
    AssignmentChanged,
    ClusterLeft,
    CoordinatorLost,
    CoordinatorReached,
    Measuring,
    StageFailed,
    Woke,
)

CoordinatorEvent: TypeAlias = (
    Measuring | ClusterLeft | NodePaired | PairingFailed | NodeJoined | NodeMoved | NodeChanged | NodeRevoked
    | NodeRefused | PlanMade | PlanKept | PlanMissing | LayersNotLoaded | DraftLoaded | DraftFailed | PipelineOpened
    | PipelineNotOpened | PipelineLost | StageSuspected | ModelChanged | ModelNotChanged | StepFailed
)  # fmt: skip
NodeEvent: TypeAlias = (
    Measuring | ClusterLeft | CoordinatorLost | CoordinatorReached | Woke | StageFailed | AssignmentChanged
)
Event: TypeAlias = CoordinatorEvent | NodeEvent
OnEvent: TypeAlias = Callable[[Event], None]
"""Receives events; safe to call from any thread."""

__all__ = [
    "AssignmentChanged",
    "ClusterLeft",
    "CoordinatorEvent",
    "CoordinatorLost",
    "CoordinatorReached",
    "DraftFailed",
    "DraftLoaded",
    "Event",
    "LayersNotLoaded",
    "Measuring",
    "ModelChanged",
    "ModelNotChanged",
    "NodeChanged",
    "NodeEvent",
    "NodeJoined",
    "NodeMoved",
    "NodePaired",
    "NodeRefused",
    "NodeRevoked",
    "OnEvent",
    "PairingFailed",
    "PipelineLost",
    "PipelineNotOpened",
    "PipelineOpened",
    "PlanKept",
    "PlanMade",
    "PlanMissing",
    "StageFailed",
    "StageSuspected",
    "StepFailed",
    "Woke",
]
