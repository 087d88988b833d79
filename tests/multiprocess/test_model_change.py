"""A running cluster changes its model: tiny models on real stage processes."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

import edgepp
from edgepp.coordinator import model_change
from edgepp.engine.frontend import ModelFrontend
from edgepp.engine.request import GenerateOptions
from edgepp.errors import EdgeppError, ModelError, NotReady, PlanError, UsageError
from edgepp.events import ModelChanged, ModelNotChanged
from edgepp.model.random_checkpoint import TINY
from edgepp.python_api import ServedCluster
from tests.builders.checkpoints import Checkpoints
from tests.cluster import edgepp as run_edgepp
from tests.engines import Brake
from tests.waiting import PATIENCE_S, eventually

T = TypeVar("T")
LONG = replace(TINY, context=8192)


@pytest.fixture
def models(checkpoints: Checkpoints) -> tuple[str, str]:
    """Two models with different numbers of layers, and so different plans."""
    return str(checkpoints(LONG)), str(checkpoints(replace(LONG, layers=6)))


def with_cluster(model: str, work: Callable[[ServedCluster], Awaitable[T]], **options: Any) -> T:
    """The result of ``work`` with a ready cluster of two stages."""

    async def main() -> T:
        async with edgepp.serve(model, stages=2, listen="127.0.0.1:0", threads=1, context=8192, **options) as cluster:
            await cluster.ready()
            return await work(cluster)

    return asyncio.run(asyncio.wait_for(main(), 4 * PATIENCE_S))


async def until(what: str, look: Callable[[], bool]) -> None:
    await asyncio.to_thread(eventually, what, look)


def long(tokens: int) -> GenerateOptions:
    return GenerateOptions(tokens, ignore_eos=True)


def test_answers_end_before_the_model_changes_and_later_ones_come_from_the_other(
    models: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = models
    brake, opened, begun = Brake(monkeypatch), threading.Event(), threading.Event()
    open_frontend = ModelFrontend.open

    def open_before_the_answer(*arguments: Any, **options: Any) -> ModelFrontend:
        frontend = open_frontend(*arguments, **options)
        opened.set()
        assert begun.wait(PATIENCE_S)
        return frontend

    async def work(cluster: ServedCluster) -> None:
        before = cluster.frontend
        seen: list[str] = []
        with monkeypatch.context() as patch:
            patch.setattr(ModelFrontend, "open", open_before_the_answer)
            loading = asyncio.create_task(cluster.load(second, lambda change: seen.append(change.state)))
            await asyncio.to_thread(opened.wait, PATIENCE_S)
        brake.after(30)
        answer = cluster.ask("Once upon", long(60), raw=True)
        pieces = answer.pieces()
        while not answer.token_ids:
            await pieces.__anext__()
        begun.set()
        await until("the change waits", lambda: "waiting" in seen)
        assert cluster.status["change"]["state"] == "waiting"
        assert "is changing its model" in cluster.reason
        waiting = asyncio.create_task(cluster.ask("Once upon", long(5), raw=True).whole())
        brake.release()
        async for _ in pieces:
            continue
        assert len(answer.token_ids) == 60
        await loading
        later = await waiting
        assert len(later.token_ids) == 5
        assert len(later.stages) == 2
        assert later.stages[-1].layers.stop == 6
        assert cluster.frontend is not before
        assert cluster.status["model"] == second
        assert cluster.status["change"]["state"] == "ready"
        assert {"waiting", "loading"} <= set(seen)
        asked = cluster.ask((1, 2, 3), long(5), encoded_by=before)
        with pytest.raises(NotReady, match="changed its model"):
            await asked.whole()
        await cluster.load(second)
        await cluster.load(first)
        assert len((await cluster.ask("Once upon", long(5), raw=True).whole()).token_ids) == 5

    with_cluster(first, work)


def test_a_model_that_cannot_be_had_or_does_not_fit_leaves_the_former_one_running(
    models: tuple[str, str], checkpoints: Checkpoints, tmp_path: Path
) -> None:
    first, _ = models
    large = str(checkpoints(replace(TINY, layers=200, ffn=1024)))

    async def work(cluster: ServedCluster) -> None:
        for model, error in ((str(tmp_path / "none"), ModelError), ("no-such-model", ModelError), (large, PlanError)):
            with pytest.raises(error):
                await cluster.load(model)
            assert cluster.status["change"]["state"] == "failed"
            assert cluster.status["model"] == first
            assert not cluster.reason
            assert len((await cluster.ask("Once upon", long(5), raw=True).whole()).token_ids) == 5
        assert cluster.status["plan_version"] == 1

    with_cluster(first, work, memory=200_000_000)


def test_a_model_that_the_nodes_cannot_load_is_given_up_for_the_former_one(
    models: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = models[0], tmp_path / "second"
    shutil.copytree(models[1], second)
    open_frontend = ModelFrontend.open

    def open_and_take_away(*arguments: Any, **options: Any) -> ModelFrontend:
        frontend = open_frontend(*arguments, **options)
        (second / "model.safetensors").rename(tmp_path / "away")
        return frontend

    async def work(cluster: ServedCluster) -> None:
        monkeypatch.setattr(ModelFrontend, "open", open_and_take_away)
        with pytest.raises(EdgeppError, match="the cluster goes on with"):
            await cluster.load(str(second))
        await cluster.ready()
        assert len((await cluster.ask("Once upon", long(5), raw=True).whole()).token_ids) == 5
        assert cluster.status["model"] == first

    with_cluster(first, work)


def test_answers_that_do_not_end_in_time_hear_why(models: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = models
    begun = threading.Event()
    open_frontend = ModelFrontend.open

    def open_after_the_answer(*arguments: Any, **options: Any) -> ModelFrontend:
        frontend = open_frontend(*arguments, **options)
        assert begun.wait(PATIENCE_S)
        return frontend

    async def work(cluster: ServedCluster) -> None:
        monkeypatch.setattr(model_change, "DRAIN_S", 0.0)
        monkeypatch.setattr(ModelFrontend, "open", open_after_the_answer)
        loading = asyncio.create_task(cluster.load(second))
        answer = cluster.ask("Once upon", long(8000), raw=True)
        pieces = answer.pieces()
        while not answer.token_ids:
            await pieces.__anext__()
        begun.set()
        with pytest.raises(NotReady, match="during this answer"):
            await drain(pieces)
        await loading

    async def drain(pieces: object) -> None:
        async for _ in pieces:  # type: ignore[attr-defined]
            continue

    with_cluster(first, work, speculate="off")


def test_one_change_at_a_time_and_the_events_tell_of_each(models: tuple[str, str]) -> None:
    first, second = models

    async def work(cluster: ServedCluster) -> None:
        loading = asyncio.create_task(cluster.load(second))
        await asyncio.sleep(0)
        with pytest.raises(UsageError, match="is changing its model"):
            await cluster.load(first)
        await loading
        with pytest.raises(ModelError):
            await cluster.load("no-such-model")
        heard: list[type] = []
        async for event in cluster.events():
            heard.append(type(event))
            if isinstance(event, ModelNotChanged):
                break
        assert ModelChanged in heard

    with_cluster(first, work)


def test_edgepp_use_changes_the_model_and_says_why_it_does_not(models: tuple[str, str]) -> None:
    first, second = models

    async def work(cluster: ServedCluster) -> None:
        done = await asyncio.to_thread(run_edgepp, "use", second, "--json")
        assert done.returncode == 0, done.stderr
        told = [json.loads(line) for line in done.stdout.splitlines()]
        assert told[-1]["event"] == "ready"
        assert told[-1]["model"] == second
        again = await asyncio.to_thread(run_edgepp, "use", second)
        assert (again.returncode, again.stdout, again.stderr) == (0, f"the cluster runs {second} already\n", "")
        again = await asyncio.to_thread(run_edgepp, "use", second, "--json")
        (only,) = map(json.loads, again.stdout.splitlines())
        assert (only["event"], only["changed"]) == ("ready", False)
        failed = await asyncio.to_thread(run_edgepp, "use", "no-such-model")
        assert failed.returncode == 1
        assert "fetching" not in failed.stderr
        assert "no-such-model" in failed.stderr
        assert cluster.status["model"] == second

    with_cluster(first, work)
