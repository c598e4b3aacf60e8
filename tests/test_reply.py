"""A reply is split into its parts where it has a scratchpad, and loses nothing where it has none."""

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tinyomni.data import unanswerable, world
from tinyomni.generation import Step
from tinyomni.reply import Reply, Transcript, parse_reply, split_reply
from tinyomni.tokenizer import EOS, BPETokenizer, train_tokenizer
from tinyomni.training.omni_mixture import scratchpad

TOK = BPETokenizer()
STAR = "There is a big red star on the left"
TWO = f"{STAR} and an orange small ring in the middle"


@pytest.mark.parametrize(
    ("text", "spoken", "parts"),
    [
        (f"{STAR}. Colour star red: Red.", False, (None, STAR, "Colour star red", "Red.")),
        (f"{TWO}. Is red star yes: Yes.", False, (None, TWO, "Is red star yes", "Yes.")),
        (f"{STAR}: I do not know.", False, (None, STAR, None, "I do not know.")),
        ("I can see nothing: I do not know.", False, (None, "I can see nothing", None, "I do not know.")),
        (f"What is it? {STAR}. Shape red star: A star.", True, ("What is it?", STAR, "Shape red star", "A star.")),
        (f"Look. What is it? {STAR}: A star.", True, ("Look. What is it?", STAR, None, "A star.")),
        (f"{STAR}: 12: 30.", False, (None, STAR, None, "12: 30.")),
        (f"{STAR}:", False, (None, STAR, None, "")),
        (f"{STAR}: ", False, (None, STAR, None, "")),
    ],
)
def test_the_scratchpad_and_the_transcript_are_split_from_the_answer(
    text: str, spoken: bool, parts: tuple[str | None, ...]
) -> None:
    assert parse_reply(text, spoken) == parts


@pytest.mark.parametrize(
    "text",
    [
        "The time is 12: 30.",
        "12: 30.",
        "Two things: a dog and a cat. Nothing else: really.",
        "There is a rule: be kind.",
        "There is a dog on the left: it barks.",
        "There is a big red star: Yes.",
        "I can see nothing",
        "I can see nothing. Where ring left",
        f"{STAR}. Good night.",
        f"{STAR} and more: Red.",
        f"He said: {STAR}. Colour star red: Red.",
        f"{STAR}. it is red: Red.",
        "Really? I do not think so.",
        "Are you there? Yes, I am: here.",
        "What? Why? Because: so.",
        "? : . ",
        ": ",
        "",
        "a\nb: c\n? d",
    ],
)
@pytest.mark.parametrize("spoken", [False, True])
def test_an_answer_without_a_scratchpad_loses_nothing(text: str, spoken: bool) -> None:
    assert parse_reply(text, spoken) == (None, None, None, text)


def test_every_scratchpad_of_the_closed_world_is_found() -> None:
    rng = random.Random(0)
    for number in range(300):
        things = world.hard_scene(rng) if number % 2 else world.scene(rng)
        described = world.ordered_description(things)
        for question in itertools.islice(world.questions(things), number % 7, None, 7):
            text = scratchpad(described, question)
            parts = parse_reply(text, spoken=False)
            assert parts.answer == question.answer and f"{parts.description}." == described and parts.lookup
            assert parse_reply(f"{question.text} {text}", spoken=True) == (question.text, *parts[1:])
        unknown = unanswerable.question(things, rng)
        assert parse_reply(scratchpad(described, unknown), spoken=False).answer == unanswerable.DO_NOT_KNOW
        assert parse_reply(scratchpad(unanswerable.SEE_NOTHING, unknown), spoken=False).description is not None


def reply(text: str, spoken: bool = False, threshold: float | None = None, eos: bool = True) -> Reply:
    """A reply that generates this text, each token with a log-probability of -0.5."""
    ids = [*TOK.encode(text), *[EOS] * eos]
    steps = (Step(torch.tensor([number]), torch.tensor([-0.5])) for number in ids)
    return Reply(steps, TOK, prompt_tokens=3, spoken=spoken, threshold=threshold)


@pytest.mark.parametrize("text", ["The time is 12: 30.", "日本語 👩🏽‍🚀 é", " two  spaces ", "\ufffd", "a\0b"])
def test_the_pieces_are_the_text_and_each_character_is_whole(text: str) -> None:
    one = reply(text)
    pieces = list(one)
    assert "".join(pieces) == one.text == one.answer == text and all(pieces)
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in text


def test_half_a_character_is_shown_at_the_end() -> None:
    ids = TOK.encode("né")[:-1]
    one = Reply(
        iter([Step(torch.tensor([number]), torch.tensor([0.0])) for number in ids]), TOK, 1, False, None
    ).finish()
    assert one.text == "n\ufffd" == TOK.decode(ids) and not one.ended


def test_a_reply_knows_its_parts_and_where_the_answer_begins() -> None:
    one = reply(f"What is it? {STAR}. Shape red star: A star.", spoken=True)
    shown = [(one.at_answer, piece) for piece in one]
    assert [place for place, (now, _) in enumerate(shown) if now] == [shown.index((True, ":"))]
    assert (one.transcript, one.description, one.lookup, one.answer) == one.parts
    assert one.before_answer == f"What is it? {STAR}. Shape red star" and one.ended
    other = reply("The time is 12: 30.")
    assert not any(other.at_answer for _ in other) and other.before_answer == ""


