"""What a real pipeline's parts take, measured in the engine's own thread, and the same requests through both.

Calibration runs have other prompts, lengths and numbers of requests than the runs that are compared. On one machine
stages and coordinator share cores: what they take from each other is in the measured costs, by rows of a micro-batch.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from measure import prompt, say, share_cpus
from sides import arrivals, pin

from edgepp.backend.base import Ends
from edgepp.engine.peers import Endpoint
from edgepp.engine.pipeline import Pipeline, PipelineOptions
from edgepp.engine.request import GenerateOptions
from edgepp.engine.ring import Gauge, Returned, Ring, RingEvent, Send, SendBatch
from edgepp.model.checkpoint import Array
from edgepp.plan.simulate import Arrival, CoordinatorCost, Curve, LinkCost, Replica, Spread, StageCost, simulate
from edgepp.wire.transport import Mailbox

CALIBRATE = ((1, 200, 60), (4, 40, 40), (6, 40, 40), (8, 40, 40), (12, 40, 40), (1, 20, 60))
"""Requests at once, prompt and answer, in tokens. Not 2: its steps have one row like a lone request's, and what stages
and coordinator take from each other on one machine would be mixed into that."""
LEAST = 12
"""Steps of a size, for its mean to count."""
CHECK = (96, 80)
"""Prompt and answer of what is compared."""


@dataclass
class Record:
    """What the engine's thread did, in order; written by that thread only."""

    sent: list[tuple[int, int, bool]] = field(default_factory=list)
    """Rows, positions that they look back on together, and whether they decode, of the steps in the ring."""
    decoded: list[tuple[int, int, tuple[float, ...]]] = field(default_factory=list)
    """Rows, positions, each stage's seconds."""
    prefilled: list[tuple[int, int, tuple[float, ...]]] = field(default_factory=list)
    """Tokens, positions before them, each stage's seconds."""
    lone_s: list[float] = field(default_factory=list)
    """What is neither computing nor sending, of steps that had the ring to themselves."""
    sending_s: list[float] = field(default_factory=list)
    embedding: list[tuple[int, float]] = field(default_factory=list)
    heads: list[tuple[int, float]] = field(default_factory=list)
    rest: list[tuple[int, int, float]] = field(default_factory=list)
    """Results taken, rows sampled and seconds between two waits, less what is counted above."""
    alone: bool = True
    """Whether the step in the ring is the only one."""
    row_bytes: int = 1

    def forget(self) -> None:
        """Begin anew, while nothing is in the ring."""
        for notes in (self.decoded, self.prefilled, self.lone_s, self.sending_s, self.embedding, self.heads, self.rest):
            notes.clear()


class RecordingEnds:
    """The model's ends, timed."""

    def __init__(self, ends: Ends, record: Record) -> None:
        self._ends, self._record = ends, record
        self.positional = ends.positional
        self.spent_s = 0.0
        self.sampled = 0

    def embed(self, tokens: Sequence[int], position: int | None = None, /) -> Array:
        """See ``Ends``."""
        began_s = time.perf_counter()
        hidden = self._ends.embed(tokens, position)
        took_s = time.perf_counter() - began_s
        self.spent_s += took_s
        self._record.embedding.append((len(tokens), took_s))
        return hidden

    def logits(self, hidden: Array) -> Array:
        """See ``Ends``."""
        began_s = time.perf_counter()
        logits = self._ends.logits(hidden)
        took_s = time.perf_counter() - began_s
        self.spent_s += took_s
        self.sampled += len(hidden)
        self._record.heads.append((len(hidden), took_s))
        return logits


