"""How fast a pipeline will be: decode, prefill and first token from a model's sizes, machines and links.

Pure: no socket, no clock. Seconds, bytes/s, FLOP/s. The model, in short:

- A stage streams its weights once a step, and reads every sequence's KV caches; rows add arithmetic (``costs``).
- B requests travel as at most one micro-batch a stage, as ``engine.scheduler`` makes them. A cycle, in which each
  request gains one token, takes the longer of one micro-batch's whole way round and of what the busiest machine or link
  has to do for all of them.
- A prompt goes in chunks that follow each other; each waits for a free link, a free stage and room in the ring.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgepp.cluster.sizes import Links
from edgepp.engine.scheduler import MOST_ROWS
from edgepp.errors import PlanError
from edgepp.layers import check_tiling
from edgepp.plan.costs import Costs, StageTime
from edgepp.plan.machines import Machine, Model, Stage, Workload

_SPARE_CHUNKS = 2
"""The scheduler's chunks in the ring beyond one a stage."""


@dataclass(frozen=True)
class Decode:
    """So many requests decoding at once."""

    requests: int
    micro_batches: int
    stages: tuple[StageTime, ...]
    """Of the largest micro-batch."""
    ends_s: float
    """The coordinator's: embedding, norm, head, sampling."""
    return_s: float
    """The hop back to the coordinator."""
    tpot_s: float
    """Seconds between two tokens of one request."""
    limit: str
    """What sets the cycle: ``way`` for one micro-batch's whole way, else the busiest machine or link."""

    @property
    def tokens_s(self) -> float:
        """Tokens/s of all requests together."""
        return self.requests / self.tpot_s

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of one micro-batch's way round by what they go into."""
        return {
            "weights": sum(stage.weights_s for stage in self.stages),
            "KV": sum(stage.kv_s for stage in self.stages),
            "FLOPs": sum(stage.flops_s for stage in self.stages),
            "wire": sum(stage.wire_s for stage in self.stages) + self.return_s,
            "overhead": sum(stage.overhead_s for stage in self.stages),
            "ends": self.ends_s,
        }


@dataclass(frozen=True)
class Prefill:
    """One prompt through an idle pipeline."""

    tokens: int
    chunk: int
    stages: tuple[StageTime, ...]
    """Of all chunks together."""
    ttft_s: float
    """Until the first token is sampled."""

    @property
    def tokens_s(self) -> float:
        """Prompt tokens a second."""
        return self.tokens / self.ttft_s


@dataclass(frozen=True)
class Prediction:
    """What a pipeline will do."""

    prefill: Prefill
    decode: tuple[Decode, ...]
    """One for each number of requests that was asked for."""

    @property
    def one(self) -> Decode:
        """The fewest requests at once."""
        return self.decode[0]

    def answer_s(self, workload: Workload) -> float:
        """Seconds from question to last token, of one request alone."""
        return self.prefill.ttft_s + (workload.answer - 1) * self.one.tpot_s


def predict(
    model: Model, stages: Sequence[Stage], links: Links, workload: Workload, coordinator: Machine | None = None
) -> Prediction:
    """What ``stages`` in pipeline order will do; the coordinator is the first stage's machine unless another is given.

    ``links`` by node names, in either order; what is not in it counts as ``UNKNOWN_LINK``.

    Raises:
        PlanError: the stages do not make up the model, or nothing is asked of them.
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
    rows = min(-(-requests // stages), MOST_ROWS)
    batches = -(-requests // rows)
    times = tuple(costs.stage_s(i, rows, rows * position, rows * position) for i in range(stages))
    ends_s, return_s = costs.ends_s(rows), costs.hop_s(stages, rows)
    way_s = sum(time.busy_s + time.wire_s for time in times) + return_s + ends_s
    bounds = {"way": way_s * max(1.0, batches / stages)}
    for hop in range(stages + 1):
        bounds[f"link {hop}"] = batches * costs.transfer_s(hop, rows)
    for machine, busy in _busy(costs, times, ends_s):
        bounds[machine.node] = batches * max(max(busy), sum(busy) / machine.lanes)
    limit = max(bounds, key=lambda name: bounds[name])
    return Decode(requests, batches, times, ends_s, return_s, bounds[limit], limit)


def _busy(costs: Costs, times: Sequence[StageTime], ends_s: float) -> Iterator[tuple[Machine, list[float]]]:
    """Each machine, and the seconds that each of its processes works on one micro-batch."""
    machines = {stage.machine.node: stage.machine for stage in costs.stages}
    machines.setdefault(costs.coordinator.node, costs.coordinator)
    for node, machine in machines.items():
        ends = [ends_s] if node == costs.coordinator.node else []
        yield machine, [*(time.busy_s for time in times if time.node == node), *ends]


def _prefill(costs: Costs, prompt: int, chunk: int) -> Prefill:
    """A prompt's chunks, each as soon as its link, its stage and the ring have room."""
    count = len(costs.stages)
    link_free, stage_free = [0.0] * count, [0.0] * count
    times: list[list[StageTime]] = [[] for _ in costs.stages]
    back: list[float] = []
    for number, start in enumerate(range(0, prompt, chunk)):
        rows = min(chunk, prompt - start)
        room = number - count - _SPARE_CHUNKS
        at = back[room] if room >= 0 else 0.0
        for i in range(count):
            time = costs.stage_s(i, rows, start + rows, rows * (start + rows / 2))
            link_free[i] = max(at, link_free[i]) + costs.transfer_s(i, rows)
            stage_free[i] = at = max(link_free[i] + costs.delay_s(i), stage_free[i]) + time.busy_s
            times[i].append(time)
        back.append(at + costs.delay_s(count))
    totals = tuple(_together(some) for some in times)
    last_s = max([back[-1], *(sum(busy) / machine.lanes for machine, busy in _busy(costs, totals, 0.0))])
    return Prefill(prompt, chunk, totals, last_s + costs.transfer_s(count, 1) + costs.ends_s(1))


def _together(times: Sequence[StageTime]) -> StageTime:
    """All steps of one stage as one."""
    return StageTime(
        node=times[0].node,
        layers=times[0].layers,
        weights_s=sum(time.weights_s for time in times),
        kv_s=sum(time.kv_s for time in times),
        flops_s=sum(time.flops_s for time in times),
        wire_s=sum(time.wire_s for time in times),
        overhead_s=sum(time.overhead_s for time in times),
        busy_s=sum(time.busy_s for time in times),
    )
