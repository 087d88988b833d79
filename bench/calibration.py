"""Input of predictions: short measurements of one stage with the first layers of a model, and of links.

The measurements do not include predicted quantities. A node could make them alone, in some seconds:

- two copies of the model, cut after different numbers of layers, each in one stage process over loopback: decode steps
  of 1, 2, 4 and 8 rows after a short prompt, of 1 and 4 rows after a long prompt, and prompts of half a chunk, one
  chunk and four chunks; ``bench.toolkit.machine_fit`` computes the rates from them;
- from the same steps, the software time of a hop (half of the round trip without computing), for spinning and for
  sleeping stages, and the coordinator's time between the return of a step and the next step;
- the factor by which prompts take longer while every core computes one (up to three at the same time), because cores
  share memory;
- latency and rate of each link by the ring's own echo, minus those of loopback.
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
from edgepp.placement.values import LinkSpeed
from edgepp.plan.machines import Machine, Model
from edgepp.stage_process.compute_policy import ComputePolicy, physical_cores
from edgepp.wire.address import Address
from edgepp.wire.link_rate import measure_echo
from edgepp.wire.messages import max_data_frame_bytes
from edgepp.wire.transport import Link

SHORT, LONG = 16, 256
"""Prompt tokens before decode steps, for short and for long context."""
ROWS, LONG_ROWS = (1, 2, 4, 8), (1, 4)
NODE = "box"
_CONTENTION_TOKENS = 384
"""Prompt tokens for the contention factor on the stage with the fewest layers; others get proportionally fewer."""
_LARGE_FRAME_BYTES = 1 << 18
_WAIT_S = 10.0
_FLOAT32_BYTES = 4


@dataclass(frozen=True)
class CalibrationSample:
    """Raw seconds of one calibration."""

    timed: tuple[TimedSteps, ...]
    ends_s: Mapping[int, float]
    """Seconds of the coordinator from the return of a step to the next step, by rows."""
    awake_s: float
    """Software seconds of a hop with spinning stages."""
    asleep_s: float
    """Software seconds of a hop with sleeping stages."""
    contention: float
    """Factor by which a prompt takes longer while every core computes one."""
    links: Mapping[str, LinkSpeed]
    """Latency and rate, by name of the link."""


def lanes(threads: int) -> int:
    """Number of processes that this machine runs at the same time."""
    return max(1, physical_cores() // threads)


def parts(layers: int) -> tuple[int, int]:
    """Two different numbers of layers, both below ``layers`` if that is above 3."""
    return max(1, layers // 5), max(2, layers * 3 // 5)


@contextmanager
def shortened(folder: Path, layers: int) -> Iterator[Path]:
    """Make a copy of a checkpoint that ends after ``layers`` layers; the weight files are symbolic links."""
    with TemporaryDirectory(prefix="edgepp-short-") as made:
        for file in folder.iterdir():
            if file.name != "config.json":
                (Path(made) / file.name).symlink_to(file.resolve())
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (Path(made) / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}), encoding="utf-8")
        yield Path(made)


class Calibrator:
    """Running stages with the first layers of a model, so that a sample takes seconds. A context manager."""

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
        """Make all measurements once."""
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
            ends_s={rows: statistics.median(_gaps_between(found)) for rows, found in trips.items()},
            awake_s=statistics.median(trip.wire_s for trip in trips[1]) / 2,
            asleep_s=statistics.median(trip.wire_s for trip in asleep) / 2,
            contention=self._contention(),
            links={link.name: _link(self._asleep, link, hidden) for link in self._slow_links},
        )

    def _contention(self) -> float:
        """Factor by which prompts take longer while all rigs, up to one per lane, compute at the same time."""
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
    """This machine with the rates for predictions."""

    model: Model
    samples: tuple[CalibrationSample, ...]
    """Samples from different times; their mean counts."""
    threads: int

    @property
    def parts(self) -> Calibration:
        """Parts of a stage's steps, fitted to the samples."""
        return Calibration.of([timed for sample in self.samples for timed in sample.timed])

    @property
    def ends_s(self) -> dict[int, float]:
        """Seconds of the coordinator between steps, by rows."""
        return {rows: statistics.fmean(sample.ends_s[rows] for sample in self.samples) for rows in ROWS}

    def hop_s(self, *, awake: bool) -> float:
        """Software seconds of a hop."""
        return statistics.fmean(sample.awake_s if awake else sample.asleep_s for sample in self.samples)

    def machines(self, stages: int) -> tuple[Machine, Machine]:
        """Machine of a stage and machine of the coordinator, for a pipeline of ``stages`` stages."""
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
        """Links of a ring whose hops are all like ``link``."""
        if link.direct:
            return {}
        speeds = [sample.links[link.name] for sample in self.samples]
        latency_s = statistics.fmean(speed.latency_s for speed in speeds)
        return {(NODE, NODE): LinkSpeed(latency_s, statistics.fmean(speed.bytes_per_s for speed in speeds))}


