"""The composition root of a coordinator: its parts, and this machine's own node.

`edgepp serve` and ``edgepp.serve`` both run a ``CoordinatorService``.
"""

from __future__ import annotations

import secrets
import threading
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, get_args

from edgepp.backend import NAMES as BACKENDS
from edgepp.backend.base import KV_BITS
from edgepp.cluster.identity import (
    Cluster,
    Identity,
    has_left,
    load_cluster,
    load_identity,
    new_cluster,
    save_cluster,
)
from edgepp.cluster.node_lock import hold_node_lock
from edgepp.coordinator.client import CoordinatorClient
from edgepp.coordinator.coordinator import Coordinator
from edgepp.coordinator.duplicate_coordinator import DuplicateSearch
from edgepp.coordinator.model_change import CoordinatorModel
from edgepp.coordinator.pipeline_manager import PipelineManager
from edgepp.coordinator.planner import Planner
from edgepp.coordinator.recent_events import RecentEvents
from edgepp.engine.frontend import ModelFrontend, OnProgress
from edgepp.engine.pipeline_options import PipelineOptions
from edgepp.error_boundary import explained
from edgepp.errors import EdgeppError, UsageError, check_choice, check_whole
from edgepp.events import ClusterLeft, Measuring, OnEvent
from edgepp.host_system.sleep_inhibitor import SleepInhibitor
from edgepp.layer_range import LayerRange
from edgepp.model.catalogue.source import HubRepository, name_anywhere, resolve
from edgepp.model.shape import shape_of
from edgepp.model.tensor_shares import check_weights, share_out
from edgepp.node.agent import NodeAgent
from edgepp.node.memory import usable_memory
from edgepp.node.offer import Offer
from edgepp.node.resources import measure
from edgepp.placement.values import ModelSize, PlacementRequest, Policy
from edgepp.stage_process.compute_policy import ComputePolicy
from edgepp.structured_log import name_process
from edgepp.tracing.request_trace import DEFAULT_KEPT
from edgepp.wire.address import Address

PORT = 5700
"""The default cluster port; the pairing server listens on the next port."""


@dataclass(frozen=True)
class ServeOptions:
    """What a cluster runs, and what this machine offers to it."""

    model: str = "smollm2-135m"
    listen: Address = field(default_factory=lambda: Address("*", PORT))
    stages: int = 1
    """Stage processes on this machine; with 0 this machine only coordinates."""
    tensor: tuple[int, ...] = (1,)
    """Weights of the processes that share each layer of a stage of this machine; one process unless there are more."""
    pinned: LayerRange | None = None
    memory: int | None = None
    """Bytes that the model may use on this machine; None for all free memory."""
    policy: Policy = "memory"
    context: int = 4096
    max_sequences: int = 2
    """Conversations at a time for which the plan reserves memory."""
    backend: str = "auto"
    threads: int | None = None
    exact: bool = False
    kv_bits: int | None = None
    speculate: str = "lookup"
    """How tokens are guessed ahead: ``lookup``, ``off``, or the name of a smaller model."""
    speculate_together: bool = False
    """Whether one step may carry several guesses, which kernels may round differently from single rows."""
    trace_requests: int = DEFAULT_KEPT
    """Requests whose traces are kept, the newest ones; 0 for none."""
    keep_copies: int = 0
    """Copies of each stage's keys and values on another stage, 0 or 1, which bring those of a lost stage back."""
    allow_sleep: bool = False
    """Whether this machine may sleep while answers are under way."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("stages", 0, 64),
            ("context", 1, 1 << 24),
            ("max_sequences", 1, 1024),
            ("keep_copies", 0, 1),
            ("trace_requests", 0, 1000),
        ):
            check_whole(name, getattr(self, name), low, high)
        if self.memory is not None:
            check_whole("memory", self.memory, 1)
        check_choice("policy", self.policy, get_args(Policy))
        check_choice("backend", self.backend, BACKENDS)
        check_choice("kv_bits", self.kv_bits, (None, *KV_BITS))
        if len(check_weights(self.tensor)) > 1 and not self.stages:
            raise UsageError("--tensor and --no-stage exclude each other", "leave one of them out")
        if self.pinned is not None and self.stages != 1:
            raise UsageError("--layers pins one stage, so it goes with neither --stages nor --no-stage")


class CoordinatorService:
    """A running coordinator with this machine's own node. Call ``close`` when done."""

    def __init__(
        self,
        options: ServeOptions,
        on_event: OnEvent,
        on_progress: OnProgress | None = None,
        given_up: threading.Event | None = None,
    ) -> None:
        """Load the coordinator's part of the model, open the cluster port, and start this machine's node.

        The measurement of this machine ends early when ``given_up`` is set, and loading when ``on_progress`` raises.

        Raises:
            UsageError: this machine's node runs already, also as a copy on another machine, or an option is out of
                bounds.
            EdgeppError: the cluster cannot run; everything that was started has been closed.
        """
        self._owned = ExitStack()
        on_event = self._on_event = RecentEvents(on_event)
        self.node: NodeAgent | None = None
        try:
            self._owned.enter_context(hold_node_lock("edgepp serve"))
            self._begin(options, on_event, on_progress, given_up)
        except BaseException:
            self._owned.close()
            raise

    def _begin(
        self,
        options: ServeOptions,
        on_event: RecentEvents,
        on_progress: OnProgress | None,
        given_up: threading.Event | None,
    ) -> None:
        identity = self._identity = load_identity()
        name_process(identity.name)
        found = load_cluster()
        cluster = _own_cluster(identity, found)
        duplicates = None if options.listen.is_loopback else DuplicateSearch(identity, cluster)
        if duplicates is not None:  # searches while the model is opened and this machine is measured
            self._owned.callback(duplicates.close)
        frontend = ModelFrontend.open(options.model, whole=False, on_progress=on_progress)
        parts = _parts(options, frontend, identity)
        offer = _offer(options, on_event, given_up)
        planner = Planner(
            request=parts.request,
            model=parts.name,
            exact=options.exact,
            kv_bits=options.kv_bits or 0,
            coordinator=identity.node,
            base_plan_id=secrets.randbits(40) << 16,  # no clock: it may have been set back since the last start
            expected_nodes=frozenset({identity.node} if offer is not None else ()),
        )
        sleep = SleepInhibitor(allow_sleep=options.allow_sleep)
        self.pipeline_manager = PipelineManager(frontend, parts.options, on_event)
        self._owned.callback(lambda: self.pipeline_manager.frontend.tokenizer.close())
        self._owned.callback(self.pipeline_manager.close)
        if duplicates is not None:
            duplicates.check()
        if found is None:  # a name that means no model, or a folder that is none, leaves no cluster behind
            save_cluster(cluster)
        self.coordinator = Coordinator(
            identity,
            cluster,
            options.listen,
            planner,
            self.pipeline_manager,
            on_event,
            lambda frontend: _parts(options, frontend, identity),
            "" if options.speculate in ("lookup", "off") else name_anywhere(options.speculate),
            options.trace_requests,
            sleep if offer is None else None,
        )
        self.coordinator.start()
        self._owned.callback(self.coordinator.close)
        if offer is not None:
            address = self.coordinator.local_address
            self.node = NodeAgent(identity, cluster, offer, lambda: [address], lambda _: None, sleep=sleep)
            self.node.start()
            self._owned.callback(self.node.close)

    def connect(self) -> CoordinatorClient:
        """Connect to the coordinator, for calls and questions."""
        cluster = self.coordinator.trust_store.cluster
        return CoordinatorClient(self._identity, cluster, [self.coordinator.local_address])

    def report(self) -> dict[str, Any]:
        """The cluster's state: what `edgepp status --json` prints."""
        return self.coordinator.status()

    def check(self) -> bool:
        """Whether the cluster continues; False once this machine has left it: the members are told that it has ended.

        Raises:
            EdgeppError: the coordinator or this machine's node ended unexpectedly.
        """
        if not self.coordinator.is_alive():
            found = explained(self.coordinator.error or RuntimeError("its thread ended"))
            raise EdgeppError(f"the coordinator ended by itself: {found}", f"start it again; {found.hint}")
        if not self.pipeline_manager.alive:
            raise RuntimeError("the pipeline manager ended by itself")
        if self.node is not None and self.node.ended.is_set():
            raise self.node.error or EdgeppError("this machine's own node ended by itself", "start it again")
        if has_left():
            self._on_event(ClusterLeft(self._identity.name, ended=True))
            self.coordinator.dissolve()
            return False
        return True

    def close(self) -> None:
        """End answers, stages and threads."""
        self._owned.close()


