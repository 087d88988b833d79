"""Options of a pipeline: which model runs, over which stages, and how it computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from edgepp.backend.base import BackendOptions
from edgepp.engine.stage_handshake import Endpoint
from edgepp.errors import UsageError, check_choice, check_whole
from edgepp.model.tensor_shares import check_weights
from edgepp.stage_process.compute_policy import ComputePolicy
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
    tensor: tuple[int, ...] = (1,)
    """Weights of the processes that share each layer of a local stage; one process unless there are several."""
    backend: str = "auto"
    threads: int | None = None
    """Compute threads per process of a stage; None divides the cores between the processes."""
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
    """The source of guesses: ``lookup`` for prompt lookup, ``off``, or the name of a small model that guesses too."""
    speculate_together: bool = False
    """Whether one step may carry several guesses, which kernels may round differently from single rows."""
    kv_bits: int | None = None
    """Bits per number in the KV caches on this machine, 8 or 4; None for the backend's own float type."""
    keep_copies: bool = False
    """Whether each stage keeps copies of another one's keys and values, which bring a lost stage's back bit for bit."""

    def __post_init__(self) -> None:
        if self.endpoints and self.stages is not None:
            raise UsageError("--peer and --stages exclude each other", "peers bring their own stages")
        if self.endpoints and len(check_weights(self.tensor)) > 1:
            raise UsageError("--peer and --tensor exclude each other", "peers bring their own stages")
        for name in ("stages", "threads", "context", "budget"):
            if (value := getattr(self, name)) is not None:
                check_whole(name, value, 1)
        for codec in self.codecs:
            check_choice("codecs", codec, get_args(LinkCodec))
        _ = self.policy  # checks the number of threads

    @property
    def local_stages(self) -> int:
        """Number of stages in processes of this machine: 0 for none; several ranks are at least one stage."""
        return self.stages if self.stages is not None else int(len(self.tensor) > 1)

    @property
    def local_processes(self) -> int:
        """Number of stage processes of this machine: all ranks of all local stages."""
        return self.local_stages * len(self.tensor)

    @property
    def stage_has_head(self) -> bool:
        """Whether the last of the local stages of one process each computes the output head.

        It does where stages take all cores: the coordinator would take one from a stage that computes a guess. Several
        ranks of a stage always share the head.
        """
        processes = self.local_processes
        return len(self.tensor) == 1 and ComputePolicy.coordinator(self.policy.threads, processes) is None

    @property
    def policy(self) -> ComputePolicy:
        """Threads and sleeping of this machine's processes: this process alone, or stages and model ends."""
        if not self.endpoints and not self.local_processes:
            return ComputePolicy.alone(self.threads)
        return ComputePolicy.shared(self.threads, self.local_processes or 1)

    @property
    def compute(self) -> BackendOptions:
        """Options of the backend in this process."""
        return self.policy.backend_options(exact=self.exact, kv_bits=self.kv_bits)
