"""The Python interface, and the two examples that document it, on the real SmolLM2."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

import edgepp
from edgepp.errors import EdgeppError, ModelError, PairingError, PeerLost, UsageError
from edgepp.model.random_checkpoint import TINY
from tests.builders.checkpoints import Checkpoints
from tests.cluster import Machine, serving
from tests.engines import Brake
from tests.waiting import PATIENCE_S

EXAMPLES = Path(__file__).parents[2] / "examples"


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Suspend a process during the block."""
    process = psutil.Process(pid)
    process.suspend()
    yield
    process.resume()


@pytest.fixture
def tiny(checkpoints: Checkpoints) -> str:
    return str(checkpoints(TINY))


def options(tokens: int, seed: int | None = None, **more: bool) -> edgepp.GenerateOptions:
    """Options of an answer of exactly ``tokens`` tokens; sampled, if there is a seed."""
    sampling = edgepp.SamplingOptions(temperature=0.0 if seed is None else 1.0, seed=seed, logprobs=2)
    return edgepp.GenerateOptions(tokens, ignore_eos=True, sampling=sampling, **more)


def test_answers_at_once_are_those_of_one_at_a_time(tiny: str) -> None:
    async def main() -> tuple[list[edgepp.Answer], list[edgepp.Answer]]:
        questions = ["one", "two", "three"]
        async with edgepp.Engine(tiny, exact=True) as engine:
            alone = [await engine.ask(question, options(8)).whole() for question in questions]
            asked = (engine.ask(question, options(8)).whole() for question in questions)
            return alone, list(await asyncio.gather(*asked))

    alone, together = asyncio.run(main())
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    assert {answer.finish_reason for answer in together} == {"length"}


def test_pieces_bring_their_tokens_and_log_probabilities(tiny: str) -> None:
    async def main() -> edgepp.Answer:
        async with edgepp.Engine(tiny, stages=2) as engine:
            assert [stage.pid > 0 for stage in engine.stages] == [True, True]
            answer = engine.ask("count", options(12))
            text = ""
            async for piece in answer:
                text += piece
                assert answer.text == text
                assert [sampled.token for sampled in answer.sampled] == answer.token_ids
            assert await answer.whole() is answer
            with pytest.raises(EdgeppError, match="read only once"):
                await answer.__aiter__().__anext__()
            return answer

    answer = asyncio.run(main())
    assert len(answer.token_ids) == len(answer.sampled) == answer.timing.tokens == 12
    assert answer.prompt_tokens > 0
    assert len(answer.stages) == len(answer.timing.stages) == 2
    assert all(len(sampled.top) == 2 for sampled in answer.sampled)


def test_choices_are_what_single_questions_get_and_share_their_prompt(tiny: str) -> None:
    prompt = "Once upon a time there was a miller who had three sons, a mill, a donkey and a cat."

    async def main() -> tuple[list[edgepp.Answer], list[edgepp.Answer]]:
        async with edgepp.Engine(tiny, exact=True) as engine:
            choices = engine.choices(prompt, 3, options(8, seed=5), raw=True)
            await asyncio.gather(*(choice.whole() for choice in choices))
            asked = [
                engine.ask(prompt, options(8, seed=5 + i), raw=True, owner=f"stranger {i}") for i in range(len(choices))
            ]
            return choices, [await one.whole() for one in asked]

    choices, alone = asyncio.run(main())
    assert [choice.token_ids for choice in choices] == [one.token_ids for one in alone]
    assert len({tuple(choice.token_ids) for choice in choices}) == 3
    computed = [choice.prompt_tokens - choice.timing.reused for choice in choices]
    assert sorted(computed) == [2, 2, choices[0].prompt_tokens], (
        "all of it once, its last tokens for each of the others"
    )
    assert [one.timing.reused for one in alone] == [0, 0, 0], "nobody is served what another owner asked"


def test_leaving_the_loop_cancels_the_answer(tiny: str) -> None:
    async def main() -> int:
        async with edgepp.Engine(tiny) as engine:
            pieces = engine.ask("tell me", options(200)).__aiter__()
            await pieces.__anext__()
            await pieces.aclose()  # type: ignore[attr-defined]
            return len((await engine.ask("again", options(3)).whole()).token_ids)

    assert asyncio.run(main()) == 3


