"""Calls to the coordinator, such as for its status or an invitation; and the admission of token holders.

Belongs to the coordinator's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from edgepp.cluster.identity import Identity, clean_name
from edgepp.cluster.membership import Membership
from edgepp.coordinator.answer_service import AnswerService, Asker, declined
from edgepp.coordinator.join_endpoint import JoinEndpoint
from edgepp.coordinator.kept_traces import told_trace
from edgepp.coordinator.model_change import ModelChanger
from edgepp.coordinator.node_draining import Drains
from edgepp.coordinator.sum_measurements import Ask
from edgepp.coordinator.trust_store import TrustStore
from edgepp.errors import EdgeppError, UsageError
from edgepp.events import NodeChanged, NodeRefused, NodeRevoked, OnEvent
from edgepp.wire.log_sampler import LogSampler
from edgepp.wire.message_codec import encode, encode_payload
from edgepp.wire.messages.clients import Call, Reply
from edgepp.wire.messages.control import Refused
from edgepp.wire.messages.nodes import Adopt, Enrolled, Expelled
from edgepp.wire.permissions import VERBS_OF_OWNER
from edgepp.wire.text_fields import sentence
from edgepp.wire.transport import Sender


class CallService:
    """Answers each ``Call`` with a ``Reply``, and each ``Adopt`` with ``Enrolled`` or ``Refused``."""

    def __init__(
        self,
        identity: Identity,
        trust_store: TrustStore,
        members: Membership,
        answers: AnswerService,
        join_endpoint: JoinEndpoint,
        status: Callable[[], dict[str, Any]],
        changer: ModelChanger,
        drains: Drains,
        measure: Ask,
        send: Callable[[bytes, Sequence[bytes]], bool],
        on_event: OnEvent,
    ) -> None:
        """``status`` gives the cluster's state, and ``measure`` begins to measure sums over members.

        ``send`` takes a route and frames, and is False for a lost route.
        """
        self._identity = identity
        self._trust_store = trust_store
        self._members = members
        self._answers = answers
        self._join_endpoint = join_endpoint
        self._status = status
        self._changer = changer
        self._drains = drains
        self._measure = measure
        self._send = send
        self._on_event = on_event
        self._log_sampler = LogSampler()
        self.revoked_askers: set[Asker] = set()
        """Askers on revoked nodes whose answer is being cancelled: pieces of it are not sent."""

    def call(self, sender: Sender, message: Call, arguments: dict[str, Any]) -> None:
        """Answer a call.

        Raises:
            UsageError: the call is for the coordinator's own machine, or cannot be granted.
            EdgeppError: the change cannot be written to disk.
        """
        if message.verb in VERBS_OF_OWNER and sender.key != self._identity.keys.public:
            raise UsageError(f"only the coordinator's own machine may do that: run it on {self._identity.name}")
        match message.verb:
            case "status":
                reply = self._status()
            case "peers":
                reply = self._trust_store.peers({member.node: member.phase.value for member in self._members})
            case "invite":
                self._trust_store.check_room()
                reply = self._join_endpoint.invite()
            case "token":
                reply = self._trust_store.token()
            case "revoke":
                reply = self._revoke(str(arguments.get("node", "")))
            case "use":
                reply = self._use(arguments.get("model"))
            case "drain":
                reply = self._drains.drain(str(arguments.get("node", "")), undo=arguments.get("undo") is True)
            case "trace":
                owner = "" if sender.key == self._identity.keys.public else sender.key
                reply = told_trace(self._answers.traces, owner, arguments)
            case "measure":
                reply = self._measure()
            case "leave":
                reply = self._remove(sender.key)
        self._send(sender.route, [encode(Reply(message.request_id)), encode_payload(reply)])

    def adopt(self, sender: Sender, message: Adopt) -> None:
        """Pair the node that the holder of a token presents, or tell the holder why not.

        Raises:
            UsageError: the sender's key is not a token's.
            RemoteProtocolError: the node's key is malformed.
            EdgeppError: the change cannot be written to disk.
        """
        adoption = self._trust_store.adopt(sender.key, sender.host, message)
        if adoption.refusal:
            if self._log_sampler.should_log(sender.host, "adopt"):
                name = clean_name(message.name)
                self._on_event(NodeRefused(name, sender.host, adoption.refusal, by_token=True))
            self._send(sender.route, [encode(Refused(sentence(adoption.refusal)))])
            return
        if adoption.paired is not None:
            self._members.version += 1
            self._on_event(adoption.paired)
        self._send(sender.route, [encode(Enrolled(self._trust_store.cluster.id, self._identity.name))])

    def _revoke(self, name: str) -> dict[str, Any]:
        """Revoke a node or token, end its answers and disconnect its node."""
        revoked = self._trust_store.revoke(name, {member.node: member.facts.name for member in self._members})
        reason = f"{self._identity.name} revoked this node"
        for asker in self._answers.cancel_of(revoked.key):
            self._send(asker[0], declined(asker[1], EdgeppError(reason)))
            self.revoked_askers.add(asker)
        member = self._members.get(revoked.node)
        if member is not None:
            self._send(member.route, [encode(Expelled(reason))])
            self._members.left(member.node, "was revoked")
        self._members.version += 1
        self._on_event(NodeRevoked(revoked.name))
        kind = "token" if revoked in self._trust_store.cluster.withdrawn else "node"
        came_by = self._trust_store.token_of(revoked)
        return {"revoked": revoked.name, "node": revoked.node, "kind": kind, "came_by": came_by}

    def _use(self, model: Any) -> dict[str, Any]:
        """Begin to change the model, unless it runs already; the cluster's state says how far it is."""
        if not isinstance(model, str) or not model:
            raise UsageError("no model was named")
        return {"model": model, "changes": self._changer.begin(model)}

    def _remove(self, key: str) -> dict[str, Any]:
        """Remove the paired node with this key, which leaves the cluster for good."""
        if key == self._identity.keys.public:
            raise UsageError("the coordinator leaves by ending", "press Ctrl-C where `edgepp serve` runs")
        node = next(member for member in self._trust_store.cluster.members if member.key == key)
        self._trust_store.forget(node.node)
        if self._members.get(node.node) is not None:
            self._members.left(node.node, "left for good")
        self._members.version += 1
        self._on_event(NodeChanged(node.name, "left the cluster for good"))
        return {"left": node.name}
