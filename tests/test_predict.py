"""Predict first: each kind of wrong guess gets its explanation, by axis names, and never the answer."""

import re
from typing import Any

import pytest
import torch

from tinyomni.glossary import AXES
from tinyomni.grade.predict import choose, estimate, named, predict

AXES_OF_Q = "batch heads tokens head_dim"
Q = torch.zeros(2, 3, 5, 7)


def output_of(capsys: pytest.CaptureFixture[str], guess: Any, axes: str = AXES_OF_Q, tensor: torch.Tensor = Q) -> str:
    predict(guess, tensor, axes)
    return capsys.readouterr().out


def test_a_right_guess_is_confirmed_with_the_axis_names(capsys: pytest.CaptureFixture[str]) -> None:
    for guess in ((2, 3, 5, 7), [2, 3, 5, 7], tuple(Q.shape)):
        assert output_of(capsys, guess) == "✔ (batch 2, heads 3, tokens 5, head_dim 7)\n"
    assert output_of(capsys, (2,), "batch", torch.zeros(2)).startswith("✔")
    assert output_of(capsys, (), "", torch.tensor(1.0)).startswith("✔")


@pytest.mark.parametrize("guess", [None, ..., (None,), (2, ...), (2, 3, 5, None)])
def test_a_missing_guess_reveals_nothing(capsys: pytest.CaptureFixture[str], guess: Any) -> None:
    answer = output_of(capsys, guess)
    assert answer.startswith("✎ Write your guess first") and "(batch, heads, tokens, head_dim)" in answer
    assert not re.search(r"\d", answer)


def test_the_wrong_axis_is_named_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    answer = output_of(capsys, (2, 3, 6, 7))
    assert answer.splitlines() == [f"✘ tokens ({AXES['tokens']}) is not 6 here."]
    wrong_everywhere = output_of(capsys, (9, 9, 9, 9)).splitlines()
    assert [line.split()[1] for line in wrong_everywhere] == AXES_OF_Q.split()


def test_a_swapped_size_names_the_other_axis(capsys: pytest.CaptureFixture[str]) -> None:
    answer = output_of(capsys, (2, 5, 3, 7)).splitlines()
    assert answer[0] == "✘ The sizes are right, the order of the axes is not: (batch, heads, tokens, head_dim)."
    assert answer[1].startswith("✘ heads ") and answer[1].endswith("is not 5 here. 5 is the size of tokens.")
    assert answer[2].startswith("✘ tokens ") and answer[2].endswith("is not 3 here. 3 is the size of heads.")
    assert len(answer) == 3


def test_a_forgotten_axis_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert output_of(capsys, (3, 5, 7)) == (
        f"✘ You wrote 3 axes, there are 4: (batch, heads, tokens, head_dim). You forgot batch ({AXES['batch']}).\n"
    )
    assert "1 axis, there are 4" in output_of(capsys, (2,)) and "5 axes, there are 4" in output_of(
        capsys, (1, 2, 3, 5, 7)
    )


def test_the_glossarys_sizes_are_not_revealed(capsys: pytest.CaptureFixture[str]) -> None:
    answer = output_of(capsys, (1, 6, 64), "batch tokens d_model", torch.zeros(1, 6, 256))
    assert "d_model (width of the Thinker) is not 64" in answer and "256" not in answer


def test_an_axis_outside_the_glossary_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert output_of(capsys, (4,), "apples", torch.zeros(3)) == "✘ apples is not 4 here.\n"


@pytest.mark.parametrize("guess", [5, "2, 3", (2.0, 3), (True, 3), {2}])
def test_a_guess_of_another_type_is_an_error(guess: object) -> None:
    with pytest.raises(TypeError, match=r"expected a tuple of ints, such as \(2, 5\) or \(5,\)"):
        predict(guess, Q, AXES_OF_Q)


def test_names_must_fit_the_tensor() -> None:
    assert named(torch.zeros(1, 5, 5), "1 tokens tokens") == "(1, tokens 5, tokens 5)"
    assert named(torch.zeros(4, dtype=torch.int64), "text_tokens") == "(text_tokens 4)"
    for axes in ("batch tokens", "batch heads tokens tokens", "3 heads tokens head_dim"):
        with pytest.raises(ValueError, match=r"do not fit a tensor of shape \(2, 3, 5, 7\)"):
            named(Q, axes)
        with pytest.raises(ValueError, match="do not fit"):
            predict(None, Q, axes)


OPTIONS = {"a": "it rises", "b": "it falls"}


@pytest.mark.parametrize(
    ("guess", "printed"),
    [
        (None, "✎ Write the letter of your guess first:\n  a  it rises\n  b  it falls\n"),
        ("b", "✔ it falls\n"),
        ("a", "✘ Not a: it rises. Guess again, or look what the next cells measure.\n"),
    ],
)
def test_a_choice_is_judged_and_not_given_away(
    guess: str | None, printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    choose(guess, OPTIONS, "b")
    assert capsys.readouterr().out == printed


def test_a_choice_outside_the_options_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of a, b, got 'c'"):
        choose("c", OPTIONS, "b")
    with pytest.raises(ValueError, match="expected the answer to be one of a, b, got 'c'"):
        choose(None, OPTIONS, "c")


@pytest.mark.parametrize(
    ("guess", "printed"),
    [
        (None, "✎ Write a number as your guess first\n"),
        (0.3, "✘ 0.3 is too small.\n"),
        (2, "✘ 2 is too large.\n"),
        (0.55, "✔ measured: 0.5\n"),
    ],
)
def test_an_estimate_is_told_the_direction(
    guess: float | None, printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    estimate(guess, 0.5, within=0.1)
    assert capsys.readouterr().out == printed


def test_an_estimate_must_be_a_number() -> None:
    with pytest.raises(TypeError, match="expected a number, got 'many'"):
        estimate("many", 0.5, within=0.1)
