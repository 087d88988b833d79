"""Opening of a pipeline's parts: stage processes, the ring over them or over peers, the model's ends, and a draft."""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import ExitStack

from edgepp import backend
from edgepp.backend.base import EmbeddingAndHead
from edgepp.engine.draft_model import DraftModel
from edgepp.engine.engine_thread import EngineParts
from edgepp.engine.frontend import ModelFrontend, OnProgress
from edgepp.engine.network_ring import NetworkRing
from edgepp.engine.pipeline_options import PipelineOptions
from edgepp.engine.ring import LocalRing, Ring, StageInfo
from edgepp.engine.speculation import Draft, PromptLookup
from edgepp.engine.stage_handshake import Endpoint, Expectation, RingIdentity
from edgepp.engine.step_times import StepTimes
from edgepp.errors import EdgeppError, UsageError
from edgepp.layers import LayerRange, split_evenly
from edgepp.node.stage_handle import StageProcess
from edgepp.stage_process.config import StageSettings
from edgepp.stage_process.speed_probe import measure_speed


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

    def open_parts(self, endpoints: tuple[Endpoint, ...], draft: ModelFrontend | None) -> EngineParts:
        """Ring over ``endpoints``, or in this process alone, with the model's ends and the ``draft`` model's layers.

        Called on the engine thread, which uses the parts.

        Raises:
            EdgeppError: the stages cannot be joined, or weights cannot be loaded; nothing is left open.
        """
        ring, ends = self._open_network(endpoints) if endpoints else self._open_alone()
        try:
            return EngineParts(ring, ends, self._draft_factory(draft))
        except EdgeppError:
            ring.close()
            raise

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
        expected = Expectation(
            self._options.model,
            self._checkpoint.fingerprint,
            self._checkpoint.num_layers,
            self._checkpoint.hidden_size,
            self._options.exact,
            self._checkpoint.commit,
        )
        return NetworkRing(
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

    def start_stages(self) -> tuple[Endpoint, ...]:
        """Start the stage processes that the options ask for; empty for a pipeline without.

        Raises:
            EdgeppError: a stage cannot load its layers.
        """
        if self._options.stages is None:
            return ()
        ranges = split_evenly(self._checkpoint.num_layers, self._options.stages)
        children = [self._start_stage(layers) for layers in ranges]
        readies = [child.wait_ready(self._progress(f"layers {child.config.layers}")) for child in children]
        return tuple(Endpoint((ready.address,)) for ready in readies)

    def _start_stage(self, layers: LayerRange) -> StageProcess:
        options = self._options
        settings = StageSettings(options.policy, options.backend)
        config = settings.config(
            self._frontend.path, options.model, layers, exact=options.exact, kv_bits=options.kv_bits
        )
        child = StageProcess(config)
        self._owned.callback(child.stop)
        return child

    def _open_network(self, endpoints: tuple[Endpoint, ...]) -> tuple[Ring, EmbeddingAndHead]:
        ring = self.join(endpoints)
        try:
            return ring, self._load_ends()
        except EdgeppError:
            ring.close()
            raise

    def _open_alone(self) -> tuple[Ring, EmbeddingAndHead]:
        checkpoint = self._checkpoint
        chosen = backend.choose(self._options.backend, checkpoint)
        layers = LayerRange(0, checkpoint.num_layers)
        model = chosen.load_stage(checkpoint, layers, self._options.compute, self._progress(f"layers {layers}"))
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
        return LocalRing([(info, model)]), self._load_ends()

    def open_draft_frontend(self) -> ModelFrontend | None:
        """Tokenizer and files of the small model that guesses; None without one."""
        if self._options.speculate in ("lookup", "off"):
            return None
        small = ModelFrontend.open(self._options.speculate, whole=True, on_progress=self._on_progress)
        if small.tokenizer.vocabulary() != self._frontend.tokenizer.vocabulary():
            raise UsageError(
                f"{self._options.speculate} cannot guess for {self._options.model}: their tokens differ",
                "name a small model of the same family, or use `lookup`",
            )
        return small

    def _draft_factory(self, small: ModelFrontend | None) -> Callable[[], Draft] | None:
        if small is None:
            return PromptLookup if self._options.speculate == "lookup" else None
        checkpoint, compute = small.checkpoint, self._options.compute
        chosen = backend.choose(self._options.backend, checkpoint)
        progress = self._progress(small.model)
        stage = chosen.load_stage(checkpoint, LayerRange(0, checkpoint.num_layers), compute, progress)
        ends = chosen.load_embedding_and_head(checkpoint, compute)
        return DraftModel(stage, ends, checkpoint.context, self._checkpoint.vocab_size).begin

    def _load_ends(self) -> EmbeddingAndHead:
        return backend.choose(self._options.backend, self._checkpoint).load_embedding_and_head(
            self._checkpoint, self._options.compute
        )

    def _progress(self, what: str) -> Callable[[int, int], None] | None:
        """Receives the bytes of ``what`` that are loaded, and all its bytes; None where nobody looks."""
        on_progress = self._on_progress
        return None if on_progress is None else lambda done, total: on_progress(done, total, what)
