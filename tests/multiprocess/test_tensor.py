"""Stages of several processes: the tokens of mlx-lm, and one end for all processes of a stage."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from edgepp.engine.pipeline import Pipeline
from edgepp.engine.pipeline_options import PipelineOptions
from edgepp.engine.request import GenerateOptions, SamplingOptions
from edgepp.errors import EdgeppError, StageLost, UsageError
from edgepp.model.offline_model import fetch_and_convert
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from tests import reference
from tests.cluster import edgepp
from tests.engines import collect
from tests.waiting import PATIENCE_S, eventually

SHAPE = replace(TINY, heads=8, kv_heads=4, bits=4, group_size=32, dtype="float16", hidden=128)
PROMPT = list(range(100, 150))


def greedy(path: Path, n: int = 24, **options: object) -> list[int]:
    with Pipeline(PipelineOptions(str(path), exact=True, threads=1, **options)) as pipeline:  # type: ignore[arg-type]
        assert [stage.has_head for stage in pipeline.stages] == [False] * (len(pipeline.stages) - 1) + [True]
        return collect(pipeline.engine.submit(PROMPT, GenerateOptions(max_tokens=n, ignore_eos=True)))


@pytest.mark.parametrize(
    ("tensor", "stages", "backend"),
    [((1, 1), None, "onnx"), ((1, 1), 2, "onnx"), ((3, 1), None, "mlx"), ((1, 1, 1, 1), None, "onnx")],
    ids=str,
)
def test_stages_of_several_processes(tensor: Sequence[int], stages: int | None, backend: str, tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "tiny", SHAPE)
    found = greedy(path, tensor=tuple(tensor), stages=stages, backend=backend)
    assert found == reference.greedy(path, PROMPT, 24)


@pytest.mark.parametrize("tensor", [(1, 1, 1), (2, 1)], ids=str)
def test_smollm2_with_nine_heads(tensor: tuple[int, ...]) -> None:
    path = fetch_and_convert()
    assert greedy(path, tensor=tensor) == reference.greedy(path, PROMPT, 24)


@pytest.mark.parametrize(("rank", "number"), [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGSTOP)], ids=str)
def test_a_lost_rank_ends_its_stage_and_all_requests_with_an_error_that_names_it(
    rank: int, number: int, tmp_path: Path
) -> None:
    """A pipeline without a node, which would start the stage again."""
    path = make_checkpoint(tmp_path / "tiny", SHAPE)
    before = set(psutil.Process().children())
    with Pipeline(PipelineOptions(str(path), tensor=(1, 1), threads=1)) as pipeline:
        [first] = [psutil.Process(stage.pid) for stage in pipeline.stages]
        ranks = [first, *(one for one in set(psutil.Process().children()) - before if is_other_rank(one, first))]
        assert len(ranks) == 2
        options = [GenerateOptions(max_tokens=400, ignore_eos=True)] * 2
        options += [replace(options[0], sampling=SamplingOptions(0.9, seed=seed)) for seed in (1, 2)]
        requests = [pipeline.engine.submit(PROMPT[:20], one) for one in options]
        assert requests[0].events.get(timeout=PATIENCE_S)
        ranks[rank].send_signal(number)
        for request in requests:
            with pytest.raises(StageLost, match=r"stage 0 \(layers 0-3\) on node"):
                collect(request)
        eventually("both processes have ended", lambda: not any(alive(one) for one in ranks))


def is_other_rank(process: psutil.Process, first: psutil.Process) -> bool:
    return process != first and "edgepp.stage_process.main" in " ".join(process.cmdline())


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_shares_that_do_not_fit_start_no_process(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "tiny", SHAPE)
    before = len(psutil.Process().children())
    with pytest.raises(UsageError, match="4 KV heads"):
        greedy(path, tensor=(1, 1, 1))
    assert len(psutil.Process().children()) == before


def test_weights_that_cannot_be_loaded_are_named(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "tiny", SHAPE)
    with pytest.raises(EdgeppError, match="8 bits, not in 4"):
        greedy(path, tensor=(1, 1), kv_bits=4, backend="onnx")


def test_the_command_line(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "tiny", SHAPE)
    whole, shared = (
        edgepp("chat", "-m", str(path), "--exact", "-p", "Hi", "-n", "8", *more)
        for more in (("--alone",), ("--tensor", "3:1"))
    )
    assert whole.returncode == shared.returncode == 0, shared.stderr
    assert whole.stdout == shared.stdout
    refused = edgepp("chat", "-m", str(path), "--tensor", "3", "-p", "Hi")
    assert refused.returncode == 2
    assert "--tensor 2:1:1" in refused.stderr
