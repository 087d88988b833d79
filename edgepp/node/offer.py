"""What a node offers to its cluster, and what follows from it: its enrolment and the settings of its stages."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgepp import __version__
from edgepp.cluster.discovery.network_interfaces import usable_addresses
from edgepp.cluster.identity import Identity
from edgepp.layers import LayerRange
from edgepp.node.resources import Resources
from edgepp.stage_process.compute_policy import ComputePolicy
from edgepp.stage_process.config import StageSettings
from edgepp.wire.messages import Enrol
from edgepp.wire.transport import Address


@dataclass(frozen=True)
class Offer:
    """What a node offers to the cluster."""

    resources: Resources
    memory_bytes: int
    """Bytes that the model may use."""
    backend: str = "auto"
    stage_slots: int = 1
    pinned: LayerRange | None = None
    listen: Address = field(default_factory=lambda: Address("*", 0))
    """Where its stages listen; with a port, each stage slot takes two from there on."""

    def stage_settings(self, index: int, identity: Identity, driver: str) -> StageSettings:
        """Settings of stage slot ``index`` on the node ``identity``; ``driver`` is the coordinator's key."""
        return StageSettings(
            policy=ComputePolicy.node(self.resources.threads, self.stage_slots),
            backend=self.backend,
            listen=Address(self.listen.host, self.listen.port + 2 * index if self.listen.port else 0),
            node=identity.name,
            keys=identity.keys,
            driver=driver,
        )

    def enrolment(self, name: str, incarnation: int) -> Enrol:
        """What the node called ``name`` enrols with, at the addresses that it has now."""
        resources, pinned = self.resources, self.pinned
        return Enrol(
            incarnation=incarnation,
            name=name,
            version=__version__,
            addresses=",".join(usable_addresses()[:10]),
            memory_bytes=self.memory_bytes,
            backend=resources.backend,
            device=resources.device,
            threads=resources.threads,
            stage_slots=self.stage_slots,
            start=pinned.start if pinned else 0,
            stop=pinned.stop if pinned else 0,
            stream_bytes_per_s=int(resources.stream_bytes_per_s),
            flops_per_s=int(resources.flops_per_s),
        )