class RecordingRing:
    """A ring, timed."""

    def __init__(self, ring: Ring, ends: RecordingEnds, record: Record) -> None:
        self._ring, self._ends, self._record = ring, ends, record
        self.stages = ring.stages
        self._left_s: float | None = None
        self._taken = 0

    def wake_on(self, mailbox: Mailbox[Any]) -> None:
        """See ``Ring``."""
        self._ring.wake_on(mailbox)

    def send(self, step: Send | SendBatch) -> None:
        """See ``Ring``."""
        record = self._record
        rows = len(step.hidden)
        decodes = isinstance(step, SendBatch) or step.want == rows == 1
        positions = sum(step.positions) if isinstance(step, SendBatch) else step.position
        record.alone = not record.sent
        record.row_bytes = step.hidden.nbytes // rows
        record.sent.append((rows, positions, decodes))
        began_s = time.perf_counter()
        self._ring.send(step)
        took_s = time.perf_counter() - began_s
        record.sending_s.append(took_s)
        self._ends.spent_s += took_s

    def poll(self, timeout_s: float) -> list[RingEvent]:
        """See ``Ring``."""
        now_s, record, ends = time.perf_counter(), self._record, self._ends
        if self._left_s is not None and self._taken:
            record.rest.append((self._taken, ends.sampled, max(0.0, now_s - self._left_s - ends.spent_s)))
        events = self._ring.poll(timeout_s)
        self._left_s, self._taken, ends.spent_s, ends.sampled = time.perf_counter(), len(events), 0.0, 0
        for event in events:
            if isinstance(event, Returned):
                self._note(event)
        return events

    def _note(self, event: Returned) -> None:
        record = self._record
        rows, positions, decodes = record.sent.pop(0)
        if decodes and not all(other for *_, other in record.sent):
            return  # a chunk is being computed beside it, on the same machine
        if decodes:
            record.decoded.append((rows, positions, event.compute_s))
            if record.alone and rows == 1:
                record.lone_s.append(event.ring_s - sum(event.compute_s) - record.sending_s[-1])
        else:
            record.prefilled.append((rows, positions, event.compute_s))

    def free(self, sequence: int) -> None:
        """See ``Ring``."""
        self._ring.free(sequence)

    def gauges(self) -> list[Gauge]:
        """See ``Ring``."""
        return self._ring.gauges()

    def close(self) -> None:
        """See ``Ring``."""
        self._ring.close()


class RecordedPipeline(Pipeline):
    """A pipeline that notes what its engine's thread does."""

    def __init__(self, options: PipelineOptions) -> None:
        self.record = Record()
        super().__init__(options)

    def __enter__(self) -> RecordedPipeline:
        return self

    def _open_network(self, endpoints: tuple[Endpoint, ...]) -> tuple[Ring, Ends]:
        ring, ends = super()._open_network(endpoints)
        timed = RecordingEnds(ends, self.record)
        return RecordingRing(ring, timed, self.record), timed


def run(pipeline: RecordedPipeline, requests: int, tokens: int, answer: int, turn: int) -> dict[str, Any]:
    """Ask so many at once and wait for the last token; ``turn`` makes prompts that were not asked before."""
    vocabulary = len(pipeline.tokenizer.vocabulary())
    prompts = [prompt(vocabulary, tokens, 1000 * turn + number) for number in range(requests)]
    options = GenerateOptions(max_tokens=answer, ignore_eos=True)
    asked = [pipeline.engine.submit(ids, options, owner=f"{turn}-{i}") for i, ids in enumerate(prompts)]
    for request in asked:
        arrivals(request)
    began_s = asked[0].timing.submitted_s
    return {
        "arrivals_s": [request.timing.submitted_s - began_s for request in asked],
        "tok_s": requests * answer / (max(request.timing.last_token_s for request in asked) - began_s),
        "ttft_s": statistics.fmean(request.timing.ttft_s for request in asked),
        "decode_tok_s": statistics.fmean(request.timing.decode_tok_s for request in asked),
    }


FIGURES = ("tok_s", "ttft_s", "decode_tok_s")


