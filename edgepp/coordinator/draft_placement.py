"""Choice of the member that guesses with a small model for the cluster's requests, and its load. Pure: no socket.

Members that joined with `--draft` come first; with `serve --speculate MODEL` a member without layers may guess too. One
member guesses at a time, the next one where its process keeps failing. Its stage slot runs a drafting process.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgepp.cluster.membership import Member, MemberPhase, Membership
from edgepp.coordinator.load_orders import Order
from edgepp.coordinator.load_tracker import STALLED_S, LoadTracker, host_id
from edgepp.coordinator.pipeline_order import endpoint_of
from edgepp.engine.stage_handshake import Endpoint
from edgepp.events import DraftFailed, DraftLoaded, OnEvent
from edgepp.wire.messages.nodes import Load, Loaded, Loading, NotLoaded, Unload

SLOT = 0
"""The stage slot that drafts."""


@dataclass(frozen=True)
class _Choice:
    """The process of a node that is to draft."""

    node: str
    incarnation: int
    model: str


class DraftPlacement:
    """Has one member draft, and says where its process listens. Belongs to the coordinator's thread."""

    def __init__(self, members: Membership, is_spare: Callable[[Member], bool], model: str, on_event: OnEvent) -> None:
        """``is_spare`` tells whether a member has no layers and will get none now.

        A spare member guesses with ``model``; with none for an empty name.
        """
        self._members, self._is_spare, self._model = members, is_spare, model
        self._on_event = on_event
        self._ids = itertools.count(secrets.randbits(40) << 16)
        self._loads = LoadTracker()
        self._choice: _Choice | None = None
        self._load = Load(next(self._ids), SLOT, "", 0, 0, False, 0, drafts=True)
        self._loaded: Loaded | None = None
        self._loading: Loading | None = None
        self.failure = ""
        """Why the process of the chosen member failed last; empty where it has not."""

    @property
    def endpoint(self) -> Endpoint | None:
        """Where the drafting process listens; None where none is ready."""
        member = self._chosen()
        return endpoint_of(member, self._loaded.port) if member is not None and self._loaded is not None else None

    @property
    def host(self) -> str:
        """The host id of the slot that drafts or is to; empty for none."""
        return host_id(self._choice.node, SLOT) if self._choice is not None else ""

    def drafts_on(self, node: str) -> bool:
        """Whether the drafting process of a node is ready."""
        return self._loaded is not None and self._choice is not None and self._choice.node == node

    def task(self, node: str) -> str:
        """What a node does for the guesses, for users; empty for nothing."""
        choice, member = self._choice, self._members.get(node)
        if choice is not None and choice.node == node:
            doing = "it guesses tokens" if self._loaded is not None else "it is about to guess tokens"
            return f"{doing} with {choice.model}"
        if member is not None and member.facts.draft:
            return f"it stands by to guess tokens with {member.facts.draft}"
        return ""

    def progress(self) -> float:
        """The loaded part of the small model, from 0 to 1."""
        if self._loaded is not None or self._loading is None:
            return float(self._loaded is not None)
        return min(1.0, self._loading.done_bytes / max(1, self._loading.total_bytes))

    def step(self, now_s: float) -> list[Order]:
        """Choose a member, and return the orders that are due."""
        orders: list[Order] = []
        choice = self._choose(now_s)
        if choice != self._choice:
            former = self._chosen()
            if former is not None and self._choice is not None and self._is_idle(former):
                orders.append((former.node, Unload(self._load.plan_id, SLOT)))
            self._choice, self._loaded, self._loading, self.failure = choice, None, None, ""
            self._loads.clear()
            if choice is not None:
                self._load = self._load._replace(plan_id=next(self._ids), model=choice.model)
        if choice is not None and self._loaded is None:
            host = self.host
            if self._loads.is_stalled(host, now_s):
                self._loads.failed(host, f"its load made no progress for {STALLED_S:.0f} s", now_s, final=True)
            if self._loads.is_due(host, now_s):
                self._loads.order(host, now_s)
                orders.append((choice.node, self._load))
        return orders

    def report(self, node: str, message: Loading | Loaded | NotLoaded, now_s: float) -> bool:
        """Take a member's report of a load; False where it is not about the drafting process."""
        member, host = self._chosen(), self.host
        if member is None or member.node != node or (message.plan_id, message.slot) != (self._load.plan_id, SLOT):
            return False
        if self._loads.get(host) is None:
            return True
        match message:
            case Loading():
                self._loads.progress(host, message, now_s)
                self._loading = message
            case Loaded() if message != self._loaded:
                self._loads.loaded(host, now_s)
                self._loaded, self.failure = message, ""
                self._on_event(DraftLoaded(member.facts.name, self._load.model))
            case NotLoaded():
                self._loaded, self._loading, self.failure = None, None, message.reason
                if message.restarting:
                    self._loads.restarting(host, now_s)
                else:
                    self._loads.failed(host, message.reason, now_s)
                self._on_event(DraftFailed(member.facts.name, message.reason, message.hint))
        return True

    def _choose(self, now_s: float) -> _Choice | None:
        """The present choice as long as it holds, else the first member that may draft and does not keep failing."""
        found = self._candidates()
        sound = [one for one in found if not self._loads.backoff.is_banned(host_id(one.node, SLOT), now_s)]
        declared = [one for one in sound if self._is_declared(one)]
        best: Sequence[_Choice] = declared or sound or found
        return self._choice if self._choice in best else next(iter(best), None)

    def _candidates(self) -> list[_Choice]:
        present = [
            member
            for member in self._members.present
            if member.facts.stage_slots and not member.draining and member.phase is not MemberPhase.SUSPECT
        ]
        suspect = self._chosen()
        if suspect is not None and suspect not in present and not suspect.draining:
            present.append(suspect)  # it may only be slow; the client notices by itself when it is gone
        return [
            _Choice(member.node, member.facts.incarnation, member.facts.draft or self._model)
            for member in present
            if member.facts.draft or (self._model and self._is_spare(member))
        ]

    def _is_declared(self, choice: _Choice) -> bool:
        member = self._members.get(choice.node)
        return member is not None and bool(member.facts.draft)

    def _is_idle(self, member: Member) -> bool:
        return bool(member.facts.draft) or self._is_spare(member)

    def _chosen(self) -> Member | None:
        """The member that drafts, as long as it is present with the same process."""
        member = self._members.get(self._choice.node) if self._choice is not None else None
        if member is None or self._choice is None or member.phase is MemberPhase.GONE:
            return None
        return member if member.facts.incarnation == self._choice.incarnation else None
