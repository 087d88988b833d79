"""Composition root of a node: a member of a cluster, or one stage outside of any cluster.

`edgepp join` and ``edgepp.join`` both run one of these two services.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from edgepp.cluster.discovery.announcement import Announcement
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
from edgepp.cluster.pairing.join import PairingOptions, pair_with_cluster
from edgepp.errors import EdgeppError, UsageError
from edgepp.events import AssignmentChanged, ClusterLeft, Measuring, OnEvent
from edgepp.host_system.sleep_inhibitor import SleepInhibitor
from edgepp.layer_range import LayerRange
from edgepp.model.cache import Progress
from edgepp.model.catalogue.source import name_anywhere
from edgepp.model.fetch import fetch
from edgepp.model.tensor_shares import MAX_RANKS
from edgepp.model.weights.model_parts import ModelParts
from edgepp.node.agent import NodeAgent
from edgepp.node.assignment import read_assignment
from edgepp.node.memory import usable_memory
from edgepp.node.offer import Offer
from edgepp.node.resources import measure
from edgepp.node.stage_handle import Ready, StageProcess, check_listen
from edgepp.stage_process.compute_policy import ComputePolicy
from edgepp.stage_process.config import StageSettings
from edgepp.wire.address import Address


@dataclass(frozen=True)
class MemberOptions:
    """This machine's offer to a cluster, and the way in which the machine is paired with the cluster."""

    pairing: PairingOptions = field(default_factory=PairingOptions)
    pinned: LayerRange | None = None
    """Layers to run; None lets the coordinator decide."""
    memory_bytes: int | None = None
    """Upper limit of the memory for the model; None for all free memory."""
    backend: str = "auto"
    threads: int | None = None
    """Compute threads; None for all cores."""
    exact: bool = False
    """Whether the speed probe computes in float32; how stages compute is the coordinator's decision."""
    listen: Address = field(default_factory=lambda: Address("*", 0))
    """Address of the stage's control socket."""
    draft: str = ""
    """Small model to guess tokens with, in place of running layers; empty for none."""
    tensor: int = 1
    """Machines, this one included, that are to share each layer of one stage; 1 for none."""
    allow_sleep: bool = False
    """Whether this machine may sleep while it computes answers."""

    def __post_init__(self) -> None:
        if not 1 <= self.tensor <= MAX_RANKS:
            raise UsageError(
                f"{self.tensor} machines cannot share a layer", f"--tensor takes 2 to {MAX_RANKS} machines"
            )
        if self.draft and self.tensor > 1:
            raise UsageError("--draft and --tensor exclude each other", "a machine that guesses runs no layers")
        if self.draft and self.pinned is not None:
            raise UsageError("--draft and --layers exclude each other", "a machine that guesses runs no layers")