def test_text_before_a_cancellation_is_read(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    brake = Brake(monkeypatch)

    async def main() -> tuple[edgepp.Answer, edgepp.Answer]:
        async with edgepp.Engine(tiny, speculate="off") as engine:
            brake.after(1)
            never = engine.ask("tell me", options(200))
            never.cancel()
            await never.whole()
            brake.after(50)
            answer = engine.ask("tell me", options(200))
            async for _ in answer:
                answer.cancel()
            return never, answer

    never, answer = asyncio.run(main())
    assert (never.finish_reason, answer.finish_reason) == ("cancelled", "cancelled")
    assert len(never.token_ids) < 200
    assert 0 < len(answer.token_ids) < 200


def test_a_task_that_is_cancelled_leaves_nothing(tiny: str) -> None:
    async def main() -> int:
        engine = edgepp.Engine(tiny, stages=2)
        opening = asyncio.create_task(engine.open())
        await asyncio.sleep(0)  # it begins, and ends no earlier than the loop turns again
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert engine.lost is not None
        async with engine:
            with stopped(engine.stages[1].pid), pytest.raises(TimeoutError):
                await asyncio.wait_for(engine.ask("tell me", options(200)).whole(), 0.05)
            return len((await engine.ask("again", options(3)).whole()).token_ids)

    assert asyncio.run(main()) == 3


def test_a_stage_that_died_between_questions_costs_none_of_them(tiny: str) -> None:
    async def main() -> None:
        async with edgepp.Engine(tiny, stages=2) as engine:
            before = [stage.pid for stage in engine.stages]
            psutil.Process(before[0]).kill()
            both = [engine.ask(text, options(3)).whole() for text in ("are you there", "and now")]
            assert [len(answer.token_ids) for answer in await asyncio.gather(*both)] == [3, 3]
            assert engine.lost is None
            assert not {stage.pid for stage in engine.stages} & set(before)
            psutil.Process(engine.stages[1].pid).suspend()  # so that it cannot end by itself
            unfinished = asyncio.create_task(engine.ask("tell me", options(200)).whole())
            await asyncio.sleep(0)
        with pytest.raises(EdgeppError, match=r"closed|not open"):
            await unfinished

    asyncio.run(main())


def test_errors_are_raised(tiny: str) -> None:
    async def main() -> None:
        async with edgepp.Engine(tiny) as engine:
            with pytest.raises(UsageError, match="context"):
                await engine.ask("x" * 100_000, options(3)).whole()
            with pytest.raises(UsageError, match="17 choices"):
                engine.choices("hi", 17)
            with pytest.raises(UsageError, match="cannot be raw"):
                engine.ask([{"role": "user", "content": "hi"}], raw=True)

    asyncio.run(main())
    with pytest.raises(EdgeppError, match="not open"):
        asyncio.run(edgepp.Engine(tiny).ask("hi").whole())
    with pytest.raises(UsageError, match="exclude each other"):
        edgepp.Engine(tiny, stages=2, peers=["127.0.0.1:1"])
    with pytest.raises(ModelError):
        asyncio.run(edgepp.Engine("/nowhere").open())


def test_connecting_without_a_cluster_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPP_HOME", str(tmp_path))

    async def main() -> None:
        async with edgepp.connect():
            raise AssertionError("there is no cluster")

    with pytest.raises(PairingError, match="belongs to no cluster"):
        asyncio.run(main())


def test_the_local_example_runs() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "local.py")], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("tokens, ") == done.stdout.count("A choice: ") == 3


def test_the_cluster_example_runs_and_a_cluster_gives_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> list[edgepp.Answer]:
        async with edgepp.connect() as cluster:
            assert cluster.runs("smollm2-135m")
            assert cluster.status["state"] == "ready"
            choices = cluster.choices("Tell me about the sky above the sea. " * 4, 2, options(6, seed=3))
            return list(await asyncio.gather(*(choice.whole() for choice in choices)))

    machine = Machine(tmp_path, "one")
    with serving(machine, Path("smollm2-135m")):
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / "cluster.py")],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            env=machine.env(),
        )
        monkeypatch.setenv("EDGEPP_HOME", machine.env()["EDGEPP_HOME"])
        choices = asyncio.run(main())
    assert done.returncode == 0, done.stderr
    assert "sky" in done.stdout
    assert done.stdout.rstrip().endswith(("Is it? yes", "Is it? no"))
    assert [[sampled.token for sampled in choice.sampled] for choice in choices] == [c.token_ids for c in choices]
    assert choices[0].token_ids != choices[1].token_ids
    assert max(choice.timing.reused for choice in choices) == choices[0].prompt_tokens - 2


def test_an_answer_that_waits_for_a_loading_cluster_can_be_cancelled(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with edgepp.connect() as cluster:
            assert cluster.stages == ()
            answer = asyncio.create_task(cluster.ask("hello", options(3)).whole())
            while not cluster.status["answers"]["under_way"]:
                await cluster.open()
            answer.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(answer, PATIENCE_S)

    machine = Machine(tmp_path, "one")
    with serving(machine, Path(tiny), "--no-stage"):
        monkeypatch.setenv("EDGEPP_HOME", machine.env()["EDGEPP_HOME"])
        asyncio.run(main())


def test_a_coordinator_that_was_lost_is_found_again(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path, "one")
    monkeypatch.setenv("EDGEPP_HOME", machine.env()["EDGEPP_HOME"])

    async def main() -> None:
        with serving(machine, Path(tiny)):
            cluster = edgepp.connect()
            await cluster.open()
            assert len((await cluster.ask("hello", options(3)).whole()).token_ids) == 3
        with pytest.raises(PeerLost):
            await cluster.ask("are you there", options(3)).whole()
        with serving(machine, Path(tiny)):
            assert len((await cluster.ask("hello again", options(3)).whole()).token_ids) == 3
        await cluster.close()

    asyncio.run(main())