def _decoded(rig: Rig, tokens: int, rows: Sequence[int], cycles: int) -> Iterator[tuple[int, list[StepTrip]]]:
    """Decode steps of exactly each number of ``rows``."""
    rig.steady(1, SHORT, 2)
    for count in rows:
        trips = rig.steady(count, tokens, cycles).trips
        yield count, [trip for trip in trips if len(trip.returned.sequences) == count]


def _step(layers: int, rows: int, trips: Sequence[StepTrip]) -> TimedSteps:
    """Computing time of the stage in the median step, at the mean position."""
    at = [position for trip in trips for position in trip.positions]
    seconds = statistics.median(trip.returned.compute_s[0] for trip in trips)
    return TimedSteps.decode(layers, rows, round(statistics.fmean(at)), seconds)


def _prompt(rig: Rig, layers: int, tokens: int) -> TimedSteps:
    """Median time of a prompt alone, over three runs."""
    chunk = min(tokens, rig.engine.stages[0].chunk)
    took = [_compute_s(rig.first_token_s(tokens)[1]) for _ in range(3)]
    return TimedSteps.prompt(layers, tokens, chunk, statistics.median(took))


def _compute_s(trips: Sequence[StepTrip]) -> float:
    return sum(trip.returned.compute_s[0] for trip in trips)


def _gaps_between(trips: Sequence[StepTrip]) -> list[float]:
    """Seconds of the coordinator from the return of each step to the next step, with one step at a time."""
    return [after.sent_s - before.back_s for before, after in pairwise(trips) if 0 < after.sent_s - before.back_s < 1.0]


def _link(rig: Rig, link: SlowLink, hidden: int) -> LinkSpeed:
    """Latency and rate of a link like ``link`` to a stage, minus those of loopback."""
    port = rig.addresses[0].port + 1
    near = _echoes(HERE, port, hidden)
    with ExitStack() as stack:
        stack.enter_context(slowed(link, [((FAR, port), (HERE, port))]))
        far = _echoes(FAR, port, hidden)
    row = hidden * _FLOAT32_BYTES
    bytes_per_s = 2 * (_LARGE_FRAME_BYTES - row) / max(far[1] - far[0] - (near[1] - near[0]), 1e-6)
    return LinkSpeed(max(0.0, (far[0] - near[0]) / 2 - row / bytes_per_s), bytes_per_s)


def _echoes(host: str, port: int, hidden: int) -> tuple[float, float]:
    """Round trips in seconds of one hidden state, and of a large frame."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    link = Link(context, Address(host, port), max_data_frame_bytes(hidden))
    try:
        small = measure_echo(link, hidden * _FLOAT32_BYTES, _WAIT_S)
        large = measure_echo(link, _LARGE_FRAME_BYTES, _WAIT_S, rounds=3)
    finally:
        link.close()
        context.term()
    if small is None or large is None:
        raise EdgeppError(f"no stage answers at {host}:{port}")
    return small, large
