"""The parts of a coordinator from which the cluster's state is read."""

from __future__ import annotations

from dataclasses import dataclass

from edgepp.cluster.membership import Membership
from edgepp.coordinator.live_answers import LiveAnswers
from edgepp.coordinator.model_change import ModelChanger
from edgepp.coordinator.pipeline_manager import PipelineManager
from edgepp.coordinator.planner import Planner
from edgepp.coordinator.rates import Rates
from edgepp.coordinator.recent_events import RecentEvents
from edgepp.coordinator.rollout import Rollout
from edgepp.coordinator.trust_store import TrustStore
from edgepp.host_system.sleep_inhibitor import SleepInhibitor
from edgepp.wire.address import Address


@dataclass(frozen=True)
class HttpAddress:
    """Address at which clients of OpenAI, Anthropic and Ollama reach the cluster."""

    url: str
    """For clients on the coordinator's machine."""
    lan_urls: tuple[str, ...]
    """For clients on other machines; empty if the server listens on loopback only."""
    key_required: bool
    """Whether every client needs an API key."""


@dataclass(frozen=True)
class StatusSources:
    """The parts of a coordinator from which the cluster's state is read."""

    trust_store: TrustStore
    members: Membership
    planner: Planner
    rollout: Rollout
    pipeline_manager: PipelineManager
    answers: LiveAnswers
    changer: ModelChanger
    rates: Rates
    events: RecentEvents
    address: Address
    """Where the coordinator listens."""
    began_s: float
    """When the coordinator began, by ``time.monotonic``."""
    sleep: SleepInhibitor | None = None
    """What keeps this machine awake; None where its own node does."""
    http: HttpAddress | None = None
    """None without an HTTP server."""

    @property
    def reason(self) -> str:
        """What answers wait for, such as machines that are away; empty while a pipeline is open."""
        return self.pipeline_manager.held or self.rollout.waiting(
            self.trust_store.away({member.node for member in self.members.present})
        )
