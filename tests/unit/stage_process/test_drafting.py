"""A drafting process and its client without sockets: guesses are those of the small model behind the very text."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepp.engine.remote_draft import AHEAD, MAX_AHEAD, TOKENS_PER_READ, RemoteDraft
from edgepp.stage_process.drafting import MAX_TEXTS, Drafting
from edgepp.tracing.request_trace import RequestTrace
from edgepp.wire.messages.drafts import Forget, Guessed, Read, Unread
from tests.builders.drafting import SmallModel
from tests.builders.properties import examples
from tests.wire import messages

ROUTE = b"coordinator"


@pytest.fixture(scope="module")
def small(tiny: Path) -> SmallModel:
    return SmallModel(tiny)


class Pair:
    """A request's draft, and the process that guesses; what one tells the other waits until it is delivered."""

    def __init__(self, small: SmallModel) -> None:
        self.small = small
        self.drafting = Drafting(small.stage, small.ends, small.context)
        self.connection = 1
        self.told: deque[Read] = deque()
        self.guessed: deque[Guessed | Unread] = deque()
        self.draft = RemoteDraft(7, lambda: self.connection, self._tell, lambda one: None)
        self.woken = 0

    def _tell(self, draft: RemoteDraft) -> None:
        self.told.extend(draft.take_unsent())

    def deliver_text(self) -> None:
        if self.told and (reply := self.drafting.read(self.told.popleft(), ROUTE)) is not None:
            self.guessed.append(reply[1])

    def deliver_guess(self) -> None:
        match self.guessed.popleft() if self.guessed else None:
            case Guessed() as message:
                self.woken += self.draft.take(message, self.small.ends.vocabulary)
            case Unread():
                self.draft.lose()

    def work(self) -> None:
        if self.drafting.has_work and (reply := self.drafting.work()) is not None:
            self.guessed.append(reply[1])

    def settle(self) -> None:
        while self.told or self.guessed or self.drafting.has_work:
            self.deliver_text()
            self.work()
            self.deliver_guess()

    def guesses(self, ids: list[int], most: int = AHEAD) -> list[int]:
        """What is known behind ``ids`` once the process has had its time."""
        for _ in range(2):  # the first may learn only that the text is unknown
            self.draft.propose(ids, most)
            self.settle()
        return list(self.draft.propose(ids, most))


def test_guesses_are_the_small_models_and_arrive_later(small: SmallModel) -> None:
    pair, ids = Pair(small), [5, 9, 2, 7]
    assert list(pair.draft.propose(ids, 3)) == []
    pair.draft.trace = trace = RequestTrace("req_1", 0.0)
    pair.settle()
    assert [(span.name, span.amount > 0) for span in trace.spans] == [("draft", True)]
    expected = small.continuation(ids, AHEAD + 2)
    assert list(pair.draft.propose(ids, 3)) == expected[:3]
    assert pair.woken == 1
    pair.settle()
    assert list(pair.draft.propose([*ids, *expected[:2]], 3)) == expected[2:4]
    pair.settle()
    assert list(pair.draft.propose([*ids, *expected[:2]], 4)) == expected[2:6]
    assert pair.woken == 2


def test_a_wrong_guess_leads_to_the_right_text(small: SmallModel) -> None:
    pair, ids = Pair(small), [5, 9, 2, 7]
    guess = pair.guesses(ids)
    other = [*ids, guess[0], (guess[1] + 1) % small.ends.vocabulary]
    assert pair.guesses([*ids, *guess[:2]]) == small.continuation([*ids, *guess[:2]], AHEAD)
    assert pair.guesses(other) == small.continuation(other, AHEAD)
    assert pair.guesses([*ids, 1]) == small.continuation([*ids, 1], AHEAD)


def test_tokens_that_are_taken_back_are_guesses_again(small: SmallModel) -> None:
    """They were under way, and nobody has found them wrong."""
    pair = Pair(small)
    assert pair.guesses([5, 9, 2, 7, 1, 3])
    assert list(pair.draft.propose([5, 9, 2, 7], 2)) == [1, 3]


def test_a_long_text_is_told_in_pieces_and_read_in_chunks(small: SmallModel) -> None:
    pair = Pair(small)
    ids = [3 + n * 7 % 200 for n in range(TOKENS_PER_READ + 60)]
    pair.draft.propose(ids, 1)
    assert [(read.keep, len(read.tokens), read.ahead) for read in pair.told] == [(0, 256, 0), (256, 60, AHEAD)]
    assert pair.guesses(ids) == small.continuation(ids, AHEAD)


@settings(max_examples=examples(60))
@given(
    st.lists(st.integers(0, 200), min_size=1, max_size=20),
    st.lists(
        st.one_of(
            st.sampled_from(["text", "guess", "work", "lose text", "lose guess", "reconnect", "restart"]),
            st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 200)),
        ),
        max_size=40,
    ),
)
def test_whatever_is_late_lost_or_wrong_the_guesses_are_those_behind_the_text(
    small: SmallModel, ids: list[int], actions: list[str | tuple[int, bool, int]]
) -> None:
    """A tuple takes that many tokens back and adds one: the next guess if there is one and it is to be right."""
    pair = Pair(small)
    for action in actions:
        match action:
            case "text":
                pair.deliver_text()
            case "guess":
                pair.deliver_guess()
            case "work":
                pair.work()
            case "lose text" if pair.told:
                pair.told.popleft()
            case "lose guess" if pair.guessed:
                pair.guessed.popleft()
            case "reconnect":
                pair.connection += 1
                pair.guessed.clear()
            case "restart":
                pair.drafting.forget(7)
            case (int() as back, bool() as right, int() as token):
                ids = ids[: max(1, len(ids) - back)]
                known = pair.draft.propose(ids, 1)
                ids = [*ids, known[0] if known and right else token]
                pair.draft.propose(ids, 2)
    ids = [*ids, 250]  # unlike all tokens before, which are guesses where they were taken back
    assert pair.guesses(ids) == small.continuation(ids, AHEAD)


