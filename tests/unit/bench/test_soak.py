"""The oracle of `bench.soak`."""

from __future__ import annotations

from bench.faults.questions import QUESTIONS, Heard

RIGHT = Heard([[1, 2, 3], [4, 5]], ["length", "stop"])


def heard(*choices: list[int], ended: str | None = "length", cancelled: bool = False) -> Heard:
    return Heard(list(choices), [ended] * len(choices), cancelled)


def test_a_whole_answer_has_all_tokens() -> None:
    assert not heard([1, 2, 3], [4, 5]).differs_from(RIGHT)
    assert heard([1, 2], [4, 5]).differs_from(RIGHT)
    assert heard([1, 2, 3], [4, 5, 6]).differs_from(RIGHT)


def test_an_answer_that_an_error_or_its_client_ended_is_the_beginning_of_the_right_one() -> None:
    for cut in (heard([1, 2], [], ended=None), heard([1], [4, 5], cancelled=True)):
        assert not cut.differs_from(RIGHT)
    assert heard([1, 3], [], ended=None).differs_from(RIGHT)
    assert heard([1, 2, 3, 4], [], ended=None).differs_from(RIGHT)


def test_the_longest_gap_is_between_two_pieces() -> None:
    answer = Heard.of(QUESTIONS[0])
    assert answer.longest_gap_s == 0
    answer.came_s = [1.0, 1.5, 4.0, 4.1]
    assert answer.longest_gap_s == 2.5


def test_questions_differ_in_way_and_kind() -> None:
    assert len({question.kind for question in QUESTIONS}) > 8
    assert {question.http for question in QUESTIONS} == {True, False}
