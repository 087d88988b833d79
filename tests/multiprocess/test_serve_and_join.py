"""A cluster and its nodes from Python: ``edgepp.serve``, ``edgepp.join``, ``edgepp.stage``."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

import edgepp
from edgepp.cluster.discovery.announcement import Announcement
from edgepp.cluster.discovery.mdns import Browser
from edgepp.cluster.node_lock import wait_until_ended
from edgepp.errors import EdgeppError, PairingError, UsageError
from edgepp.events import AssignmentChanged, ClusterLeft, CoordinatorReached, Event, PipelineOpened
from edgepp.layer_range import LayerRange
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from tests.cluster import EDGEPP
from tests.processes import children
from tests.waiting import PATIENCE_S, eventually

ANSWER = edgepp.GenerateOptions(max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_checkpoint(tmp_path_factory.mktemp("model"), TINY))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process's own machine."""
    monkeypatch.setenv("EDGEPP_HOME", str(tmp_path / "here"))
    monkeypatch.setenv("EDGEPP_NAME", "here")
    return tmp_path


def run(main: Callable[[], object]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(main(), 2 * PATIENCE_S)  # type: ignore[arg-type]

    asyncio.run(bounded())


def there(home: Path, **more: str) -> dict[str, str]:
    """The environment of another machine."""
    return os.environ | {"EDGEPP_HOME": str(home / "there"), "EDGEPP_NAME": "there"} | more


@asynccontextmanager
async def command(*arguments: str, env: dict[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """An edgepp command of another machine, ended as by Ctrl-C."""
    started = await asyncio.create_subprocess_exec(*EDGEPP, *arguments, env=env)
    try:
        yield started
    finally:
        if started.returncode is None:
            started.terminate()
        await started.wait()


async def until(events: AsyncIterator[Event], wanted: Callable[[Event], bool]) -> Event:
    async for event in events:
        if wanted(event):
            return event
    raise AssertionError("the events ended")


def test_a_program_serves_and_another_machine_joins_by_its_token(tiny: str, home: Path) -> None:
    async def main() -> None:
        async with edgepp.serve(tiny, listen="127.0.0.1:0", threads=1, memory="1GB") as cluster:
            await cluster.ready()
            env = there(home, EDGEPP_TOKEN=await cluster.token())
            async with command("join", "--peer", cluster.address, "--threads", "1", "--memory", "1GB", env=env):
                events = cluster.events()
                await until(
                    events, lambda event: isinstance(event, PipelineOpened) and len(cluster.status["stages"]) == 2
                )
                async with edgepp.connect(cluster.address) as connection:
                    answer = await connection.ask("Once", ANSWER, raw=True).whole()
                assert len(answer.token_ids) == 8
                assert [stage.node for stage in answer.stages] == ["here", "there"]
            with pytest.raises(UsageError, match="a node already"):
                await edgepp.serve(tiny, listen="127.0.0.1:0").open()
        assert not children()

    run(main)


@pytest.mark.parametrize("by_token", [True, False], ids=["token", "code"])
def test_a_program_joins_with_pinned_layers_and_leaves(tiny: str, home: Path, by_token: bool) -> None:
    serving = """
import asyncio, sys, edgepp
async def main():
    async with edgepp.serve(sys.argv[1], listen="127.0.0.1:0", threads=1) as cluster:
        print(cluster.address, await (cluster.token() if sys.argv[2] == "token" else cluster.invite()), flush=True)
        async for event in cluster.events():
            print(event, file=sys.stderr)
asyncio.run(main())
"""

    async def main() -> None:
        way = "token" if by_token else "code"
        served = await asyncio.create_subprocess_exec(
            sys.executable, "-c", serving, tiny, way, env=there(home), stdout=asyncio.subprocess.PIPE
        )
        try:
            assert served.stdout is not None
            address, secret = (await served.stdout.readline()).decode().split()
            given = {"token": secret} if by_token else {"code": secret}
            async with edgepp.join(**given, peers=[address], layers="1-3", threads=1) as node:  # type: ignore[arg-type]
                events = node.events()
                reached = await until(events, lambda event: isinstance(event, CoordinatorReached))
                assert reached == CoordinatorReached("there", address)
                assignment = await until(
                    events, lambda event: isinstance(event, AssignmentChanged) and bool(event.layers)
                )
                assert isinstance(assignment, AssignmentChanged)
                assert assignment.layers == (LayerRange(1, 4),)
                async with edgepp.connect(address) as connection:
                    assert (await connection.ask("Once", ANSWER, raw=True).whole()).token_ids
                async with command("leave", env=dict(os.environ)) as leaving:
                    assert await until(events, lambda event: isinstance(event, ClusterLeft)) == ClusterLeft("there")
                    assert [event async for event in events] == []
                    assert await leaving.wait() == 0
            assert children() == [psutil.Process(served.pid), *psutil.Process(served.pid).children(recursive=True)]
        finally:
            served.kill()
            await served.wait()

    run(main)


def test_two_lone_stages_answer_an_engine(tiny: str) -> None:
    async def main() -> None:
        with pytest.raises(UsageError, match="neither encrypted"):
            edgepp.stage(tiny, "0-1", listen="0.0.0.0:0")
        async with (
            edgepp.stage(tiny, "0-1", threads=1) as one,
            edgepp.stage(tiny, "2-3", threads=1) as two,
            edgepp.Engine(tiny, peers=[one.address, two.address]) as engine,
        ):
            assert len((await engine.ask("Once", ANSWER, raw=True).whole()).token_ids) == 8
            (child,) = [process for process in children() if process.pid == one.service.pid]
            child.kill()
            with pytest.raises(EdgeppError, match="ended by itself"):
                await until(one.events(), lambda _: False)
        assert not children()

    run(main)


def test_a_machine_that_was_not_invited_is_told_so() -> None:
    async def main() -> None:
        with pytest.raises(PairingError, match="belongs to no cluster"):
            await edgepp.join(peers=["127.0.0.1:9"]).open()

    run(main)


def test_a_join_that_is_cancelled_looks_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = threading.Event()
    find = Browser.find

    def look(
        self: Browser, accept: Callable[[Announcement], bool], _: float, given_up: threading.Event
    ) -> tuple[Announcement, ...]:
        begun.set()
        return find(self, accept, 10 * PATIENCE_S, given_up)

    monkeypatch.setattr(Browser, "find", look)

    async def main() -> None:
        opening = asyncio.create_task(edgepp.join("7-tango-lemon").open())
        assert await asyncio.to_thread(begun.wait, PATIENCE_S)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert await asyncio.to_thread(wait_until_ended, PATIENCE_S), "this machine's node still runs"

    run(main)


@pytest.mark.parametrize("what", ["serve", "stage"])
def test_what_is_cancelled_while_it_opens_leaves_no_process(tiny: str, what: str) -> None:
    async def main() -> None:
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        def progress(*_: object) -> None:
            loop.call_soon_threadsafe(begun.set)

        made: edgepp.ServedCluster | edgepp.LoneStage
        made = edgepp.serve(tiny, listen="127.0.0.1:0") if what == "serve" else edgepp.stage(tiny, "0-3")
        opening = asyncio.create_task(made.open(progress))
        done, _ = await asyncio.wait([opening, asyncio.create_task(begun.wait())], return_when="FIRST_COMPLETED")
        assert done
        opening.cancel()
        await asyncio.wait([opening])
        await made.close()
        await asyncio.to_thread(eventually, "no process is left", lambda: not children())

    run(main)


@pytest.mark.parametrize("what", ["serve", "stage"])
def test_a_cancelled_reader_of_events_leaves_no_process(tiny: str, what: str) -> None:
    async def main() -> None:
        opened = asyncio.Event()

        async def use() -> None:
            made: edgepp.ServedCluster | edgepp.LoneStage
            made = edgepp.serve(tiny, listen="127.0.0.1:0", threads=1) if what == "serve" else edgepp.stage(tiny, "0-3")
            async with made:
                if isinstance(made, edgepp.ServedCluster):
                    await made.ready()
                opened.set()
                async for _ in made.events():
                    continue

        using = asyncio.create_task(use())
        await opened.wait()
        assert children()
        using.cancel()
        with pytest.raises(asyncio.CancelledError):
            await using
        assert not children()

    run(main)


def test_the_example_runs(tiny: str) -> None:
    example = Path(__file__).parents[2] / "examples" / "serve_and_join.py"
    done = subprocess.run(
        [sys.executable, str(example), tiny], capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "two: this machine runs layers" in done.stdout
