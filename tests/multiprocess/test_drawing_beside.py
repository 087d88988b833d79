"""Tokens drawn beside the engine thread, over stage processes: as where the coordinator has cores of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgepp.engine.pipeline import Pipeline
from edgepp.engine.pipeline_options import PipelineOptions
from edgepp.engine.request import GenerateOptions
from edgepp.model.random_checkpoint import TINY
from edgepp.stage_process import compute_policy
from tests.engines import collect
from tests.loopback.test_engine import Alone


def test_requests_at_once_get_the_tokens_that_each_gets_alone(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute_policy, "physical_cores", lambda: 4)
    random = np.random.default_rng(5)
    prompts = [[int(token) for token in random.integers(3, TINY.vocabulary, 20 + 9 * n)] for n in range(7)]
    options = PipelineOptions(str(tiny), stages=2, threads=1, exact=True, backend="onnx", speculate="off")
    with Pipeline(options) as pipeline:
        engine = pipeline.engine
        assert engine._loop._drawing is not None
        alone = [Alone.of(engine, text, 24) for text in prompts]
        for _ in range(3):
            asked = [engine.submit(text, GenerateOptions(24), owner="another") for text in prompts]
            for one, request in zip(alone, asked, strict=True):
                came = collect(request)
                assert len(came) == len(one.tokens) or one.ties
                assert one.agrees(came)
        assert engine.load.live == engine.load.waiting == 0
        assert sum(len(one.ties) for one in alone) <= 0.02 * sum(len(one.tokens) for one in alone)