def test_certainty_comes_from_the_steps() -> None:
    assert reply("Red.").finish().certainty == -0.5
    assert [reply("Red.", threshold=each).finish().unsure for each in (None, -0.4, -0.5)] == [None, True, False]
    assert (reply("x").kind, reply("x", spoken=True).kind) == ("typed", "spoken")
    assert not reply("Red.", eos=False).finish().ended


@pytest.mark.parametrize("separators", [False, True])
def test_it_doubts_a_scene_where_the_description_begins_uncertainly(separators: bool) -> None:
    special = TOK.separators
    assert special is not None

    def one(text: str, first: float, limit: float | None = -0.1, threshold: float | None = -1.0) -> Reply:
        described, colon, answer = text.partition(": ")
        ids, at = TOK.encode(text), int(separators and bool(colon))
        if at:
            ids = [special.scratchpad, *TOK.encode(described), special.answer, *TOK.encode(answer)]
        log_probs = [first if place == at else -0.01 for place in range(len(ids))]
        steps = (Step(torch.tensor([id]), torch.tensor([each])) for id, each in zip(ids, log_probs, strict=True))
        return Reply(steps, TOK, 3, False, threshold, "wide", limit).finish()

    for text in (f"{STAR}.", f"{STAR}. Shape red star: A star."):
        assert one(text, -0.2).doubts_scene and one(text, -0.2).unsure
        assert one(text, -0.2).scene_certainty == pytest.approx(-0.2)
        assert not one(text, -0.05).doubts_scene and one(text, -0.05).unsure is False
        assert not one(text, -0.2, limit=None).doubts_scene and one(text, -2.0, limit=None).unsure
        assert one(text, -0.2, limit=None, threshold=None).unsure is None
    for text in ("I can see nothing.", "I can see nothing. Shape red not: I do not know.", "I am fine, thank you."):
        assert one(text, -0.2).scene_certainty is None and one(text, -0.2).unsure is False


@pytest.mark.parametrize(
    ("text", "reading", "doubts"),
    [
        (f"What is it? {STAR}. Shape red star: A star.", "what is it", False),
        (f"What is it? {STAR}. Shape red star: A star.", "Whad is id?", False),  # 2 of 10 letters
        (f"What is it? {STAR}. Shape red star: A star.", "Whad ism hd?", True),  # 4 of 10
        (f"What is it? {STAR}. Shape red star: A star.", "A star.", True),  # not what was asked, but what is answered
        ("Good night.", "god nigt", False),
        ("Good night.", "", True),
        (f"{STAR}. Good night.", "Good night.", False),  # a description, then what was to be repeated
        (f"{STAR}. Good night.", "There is a big red star", True),
        ("I heard nothing.", "oe", False),
        ("I heard nothing. Yes.", "oe", True),
        (".", "Dot.", True),
        ("", "", True),
    ],
)
def test_it_doubts_speech_that_the_recogniser_reads_otherwise(text: str, reading: str, doubts: bool) -> None:
    calls: list[str] = []

    def read() -> str:
        calls.append(reading)
        return reading

    steps = [Step(torch.tensor([number]), torch.tensor([-0.1])) for number in [*TOK.encode(text), EOS]]
    one = Reply(iter(steps), TOK, 3, True, -0.5, read=read).finish()
    assert not calls  # only where it is asked for, and once
    assert one.doubts_speech is doubts and one.unsure is doubts and one.reading == reading and len(calls) == 1
    assert not Reply(iter(steps), TOK, 3, True, -0.5).finish().unsure
    assert Reply(iter(steps), TOK, 3, True, -0.05, read=read).finish().unsure


def test_a_transcript_joins_its_parts() -> None:
    def parts() -> Iterator[tuple[str, float]]:
        yield from [("", -0.1), ("one", -0.2), ("", -0.3), ("two", -0.4)]

    one = Transcript(parts(), threshold=-0.2)
    assert "".join(one) == one.text == "one two"
    assert one.certainty == pytest.approx(-0.25) and one.unsure and one.kind == "asr"


def test_special_tokens_tell_the_parts_apart_whatever_the_texts_are(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["Is there a big red star on the left: Yes."] * 9, tmp_path / "own.model", vocab=300)
    scratchpad, answer = tokenizer.separators
    odd = "There is a big red star on the left. Colour star: Red."  # a scratchpad, if text alone decided
    ids = [*tokenizer.encode(odd), scratchpad, *tokenizer.encode("Nothing here. Is a colon: there")]
    assert split_reply(ids, tokenizer) == (odd, "Nothing here", "Is a colon: there", "")
    ids += [answer, *tokenizer.encode(odd)]
    assert split_reply(ids, tokenizer) == (odd, "Nothing here", "Is a colon: there", odd)
    assert split_reply([scratchpad, answer, *tokenizer.encode("Yes.")], tokenizer) == (None, None, None, "Yes.")
    assert split_reply(tokenizer.encode(odd), tokenizer) is None
