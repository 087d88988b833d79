"""Threads, spinning and busy waiting, for every role on a machine of four cores."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgepp.engine.pipeline_options import PipelineOptions
from edgepp.errors import UsageError
from edgepp.layer_range import LayerRange
from edgepp.stage_process import compute_policy
from edgepp.stage_process.compute_policy import ComputePolicy
from edgepp.stage_process.config import StageConfig, StageSettings
from edgepp.wire.address import Address
from edgepp.wire.security import KeyPair


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute_policy, "physical_cores", lambda: 4)


@pytest.mark.parametrize(
    ("threads", "expected"), [(None, (4, True, False)), (1, (1, True, False)), (8, (8, True, False))]
)
def test_a_model_alone_has_the_machine_to_itself(threads: int | None, expected: tuple[int, bool, bool]) -> None:
    policy = PipelineOptions("m", threads=threads).policy
    assert (policy.threads, policy.spin, policy.awake) == expected


@pytest.mark.parametrize(
    ("threads", "stages", "expected"),
    [
        (None, 1, (4, False, True)),
        (None, 2, (2, False, True)),
        (None, 5, (1, False, False)),
        (2, 2, (2, False, True)),
        (3, 2, (3, False, False)),
    ],
)
def test_local_stages_share_the_cores(threads: int | None, stages: int, expected: tuple[int, bool, bool]) -> None:
    policy = PipelineOptions("m", threads=threads, stages=stages).policy
    assert (policy.threads, policy.spin, policy.awake) == expected


@pytest.mark.parametrize(
    ("threads", "stages", "expected"),
    [
        (None, 1, (4, True, True)),
        (4, 1, (4, True, True)),
        (2, 1, (2, False, True)),
        (8, 1, (8, False, False)),
        (None, 2, (2, False, True)),
        (None, 8, (1, False, False)),
    ],
)
def test_a_node_divides_its_threads(threads: int | None, stages: int, expected: tuple[int, bool, bool]) -> None:
    policy = ComputePolicy.node(threads, stages)
    assert (policy.threads, policy.spin, policy.awake) == expected


@pytest.mark.parametrize(
    ("threads", "processes", "expected"),
    [(2, 2, None), (4, 2, None), (3, 1, (1, False)), (1, 2, (2, True)), (2, 0, (2, True)), (8, 0, (8, True))],
)
def test_an_engine_waits_awake_where_two_cores_are_left(
    threads: int, processes: int, expected: tuple[int, bool] | None
) -> None:
    policy = ComputePolicy.coordinator(threads, processes)
    assert (policy and (policy.threads, policy.awake)) == expected


@pytest.mark.parametrize("threads", [0, -1])
def test_a_process_without_threads_is_refused(threads: int) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        PipelineOptions("m", threads=threads)
    with pytest.raises(UsageError, match="at least 1"):
        ComputePolicy.node(threads)


def test_a_stage_reads_its_configuration(tmp_path: object) -> None:
    settings = StageSettings(ComputePolicy(2, awake=True), "onnx", Address("10.0.0.1", 7), "mini", KeyPair.generate())
    config = settings.config(tmp_path, "m", LayerRange(2, 5), exact=True, kv_bits=8, admit=("key",))  # type: ignore[arg-type]
    told = StageConfig.decode(config.encode().decode())
    assert told == config
    known = replace(config, speed_us=(3, 5))
    assert StageConfig.decode(known.encode().decode()) == known
    assert (told.layers, told.keys, told.policy) == (LayerRange(2, 5), settings.keys, settings.policy)
    assert settings.keys is not None
    assert settings.keys.secret not in repr(config)


@pytest.mark.parametrize(("threads", "said"), [(0, "at least 1"), (100_000, "100000 threads are too many")])
def test_a_number_of_threads_that_cannot_be_is_refused_before_they_are_started(threads: int, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        _ = PipelineOptions("m", threads=threads).policy
