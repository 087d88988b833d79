"""From a model's name to a running engine: in this process alone, over local stage processes, or over peers."""

from __future__ import annotations

import platform
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType

from edgepp import backend
from edgepp.backend.base import BackendOptions, EmbeddingAndHead
from edgepp.engine.draft_model import DraftModel
from edgepp.engine.frontend import ModelFrontend, OnProgress
from edgepp.engine.loop import EngineLoop, EngineParts
from edgepp.engine.network_ring import NetworkRing
from edgepp.engine.request import GenerateOptions, SamplingOptions
from edgepp.engine.ring import LocalRing, Ring, StageInfo
from edgepp.engine.speculation import Draft, PromptLookup
from edgepp.engine.stage_handshake import Endpoint, Expectation, RingIdentity
from edgepp.engine.step_times import StepTimes
from edgepp.engine.text_stream import TextStream
from edgepp.errors import EdgeppError, UsageError
from edgepp.layers import LayerRange, split_evenly
from edgepp.model.text.conversation import Prompt
from edgepp.node.stage_handle import StageProcess
from edgepp.stage_process.compute_policy import ComputePolicy
from edgepp.stage_process.config import StageSettings
from edgepp.stage_process.speed_probe import measure_speed
from edgepp.wire.field_types import LinkCodec
from edgepp.wire.security import KeyPair


@dataclass(frozen=True)
class PipelineOptions:
    """Which model runs, where, and how."""

    model: str
    endpoints: tuple[Endpoint, ...] = ()
    """Stages that run already, in any order."""
    stages: int | None = None
    """The number of local stage processes; None computes in this process, unless there are ``endpoints``."""
    backend: str = "auto"
    threads: int | None = None
    """Compute threads per stage; None divides the cores between the stages."""
    exact: bool = False
    codecs: tuple[LinkCodec, ...] = ("auto",)
    """One codec for all links, or one per link."""
    keys: KeyPair | None = None
    """This node's key pair, for endpoints with a key."""
    context: int | None = None
    """Positions that a conversation may take at most; None for as many as the model and the stages allow."""
    budget: int | None = None
    """Positions that all sequences together may take; further requests wait. None sets no limit but memory."""
    speculate: str = "lookup"
    """The source of guesses: ``lookup`` for prompt lookup, ``off``, or the name of a small model."""
    kv_bits: int | None = None
    """Bits per number in the KV caches on this machine, 8 or 4; None for the backend's own float type."""
    keep_copies: bool = False
    """Whether each stage keeps copies of another one's keys and values, which bring a lost stage's back bit for bit."""

    def __post_init__(self) -> None:
        if self.endpoints and self.stages is not None:
            raise UsageError("--peer and --stages exclude each other", "peers bring their own stages")
        _ = self.policy  # checks the number of threads

    @property
    def policy(self) -> ComputePolicy:
        """Threads and sleeping of this machine's processes: this process alone, or stages and model ends."""
        if not self.endpoints and self.stages is None:
            return ComputePolicy.alone(self.threads)
        return ComputePolicy.shared(self.threads, self.stages or 1)

    @property
    def compute(self) -> BackendOptions:
        """Options of the backend in this process."""
        return self.policy.backend_options(exact=self.exact, kv_bits=self.kv_bits)


