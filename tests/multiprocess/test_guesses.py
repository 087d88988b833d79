"""Guesses in flight over real stage processes: the answer is the one without guesses, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from edgepp.engine.drafts import Drafts
from edgepp.engine.pipeline import Pipeline
from edgepp.engine.pipeline_options import PipelineOptions
from edgepp.engine.prompt_lookup import OwnerTexts
from edgepp.engine.request import Constraint, GenerateOptions, SamplingOptions
from edgepp.engine.speculation import GuessPlan, SpeculationControl
from edgepp.engine.text_stream import TextStream
from edgepp.model.text.conversation import Conversation

TEXT = "Write one sentence about the sea, then the same sentence again."
SCHEMA = """{
  "type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}, "required": ["name", "age"]
}"""

QUESTIONS = {
    "greedy": GenerateOptions(60),
    "seeded": GenerateOptions(60, sampling=SamplingOptions(temperature=0.9, top_p=0.95, seed=5)),
    "penalties": GenerateOptions(
        60, sampling=SamplingOptions(frequency_penalty=0.4, presence_penalty=0.3, repetition_penalty=1.1)
    ),
    "log-probabilities": GenerateOptions(40, sampling=SamplingOptions(temperature=0.7, seed=1, logprobs=5)),
    "schema": GenerateOptions(60, constraint=Constraint("json_schema", SCHEMA)),
    "stop": GenerateOptions(60, stop=("the",)),
}


class Replayed:
    """Replays the answers of earlier requests, with a third of the tokens wrong; else guesses by prompt lookup."""

    def __init__(self, known: Sequence[Sequence[int]]) -> None:
        """``known`` holds prompts with their answers."""
        self._known = known
        self._lookup, self._random = OwnerTexts().begin(""), np.random.default_rng(len(known))

    def propose(self, ids: Sequence[int], max_guesses: int) -> Sequence[int]:
        for one in self._known:
            if len(ids) < len(one) and list(one[: len(ids)]) == list(ids):
                return [one[len(ids)] if self._random.random() < 0.7 else 7]
        return self._lookup.propose(ids, max_guesses)

    def close(self) -> None:
        pass


@dataclass
class Both:
    """The same model over two stages with one thread each, without guesses and with ``Replayed`` ones."""

    plain: Pipeline
    guessing: Pipeline
    known: list[list[int]]
    """Prompts with their answers, which the guesses replay."""

    def expected(self, options: GenerateOptions) -> tuple[TextStream, str]:
        """The answer without guesses, which is replayed from now on."""
        stream, text = asked(self.plain, options)
        encoded = self.plain.tokenizer.encode_prompt(Conversation.of(TEXT), self.plain.context, "")
        self.known.insert(0, [*encoded.ids, *stream.token_ids])
        return stream, text


@pytest.fixture
def both() -> Iterator[Both]:
    known: list[list[int]] = []
    with pytest.MonkeyPatch.context() as patch, Pipeline(over_two_stages("off")) as plain:
        patch.setattr(Drafts, "begin", lambda *_: Replayed(known))
        patch.setattr(SpeculationControl, "plan", lambda *_, **__: GuessPlan(behind=2))  # never gives up
        with Pipeline(over_two_stages("lookup")) as guessing:
            yield Both(plain, guessing, known)


def over_two_stages(speculate: str) -> PipelineOptions:
    return PipelineOptions("smollm2-135m", stages=2, threads=1, speculate=speculate)


def asked(pipeline: Pipeline, options: GenerateOptions) -> tuple[TextStream, str]:
    stream = pipeline.ask(Conversation.of(TEXT), options)
    return stream, "".join(stream)


def record(stream: TextStream) -> dict[str, Any]:
    return {"tokens": stream.token_ids, "why": stream.finish_reason, "sampled": stream.sampled}


def test_an_answer_with_guesses_is_the_answer_without(both: Both) -> None:
    for question, options in QUESTIONS.items():
        expected, text = both.expected(options)
        stream, again = asked(both.guessing, options)
        assert again == text, question
        assert record(stream) == record(expected), question
        assert stream.timing.guessed > stream.timing.right > 3, question


def test_guesses_come_back_when_other_requests_have_ended(both: Both) -> None:
    """While others decode, guesses give way; batches round otherwise, so only the beginning is compared."""
    long, short = GenerateOptions(80, ignore_eos=True), GenerateOptions(8, ignore_eos=True)
    expected = both.expected(long)[0].token_ids
    streams = [
        both.guessing.ask(Conversation.of(TEXT), options, owner=str(n))
        for n, options in enumerate((long, short, short))
    ]
    for stream in reversed(streams):
        assert "".join(stream)
    assert [len(stream.token_ids) for stream in streams] == [80, 8, 8]
    assert streams[0].token_ids[:4] == expected[:4]
    assert streams[0].timing.guessed > 0
