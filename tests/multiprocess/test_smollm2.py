"""The real model: SmolLM2-135M-Instruct over real stages, held to mlx-lm in float32."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

import edgepp
from edgepp.backend import choose
from edgepp.backend.base import BackendOptions
from edgepp.layers import LayerRange, split_evenly
from edgepp.model.fetch import fetch
from edgepp.model.text.conversation import Conversation
from edgepp.model.text.tokenizer import Tokenizer
from edgepp.model.weights.checkpoint import Checkpoint
from tests import reference
from tests.cluster import chat, nodes, peers

QUESTION = "Name the four seasons, and say what each is like."
SHORT = "Write a short sentence about the sea."
TOKENS = 24
TEXT_TOKENS = 512


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return fetch("smollm2-135m")


@pytest.fixture(scope="module")
def expected(smollm2: Path) -> list[int]:
    prompt = Tokenizer.load(smollm2).encode_prompt(Conversation.of(QUESTION)).ids
    return reference.greedy(smollm2, prompt, TOKENS)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("backend", ["mlx", "onnx"])
@pytest.mark.parametrize("stages", [1, 2, 3, 5])
def test_any_number_of_stages_gives_mlx_lms_tokens(expected: list[int], stages: int, backend: str) -> None:
    ranges = [str(layers) for layers in split_evenly(30, stages)]
    with nodes("smollm2-135m", ranges, "--exact", "--backend", backend) as started:
        options = ["-p", QUESTION, "-n", str(TOKENS), "--exact", "--ignore-eos", "--backend", backend]
        answer = chat("-m", "smollm2-135m", *peers(started), *options, timeout_s=300)
    assert answer["token_ids"] == expected
    assert [stage["backend"] for stage in answer["stages"]] == [backend] * stages


def _perplexity(path: Path, ids: list[int], backend: str) -> float:
    """exp of the mean loss over a text, by one stage of the whole model and its two ends."""
    checkpoint = Checkpoint.open(path)
    chosen, options = choose(backend, checkpoint), BackendOptions(threads=2)
    model, ends = (
        chosen.load_stage(checkpoint, LayerRange(0, 30), options),
        chosen.load_embedding_and_head(checkpoint, options),
    )
    model.open(0, len(ids))
    logits = ends.logits(model.extend(0, ends.embed(ids))).astype(np.float64)
    model.free(0)
    top = logits.max(axis=1, keepdims=True)
    logprobs = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
    return float(np.exp(-logprobs[np.arange(len(ids) - 1), ids[1:]].mean()))


@pytest.mark.timeout(600)
def test_the_fast_onnx_default_keeps_the_perplexity_of_mlx(smollm2: Path) -> None:
    """A part of the text that bench/accuracy.py runs whole."""
    text = (Path(__file__).parents[2] / "LICENSE").read_text()
    ids = Tokenizer.load(smollm2).encode(text)[:TEXT_TOKENS]
    fast, exact = _perplexity(smollm2, ids, "onnx"), _perplexity(smollm2, ids, "mlx")
    assert fast == pytest.approx(exact, rel=0.01)


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
