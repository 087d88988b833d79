"""The node's side of a stage process: start it, follow its loading, stop it.

The child is told everything on its standard input and ends when that input ends, so nothing of a node is left running
when the node dies, however it dies.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any

from edgepp.child_process import python_command
from edgepp.errors import EdgeppError, UsageError
from edgepp.stage_process.compute_policy import stage_environment
from edgepp.stage_process.config import StageConfig
from edgepp.wire.transport import Address

STOP_S = 3.0

OnProgress = Callable[[int, int], None]
"""Called with (done, total) bytes while a stage loads."""


@dataclass(frozen=True)
class Ready:
    """What a stage process says once it serves."""

    address: Address
    backend: str
    device: str
    dtype: str
    weight_bytes: int
    resident_bytes: int
    seconds: float
    prefill_us: int
    decode_us: int


class StageProcess:
    """One child that runs one layer range."""

    def __init__(self, config: StageConfig) -> None:
        self.config = config
        self._process = subprocess.Popen(  # noqa: S603 - the command is ours
            python_command("edgepp.stage_process.main"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=stage_environment(config.policy.threads),
        )
        try:
            stdin = self._pipe(self._process.stdin)
            stdin.write(config.encode())
            stdin.flush()
        except BrokenPipeError as error:
            raise EdgeppError("the stage process died as it started", "its own message stands above") from error

    def admit(self, keys: Sequence[str]) -> None:
        """Tell the child which keys may connect from now on."""
        stdin = self._pipe(self._process.stdin)
        try:
            stdin.write(json.dumps({"admit": list(keys)}).encode() + b"\n")
            stdin.flush()
        except (BrokenPipeError, ValueError):
            return  # it is gone, which whoever waits for it will notice

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def wait_ready(self, on_progress: OnProgress | None = None) -> Ready:
        """Follow the child until it serves.

        Raises:
            EdgeppError: it reported an error or died; the child is gone then.
        """
        for line in self._pipe(self._process.stdout):
            event: dict[str, Any] = json.loads(line)
            match event["event"]:
                case "progress" if on_progress is not None:
                    on_progress(event["done"], event["total"])
                case "ready":
                    wanted = {name: event[name] for name in Ready.__annotations__ if name != "address"}
                    return Ready(address=Address.parse(event["address"]), **wanted)
                case "error":
                    self.stop()
                    raise EdgeppError(event["message"], event["hint"])
        status = self.stop()
        raise EdgeppError(
            f"the stage process for layers {self.config.layers} died while it loaded (exit status {status})",
            "status -9 usually means that memory ran out: give it fewer layers" if status == -9 else "",
        )

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait for the child to end by itself; its exit status, or None when it still runs."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def stop(self) -> int:
        """End the child, by force if it does not go within seconds; its exit status."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue  # it died with our last bytes unread
        status = self.wait(STOP_S)
        if status is None:
            self._process.kill()
            status = self._process.wait()
        return status

    @staticmethod
    def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
        if pipe is None:
            raise EdgeppError("the stage process has no pipe")
        return pipe


def check_listen(address: Address, *, insecure: bool) -> None:
    """Refuse to open a port to the network unless that was asked for in so many words.

    Raises:
        UsageError: the address is not loopback and ``insecure`` is not given.
    """
    if not address.is_loopback and not insecure:
        raise UsageError(
            f"listening on {address} would let anyone on that network use and read this node: traffic is neither"
            " encrypted nor authenticated yet",
            "add --insecure if you trust every machine on it",
        )
