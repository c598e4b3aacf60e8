"""Answers written without a look at the graders' cases: right ones pass in any form, wrong ones fail."""

import answers
import pytest

from tinyomni.grade.exercise import Exercise
from tinyomni.grade.grading import find_fault
from tinyomni.grade.registry import exercises

answers.load()
each_exercise = pytest.mark.parametrize("one", exercises().values(), ids=lambda one: one.name)


def passes(one: Exercise, answer: answers.Answer) -> bool:
    """Up to the first case that fails, and without a diagnosis: there are hundreds of answers."""
    return not any(find_fault(one, case, one.run(answer, case.inputs)) for case in one.all_cases)


def test_every_answer_belongs_to_an_exercise() -> None:
    assert {*answers.RIGHT, *answers.WRONG} == set(exercises())


@each_exercise
def test_right_answers_pass_in_any_form(one: Exercise) -> None:
    assert len(answers.RIGHT[one.name]) + len(one.alternatives) >= 3
    for number, answer in enumerate(answers.RIGHT[one.name], 1):
        assert passes(one, answer), f"the answer number {number}"


@each_exercise
def test_wrong_answers_fail(one: Exercise) -> None:
    assert len(answers.WRONG[one.name]) >= 4
    assert not [mistake for mistake, answer in answers.WRONG[one.name] if passes(one, answer)]
