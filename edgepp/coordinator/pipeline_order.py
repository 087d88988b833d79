"""The pipeline that a coordinator wants open, and the endpoints of its stages."""

from __future__ import annotations

from dataclasses import dataclass

from edgepp.cluster.membership import Member
from edgepp.engine.frontend import ModelFrontend
from edgepp.engine.pipeline_options import PipelineOptions
from edgepp.engine.stage_handshake import Endpoint
from edgepp.wire.address import Address


def endpoint_of(member: Member, port: int) -> Endpoint:
    """The addresses of a member's process, first the one from which its messages come."""
    hosts = dict.fromkeys((member.host, *filter(None, member.facts.addresses.split(","))))
    return Endpoint(tuple(Address(host, port) for host in hosts), member.key)


@dataclass(frozen=True)
class PipelineOrder:
    """The version of a plan, the endpoints of its stages in order, and the addresses of the coordinator's machine.

    An order with other addresses opens the pipeline anew, since another path may be faster.
    """

    plan_version: int
    endpoints: tuple[Endpoint, ...]
    own_addresses: str = ""


@dataclass(frozen=True)
class Opening:
    """A pipeline to open, with the model that was in force when it was ordered."""

    order: PipelineOrder
    frontend: ModelFrontend
    options: PipelineOptions
