"""Hidden states, or whole answers, over links of given rates: two network namespaces and a cable limited by tc's tbf.

    sudo python -m bench.shaped                       13, 64, 105 and 131 Mbit/s, 1 and 2.5 Gbit/s
    sudo python -m bench.shaped --rates 105 --delay-ms 5 --out DIR
    sudo python -m bench.shaped --decode --out DIR    a pipeline of two stages, the second at the far end

The script makes the namespaces, changes nothing outside them, and removes them at the end. Needs Linux, root, and the
ip and tc commands. Hidden states go to another process, which handles a frame like a stage, without the model.
METHODOLOGY.md defines the numbers; tables that the origin has too show the origin's figures in further columns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bench import shaped_decode
from bench.shaped_decode import taken_on
from bench.toolkit.cable import FAR, cable, delayed, end_once, host, inside, shape, unavailable
from bench.toolkit.figures import interleave
from bench.toolkit.round_trips import OneWayTrip, RoundTrips, connected, one_way, peer
from bench.toolkit.script import ScriptArguments, program, report, say
from edgepp.benchmark import hidden_states
from edgepp.benchmark.baselines import RATES_MBIT_PER_S, SENDING, SENDING_MBIT_PER_S, TOGETHER
from edgepp.benchmark.hidden_states import CODECS, ROWS
from edgepp.benchmark.machine import commit, machine
from edgepp.benchmark.markdown_table import table as markdown_table
from edgepp.benchmark.report import rounded
from edgepp.child_process import python_command
from edgepp.errors import ModelError, UsageError
from edgepp.wire.address import Address
from edgepp.wire.codec import Array
from edgepp.wire.codec_choice import CodecChoice
from edgepp.wire.field_types import Codec

Case = tuple[str, int, Codec]
"""Kind of data, rows, codec."""
_SHORT_ROWS = 16
"""Matrices with fewer rows are sent several times per round, to make about this many rows in all."""


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = ScriptArguments(__doc__)
    parser.add_argument("--rates", type=rates, default=list(RATES_MBIT_PER_S), help="Mbit/s (13,64,105,131,1000,2500)")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="each way, by a proxy at the far end (%(default)s)")
    parser.shared("model", rounds=3)
    parser.add_argument("--noise-only", action="store_true", help="leave out the real hidden states")
    parser.add_argument("--out", type=Path, help="folder for links.json and links.md, which hold both kinds of result")
    parser.add_argument("--far", help=argparse.SUPPRESS)
    parser.add_argument("--decode", action="store_true", help="answers by two stages instead of hidden states")
    parser.shared("threads", "backend", "prompt-tokens", "gen")  # with --decode
    options = parser.parse_args()
    if options.decode and options.noise_only:
        parser.error("--noise-only does not go with --decode, which sends no noise")
    return options


def rates(text: str) -> list[float]:
    """Parse rates of links in Mbit/s, separated by commas."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = [0.0]
    if not all(0.1 <= rate <= 100_000 for rate in found):
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of rates in Mbit/s, such as 13,105,1000")
    return found


@contextmanager
def link_to(far: str, delay_ms: float) -> Iterator[RoundTrips]:
    """Connect to the far end, through a proxy there if there is a delay."""
    with ExitStack() as stack:
        port, _ = stack.enter_context(peer(host=host(delay_ms), within=inside(far)))
        stack.enter_context(delayed(far, (port,), delay_ms))
        yield stack.enter_context(connected(Address(FAR, port)))


def measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure one rate after the other; at each rate every size, kind of data and codec in turn, round after round."""
    data = {"noise": hidden_states.noise()}
    if not options.noise_only:
        try:
            data["real"] = hidden_states.real(options.model)
        except ModelError as error:
            say(f"no real hidden states: {error}")
    found = []
    with link_to(options.far, options.delay_ms) as link:
        for mbit_per_s in options.rates:
            say(f"{mbit_per_s:g} Mbit/s")
            shape(options.far, mbit_per_s)
            cases = {
                (kind, rows, name): partial(_trips, link, states[:rows], name)
                for kind, states in data.items()
                for rows in ROWS
                for name in CODECS
            }
            for case, rounds in interleave(cases, options.rounds).items():
                kind, rows, _ = case
                found.append(row(mbit_per_s, case, data[kind][:rows], [trip for trips in rounds for trip in trips]))
    return found


def _trips(link: RoundTrips, states: Array, name: Codec, _turn: int) -> list[OneWayTrip]:
    return [link.trip(states, name) for _ in range(max(1, _SHORT_ROWS // len(states)))]


def row(mbit_per_s: float, case: Case, states: Array, trips: Sequence[OneWayTrip]) -> dict[str, Any]:
    """One cell of the tables: one way of ``states``, and the codec that ``auto`` would choose."""
    kind, rows, name = case
    found = one_way(trips, states.nbytes)
    return {
        "mbit_per_s": mbit_per_s,
        "data": kind,
        "rows": rows,
        "codec": name,
        **found,
        "reached_mbit_per_s": trips[0].sent_bytes * 8e-3 / found["transmission_ms"],
        "auto": CodecChoice("auto", mbit_per_s * 125e3).encode(states)[0],
    }


def table(result: Mapping[str, Any]) -> Iterator[str]:
    """Lines of the result for people, in Markdown."""
    extra = f", {result['delay_ms']:g} ms later each way" if result["delay_ms"] else ""
    shape_of_all = f"(rows, {hidden_states.WIDTH}) in {hidden_states.DTYPE}"
    yield f"Hidden states {shape_of_all} between two processes over a shaped cable{extra}."
    yield f"One way in ms: transmission + codec = total (MB/s); **bold** is fastest; {result['rounds']} rounds, median."
    yield f"Origin: {TOGETHER}, there and back over about {SENDING_MBIT_PER_S:g} Mbit/s, zlib in zstd's place."
    yield taken_on(result)
    for mbit_per_s in dict.fromkeys(row["mbit_per_s"] for row in result["rows"]):
        for kind in dict.fromkeys(row["data"] for row in result["rows"]):
            cells = [row for row in result["rows"] if (row["mbit_per_s"], row["data"]) == (mbit_per_s, kind)]
            reached = max(row["reached_mbit_per_s"] for row in cells if row["codec"] == "none")
            yield ""
            yield f"### {mbit_per_s:g} Mbit/s, {kind} ({reached:.4g} reached)"
            yield ""
            yield from _rate_table(cells, with_origin=mbit_per_s == SENDING_MBIT_PER_S and kind == "noise")


def _rate_table(cells: Sequence[Mapping[str, Any]], *, with_origin: bool) -> Iterator[str]:
    headings = ["rows", *CODECS, "auto sends", *(f"origin: {name}" for name in ("plain", "lz4", "zlib") if with_origin)]
    lines = []
    for rows in ROWS:
        mine = [cell for cell in cells if cell["rows"] == rows]
        best = min(mine, key=lambda cell: float(cell["total_ms"]))
        ours = [_cell(cell, bold=cell is best) for cell in mine]
        published = [SENDING[rows].get(name) for name in ("none", "lz4", "zlib") if with_origin]
        origin_cells = [
            f"{t.transmission_ms:g} + {t.codec_ms:g} = {t.total_ms:g} ({t.mb_per_s:g})" if t else "-" for t in published
        ]
        lines.append([str(rows), *ours, statistics.mode(cell["auto"] for cell in mine), *origin_cells])
    yield from markdown_table([f">{heading}" for heading in headings], lines)


def _cell(cell: Mapping[str, Any], *, bold: bool) -> str:
    total = f"{cell['total_ms']:.2f}"
    total = f"**{total}**" if bold else total
    return f"{cell['transmission_ms']:.2f} + {cell['codec_ms']:.2f} = {total} ({cell['mb_per_s']:.3g})"


def within(options: argparse.Namespace) -> None:
    """Measure and report; runs at the near end."""
    kept = {} if options.out is None else read(options.out)
    about = machine()  # load before the measurement
    settings = {"rounds": options.rounds, "delay_ms": options.delay_ms, "model": options.model}
    result: dict[str, Any]
    if options.decode:
        settings |= {name: getattr(options, name) for name in ("threads", "backend", "prompt_tokens", "gen")}
        result = {"bench": "shaped_decode", **settings, **shaped_decode.measured(options)}
    else:
        result = {"bench": "shaped", **settings, "rows": measured(options)}
    result |= {"machine": about, "commit": commit()}
    if options.out is not None:
        write(options.out, join_results(kept, rounded(result)))
    lines = shaped_decode.table(result) if options.decode else table(result)
    report(result, lines, json_only=options.json)


def read(folder: Path) -> dict[str, Any]:
    """Read the results of earlier runs in ``folder``.

    Raises:
        UsageError: links.json is not a result of this script.
    """
    file = folder / "links.json"
    if not file.exists():
        return {}
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        kept = None
    if not isinstance(kept, dict) or not ("rows" in kept or "decode" in kept):
        raise UsageError(f"{file} is no result of this script", "name another folder with --out")
    return kept


def join_results(kept: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """Join a new result with the kept result of the other kind: hidden states at the top, answers under ``decode``."""
    if result["bench"] == "shaped_decode":
        return {**kept, "decode": result}
    return {**result, **{name: kept[name] for name in ("decode",) if name in kept}}


def write(folder: Path, results: Mapping[str, Any]) -> None:
    """Write links.json, and links.md for people."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "links.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    parts = []
    if "rows" in results:
        parts.append(["# Hidden states over shaped links", "", *table(results)])
    if "decode" in results:
        parts.append(["# Answers over shaped links", "", *shaped_decode.table(results["decode"])])
    text = "\n\n".join("\n".join(part) for part in parts)
    (folder / "links.md").write_text(text + "\n", encoding="utf-8")


def main() -> int:
    """Make the cable and run the script again at its near end."""
    options = parse()
    if options.far is not None:
        within(options)
        return 0
    if (reason := unavailable()) is not None:
        raise UsageError(reason)
    if options.decode:
        shaped_decode.checked(options)  # the namespaces have no network to fetch a model
    end_once()
    with cable() as (near, far):
        command = [*inside(near), *python_command("bench.shaped", *sys.argv[1:], "--far", far)]
        # In its own process group it does not get Ctrl-C; this process ends it, with its children.
        return subprocess.run(command, check=False, process_group=0).returncode


if __name__ == "__main__":
    program(main)
