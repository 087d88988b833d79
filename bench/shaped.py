"""Hidden states over links of given rates: two network namespaces, a cable between them, tc's tbf on it.

    sudo python bench/shaped.py                       13, 64, 105 and 131 Mbit/s, 1 and 2.5 Gbit/s
    sudo python bench/shaped.py --rates 105 --delay-ms 5 --out DIR

It makes the namespaces itself and nothing outside them is touched; they are gone when it ends. Needs Linux, root, and
the ip and tc commands. The far end is ``link.py``'s, which does with a frame what a stage does, without the model.
METHODOLOGY.md defines the numbers; the origin's table stands beside them where it has the same cell.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from link import Coordinator, Trip, connected, peer
from measure import Arguments, commit, count, machine, report, rounded, say, script

from edgepp.bench import links
from edgepp.bench.links import CODECS, ROWS
from edgepp.bench.machine import busy
from edgepp.bench.origin import RATES_MBIT_S, SENDING, SENDING_MBIT_S, TOGETHER
from edgepp.errors import EdgeppError, ModelError, UsageError
from edgepp.wire.choice import CodecChoice
from edgepp.wire.codec import Array
from edgepp.wire.messages import Codec
from edgepp.wire.transport import Address

NEAR, FAR = "10.78.0.1", "10.78.0.2"
_PORT = "eth0"
_BURST_S = 200e-6
"""What may pass at once after a silence, as time at full rate: little, or short frames would not be held up at all."""
_LEAST_BURST = 1600  # bytes: one Ethernet frame
_QUEUE_BYTES = 4_000_000
_SHORT_ROWS = 16
"""Fewer rows are sent so often in a round that it makes about as many: one short trip says little."""


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = Arguments(__doc__)
    parser.add_argument("--rates", type=rates, default=list(RATES_MBIT_S), help="Mbit/s (13,64,105,131,1000,2500)")
    parser.add_argument(
        "--delay-ms", type=float, default=0.0, help="each way, by proxy.py at the far end (%(default)s)"
    )
    parser.add_argument("--rounds", type=count, default=3, help="measured rounds, after one to warm up (%(default)s)")
    parser.add_argument("--model", default="smollm2-135m", help="gives the real hidden states (%(default)s)")
    parser.add_argument("--noise-only", action="store_true", help="leave the real hidden states out")
    parser.add_argument("--out", type=Path, help="folder for links.json and links.md")
    parser.add_argument("--far", help=argparse.SUPPRESS)
    return parser.parse_args()


def rates(text: str) -> list[float]:
    """Rates of links from a command line."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = [0.0]
    if not all(0.1 <= rate <= 100_000 for rate in found):
        raise argparse.ArgumentTypeError(f"'{text}' are no rates in Mbit/s, such as 13,105,1000")
    return found


def unavailable() -> str | None:
    """Why no link can be shaped here; None where one can."""
    if not sys.platform.startswith("linux"):
        return "links are shaped in network namespaces, which only Linux has"
    if os.geteuid() != 0:
        return "network namespaces need root"
    lacking = [name for name in ("ip", "tc") if shutil.which(name) is None]
    return f"there is no {' and no '.join(lacking)} command" if lacking else None


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EdgeppError(f"{' '.join(command)}: {done.stderr.strip()}")


