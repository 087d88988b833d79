"""Time of hidden states between two processes of this machine through edgepp's messages and sockets, by size and codec.

    python -m bench.hop
    python -m bench.hop --secure     also the cost of encryption

The other process handles a frame like a stage, without the model: receive, decode, encode, send. METHODOLOGY.md defines
the numbers; the tables have the form of the origin's (transmission + codec = total).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pydoc_data.topics import topics
from typing import Any

from bench.toolkit.figures import interleave, table
from bench.toolkit.round_trips import MAX_ROWS, OneWayTrip, RoundTrips, one_way, peer_and_link
from bench.toolkit.script import Result, ScriptArguments, say, script
from edgepp.benchmark.hidden_states import WIDTH, noise, real
from edgepp.benchmark.report import pays_below_mbit_per_s
from edgepp.benchmark.workload import percentile
from edgepp.errors import ModelError
from edgepp.model.fetch import find_local
from edgepp.wire import codec
from edgepp.wire.field_types import Codec

ROWS = (1, 4, 16, 32, 64, MAX_ROWS)
HOPS = 2000
"""Number of trips for the figure of one row."""


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = ScriptArguments(__doc__)
    parser.add_argument("--dtype", choices=tuple(codec.DTYPES), default="float16", help="(%(default)s)")
    parser.shared("model", rounds=10)
    parser.add_argument("--secure", action="store_true", help="also measure the encrypted hop, in turn trip by trip")
    return parser.parse_args()


def manual(tokens: int) -> str:
    """About ``tokens`` tokens of the Python reference that comes with the interpreter."""
    return "\n".join(topics.values())[: 4 * tokens]


def matrices(options: argparse.Namespace, link: RoundTrips) -> list[dict[str, Any]]:
    """Measure every size, codec and kind of data in turn, round after round."""
    find_local(options.model)  # raises for an unknown name; a known model may be absent
    data = {"random": noise(options.dtype, max(ROWS))}
    say(f"computing hidden states of {options.model}")
    try:
        data["real"] = real(options.model, options.dtype, max(ROWS), manual)
    except ModelError as error:
        say(f"no real hidden states: {error}{f'; {error.hint}' if error.hint else ''}")
    cases = [(rows, name, kind) for kind in data for rows in ROWS for name in codec.NAMES]

    def trip(case: tuple[int, Codec, str], _turn: int) -> OneWayTrip:
        rows, name, kind = case
        link.trip(data[kind][:rows], name)  # unmeasured: moves data of the last size out of the CPU caches
        return link.trip(data[kind][:rows], name)

    trips = interleave({case: partial(trip, case) for case in cases}, options.rounds)
    return [
        {"rows": rows, "width": WIDTH, "dtype": options.dtype, "codec": name, "data": kind}
        | summary(trips[rows, name, kind], data[kind][:rows].nbytes)
        for rows, name, kind in cases
    ]


def summary(trips: Sequence[OneWayTrip], nbytes: int) -> dict[str, Any]:
    """One row of the result; ``nbytes`` is the size without a codec."""
    codec_s = statistics.median(trip.codec_s for trip in trips)
    return {
        **one_way(trips, nbytes),
        "ratio": nbytes / trips[0].sent_bytes,
        "pays_below_mbit_per_s": pays_below_mbit_per_s(nbytes, trips[0].sent_bytes, codec_s * 1e3),
    }


def hop(link: RoundTrips, secure: RoundTrips | None) -> dict[str, Any]:
    """Microseconds of one way of one float16 row without a codec; with ``secure``, also over the encrypted link."""
    row = noise("float16", 1)
    links = [link] if secure is None else [link, secure]
    ways_us: list[list[float]] = [[] for _ in links]
    for _ in range(HOPS + HOPS // 10):
        for each, ways in zip(links, ways_us, strict=True):
            ways.append(each.trip(row, "none").total_s * 1e6)
    plain, *encrypted = (_spread(ways[HOPS // 10 :]) for ways in ways_us)
    if not encrypted:
        return plain
    return {**plain, "secure": encrypted[0], "secure_extra_us": encrypted[0]["median"] - plain["median"]}


def _spread(ways_us: Sequence[float]) -> dict[str, Any]:
    return {"median": statistics.median(ways_us), "p95": percentile(ways_us, 95), "min": min(ways_us)}


def lines(result: Result) -> Iterator[str]:
    """Lines of the result for people, with one table per kind of data."""
    for kind in dict.fromkeys(row["data"] for row in result["rows"]):
        yield f"{kind} {result['dtype']} hidden states, one way: transmission + codec = total ms (MB/s; ratio)"
        rows = []
        for size in ROWS:
            cells = (row for row in result["rows"] if (row["data"], row["rows"]) == (kind, size))
            rows.append((str(size), *map(_cell, cells)))
        yield from table(("rows", *codec.NAMES), rows)
    for name in codec.NAMES[1:]:
        limits = (row for row in result["rows"] if row["codec"] == name)
        yield f"{name} pays on links below (Mbit/s): " + ", ".join(
            f"{row['rows']} {row['data']} {row['pays_below_mbit_per_s']:.0f}" for row in limits
        )
    hop_us = result["hop_us"]
    yield f"one way, 1 x {WIDTH} float16, none: median {hop_us['median']:.0f} µs, p95 {hop_us['p95']:.0f} µs"
    if "secure" in hop_us:
        secure = hop_us["secure"]
        yield (
            f"the same encrypted: median {secure['median']:.0f} µs, p95 {secure['p95']:.0f} µs;"
            f" {hop_us['secure_extra_us']:.0f} µs more"
        )


def _cell(row: Result) -> str:
    return (
        f"{row['transmission_ms']:.3f} + {row['codec_ms']:.3f} = {row['total_ms']:.3f}"
        f" ({row['mb_per_s']:.0f}; {row['ratio']:.2f})"
    )


def measured(options: argparse.Namespace) -> Result:
    """Measure all matrices, and the hop of one row."""
    with ExitStack() as stack:
        link = stack.enter_context(peer_and_link())
        rows = matrices(options, link)
        secure = stack.enter_context(peer_and_link(secure=True)) if options.secure else None
        return {"rows": rows, "hop_us": hop(link, secure)}


if __name__ == "__main__":
    script("hop", parse, measured, lines)
