"""A last stage with the output head, whose messages say what is not so: each lie ends in an error that names it."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from edgepp.engine.request import GenerateOptions, SamplingOptions
from edgepp.errors import PlanError, StageFault, StageLost
from edgepp.layer_range import LayerRange
from edgepp.model.random_checkpoint import TINY
from edgepp.model.weights.checkpoint import Array
from edgepp.wire.message_codec import decode, encode
from edgepp.wire.messages import Message
from edgepp.wire.messages.control import Attached, Pong, Welcome
from edgepp.wire.messages.data import Batch, Hidden
from edgepp.wire.messages.recovery import Held
from tests.builders.checkpoints import Checkpoints
from tests.engines import greedy_tokens
from tests.faults.lone_stages import LoneStages, lone_stages, read
from tests.faults.proxy import Act, Damage, Frames
from tests.waiting import eventually

TOKENS = 12
PROMPT = [int(token) for token in np.random.default_rng(1).integers(10, TINY.vocabulary, 60)]
LIKELY = GenerateOptions(TOKENS, ignore_eos=True, sampling=SamplingOptions(logprobs=3))
SAMPLED = GenerateOptions(TOKENS, ignore_eos=True, sampling=SamplingOptions(temperature=0.8, seed=5))
_WIDTHS = {"candidates": 7, "logits": TINY.vocabulary}
"""Columns of the results of ``LIKELY`` and ``SAMPLED``."""


@pytest.fixture(scope="module")
def stages(checkpoints: Checkpoints) -> Iterator[LoneStages]:
    with lone_stages(checkpoints(TINY), LayerRange(0, 2), LayerRange(2, 4), head=True) as started:
        yield started


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> None:
    """The stages live from test to test."""


@pytest.fixture(autouse=True)
def proxied(stages: LoneStages) -> Iterator[None]:
    with stages.behind_proxies():
        yield
    stages.hold_nothing()


def rows_as(change: Callable[[Array], object]) -> Act:
    """Change the rows of a result, whose checksum is right."""

    def act(frames: Frames) -> Sequence[Frames]:
        message = decode(frames[0])
        assert isinstance(message, Hidden | Batch)
        rows = np.frombuffer(frames[1], np.float32).reshape(message.rows, message.width).copy()
        change(rows)
        raw = rows.tobytes()
        return [[encode(message._replace(checksum=zlib.crc32(raw))), raw]]

    return act


def said_besides(*more: Callable[[int], Message]) -> Act:
    """Send further messages of the same epoch before the message."""

    def act(frames: Frames) -> Sequence[Frames]:
        message = decode(frames[0])
        assert isinstance(message, Pong | Attached)
        return [*([encode(make(message.epoch))] for make in more), frames]

    return act


def in_form(form: str) -> Callable[[Message], bool]:
    return lambda message: isinstance(message, Hidden | Batch) and message.width == _WIDTHS[form]


@pytest.mark.parametrize(
    ("form", "column", "value", "fault"),
    [
        ("candidates", 0, np.nan, "candidates that contradict one another"),
        ("candidates", 0, -1e30, "candidates that contradict one another"),
        ("candidates", 1, np.inf, "logits that are not numbers or infinite"),
        ("candidates", 2, np.nan, "candidates that contradict one another"),
        ("candidates", 4, np.nan, "a token id that is not below"),  # the bits of NaN as a number
        ("logits", 5, np.nan, "logits that are not numbers or infinite"),
        ("logits", 5, np.inf, "logits that are not numbers or infinite"),
    ],
)
def test_a_result_that_no_model_gives_ends_its_request_by_the_name_of_the_stage(
    stages: LoneStages, form: str, column: int, value: float, fault: str
) -> None:
    def change(rows: Array) -> None:
        rows[:, column] = value

    with stages.open_engine(proxied=True) as engine:
        right = {options: read(engine.submit(PROMPT, options)).tokens for options in (LIKELY, SAMPLED)}
        wronged, other = (LIKELY, SAMPLED) if form == "candidates" else (SAMPLED, LIKELY)
        stages.proxies[1].damage = Damage("out", in_form(form), rows_as(change))
        outcome = read(engine.submit(PROMPT, wronged))
        assert isinstance(outcome.error, StageFault)
        assert "stage 1 (layers 2-3) on node " in str(outcome.error)
        assert f" returned {fault}" in str(outcome.error)
        read(engine.submit(PROMPT, other)).is_right(right[other])
        read(engine.submit(PROMPT, wronged)).is_right(right[wronged])


def held(epoch: int) -> Message:
    return Held(epoch, "kv", 2, 4, tuple(range(128)), (1,) * 128)


def test_a_stage_that_says_what_it_holds_unasked_is_given_up(stages: LoneStages) -> None:
    """Else what it says would fill the coordinator's memory."""
    with stages.open_engine(proxied=True) as engine:
        stages.proxies[1].damage = Damage("out", lambda message: isinstance(message, Pong), said_besides(held))
        error = eventually("the stage is given up", lambda: read(engine.submit(PROMPT, LIKELY)).error)
        assert isinstance(error, StageLost)
        assert re.search(
            r"stage 1 \(layers 2-3\) .* broke the protocol: it says what it holds, and was not", str(error)
        )


def test_a_stage_that_never_ends_to_say_what_it_holds_is_given_up(stages: LoneStages) -> None:
    lie = said_besides(*[held] * 600)
    stages.proxies[1].damage = Damage("out", lambda message: isinstance(message, Attached), lie)
    with pytest.raises(StageLost, match=r"the stage with layers 2-3 .* says that it holds more than 65536 sequences"):
        stages.open_engine(proxied=True)


@pytest.mark.parametrize("context", [0, 7, TINY.context + 1, (1 << 48) - 1])
def test_a_stage_of_another_context_is_refused_by_name(stages: LoneStages, context: int) -> None:
    """Else every question would be refused as too long, without the name of the stage."""

    def lie(frames: Frames) -> Sequence[Frames]:
        message = decode(frames[0])
        assert isinstance(message, Welcome)
        return [[encode(message._replace(context=context))]]

    stages.proxies[1].damage = Damage("out", lambda message: isinstance(message, Welcome), lie)
    with pytest.raises(PlanError, match=rf"the stage with layers 2-3 .* holds sequences of {context} positions"):
        stages.open_engine(proxied=True)


def test_a_sound_stage_is_believed(stages: LoneStages) -> None:
    with stages.open_engine() as direct:
        expected = greedy_tokens(direct, PROMPT, TOKENS)
    with stages.open_engine(proxied=True) as engine:
        assert greedy_tokens(engine, PROMPT, TOKENS) == expected
