"""Rig of a measurement: stage processes behind links, an engine that uses them, and a record of every step."""

from __future__ import annotations

import itertools
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.toolkit.figures import prompt
from bench.toolkit.local import arrivals, stage_processes
from bench.toolkit.quiet import Quiet
from bench.toolkit.recording import Recorder, StepTrip
from bench.toolkit.slow_link import SlowLink
from edgepp import backend
from edgepp.backend.base import BackendOptions
from edgepp.engine.engine_request import EngineRequest
from edgepp.engine.engine_thread import EngineParts
from edgepp.engine.loop import EngineLoop
from edgepp.engine.network_ring import NetworkRing
from edgepp.engine.plan_check import Expectation
from edgepp.engine.request import GenerateOptions
from edgepp.engine.stage_handshake import Endpoint
from edgepp.errors import EdgeppError
from edgepp.layer_range import split_evenly
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.stage_process.compute_policy import physical_cores

_POLL_S = 0.02
_MAX_JOINING_TOKENS = 800
"""Greatest number of tokens of the first request before the prompt of the last request is computed."""
_turns = itertools.count()


@dataclass(frozen=True)
class SteadyDecode:
    """Decoding of several requests together, from the second token of the last request on."""

    trips: tuple[StepTrip, ...]
    tokens_per_s: float
    """Rate of all requests together."""
    position: int
    """Mean position of a row during the measurement."""

    @property
    def compute_s(self) -> float:
        """Median over steps of the computing time of all stages."""
        return statistics.median(sum(trip.returned.compute_s) for trip in self.trips)

    @property
    def wire_s(self) -> float:
        """Median over steps of the rest of the round trip: hops, and waiting for busy stages."""
        return statistics.median(trip.wire_s for trip in self.trips)


class Rig:
    """Stages, a link of one kind at every hop, and an engine. A context manager."""

    def __init__(
        self,
        folder: Path,
        stages: int,
        link: SlowLink,
        threads: int,
        backend_name: str,
        quiet: Quiet,
        *,
        awake: bool | None = None,
    ) -> None:
        """``awake`` says whether stages spin while they wait; None: as in a pipeline."""
        self.folder, self.threads, self.backend_name = folder, threads, backend_name
        self.checkpoint = Checkpoint.open(folder)
        self.others = 0.0
        """Cores that other programs used during the last measurement."""
        self._quiet = quiet
        self._owned = ExitStack()
        self._recorder: Recorder | None = None
        try:
            layers = split_evenly(self.checkpoint.num_layers, stages)
            awake = threads * stages <= physical_cores() if awake is None else awake
            self.addresses = self._owned.enter_context(
                stage_processes(folder, layers, link, threads=threads, backend_name=backend_name, awake=awake)
            )
            self.engine = self._owned.enter_context(EngineLoop(self._open, frozenset()))
        except BaseException:
            self._owned.close()
            raise

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        self._owned.close()

    @property
    def trips(self) -> list[StepTrip]:
        """All steps so far."""
        assert self._recorder is not None
        return self._recorder.trips

    def first_token_s(self, tokens: int, *, alone: bool = True) -> tuple[float, list[StepTrip]]:
        """Seconds from a prompt to its first token in the idle engine, and the steps of the prompt.

        ``alone`` says that no other rig is working.
        """
        if not alone:
            return self._first_token_s(tokens)
        found, self.others = self._quiet.measure(lambda: self._first_token_s(tokens))
        return found

    def _first_token_s(self, tokens: int) -> tuple[float, list[StepTrip]]:
        began = len(self.trips)
        request = self._submit(tokens, 1)
        arrivals(request)
        return request.timing.first_token_s - request.timing.submitted_s, self.trips[began:]

    def steady(self, requests: int, tokens: int, cycles: int) -> SteadyDecode:
        """Decode ``requests`` requests with prompts of ``tokens`` together until each has made ``cycles`` steps."""
        found, self.others = self._quiet.measure(lambda: self._steady(requests, tokens, cycles))
        return found

    def _steady(self, requests: int, tokens: int, cycles: int) -> SteadyDecode:
        room = min(self.checkpoint.context - tokens, cycles + _MAX_JOINING_TOKENS)
        submitted = [self._submit(tokens, room) for _ in range(requests)]
        try:
            trips = self._together(submitted, cycles)
        finally:
            for request in submitted:
                self.engine.cancel(request)
            for request in submitted:
                arrivals(request)
        times: dict[int, list[float]] = defaultdict(list)
        for trip in trips:
            for sequence in trip.returned.sequences:
                times[sequence].append(trip.back_s)
        rate = sum((len(one) - 1) / (one[-1] - one[0]) for one in times.values())
        positions = [at for trip in trips for at in trip.positions]
        return SteadyDecode(tuple(trips), rate, round(statistics.fmean(positions)))

    def _together(self, submitted: Sequence[EngineRequest], cycles: int) -> list[StepTrip]:
        """Decode steps from the second token of the last request on."""
        for request in submitted:
            _await_token(request)
        began_s = max(request.timing.first_token_s for request in submitted)
        wanted = cycles * len(submitted)
        while True:
            trips = [trip for trip in self.trips if trip.sent_s > began_s]
            if sum(len(trip.returned.sequences) for trip in trips) >= wanted + len(submitted):
                return trips
            if self.engine.lost is not None:
                raise self.engine.lost
            if any(request.tokens == request.options.max_tokens for request in submitted):
                raise EdgeppError("a request ended before enough steps were measured", "give fewer --cycles")
            time.sleep(_POLL_S)

    def _submit(self, tokens: int, generate: int) -> EngineRequest:
        turn = next(_turns)
        ids = prompt(self.checkpoint.vocab_size, tokens, turn)
        return self.engine.submit(ids, GenerateOptions(generate, ignore_eos=True), owner=str(turn))

    def _open(self) -> EngineParts:
        checkpoint = self.checkpoint
        expected = Expectation(
            str(self.folder), checkpoint.fingerprint, checkpoint.num_layers, checkpoint.hidden_size, exact=False
        )
        endpoints = [Endpoint((address,)) for address in self.addresses]
        self._recorder = Recorder(NetworkRing(endpoints, expected, platform.node(), ("none",)))
        chosen = backend.choose(self.backend_name, checkpoint)
        return EngineParts(
            self._recorder, chosen.load_embedding_and_head(checkpoint, BackendOptions(threads=self.threads))
        )


def _await_token(request: EngineRequest) -> None:
    event = request.events.get()
    if isinstance(event, EdgeppError):
        raise event