def checked(model: str, stages: int, at_once: Sequence[int], rounds: int) -> dict[str, Any]:
    """Costs of a real pipeline, and for each number of requests at once what it and the simulation make of them.

    Each round measures the costs anew, so that it is compared with a simulation of the machine as it is then.
    """
    spread = share_cpus(stages, 1)
    fits: list[Replica] = []
    found: dict[int, list[dict[str, Any]]] = {requests: [] for requests in at_once}
    with RecordedPipeline(PipelineOptions(model, stages=stages, threads=1, speculate="off")) as pipeline:
        for stage, cpus in zip(pipeline.stages, spread or (), strict=False):
            pin(stage.pid, cpus)
        run(pipeline, 2, 40, 10, 1)
        for turn in range(rounds):
            pipeline.record.forget()
            for number, setting in enumerate(CALIBRATE):
                run(pipeline, *setting, 1000 * turn + 100 + number)
            fits.append(fitted(pipeline))
            for requests, rows in found.items():
                rows.append(compared(fits[-1], run(pipeline, requests, *CHECK, 1000 * turn + requests)))
            say(f"round {turn + 1} of {rounds}")
    rows = [row(requests, compares) for requests, compares in found.items()]
    errors = [abs(one["error"][name]) for one in rows for name in FIGURES]
    middle = sorted(fits, key=lambda fit: fit.stages[0].decode_s(1, 0))[len(fits) // 2]
    return {
        "rows": rows,
        "median_error": statistics.median(errors),
        "worst_error": max(errors),
        "coordinator_limit_tok_s": {str(batch): limit(middle, batch) for batch in (1, 2, 4)},
        "costs": {"model": model, "stages_measured": stages, **asdict(middle)},
    }


def limit(replica: Replica, rows: int) -> float:
    """Token/s beyond which the coordinator cannot go with micro-batches of so many rows."""
    coordinator = replica.coordinator
    step_s = coordinator.send_s + rows * coordinator.row_s + coordinator.receive_s + coordinator.head_s(rows)
    return rows / step_s


def compared(replica: Replica, real: Mapping[str, Any]) -> dict[str, Any]:
    """One real run beside its simulation."""
    arrivals = [Arrival(at_s, f"owner-{i}", *CHECK) for i, at_s in enumerate(real["arrivals_s"])]
    report = simulate([replica], arrivals)
    rates = [outcome.decode_tok_s for outcome in report.outcomes]
    model = {"tok_s": report.tok_s, "ttft_s": report.ttft_s.mean, "decode_tok_s": Spread.of(rates).mean}
    uses = {"stage_use": report.stage_use, "coordinator_use": report.coordinator_use, "rows": report.rows}
    return {
        "real": {name: real[name] for name in FIGURES},
        "simulated": model | uses,
        "error": {name: model[name] / real[name] - 1 for name in FIGURES},
    }


def row(requests: int, compares: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Medians over the rounds, errors formed within a round, and the spread of the real runs and of the errors."""

    def over(part: str, pick: Callable[[Sequence[float]], Any]) -> dict[str, Any]:
        return {name: pick([one[part][name] for one in compares]) for name in compares[0][part]}

    return {
        "requests": requests,
        **{part: over(part, statistics.median) for part in ("real", "simulated", "error")},
        "spread": over("real", lambda values: [min(values), max(values)]),
        "error_spread": over("error", lambda values: [min(values), max(values)]),
    }


def fitted(pipeline: RecordedPipeline) -> Replica:
    """The pipeline's costs, by least squares over what was recorded."""
    record, stages = pipeline.record, pipeline.stages
    link_s = statistics.median(record.lone_s) / (len(stages) + 1)
    rates = [stage.bytes_s for stage in stages if stage.bytes_s]
    link = LinkCost(max(0.0, link_s), min(rates)) if rates else LinkCost(max(0.0, link_s))
    fixed_s, row_s = solve([(1.0, rows) for rows, _ in record.embedding], [took for _, took in record.embedding])
    taken_s, sampled_s = solve([(taken, rows) for taken, rows, _ in record.rest], [rest for _, _, rest in record.rest])
    head = means([(rows, took + rows * sampled_s) for rows, took in record.heads])
    coordinator = CoordinatorCost(head, statistics.fmean(record.sending_s) + fixed_s, row_s, taken_s)
    return Replica(
        stages=tuple(stage_cost(record, i) for i in range(len(stages))),
        links=(link,) * (len(stages) + 1),
        coordinator=coordinator,
        row_bytes=record.row_bytes,
        chunk=min(stage.chunk for stage in stages),
        context=pipeline.context,
    )


def stage_cost(record: Record, index: int) -> StageCost:
    """One stage's."""
    numbers = often([rows for rows, *_ in record.decoded])
    steps = [step for step in record.decoded if step[0] in numbers]
    columns = [[float(rows == number) for number in numbers] + [positions] for rows, positions, _ in steps]
    *base, look_s = solve(columns, [took[index] for *_, took in steps])
    chunks = [(1.0, tokens, tokens * (before + tokens / 2)) for tokens, before, _ in record.prefilled]
    chunk_s, token_s, back_s = solve(chunks, [took[index] for _, _, took in record.prefilled])
    return StageCost(rising(numbers, base), token_s, chunk_s, look_s, back_s)


def solve(columns: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """Least squares with no weight below 0: what would be is left out."""
    matrix, target = np.asarray(columns, np.float64), np.asarray(values, np.float64)
    use = list(range(matrix.shape[1]))
    while True:
        weights = np.linalg.lstsq(matrix[:, use], target, rcond=None)[0]
        if not len(use) or weights.min() >= 0:
            break
        del use[int(weights.argmin())]
    found = [0.0] * matrix.shape[1]
    for at, weight in zip(use, weights, strict=True):
        found[at] = float(weight)
    return found


def means(samples: Sequence[tuple[int, float]]) -> Curve:
    """The mean seconds by rows."""
    by_rows: defaultdict[int, list[float]] = defaultdict(list)
    for rows, took in samples:
        by_rows[rows].append(took)
    numbers = often([rows for rows, _ in samples])
    return rising(numbers, [statistics.fmean(by_rows[number]) for number in numbers])


def often(rows: Sequence[int]) -> list[int]:
    """The numbers of rows that steps have often enough to tell what they take."""
    return sorted(number for number, times in Counter(rows).items() if times >= LEAST)


def rising(rows: Sequence[int], seconds: Sequence[float]) -> Curve:
    """A curve that does not fall: where it would, neighbours get their mean."""
    pools: list[list[float]] = []
    for value in seconds:
        pools.append([value])
        while len(pools) > 1 and statistics.fmean(pools[-2]) > statistics.fmean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    level = [statistics.fmean(pool) for pool in pools for _ in pool]
    return tuple(zip(rows, level, strict=True))


def costs_of(saved: Mapping[str, Any]) -> Replica:
    """A pipeline from a file of costs."""

    def points(curve: Sequence[Sequence[float]]) -> Curve:
        return tuple((int(rows), float(seconds)) for rows, seconds in curve)

    return Replica(
        stages=tuple(StageCost(**stage | {"decode": points(stage["decode"])}) for stage in saved["stages"]),
        links=tuple(LinkCost(**link) for link in saved["links"]),
        coordinator=CoordinatorCost(**saved["coordinator"] | {"head": points(saved["coordinator"]["head"])}),
        row_bytes=saved["row_bytes"],
        chunk=saved["chunk"],
        context=saved["context"],
    )


def model_of(stages: Sequence[Any]) -> StageCost:
    """All stages' layers on one machine."""
    rows = sorted({number for stage in stages for number, _ in stage.decode})
    return StageCost(
        decode=tuple((number, sum(stage.decode_s(number, 0) for stage in stages)) for number in rows),
        token_s=sum(stage.token_s for stage in stages),
        chunk_s=sum(stage.chunk_s for stage in stages),
        row_position_s=sum(stage.row_position_s for stage in stages),
        token_position_s=sum(stage.token_position_s for stage in stages),
    )


def table_of_check(result: Mapping[str, Any]) -> Iterator[str]:
    """Real and simulated, for people."""
    yield f"{'requests':>8}  {'figure':12}{'real (spread)':>26}{'simulated':>11}{'error (spread)':>24}"
    for one in result["rows"]:
        for name in FIGURES:
            low, high = one["spread"][name]
            real = f"{one['real'][name]:.4g} ({low:.3g}-{high:.3g})"
            low, high = one["error_spread"][name]
            error = f"{one['error'][name]:+.1%} ({low:+.0%} to {high:+.0%})"
            yield f"{one['requests']:8}  {name:12}{real:>26}{one['simulated'][name]:11.4g}{error:>24}"
    yield f"error: median {result['median_error']:.1%}, worst {result['worst_error']:.1%}"
    limits = ", ".join(f"{rows}: {tok_s:.0f}" for rows, tok_s in result["coordinator_limit_tok_s"].items())
    yield f"the coordinator's limit in token/s by rows a micro-batch: {limits}"
