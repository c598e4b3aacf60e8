"""Numbers, symbols, abbreviations and capitals are read out as words; what cannot be said is an error."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tinyomni import Omni
from tinyomni.apps.chat import unlearned_words
from tinyomni.data import world
from tinyomni.errors import InputError
from tinyomni.io.spoken_text import cardinal, ordinal, spoken_text


def test_what_the_world_says_is_unchanged() -> None:
    lines = [line.text for _, family in world.language().values() for line in family]
    assert [line for line in lines if spoken_text(line) != line] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("There are 3 circles.", "There are three circles."),
        ("I HAVE 42 STARS!", "I have forty two stars!"),
        ("It is 10:30, or 3:00.", "It is ten thirty, or three o clock."),
        ("The 2nd of 21 is 5%.", "The second of twenty one is five percent."),
        ("Dr. Smith has $1,250 & 3.14.", "Doctor Smith has one thousand two hundred and fifty dollars and three point "
         "one four."),
        ("No. 5 is here. No.", "Number five is here. No."),
        ("TTS: -7, 007, x2, v1.2.3", "T T S: minus seven, zero zero seven, x two, v one point two three"),
        ("A naïve \u201ccafé\u201d\u2026", 'A naive "cafe".'),
    ],
)  # fmt: skip
def test_it_is_read_as_a_person_would(text: str, said: str) -> None:
    assert spoken_text(text) == said == spoken_text(said)


def test_numbers_in_words() -> None:
    assert [cardinal(n) for n in (0, 13, 90, 99, 101, 1_000, 2_000_017)] == [
        "zero", "thirteen", "ninety", "ninety nine", "one hundred and one", "one thousand", "two million and seventeen",
    ]  # fmt: skip
    assert [ordinal(n) for n in (1, 3, 8, 12, 20, 100)] == [
        "first", "third", "eighth", "twelfth", "twentieth", "one hundredth"
    ]  # fmt: skip
    words = {cardinal(n) for n in range(10_000)}
    assert len(words) == 10_000 and not any(letter.isdigit() for word in words for letter in word)


@given(st.text(max_size=30))
@example("\x85")
@example("One.\u2028Two.")
def test_the_result_has_only_letters_and_punctuation_or_it_is_an_error(text: str) -> None:
    try:
        said = spoken_text(text)
    except InputError as error:
        assert "cannot be said" in str(error)
    else:
        assert said.isascii() and not any(each.isdigit() for each in said)


def test_the_talker_gets_words_and_refuses_what_cannot_be_said() -> None:
    omni = Omni()
    assert omni.speech_ids("There are 3 circles.").tolist() == omni.speech_ids("There are three circles.").tolist()
    with pytest.raises(InputError, match="English letters, got '你', '好'"):
        omni.speech_ids("你好")
    assert unlearned_words("There is a red dog, four dogs.") == ["dog", "four", "dogs"]
