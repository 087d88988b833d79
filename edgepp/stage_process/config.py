"""Configuration of a stage process, made in one place for every role that starts one, and read by the process."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path

from edgepp.layers import LayerRange
from edgepp.stage_process.compute_policy import ComputePolicy
from edgepp.wire.address import Address
from edgepp.wire.security import KeyPair


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

    @property
    def layers(self) -> LayerRange:
        """Layer range of the stage."""
        return LayerRange(self.start, self.stop)

    @property
    def keys(self) -> KeyPair | None:
        """Key pair of the node; None for a stage without encryption."""
        return KeyPair(self.public, self.secret) if self.public else None

    def encode(self) -> bytes:
        """One line of JSON for the stage process's standard input."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def decode(cls, line: str) -> StageConfig:
        """Configuration that ``encode`` wrote."""
        values = json.loads(line)
        policy, admit = ComputePolicy(**values.pop("policy")), tuple(values.pop("admit"))
        speed_us = tuple(speed) if (speed := values.pop("speed_us")) else None
        return cls(**values, policy=policy, admit=admit, speed_us=speed_us)


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
        """Configuration of a stage process that runs ``layers`` of the checkpoint in the folder ``path``."""
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
