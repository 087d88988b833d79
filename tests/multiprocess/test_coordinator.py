"""A coordinator on loopback without any process: what an unexpected error costs it, and what a flood costs others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zmq

from edgepp.cluster.identity import PairedNode, load_identity, new_cluster
from edgepp.coordinator.composition_root import CoordinatorService
from edgepp.coordinator.coordinator import Coordinator
from edgepp.coordinator.json_codec import encode_question
from edgepp.coordinator.model_change import CoordinatorModel
from edgepp.coordinator.pipeline_manager import PipelineManager
from edgepp.coordinator.planner import Planner
from edgepp.coordinator.recent_events import RecentEvents
from edgepp.engine.pipeline_options import PipelineOptions
from edgepp.engine.request import GenerateOptions, SamplingOptions
from edgepp.errors import EdgeppError
from edgepp.events import Event
from edgepp.model.text.conversation import Conversation
from edgepp.placement.values import ModelSize, PlacementRequest
from edgepp.wire.address import Address
from edgepp.wire.message_codec import decode, encode, encode_payload
from edgepp.wire.messages import MAX_PAYLOAD_BYTES, Message
from edgepp.wire.messages.clients import Answered, Ask, Call, Cancel, Declined, Reply, Waiting
from edgepp.wire.messages.nodes import Loaded, NotLoaded
from edgepp.wire.security import KeyPair, Pinned
from edgepp.wire.transport import Link
from tests.waiting import PATIENCE_S, eventually

WAIT_S = PATIENCE_S
SIZE = ModelSize(layers=4, hidden=8, layer_bytes=1, ends_bytes=1, kv_bytes=1, layer_flops=1)


@dataclass
class Desk:
    """A running coordinator, a member's keys, and connections to it."""

    coordinator: Coordinator
    pipeline_manager: PipelineManager
    keys: KeyPair
    events: list[str]
    context: zmq.Context[zmq.Socket[bytes]] = field(default_factory=zmq.Context)
    links: list[Link] = field(default_factory=list)

    def link(self, keys: KeyPair) -> Link:
        server = self.coordinator._identity.keys.public
        link = Link(self.context, self.coordinator.address, MAX_PAYLOAD_BYTES, pinned=Pinned(keys, server))
        self.links.append(link)
        return link

    @property
    def own(self) -> Link:
        """A connection of the coordinator's own machine."""
        return self.link(self.coordinator._identity.keys)


def no_parts(_: object) -> CoordinatorModel:
    raise EdgeppError("no model")


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setenv("EDGEPP_HOME", str(tmp_path))
    identity, member = load_identity(), KeyPair.generate()
    cluster = replace(new_cluster(identity), members=(PairedNode.of("mini", member.public),))
    events: list[str] = []

    def tell(event: Event) -> None:
        events.append(str(event))

    front = SimpleNamespace(sampling=SamplingOptions())  # all that a status reads of a model
    pipeline_manager = PipelineManager(front, PipelineOptions("m"), tell)  # type: ignore[arg-type]
    planner = Planner(PlacementRequest(SIZE, 16, 1), "m", False, identity.node, kv_bits=0, base_plan_id=1 << 16)
    coordinator = Coordinator(
        identity, cluster, Address("127.0.0.1", 0), planner, pipeline_manager, RecentEvents(tell), no_parts
    )
    made = Desk(coordinator, pipeline_manager, member, events)
    coordinator.start()
    try:
        yield made
    finally:
        for link in made.links:
            link.close()
        made.context.term()
        coordinator.close()
        pipeline_manager.close()


def call(link: Link, number: int = 1) -> None:
    assert link.send([encode(Call(number, "status")), encode_payload({})], WAIT_S)


def hear(link: Link) -> Message:
    frames = link.receive(WAIT_S)
    assert frames is not None
    return decode(frames[0])


