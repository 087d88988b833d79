"""What a stage process is told at its start, built in one place for every role that starts one."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path

from edgepp.layers import LayerRange
from edgepp.stage_process.compute_policy import ComputePolicy
from edgepp.wire.security import KeyPair
from edgepp.wire.transport import Address


@dataclass(frozen=True)
class StageConfig:
    """One stage: which layers of which model, who may use it, how it computes. Made by ``StageSettings.config``."""

    path: str
    model: str
    node: str
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
    """Keys that may connect; the parent sends a new list when members come and go."""
    driver: str
    """The only key that may order the stage; empty where everyone who may connect may."""

    @property
    def layers(self) -> LayerRange:
        """The range to run."""
        return LayerRange(self.start, self.stop)

    @property
    def keys(self) -> KeyPair | None:
        """The node's key pair; None for a stage that is not encrypted."""
        return KeyPair(self.public, self.secret) if self.public else None

    def encode(self) -> bytes:
        """One line of JSON for the stage process's standard input."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def decode(cls, line: str) -> StageConfig:
        """The configuration that ``encode`` wrote."""
        told = json.loads(line)
        policy, admit = ComputePolicy(**told.pop("policy")), tuple(told.pop("admit"))
        return cls(**told, policy=policy, admit=admit)


@dataclass(frozen=True)
class StageSettings:
    """What is the same for every range of layers that a stage process of this machine may run."""

    policy: ComputePolicy
    backend: str = "auto"
    listen: Address = field(default_factory=lambda: Address("127.0.0.1", 0))
    """Control port; data goes over the next one, or over any free one for port 0."""
    node: str = field(default_factory=platform.node)
    keys: KeyPair | None = None
    """The node's own; None for a stage that is not encrypted."""
    driver: str = ""
    """See ``StageConfig``."""

    def config(
        self,
        path: Path,
        model: str,
        layers: LayerRange,
        *,
        exact: bool = False,
        kv_bits: int | None = None,
        admit: tuple[str, ...] = (),
    ) -> StageConfig:
        """The configuration of the stage that runs ``layers`` of the model in the folder ``path``."""
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
        )
