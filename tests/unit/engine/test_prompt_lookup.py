"""Guesses from the text so far and from other texts of the same owner."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgepp.engine.prompt_lookup import (
    MAX_BACK,
    MAX_CANDIDATES,
    MAX_MATCH,
    MAX_OWNERS,
    MAX_TEXTS,
    MAX_TOKENS_PER_CALL,
    MIN_MATCH,
    IndexedText,
    OwnerTexts,
    PromptLookup,
)

IDS = st.lists(st.integers(0, 3), max_size=60)


def lookup() -> PromptLookup:
    return OwnerTexts().begin("ann")


def guesses(ids: list[int], most: int) -> list[int]:
    return list(lookup().propose(ids, most))


def told(texts: OwnerTexts, owner: str, ids: list[int]) -> None:
    """A request of ``owner`` that ends with the text ``ids``."""
    one = texts.begin(owner)
    one.propose(ids, 1)
    one.close()


def matches(text: list[int], ids: list[int]) -> dict[int, int]:
    """Length of the match of the end of ``ids`` before each position of ``text``."""
    found = {}
    for at in range(len(text)):
        length = 0
        while length < min(at, len(ids), MAX_MATCH) and text[at - length - 1] == ids[-length - 1]:
            length += 1
        found[at] = length
    return found


def test_a_text_continues_as_it_did_before() -> None:
    assert guesses([1, 2, 3, 4, 5, 6, 1, 2, 3], 3) == [4, 5, 6]


def test_the_longer_and_then_the_later_match_counts() -> None:
    assert guesses([1, 2, 3, 7, 2, 3, 8, 1, 2, 3], 1) == [7]
    assert guesses([2, 3, 7, 5, 2, 3, 8, 5, 2, 3], 1) == [8]


def test_a_repetition_goes_on() -> None:
    assert guesses([1, 2, 1, 2, 1, 2, 1], 5) == [2, 1, 2, 1, 2]


def test_nothing_is_guessed_without_a_match_or_behind_a_single_token() -> None:
    assert not guesses(list(range(50)), 8)
    assert not guesses([1], 8)
    assert not guesses([5, 6, 7, 5], 8)


def test_no_more_is_guessed_than_matches_before() -> None:
    assert guesses([9, 1, 2, 3, 4, 5, 6, 8, 1, 2], 6) == [3, 4]


@given(IDS, IDS, st.integers(1, 16))
def test_a_guess_follows_the_longest_match(text: list[int], tail: list[int], most: int) -> None:
    """``MAX_CANDIDATES`` and longer texts leave some matches out, and then the match is shorter."""
    ids = [*text, *tail]
    one = lookup()
    found = one.propose(ids, most)
    lengths = matches(ids[:-1], ids) if ids else {}
    lengths[len(ids) - 1] = matches(ids, ids)[len(ids) - 1] if ids else 0
    longest = max(lengths.values(), default=0)
    assert bool(found) == (longest >= MIN_MATCH)
    if found:
        assert len(found) <= one.match <= longest
        ends = [at for at, length in lengths.items() if length >= one.match]
        assert found[0] in {ids[at] for at in ends}
        if len(ids) <= MAX_CANDIDATES:
            assert one.match == longest


@given(IDS, st.lists(st.tuples(st.integers(0, 8), st.lists(st.integers(0, 3), min_size=1, max_size=8)), max_size=12))
def test_a_text_that_went_back_is_as_if_it_was_never_longer(
    text: list[int], turns: list[tuple[int, list[int]]]
) -> None:
    """Each turn takes some tokens back, as guesses that were wrong, and adds others."""
    one, ids = lookup(), list(text)
    one.propose(ids, 4)
    for back, more in turns:
        ids = [*ids[: max(0, len(ids) - back)], *more]
        found = list(one.propose(ids, 4))
        fresh = IndexedText()
        fresh.extend(ids)
        assert (one._text.ids, one._text._newest, one._text._before) == (fresh.ids, fresh._newest, fresh._before)
        assert bool(found) == bool(guesses(ids, 4))


def test_a_text_may_go_back_as_far_as_promised() -> None:
    one, ids = lookup(), [*range(100), *range(100)]
    assert list(one.propose(ids, 1)) == [0]
    assert list(one.propose([*ids[: 1 - MAX_BACK], 7, 5, 6], 1)) == [7]


def test_a_long_prompt_is_read_by_several_calls() -> None:
    prompt = [n * 7919 % 40_000 for n in range(2 * MAX_TOKENS_PER_CALL)]
    one, ids = lookup(), [*prompt, *prompt[:20]]
    assert [list(one.propose(ids, 1)) for _ in range(3)] == [[], [], [prompt[20]]]


def test_other_texts_of_the_owner_are_looked_up() -> None:
    texts = OwnerTexts()
    told(texts, "ann", [11, 12, 13, 14, 15, 16])
    assert list(texts.begin("ann").propose([1, 2, 11, 12, 13], 2)) == [14, 15]
    assert list(texts.begin("ann").propose([1, 15, 16], 2)) == []


def test_the_longest_match_of_all_texts_counts_and_the_own_text_first() -> None:
    texts = OwnerTexts()
    told(texts, "ann", [3, 4, 5, 6, 50])
    assert list(texts.begin("ann").propose([5, 6, 70, 3, 4, 5, 6], 1)) == [50]
    assert list(texts.begin("ann").propose([5, 6, 70, 9, 5, 6], 1)) == [70]


def test_a_text_of_another_owner_never_counts() -> None:
    texts = OwnerTexts()
    told(texts, "ann", [11, 12, 13, 14, 15, 16])
    assert not texts.begin("bob").propose([1, 2, 11, 12, 13], 2)
    assert not texts.begin("").propose([1, 2, 11, 12, 13], 2)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.lists(st.integers(0, 5), min_size=1, max_size=20)), max_size=12))
def test_an_owner_gets_the_same_guesses_whatever_others_ask(asked: list[tuple[str, list[int]]]) -> None:
    shared, alone = OwnerTexts(), OwnerTexts()
    for owner, ids in asked:
        one = shared.begin(owner)
        found = list(one.propose(ids, 3))
        one.close()
        if owner == "a":
            other = alone.begin("a")
            assert list(other.propose(ids, 3)) == found
            other.close()


def test_kept_texts_are_bounded() -> None:
    texts = OwnerTexts()
    for n in range(2 * MAX_TEXTS):
        told(texts, "ann", [n, n + 1, n + 2, n + 3])
    assert len(texts.of("ann")) == MAX_TEXTS
    for n in range(MAX_OWNERS):
        told(texts, f"owner {n}", [1, 2, 3, 4])
    assert not texts.of("ann")
    told(texts, "owner 5", list(range(1 << 16))[:MAX_TOKENS_PER_CALL])
    assert sum(len(text.ids) for text in texts.of("owner 5")) == MAX_TOKENS_PER_CALL + 4


def test_a_conversation_is_kept_once() -> None:
    texts = OwnerTexts()
    told(texts, "ann", [1, 2, 3, 4, 5])
    told(texts, "ann", [1, 2, 3, 4, 5, 6, 7])
    assert [text.ids for text in texts.of("ann")] == [[1, 2, 3, 4, 5, 6, 7]]