class Pipeline:
    """A model that is ready to answer. Close it, or use it in a ``with`` statement: it may own processes."""

    def __init__(
        self,
        options: PipelineOptions,
        on_progress: OnProgress | None = None,
        frontend: ModelFrontend | None = None,
        *,
        recovers: bool = False,
    ) -> None:
        """Fetch the model unless ``frontend`` is given, start or join the stages, load embedding and head.

        A pipeline that ``recovers`` keeps its requests when it loses a stage, and waits for ``take_ring``.

        Raises:
            EdgeppError: the model cannot run, in one sentence; all that was started has been stopped.
        """
        self.options = options
        self._owned = ExitStack()
        self._step_times = StepTimes()
        frontend = frontend or ModelFrontend.open(options.model, whole=not options.endpoints, on_progress=on_progress)
        self._frontend, self._checkpoint, self.tokenizer = frontend, frontend.checkpoint, frontend.tokenizer
        self._owned.callback(self.tokenizer.close)
        try:
            self.tokenizer.start()
            endpoints = options.endpoints or self._start_stages(on_progress)
            draft_frontend = self._open_draft_frontend(on_progress)

            def open_parts() -> EngineParts:
                ring, ends = self._open_network(endpoints) if endpoints else self._open_alone(on_progress)
                try:
                    return EngineParts(ring, ends, self._draft_factory(draft_frontend, on_progress))
                except EdgeppError:
                    ring.close()
                    raise

            self.engine = self._owned.enter_context(
                EngineLoop(open_parts, self.tokenizer.eos_ids, options.budget, frontend.compile, recovers=recovers)
            )
        except BaseException:
            self._owned.close()
            raise

    @property
    def model(self) -> str:
        """The model's name, as given in the options."""
        return self.options.model

    @property
    def frontend(self) -> ModelFrontend:
        """The model's files and tokenizer, which outlive the pipeline."""
        return self._frontend

    @property
    def lost(self) -> EdgeppError | None:
        """The error that ended the engine; None while it runs, or waits for another ring."""
        return self.engine.lost

    @property
    def suspended(self) -> EdgeppError | None:
        """Why requests pause until the pipeline has another ring; None while they are computed."""
        return self.engine.suspended

    @property
    def context(self) -> int:
        """Positions that a conversation may take at most."""
        limits = (self.engine.context, self.options.context, self.options.budget)
        return min(limit for limit in limits if limit is not None)

    @property
    def sampling(self) -> SamplingOptions:
        """The sampling options that the model's makers recommend; an answer uses them only if its options say so."""
        return self._frontend.sampling

    @property
    def stages(self) -> tuple[StageInfo, ...]:
        """The pipeline's stages in order."""
        return self.engine.stages

    def suspend(self, reason: EdgeppError, *, lost: bool) -> Future[None]:
        """Pause all requests: at once if stages are ``lost``, else once no step is under way. Safe from any thread.

        The result is set when they pause.
        """
        return self.engine.suspend(reason, lost=lost)

    def open_ring(self, endpoints: tuple[Endpoint, ...], given_up: Callable[[], bool]) -> Ring:
        """Join the stages at ``endpoints``, for ``take_ring``, unless ``given_up()`` is true before they have answered.

        Raises:
            EdgeppError: the stages cannot be joined, or do not make up the model.
        """
        return self._join(endpoints, self.engine.ring_identity, given_up)

    def _join(
        self,
        endpoints: tuple[Endpoint, ...],
        former: RingIdentity | None = None,
        given_up: Callable[[], bool] = lambda: False,
    ) -> NetworkRing:
        checkpoint = self._checkpoint
        expected = Expectation(
            self.options.model,
            checkpoint.fingerprint,
            checkpoint.num_layers,
            checkpoint.hidden_size,
            self.options.exact,
            checkpoint.commit,
        )
        options = self.options
        return NetworkRing(
            endpoints,
            expected,
            platform.node(),
            options.codecs,
            options.keys,
            former,
            keep_copies=options.keep_copies,
            given_up=given_up,
            step_times=self._step_times,
        )

    def take_ring(self, ring: Ring) -> None:
        """Go on over ``ring``, which ``open_ring`` gave, with all requests; returns when that is so.

        Raises:
            EdgeppError: the pipeline was closed; ``ring`` is closed too.
        """
        self.engine.resume(ring).result()

    def ask(self, prompt: Prompt, options: GenerateOptions, owner: str = "") -> TextStream:
        """Answer a raw text, a conversation by the model's chat template, or token ids.

        The answer has at most as many tokens as the context has room for. Prefixes are shared between requests of one
        ``owner``. When this returns, the prompt is accepted, and ``prompt_tokens`` known.

        Raises:
            ContextExceeded: the prompt leaves no room for an answer.
            PromptRefused: the chat template does not take the conversation.
            UsageError: the prompt is empty, malformed or not Unicode text, or the constraint is invalid.
        """
        encoded = self.tokenizer.encode_prompt(prompt, self.context, owner)
        room = self.context - len(encoded.ids)
        if room < options.max_tokens:
            options = replace(options, max_tokens=room)
        request = self.engine.submit(encoded.ids, options, owner)
        return TextStream(self.engine, request, self.tokenizer.detokenizer(), self.tokenizer.bytes_of, encoded.opening)

    def close(self) -> None:
        """End all requests, leave the ring, and stop the stages that this object started."""
        self._owned.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start_stages(self, on_progress: OnProgress | None) -> tuple[Endpoint, ...]:
        if self.options.stages is None:
            return ()
        ranges = split_evenly(self._checkpoint.num_layers, self.options.stages)
        children = [self._start_stage(layers) for layers in ranges]
        readies = [child.wait_ready(_named(on_progress, f"layers {child.config.layers}")) for child in children]
        return tuple(Endpoint((ready.address,)) for ready in readies)

    def _start_stage(self, layers: LayerRange) -> StageProcess:
        options = self.options
        settings = StageSettings(options.policy, options.backend)
        config = settings.config(
            self._frontend.path, options.model, layers, exact=options.exact, kv_bits=options.kv_bits
        )
        child = StageProcess(config)
        self._owned.callback(child.stop)
        return child

    def _open_network(self, endpoints: tuple[Endpoint, ...]) -> tuple[Ring, EmbeddingAndHead]:
        ring = self._join(endpoints)
        try:
            return ring, self._load_ends()
        except EdgeppError:
            ring.close()
            raise

    def _open_alone(self, on_progress: OnProgress | None) -> tuple[Ring, EmbeddingAndHead]:
        checkpoint = self._checkpoint
        chosen = backend.choose(self.options.backend, checkpoint)
        layers = LayerRange(0, checkpoint.num_layers)
        model = chosen.load_stage(checkpoint, layers, self.options.compute, _named(on_progress, f"layers {layers}"))
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

    def _open_draft_frontend(self, on_progress: OnProgress | None) -> ModelFrontend | None:
        """Tokenizer and files of the small model that guesses; None without one."""
        if self.options.speculate in ("lookup", "off"):
            return None
        small = ModelFrontend.open(self.options.speculate, whole=True, on_progress=on_progress)
        if small.tokenizer.vocabulary() != self.tokenizer.vocabulary():
            raise UsageError(
                f"{self.options.speculate} cannot guess for {self.options.model}: their tokens differ",
                "name a small model of the same family, or use `lookup`",
            )
        return small

    def _draft_factory(self, small: ModelFrontend | None, on_progress: OnProgress | None) -> Callable[[], Draft] | None:
        if small is None:
            return PromptLookup if self.options.speculate == "lookup" else None
        checkpoint, compute = small.checkpoint, self.options.compute
        chosen = backend.choose(self.options.backend, checkpoint)
        progress = _named(on_progress, small.model)
        stage = chosen.load_stage(checkpoint, LayerRange(0, checkpoint.num_layers), compute, progress)
        ends = chosen.load_embedding_and_head(checkpoint, compute)
        return DraftModel(stage, ends, checkpoint.context, self._checkpoint.vocab_size).begin

    def _load_ends(self) -> EmbeddingAndHead:
        return backend.choose(self.options.backend, self._checkpoint).load_embedding_and_head(
            self._checkpoint, self.options.compute
        )


def _named(on_progress: OnProgress | None, what: str) -> Callable[[int, int], None] | None:
    return None if on_progress is None else lambda done, total: on_progress(done, total, what)
