"""The parent's handle on a stage process: start, follow the loading, admit keys, stop.

The parent configures the child over the child's standard input, whose end ends the child; so no stage process survives
its parent, however the parent ends.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

from edgepp.child_process import interrupts_held, python_command
from edgepp.errors import EdgeppError, UsageError
from edgepp.stage_process.compute_policy import stage_environment
from edgepp.stage_process.config import StageConfig
from edgepp.wire.address import Address

STOP_TIMEOUT_S = 3.0
"""How long a stage process may take to end before it is killed."""

OnProgress = Callable[[int, int], None]
"""Called with (done, total) in bytes while a stage loads."""


@dataclass(frozen=True)
class Ready:
    """Report of a stage process that has loaded its layers."""

    address: Address
    """Address of the control socket."""
    backend: str
    device: str
    dtype: str
    weight_bytes: int
    resident_bytes: int
    seconds: float
    """Time that loading took."""
    prefill_us: int
    """Measured microseconds per token of a prefill chunk."""
    decode_us: int
    """Measured microseconds of a decode step."""


class StageProcess:
    """A child process that runs one layer range. Must be stopped."""

    def __init__(self, config: StageConfig) -> None:
        """Start the child.

        Raises:
            EdgeppError: The child died at once.
        """
        self.config = config
        with interrupts_held():
            self._process = subprocess.Popen(  # noqa: S603 - a fixed command
                python_command("edgepp.stage_process.main"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=stage_environment(config.policy.threads),
                pass_fds=[found for found in config.rank.descriptors if found >= 0] if config.rank is not None else (),
            )
        try:
            stdin = self._pipe(self._process.stdin)
            stdin.write(config.encode())
            stdin.flush()
        except BrokenPipeError as error:
            raise EdgeppError(
                "the stage process died at its start", "read the message that it printed above"
            ) from error

    def admit(self, keys: Sequence[str]) -> None:
        """Admit exactly these keys to the sockets of the child, from now on."""
        self._tell({"admit": list(keys)})

    def _tell(self, line: Mapping[str, Any]) -> None:
        stdin = self._pipe(self._process.stdin)
        try:
            stdin.write(json.dumps(line).encode() + b"\n")
            stdin.flush()
        except (BrokenPipeError, ValueError):
            return  # the child has ended; ``wait`` tells

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    def wait_ready(self, on_progress: OnProgress | None = None) -> Ready:
        """Wait until the child has loaded its layers.

        The report of a rank other than rank 0 has the address on which it listens for the others, and no speed.

        Raises:
            EdgeppError: The child reported an error or died; it has ended then.
        """
        event = self._wait_for("ready", on_progress)
        values = {name: event[name] for name in Ready.__annotations__ if name != "address"}
        return Ready(address=Address.parse(event["address"]), **values)

    def wait_rank(self) -> str:
        """Wait until the child, a rank of a stage, listens for the other ranks; the address on which it does.

        Raises:
            EdgeppError: The child reported an error or died; it has ended then.
        """
        return str(self._wait_for("rank")["address"])

    def join_ranks(self, addresses: Sequence[str], keys: Sequence[str] = ()) -> None:
        """Tell the child, a rank of a stage, the addresses of all ranks in their order, and their public keys.

        A rank may have several addresses, separated by commas. Without ``keys`` all ranks have the key of the child.
        """
        self._tell({"ranks": list(addresses), "keys": list(keys)})

    def _wait_for(self, name: str, on_progress: OnProgress | None = None) -> dict[str, Any]:
        """The child's next report called ``name``; reports of progress go to ``on_progress``."""
        for line in self._pipe(self._process.stdout):
            event: dict[str, Any] = json.loads(line)
            if event["event"] == name:
                return event
            if event["event"] == "progress" and on_progress is not None:
                on_progress(event["done"], event["total"])
            elif event["event"] == "error":
                self.stop()
                raise EdgeppError(event["message"], event["hint"])
        status = self.stop()
        raise EdgeppError(
            f"{self.config.task} died while it loaded (exit status {status})",
            "status -9 usually means that memory ran out: give this machine fewer layers" if status == -9 else "",
        )

    def on_end(self, act: Callable[[], None]) -> None:
        """Call ``act``, in a thread of its own, as soon as the child has ended, however it ended."""

        def wait() -> None:
            self._process.wait()
            act()

        threading.Thread(target=wait, name=f"end-of-{self.pid}", daemon=True).start()

    def kill(self) -> None:
        """End the child at once, even one that is stopped or hangs; no effect on one that has ended."""
        self._process.kill()

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Exit status of the child once it ends by itself; None where it still runs after ``timeout_s`` seconds."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def end_input(self) -> None:
        """Let the child end by itself, without waiting for it."""
        _close(self._process.stdin)

    def why_ended(self) -> tuple[str, str]:
        """Why the child, which has ended by itself, did: a sentence and a hint."""
        status = self.stop()
        return f"its stage process ended by itself (exit status {status})", memory_hint(status)

    def stop(self) -> int:
        """End the child, after ``STOP_TIMEOUT_S`` by force, and return its exit status."""
        self.end_input()
        _close(self._process.stdout)
        status = self.wait(STOP_TIMEOUT_S)
        if status is None:
            self._process.kill()
            status = self._process.wait()
        return status

    @staticmethod
    def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
        if pipe is None:
            raise EdgeppError("the stage process has no pipe")
        return pipe


def _close(pipe: IO[bytes] | None) -> None:
    if pipe is not None and not pipe.closed:
        with suppress(BrokenPipeError):  # the child died without reading everything
            pipe.close()


def memory_hint(status: int) -> str:
    """Hint for users about a stage process that ended with ``status``; empty for a status without a known cause."""
    return "status -9 usually means that memory ran out: lower --memory there" if status == -9 else ""


def check_listen(address: Address, *, insecure: bool) -> None:
    """Check that an unencrypted stage listens on loopback, unless ``insecure`` allows other addresses.

    Raises:
        UsageError: The address is not loopback, and ``insecure`` is False.
    """
    if not address.is_loopback and not insecure:
        raise UsageError(
            f"listening on {address} would let anyone on that network use this node and read its traffic: a stage"
            " outside of a cluster is neither encrypted nor authenticated",
            "add --insecure if you trust every machine on that network",
        )
