"""The output head in the last stage, where stages take all cores: the answers of one process, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgepp.engine.pipeline import Pipeline
from edgepp.engine.pipeline_options import PipelineOptions
from edgepp.engine.request import GenerateOptions
from edgepp.stage_process import compute_policy
from tests import reference
from tests.engines import collect
from tests.multiprocess.test_guesses import QUESTIONS, asked, record

KINDS = {**QUESTIONS, "prompt": GenerateOptions(8, prompt_logprobs=2)}
PROMPT = list(range(100, 150))


@pytest.fixture
def two_cores() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compute_policy, "physical_cores", lambda: 2)
        yield


def answers(stages: int | None, speculate: str = "off") -> tuple[list[bool], dict[str, Any]]:
    """Which stages have the head, and what came of each kind of request."""
    options = PipelineOptions("smollm2-135m", stages=stages, threads=1, speculate=speculate)
    found = {}
    with Pipeline(options) as pipeline:
        for kind, one in KINDS.items():
            stream, text = asked(pipeline, one)
            found[kind] = {**record(stream), "text": text, "scores": stream.prompt_sampled}
        return [stage.has_head for stage in pipeline.stages], found


@pytest.mark.usefixtures("two_cores")
def test_every_kind_of_request_gets_the_answer_of_one_process() -> None:
    _, expected = answers(None)
    for speculate in ("off", "lookup"):
        heads, found = answers(2, speculate)
        assert heads == [False, True]
        for kind, one in expected.items():
            assert found[kind] == one, (kind, speculate)


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize("stages", [1, 2, 4])
def test_mlx_gives_mlx_lms_tokens(stages: int, tiny: Path) -> None:
    """The backend of Macs, whose stages take all cores too."""
    options = PipelineOptions(str(tiny), stages=stages, threads=2, exact=True, backend="mlx")
    with Pipeline(options) as pipeline:
        assert [stage.has_head for stage in pipeline.stages] == [False] * (stages - 1) + [True]
        found = collect(pipeline.engine.submit(PROMPT, GenerateOptions(24, ignore_eos=True)))
    assert found == reference.greedy(tiny, PROMPT, 24)


def test_a_coordinator_with_a_core_of_its_own_has_the_head(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute_policy, "physical_cores", lambda: 3)
    with Pipeline(PipelineOptions(str(tiny), stages=2, threads=1, exact=True, backend="onnx")) as pipeline:
        assert not any(stage.has_head for stage in pipeline.stages)
        found = collect(pipeline.engine.submit(PROMPT, GenerateOptions(24, ignore_eos=True)))
    assert found == reference.greedy(tiny, PROMPT, 24)
