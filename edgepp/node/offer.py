"""Resources that a node offers to its cluster, the ``Enrol`` message, and the settings of the stage processes."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgepp import __version__
from edgepp.cluster.discovery.network_interfaces import usable_addresses
from edgepp.cluster.identity import Identity
from edgepp.layer_range import LayerRange
from edgepp.node.resources import Resources
from edgepp.stage_process.compute_policy import ComputePolicy
from edgepp.stage_process.config import StageSettings
from edgepp.wire.address import Address
from edgepp.wire.messages.nodes import Enrol


@dataclass(frozen=True)
class Offer:
    """Resources that a node offers to its cluster."""

    resources: Resources
    memory_bytes: int
    """Memory for the model, for all stage processes together."""
    backend: str = "auto"
    stage_slots: int = 1
    """Number of stage processes that the node offers to run."""
    pinned: LayerRange | None = None
    """Layers of the first stage slot; None lets the coordinator decide."""
    listen: Address = field(default_factory=lambda: Address("*", 0))
    """Address of the control sockets; from a given port on, each stage slot takes two ports."""
    draft: str = ""
    """Small model to guess with, in place of running layers; empty for none."""
    ranks: tuple[int, ...] = (1,)
    """Weights of the processes of this machine that share each layer of a stage; one process unless there are more."""
    tensor: int = 1
    """Machines, this one included, that are to share each layer of one stage; 1 for none."""

    def stage_settings(self, index: int, identity: Identity, driver: str) -> StageSettings:
        """Settings of the stage process in slot ``index`` of ``identity``; ``driver`` is the coordinator's key."""
        return StageSettings(
            policy=ComputePolicy.node(self.resources.threads, self.stage_slots * len(self.ranks)),
            backend=self.backend,
            listen=Address(self.listen.host, self.listen.port + 2 * index if self.listen.port else 0),
            node=identity.name,
            keys=identity.keys,
            driver=driver,
            ranks=self.ranks,
        )

    def enrolment(self, name: str, incarnation: int) -> Enrol:
        """``Enrol`` message of the node named ``name``, with the present addresses of this machine."""
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
            half_ns=int(resources.half_s * 1e9),
            draft=self.draft,
            tensor=self.tensor,
        )
