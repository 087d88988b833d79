"""Draining of nodes: a node gets no layers while it is drained, since its owner said so or because it is leaving.

Belongs to the coordinator's thread. The planner leaves out members that are drained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from edgepp.cluster.membership import Member, MemberPhase, Membership
from edgepp.coordinator.node_names import called
from edgepp.coordinator.planner import Planner
from edgepp.errors import PlanError, UsageError
from edgepp.events import NodeChanged, OnEvent
from edgepp.wire.message_codec import encode
from edgepp.wire.messages.nodes import Drained, Leaving


class Drains:
    """Marks members as drained, and tells those that leave when they may end."""

    def __init__(
        self,
        members: Membership,
        planner: Planner,
        has_moved: Callable[[], bool],
        send: Callable[[bytes, Sequence[bytes]], bool],
        on_event: OnEvent,
    ) -> None:
        """``has_moved`` says whether no answer runs over the stages of a former plan.

        ``send`` takes a route and frames, and is False for a lost route.
        """
        self._members = members
        self._planner = planner
        self._has_moved = has_moved
        self._send = send
        self._on_event = on_event
        self._leaving: dict[str, int] = {}
        """The incarnations of the members that wait for ``Drained``, by node id."""

    def drain(self, name: str, *, undo: bool) -> dict[str, Any]:
        """Drain the member called ``name``, or with ``undo`` let it run layers again; returns what it is doing now.

        ``name`` is a name, an id, or the first four or more digits of an id.

        Raises:
            UsageError: No present member is called so, or more than one; or the others cannot hold its layers.
        """
        member = self._find(name)
        if member.draining == undo:
            if not undo:
                self._check_without(member)
            self._members.drain(member.node, draining=not undo)
            self._on_event(NodeChanged(member.facts.name, "may run layers again" if undo else "is being drained"))
        layers = [[layers.start, layers.stop] for layers in self._layers(member.node)]
        return {"node": member.node, "name": member.facts.name, "draining": not undo, "layers": layers}

    def leaving(self, node: str, message: Leaving) -> None:
        """Drain a member that is about to end. It ends without that where the others cannot hold its layers."""
        member = self._members.get(node)
        if member is None or member.phase is MemberPhase.GONE or member.facts.incarnation != message.incarnation:
            return
        if node not in self._leaving:
            self._on_event(NodeChanged(member.facts.name, "is leaving"))
        self._leaving[node] = message.incarnation
        if member.draining:
            return
        try:
            self._check_without(member)
        except UsageError:
            self._tell(member)
        else:
            self._members.drain(node, draining=True)

    def tick(self) -> None:
        """Tell members that leave, and have no layers any more, that they may end."""
        for node, incarnation in list(self._leaving.items()):
            member = self._members.get(node)
            if member is None or member.phase is MemberPhase.GONE or member.facts.incarnation != incarnation:
                del self._leaving[node]
            elif member.draining and self._is_free(node):
                self._tell(member)

    def _tell(self, member: Member) -> None:
        self._leaving.pop(member.node, None)
        self._send(member.route, [encode(Drained(member.facts.incarnation))])

    def _is_free(self, node: str) -> bool:
        """Whether answers run over the other members, which have the layers of ``node``, or nobody will."""
        return not self._layers(node) and (self._planner.plan is None or self._has_moved())

    def _layers(self, node: str) -> list[Any]:
        return [place.layers for place in self._planner.places(self._members) if place.member.node == node]

    def _check_without(self, member: Member) -> None:
        """Check that a plan is possible without a member that has layers.

        Raises:
            UsageError: The other members cannot hold the model.
        """
        if not self._layers(member.node):
            return
        self._members.drain(member.node, draining=True)
        try:
            self._planner.check(self._planner.request, self._members)
        except PlanError as error:
            raise UsageError(f"the cluster needs {member.facts.name}: without it, {error}", error.hint) from error
        finally:
            self._members.drain(member.node, draining=False)

    def _find(self, name: str) -> Member:
        found = called(name, self._members.present, lambda one: (one.facts.name,))
        if len(found) == 1:
            return found[0]
        what = "more than one present node" if found else "no present node"
        raise UsageError(f"{what} is called '{name}'", "see `edgepp status --json` for names and ids")