@contextmanager
def _namespace(name: str) -> Iterator[str]:
    _call("ip", "netns", "add", name)
    try:
        _call("ip", "-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        _end(name)
        _call("ip", "netns", "del", name)


def _end(namespace: str) -> None:
    """End what Ctrl-C may have left in a namespace."""
    listed = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    for pid in listed.stdout.split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


@contextmanager
def cable() -> Iterator[tuple[str, str]]:
    """Two namespaces with a cable between them: their names."""
    with ExitStack() as stack:
        near, far = (stack.enter_context(_namespace(f"edgepp{os.getpid()}-{end}")) for end in ("near", "far"))
        _call("ip", "-n", near, "link", "add", _PORT, "type", "veth", "peer", "name", _PORT, "netns", far)
        for name, address in ((near, NEAR), (far, FAR)):
            _call("ip", "-n", name, "addr", "add", f"{address}/24", "dev", _PORT)
            _call("ip", "-n", name, "link", "set", _PORT, "up")
        yield near, far


def shape(far: str, mbit_s: float) -> None:
    """Hold both directions of the cable to a rate; this process is at its near end."""
    burst = max(_LEAST_BURST, round(mbit_s * 125e3 * _BURST_S))
    tbf = ("tbf", "rate", f"{mbit_s * 1e6:.0f}bit", "burst", str(burst), "limit", str(_QUEUE_BYTES))
    for within in ((), ("ip", "netns", "exec", far)):
        _call(*within, "tc", "qdisc", "replace", "dev", _PORT, "root", *tbf)


@contextmanager
def wire(far: str, delay_ms: float) -> Iterator[Coordinator]:
    """A connection to the far end; with a delay through a proxy there."""
    within = ("ip", "netns", "exec", far)
    with ExitStack() as stack:
        port, _ = stack.enter_context(peer(host="127.0.0.1" if delay_ms else FAR, within=within))
        if delay_ms:
            stack.enter_context(_proxy(within, port, delay_ms))
        yield stack.enter_context(connected(Address(FAR, port)))


@contextmanager
def _proxy(within: Sequence[str], port: int, delay_ms: float) -> Iterator[None]:
    file = Path(__file__).with_name("proxy.py")
    way = f"{FAR}:{port}=127.0.0.1:{port}"
    process = subprocess.Popen([*within, sys.executable, str(file), "--delay-ms", str(delay_ms), way])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All rates one after the other; at each every size, kind of data and codec in turn, round after round."""
    data = {"noise": links.noise()}
    if not options.noise_only:
        try:
            data["real"] = links.real(options.model)
        except ModelError as error:
            say(f"no real hidden states: {error}")
    found = []
    with wire(options.far, options.delay_ms) as far:
        for mbit_s in options.rates:
            shape(options.far, mbit_s)
            trips: dict[tuple[str, int, Codec], list[Trip]] = {}
            for turn in range(options.rounds + 1):
                say(f"{mbit_s:g} Mbit/s, {f'round {turn} of {options.rounds}' if turn else 'warm-up'}")
                for (kind, states), rows, name in _cases(data):
                    taken = [far.trip(states[:rows], name) for _ in range(max(1, _SHORT_ROWS // rows))]
                    if turn:
                        trips.setdefault((kind, rows, name), []).extend(taken)
            found += [row(mbit_s, key, data[key[0]][: key[1]], taken) for key, taken in trips.items()]
    return found


def _cases(data: Mapping[str, Array]) -> Iterator[tuple[tuple[str, Array], int, Codec]]:
    yield from ((each, rows, name) for each in data.items() for rows in ROWS for name in CODECS)


def row(mbit_s: float, key: tuple[str, int, Codec], states: Array, trips: Sequence[Trip]) -> dict[str, Any]:
    """One cell of the tables: one way of ``states``, and what ``auto`` would have sent them with."""
    kind, rows, name = key
    totals, codec_s = [trip.total_s for trip in trips], statistics.median(trip.codec_s for trip in trips)
    total_s = statistics.median(totals)
    return {
        "mbit_s": mbit_s,
        "data": kind,
        "rows": rows,
        "codec": name,
        "codec_ms": codec_s * 1e3,
        "transmission_ms": (total_s - codec_s) * 1e3,
        "total_ms": total_s * 1e3,
        "total_ms_spread": [min(totals) * 1e3, max(totals) * 1e3],
        "mb_s": states.nbytes / total_s / 1e6,
        "reached_mbit_s": trips[0].sent_bytes * 8e-6 / (total_s - codec_s),
        "auto": CodecChoice("auto", mbit_s * 125e3).encode(states)[0],
    }


def table(result: Mapping[str, Any]) -> Iterator[str]:
    """The result for people, as Markdown."""
    extra = f", {result['delay_ms']:g} ms later each way" if result["delay_ms"] else ""
    yield f"Hidden states (rows, {links.WIDTH}) in {links.DTYPE} between two processes over a shaped cable{extra}."
    yield f"One way in ms: transmission + codec = total (MB/s); **bold** is fastest; {result['rounds']} rounds, median."
    yield f"Origin: {TOGETHER}, there and back over about {SENDING_MBIT_S:g} Mbit/s, zlib in zstd's place."
    load = f", load {result['machine']['load_1m']:.1f} on {result['machine']['cpus']} CPUs before it began"
    yield f"{result['machine']['cpu']}, commit {result['commit']}{load}{', busy' if busy(result['machine']) else ''}."
    for mbit_s in dict.fromkeys(row["mbit_s"] for row in result["rows"]):
        for kind in dict.fromkeys(row["data"] for row in result["rows"]):
            cells = [row for row in result["rows"] if (row["mbit_s"], row["data"]) == (mbit_s, kind)]
            reached = max(row["reached_mbit_s"] for row in cells if row["codec"] == "none")
            yield ""
            yield f"### {mbit_s:g} Mbit/s, {kind} ({reached:.4g} reached)"
            yield ""
            yield from _rate_table(cells, beside=mbit_s == SENDING_MBIT_S and kind == "noise")


def _rate_table(cells: Sequence[Mapping[str, Any]], *, beside: bool) -> Iterator[str]:
    headings = ["rows", *CODECS, "auto sends", *(f"origin: {name}" for name in ("plain", "lz4", "zlib") if beside)]
    yield f"| {' | '.join(headings)} |"
    yield f"|{'---:|' * len(headings)}"
    for rows in ROWS:
        mine = [cell for cell in cells if cell["rows"] == rows]
        best = min(mine, key=lambda cell: float(cell["total_ms"]))
        ours = [_cell(cell, bold=cell is best) for cell in mine]
        theirs = [SENDING[rows].get(name) for name in ("none", "lz4", "zlib") if beside]
        said = [f"{t.transmission_ms:g} + {t.codec_ms:g} = {t.total_ms:g} ({t.mb_s:g})" if t else "-" for t in theirs]
        yield f"| {' | '.join([str(rows), *ours, statistics.mode(cell['auto'] for cell in mine), *said])} |"


def _cell(cell: Mapping[str, Any], *, bold: bool) -> str:
    total = f"{cell['total_ms']:.2f}"
    total = f"**{total}**" if bold else total
    return f"{cell['transmission_ms']:.2f} + {cell['codec_ms']:.2f} = {total} ({cell['mb_s']:.3g})"


def within(options: argparse.Namespace) -> None:
    """Measure and report, at the near end."""
    settings = {"rounds": options.rounds, "delay_ms": options.delay_ms, "model": options.model}
    about = machine()  # with the load before this adds to it
    result = {"bench": "shaped", **settings, "rows": measured(options), "machine": about, "commit": commit()}
    lines = list(table(result))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        title = "# Hidden states over shaped links\n\n"
        (options.out / "links.md").write_text(title + "\n".join(lines) + "\n", encoding="utf-8")
        (options.out / "links.json").write_text(json.dumps(rounded(result), indent=1) + "\n", encoding="utf-8")
    report(result, lines, json_only=options.json)


def main() -> None:
    """Make the cable and run again at its near end."""
    options = parse()
    if options.far is not None:
        within(options)
        return
    if (reason := unavailable()) is not None:
        raise UsageError(reason)
    with cable() as (near, far):
        command = ["ip", "netns", "exec", near, sys.executable, __file__, *sys.argv[1:], "--far", far]
        status = subprocess.run(command, check=False).returncode
    sys.exit(status)


if __name__ == "__main__":
    script(main)
