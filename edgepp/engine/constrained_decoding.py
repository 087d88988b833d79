"""Constrained answers: which tokens may come next, by llguidance.

A constraint is compiled once, outside the engine's thread, after ``grammar_sandbox`` has compiled it without harm.
Later requests with the same constraint get copies of the compiled matcher, or the same refusal. Sandboxes run in turns
of the requests' owners.
"""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future
from typing import NoReturn

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher

from edgepp.child_process import python_command
from edgepp.engine import grammar_sandbox
from edgepp.engine.request import Constraint
from edgepp.errors import EdgeppError, ModelError, UsageError
from edgepp.fair_turns import FairTurns

_TRIAL_S = 20.0
"""Seconds that the sandbox may take for one constraint."""
_MASK_S = 1.0
"""Processor seconds that the mask of one token may take."""
_MAX_COMPILED = 32
"""Compiled constraints that are kept."""
_MAX_REFUSED = 256
"""Refusals that are kept."""
_MAX_TRIALS = 2
"""Sandboxes that run at the same time, one of an owner."""
_MAX_WAITING = 8
"""New constraints of one owner that wait for a sandbox."""
_OF_SIZE = re.compile(r"(?i)too (large|complex|many|much|deep)|longer than|nested|exceed|limit of \d")
"""Reasons that a smaller constraint may not meet."""


