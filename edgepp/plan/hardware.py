"""Named hardware: what its maker says it can do, with the source of each figure (``hardware.toml``)."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from edgepp.errors import UsageError

_METAL_SMALL, _METAL_LARGE, _METAL_BYTES = 2 / 3, 3 / 4, 32_000_000_000


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One machine or chip; rates are peaks, of which ``machines.Efficiency`` says how much is reached."""

    name: str
    title: str
    memory_gb: list[int]
    """Sizes that are sold, the usual one first."""
    bandwidth: float
    """Bytes/s of its memory."""
    flops: float
    """FLOP/s in the dtype that models compute in."""
    source: str
    note: str = ""
    gpu: bool = True
    """Whether a GPU computes, and not the CPU."""
    usable: float | None = None
    """The share of its memory that a model may have; None: by Metal's rule."""
    int8_flops: float | None = None
    ici_bytes_s: float | None = None
    """Bytes/s between two neighbouring chips of one slice, both directions together."""
    dollars_hour: float | None = None

    @property
    def memory(self) -> int:
        """Bytes of memory of the usual size."""
        return self.memory_gb[0] * 10**9

    def usable_memory(self, memory: int) -> int:
        """Bytes that a model may use of ``memory``."""
        metal = _METAL_SMALL if memory <= _METAL_BYTES else _METAL_LARGE
        return int(memory * (self.usable or metal))


@cache
def catalogue() -> Mapping[str, Hardware]:
    """All named hardware, by name."""
    text = Path(__file__).with_name("hardware.toml").read_text(encoding="utf-8")
    return {name: Hardware(name=name, **values) for name, values in tomllib.loads(text).items()}


def find(name: str) -> Hardware:
    """The hardware called ``name``; case and blanks do not matter.

    Raises:
        UsageError: there is none; the hint gives the names closest to it.
    """
    wanted = "-".join(name.lower().replace("_", " ").split())
    found = catalogue().get(wanted)
    if found is None:
        close = difflib.get_close_matches(wanted, catalogue(), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "see `edgepp plan --list-hardware`"
        raise UsageError(f"there is no hardware called '{name}'", hint)
    return found
