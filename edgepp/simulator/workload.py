"""Events of a simulated cluster: arrivals of requests and failures of machines. Pure data; random ones by seed."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgepp.errors import UsageError

_COLUMNS = ("at_s", "owner", "prompt", "answer")
_OPTIONAL = ("shared", "conversation")


@dataclass(frozen=True)
class Arrival:
    """Arrival of a request: time, owner, and tokens of prompt and answer.

    The first ``shared`` tokens are the same in all prompts of the owner. Prompts of one owner with the same
    ``conversation`` above 0 are one text: a later, longer prompt begins with an earlier prompt and its answer.
    """

    at_s: float
    owner: str
    prompt: int
    answer: int
    shared: int = 0
    conversation: int = 0
    acceptance: float | None = None
    """Probability that a guess of its next token is right; None for a request without guesses."""

    def __post_init__(self) -> None:
        if not 0 <= self.at_s < math.inf:
            raise UsageError(f"a request arrives at a time of 0 or later, not at {self.at_s}")
        if self.prompt < 1 or self.answer < 1:
            raise UsageError(f"a prompt and an answer have at least 1 token, not {self.prompt} and {self.answer}")
        if not 0 <= self.shared <= self.prompt:
            raise UsageError(f"a prompt of {self.prompt} tokens cannot share {self.shared} of them")
        if self.conversation < 0:
            raise UsageError(f"conversations are numbered from 1, not from {self.conversation}")
        if self.acceptance is not None and not 0 <= self.acceptance <= 1:
            raise UsageError(f"guesses are right with a probability from 0 to 1, not {self.acceptance}")


@dataclass(frozen=True)
class Failure:
    """Failure of a stage's machine at ``at_s``; the machine or a replacement can load the stage from ``returns_s``.

    The default 0 stands for a spare machine, or a new plan without the failed one; infinity for no return.
    """

    at_s: float
    replica: int
    stage: int = 0
    returns_s: float = 0.0


@dataclass(frozen=True)
class RecoveryPolicy:
    """Reaction to the failure of a stage."""

    detect_s: float = 2.0
    """Seconds from the failure to its detection; requests arrive meanwhile and wait."""
    reload_s: float = 20.0
    """Seconds from detection, or from the machine's return if that is later, until all stages are loaded."""
    recover: bool = False
    """Whether requests continue, with all their tokens prefilled again; otherwise requests end in an error."""

    def __post_init__(self) -> None:
        if not (0 <= self.detect_s < math.inf and 0 <= self.reload_s < math.inf):
            raise UsageError("the times of detection and of reload must be 0 seconds or more")


def at_once(requests: int, prompt: int, answer: int, owners: int = 0, shared: int = 0) -> tuple[Arrival, ...]:
    """``requests`` equal requests at time 0 by ``owners`` owners; 0: each request has its own owner."""
    return tuple(Arrival(0.0, f"owner-{i % (owners or requests)}", prompt, answer, shared) for i in range(requests))


def poisson(
    requests: int,
    requests_per_s: float,
    prompt: tuple[int, int],
    answer: tuple[int, int],
    owners: int = 0,
    shared: int = 0,
    seed: int = 0,
) -> tuple[Arrival, ...]:
    """Independent arrivals at ``requests_per_s``; lengths are uniform in closed ranges of tokens.

    Raises:
        UsageError: the rate is not above 0, or a range is empty.
    """
    if not 0 < requests_per_s < math.inf:
        raise UsageError(f"requests come at a rate above 0 per second, not {requests_per_s}")
    for low, high in (prompt, answer):
        if not 1 <= low <= high:
            raise UsageError(f"{low} to {high} tokens is not a range")
    draw = random.Random(seed)  # noqa: S311 - not a secret
    at_s, arrivals = 0.0, []
    for number in range(requests):
        at_s += draw.expovariate(requests_per_s)
        owner = f"owner-{draw.randrange(owners) if owners else number}"
        tokens = draw.randint(*prompt)
        arrivals.append(Arrival(at_s, owner, tokens, draw.randint(*answer), min(shared, tokens)))
    return tuple(arrivals)


def failures(
    replicas: Sequence[int], mean_s: float, away_s: float, until_s: float, seed: int = 0
) -> tuple[Failure, ...]:
    """Failures until ``until_s`` of machines that run for ``mean_s`` seconds on average and are away for ``away_s``.

    ``replicas`` has the number of stages per pipeline. With an infinite ``away_s`` a machine fails once.

    Raises:
        UsageError: a time is negative or not finite where it must be.
    """
    if not 0 < mean_s < math.inf:
        raise UsageError(f"machines run for more than 0 seconds, not {mean_s}")
    if not (away_s >= 0 and until_s < math.inf):
        raise UsageError(f"machines cannot be away for {away_s} seconds, or fail until {until_s} seconds")
    draw = random.Random(seed)  # noqa: S311 - not a secret
    found = []
    for replica, stages in enumerate(replicas):
        for stage in range(stages):
            at_s = draw.expovariate(1 / mean_s)
            while at_s < until_s:
                found.append(Failure(at_s, replica, stage, at_s + away_s))
                at_s += away_s + draw.expovariate(1 / mean_s)
    return tuple(sorted(found, key=lambda failure: failure.at_s))


def read_trace(lines: Iterable[str]) -> tuple[Arrival, ...]:
    """Arrivals from CSV with the columns at_s, owner, prompt, answer, and optionally shared and conversation.

    Raises:
        UsageError: the columns are others, or a line cannot be read; the message has the line number.
    """
    rows = csv.DictReader(lines)
    names = rows.fieldnames or ()
    if not set(_COLUMNS) <= set(names) <= {*_COLUMNS, *_OPTIONAL}:
        raise UsageError(
            f"a trace has the columns {', '.join(_COLUMNS)}, not {', '.join(names)!r:.80}",
            f"{' and '.join(_OPTIONAL)} may follow",
        )
    arrivals = []
    try:
        for row in rows:
            if None in row or None in (row[name] for name in _COLUMNS):
                raise UsageError("the line has more or fewer values than there are columns")
            optional = {name: int(row[name]) for name in _OPTIONAL if row.get(name)}
            arrivals.append(
                Arrival(float(row["at_s"]), row["owner"], int(row["prompt"]), int(row["answer"]), **optional)
            )
    except (ValueError, TypeError, csv.Error, UsageError) as error:
        raise UsageError(f"line {rows.line_num} of the trace is not a request: {error}") from error
    return tuple(arrivals)