class Matcher:
    """The position of one answer within its constraint."""

    def __init__(self, inner: LLMatcher) -> None:
        self._inner = inner

    @property
    def done(self) -> bool:
        """Whether the constraint is met and allows no further token."""
        return self._inner.is_stopped()

    def mask(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """A copy of ``logits`` (V,) with minus infinity for each token that would break the constraint.

        Tokens that end an answer are allowed where the text may end, and ids beyond the tokenizer's tokens never.

        Raises:
            UsageError: the constraint has become too complex to follow.
        """
        begun_s = time.thread_time()
        bits = self._inner.compute_bitmask()
        took_s = time.thread_time() - begun_s
        if self._inner.is_error() or took_s > _MASK_S:
            raise self._failure(f"one token took {took_s:.1f} s")
        allowed = np.unpackbits(np.frombuffer(bits, np.uint8), count=len(logits), bitorder="little")
        masked: npt.NDArray[np.float32] = np.where(allowed.view(np.bool_), logits, np.float32(-np.inf))
        return masked

    def advance(self, token: int) -> None:
        """Append ``token`` to the answer.

        Raises:
            UsageError: the constraint has become too complex to follow, or does not allow ``token``.
        """
        if not self._inner.consume_token(token):
            raise self._failure(f"token {token} is not allowed")

    def forced(self) -> list[int]:
        """Ids of the only tokens that the constraint allows next, whatever the logits are; often none."""
        return self._inner.compute_ff_tokens()

    def _failure(self, otherwise: str) -> UsageError:
        reason = grammar_sandbox.complaint(self._inner.get_error()) or otherwise
        return UsageError(f"the constraint cannot be followed further: {reason}", "make it less ambiguous")


class ConstraintCompiler:
    """Makes matchers for one tokenizer. Safe to use from several threads."""

    def __init__(self, tokenizer_json: str, eos_ids: Iterable[int]) -> None:
        """Prepare for the tokenizer ``tokenizer_json``, the text of that file, where ``eos_ids`` end an answer.

        Takes about 0.2 s and 5 MB for 50,000 tokens.

        Raises:
            ModelError: the tokenizer is of a kind that cannot be constrained.
        """
        self._definition = tokenizer_json
        self._eos = sorted(eos_ids)
        try:
            self._tokens = grammar_sandbox.tokenizer(tokenizer_json, self._eos)
        except ValueError as error:
            reason = grammar_sandbox.complaint(str(error))
            raise ModelError(
                f"this model's answers cannot be held to a constraint: {reason}",
                "ask without a constraint, or use another model",
            ) from error
        self._compiled: OrderedDict[Constraint, LLMatcher] = OrderedDict()
        self._refusals: OrderedDict[bytes, str] = OrderedDict()
        """Why constraints were refused, by their digests."""
        self._under_way: dict[tuple[str, Constraint], Future[LLMatcher]] = {}
        self._lock = threading.Lock()
        self._turns = FairTurns(_MAX_TRIALS, 1, _MAX_WAITING)

    def compile(self, constraint: Constraint, owner: str = "") -> Matcher:
        """A matcher at the beginning of ``constraint``, for a request of ``owner``.

        A new constraint is first tried in a child process, which takes about half a second and at most
        ``grammar_sandbox.CPU_S`` of processor time, so do not call this from the engine's thread. Requests of one owner
        with one constraint wait for one trial.

        Raises:
            UsageError: the constraint is invalid or too complex.
            Overloaded: many other constraints of the owner wait for their trial.
            EdgeppError: no child process can be started.
        """
        key = owner, constraint
        with self._lock:
            found = self._known(constraint)
            if found is not None:
                return Matcher(found.deep_copy())
            earlier = self._under_way.get(key)
            mine = self._under_way[key] = earlier or Future()
        if earlier is None:
            try:
                mine.set_result(self._compiled_in_turn(constraint, owner))
            except BaseException as error:  # noqa: BLE001 - raised to all that wait
                mine.set_exception(error)
            finally:
                with self._lock:
                    del self._under_way[key]
        return Matcher(mine.result().deep_copy())

    def _known(self, constraint: Constraint) -> LLMatcher | None:
        """The matcher of a constraint that was compiled before, or None.

        Raises:
            UsageError: the constraint was refused before.
        """
        found = self._compiled.get(constraint)
        if found is not None:
            self._compiled.move_to_end(constraint)
            return found
        digest = _digest(constraint)
        if digest in self._refusals:
            self._refusals.move_to_end(digest)
            raise _refused(constraint, self._refusals[digest])
        return None

    def _compiled_in_turn(self, constraint: Constraint, owner: str) -> LLMatcher:
        if not constraint.text:  # it is edgepp's own
            return self._compiled_now(constraint)
        with self._turns.turn(owner):
            with self._lock:
                found = self._known(constraint)  # another owner's, by now
            if found is not None:
                return found
            reason = self._complaint(constraint)
            if reason:
                self._refuse(constraint, reason)
        return self._compiled_now(constraint)

    def _compiled_now(self, constraint: Constraint) -> LLMatcher:
        compiled = grammar_sandbox.matcher(self._tokens, constraint.kind, constraint.text)
        if compiled.is_error():
            self._refuse(constraint, grammar_sandbox.complaint(compiled.get_error(), constraint.text))
        with self._lock:
            self._compiled[constraint] = compiled
            while len(self._compiled) > _MAX_COMPILED:
                self._compiled.popitem(last=False)
        return compiled

    def _refuse(self, constraint: Constraint, reason: str) -> NoReturn:
        with self._lock:
            self._refusals[_digest(constraint)] = reason
            while len(self._refusals) > _MAX_REFUSED:
                self._refusals.popitem(last=False)
        raise _refused(constraint, reason)

    def _complaint(self, constraint: Constraint) -> str:
        """What is wrong with a constraint, by trying it in a sandbox; empty if it can be used.

        Raises:
            UsageError: the sandbox was stopped before it came to a result.
            EdgeppError: no child process can be started.
        """
        form = {"kind": constraint.kind, "text": constraint.text, "eos": self._eos}
        try:
            child = subprocess.run(  # noqa: S603 - the command is ours
                python_command("edgepp.engine.grammar_sandbox"),
                input=json.dumps(form).encode() + b"\n" + self._definition.encode(),
                capture_output=True,
                timeout=_TRIAL_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise _refused(constraint, f"compiling it takes longer than {_TRIAL_S:g} s") from error
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise EdgeppError(f"no process can be started to try the constraint in: {reason}", "ask again") from error
        if child.returncode == -signal.SIGXCPU:
            return f"compiling it takes longer than {grammar_sandbox.CPU_S} s"
        if child.returncode == -signal.SIGKILL:  # by the system, which lacks memory at the moment
            raise _refused(constraint, "compiling it takes too much memory")
        if child.returncode or not child.stdout:
            return "compiling it takes too much memory or is nested too deeply"
        return str(json.loads(child.stdout))


def _digest(constraint: Constraint) -> bytes:
    return hashlib.sha256(f"{constraint.kind} {constraint.text}".encode()).digest()


def _refused(constraint: Constraint, reason: str) -> UsageError:
    hint = "make it smaller or simpler" if _OF_SIZE.search(reason) else "correct it"
    return UsageError(f"the {constraint.kind} cannot be used: {reason}", hint)