class MemberService:
    """This machine as a running member of a cluster. Must be closed."""

    def __init__(
        self,
        options: MemberOptions,
        on_event: OnEvent,
        _on_progress: Progress | None = None,
        given_up: threading.Event | None = None,
    ) -> None:
        """Pair with the cluster if necessary, measure this machine if necessary, and start the node.

        Waits end early, with an error, when ``given_up`` is set.

        Raises:
            UsageError: A node runs on this machine already.
            PairingError: This machine is in no cluster, or was refused.
            EdgeppError: Any other reason. On every error, all resources are released.
        """
        self._owned = ExitStack()
        self._on_event = on_event
        self._drafts = bool(options.draft)
        self._assignment: AssignmentChanged | None = None
        self._known_address: Address | None = None
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
        self.cluster: Cluster = pair_with_cluster(options.pairing, self.identity, browser, given_up)
        resources = measure(
            options.backend,
            ComputePolicy.node(options.threads).threads,
            options.exact,
            lambda: self._on_event(Measuring()),
            given_up,
        )
        offer = Offer(
            resources=resources,
            memory_bytes=usable_memory(options.memory_bytes),
            backend=options.backend,
            pinned=options.pinned,
            listen=options.listen,
            draft=name_anywhere(options.draft) if options.draft else "",
            tensor=options.tensor,
        )

        def addresses(announcements: Sequence[Announcement] = ()) -> list[Address]:
            try:
                known = load_cluster() or self.cluster
            except EdgeppError:  # the file cannot be read now
                known = self.cluster
            return coordinator_addresses(known, peers, announcements)

        on_address_change = browser.refresh if browser else _do_nothing
        self._agent = NodeAgent(
            self.identity,
            self.cluster,
            offer,
            lambda: addresses(browser.announcements() if browser else ()),
            self._on_event,
            on_address_change,
            self._on_view,
            SleepInhibitor(allow_sleep=options.allow_sleep),
            addresses,
        )
        self._agent.start()
        self._owned.callback(self._agent.close)

    @property
    def address(self) -> Address | None:
        """Address at which the coordinator answered last; None before."""
        return self._agent.address

    def check(self) -> bool:
        """Whether the node is still a member; False once this machine has left its cluster. Call it regularly.

        Raises:
            EdgeppError: The node was refused or expelled, or ended by itself.
        """
        if has_left():
            self._on_event(ClusterLeft(self.cluster.coordinator.name))
            return False
        if self._agent.ended.is_set():
            raise self._agent.error or EdgeppError("this machine's node ended by itself", "run `edgepp join` again")
        address = self._agent.address
        if address is not None and address != self._known_address:
            self._known_address = address
            remember_address(self.cluster.id, address)
        return True

    @property
    def has_layers(self) -> bool:
        """Whether the node has a stage process, or starts one."""
        return self._agent.has_layers and not self._drafts

    def drain(self, given_up: threading.Event) -> None:
        """Wait until the coordinator has moved this node's layers to the others, if it can; see ``NodeAgent.drain``."""
        self._agent.drain(given_up)

    def close(self) -> None:
        """End the node and its stage processes; the machine stays paired."""
        self._owned.close()

    def _on_view(self, view: Mapping[str, Any]) -> None:
        save_view(
            {**view, "heard": time.strftime("%Y-%m-%d %H:%M:%S")}
        )  # for `edgepp status` while the coordinator does not answer
        assignment = read_assignment(view, self.identity.node)
        if assignment is not None and assignment != self._assignment:
            self._assignment = assignment
            self._on_event(assignment)


def _do_nothing() -> None:
    """Stand in for ``Browser.refresh`` where no browser is used."""


@dataclass(frozen=True)
class LoneStageOptions:
    """Options of one stage outside of any cluster, for `edgepp chat --peer`."""

    model: str
    layers: LayerRange
    listen: Address = field(default_factory=lambda: Address("127.0.0.1", 0))
    backend: str = "auto"
    threads: int | None = None
    """Compute threads; None for all cores."""
    exact: bool = False
    kv_bits: int | None = None
    insecure: bool = False
    """Whether the stage may listen on other addresses than loopback, without encryption."""

    def __post_init__(self) -> None:
        check_listen(self.listen, insecure=self.insecure)


class LoneStageService:
    """One running stage outside of any cluster. Must be closed."""

    def __init__(
        self,
        options: LoneStageOptions,
        _on_event: OnEvent,
        on_progress: Progress | None = None,
        given_up: threading.Event | None = None,
    ) -> None:
        """Fetch and load the layers. Loading ends early when ``on_progress`` raises or ``given_up`` is set.

        Raises:
            EdgeppError: The layers cannot be loaded, or the address is taken. On every error, all resources are
                released.
        """

        def report(done_bytes: int, total_bytes: int, activity: str) -> None:
            if given_up is not None and given_up.is_set():
                raise EdgeppError("loading the stage was cancelled")
            if on_progress is not None:
                on_progress(done_bytes, total_bytes, activity)

        self.options = options
        path = fetch(options.model, ModelParts(layers=options.layers), report)
        settings = StageSettings(ComputePolicy.node(options.threads), options.backend, options.listen)
        config = settings.config(path, options.model, options.layers, exact=options.exact, kv_bits=options.kv_bits)
        self._child = StageProcess(config)
        try:
            self.ready: Ready = self._child.wait_ready(
                lambda done, total: report(done, total, f"layers {options.layers}")
            )
        except BaseException:
            self._child.stop()
            raise

    @property
    def address(self) -> Address:
        """Address of the stage's control socket."""
        return self.ready.address

    @property
    def node(self) -> str:
        """Name of this machine."""
        return self._child.config.node

    @property
    def pid(self) -> int:
        """Process id of the stage process."""
        return self._child.pid

    def check(self) -> bool:
        """True while the stage process runs. Call it regularly.

        Raises:
            EdgeppError: The stage process ended by itself.
        """
        if (status := self._child.wait(0)) is None:
            return True
        raise EdgeppError(
            f"the stage process ended by itself (exit status {status})",
            "read the message that it printed above, then join again",
        )

    def close(self) -> None:
        """End the stage process."""
        self._child.stop()
