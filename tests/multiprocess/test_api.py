"""The Python interface, and the two examples that document it, on the real SmolLM2."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

import edgepp
from edgepp.errors import EdgeppError, PairingError
from edgepp.model.random import TINY, make_checkpoint
from tests.multiprocess.test_serve import Machine, serving

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_checkpoint(tmp_path_factory.mktemp("model"), TINY))


def options(tokens: int, **more: bool) -> edgepp.GenerateOptions:
    return edgepp.GenerateOptions(max_tokens=tokens, **more)


def test_answers_at_once_are_those_of_one_at_a_time(tiny: str) -> None:
    async def main() -> tuple[list[edgepp.Completion], list[edgepp.Completion]]:
        questions = ["one", "two", "three"]
        async with edgepp.Engine(tiny, exact=True) as engine:
            alone = [await engine.ask(question, options(8, ignore_eos=True)).whole() for question in questions]
            asked = (engine.ask(question, options(8, ignore_eos=True)).whole() for question in questions)
            return alone, list(await asyncio.gather(*asked))

    alone, together = asyncio.run(main())
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    assert {answer.finish_reason for answer in together} == {"length"}


def test_an_answer_that_is_left_is_cancelled(tiny: str) -> None:
    async def main() -> int:
        async with edgepp.Engine(tiny) as engine:
            pieces = engine.ask("tell me", options(200, ignore_eos=True)).__aiter__()
            await pieces.__anext__()
            await pieces.aclose()  # type: ignore[attr-defined]
            return len((await engine.ask("again", options(3, ignore_eos=True)).whole()).token_ids)

    assert asyncio.run(main()) == 3


def test_what_is_wrong_is_raised(tiny: str) -> None:
    async def too_long() -> None:
        async with edgepp.Engine(tiny) as engine:
            await engine.ask("x" * 100_000, options(3)).whole()

    with pytest.raises(EdgeppError, match="context"):
        asyncio.run(too_long())
    with pytest.raises(EdgeppError, match="not open"):
        edgepp.Engine(tiny).ask("hi")


def test_a_machine_without_a_cluster_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPP_HOME", str(tmp_path))

    async def main() -> None:
        async with edgepp.connect():
            raise AssertionError("there is no cluster")

    with pytest.raises(PairingError, match="belongs to no cluster"):
        asyncio.run(main())


def test_the_local_example_runs() -> None:
    done = subprocess.run([sys.executable, str(EXAMPLES / "local.py")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("tokens, ") == 3


def test_the_cluster_example_runs(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "one")
    with serving(machine, Path("smollm2-135m")):
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / "cluster.py")],
            capture_output=True,
            text=True,
            timeout=120,
            env=machine.env(),
        )
    assert done.returncode == 0, done.stderr
    assert "sky" in done.stdout
    assert done.stdout.rstrip().endswith(("Is it? yes", "Is it? no"))
