"""What happens to a simulated cluster: who asks for what and when, and which machines fail. Pure data, by seed."""

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
    """A request: when it comes, whose it is, and how long its prompt and its answer are, in tokens.

    Its prompt begins with ``shared`` tokens that all prompts of its owner begin with. Those of one ``conversation``
    (beyond 0, of one owner) are one text: a later and longer prompt begins with an earlier one and its answer.
    """

    at_s: float
    owner: str
    prompt: int
    answer: int
    shared: int = 0
    conversation: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.at_s < math.inf:
            raise UsageError(f"a request comes at a time from 0 on, not at {self.at_s}")
        if self.prompt < 1 or self.answer < 1:
            raise UsageError(f"a prompt of {self.prompt} and an answer of {self.answer} tokens are no request")
        if not 0 <= self.shared <= self.prompt:
            raise UsageError(f"a prompt of {self.prompt} tokens cannot share {self.shared} of them")
        if self.conversation < 0:
            raise UsageError(f"conversations are numbered from 1, and {self.conversation} is none")


@dataclass(frozen=True)
class Failure:
    """A stage's machine dies at ``at_s``; it, or one in its place, is ready to load again at ``returns_s``.

    Never, where that is infinite. At once, by default: a spare machine, or a new plan without it.
    """

    at_s: float
    replica: int
    stage: int = 0
    returns_s: float = 0.0


@dataclass(frozen=True)
class AfterLoss:
    """What follows when a stage dies."""

    detect_s: float = 2.0
    """Until somebody notices; requests still come, and wait."""
    reload_s: float = 20.0
    """From then, or from the machine's return if that is later, until all stages are loaded."""
    recover: bool = False
    """Whether requests go on where they were, all their tokens prefilled again; else they end in an error."""

    def __post_init__(self) -> None:
        if not (0 <= self.detect_s < math.inf and 0 <= self.reload_s < math.inf):
            raise UsageError("detection and reload take a number of seconds each")


def at_once(requests: int, prompt: int, answer: int, owners: int = 0, shared: int = 0) -> tuple[Arrival, ...]:
    """So many equal requests at time 0, of as many ``owners``; each of its own where that is 0."""
    return tuple(Arrival(0.0, f"owner-{i % (owners or requests)}", prompt, answer, shared) for i in range(requests))


def poisson(
    requests: int,
    rate_s: float,
    prompt: tuple[int, int],
    answer: tuple[int, int],
    owners: int = 0,
    shared: int = 0,
    seed: int = 0,
) -> tuple[Arrival, ...]:
    """``requests`` independent ones, ``rate_s`` per second; lengths are drawn evenly from ranges with both their ends.

    Raises:
        UsageError: rate or ranges make no sense.
    """
    if not 0 < rate_s < math.inf:
        raise UsageError(f"requests come at a rate above 0 per second, not {rate_s}")
    for low, high in (prompt, answer):
        if not 1 <= low <= high:
            raise UsageError(f"{low} to {high} tokens is no range")
    draw = random.Random(seed)  # noqa: S311 - not a secret
    at_s, arrivals = 0.0, []
    for number in range(requests):
        at_s += draw.expovariate(rate_s)
        owner = f"owner-{draw.randrange(owners) if owners else number}"
        tokens = draw.randint(*prompt)
        arrivals.append(Arrival(at_s, owner, tokens, draw.randint(*answer), min(shared, tokens)))
    return tuple(arrivals)


def failures(
    replicas: Sequence[int], mean_s: float, away_s: float, until_s: float, seed: int = 0
) -> tuple[Failure, ...]:
    """Failures of machines that each run for ``mean_s`` seconds in the mean and are away for ``away_s``.

    ``replicas`` holds each one's number of stages. Who is away for an infinite time fails once.

    Raises:
        UsageError: a time makes no sense.
    """
    if not 0 < mean_s < math.inf:
        raise UsageError(f"machines run for more than 0 seconds, not {mean_s}")
    if not (away_s >= 0 and until_s < math.inf):
        raise UsageError(f"machines are not away for {away_s} seconds, and fail until a time that comes, not {until_s}")
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
    """Arrivals from CSV with the columns at_s, owner, prompt, answer, and perhaps shared and conversation.

    Raises:
        UsageError: it has other columns, or a line makes no sense; which one is said.
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
                raise UsageError("it has more or fewer values than there are columns")
            optional = {name: int(row[name]) for name in _OPTIONAL if row.get(name)}
            arrivals.append(
                Arrival(float(row["at_s"]), row["owner"], int(row["prompt"]), int(row["answer"]), **optional)
            )
    except (ValueError, TypeError, csv.Error, UsageError) as error:
        raise UsageError(f"line {rows.line_num} of the trace is no request: {error}") from error
    return tuple(arrivals)
