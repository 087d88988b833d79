"""The load of a simulated cluster: when requests arrive and machines fail. Pure data; random parts have a seed."""

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
    """A request: its time, its owner, and the numbers of tokens of its prompt and its answer.

    The prompt begins with ``shared`` tokens that all prompts of the owner begin with. Requests of one ``conversation``
    (above 0, of one owner) are one text: a later, longer prompt begins with an earlier prompt and its answer.
    """

    at_s: float
    owner: str
    prompt: int
    answer: int
    shared: int = 0
    conversation: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.at_s < math.inf:
            raise UsageError(f"at_s of a request must be a number of seconds from 0 on, not {self.at_s}")
        if self.prompt < 1 or self.answer < 1:
            raise UsageError(f"prompt and answer must have at least 1 token each, not {self.prompt} and {self.answer}")
        if not 0 <= self.shared <= self.prompt:
            raise UsageError(f"a prompt of {self.prompt} tokens cannot share {self.shared} of them")
        if self.conversation < 0:
            raise UsageError(f"conversation must be 0 or a number from 1 on, not {self.conversation}")


@dataclass(frozen=True)
class Failure:
    """The death of a stage's machine at ``at_s``. A machine is ready to load the stage again at ``returns_s``.

    The default is at once, by a spare machine or a new plan; infinity is never.
    """

    at_s: float
    replica: int
    stage: int = 0
    returns_s: float = 0.0


@dataclass(frozen=True)
class AfterLoss:
    """What follows the death of a stage."""

    detect_s: float = 2.0
    """Seconds from the failure to its detection; requests still arrive meanwhile, and wait."""
    reload_s: float = 20.0
    """Seconds from the detection, or from the machine's return if that is later, until all stages are loaded."""
    recover: bool = False
    """Whether requests continue, all their tokens prefilled again; else they end with an error."""

    def __post_init__(self) -> None:
        if not (0 <= self.detect_s < math.inf and 0 <= self.reload_s < math.inf):
            raise UsageError("detect_s and reload_s must be numbers of seconds from 0 on")


def at_once(requests: int, prompt: int, answer: int, owners: int = 0, shared: int = 0) -> tuple[Arrival, ...]:
    """Equal requests at time 0, spread over ``owners`` owners; with 0, every request has its own."""
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
    """Independent arrivals at the mean rate ``requests_per_s``; lengths are uniform over ranges, both ends included.

    Raises:
        UsageError: the rate is not above 0, or a range is empty.
    """
    if not 0 < requests_per_s < math.inf:
        raise UsageError(f"requests_per_s must be above 0, not {requests_per_s}")
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
    """Failures until ``until_s`` of machines that run for ``mean_s`` seconds in the mean, then are away for ``away_s``.

    ``replicas`` holds the number of stages of each pipeline. With an infinite ``away_s``, each machine fails once.

    Raises:
        UsageError: ``mean_s`` is not above 0, ``away_s`` is below 0, or ``until_s`` is infinite.
    """
    if not 0 < mean_s < math.inf:
        raise UsageError(f"mean_s must be above 0, not {mean_s}")
    if not (away_s >= 0 and until_s < math.inf):
        raise UsageError(f"away_s must be 0 or more, and until_s finite, not {away_s} and {until_s}")
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
    """Arrivals from CSV with the columns at_s, owner, prompt and answer, and optionally shared and conversation.

    Raises:
        UsageError: the trace has other columns, or a line is not a request; the error names the line.
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
