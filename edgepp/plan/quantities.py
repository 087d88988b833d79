"""Readers of quantities in text, for options and files: sizes, rates, links, times."""

from __future__ import annotations

import math
import re
from fractions import Fraction

from edgepp.errors import UsageError
from edgepp.placement.values import UNKNOWN_LINK, LinkSpeed

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
_MAX_BYTES = 10**15
_BYTES_PER_S = (1e6, 1e15)
_FLOPS_PER_S = (1e6, 1e18)
_LINK_BYTES_PER_S = (1e3, 1e13)
_MAX_SECONDS = 86_400.0
"""Limits of what is read: no machine, link or wait of a person is beyond them."""
_NUMBER = r"\s*(\d{1,18}(?:\.\d{1,9})?(?:e\d{1,2})?)\s*"
_PAYLOAD = 0.94
"""The share of a link's bits that TCP over Ethernet carries, 1448 bytes in a frame of 1538 on the wire."""


def parse_bytes(text: str) -> int:
    """Bytes of a size such as ``8GB``, ``500 MB``, ``1.5GiB``, ``8G`` or ``65536B``; GB is 10⁹, GiB is 2³⁰ bytes.

    Raises:
        UsageError: The text is no such size, has no unit, or is less than a byte or more than a petabyte.
    """
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,9})?)\s*(?:([kmgt])(i?))?(b?)\s*", text, re.IGNORECASE | re.ASCII)
    size = 0
    if match is not None and not (match[2] or match[4]):
        raise UsageError(
            f"'{text}' is not a size of memory: it has no unit", f"write {match[1]}GB, {match[1]}MB or {match[1]}B"
        )
    if match is not None:
        units = _BINARY_UNITS if match[3] else _UNITS
        size = int(Fraction(match[1]) * units[(match[2] or "").lower()])
    if size < 1:
        raise UsageError(f"'{text}' is not a size of memory", "write it like 8GB, 500MB or 1.5GiB")
    if size > _MAX_BYTES:
        raise UsageError(f"'{text}' is more memory than any machine has", "write it like 8GB, 500MB or 1.5GiB")
    return size


def parse_bytes_per_s(text: str) -> float:
    """Read the rate of a memory, such as ``100GB/s`` or ``51.2 GB/s``, in bytes/s.

    Raises:
        UsageError: ``text`` is not such a rate.
    """
    hint = "write it like 100GB/s"
    value = _scaled(text, r"([kmgtp]?)b(?:/s|ps)?", f"'{text}' is not a bandwidth", hint)
    return _within(value, _BYTES_PER_S, f"no memory has '{text}'", hint)


def parse_flops_per_s(text: str) -> float:
    """Read a rate of arithmetic such as ``3.6T``, ``500 GFLOP/s`` or ``2e12``, in FLOP/s.

    Raises:
        UsageError: ``text`` is not such a rate, or a small number without a unit.
    """
    if re.fullmatch(r"\s*\d{1,6}(\.\d{1,9})?\s*", text):
        raise UsageError(f"'{text}' has no unit", f"write {text.strip()}T or {text.strip()}G")
    hint = "write it like 3.6T"
    value = _scaled(text, r"([kmgtp]?)(?:flops?(?:/s)?)?", f"'{text}' is not a rate of FLOP/s", hint)
    return _within(value, _FLOPS_PER_S, f"no machine computes '{text}'", hint)


def parse_seconds(text: str) -> float:
    """Read a time such as ``50ms``, ``3s`` or ``300us``, in seconds.

    Raises:
        UsageError: ``text`` is not a time, or is longer than a day.
    """
    match = re.fullmatch(_NUMBER + r"(s|ms|us|µs)\s*", text, re.IGNORECASE)
    if match is None:
        raise UsageError(f"'{text}' is not a time", "write it like 50ms, 3s or 300us")
    seconds = float(match[1]) * _SECONDS[match[2].lower()]
    return _within(seconds, (0.0, _MAX_SECONDS), f"'{text}' is longer than a day", "write it like 50ms, 3s or 300us")


def parse_link(text: str) -> LinkSpeed:
    """Read a link such as ``1Gbit:0.3ms``, ``100Mbit`` or ``125MB/s:1ms``: its rate and its one-way latency.

    The payload is 0.94 of a rate in bits. The default latency is that of ``UNKNOWN_LINK``.

    Raises:
        UsageError: ``text`` is not a link.
    """
    rate, colon, latency = text.partition(":")
    what, hint = f"'{text}' is not a link", "write its rate and one-way latency, like 1Gbit:0.3ms"
    bits = re.fullmatch(_NUMBER + r"([kmgt]?)(?:bits?|b)(?:/s|ps)\s*|" + _NUMBER + r"([kmgt]?)bits?\s*", rate, re.I)
    if bits is not None and "B" not in rate.replace("Bit", "bit"):
        bytes_per_s = float(bits[1] or bits[3]) * _SCALES[(bits[2] or bits[4] or "").lower()] * _PAYLOAD / 8
    else:
        bytes_per_s = _scaled(rate, r"([kmgt]?)b(?:/s|ps)", what, hint)
    if bytes_per_s <= 0:
        raise UsageError(what, hint)
    _within(bytes_per_s, _LINK_BYTES_PER_S, f"no link for a model has '{rate}'", hint)
    return LinkSpeed(parse_seconds(latency) if colon else UNKNOWN_LINK.latency_s, bytes_per_s)


def parse_shares(text: str) -> tuple[float, float]:
    """Read the shares of bandwidth and of FLOP/s that are reached, such as ``0.65,0.5``.

    Raises:
        UsageError: ``text`` is not a pair of shares.
    """
    try:
        stream, flops = (float(part) for part in text.split(","))
    except ValueError:
        stream = flops = 0.0
    if not (0 < stream <= 1 and 0 < flops <= 1):
        raise UsageError(f"'{text}' is not a pair of shares", "write them like 0.65,0.5: of bandwidth and of FLOP/s")
    return stream, flops


def format_link_rate(bytes_per_s: float) -> str:
    """A rate of payload in the form that ``parse_link`` reads, rounded up to three digits so that it suffices."""
    bits = 8 * bytes_per_s / _PAYLOAD
    step = 10.0 ** (math.floor(math.log10(bits)) - 2)
    scale, unit = (1e9, "Gbit/s") if bits >= 1e9 else (1e6, "Mbit/s")
    return f"{math.ceil(bits / step * (1 - 1e-9)) * step / scale:g} {unit}"


def _within(value: float, limits: tuple[float, float], what: str, hint: str) -> float:
    """``value``, which is within ``limits``.

    Raises:
        UsageError: it is not.
    """
    if not limits[0] <= value <= limits[1]:
        raise UsageError(what, hint)
    return value


def _scaled(text: str, unit: str, what: str, hint: str) -> float:
    match = re.fullmatch(_NUMBER + unit + r"\s*", text, re.IGNORECASE)
    value = float(match[1]) * _SCALES[match[2].lower()] if match else 0.0
    if value <= 0:
        raise UsageError(what, hint)
    return value
