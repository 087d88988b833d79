"""The real model: SmolLM2-135M-Instruct over real stages, held to mlx-lm in float32."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import edgepp
from edgepp.backend import choose
from edgepp.backend.base import BackendOptions
from edgepp.layer_range import LayerRange, split_evenly
from edgepp.model.fetch import fetch
from edgepp.model.text.conversation import Conversation
from edgepp.model.text.tokenizer import Tokenizer
from edgepp.model.weights.checkpoint import Checkpoint
from tests import reference
from tests.cluster import chat, nodes, peers

QUESTION = "Name the four seasons, and say what each is like."
SHORT = "Write a short sentence about the sea."
TOKENS = 24
TEXT_TOKENS, MLX_TOKENS = 512, 64


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return fetch("smollm2-135m")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("backend", ["mlx", "onnx"])
@pytest.mark.parametrize("stages", [1, 2, 3, 5])
def test_any_number_of_stages_gives_mlx_lms_tokens(smollm2: Path, stages: int, backend: str) -> None:
    raw = backend == "mlx"  # on a CPU MLX takes a second for five tokens of a prompt: without the template it is short
    prompt = Tokenizer.load(smollm2).encode_prompt(QUESTION if raw else Conversation.of(QUESTION)).ids
    expected = reference.greedy(smollm2, prompt, TOKENS)
    ranges = [str(layers) for layers in split_evenly(30, stages)]
    with nodes("smollm2-135m", ranges, "--exact", "--backend", backend) as started:
        options = ["-p", QUESTION, "-n", str(TOKENS), "--exact", "--ignore-eos", "--backend", backend]
        options += ["--raw"] if raw else []
        answer = chat("-m", "smollm2-135m", *peers(started), *options, timeout_s=300)
    assert answer["token_ids"] == expected
    assert [stage["backend"] for stage in answer["stages"]] == [backend] * stages


def _losses(path: Path, ids: list[int], backend: str, *, exact: bool = False) -> npt.NDArray[np.float64]:
    """The loss of each of ``ids`` but the first, (T - 1,), by one stage of the whole model and its two ends."""
    checkpoint = Checkpoint.open(path)
    chosen, options = choose(backend, checkpoint), BackendOptions(threads=2, exact=exact)
    model, ends = (
        chosen.load_stage(checkpoint, LayerRange(0, 30), options),
        chosen.load_embedding_and_head(checkpoint, options),
    )
    model.open(0, len(ids))
    logits = ends.logits(model.extend(0, ends.embed(ids))).astype(np.float64)
    model.free(0)
    top = logits.max(axis=1, keepdims=True)
    logprobs = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
    losses: npt.NDArray[np.float64] = -logprobs[np.arange(len(ids) - 1), ids[1:]]
    return losses


@pytest.mark.timeout(600)
def test_the_fast_onnx_default_keeps_the_perplexity_of_mlx(smollm2: Path) -> None:
    """A part of the text that bench/accuracy.py runs whole.

    MLX takes minutes for such a prompt on a CPU, so it shows on the first tokens that ``exact`` gives its losses.
    """
    text = (Path(__file__).parents[2] / "LICENSE").read_text()
    ids = Tokenizer.load(smollm2).encode(text)[:TEXT_TOKENS]
    fast, exact = _losses(smollm2, ids, "onnx"), _losses(smollm2, ids, "onnx", exact=True)
    mlx = _losses(smollm2, ids[:MLX_TOKENS], "mlx")
    np.testing.assert_allclose(exact[: len(mlx)], mlx, atol=1e-3)
    assert np.exp(fast.mean()) == pytest.approx(np.exp(exact.mean()), rel=0.01)


def test_a_question_asked_again_gets_the_same_answer(smollm2: Path) -> None:
    """By the default arithmetic, where the last bit of a row of the prompt can decide between two words."""

    async def answers() -> list[list[int]]:
        async with edgepp.Engine("smollm2-135m", backend="onnx", threads=1, speculate="off") as engine:
            asked = [engine.ask(question, options) for question in (QUESTION, SHORT) for _ in range(3)]
            return [(await answer.whole()).token_ids for answer in asked]

    options = edgepp.GenerateOptions(TOKENS)
    came = asyncio.run(answers())
    assert came[:3] == came[:1] * 3
    assert came[3:] == came[3:4] * 3