@settings(max_examples=examples(40))
@given(st.lists(messages(Read, Forget), max_size=12))
def test_whatever_it_is_told_the_process_goes_on_and_guesses_for_the_next_text(
    small: SmallModel, told: list[Read | Forget]
) -> None:
    drafting = Drafting(small.stage, small.ends, small.context)
    for message in told:
        if isinstance(message, Forget):
            drafting.forget(message.sequence)
        else:
            drafting.read(message._replace(sequence=message.sequence % 3, tokens=message.tokens[:4]), ROUTE)
        if drafting.has_work:
            drafting.work()
    while drafting.has_work:
        drafting.work()
    drafting.read(Read(7, 0, 0, (1, 2), 1), ROUTE)
    assert drafting.work() == (ROUTE, Guessed(7, 0, 2, tuple(small.continuation([1, 2], 1))))
    for sequence in (0, 1, 2, 7):
        drafting.forget(sequence)
    assert small.stage.kv_bytes == 0


def test_requests_take_turns(small: SmallModel) -> None:
    drafting = Drafting(small.stage, small.ends, small.context)
    for sequence in (1, 2, 3):
        drafting.read(Read(sequence, 0, 0, tuple(range(sequence, sequence + 6)), 2), ROUTE)
    turns = []
    while drafting.has_work:
        reply = drafting.work()
        assert reply is not None
        turns.append(reply[1].sequence)
    assert turns == [1, 2, 3, 1, 2, 3]


def test_the_text_of_longest_silence_makes_room(small: SmallModel) -> None:
    drafting = Drafting(small.stage, small.ends, small.context)
    for sequence in range(MAX_TEXTS):
        drafting.read(Read(sequence, 0, 0, (1, 2, 3), 1), ROUTE)
    drafting.read(Read(0, 1, 3, (4,), 1), ROUTE)
    drafting.read(Read(50, 0, 0, (1, 2, 3), 1), ROUTE)
    assert drafting.read(Read(1, 1, 3, (4,), 1), ROUTE) == (ROUTE, Unread(1))
    assert drafting.read(Read(0, 2, 4, (5,), 1), ROUTE) is None
    for sequence in (*range(MAX_TEXTS), 50):
        drafting.forget(sequence)
    assert small.stage.kv_bytes == 0


def test_what_the_small_model_cannot_read_gets_no_guesses_and_harms_no_other(small: SmallModel) -> None:
    drafting = Drafting(small.stage, small.ends, small.context)
    drafting.read(Read(1, 0, 0, (1, small.ends.vocabulary), 4), ROUTE)
    drafting.read(Read(2, 0, 0, (1, 2), 1), ROUTE)
    assert drafting.work() == (ROUTE, Guessed(2, 0, 2, tuple(small.continuation([1, 2], 1))))
    assert not drafting.has_work


def test_a_text_at_the_end_of_the_context_gets_no_guess_beyond(small: SmallModel) -> None:
    pair = Pair(small)
    ids = [n % 150 for n in range(small.context - 2)]
    assert pair.guesses(ids) == small.continuation(ids, 2)
    assert pair.guesses([*ids, 1, 2, 3]) == []


def test_a_liar_gets_no_more_in_than_was_asked_for(small: SmallModel) -> None:
    pair, ids = Pair(small), [5, 9, 2, 7]
    pair.draft.propose(ids, 2)
    number = pair.told[-1].number
    vocabulary = small.ends.vocabulary
    for lie in (
        Guessed(7, number, 4, (vocabulary,)),  # no token
        Guessed(7, number, 2, (8, 8, 8)),  # not the text
        Guessed(7, number, 9, (1, 1)),  # beyond a gap
        Guessed(7, number, 4, tuple([1] * 200)),
        Guessed(7, number, 4 + MAX_AHEAD, (1, 1)),
    ):
        pair.draft.take(lie, vocabulary)
    assert list(pair.draft.propose(ids, 100)) == [1] * MAX_AHEAD
    pair.draft.propose([*ids, 2], 2)
    assert not pair.draft.take(Guessed(7, number, 5, (3,)), vocabulary)  # behind another text
    assert list(pair.draft.propose([*ids, 2], 2)) == []


def test_a_process_that_always_asks_for_the_text_again_costs_a_message_per_call(small: SmallModel) -> None:
    """Its answer of 30 bytes would cost 400 messages and 20 ms of the engine for a text of 100,000 tokens."""
    pair, ids, calls = Pair(small), [5] * (TOKENS_PER_READ * 40), 200
    for _ in range(calls):
        ids.append(5)
        pair.draft.propose(ids, 2)
        pair.draft.lose()
    assert 40 < len(pair.told) <= calls + 41


def test_a_guess_for_a_distant_position_is_not_compared_with_the_text(small: SmallModel) -> None:
    """Messages without tokens for position 0 cost half a millisecond each, for a text of 100,000 tokens."""

    class Line(list[int]):
        def __getitem__(self, index: Any) -> Any:
            found = super().__getitem__(index)
            assert not isinstance(found, list) or len(found) <= 256, "more was copied than a message holds"
            return found

    pair, ids = Pair(small), [5] * 1000
    pair.draft.propose(ids, 2)
    pair.draft._line = Line(pair.draft._line)
    assert not pair.draft.take(Guessed(7, 99, 0, ()), small.ends.vocabulary)
    assert not pair.draft.take(Guessed(7, 99, 0, (5,) * 256), small.ends.vocabulary)
