"""Result of one check of `edgepp selftest`. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class CheckResult:
    """What a check found; ``ok`` is None where it did not apply or is not certain, with the reason in ``found``."""

    ok: bool | None
    found: str
    """One plain line."""
    figure: float | None = None
    limit: float | None = None
    """Largest good value of ``figure``, or with ``at_least`` the smallest; None for a figure without a limit."""
    unit: str = ""
    at_least: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further figures, as JSON values."""
    hint: str = ""
    """What to do next where the check failed, in one line."""

    @classmethod
    def held_to(cls, found: str, figure: float, limit: float, unit: str, **rest: Any) -> CheckResult:
        """A result that is good where ``figure`` keeps to ``limit``."""
        ok = figure >= limit if rest.get("at_least") else figure <= limit
        return cls(ok, found, figure, limit, unit, **rest)

    @property
    def against(self) -> str:
        """The figure and its limit in words; empty without a limit."""
        if self.figure is None or self.limit is None:
            return ""
        return f"{self.figure:.3g} {self.unit}, {'at least' if self.at_least else 'at most'} {self.limit:.3g}"


@dataclass(frozen=True)
class CheckRun:
    """A check that was run, and its result."""

    name: str
    about: str
    result: CheckResult
    took_s: float

    def to_dict(self) -> dict[str, Any]:
        """The run as JSON."""
        return {"check": self.name, "about": self.about, **asdict(self.result), "took_s": round(self.took_s, 2)}
