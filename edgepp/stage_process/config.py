"""Configuration of a stage process, made in one place for every role that starts one, and read by the process."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from edgepp.layer_range import LayerRange
from edgepp.stage_process.compute_policy import ComputePolicy
from edgepp.structured_log import LogOptions, current
from edgepp.wire.address import Address
from edgepp.wire.security import KeyPair

RANK_LOST_STATUS = 64
"""Exit status of a rank's process that ended since rank 0 of its stage is gone; one more for each next rank."""


def lost_rank(status: int, ranks: int) -> int | None:
    """The lost rank, one of ``ranks``, that made a rank's process end with ``status``; None for another cause."""
    rank = status - RANK_LOST_STATUS
    return rank if 0 <= rank < ranks else None


@dataclass(frozen=True)
class RankConfig:
    """The rank of a process in a tensor-parallel stage."""

    group: int
    """Random id of the stage's processes."""
    rank: int
    weights: tuple[int, ...]
    """How the ranks share each layer: see ``tensor_shares``."""
    descriptors: tuple[int, ...] = ()
    """Inherited descriptor of a socket to each rank, -1 for the rank itself; empty where ranks are on several
    machines."""
    host: str = ""
    """Address on which the rank listens for the others; empty for that of the stage."""


@dataclass(frozen=True)
class StageConfig:
    """Configuration of one stage process: its layers, how they are computed, and which keys are admitted.

    Made by ``StageSettings.config``.
    """

    path: str
    """Folder of the checkpoint."""
    model: str
    """Name of the model."""
    node: str
    """Name of the node."""
    start: int
    stop: int
    listen: str
    backend: str
    policy: ComputePolicy
    exact: bool
    kv_bits: int | None
    public: str
    secret: str = field(repr=False)
    admit: tuple[str, ...]
    """Keys that may connect; the node sends a new list to the process when the members change."""
    driver: str
    """The only key that may give orders to the stage; empty where every admitted key may."""
    speed_us: tuple[int, int] | None = None
    """Microseconds (per token of a prefill chunk, per decode step), where they are known; else the process measures."""
    rank: RankConfig | None = None
    """None for a stage of one process."""
    head: bool = False
    """Whether the process, which has the last layers, has the output head too: as a rank its part, and so have all."""
    drafts: bool = False
    """Whether the process has the whole model and guesses tokens, in place of a stage."""
    background: bool = False
    """Whether it computes only while a core would be idle."""
    log: LogOptions = field(default_factory=current)
    """How it logs: as the process that starts it."""

    @property
    def task(self) -> str:
        """Name of the process for users, by its task."""
        return "the drafting process" if self.drafts else f"the stage process for layers {self.layers}"

    @property
    def layers(self) -> LayerRange:
        """Layer range of the stage."""
        return LayerRange(self.start, self.stop)

    @property
    def keys(self) -> KeyPair | None:
        """Key pair of the node; None for a stage without encryption."""
        return KeyPair(self.public, self.secret) if self.public else None

    def admitted(self, keys: Iterable[str]) -> tuple[str, ...]:
        """Keys that may connect: ``keys``, and for a rank the key of its node, which the other ranks have."""
        return (*keys, self.public) if self.rank is not None else tuple(keys)

    def encode(self) -> bytes:
        """One line of JSON for the stage process's standard input."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def decode(cls, line: str) -> StageConfig:
        """Configuration that ``encode`` wrote."""
        values = json.loads(line)
        policy, admit = ComputePolicy(**values.pop("policy")), tuple(values.pop("admit"))
        speed_us = tuple(speed) if (speed := values.pop("speed_us")) else None
        rank, log = values.pop("rank"), LogOptions(**values.pop("log"))
        if rank is not None:
            rank = RankConfig(**rank | {name: tuple(rank[name]) for name in ("weights", "descriptors")})
        return cls(**values, policy=policy, admit=admit, speed_us=speed_us, rank=rank, log=log)


@dataclass(frozen=True)
class StageSettings:
    """Settings of a stage process of this machine that do not depend on model and layers."""

    policy: ComputePolicy
    backend: str = "auto"
    listen: Address = field(default_factory=lambda: Address("127.0.0.1", 0))
    """Address of the control socket; the data socket has the next port, or for port 0 any free one."""
    node: str = field(default_factory=platform.node)
    keys: KeyPair | None = None
    """Key pair of the node; None for a stage without encryption."""
    driver: str = ""
    """The only key that may give orders to the stage; empty where every admitted key may."""
    ranks: tuple[int, ...] = (1,)
    """Weights of the processes of this machine that share each layer of a stage; one process unless there are more."""

    def config(
        self,
        path: Path,
        model: str,
        layers: LayerRange,
        *,
        exact: bool = False,
        kv_bits: int | None = None,
        admit: tuple[str, ...] = (),
        rank: RankConfig | None = None,
        head: bool = False,
    ) -> StageConfig:
        """Configuration of a stage process that runs ``layers`` of the checkpoint in the folder ``path``.

        With a ``rank``, the process is one of several that run the layers together. With the ``head``, it computes the
        output head behind the last layer too.
        """
        return StageConfig(
            path=str(path),
            model=model,
            node=self.node,
            start=layers.start,
            stop=layers.stop,
            listen=str(self.listen),
            backend=self.backend,
            policy=self.policy,
            exact=exact,
            kv_bits=kv_bits,
            public=self.keys.public if self.keys else "",
            secret=self.keys.secret if self.keys else "",
            admit=admit,
            driver=self.driver,
            rank=rank,
            head=head,
        )
