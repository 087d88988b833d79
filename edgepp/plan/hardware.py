"""Named hardware with the maker's figures and their sources, read from ``hardware.toml``."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from edgepp.errors import UsageError
from edgepp.plan.roofline import flops_per_dollar

_METAL_SMALL, _METAL_LARGE, _METAL_BYTES = 2 / 3, 3 / 4, 32_000_000_000


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One machine or chip; rates are peaks, of which ``machines.Efficiency`` gives the share that is reached."""

    name: str
    title: str
    memory_gb: list[int]
    """Sizes that are sold, the usual one first."""
    memory_bytes_per_s: float
    """Bytes/s of its memory."""
    flops_per_s: float
    """FLOP/s in the dtype that models compute in."""
    source: str
    note: str = ""
    gpu: bool = True
    """Whether a GPU or an accelerator computes, and not the CPU."""
    usable: float | None = None
    """Share of the memory that a model may use; None: by Metal's rule."""
    int8_flops_per_s: float | None = None
    """FLOP/s of products of 8-bit integers, where the chip has them."""
    ici_bytes_per_s: float | None = None
    """Bytes/s between two neighbouring chips of one slice, both directions together."""
    slices: list[str] = field(default_factory=list)
    """Meshes of chips that are offered, like ``4x4``, the smallest first."""
    dollars_per_hour: float | None = None

    @property
    def flops_per_dollar(self) -> float | None:
        """FLOPs that one dollar rents; None without a price."""
        return self.dollars_per_hour and flops_per_dollar(self.flops_per_s, self.dollars_per_hour)

    @property
    def memory_bytes(self) -> int:
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
    """The hardware called ``name``; case and blanks do not matter, and ``v5e`` is enough for ``tpu-v5e``.

    Raises:
        UsageError: there is none; the hint gives the names closest to it.
    """
    wanted = "-".join(name.lower().replace("_", " ").split())
    ends = [one for key, one in catalogue().items() if key.endswith(f"-{wanted}")]
    found = catalogue().get(wanted) or (ends[0] if len(ends) == 1 else None)
    if found is None:
        close = difflib.get_close_matches(wanted, catalogue(), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "see `edgepp plan --list-hardware`"
        raise UsageError(f"there is no hardware called '{name}'", hint)
    return found