def test_an_error_in_what_is_due_now_and_then_costs_that_round(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(24, "Too many open files")

    link = desk.own
    monkeypatch.setattr(desk.coordinator._join_endpoint, "announce", fails)
    monkeypatch.setattr(desk.coordinator.rollout, "step", fails)
    monkeypatch.setattr(desk.coordinator._membership_service, "tick", fails)
    for number in range(3):
        call(link, number)
        assert isinstance(hear(link), Reply)
    assert desk.coordinator.is_alive()


@pytest.mark.parametrize("error", [MemoryError(), OSError(24, "Too many open files"), KeyError("x")], ids=repr)
def test_an_error_over_a_message_costs_that_message(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: object) -> None:
        raise error

    link = desk.own
    with monkeypatch.context() as patch:
        patch.setattr("edgepp.coordinator.coordinator.cluster_status", fails)
        call(link)
        said = hear(link)
        assert isinstance(said, Declined)
        assert type(error).__name__ in said.reason
    call(link)
    assert isinstance(hear(link), Reply)
    assert any(type(error).__name__ in event for event in desk.events)


def test_a_coordinator_that_ended_by_itself_is_noticed_and_said(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Any) -> bool:
        raise RuntimeError("its socket is gone")

    monkeypatch.setattr(desk.coordinator, "_turn", fails)
    desk.coordinator.join(WAIT_S)
    assert not desk.coordinator.is_alive()
    service = SimpleNamespace(coordinator=desk.coordinator, pipeline_manager=desk.pipeline_manager, node=None)
    with pytest.raises(EdgeppError, match=r"the coordinator ended by itself: .*RuntimeError: its socket is gone"):
        CoordinatorService.check(service)  # type: ignore[arg-type]


def test_a_member_that_floods_delays_itself(desk: Desk) -> None:
    flood, own = desk.link(desk.keys), desk.own
    call(own)
    assert isinstance(hear(own), Reply)
    for number in range(2000):
        call(flood, number)
    call(own, 2)
    assert isinstance(hear(own), Reply)
    answered = [hear(flood) for _ in range(2000)]
    declined = [said for said in answered if isinstance(said, Declined)]
    assert all("waiting already" in said.reason for said in declined)
    assert {said.request_id for said in answered if isinstance(said, Reply | Declined)} == set(range(2000))
    call(flood, 5000)
    assert isinstance(hear(flood), Reply)


def test_what_a_member_says_of_loads_that_it_was_not_told_changes_nothing(desk: Desk) -> None:
    link, own = desk.link(desk.keys), desk.own
    call(own)
    hear(own)
    version = desk.coordinator.members.version
    number = desk.coordinator.planner.plan_id
    for plan in (number - 1, number, number + 1):
        for slot in (0, 63):
            assert link.send([encode(NotLoaded(plan, slot, "it feels like it", ""))], WAIT_S)
            assert link.send([encode(Loaded(plan, slot, 4000, 1, "onnx", "cpu", 1, 1, 1, 1))], WAIT_S)
    call(link)
    assert isinstance(hear(link), Reply)
    assert desk.coordinator.members.version == version
    assert not [event for event in desk.events if "cannot run" in event]


def test_an_asker_hears_at_once_which_machines_are_away_and_a_cancelled_wait_ends(desk: Desk) -> None:
    link = desk.own
    form = encode_question(Conversation.of("hi"), GenerateOptions())
    assert link.send([encode(Ask(7)), encode_payload(form)], WAIT_S)
    waiting = hear(link)
    assert isinstance(waiting, Waiting)
    assert waiting.request_id == 7
    assert waiting.reason.startswith("mini is away; without it, no node")
    assert link.send([encode(Cancel(7))], WAIT_S)
    while isinstance(ended := hear(link), Waiting):
        continue
    assert ended == Answered(7)
    eventually("its place is free", lambda: not len(desk.coordinator.live_answers))


def test_a_revoked_machine_hears_so_in_the_middle_of_its_answer(desk: Desk) -> None:
    member, own = desk.link(desk.keys), desk.own
    form = encode_question(Conversation.of("hi"), GenerateOptions())
    assert member.send([encode(Ask(7)), encode_payload(form)], WAIT_S)
    assert isinstance(hear(member), Waiting)
    assert own.send([encode(Call(1, "revoke")), encode_payload({"node": "mini"})], WAIT_S)
    assert hear(own) == Reply(1)
    while isinstance(ended := hear(member), Waiting):
        continue
    assert isinstance(ended, Declined)
    assert (ended.request_id, "revoked this node" in ended.reason) == (7, True)
    eventually("its place is free", lambda: not len(desk.coordinator.live_answers))
    call(member)
    assert "no longer, admitted" in getattr(hear(member), "reason", "")
