"""An engine whose requests are traced, as the product traces them, and the parts of each decode step.

Each decode step is cut without a gap: from the sending of one token's hidden state to the sending of the next one's.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.toolkit.hop_variants import Rehearsal, rehearse_in, restless_processors
from bench.toolkit.local import arrivals
from bench.toolkit.processors import pin_stages
from bench.toolkit.rehearsing_stage import stage_command
from bench.toolkit.side_program import Config, RunRates, rates
from edgepp.engine import network_ring
from edgepp.engine.engine_thread import EngineParts
from edgepp.engine.network_ring import NetworkRing
from edgepp.engine.pipeline import Pipeline
from edgepp.engine.pipeline_options import PipelineOptions
from edgepp.engine.request import GenerateOptions
from edgepp.node import stage_handle
from edgepp.stage_process.compute_policy import ComputePolicy
from edgepp.tracing.request_trace import RequestTrace, StepTrace
from edgepp.wire.frame_marks import stage_marks

Parts = dict[str, float]
"""Microseconds of one decode step by part."""


class _RehearsingPipeline(Pipeline):
    """A pipeline whose engine thread rehearses the handling of a frame while it waits."""

    def _open_parts(self, endpoints: tuple[Any, ...]) -> EngineParts:
        parts = super()._open_parts(endpoints)
        if isinstance(parts.ring, NetworkRing):
            rehearsal = Rehearsal(parts.ring._context)
            rehearse_in(network_ring, [rehearsal])
            self._owned.callback(rehearsal.close)
        return parts


class TracedEngine:
    """A pipeline, or one process, whose runs have the median time of each part of a decode step."""

    def __init__(self, config: Config) -> None:
        self._variant = config["variant"]
        if self._variant == "rehearsed":
            changed: Any = stage_handle
            changed.python_command = stage_command
        if self._variant == "asleep":
            _let_the_engine_sleep()
        stages, threads = config["stages"], config["threads"]
        options = PipelineOptions(
            config["model"], stages=stages, threads=threads, backend=config["backend"], speculate="off"
        )
        self._owned = ExitStack()
        kind = _RehearsingPipeline if self._variant == "rehearsed" else Pipeline
        self._pipeline = self._owned.enter_context(kind(options))
        self._threads = {"coordinator": os.getpid()}
        if stages is not None:
            if self._variant == "pinned":
                pin_stages(self._pipeline.stages, threads)
            self._threads |= {f"stage {stage.index}": stage.pid for stage in self._pipeline.stages}
        self.about: Mapping[str, Any] = {"version": version("edgepp")}

    def run(self, prompt: Sequence[int], generate: int) -> RunRates:
        """Answer ``prompt`` with exactly ``generate`` greedy tokens."""
        with restless_processors() if self._variant == "restless" else nullcontext():
            return self._run(prompt, generate)

    def _run(self, prompt: Sequence[int], generate: int) -> RunRates:
        before = {name: thread_times(pid) for name, pid in self._threads.items()}
        trace = RequestTrace("measured", time.perf_counter())
        request = self._pipeline.engine.submit(
            prompt, GenerateOptions(max_tokens=generate, ignore_eos=True), trace=trace
        )
        arrivals(request)
        timing = request.timing
        after = {name: thread_times(pid) for name, pid in self._threads.items()}
        result = rates(len(prompt), generate, timing.submitted_s, timing.first_token_s, timing.last_token_s)
        decoded = [step for step in trace.steps if step.kind == "decode"]
        heads = [(one.began_s, one.ended_s) for one in trace.spans if one.name == "head"][1:]  # not the prompt's
        assert len(decoded) == len(heads) == generate - 1
        parts = [
            parts_of(step, following, ended_s - began_s)
            for step, following, (began_s, ended_s) in zip(decoded, decoded[1:], heads, strict=False)
        ]
        spent = {name: spent_us(before[name], after[name], len(trace.steps)) for name in self._threads}
        return result | {"parts_us": medians_of(parts), "threads_us": spent}

    def close(self) -> None:
        """Release everything."""
        self._owned.close()


def _let_the_engine_sleep() -> None:
    coordinator = ComputePolicy.coordinator

    def asleep(threads: int, processes: int) -> ComputePolicy | None:
        own = coordinator(threads, processes)
        return None if own is None else replace(own, awake=False)

    changed: Any = ComputePolicy
    changed.coordinator = asleep


def parts_of(step: StepTrace, following: StepTrace, head_s: float) -> Parts:
    """Microseconds of each part of one step, which add up to the time until the ``following`` step is sent.

    ``send`` of the coordinator and of a stage: encoding and checksum; ``wire``: from there, the header included, until
    the frame is taken from the socket; ``receive``: from there until computing begins. All on one machine, so on one
    clock.
    """
    parts: Parts = {"coordinator send": (step.sent_s - step.embedded_s) * 1e6}
    left_us = step.sent_s * 1e6
    for i, marks in enumerate(stage_marks(step.marks)):
        parts[f"wire {i}"] = marks.received_us - left_us
        parts[f"stage {i} receive"] = marks.begun_us - marks.received_us
        parts[f"stage {i} compute"] = marks.computed_us - marks.begun_us
        parts[f"stage {i} send"] = marks.encoded_us - marks.computed_us
        left_us = marks.encoded_us
    parts["wire back"] = step.received_s * 1e6 - left_us
    parts["coordinator receive"] = (step.back_s - step.received_s) * 1e6
    parts["head"] = head_s * 1e6
    parts["embed"] = (following.embedded_s - following.embed_s) * 1e6
    token_us = (following.embedded_s - step.embedded_s) * 1e6
    parts["coordinator rest"] = token_us - sum(parts.values())
    parts["token"] = token_us
    return parts


def medians_of(rows: Sequence[Parts]) -> Parts:
    """Median of each part."""
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def thread_times(pid: int) -> dict[tuple[str, int], tuple[int, int]]:
    """For each thread of a process by name and id: nanoseconds on a processor, and of waiting for one; Linux only."""
    found: dict[tuple[str, int], tuple[int, int]] = {}
    tasks = Path(f"/proc/{pid}/task")
    for thread in tasks.iterdir() if tasks.exists() else ():
        with suppress(OSError):  # a thread that has ended, or a system that does not count
            name = (thread / "comm").read_text(encoding="utf-8").strip()
            ran, waited, _ = (thread / "schedstat").read_text(encoding="ascii").split()
            found["main" if int(thread.name) == pid else name, int(thread.name)] = int(ran), int(waited)
    return found


def spent_us(
    before: Mapping[tuple[str, int], tuple[int, int]], after: Mapping[tuple[str, int], tuple[int, int]], steps: int
) -> dict[str, list[float]]:
    """For each name of threads: microseconds per step on a processor, and of waiting for one although it could run."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for key, times in after.items():
        for i, earlier in enumerate(before.get(key, (0, 0))):
            sums[key[0]][i] += (times[i] - earlier) / 1e3 / steps
    return {name: times for name, times in sums.items() if sum(times) >= 1.0}
