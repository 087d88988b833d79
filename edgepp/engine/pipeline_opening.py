"""Opening of a pipeline's parts: stage processes, the ring over them or over peers, the model's ends, and a draft."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from edgepp import backend
from edgepp.backend.base import EmbeddingAndHead
from edgepp.engine.coordinator_cores import is_here, seconds_of_head, spare_step_pays
from edgepp.engine.draft_client import Vocabulary
from edgepp.engine.drafts import Drafts
from edgepp.engine.engine_thread import EngineParts
from edgepp.engine.frontend import ModelFrontend, OnProgress
from edgepp.engine.local_ring import LocalRing
from edgepp.engine.network_ring import NetworkRing
from edgepp.engine.pipeline_options import PipelineOptions
from edgepp.engine.plan_check import Expectation
from edgepp.engine.ring import Ring, StageInfo
from edgepp.engine.same_weights import PipelineWeights
from edgepp.engine.stage_handshake import Endpoint, RingIdentity
from edgepp.engine.step_times import StepTimes
from edgepp.errors import EdgeppError, PeerLost
from edgepp.layer_range import LayerRange, split_evenly
from edgepp.model.fetch import fetch
from edgepp.model.shape import shape_from_config
from edgepp.model.tensor_shares import share_out
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.node.stage_handle import StageProcess
from edgepp.node.stage_ranks import StageChild, StageRanks, start_stage
from edgepp.stage_process.compute_policy import ComputePolicy
from edgepp.stage_process.config import RankConfig, StageConfig, StageSettings
from edgepp.stage_process.speed_probe import measure_speed

log = logging.getLogger("edgepp.engine")

_HEAD_SHARE = 0.5
"""Part of the output head's layers that the last stage has fewer: a prompt needs one row of the head, a decode step
all, and the first stage idles while the coordinator draws a token (bench/LOG.md)."""


class PipelineOpening:
    """Opens the parts of one pipeline, and further rings for it."""

    def __init__(
        self, options: PipelineOptions, frontend: ModelFrontend, owned: ExitStack, on_progress: OnProgress | None
    ) -> None:
        """``owned`` stops the processes that are started."""
        self._options = options
        self._frontend, self._checkpoint = frontend, frontend.checkpoint
        self._owned = owned
        self._on_progress = on_progress
        self._step_times = StepTimes()
        self._weights: PipelineWeights | None = None

    def open_parts(self, endpoints: tuple[Endpoint, ...], drafts: Drafts | None) -> EngineParts:
        """Ring over ``endpoints``, or in this process alone, with the model's ends and the ``drafts`` of requests.

        Called on the engine thread, which uses the parts.

        Raises:
            EdgeppError: the stages cannot be joined, or weights cannot be loaded; nothing is left open.
        """
        ring, ends, beside = self._open_network(endpoints) if endpoints else (*self._open_alone(), False)
        try:
            spare = beside and spare_step_pays(ring.stages, self._seconds_of_head(ring, ends))
            return EngineParts(
                ring,
                ends,
                drafts.begin if drafts is not None else None,
                drafts.ready if drafts is not None else None,
                together=self._options.speculate_together,
                spare_steps=int(spare),
                draws_beside=beside,
            )
        except EdgeppError:
            ring.close()
            raise

    def _open_network(self, endpoints: tuple[Endpoint, ...]) -> tuple[Ring, EmbeddingAndHead, bool]:
        """The ring over ``endpoints``, the model's ends, and whether tokens are drawn beside the engine thread."""
        ring = self.join(endpoints)
        try:
            own = self._own_policy(ring)
            ends = self._load_ends(own or self._options.policy, head_later=ring.stages[-1].has_head)
            return ring, ends, own is not None and ends.any_thread
        except EdgeppError:
            ring.close()
            raise

    def _own_policy(self, ring: Ring) -> ComputePolicy | None:
        """Compute policy of the model ends on the cores that local stages leave free; None where no core is free."""
        options = self._options
        if options.local_processes:
            return ComputePolicy.coordinator(options.policy.threads, options.local_processes)
        here = sum(is_here(stage) for stage in ring.stages)
        return ComputePolicy.coordinator(ComputePolicy.node(options.threads, here or 1).threads, here)

    def join(
        self,
        endpoints: tuple[Endpoint, ...],
        former: RingIdentity | None = None,
        given_up: Callable[[], bool] = lambda: False,
    ) -> NetworkRing:
        """Join the stages at ``endpoints``, in place of a ``former`` ring, unless ``given_up()`` before they answer.

        Raises:
            EdgeppError: the stages cannot be joined, or do not make up the model.
        """
        if self._weights is None:
            self._weights = PipelineWeights.of(self._checkpoint)
        expected = Expectation(
            self._options.model,
            self._checkpoint.fingerprint,
            self._checkpoint.num_layers,
            self._checkpoint.hidden_size,
            self._options.exact,
            self._checkpoint.commit,
            self._checkpoint.vocab_size,
            self._checkpoint.context,
            self._weights,
        )
        ring = NetworkRing(
            endpoints,
            expected,
            platform.node(),
            self._options.codecs,
            self._options.keys,
            former,
            keep_copies=self._options.keep_copies,
            given_up=given_up,
            step_times=self._step_times,
        )
        own = self._own_policy(ring)
        ring.is_awake = own is not None and own.awake
        return ring

    def start_stages(self) -> tuple[Endpoint, ...]:
        """Start the stage processes that the options ask for; empty for a pipeline without.

        Raises:
            EdgeppError: a stage cannot load its layers, or its ranks cannot share them.
        """
        options = self._options
        if options.stages is None and not options.local_processes:
            return ()
        if len(options.tensor) > 1:
            share_out(self._checkpoint.settings, options.tensor)  # refuses before a process is started
        children = [self._start_stage(layers) for layers in self._ranges()]
        for child in children:
            if isinstance(child, StageRanks):
                child.meet()  # so that all stages load at the same time
        readies = [child.wait_ready(self._progress(f"layers {child.config.layers}")) for child in children]
        return tuple(Endpoint((ready.address,)) for ready in readies)

    def _ranges(self) -> tuple[LayerRange, ...]:
        """Layers of each local stage; where the last one has the output head too, it has fewer layers."""
        settings = self._checkpoint.settings
        head = 0.0
        if self._options.stage_has_head and settings.heads and settings.ffn:  # else the layers' size is not known
            weights = settings.vocab_size * settings.hidden_size
            head = _HEAD_SHARE * weights / shape_from_config(settings).layer_weights()
        return split_evenly(settings.num_layers, self._options.local_stages, head)

    def _start_stage(self, layers: LayerRange) -> StageChild:
        options = self._options
        settings = StageSettings(options.policy, options.backend)
        head = options.stage_has_head and layers.stop == self._checkpoint.num_layers

        def configure(rank: RankConfig | None) -> StageConfig:
            path, exact, kv_bits = self._frontend.path, options.exact, options.kv_bits
            return settings.config(path, options.model, layers, exact=exact, kv_bits=kv_bits, rank=rank, head=head)

        child = start_stage(options.tensor, configure)
        self._owned.callback(child.stop)
        return child

    def _open_alone(self) -> tuple[Ring, EmbeddingAndHead]:
        checkpoint = self._checkpoint
        chosen = backend.choose(self._options.backend, checkpoint)
        layers = LayerRange(0, checkpoint.num_layers)
        model, ends = chosen.load_whole(checkpoint, self._options.compute, self._progress(f"layers {layers}"))
        prefill_us, decode_us = measure_speed(model)
        info = StageInfo(
            index=0,
            layers=layers,
            node=platform.node(),
            address="",
            pid=0,
            backend=chosen.name,
            device=model.device,
            chunk=model.chunk,
            context=checkpoint.context,
            prefill_s=prefill_us / 1e6,
            decode_s=decode_us / 1e6,
            rewinds=model.rewinds,
        )
        return LocalRing([(info, model)]), ends

    def open_drafts(self) -> Drafts | None:
        """Drafts for the pipeline's requests, with a process on this machine for a small model; None without guesses.

        Raises:
            EdgeppError: the small model cannot be loaded, or has other tokens.
        """
        options, tokenizer = self._options, self._frontend.tokenizer
        if options.speculate == "off":
            return None
        vocabulary = Vocabulary(tokenizer.vocabulary_digest, self._checkpoint.vocab_size)
        drafts = Drafts(platform.node(), options.keys, vocabulary, options.model)
        self._owned.callback(drafts.close)
        if options.speculate != "lookup":
            drafts.own = self._start_drafter(options.speculate)
            try:
                drafts.use(None).result()
            except PeerLost as error:  # the machine may be busy; the process is tried again
                log.warning("%s does not guess yet: %s", options.speculate, error)
        return drafts

    def _start_drafter(self, model: str) -> Endpoint:
        """Start a process that guesses with the small ``model``, and computes only where a core would be idle."""
        path = fetch(model, on_progress=self._on_progress)
        layers = LayerRange(0, Checkpoint.open(path).num_layers)
        settings = StageSettings(ComputePolicy.shared(1), self._options.backend)
        config = settings.config(path, model, layers, exact=self._options.exact)
        child = StageProcess(replace(config, drafts=True, background=True))
        self._owned.callback(child.stop)
        return Endpoint((child.wait_ready(self._progress(model)).address,))

    def _load_ends(self, policy: ComputePolicy, *, head_later: bool) -> EmbeddingAndHead:
        options = policy.backend_options(exact=self._options.exact, kv_bits=self._options.kv_bits)
        return backend.choose(self._options.backend, self._checkpoint).load_embedding_and_head(
            self._checkpoint, options, head_later=head_later
        )

    def _seconds_of_head(self, ring: Ring, ends: EmbeddingAndHead) -> float:
        """Seconds in which the coordinator computes the output head; 0 where the last stage does."""
        return 0.0 if ring.stages[-1].has_head else seconds_of_head(ends, self._checkpoint.hidden_size)

    def _progress(self, what: str) -> Callable[[int, int], None] | None:
        """Callback for the loaded bytes and all bytes of ``what``; None where no progress is shown."""
        on_progress = self._on_progress
        return None if on_progress is None else lambda done, total: on_progress(done, total, what)
