"""What a node says of itself reaches people as plain text, and what it is told of its part."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from edgepp.cluster.identity import Identity, PairedNode, node_id
from edgepp.cluster.membership import Membership
from edgepp.coordinator.membership_service import MembershipService
from edgepp.wire.messages import Enrol
from edgepp.wire.security import KeyPair
from edgepp.wire.transport import Sender
from tests.builders.members import facts
from tests.unit.coordinator.test_planner import MINI, Cluster

KEYS = KeyPair.generate()


class Front:
    """An attendance with what it sent and said."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        self.sent: list[list[bytes]] = []
        self.events: list[str] = []
        here = Identity(node_id(KEYS.public), "tower", KEYS)
        book: Any = SimpleNamespace(
            cluster=SimpleNamespace(id="f" * 16, coordinator=PairedNode.of("tower", KEYS.public)), keys={KEYS.public}
        )
        self.attendance = MembershipService(
            self.cluster.members,
            here,
            book,
            self.cluster.planner,
            self._send,
            lambda event: self.events.append(str(event)),
        )

    def _send(self, _: bytes, frames: Any) -> bool:
        self.sent.append(list(frames))
        return True

    def enrol(self, told: Enrol) -> None:
        self.attendance.enrol(MINI, Sender(b"route", KEYS.public, "10.0.0.7"), told)

    @property
    def members(self) -> Membership:
        return self.cluster.members

    def view(self) -> dict[str, Any]:
        """The newest view that was published."""
        self.attendance.publish()
        found: dict[str, Any] = json.loads(next(frames[1] for frames in reversed(self.sent) if len(frames) == 2))
        return found


def test_what_a_node_calls_itself_is_safe_to_print() -> None:
    front = Front()
    rude = "evil\x1b]52;c;cm0=\x07\n\u202e[/red]"
    front.enrol(facts(name=rude, backend=rude, device=rude, memory_bytes=1_000_000_000))
    (member,) = front.members
    for text in (member.facts.name, member.facts.backend, member.facts.device, *front.events):
        assert all(character.isprintable() for character in text.replace("\ufffd", ""))
    assert front.view()["members"][0]["name"] == member.facts.name == "evil]52;c;cm0=[/red]"


def test_a_node_is_told_its_part_when_it_changes_and_not_before() -> None:
    front = Front()
    front.enrol(facts(name="mini", memory_bytes=1_000_000_000))
    assert (front.view()["members"][0]["layers"], front.view()["members"][0]["reason"]) == ([], "")
    sent = len(front.sent)
    front.attendance.publish()
    assert len(front.sent) == sent
    front.cluster.after(2.0)
    assert front.view()["members"][0]["layers"] == [[0, 30]]
