"""Streams that note the time of each token, and the outcome of a loss or a drain of a node for streams."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

from edgepp.benchmark.prompts import passage
from edgepp.coordinator.client import connect_coordinator
from edgepp.engine.frontend import ModelFrontend
from edgepp.engine.request import Constraint, GenerateOptions, SamplingOptions
from edgepp.engine.timing import Recovery
from edgepp.errors import EdgeppError
from edgepp.python_api.question import choice_options

_LONGEST_S = 400.0
_PARTS = ("detection_s", "loading_s", "opening_s", "joining_s", "rebuilding_s", "first_token_s")


@dataclass(frozen=True)
class TokenQuestion:
    """Token ids of a prompt, and options."""

    ids: tuple[int, ...]
    options: GenerateOptions


def four_streams(frontend: ModelFrontend, prompt_tokens: int, tokens: int) -> dict[str, TokenQuestion]:
    """Plain, JSON schema, seeded sampling, and two choices of one prompt: each of ``prompt_tokens`` + ``tokens``."""
    digits = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": tokens // 2}
    schema = json.dumps(digits | {"maxItems": tokens // 2})
    sampled = SamplingOptions(temperature=0.8, top_p=0.95, seed=5)
    choices = choice_options(2, GenerateOptions(tokens, ignore_eos=True, sampling=SamplingOptions(0.9, seed=8)))
    options = {
        "plain": GenerateOptions(tokens, ignore_eos=True),
        "schema": GenerateOptions(2 * tokens, constraint=Constraint("json_schema", schema)),
        "seeded": GenerateOptions(tokens, ignore_eos=True, sampling=sampled),
        "choice 1": choices[0],
        "choice 2": choices[1],
    }
    prompts = {name: prompt(frontend, number, prompt_tokens) for number, name in enumerate(options)}
    prompts["choice 2"] = prompts["choice 1"]
    return {name: TokenQuestion(prompts[name], one) for name, one in options.items()}


def prompt(frontend: ModelFrontend, number: int, tokens: int) -> tuple[int, ...]:
    """The first ``tokens`` token ids of a text that depends on ``number``."""
    ids = frontend.tokenizer.encode_prompt(passage(number, 2 * tokens), 1 << 20, "").ids
    return tuple(int(one) for one in ids[:tokens])


class TimedStream(threading.Thread):
    """An answer to a question, over a connection of its own."""

    def __init__(self, question: TokenQuestion) -> None:
        super().__init__(name="stream", daemon=True)
        self._question = question
        self.tokens: list[int] = []
        self.came_s: list[tuple[int, float]] = []
        """Number of tokens that had come at each time."""
        self.recoveries: Sequence[Recovery] = ()
        self.error: EdgeppError | None = None
        self.start()

    def run(self) -> None:
        """Read the answer to its end."""
        try:
            with connect_coordinator() as line:
                answer = line.ask(self._question.ids, self._question.options)
                for _ in answer:
                    self.tokens = list(answer.token_ids)
                    self.came_s.append((len(self.tokens), time.monotonic()))
                self.tokens, self.recoveries = list(answer.token_ids), answer.timing.recoveries
        except EdgeppError as error:
            self.error = error

    def pause(self, since_s: float, resumed_s: Sequence[float]) -> tuple[float, float, float]:
        """The longest time between two pieces between which requests went on, and when the two pieces came.

        ``resumed_s`` are the times at which requests went on; without any, all pieces after ``since_s`` count. 0 where
        the answer did not go on.
        """
        gaps = self._gaps(since_s)
        found = [gap for gap in gaps if any(gap[1] <= at_s < gap[2] for at_s in resumed_s)]
        return max(found or gaps, default=(0.0, since_s, since_s))

    def later_gap_s(self, since_s: float) -> float:
        """The longest time between two pieces that came after ``since_s``."""
        return max((gap[0] for gap in self._gaps(since_s) if gap[1] >= since_s), default=0.0)

    def _gaps(self, since_s: float) -> list[tuple[float, float, float]]:
        times = [at_s for _, at_s in self.came_s]
        return [(b - a, a, b) for a, b in pairwise(times) if b > since_s]


def answers(
    questions: Mapping[str, TokenQuestion], at_tokens: int = 0, disturb: Callable[[], None] = lambda: None
) -> tuple[dict[str, TimedStream], float]:
    """Ask all questions at the same time, and ``disturb`` once each answer has ``at_tokens`` tokens.

    Returns the streams by question, and the time of the disturbance in seconds of ``time.monotonic``.

    Raises:
        EdgeppError: an answer ended before, or hangs.
    """
    streams = {name: TimedStream(question) for name, question in questions.items()}
    began_s = time.monotonic()
    if at_tokens:
        while any(len(stream.tokens) < at_tokens for stream in streams.values()):
            ended = [name for name, stream in streams.items() if not stream.is_alive()]
            if ended or time.monotonic() - began_s > _LONGEST_S:
                raise EdgeppError(f"not all answers reached {at_tokens} tokens; ended: {ended}", "see the logs")
            time.sleep(0.005)
    disturbed_s = time.monotonic()
    disturb()
    for name, stream in streams.items():
        stream.join(_LONGEST_S)
        if stream.is_alive():
            raise EdgeppError(f"the answer '{name}' hangs after {len(stream.tokens)} tokens", "see the logs")
    return streams, disturbed_s


def outcome(
    streams: Mapping[str, TimedStream], right: Mapping[str, Sequence[int]], since_s: float, marks: Path
) -> dict[str, Any]:
    """Outcome of a disturbance at ``since_s`` for streams whose ``right`` tokens are known."""
    noted = marks_of(marks, since_s)
    resumed_s = [at_s for at_s, what in noted if what == "resumed"]
    found: dict[str, Any] = {}
    pauses = {name: stream.pause(since_s, resumed_s) for name, stream in streams.items()}
    for name, stream in streams.items():
        pause_s, _, on_s = pauses[name]
        found[name] = {
            "pause_s": pause_s,
            "later_gap_s": stream.later_gap_s(on_s),
            "right": stream.error is None and stream.tokens == list(right[name]),
            "how": [one.how for one in stream.recoveries],
            "prefilled": [one.prefilled for one in stream.recoveries],
            "error": str(stream.error) if stream.error else None,
            "tokens": [len(stream.tokens), len(right[name])],
            "first_wrong": first_difference(stream.tokens, right[name]),
        }
    went_on = [pause for pause in pauses.values() if pause[0]]
    _, before_s, first_s = min(went_on, key=lambda pause: pause[2], default=(0.0, since_s, since_s))
    last_s = max((pause[2] for pause in went_on), default=since_s)
    return {
        "streams": found,
        "parts": parts(noted, max(since_s, before_s), first_s),
        "timeline": timeline(noted, since_s, last_s),
    }


def first_difference(got: Sequence[int], right: Sequence[int]) -> int | None:
    """Index of the first token that is another, missing or too much; None where there is none."""
    for index, (one, other) in enumerate(zip_longest(got, right)):
        if one != other:
            return index
    return None


def marks_of(folder: Path, since_s: float) -> list[tuple[float, str]]:
    """(time, what) of all that the processes noted after ``since_s``, in order."""
    lines = [line for file in folder.glob("*.marks") for line in file.read_text(encoding="utf-8").splitlines()]
    noted = [(float(one["at_s"]), str(one["what"])) for one in map(json.loads, lines)]
    return sorted(one for one in noted if one[0] >= since_s)


def parts(marks: Sequence[tuple[float, str]], since_s: float, token_s: float) -> dict[str, float]:
    """Parts of the pause from ``since_s`` until a token came at ``token_s``, each in seconds; they add up.

    A part that did not take place during the pause, such as loading when a node is drained, is 0.
    """
    before = [one for one in marks if since_s <= one[0] <= token_s]

    def last(what: str, otherwise_s: float) -> float:
        return max([otherwise_s, *(at_s for at_s, name in before if name == what)])

    noticed_s = next((at_s for at_s, name in before if name == "suspended"), since_s)
    loaded_s = last("load reported", noticed_s)
    opening_s = last("opening", loaded_s)
    joined_s = last("joined", opening_s)
    resumed_s = last("resumed", joined_s)
    times = (since_s, noticed_s, loaded_s, opening_s, joined_s, resumed_s, token_s)
    return {name: b - a for name, (a, b) in zip(_PARTS, pairwise(times), strict=True)}


def timeline(marks: Sequence[tuple[float, str]], since_s: float, until_s: float) -> str:
    """The marks up to ``until_s`` as a line for people, with milliseconds since ``since_s``."""
    return ", ".join(f"{1e3 * (at_s - since_s):.0f} {what}" for at_s, what in marks if at_s <= until_s)
