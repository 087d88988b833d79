"""Figures of `edgepp plan` for people: times from microseconds to days, rates, ratios, without exponents."""

from __future__ import annotations

_MAX_MS = 10.0
"""Seconds from which on a time in a table is not in milliseconds."""
_MINUTES_S, _HOURS_S, _DAYS_S = 180.0, 3 * 3600.0, 3 * 86_400.0
"""Times from which on minutes, hours and days are shown."""
_LEAST = 0.001
"""The smallest rate or ratio that is shown as a number."""


def duration(seconds: float) -> str:
    """A time in a sentence, such as ``3.1 s`` or ``20 minutes``."""
    if seconds >= _DAYS_S:
        return f"{seconds / 86_400:,.0f} days"
    if seconds >= _HOURS_S:
        return f"{seconds / 3600:.0f} hours"
    if seconds >= _MINUTES_S:
        return f"{seconds / 60:.0f} minutes"
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.01 else f"{seconds * 1e3:.2f} ms"


def milliseconds(seconds: float) -> str:
    """A time in a table, such as ``30.2 ms``; empty for 0."""
    if not seconds:
        return ""
    if seconds >= _MAX_MS:
        return duration(seconds)
    return f"{seconds * 1e3:.1f} ms" if seconds >= 0.01 else f"{seconds * 1e3:.2f} ms"


def rate(per_s: float) -> str:
    """A number of tokens per second, such as ``14.4``, ``0.043`` or ``1,250``."""
    if per_s < _LEAST:
        return f"<{_LEAST}"
    if per_s < 0.995:
        return f"{per_s:.2g}"
    return f"{per_s:.1f}" if per_s < 99.95 else f"{per_s:,.0f}"


def times(ratio: float) -> str:
    """A ratio, such as ``1.4 times``, ``0.32 times`` or ``180 times``."""
    if ratio < _LEAST:
        return f"less than {_LEAST} times"
    if ratio < 0.95:
        return f"{ratio:.2g} times"
    if ratio < 1.995:
        return f"{ratio:.2f} times"
    return f"{ratio:.1f} times" if ratio < 9.95 else f"{ratio:,.0f} times"


def flops_rate(flops_per_s: float) -> str:
    """A rate of arithmetic, such as ``3.6 TFLOP/s`` or ``5 GFLOP/s``."""
    for scale, unit in ((1e12, "TFLOP/s"), (1e9, "GFLOP/s")):
        if flops_per_s >= 0.1 * scale:
            return (
                f"{flops_per_s / scale:,.3g} {unit}"
                if flops_per_s < 999.5 * scale
                else (f"{flops_per_s / scale:,.0f} {unit}")
            )
    return f"{flops_per_s / 1e6:,.3g} MFLOP/s"
