"""The self-test: its questions, when they are asked again, and what it answers."""

import datetime
from collections import Counter
from pathlib import Path

import pytest

from tinyomni import cli
from tinyomni.errors import InputError
from tinyomni.grade import self_test
from tinyomni.grade.self_test import LETTERS, choose_questions, load_schedule, questions, quiz

TODAY = datetime.date(2030, 1, 1)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the schedule of whoever runs the tests out of it."""
    monkeypatch.setenv("TINYOMNI_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def play(answers: list[str], day: int = 0, lesson: str = "01", count: int = 3) -> list[str]:
    """Answer "right", "wrong", or with a text as it is; what was said."""
    said: list[str] = []
    left = iter(answers)

    def read(_: str) -> str:
        kind = next(left)
        options = dict(line.split(maxsplit=1) for line in said[-1].splitlines())
        asked = next(each for each in questions() if each.right in options.values())
        letters = [letter for letter, text in options.items() if (text == asked.right) == (kind == "right")]
        return letters[0] if kind in ("right", "wrong") else kind

    quiz(lesson, count, read, said.append, TODAY + datetime.timedelta(days=day))
    return said


def test_there_are_a_hundred_questions_over_all_lessons() -> None:
    per_lesson = Counter(each.lesson for each in questions())
    assert len(questions()) >= 100 and list(per_lesson) == [f"{number:02}" for number in range(1, 24) if number != 19]
    assert min(per_lesson.values()) >= 4 and len({each.key for each in questions()}) == len(questions())
    for each in questions():
        options = [each.right, *each.wrong]
        assert 3 <= len(set(options)) == len(options) <= len(LETTERS) and each.why.endswith("."), each.ask


def test_the_right_answer_does_not_stand_out_by_its_length() -> None:
    longest = sum(len(each.right) > max(map(len, each.wrong)) for each in questions())
    assert longest < 0.75 * len(questions())


def test_what_was_wrong_is_asked_again_sooner() -> None:
    said = play(["right", "wrong", "right"])
    assert [line.splitlines()[0][0] for line in said[2::3]] == ["✔", "✘", "✔"]
    assert all(each.why in said[2 + 3 * index] for index, each in enumerate(questions()[:3]))
    assert said[-1].strip() == "2 of 3 right. 3 of 6 questions seen; the next one comes on 2030-01-02."
    first, second, third, *_ = questions()

    def asked(day: int) -> list[str]:
        return [each.ask for each in choose_questions(load_schedule(), TODAY + datetime.timedelta(day), "01", 3)]

    new = [each.ask for each in questions()[3:6]]
    assert asked(0) == new and asked(1) == [second.ask, *new[:2]]
    assert asked(3) == [second.ask, first.ask, third.ask]
    play(["right"], day=3, count=1)
    assert load_schedule()[second.key] == (1, "2030-01-07")


def test_a_question_can_be_left_and_the_quiz_ended() -> None:
    said = play(["", "z", "right", "q"])
    assert said[-1].strip().startswith("1 of 1 right. 1 of 6 questions seen")
    assert set(load_schedule()) == {questions()[1].key}


def test_a_damaged_file_and_an_unknown_lesson_are_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"expected one of the lessons 01, .*, 23, got '77'"):
        quiz("77")
    home.mkdir()
    for damage in ("{", "[]", '{"a": [1]}', '{"a": [1, "tomorrow"]}'):
        self_test.schedule_file().write_text(damage)
        assert cli.main(["quiz"]) == 2 and "Move it away" in capsys.readouterr().err
        assert self_test.schedule_file().read_text() == damage


def test_the_end_of_the_input_ends_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def end(_: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", end)
    assert cli.main(["quiz", "03", "-n", "2"]) == 0
    assert "0 of 7 questions seen" in capsys.readouterr().out
