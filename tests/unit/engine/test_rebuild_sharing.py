"""Which sequences begin as copies of others when they are refilled."""

from __future__ import annotations

import numpy as np

from edgepp.engine.rebuild_plan import Holding, Rebuild, Refill
from edgepp.engine.rebuild_sharing import MIN_SHARED_POSITIONS, NOT_SHARED, SharedStart, SharedStarts
from edgepp.layer_range import LayerRange

PROMPT = list(range(MIN_SHARED_POSITIONS))
MIDDLE = (Refill(1, 1),)
LAYERS = LayerRange(0, 2)


def rebuild(sequence: int, length: int, refills: tuple[Refill, ...] = MIDDLE) -> Rebuild:
    return Rebuild(sequence, length, (), refills)


def test_a_sibling_begins_with_the_prompt_that_both_share() -> None:
    starts = SharedStarts([])
    assert starts.add(rebuild(1, len(PROMPT) + 2), [*PROMPT, 7, 8, 9]) == NOT_SHARED
    assert starts.add(rebuild(2, len(PROMPT) + 3), [*PROMPT, 7, 5, 6]) == SharedStart(1, len(PROMPT) + 1)


def test_the_longest_start_counts_and_one_position_is_left_to_compute() -> None:
    starts = SharedStarts([])
    starts.add(rebuild(1, len(PROMPT)), PROMPT)
    longer = np.asarray([*PROMPT, 1, 2, 3], np.int32)
    assert starts.add(rebuild(2, len(longer)), longer) == SharedStart(1, len(PROMPT))
    assert starts.add(rebuild(3, len(longer)), longer) == SharedStart(2, len(longer) - 1)


def test_only_what_is_rebuilt_of_the_other_sequence_is_shared() -> None:
    starts = SharedStarts([])
    starts.add(rebuild(1, len(PROMPT) + 1), [*PROMPT, 1, 2, 3])
    assert starts.add(rebuild(2, len(PROMPT) + 3), [*PROMPT, 1, 2, 3]) == SharedStart(1, len(PROMPT) + 1)


def test_a_short_start_is_computed_once_more() -> None:
    starts = SharedStarts([])
    starts.add(rebuild(1, len(PROMPT) + 1), [*PROMPT, 1])
    assert starts.add(rebuild(2, len(PROMPT)), PROMPT) == NOT_SHARED


def test_sequences_that_enter_at_other_stages_share_nothing() -> None:
    starts = SharedStarts([])
    starts.add(rebuild(1, len(PROMPT) + 1, (Refill(0, 1),)), [*PROMPT, 1])
    assert starts.add(rebuild(2, len(PROMPT) + 2), [*PROMPT, 1, 2]) == NOT_SHARED


def test_a_sequence_of_which_a_stage_has_positions_is_no_copy() -> None:
    starts = SharedStarts([Holding(1, "kv", LAYERS, {2: 5}), Holding(0, "kv", LAYERS, {3: 5})])
    starts.add(rebuild(1, len(PROMPT) + 1), [*PROMPT, 1])
    assert starts.add(rebuild(2, len(PROMPT) + 2), [*PROMPT, 1, 2]) == NOT_SHARED
    assert starts.add(rebuild(3, len(PROMPT) + 2), [*PROMPT, 1, 2]) == SharedStart(1, len(PROMPT) + 1)
