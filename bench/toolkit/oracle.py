"""Oracle draft: guesses from a recorded answer, of which a seeded share is wrong, as a bound of the gain of guesses.

The guesses cost no computing, so what an answer gains or loses is the work of the pipeline alone.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from bench.toolkit.local import arrivals
from bench.toolkit.processors import pin_stages
from bench.toolkit.side_program import RunRates, rates
from edgepp.benchmark.workload import decode_step
from edgepp.engine.engine_request import EngineRequest
from edgepp.engine.engine_thread import EngineParts
from edgepp.engine.pipeline import Pipeline
from edgepp.engine.pipeline_options import PipelineOptions
from edgepp.engine.request import GenerateOptions
from edgepp.engine.speculation import Draft
from edgepp.engine.stage_handshake import Endpoint
from edgepp.wire.address import Address


class OracleDraft:
    """Guesses of one request from its ``answer`` of an earlier run. Implements ``Draft``."""

    def __init__(self, text: Sequence[int], prompt_tokens: int, acceptance: float, seed: int) -> None:
        """``text`` is prompt and answer; the share 1 - ``acceptance`` of the answer's tokens is guessed wrong.

        Wrong guesses are spread by chance, and their number is exact.
        """
        answer = range(prompt_tokens, len(text))
        wrong = random.Random(seed).sample(answer, round((1 - acceptance) * len(answer)))  # noqa: S311 - not a secret
        self._guesses = list(text)
        for position in wrong:
            self._guesses[position] ^= 1  # another token of the vocabulary, which has an even number of them

    def propose(self, ids: Sequence[int], max_guesses: int) -> Sequence[int]:
        """At most ``max_guesses`` guesses of the tokens after ``ids``."""
        return self._guesses[len(ids) : len(ids) + max_guesses]

    def close(self) -> None:
        """Do nothing: the draft has no resources."""


class OraclePipeline(Pipeline):
    """A pipeline whose guesses come from ``next_draft``."""

    next_draft: OracleDraft
    """The draft of the next request, to be set before it is submitted."""

    def _open_parts(self, endpoints: tuple[Endpoint, ...]) -> EngineParts:
        return replace(super()._open_parts(endpoints), draft=self._take_draft)

    def _take_draft(self, _owner: str) -> Draft:
        return self.next_draft


class OracleEngine:
    """Two pipelines over the same stage processes, without guesses and with an oracle's. A ``MeasuredEngine``."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Start the stages; ``config`` has the names of ``side_program.EdgeppEngine``, and ``exact``."""
        self._owned = ExitStack()
        options = PipelineOptions(
            config["model"],
            stages=config["stages"],
            threads=config["threads"],
            backend=config["backend"],
            exact=config["exact"],
            speculate="off",
        )
        try:
            self._plain = self._owned.enter_context(Pipeline(options))
            endpoints = tuple(Endpoint((Address.parse(stage.address),)) for stage in self._plain.stages)
            self._guessing = OraclePipeline(
                replace(options, stages=None, endpoints=endpoints), frontend=self._plain.frontend
            )
            self._owned.callback(self._guessing.close)
        except BaseException:
            self._owned.close()
            raise
        self.about: Mapping[str, Any] = {
            "version": version("edgepp"),
            "pinned": pin_stages(self._plain.stages, config["threads"]),
        }
        self._runs = 0
        self._recorded: list[int] = []

    def run(self, prompt: Sequence[int], generate: int, acceptance: float | None = None) -> RunRates:
        """Answer ``prompt`` with ``generate`` greedy tokens: without guesses, or by the oracle of the answer before.

        The result has ``rates``, and without guesses the parts of a step; with guesses the numbers of
        guesses and of tokens drawn behind the first one, and whether the tokens are ``equal`` to those without.
        """
        pipeline: Pipeline = self._plain
        if acceptance is not None:
            self._guessing.next_draft = OracleDraft(self._recorded, len(prompt), acceptance, self._runs)
            pipeline = self._guessing
        self._runs += 1
        options = GenerateOptions(max_tokens=generate, ignore_eos=True)
        request = pipeline.engine.submit(prompt, options, owner=str(self._runs))
        arrivals(request)
        timing = request.timing
        result = rates(len(prompt), generate, timing.submitted_s, timing.first_token_s, timing.last_token_s)
        if acceptance is None:
            self._recorded = list(request.ids)
            step = decode_step(timing)
            parts = {"stages": step.stages_ms, "wire": step.wire_ms, "coordinator": step.coordinator_ms}
            return result | {"step_ms": parts}
        return result | self._guessed(request)

    def _guessed(self, request: EngineRequest) -> RunRates:
        timing = request.timing
        return {
            "drawn": timing.tokens - 1,
            "guessed": timing.guessed,
            "right": timing.right,
            "equal": request.ids == self._recorded,
        }

    def close(self) -> None:
        """Close the pipelines and end the stages."""
        self._owned.close()
