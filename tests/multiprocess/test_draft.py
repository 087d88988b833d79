"""Guesses of a small model in real processes: on a member that joined to draft, and on one without layers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

import edgepp
from edgepp.engine.speculation import GuessPlan, SpeculationControl
from edgepp.model.fetch import fetch
from edgepp.python_api import ServedCluster
from tests.builders.truncated import truncated
from tests.cluster import EDGEPP
from tests.waiting import PATIENCE_S

ANSWER = edgepp.GenerateOptions(max_tokens=40, ignore_eos=True)
QUESTION = "Write a story about a lighthouse and its keeper."
WHOLE = "smollm2-135m"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process's own machine; guesses never seem not to pay."""
    monkeypatch.setenv("EDGEPP_HOME", str(tmp_path / "here"))
    monkeypatch.setenv("EDGEPP_NAME", "here")
    monkeypatch.setattr(SpeculationControl, "plan", lambda *_, **__: GuessPlan(behind=2))
    return tmp_path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Nine tenths of SmolLM2's layers: it guesses a good part of what the whole model says."""
    return str(truncated(fetch(WHOLE), tmp_path_factory.mktemp("model") / "small", 27))


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 3 * PATIENCE_S))  # type: ignore[arg-type]


@asynccontextmanager
async def joined(cluster: ServedCluster, home: Path, *options: str) -> AsyncIterator[psutil.Process]:
    """`edgepp join` on another machine."""
    env = os.environ | {"EDGEPP_HOME": str(home / "there"), "EDGEPP_NAME": "there"}
    arguments = ("join", "--peer", cluster.address, "--threads", "1", "--memory", "2GB", *options)
    started = await asyncio.create_subprocess_exec(
        *EDGEPP, *arguments, env=env | {"EDGEPP_TOKEN": await cluster.token()}
    )
    try:
        yield psutil.Process(started.pid)
    finally:
        if started.returncode is None:
            started.terminate()
        await started.wait()


async def until(cluster: ServedCluster, look: Callable[[dict[str, Any]], object]) -> None:
    """Wait until ``look`` finds what it looks for in the cluster's state."""
    for _ in range(int(PATIENCE_S / 0.05)):
        if look(cluster.status):
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"still not so: {cluster.status}")


async def asked(cluster: ServedCluster) -> edgepp.Answer:
    async with edgepp.connect(cluster.address) as connection:
        return await connection.ask(QUESTION, ANSWER).whole()


def guesses(state: dict[str, Any], model: str | None, node: str | None) -> bool:
    return (state["guesses"]["model"], state["guesses"]["node"]) == (model, node)


def test_a_member_that_joined_to_draft_guesses_until_it_dies_and_when_it_is_back(small: str, home: Path) -> None:
    async def main() -> None:
        async with edgepp.serve(WHOLE, listen="127.0.0.1:0", threads=1, context=1024) as cluster:
            await cluster.ready()
            alone = await asked(cluster)
            async with joined(cluster, home, "--draft", small) as node:
                await until(cluster, lambda state: guesses(state, small, "there"))
                [own] = [one for one in cluster.status["nodes"] if one["name"] == "there"]
                assert own["roles"] == ["draft"]
                assert own["reason"] == f"it guesses tokens with {small}"
                helped = await asked(cluster)
                assert helped.token_ids == alone.token_ids
                assert helped.timing.right > alone.timing.right
                for process in node.children():
                    process.kill()
                await until(cluster, lambda state: guesses(state, None, None))
                assert (await asked(cluster)).token_ids == alone.token_ids
                await until(cluster, lambda state: guesses(state, small, "there"))
                assert (await asked(cluster)).token_ids == alone.token_ids
            await until(cluster, lambda state: guesses(state, None, None))
            assert (await asked(cluster)).token_ids == alone.token_ids

    run(main)


def test_a_small_model_guesses_on_this_machine_until_a_member_without_layers_does(small: str, home: Path) -> None:
    async def main() -> None:
        async with edgepp.serve(
            WHOLE, listen="127.0.0.1:0", threads=1, context=1024, layers="0-29", speculate=small
        ) as cluster:
            await cluster.ready()
            await until(cluster, lambda state: guesses(state, small, "here") or state["guesses"]["model"] == small)
            assert (await asked(cluster)).timing.guessed
            async with joined(cluster, home):
                await until(cluster, lambda state: guesses(state, small, "there"))
                assert (await asked(cluster)).timing.guessed
            await until(cluster, lambda state: state["guesses"]["node"] not in (None, "there"))
            assert (await asked(cluster)).timing.guessed

    run(main)


def test_a_model_of_another_family_is_refused_and_answers_go_on(tiny: Path, home: Path) -> None:
    async def main() -> None:
        async with edgepp.serve(WHOLE, listen="127.0.0.1:0", threads=1, context=1024) as cluster:
            await cluster.ready()
            async with joined(cluster, home, "--draft", str(tiny)):
                await until(cluster, lambda state: "their tokens differ" in state["guesses"]["problem"])
                assert (await asked(cluster)).token_ids

    run(main)
