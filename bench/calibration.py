"""What predictions are made from: short measurements of one stage on the first layers of a model, and of links.

Nothing that is predicted is measured here. A node can do all of this alone, in some seconds:

- copies of the model with its first layers only, two numbers of them, each run by one stage process over loopback:
  decode steps of 1, 2, 4 and 8 rows behind a short prompt, of 1 and 4 rows behind a long one, and prompts of half a
  chunk, of one, and of several; ``bench.toolkit.machine_fit`` takes them apart;
- on the way, what a hop's software takes (a step's way round less computing, halved), where stages wait awake and where
  they sleep, and what the coordinator takes between a step's return and the next one;
- how many times as long prompts take while every core has one to compute (of up to three at once): cores share memory,
  and with other programs themselves;
- each link's latency and rate by the ring's own echo, less that of loopback.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import zmq

from bench.toolkit.machine_fit import Calibration, TimedSteps, coordinator_machine
from bench.toolkit.quiet import Quiet
from bench.toolkit.recording import StepTrip
from bench.toolkit.rig import Rig
from bench.toolkit.slow_link import FAR, HERE, SlowLink, slowed
from edgepp.errors import EdgeppError
from edgepp.placement.types import LinkSpeed
from edgepp.plan.machines import Machine, Model
from edgepp.stage_process.compute_policy import ComputePolicy, physical_cores
from edgepp.wire.link_rate import measure_echo
from edgepp.wire.messages import max_data_frame_bytes
from edgepp.wire.transport import Address, Link

SHORT, LONG = 16, 256
"""Tokens before decode steps at short and at long context."""
ROWS, LONG_ROWS = (1, 2, 4, 8), (1, 4)
NODE = "box"
_CONTENTION_TOKENS = 384
"""Of the prompts that are computed at once by stages of the fewest layers; others get as many less."""
_PAYLOAD = 1 << 18
_WAIT_S = 10.0
_FLOAT32 = 4


@dataclass(frozen=True)
class CalibrationSample:
    """One calibration: the raw seconds of it."""

    timed: tuple[TimedSteps, ...]
    ends_s: Mapping[int, float]
    """Seconds of the coordinator between two steps, by rows."""
    awake_s: float
    """Seconds of a hop's software where stages wait awake."""
    asleep_s: float
    """Seconds of a hop's software where stages sleep."""
    contention: float
    """Factor by which a prompt takes longer while every core computes one."""
    links: Mapping[str, LinkSpeed]
    """Latency and rate, by the name of the link."""


def lanes(threads: int) -> int:
    """Processes that this machine runs at once."""
    return max(1, physical_cores() // threads)


def parts(layers: int) -> tuple[int, int]:
    """Two numbers of layers, neither all of them where there are more than three."""
    return max(1, layers // 5), max(2, layers * 3 // 5)


@contextmanager
def shortened(folder: Path, layers: int) -> Iterator[Path]:
    """A copy of a checkpoint that ends after some layers; its weights are links to the files."""
    with TemporaryDirectory(prefix="edgepp-short-") as made:
        for file in folder.iterdir():
            if file.name != "config.json":
                (Path(made) / file.name).symlink_to(file.resolve())
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (Path(made) / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}), encoding="utf-8")
        yield Path(made)


