"""Predicted speed of a pipeline: decode, prefill and first token from a model's sizes, machines and links.

Pure: no socket, no clock. Units are seconds, bytes/s and FLOP/s. The model:

- A stage reads its weights once per step, and the KV cache of every sequence; rows add arithmetic (``costs``).
- B requests travel as at most one micro-batch per stage, as ``engine.scheduler`` makes them. A cycle, in which each
  request gains one token, takes the longer of the round trip of one micro-batch and of the work of the busiest machine
  or link for all micro-batches. Processes that share a machine (stages and coordinator) overlap on the lanes of the
  machine. If a machine has more processes than lanes, they wait as customers of a queue, and a cycle is never shorter
  than the seconds of all processes divided by the lanes. Processes that overlap are slower by the machine's contention.
- The chunks of a prompt follow each other. Each waits for a free link, a free stage, a free lane of the stage's machine
  and room in the ring.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from edgepp.engine.scheduler import MAX_ROWS, SPARE_CHUNKS
from edgepp.errors import PlanError
from edgepp.layer_range import check_tiling
from edgepp.placement.values import Links
from edgepp.plan.costs import Costs, StageTime
from edgepp.plan.machines import Machine, Model, Stage, Workload


@dataclass(frozen=True)
class Decode:
    """Prediction for ``requests`` requests that decode at the same time."""

    requests: int
    micro_batches: int
    stages: tuple[StageTime, ...]
    """Times of the largest micro-batch."""
    ends_s: float
    """Seconds at the coordinator: embedding, norm, head, sampling."""
    return_s: float
    """Seconds of the hop back to the coordinator."""
    tpot_s: float
    """Seconds between two tokens of one request."""
    limit: str
    """Bound of the cycle: ``round trip`` of one micro-batch, the name of a machine, or ``link N``."""

    @property
    def tokens_per_s(self) -> float:
        """Tokens/s of all requests together."""
        return self.requests / self.tpot_s

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of one micro-batch's round trip, by part."""
        return {
            "weights": sum(stage.weights_s for stage in self.stages),
            "KV": sum(stage.kv_s for stage in self.stages),
            "FLOPs": sum(stage.arithmetic_s for stage in self.stages),
            "wire": sum(stage.wire_s for stage in self.stages) + self.return_s,
            "overhead": sum(stage.overhead_s for stage in self.stages),
            "sums": sum(stage.sums_s for stage in self.stages),
            "ends": self.ends_s,
        }


@dataclass(frozen=True)
class Prefill:
    """Prediction for one prompt in an idle pipeline."""

    tokens: int
    chunk: int
    stages: tuple[StageTime, ...]
    """Times of all chunks together."""
    ttft_s: float
    """Seconds until the first token is sampled."""

    @property
    def tokens_per_s(self) -> float:
        """Prompt tokens per second."""
        return self.tokens / self.ttft_s


@dataclass(frozen=True)
class Prediction:
    """The predicted speed of a pipeline."""

    prefill: Prefill
    decode: tuple[Decode, ...]
    """One for each number of requests of the workload, in rising order."""

    @property
    def one(self) -> Decode:
        """Decoding with the fewest requests."""
        return self.decode[0]

    def answer_s(self, workload: Workload) -> float:
        """Seconds from the request to its last token, with the fewest requests at the same time."""
        return self.prefill.ttft_s + (workload.answer - 1) * self.one.tpot_s


def predict(
    model: Model, stages: Sequence[Stage], links: Links, workload: Workload, coordinator: Machine | None = None
) -> Prediction:
    """The speed of ``stages`` in pipeline order; the default coordinator is the first stage's machine.

    ``links`` are by node names, in either order; a missing link counts as ``UNKNOWN_LINK``.

    Raises:
        PlanError: the stages do not make up the model, or the workload is empty.
    """
    check_tiling([stage.layers for stage in stages], model.size.layers)
    chunk = 1 if workload.chunk is None else workload.chunk
    if not workload.requests or min(workload.prompt, workload.answer, *workload.requests, chunk) < 1:
        raise PlanError("a prediction needs a prompt, an answer and requests of at least 1")
    costs = Costs(model, stages, links, coordinator or stages[0].machine)
    decode = tuple(_decode(costs, count, workload.position) for count in sorted(workload.requests))
    return Prediction(_prefill(costs, workload.prompt, workload.chunk or costs.chunk()), decode)


