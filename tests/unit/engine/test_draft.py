"""Guesses by prompt lookup and by a small model, and when guesses pay."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepp import backend
from edgepp.backend.base import BackendOptions
from edgepp.engine.draft_model import DraftModel
from edgepp.engine.speculation import MAX_GUESSES, PromptLookup, SpeculationControl, SpeculationCosts
from edgepp.layers import LayerRange
from edgepp.model.weights.checkpoint import Checkpoint
from tests.engines import greedy_tokens, local_engine

CHEAP = SpeculationCosts(plain_s=0.05, guess_s=0.001)
DEAR = SpeculationCosts(plain_s=0.05, guess_s=0.05)


def test_lookup_continues_as_the_text_did_before() -> None:
    assert PromptLookup().propose([1, 2, 3, 4, 5, 6, 1, 2, 3], 3) == [4, 5, 6]


def test_lookup_prefers_the_longer_and_the_later_context() -> None:
    assert PromptLookup().propose([1, 2, 3, 7, 2, 3, 8, 1, 2, 3], 1) == [7]
    assert PromptLookup().propose([2, 3, 7, 5, 2, 3, 8, 5, 2, 3], 1) == [8]


def test_lookup_continues_a_repetition() -> None:
    assert PromptLookup().propose([1, 2, 1, 2, 1, 2], 5) == [1, 2, 1, 2, 1]


def test_lookup_guesses_nothing_without_repetition() -> None:
    assert not PromptLookup().propose(list(range(50)), 8)
    assert not PromptLookup().propose([1], 8)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, MAX_GUESSES))
def test_lookup_is_the_same_read_at_once_or_token_by_token(ids: list[int], most: int) -> None:
    steady = PromptLookup()
    for end in range(1, len(ids) + 1):
        guesses = steady.propose(ids[:end], most)
        assert list(guesses) == list(PromptLookup().propose(ids[:end], most))
        assert len(guesses) in (0, most)


def test_guesses_that_are_right_grow_in_number() -> None:
    control = SpeculationControl()
    for _ in range(5):
        guesses = control.num_guesses(CHEAP)
        control.observe(guesses, guesses + 1)
    assert control.num_guesses(CHEAP) == MAX_GUESSES


def test_guesses_that_do_not_pay_become_rarer() -> None:
    control, guessed = SpeculationControl(), []
    for step in range(2000):
        guesses = control.num_guesses(DEAR)
        control.observe(guesses, 1)
        if guesses:
            guessed.append(step)
    assert len([step for step in guessed if step < 100]) <= 15
    assert len([step for step in guessed if step >= 1000]) <= 6


def test_costs_follow_what_is_measured() -> None:
    costs = SpeculationCosts(1.0, 1.0)
    for _ in range(40):
        costs.observe(0, 0.05)
        costs.observe(4, 0.07)
    assert costs.plain_s == pytest.approx(0.05, rel=0.1)
    assert costs.guess_s == pytest.approx(0.005, rel=0.1)


def test_a_draft_model_that_is_the_model_itself_is_always_right(tiny: Path) -> None:
    """After a prompt of several chunks and after wrong guesses too; the answer is the one without guesses."""
    prompt = [3 + n * 7 % 200 for n in range(150)]
    split = [LayerRange(0, 2), LayerRange(2, 4)]
    with local_engine(tiny, split, ["onnx"]) as engine:
        expected = greedy_tokens(engine, prompt, 40)
    checkpoint = Checkpoint.open(tiny)
    chosen = backend.choose("onnx", checkpoint)
    options = BackendOptions(exact=True)
    stage = chosen.load_stage(checkpoint, LayerRange(0, 4), options)
    model = DraftModel(
        stage, chosen.load_embedding_and_head(checkpoint, options), checkpoint.context, checkpoint.vocab_size
    )
    guesser = model.begin()
    ids = [*prompt, *expected[:10]]
    for _ in range(8):
        guesses = guesser.propose(ids, 5)
        if guesses:
            break
    assert list(guesses) == expected[10:15]
    assert list(guesser.propose([*ids, 1, 2], 3)) != expected[12:15]
    assert list(guesser.propose([*ids, *expected[10:14]], 6)) == expected[14:20]
    guesser.close()
    assert stage.kv_bytes == 0
    with local_engine(tiny, split, ["onnx"], draft=model.begin) as engine:
        assert greedy_tokens(engine, prompt, 40) == expected
