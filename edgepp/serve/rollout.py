"""Bringing the members to the plan in force: what they are told to load, what they have loaded, the pipeline over it.

The coordinator's thread drives it and sends what it orders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgepp.cluster.membership import Member, Membership, Phase
from edgepp.cluster.sizes import LinkSpeed
from edgepp.engine.peers import Endpoint
from edgepp.serve.answers import Answers
from edgepp.serve.director import Director, Order
from edgepp.serve.serving import Serving, Wanted
from edgepp.wire.messages import Loaded, Loading, NotLoaded
from edgepp.wire.transport import Address


@dataclass(frozen=True)
class Progress:
    """How far a slot's load is."""

    done: int
    total: int
    what: str


class Rollout:
    """Brings the members to one plan after another."""

    def __init__(
        self,
        director: Director,
        members: Membership,
        serving: Serving,
        answers: Answers,
        on_event: Callable[[str], None],
    ) -> None:
        self._director = director
        self._members = members
        self._serving = serving
        self._answers = answers
        self._on_event = on_event
        self._reason = ""
        self.progress: dict[tuple[str, int], Progress] = {}
        """Of the loads under way, by node and slot."""

    def step(self, now_s: float) -> list[Order]:
        """Go on with the plan, or with a new one; what to order."""
        director = self._director
        number = director.number
        orders = director.decide(self._members, now_s, idle=not len(self._answers))
        if director.reason != self._reason:
            self._reason = director.reason
            if self._reason and director.plan is not None:
                self._on_event(f"plan {director.count} stays: {self._reason}")
        if director.number != number:
            self.progress.clear()
            self._answers.last = None
            self._serving.shut(director.reason or "the layers are being loaded")
            self._tell_plan()
        self._assign()
        self._keep_serving()
        return orders

    def heard(self, node: str, message: Loading | Loaded | NotLoaded, now_s: float) -> None:
        """Take what a member says of its loads; of an older plan it does not matter."""
        member = self._members.get(node)
        if member is None or message.plan != self._director.number:
            return
        slot = (node, message.slot)
        match message:
            case Loading():
                self._director.progress(node, message.slot, now_s)
                self.progress[slot] = Progress(message.done, message.total, f"{member.facts.name} {message.what}")
            case Loaded():
                self.progress.pop(slot, None)
                self._members.loaded(node, message.slot, message)
            case NotLoaded():
                self.progress.pop(slot, None)
                self._members.loaded(node, message.slot, None)
                self._director.failed(node, message, now_s)
                self._serving.shut(f"{member.facts.name}: {message.reason}")
                hint = f"; {message.hint}" if message.hint else ""
                self._on_event(f"{member.facts.name} cannot run its layers: {message.reason}{hint}")

    def waiting(self) -> str:
        """What answers wait for; empty where there is a pipeline."""
        if self._serving.pipeline is not None:
            return ""
        loading = [f"{p.what} {100 * p.done // max(1, p.total)} %" for p in self.progress.values() if p.done < p.total]
        return ", ".join([self._director.reason or self._serving.reason, *loading])

    def _tell_plan(self) -> None:
        stages = self._director.stages(self._members)
        if not stages:
            self._on_event(f"no plan: {self._director.reason}")
            return
        places = ", ".join(f"layers {layers} on {member.facts.name}" for member, _, layers, _ in stages)
        self._on_event(f"plan {self._director.count}: {places}")

    def _assign(self) -> None:
        """Let members be ready once they have loaded all that the plan wants of them."""
        missing = {member.node for member, _, _, loaded in self._director.stages(self._members) if loaded is None}
        for member in self._members.present:
            if member.phase is not Phase.SUSPECT:
                self._members.assigned(member.node, complete=member.node not in missing)

    def _keep_serving(self) -> None:
        if self._director.complete(self._members):
            stages = self._director.stages(self._members)
            endpoints = tuple(_endpoint(member, loaded.port) for member, _, _, loaded in stages if loaded)
            self._serving.keep(Wanted(self._director.count, endpoints))
            self._learn_links([member for member, _, _, _ in stages])

    def _learn_links(self, stages: Sequence[Member]) -> None:
        """Keep what the open pipeline measured between its stages, for the next plan."""
        pipeline = self._serving.pipeline
        if pipeline is None or len(pipeline.stages) != len(stages):
            return
        nodes = [self._director.coordinator, *(member.node for member in stages)]
        for one, other, stage in zip(nodes, nodes[1:], pipeline.stages, strict=False):
            if one != other and stage.bytes_s:
                self._director.links[one, other] = LinkSpeed(stage.hop_s, stage.bytes_s)


def _endpoint(member: Member, port: int) -> Endpoint:
    """Where a member's stage may be reached: the address that it is heard from first."""
    hosts = dict.fromkeys((member.host, *filter(None, member.facts.addresses.split(","))))
    return Endpoint(tuple(Address(host, port) for host in hosts), member.key)
