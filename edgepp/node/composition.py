"""How a node is put together: a member of a cluster, or one stage outside of any cluster.

`edgepp join` and ``edgepp.join`` both run one of these two services.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from edgepp.cluster.discovery.coordinator_addresses import coordinator_addresses, may_move
from edgepp.cluster.discovery.mdns import Browser
from edgepp.cluster.identity import (
    Cluster,
    Identity,
    has_left,
    load_cluster,
    load_identity,
    remember_address,
    save_view,
)
from edgepp.cluster.node_lock import hold_node_lock
from edgepp.cluster.pairing.join import PairingOptions, paired
from edgepp.errors import EdgeppError
from edgepp.events import AssignmentChanged, ClusterLeft, Measuring, OnEvent
from edgepp.layers import LayerRange
from edgepp.model.cache import Progress
from edgepp.model.fetch import fetch
from edgepp.model.weights.model_parts import ModelParts
from edgepp.node.agent import NodeAgent
from edgepp.node.assignment import read_assignment
from edgepp.node.offer import Offer
from edgepp.node.resources import measure, usable_memory
from edgepp.node.stage_handle import Ready, StageProcess, check_listen
from edgepp.stage_process.compute_policy import ComputePolicy
from edgepp.stage_process.config import StageSettings
from edgepp.wire.transport import Address


@dataclass(frozen=True)
class MemberOptions:
    """What this machine gives to a cluster, and how it comes to the cluster."""

    pairing: PairingOptions = field(default_factory=PairingOptions)
    pinned: LayerRange | None = None
    """The layers to run; by memory unless given."""
    memory: int | None = None
    """The most that the model may use here, in bytes; None for all that is free."""
    backend: str = "auto"
    threads: int | None = None
    """Compute threads; None for all cores."""
    exact: bool = False
    """Whether the speed is measured with float32 arithmetic; the coordinator decides how stages compute."""
    listen: Address = field(default_factory=lambda: Address("*", 0))
    """Where the stage listens."""


class MemberService:
    """A member of a cluster, while it runs. Close it."""

    def __init__(
        self,
        options: MemberOptions,
        on_event: OnEvent,
        _on_progress: Progress | None = None,
        given_up: threading.Event | None = None,
    ) -> None:
        """Pair if need be, measure this machine once, and let the coordinator be looked for.

        Waits end early when ``given_up`` is set.

        Raises:
            UsageError: this machine's node runs already.
            PairingError: this machine is in no cluster, or was not let in.
            EdgeppError: what else keeps this machine from being a node; nothing is left behind.
        """
        self._owned = ExitStack()
        self._on_event = on_event
        self._assignment: AssignmentChanged | None = None
        self._known: Address | None = None
        try:
            self._owned.enter_context(hold_node_lock("edgepp join"))
            self._begin(options, given_up)
        except BaseException:
            self._owned.close()
            raise

    def _begin(self, options: MemberOptions, given_up: threading.Event | None) -> None:
        self.identity: Identity = load_identity()
        peers = options.pairing.peers
        browser = Browser() if may_move(peers) else None
        if browser is not None:
            self._owned.callback(browser.close)
        self.cluster: Cluster = paired(options.pairing, self.identity, browser, given_up)
        resources = measure(
            options.backend,
            ComputePolicy.node(options.threads).threads,
            options.exact,
            lambda: self._on_event(Measuring()),
            given_up,
        )
        offer = Offer(
            resources=resources,
            memory=usable_memory(options.memory),
            backend=options.backend,
            pinned=options.pinned,
            listen=options.listen,
        )

        def where() -> list[Address]:
            try:
                known = load_cluster() or self.cluster
            except EdgeppError:  # what it was when it could be read still serves
                known = self.cluster
            return coordinator_addresses(known, peers, browser.records() if browser else ())

        moved = browser.refresh if browser else _stay
        self._agent = NodeAgent(self.identity, self.cluster, offer, where, self._on_event, moved, self._heard)
        self._agent.start()
        self._owned.callback(self._agent.close)

    @property
    def address(self) -> Address | None:
        """Where the coordinator was reached; None until then."""
        return self._agent.address

    def check(self) -> bool:
        """Whether the node goes on; False once this machine has left its cluster.

        Raises:
            EdgeppError: the node was refused or expelled, or ended by itself.
        """
        if has_left():
            self._on_event(ClusterLeft(self.cluster.coordinator.name))
            return False
        if self._agent.ended.is_set():
            raise self._agent.error or EdgeppError("this machine's node ended by itself", "run `edgepp join` again")
        address = self._agent.address
        if address is not None and address != self._known:
            self._known = address
            remember_address(self.cluster.id, address)
        return True

    def close(self) -> None:
        """Stop taking part, and end the stage processes; the machine stays a member."""
        self._owned.close()

    def _heard(self, view: Mapping[str, Any]) -> None:
        save_view({**view, "heard": time.strftime("%Y-%m-%d %H:%M:%S")})  # for `edgepp status` without coordinator
        assignment = read_assignment(view, self.identity.node)
        if assignment is not None and assignment != self._assignment:
            self._assignment = assignment
            self._on_event(assignment)


def _stay() -> None:
    """Do nothing: no coordinator is looked for on the network."""


@dataclass(frozen=True)
class LoneStageOptions:
    """One stage outside of any cluster, for `edgepp chat --peer`."""

    model: str
    layers: LayerRange
    listen: Address = field(default_factory=lambda: Address("127.0.0.1", 0))
    backend: str = "auto"
    threads: int | None = None
    """Compute threads; None for all cores."""
    exact: bool = False
    kv_bits: int | None = None
    insecure: bool = False
    """Whether the stage may listen where others reach it: nothing is encrypted."""

    def __post_init__(self) -> None:
        check_listen(self.listen, insecure=self.insecure)


class LoneStageService:
    """One stage outside of any cluster, while it runs. Close it."""

    def __init__(
        self,
        options: LoneStageOptions,
        _on_event: OnEvent,
        on_progress: Progress | None = None,
        given_up: threading.Event | None = None,
    ) -> None:
        """Fetch and load the layers. Loading ends early when ``on_progress`` raises or ``given_up`` is set.

        Raises:
            EdgeppError: the stage cannot be loaded, its address is taken, or it died; nothing is left behind.
        """

        def tell(done: int, total: int, what: str) -> None:
            if given_up is not None and given_up.is_set():
                raise EdgeppError("the stage was given up while it loaded")
            if on_progress is not None:
                on_progress(done, total, what)

        self.options = options
        path = fetch(options.model, ModelParts(layers=options.layers), tell)
        settings = StageSettings(ComputePolicy.node(options.threads), options.backend, options.listen)
        config = settings.config(path, options.model, options.layers, exact=options.exact, kv_bits=options.kv_bits)
        self._child = StageProcess(config)
        try:
            self.ready: Ready = self._child.wait_ready(
                lambda done, total: tell(done, total, f"layers {options.layers}")
            )
        except BaseException:
            self._child.stop()
            raise

    @property
    def address(self) -> Address:
        """Where the stage listens."""
        return self.ready.address

    @property
    def node(self) -> str:
        """The name of this machine."""
        return self._child.config.node

    @property
    def pid(self) -> int:
        """The stage process's id."""
        return self._child.pid

    def check(self) -> bool:
        """Whether the stage goes on.

        Raises:
            EdgeppError: the stage process died by itself.
        """
        if (status := self._child.wait(0)) is None:
            return True
        raise EdgeppError(
            f"the stage process ended by itself (exit status {status})", "its own message stands above; join again"
        )

    def close(self) -> None:
        """End the stage process."""
        self._child.stop()
