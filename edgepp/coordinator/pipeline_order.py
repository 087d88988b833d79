"""Which pipeline a coordinator wants open."""

from __future__ import annotations

from dataclasses import dataclass

from edgepp.engine.frontend import ModelFrontend
from edgepp.engine.pipeline_options import PipelineOptions
from edgepp.engine.stage_handshake import Endpoint


@dataclass(frozen=True)
class PipelineOrder:
    """The version of a plan, and the endpoints of its stages in order."""

    plan_version: int
    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True)
class Opening:
    """A pipeline to open, with the model that was in force when it was ordered."""

    order: PipelineOrder
    frontend: ModelFrontend
    options: PipelineOptions