class Calibrator:
    """Stages on the first layers of a model, kept ready: a sample takes seconds. Use it in a ``with`` statement."""

    def __init__(
        self,
        folder: Path,
        layers: int,
        links: Sequence[SlowLink],
        threads: int,
        backend: str,
        cycles: int,
        quiet: Quiet,
    ) -> None:
        """Start the stages."""
        few, many = parts(layers)
        self._slow_links = [link for link in links if not link.direct]
        self._cycles, self._threads = cycles, threads
        with ExitStack() as stack:

            def rig(count: int, awake: bool) -> Rig:
                short = stack.enter_context(shortened(folder, count))
                return stack.enter_context(Rig(short, 1, SlowLink(), threads, backend, quiet, awake=awake))

            self._rigs = {count: rig(count, awake=True) for count in (few, many)}
            self._asleep = rig(few, awake=False)
            self._owned = stack.pop_all()

    def __enter__(self) -> Calibrator:
        return self

    def __exit__(self, *_: object) -> None:
        self._owned.close()

    def sample(self) -> CalibrationSample:
        """Measure everything once."""
        timed: list[TimedSteps] = []
        trips: dict[int, list[StepTrip]] = {}
        for layers, rig in self._rigs.items():
            for rows, found in _decoded(rig, SHORT, ROWS, self._cycles):
                timed.append(_step(layers, rows, found))
                trips.setdefault(rows, []).extend(found)
            timed += [_step(layers, rows, found) for rows, found in _decoded(rig, LONG, LONG_ROWS, self._cycles)]
            chunk = rig.engine.stages[0].chunk
            timed += [_prompt(rig, layers, tokens) for tokens in (chunk // 2, chunk, 4 * chunk)]
        asleep = [trip for _, found in _decoded(self._asleep, SHORT, (1,), self._cycles) for trip in found]
        hidden = self._asleep.checkpoint.hidden_size
        return CalibrationSample(
            timed=tuple(timed),
            ends_s={rows: statistics.median(_between(found)) for rows, found in trips.items()},
            awake_s=statistics.median(trip.wire_s for trip in trips[1]) / 2,
            asleep_s=statistics.median(trip.wire_s for trip in asleep) / 2,
            contention=self._contention(),
            links={link.name: _link(self._asleep, link, hidden) for link in self._slow_links},
        )

    def _contention(self) -> float:
        """Factor by which prompts take longer where all rigs, or as many as there are lanes, compute at once."""
        rigs = [*self._rigs.values(), self._asleep][: lanes(self._threads)]
        if len(rigs) == 1:
            return 1.0
        took: list[tuple[float, float]] = []
        least = min(rig.checkpoint.num_layers for rig in rigs)
        for _ in range(2):
            alone = [rig.first_token_s(_CONTENTION_TOKENS * least // rig.checkpoint.num_layers)[1] for rig in rigs]
            with ThreadPoolExecutor(len(rigs)) as pool:
                tokens = [_CONTENTION_TOKENS * least // rig.checkpoint.num_layers for rig in rigs]
                together = list(pool.map(lambda rig, n: rig.first_token_s(n, alone=False)[1], rigs, tokens))
            took += [(_compute_s(a), _compute_s(b)) for a, b in zip(alone, together, strict=True)]
        return max(1.0, statistics.median(together / alone for alone, together in took))


@dataclass(frozen=True)
class CalibratedMachine:
    """This machine, as predictions take it."""

    model: Model
    samples: tuple[CalibrationSample, ...]
    """Taken at different times; their mean counts."""
    threads: int

    @property
    def parts(self) -> Calibration:
        """What a stage's steps are made of."""
        return Calibration.of([timed for sample in self.samples for timed in sample.timed])

    @property
    def ends_s(self) -> dict[int, float]:
        """The coordinator's seconds between steps, by rows."""
        return {rows: statistics.fmean(sample.ends_s[rows] for sample in self.samples) for rows in ROWS}

    def hop_s(self, *, awake: bool) -> float:
        """Seconds of a hop's software."""
        return statistics.fmean(sample.awake_s if awake else sample.asleep_s for sample in self.samples)

    def machines(self, stages: int) -> tuple[Machine, Machine]:
        """A stage's and the coordinator's where there are so many stages."""
        hop_s, count, parts = (
            self.hop_s(awake=ComputePolicy.shared(self.threads, stages).awake),
            lanes(self.threads),
            self.parts,
        )
        return (
            parts.machine(NODE, self.model, max(parts.pass_s), hop_s, count, self.contention),
            coordinator_machine(NODE, self.model, self.ends_s, hop_s, count),
        )

    @property
    def contention(self) -> float:
        """Factor by which a step takes longer while every lane works."""
        return statistics.fmean(sample.contention for sample in self.samples)

    def links(self, link: SlowLink) -> dict[tuple[str, str], LinkSpeed]:
        """The links of a ring whose hops are all alike."""
        if link.direct:
            return {}
        speeds = [sample.links[link.name] for sample in self.samples]
        latency_s = statistics.fmean(speed.latency_s for speed in speeds)
        return {(NODE, NODE): LinkSpeed(latency_s, statistics.fmean(speed.bytes_per_s for speed in speeds))}


def _decoded(rig: Rig, tokens: int, rows: Sequence[int], cycles: int) -> Iterator[tuple[int, list[StepTrip]]]:
    """Decode steps of exactly so many rows."""
    rig.steady(1, SHORT, 2)
    for count in rows:
        trips = rig.steady(count, tokens, cycles).trips
        yield count, [trip for trip in trips if len(trip.returned.sequences) == count]


def _step(layers: int, rows: int, trips: Sequence[StepTrip]) -> TimedSteps:
    """The stage's part of the median step, at the middle of their positions."""
    at = [position for trip in trips for position in trip.positions]
    seconds = statistics.median(trip.returned.compute_s[0] for trip in trips)
    return TimedSteps.decode(layers, rows, round(statistics.fmean(at)), seconds)


def _prompt(rig: Rig, layers: int, tokens: int) -> TimedSteps:
    """A prompt alone, the median of three."""
    chunk = min(tokens, rig.engine.stages[0].chunk)
    took = [_compute_s(rig.first_token_s(tokens)[1]) for _ in range(3)]
    return TimedSteps.prompt(layers, tokens, chunk, statistics.median(took))


def _compute_s(trips: Sequence[StepTrip]) -> float:
    return sum(trip.returned.compute_s[0] for trip in trips)


def _between(trips: Sequence[StepTrip]) -> list[float]:
    """What the coordinator takes from one step's return to the next one's leaving, where nothing else is under way."""
    return [after.sent_s - before.back_s for before, after in pairwise(trips) if 0 < after.sent_s - before.back_s < 1.0]


def _link(rig: Rig, link: SlowLink, hidden: int) -> LinkSpeed:
    """Latency and rate of such a link to a stage, less those of loopback."""
    port = rig.addresses[0].port + 1
    near = _echoes(HERE, port, hidden)
    with ExitStack() as stack:
        stack.enter_context(slowed(link, [((FAR, port), (HERE, port))]))
        far = _echoes(FAR, port, hidden)
    row = hidden * _FLOAT32
    bytes_per_s = 2 * (_PAYLOAD - row) / max(far[1] - far[0] - (near[1] - near[0]), 1e-6)
    return LinkSpeed(max(0.0, (far[0] - near[0]) / 2 - row / bytes_per_s), bytes_per_s)


def _echoes(host: str, port: int, hidden: int) -> tuple[float, float]:
    """Seconds there and back of one hidden state, and of a large frame."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    link = Link(context, Address(host, port), max_data_frame_bytes(hidden))
    try:
        small = measure_echo(link, hidden * _FLOAT32, _WAIT_S)
        large = measure_echo(link, _PAYLOAD, _WAIT_S, rounds=3)
    finally:
        link.close()
        context.term()
    if small is None or large is None:
        raise EdgeppError(f"nothing answers at {host}:{port}")
    return small, large
