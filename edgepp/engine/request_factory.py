"""Requests made from prompts and options, checked before the engine takes them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgepp.engine.constrained_decoding import Matcher
from edgepp.engine.engine_request import EngineRequest
from edgepp.engine.request import Constraint, GenerateOptions
from edgepp.engine.request_isolation import token_ids
from edgepp.engine.ring import StageInfo
from edgepp.engine.sampling import Sampler
from edgepp.engine.timing import StageTimes, Timing
from edgepp.errors import UsageError

Compile = Callable[[Constraint, str], Matcher]
"""Makes a matcher for a request of an owner."""


@dataclass(frozen=True)
class RequestLimits:
    """What bounds a request: the stages that are to compute it, and the rows of the model's embedding."""

    stages: tuple[StageInfo, ...]
    vocabulary: int

    @property
    def context(self) -> int:
        """Positions that one request may take at most: prompt and answer."""
        return min(stage.context for stage in self.stages)


class RequestFactory:
    """Makes the requests of one engine. Safe from any thread."""

    def __init__(self, eos: frozenset[int], budget: int | None, compiler: Compile | None) -> None:
        """``eos`` holds the token ids that end an answer; all sequences together hold at most ``budget`` positions.

        ``compiler`` makes the matchers of constrained requests.
        """
        self._eos = eos
        self._budget = budget
        self.compiler = compiler
        self._ids = itertools.count(1)

    def make(self, prompt: Sequence[int], options: GenerateOptions, owner: str, limits: RequestLimits) -> EngineRequest:
        """A request of ``owner``, whose constraint is compiled.

        Raises:
            UsageError: the prompt is empty or holds ids that the model does not have, prompt and answer do not fit into
                the context or the budget, or the constraint is invalid.
            Overloaded: many other constraints of the owner wait to be compiled.
        """
        self._check_size(len(prompt), options.max_tokens, limits.context)
        ids = token_ids(prompt, limits.vocabulary)
        options.sampling.check_bias(limits.vocabulary)
        return EngineRequest(
            id=next(self._ids),
            owner=owner,
            ids=ids,
            prompt_tokens=len(prompt),
            max_tokens=options.max_tokens,
            options=options,
            eos=frozenset() if options.ignore_eos else self._eos,
            timing=Timing(time.perf_counter(), stages=[StageTimes() for _ in limits.stages]),
            sampler=Sampler(options.sampling, self._matcher(options, owner)),
            stages=limits.stages,
            shares=options.prompt_logprobs is None,
        )

    def _check_size(self, prompt: int, answer: int, context: int) -> None:
        if not prompt:
            raise UsageError("the prompt is empty", "say something")
        needed = prompt + answer
        if self._budget is not None and needed > self._budget:
            raise UsageError(
                f"a prompt of {prompt} tokens and an answer of {answer} need {needed} positions of KV cache,"
                f" and there are {self._budget} in all",
                "ask for fewer tokens, or run with more --max-sequences or --context",
            )
        if needed > context:
            raise UsageError(
                f"a prompt of {prompt} tokens and an answer of up to {answer} do not fit into the context of"
                f" {context} tokens",
                f"ask for at most {context - prompt} tokens, or shorten the prompt"
                if prompt < context
                else "shorten the prompt",
            )

    def _matcher(self, options: GenerateOptions, owner: str) -> Matcher | None:
        if options.constraint is None:
            return None
        if self.compiler is None:
            raise UsageError("this engine has no tokenizer to constrain answers with")
        return self.compiler(options.constraint, owner)
