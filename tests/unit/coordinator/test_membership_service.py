"""The membership service: texts of nodes are made safe to print, and views are published when they change."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from edgepp.cluster.identity import Identity, PairedNode, node_id
from edgepp.cluster.membership import MemberPhase, Membership
from edgepp.coordinator.membership_service import MembershipService
from edgepp.wire.messages.nodes import Enrol
from edgepp.wire.security import KeyPair
from edgepp.wire.transport import Sender
from tests.builders.members import facts
from tests.unit.coordinator.planned_cluster import MINI, Cluster

KEYS = KeyPair.generate()


class Harness:
    """A membership service, with the messages and events that it sent."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        self.sent: list[list[bytes]] = []
        self.events: list[str] = []
        self.connected = True
        here = Identity(node_id(KEYS.public), "tower", KEYS)
        trust_store: Any = SimpleNamespace(
            cluster=SimpleNamespace(id="f" * 16, coordinator=PairedNode.of("tower", KEYS.public)), keys={KEYS.public}
        )
        self.membership_service = MembershipService(
            self.cluster.members,
            here,
            trust_store,
            self.cluster.planner,
            self._send,
            lambda event: self.events.append(str(event)),
        )

    def _send(self, _: bytes, frames: Any) -> bool:
        self.sent.append(list(frames))
        return self.connected

    def enrol(self, enrol: Enrol) -> None:
        self.membership_service.enrol(MINI, Sender(b"route", KEYS.public, "10.0.0.7"), enrol)

    @property
    def members(self) -> Membership:
        return self.cluster.members

    def view(self) -> dict[str, Any]:
        """The newest view that was published."""
        self.membership_service.publish()
        found: dict[str, Any] = json.loads(next(frames[1] for frames in reversed(self.sent) if len(frames) == 2))
        return found


def test_texts_of_a_node_are_safe_to_print() -> None:
    harness = Harness()
    rude = "evil\x1b]52;c;cm0=\x07\n\u202e[/red]"
    harness.enrol(facts(name=rude, backend=rude, device=rude, memory_bytes=1_000_000_000))
    (member,) = harness.members
    for text in (member.facts.name, member.facts.backend, member.facts.device, *harness.events):
        assert all(character.isprintable() for character in text.replace("\ufffd", ""))
    assert harness.view()["members"][0]["name"] == member.facts.name == "evil]52;c;cm0=[/red]"


def test_a_node_whose_stage_process_ended_is_gone_only_without_a_connection() -> None:
    harness = Harness()
    harness.enrol(facts(name="mini"))
    (member,) = harness.members
    for connected, phase in ((True, MemberPhase.JOINED), (False, MemberPhase.GONE)):
        harness.connected = connected
        harness.membership_service.stage_ended(MINI)
        harness.membership_service.tick(member.heard_s + 0.1)
        assert [one.phase for one in harness.members] == [phase]
    assert harness.events[-1] == "mini is gone"


def test_a_view_is_published_only_when_it_has_changed() -> None:
    harness = Harness()
    harness.enrol(facts(name="mini", memory_bytes=1_000_000_000))
    assert (harness.view()["members"][0]["layers"], harness.view()["members"][0]["reason"]) == ([], "")
    sent = len(harness.sent)
    harness.membership_service.publish()
    assert len(harness.sent) == sent
    harness.cluster.after(2.0)
    assert harness.view()["members"][0]["layers"] == [[0, 30]]
