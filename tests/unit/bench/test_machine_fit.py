"""Calibration finds the machine that took the seconds, and says when it cannot."""

from __future__ import annotations

import dataclasses
import random

import pytest

from bench.toolkit.machine_fit import Calibration, TimedSteps, coordinator_machine
from edgepp.errors import PlanError
from edgepp.layer_range import LayerRange
from edgepp.placement.values import ModelSize
from edgepp.plan.machines import Machine, Model, Stage, Workload
from edgepp.plan.predict import predict

near = pytest.approx
SIZE = ModelSize(layers=30, hidden=576, layer_bytes=2 * 10**6, ends_bytes=10**7, kv_bytes=1536, layer_flops=7 * 10**6)
MODEL = Model("toy", SIZE, head_bytes=10**7, head_flops=6 * 10**7, attention_flops=2304, context=4096)
TRUE = Calibration(
    step_s=0.001, pass_s={1: 0.0003, 2: 0.00032, 8: 0.001, 32: 0.003, 64: 0.0055}, position_s=4e-7, attend_s=1e-7
)


def steps(layers: int) -> list[TimedSteps]:
    """Steps without their seconds."""
    decode = [TimedSteps.decode(layers, rows, position, 1.0) for rows in (1, 2, 8) for position in (20, 260)]
    return [*decode, *(TimedSteps.prompt(layers, tokens, min(tokens, 64), 1.0) for tokens in (32, 64, 256))]


def took(timed: TimedSteps, parts: Calibration) -> float:
    own = {"step_s": parts.step_s, "position_s": parts.position_s, "attend_s": parts.attend_s}
    return sum(
        count * (parts.pass_s[name] if isinstance(name, int) else own[name]) for name, count in timed.terms.items()
    )


def timed(parts: Calibration, noise: float = 0.0) -> list[TimedSteps]:
    numbers = random.Random(1)  # noqa: S311 - not a secret
    return [
        dataclasses.replace(one, seconds=took(one, parts) * numbers.uniform(1 - noise, 1 + noise))
        for layers in (6, 18)
        for one in steps(layers)
    ]


def calibrated(parts: Calibration) -> Machine:
    return parts.machine("a", MODEL, chunk=64, hop_s=0.0, lanes=2)


def test_it_finds_what_the_seconds_are_made_of() -> None:
    found = Calibration.of(timed(TRUE))
    assert dataclasses.asdict(found) == {name: near(value) for name, value in dataclasses.asdict(TRUE).items()}


def test_noise_does_not_lead_it_far_astray() -> None:
    found = Calibration.of(timed(TRUE, noise=0.03))
    assert all(found.pass_s[rows] == near(seconds, rel=0.1) for rows, seconds in TRUE.pass_s.items())
    assert found.position_s == near(TRUE.position_s, rel=0.2)


def test_what_cannot_be_less_than_nothing_is_nothing() -> None:
    found = Calibration.of(timed(dataclasses.replace(TRUE, step_s=-0.0005)))
    assert found.step_s == 0.0
    assert found.pass_s[1] < TRUE.pass_s[1]


def test_the_machine_takes_those_seconds() -> None:
    stage = [Stage(calibrated(TRUE), LayerRange(0, 30))]
    work = Workload(prompt=100, answer=1, requests=(1, 2, 8))
    found = predict(MODEL, stage, {}, work)
    for one in found.decode:
        expected = took(TimedSteps.decode(30, one.requests, 100, 1.0), TRUE)
        assert one.stages[0].busy_s == near(expected)
    prefill = predict(MODEL, stage, {}, Workload(prompt=256, answer=1, requests=(1,))).prefill
    assert prefill.stages[0].busy_s == near(took(TimedSteps.prompt(30, 256, 64, 1.0), TRUE), rel=0.02)


def test_the_coordinator_takes_its_seconds_between_steps() -> None:
    ends_s = {1: 0.004, 2: 0.005, 4: 0.0065, 8: 0.009}
    here = coordinator_machine("a", MODEL, ends_s, hop_s=0.0, lanes=2)
    stage = [Stage(calibrated(TRUE), LayerRange(0, 30))]
    work = Workload(prompt=10, answer=1, requests=(1, 2, 4, 8))
    assert {one.requests: one.ends_s for one in predict(MODEL, stage, {}, work, here).decode} == near(ends_s)


@pytest.mark.parametrize(
    "some",
    [
        pytest.param(lambda one: one.layers == 6, id="one number of layers"),
        pytest.param(lambda one: one.steps > 1 or one.read_positions < 21, id="one context"),
    ],
)
def test_steps_that_cannot_tell_the_parts_apart_are_refused(some: object) -> None:
    assert callable(some)
    with pytest.raises(PlanError, match="cannot calibrate"):
        Calibration.of([one for one in timed(TRUE) if some(one)])


def test_a_machine_needs_a_row_and_a_chunk() -> None:
    with pytest.raises(PlanError, match="steps of 1 and of 128 rows are needed"):
        TRUE.machine("a", MODEL, chunk=128, hop_s=0.0, lanes=1)
