"""How slow a link is, and the proxy that makes it so, in a process of its own."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from proxy import Way

from edgepp.errors import EdgeppError

_PROXY = Path(__file__).with_name("proxy.py")
_STOP_S = 5.0


@dataclass(frozen=True)
class Kind:
    """How slow a link is; ``loopback`` is none at all."""

    name: str = "loopback"
    delay_ms: float = 0.0
    mbit: float = math.inf

    @property
    def direct(self) -> bool:
        """Whether nothing stands between."""
        return not self.delay_ms and self.mbit == math.inf


@contextmanager
def slowed(kind: Kind, ways: Sequence[tuple[Way, Way]]) -> Iterator[None]:
    """Run a link in a process of its own, so that it takes nobody's interpreter.

    Raises:
        EdgeppError: it does not come up.
    """
    pairs = [f"{a[0]}:{a[1]}={b[0]}:{b[1]}" for a, b in ways]
    command = [sys.executable, str(_PROXY), "--delay-ms", str(kind.delay_ms), "--mbit", str(kind.mbit), *pairs]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            if child.stdout.readline() != "ready\n":
                raise EdgeppError("the slow link did not come up", "on macOS: ifconfig lo0 alias 127.0.0.2")
            yield
        finally:
            child.stdin.close()
            try:
                child.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()