def _decode(costs: Costs, requests: int, position: int) -> Decode:
    """One cycle, in which each of ``requests`` gains a token."""
    stages = len(costs.stages)
    rows = min(-(-requests // stages), MAX_ROWS)
    batches = -(-requests // rows)
    costs = costs.shared_by(batches)
    times = _step(costs, rows, position)
    ends_s, return_s = costs.ends_s(rows), costs.hop_s(stages, rows)
    path_s = sum(time.busy_s + time.wire_s for time in times) + return_s + ends_s
    last = requests - rows * (batches - 1)
    full, rest = (_work(costs, _step(costs, size, position), costs.ends_s(size)) for size in (rows, last))
    waits_s = {machine.node: _waits_s(machine, full[machine.node], path_s, batches) for machine in costs.machines}
    longest = max(waits_s, key=lambda node: waits_s[node])
    round_s = (path_s + sum(waits_s.values())) * max(1.0, batches / stages)
    bounds = [(round_s, longest if waits_s[longest] else "round trip")]
    bounds += [(costs.transfer_s(hop, requests), f"link {hop}") for hop in range(stages + 1)]
    for machine in costs.machines:
        busy = [(batches - 1) * a + b for a, b in zip(full[machine.node], rest[machine.node], strict=True)]
        bounds.append((max(max(busy), sum(busy) / machine.lanes), machine.node))
    cycle_s, limit = max(bounds, key=lambda bound: bound[0])
    return Decode(requests, batches, times, ends_s, return_s, cycle_s, limit)


def _waits_s(machine: Machine, work: Sequence[float], path_s: float, batches: int) -> float:
    """Seconds per cycle for which a micro-batch waits for a lane of ``machine``.

    ``work`` has the seconds of each process of the machine for one micro-batch.

    Mean value analysis of a closed queueing network (Reiser and Lavenberg 1980). The lanes count as one server of the
    same total speed and a delay (Seidmann, Schweitzer and Shalev-Oren 1987). Measured with two lanes. With one lane, or
    one per process, the pipeline itself brings work in order, so there is no wait.
    """
    if not 1 < machine.lanes < len(work):
        return 0.0
    served_s = sum(work) / machine.lanes
    cycle_s, queue = path_s, 0.0
    for count in range(1, batches + 1):
        there_s = served_s * (1 + queue)
        cycle_s = path_s - served_s + there_s
        queue = count * there_s / cycle_s
    return cycle_s - path_s


def _step(costs: Costs, rows: int, position: int) -> tuple[StageTime, ...]:
    """Times of one micro-batch on each stage."""
    return tuple(costs.stage_s(i, rows, rows * position, rows * position) for i in range(len(costs.stages)))


def _work(costs: Costs, times: Sequence[StageTime], ends_s: float) -> dict[str, list[float]]:
    """By node, the seconds for which each of its processes works on one micro-batch, the coordinator last."""
    work: dict[str, list[float]] = defaultdict(list)
    for hop, time in enumerate(times):
        work[time.node].append(time.busy_s + costs.software_s(hop))
    work[costs.coordinator.node].append(ends_s + costs.software_s(len(times)))
    return work


def _prefill(costs: Costs, prompt: int, chunk: int) -> Prefill:
    """A prompt's chunks, each started as soon as its link, its stage, a lane of the machine and the ring have room."""
    count = len(costs.stages)
    starts = range(0, prompt, chunk)
    costs = costs.shared_by(min(count, len(starts)))
    link_free, stage_free = [0.0] * count, [0.0] * count
    lanes = {machine.node: [0.0] * machine.lanes for machine in costs.machines}
    times: list[list[StageTime]] = [[] for _ in costs.stages]
    last_s = 0.0
    heap: list[tuple[float, int, int]] = []

    def send(number: int, stage: int, at: float) -> None:
        """Put a chunk on the link into a stage."""
        rows = min(chunk, prompt - starts[number])
        link_free[stage] = max(at, link_free[stage]) + costs.transfer_s(stage, rows)
        heapq.heappush(heap, (link_free[stage] + costs.delay_s(stage), number, stage))

    for number in range(min(len(starts), count + SPARE_CHUNKS)):
        send(number, 0, 0.0)
    while heap:
        at, number, stage = heapq.heappop(heap)
        free = lanes[costs.stages[stage].machine.node]
        begin = max(at, stage_free[stage], free[0])
        if begin > at:
            heapq.heappush(heap, (begin, number, stage))
            continue
        start = starts[number]
        rows = min(chunk, prompt - start)
        time = costs.stage_s(stage, rows, start + rows, rows * (start + rows / 2))
        times[stage].append(time)
        stage_free[stage] = end = begin + time.busy_s
        heapq.heapreplace(free, end)
        if stage + 1 < count:
            send(number, stage + 1, end)
            continue
        last_s = end + costs.delay_s(count)
        if number + count + SPARE_CHUNKS < len(starts):
            send(number + count + SPARE_CHUNKS, 0, last_s)
    totals = tuple(_sum_of(some) for some in times)
    return Prefill(prompt, chunk, totals, last_s + costs.transfer_s(count, 1) + costs.ends_s(1))


def _sum_of(times: Sequence[StageTime]) -> StageTime:
    """All steps of one stage as one."""
    return StageTime(
        node=times[0].node,
        layers=times[0].layers,
        weights_s=sum(time.weights_s for time in times),
        kv_s=sum(time.kv_s for time in times),
        arithmetic_s=sum(time.arithmetic_s for time in times),
        wire_s=sum(time.wire_s for time in times),
        overhead_s=sum(time.overhead_s for time in times),
        busy_s=sum(time.busy_s for time in times),
        sums_s=sum(time.sums_s for time in times),
    )