def _parts(options: ServeOptions, frontend: ModelFrontend, identity: Identity) -> CoordinatorModel:
    """What the coordinator needs of the model of ``frontend``.

    Raises:
        UsageError: the processes of this machine's stages cannot share the layers.
    """
    if len(options.tensor) > 1:
        share_out(frontend.checkpoint.settings, options.tensor)
    size = ModelSize.of(shape_of(frontend.model, frontend.checkpoint), options.kv_bits).with_copies(options.keep_copies)
    context = min(options.context, frontend.checkpoint.context)
    pipeline = PipelineOptions(
        frontend.model,
        backend=options.backend,
        threads=options.threads,
        exact=options.exact,
        keys=identity.keys,
        context=context,
        budget=context * options.max_sequences,
        speculate=options.speculate,
        speculate_together=options.speculate_together,
        keep_copies=bool(options.keep_copies),
    )
    request = PlacementRequest(size, context, options.max_sequences, options.policy)
    return CoordinatorModel(frontend, _pinned_name(frontend), request, pipeline)


def _offer(options: ServeOptions, on_event: OnEvent, given_up: threading.Event | None) -> Offer | None:
    """What this machine offers to the cluster; None where it only coordinates."""
    if not options.stages:
        return None
    resources = measure(
        options.backend,
        ComputePolicy.node(options.threads).threads,
        options.exact,
        lambda: on_event(Measuring()),
        given_up,
    )
    memory = usable_memory(options.memory)
    return Offer(resources, memory, options.backend, options.stages, options.pinned, ranks=options.tensor)


def _own_cluster(identity: Identity, found: Cluster | None) -> Cluster:
    """The cluster that this machine coordinates: the one ``found`` on its disk, or a new one, which is not saved.

    Raises:
        UsageError: another machine coordinates the cluster of this one.
    """
    cluster = found if found is not None else new_cluster(identity)
    if cluster.coordinator.node != identity.node:
        raise UsageError(
            f"this machine belongs to the cluster of {cluster.coordinator.name}",
            "run `edgepp join` on this machine, or `edgepp leave` first",
        )
    return cluster


def _pinned_name(frontend: ModelFrontend) -> str:
    """The model's name for all nodes: with this machine's commit for a hub model, as an absolute path for a folder."""
    source = resolve(frontend.model)
    if isinstance(source, HubRepository) and frontend.checkpoint.commit:
        return f"{source.name}@{frontend.checkpoint.commit}"
    return name_anywhere(frontend.model)
