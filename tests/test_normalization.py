"""What people type, brought into the form of the closed world without changing what it means."""

import random
import string
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyomni.apps.chat import Session
from tinyomni.data import normalization, unanswerable, world
from tinyomni.data.normalization import normalize_question, reading_note
from tinyomni.omni import Omni


def test_what_the_world_writes_is_unchanged() -> None:
    texts = [line.question or line.text for _, family in world.language().values() for line in family[:300]]
    asked = [text.format(noun=noun) for noun in unanswerable.NOUNS for text in unanswerable.OPEN]
    assert [text for text in (*texts, *asked) if normalize_question(text) != text] == []


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("  WHAT color is the  Traingle ", "What colour is the triangle?"),
        ("what\u2019s the star", "What is the star?"),
        ("Where is the star ?", "Where is the star?"),
        ("is there a gray circle??", "Is there a grey circle?"),
        ("hello how are you", "Hello, how are you?"),
        ("describe teh image!!", "Describe the image."),
        ("wat colour is the star", "What colour is the star?"),
        ("how many cirlces are there", "How many circles are there?"),
        ("\uff37hat do you\u00a0see?\n", "What do you see?"),
        ("What is NASA?", "What is NASA?"),  # words from outside of the world keep their case and their spelling
        ("Where is the wing?", "Where is the wing?"),
        ("Where is the hat?", "Where is the hat?"),
        ("?", "?"),
        ("", ""),
    ],
)
def test_case_spaces_punctuation_and_spelling(typed: str, meant: str) -> None:
    assert normalize_question(typed) == meant


def test_a_word_that_is_too_long_for_a_slip_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    monkeypatch.setattr(normalization, "slips", lambda word: tried.append(word) or set())
    assert normalize_question("x" * 20_000) == "x" * 20_000 + "." and tried == []
    normalize_question("x" * (normalization.longest_word() + 1))
    assert [len(word) for word in tried] == [normalization.longest_word() + 1] * len(tried) and tried


def test_nine_of_ten_typing_errors_are_corrected() -> None:
    rng, right = random.Random(0), []
    for index in range(400):
        question = world.draw_question(world.draw_scene("test", index), rng).text
        at = rng.choice([at for at, letter in enumerate(question[:-2]) if letter.isalpha() and question[at + 1] != " "])
        letter = rng.choice(string.ascii_lowercase)
        slip = rng.choice((letter + question[at], letter, "", question[at + 1] + question[at]))
        typed = question[:at] + slip + question[at + 1 + (len(slip) == 2 and slip[0] == question[at + 1]) :]
        right.append(normalize_question(typed) == question)
    assert sum(right) >= 0.88 * len(right)


@given(st.text(max_size=40))
def test_any_text_is_read_and_reading_it_again_changes_nothing(text: str) -> None:
    once = normalize_question(text)
    assert normalize_question(once) == once and once == once.strip() and "  " not in once
    assert unicodedata.is_normalized("NFKC", once) or not text.isascii()


def test_a_chat_says_how_it_read_a_question_with_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    omni, asked, written = Omni(), [], []

    def reply(question: str, *args: object, **options: object) -> None:
        asked.append(question)
        raise InterruptedError

    monkeypatch.setattr(omni, "reply", reply)
    for typed in ("WHERE is teh star", "where is the star"):
        with pytest.raises(InterruptedError):
            Session(omni, written.append).ask(typed)
    assert asked == ["Where is the star?"] * 2 and written == ["(read as: Where is the star?)\n"]
    assert reading_note("where  is the star", "Where is the star?") == ""
