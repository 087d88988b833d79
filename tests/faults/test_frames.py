"""Frames that are lost, repeated, in the wrong order, cut, or changed on their way between coordinator and stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepp.engine import outstanding_steps
from edgepp.engine.request import GenerateOptions
from edgepp.layer_range import LayerRange
from edgepp.model.random_checkpoint import TINY
from edgepp.wire.messages import Message
from edgepp.wire.messages.data import Batch, Forward, Hidden
from tests.builders.checkpoints import Checkpoints
from tests.engines import greedy_tokens, local_engine
from tests.faults import proxy
from tests.faults.lone_stages import LoneStages, lone_stages, read
from tests.faults.oracle import settles
from tests.faults.proxy import Act, Damage, Swap
from tests.waiting import PATIENCE_S

TOKENS = 24
PLACES = {"into": (0, "in"), "between": (1, "in"), "back": (1, "out")}
"""The number of the proxy, and the way of the frame."""
DAMAGES: dict[str, Callable[[], Act]] = {
    "drop": lambda: proxy.drop,
    "repeat": lambda: proxy.repeat,
    "swap": Swap,
    "cut tensor": lambda: proxy.cut_tensor,
    "flip header": lambda: proxy.flip_header,
    "nan": lambda: proxy.nan,
}


def text(seed: int, length: int = 900) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(10, TINY.vocabulary, length)]


PROMPTS = [text(seed) for seed in range(2)]


def prefills(message: Message) -> bool:
    return isinstance(message, Hidden) or (isinstance(message, Forward) and message.rows > 1)


def decodes(message: Message) -> bool:
    return isinstance(message, Batch) or (isinstance(message, Forward | Hidden) and message.rows == 1)


@pytest.fixture(scope="module")
def stages(checkpoints: Checkpoints) -> Iterator[LoneStages]:
    path = checkpoints(replace(TINY, context=1 << 15))
    with lone_stages(path, LayerRange(0, 2), LayerRange(2, 4)) as started:
        yield started


@pytest.fixture(scope="module")
def expected(stages: LoneStages) -> list[list[int]]:
    """The tokens of one process for each prompt."""
    with local_engine(stages.path, [LayerRange(0, 4)], ["auto"]) as engine:
        return [greedy_tokens(engine, prompt, TOKENS) for prompt in PROMPTS]


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> None:
    """The stages live from test to test; ``checked`` looks at what a test leaves in them."""


@pytest.fixture(autouse=True)
def checked(stages: LoneStages) -> Iterator[None]:
    """End every test with stages that live, hold nothing, and have no more open than before."""
    before = stages.footprint()
    with stages.behind_proxies():
        yield
    stages.hold_nothing()
    settles(lambda: before.grown(stages.footprint()), "more than before the damage")
    assert all(process.is_running() for process in stages.processes)


def ask_under(stages: LoneStages, expected: list[list[int]], place: str, damage: Damage) -> None:
    """Two requests at once while a frame is damaged, with a short deadline, and the same two afterwards."""
    number, _ = PLACES[place]
    with stages.open_engine(proxied=True) as engine, pytest.MonkeyPatch.context() as patch:
        patch.setattr(outstanding_steps, "STEP_S", 2.0)
        stages.proxies[number].damage = damage
        requests = [engine.submit(prompt, GenerateOptions(max_tokens=TOKENS)) for prompt in PROMPTS]
        for request, right in zip(requests, expected, strict=True):
            read(request).is_right_or_typed(right)
        stages.proxies[number].damage = None
    assert damage.done.is_set(), "no frame was damaged"
    with stages.open_engine(proxied=True) as engine:
        assert [greedy_tokens(engine, prompt, TOKENS) for prompt in PROMPTS] == expected


def test_a_proxy_alone_changes_nothing(stages: LoneStages, expected: list[list[int]]) -> None:
    with stages.open_engine(proxied=True) as engine:
        requests = [engine.submit(prompt, GenerateOptions(max_tokens=TOKENS)) for prompt in PROMPTS]
        for request, right in zip(requests, expected, strict=True):
            read(request).is_right(right)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("phase", [prefills, decodes])
def test_a_damaged_frame_gives_no_wrong_token(
    stages: LoneStages, expected: list[list[int]], phase: Callable[[Message], bool], kind: str, place: str
) -> None:
    damage = Damage(PLACES[place][1], phase, DAMAGES[kind](), range(2) if kind == "swap" else (1,))
    ask_under(stages, expected, place, damage)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([*PLACES]), st.sampled_from([*DAMAGES]), st.sets(st.integers(0, 40), min_size=1, max_size=4))
def test_any_frames_may_be_damaged(
    stages: LoneStages, expected: list[list[int]], place: str, kind: str, numbers: set[int]
) -> None:
    def any_frame(message: Message) -> bool:
        return isinstance(message, Forward | Batch | Hidden)

    ask_under(stages, expected, place, Damage(PLACES[place][1], any_frame, DAMAGES[kind](), {0, *numbers}))


def test_a_changed_bit_of_a_hidden_state_gives_no_wrong_token(stages: LoneStages, expected: list[list[int]]) -> None:
    ask_under(stages, expected, "between", Damage("in", decodes, proxy.flip_tensor, range(4)))


@pytest.mark.parametrize("act", [proxy.repeat, proxy.cut_header, proxy.cut_tensor, proxy.flip_header])
def test_what_a_stage_drops_is_counted(stages: LoneStages, expected: list[list[int]], act: Act) -> None:
    before = stages.states()[1].dropped
    ask_under(stages, expected, "between", Damage("in", prefills, act))
    settles(lambda: "" if stages.states()[1].dropped > before else "not counted", "a dropped frame", PATIENCE_S)
