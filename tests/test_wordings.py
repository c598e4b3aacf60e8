"""Questions as people word them: answers stay true, families are held out, follow-ups refer to what came before."""

import random
import re
import string
from collections import Counter
from pathlib import Path

import pytest
import torch

from tinyomni import TINY, Omni
from tinyomni.apps.chat import Session, history
from tinyomni.data import unanswerable, wordings, world
from tinyomni.data.datasets import Scenes, Speech
from tinyomni.data.wordings import HELD_OUT, HISTORY, SMALL_TALK, TEMPLATES, WRITTEN, Turn
from tinyomni.evaluation.calibration import threshold, validation_wording
from tinyomni.reply import parse_reply, split_reply
from tinyomni.tokenizer import BPETokenizer, train_tokenizer
from tinyomni.training.omni_examples import OmniExample
from tinyomni.training.omni_mixture import P_UNCLEAR, TYPED, OmniMixture

SCENES = [world.draw_scene("train", index) for index in range(150)]


def answer_of(things: list[world.Thing], kind: str, key: str) -> str:
    """The right answer, read off the scene in another way than the questions do it."""
    if kind == "count":
        word = key.removesuffix(" things")
        found = [t for t in things if key == "things" or word in (t.size, t.colour, world.PLURALS[t.shape])]
        return world.NUMBERS[len(found)].capitalize() + "."
    if kind == "existence":
        return "Yes." if tuple(key.split()) in world.colour_shape_pairs(things) else "No."
    (thing,) = [t for t in things if key in (t.colour, t.shape, t.place.split()[-1])]
    value = getattr(thing, kind)
    return (world.with_article(value) if kind == "shape" else value).capitalize() + "."


def test_every_answer_is_true_in_every_wording() -> None:
    rng, kinds = random.Random(0), Counter[str]()
    for things, family in [(things, family) for things in SCENES for family in (None, None, "people", "others")]:
        question = wordings.draw_question(things, rng, family)
        assert question.kind is not None and question.key is not None
        assert "{" not in question.text
        kinds[question.kind] += 1
        if question.kind in world.FIELDS and question.answer in ("Yes.", "No."):
            thing = next(t for t in things if t.shape == question.key)
            asked = [value for value in world.FIELDS[question.kind] if re.search(rf"\b{value}\b", question.text)]
            assert getattr(thing, question.kind).split()[-1] == question.value and len(asked) == 1, question
            assert (asked[0] == getattr(thing, question.kind)) == (question.answer == "Yes."), question
        elif question.value is not None and " " in question.value:
            thing = next(t for t in things if t.place.endswith(question.key))
            assert question.answer.lower() == f"{world.with_article(f'{thing.colour} {thing.shape}')}."
        else:
            assert question.answer == answer_of(list(things), question.kind, question.key), question
    assert set(kinds) == set(world.QUESTION_KINDS)


def test_held_out_wordings_are_in_no_training_question() -> None:
    rng = random.Random(0)
    assert all(set(families) == set(TEMPLATES["colour"]) for families in TEMPLATES.values())
    asked = {wordings.draw_question(things, rng).text for things in SCENES * 4}
    for things in SCENES:
        question = world.draw_question(things, rng)
        assert all(wordings.reword(question, things, rng, family) not in asked for family in HELD_OUT)
    people, others = (
        {" ".join(re.findall(r"[\w{}']+", each.lower())) for kind in kinds.values() for each in kind}
        for kinds in (WRITTEN["people"], WRITTEN["others"])
    )
    assert not people & others and len(people) > 600 and len(others) > 200
    assert not set(HELD_OUT) & set(wordings.families("train"))


PLACEHOLDERS = {
    "colour": "the", "shape": "the", "size": "the", "place": "the", "existence": "a", "count": "things", "at": "place",
    "is": "the value", "choice": "the one other", "describe": "", "it_colour": "", "it_size": "", "it_place": "",
    "and_the": "the",
}  # fmt: skip


@pytest.mark.parametrize("family", WRITTEN)
def test_what_people_wrote_has_the_placeholders_of_its_kind(family: str) -> None:
    assert WRITTEN[family].keys() == PLACEHOLDERS.keys()
    for kind, templates in WRITTEN[family].items():
        for template in templates:
            names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
            assert sorted(names) == sorted(PLACEHOLDERS[kind].split()), (kind, template)


def test_spoken_questions_are_those_of_the_grammar() -> None:
    rng = random.Random(3)
    words = {word for each in SCENES for word in wordings.draw_question(each, rng, spoken=True).text.lower().split()}
    assert not words & {"pic", "pls", "hey", "drawing", "screen"}


def test_a_choice_offers_the_right_answer_and_a_wrong_one_and_never_what_is_not_there() -> None:
    rng = random.Random(1)
    for things in SCENES[:60]:
        for kind in ("colour", "shape", "size", "place"):
            for question in world.QUESTION_KINDS[kind].questions(things):
                text = wordings.reword(question, things, rng, "choice").lower()
                assert question.answer.removesuffix(".").lower() in text and " or " in text
        absent = unanswerable.question(things, rng, about="not there")
        assert " or " not in wordings.reword(absent, things, rng, "choice")


def test_a_conversation_has_three_turns_at_most_and_its_follow_ups_are_true() -> None:
    rng, referring = random.Random(2), 0
    for things in SCENES:
        turns, question = wordings.conversation(things, rng)
        assert 1 <= len(turns) <= HISTORY
        says_it = re.search(r"\b(it|that one)\b", question.text) and question.answer not in ("Yes.", "No.")
        if says_it and question.kind in wordings.FOLLOW_UPS:
            referring += question.kind in ("colour", "shape", "size", "place")
            assert question.answer == answer_of(list(things), str(question.kind), str(question.key))
        text = wordings.prompt(turns, question.text)
        assert text.endswith(question.text) and text.startswith(turns[0].question)
    assert referring > 30


def test_every_follow_up_refers_back_and_few_other_questions_do() -> None:
    rng, asked = random.Random(0), []
    for index in range(400):
        things = world.draw_scene("train", index)
        before = wordings.draw_question(things, rng)
        asked.append(before.text)
        if found := wordings.follow_up(before, things, rng):
            assert wordings.refers_back(found.text), found.text
    for family in WRITTEN.values():
        texts = [
            each.format(the="the star")
            for name in ("it_colour", "it_size", "it_place", "and_the")
            for each in family[name]
        ]
        assert [each for each in texts if not wordings.refers_back(each)] == []
    assert not any(map(wordings.refers_back, SMALL_TALK))
    assert sum(map(wordings.refers_back, asked)) < 0.2 * len(asked), [
        each for each in asked if wordings.refers_back(each)
    ]


def test_careless_typing_changes_little() -> None:
    rng, text = random.Random(0), "What colour is the grey star?"
    written = {wordings.careless(text, rng) for _ in range(200)}
    assert len(written) > 40 and all(abs(len(each) - len(text)) <= 8 for each in written)
    assert {text.lower(), text.upper(), text + " "} <= written


def test_the_mixture_of_the_wide_style_teaches_people(tmp_path: Path) -> None:
    tokenizer = BPETokenizer()
    data = OmniMixture(tokenizer.encode, Scenes("train", 64, speech=False, style="wide"), 12, style="wide")
    examples = [each for index in range(12) for each in data[index] if each.loss_mask is None]
    texts = [(tokenizer.decode(each.prompt), tokenizer.decode(each.answer), each) for each in examples]
    assert any(answer in SMALL_TALK.values() and each.image is not None for _, answer, each in texts)
    assert any(prompt.count("?") > 2 for prompt, _, _ in texts)
    sentences = set(unanswerable.UNCLEAR_IMAGES.values())
    said = [answer for _, answer, _ in texts if any(answer.startswith(each[:-1]) for each in sentences)]
    assert said
    for answer in said:
        parts = parse_reply(answer, spoken=False)
        assert answer in sentences or parts.description in {each[:-1] for each in sentences}
    assert max(each.size for each in examples) < TINY.thinker.ctx_len // 2


def test_what_is_learned_late_comes_often() -> None:
    tokenizer, rng = BPETokenizer(), random.Random(0)
    data = OmniMixture(tokenizer.encode, Scenes("train", 64, speech=False, style="wide"), 12, style="wide")
    typed = [tokenizer.decode(each.answer) for index in range(12) for each in data[index][:TYPED]]
    unclear = sum(not answer.startswith("There is") for answer in typed)
    assert 0.5 * P_UNCLEAR < unclear / len(typed) < 2 * P_UNCLEAR
    compared = [data.compared(things, rng) for things in SCENES]
    assert {"Yes.", "No.", "None.", "One.", "Two."} <= {question.answer for question in compared}
    assert {question.kind for question in compared} == {"count", "colour", "size", "place"}


def test_small_talk_follows_on_questions_and_no_image_is_described_that_is_not_there() -> None:
    tokenizer, rng = BPETokenizer(), random.Random(0)
    data = OmniMixture(tokenizer.encode, Scenes("train", 64, speech=False, style="wide"), 12, style="wide")
    things, scene = data.scenes.things(0), OmniExample([], [], image=torch.zeros(3, 224, 224))
    drawn = [data.small_talk(0, things, scene, rng) for _ in range(200)]
    texts = [(tokenizer.decode(each.prompt), tokenizer.decode(each.answer), each.image is not None) for each in drawn]
    longest = max(map(len, SMALL_TALK)) + 8
    after = [image for text, answer, image in texts if answer in SMALL_TALK.values() and len(text) > longest]
    assert len(after) > 5 and all(after)
    missing = [text.lower() for text, answer, image in texts if answer == unanswerable.CANNOT_SEE and not image]
    assert sum("describe" in text or "do you see" in text for text in missing) > 3 and len(set(missing)) > 25
    asked = [tokenizer.decode([*data.encode(data.describe(rng, things))]) for _ in range(100)]
    assert 10 < sum(text.count("?") > 1 or len(text) > 60 for text in asked) < 60


def test_special_tokens_stand_before_scratchpad_and_answer_and_nowhere_else(tmp_path: Path) -> None:
    lines = [world.draw_line("train", index) for index in range(300)]
    tokenizer = train_tokenizer([*lines, "There is a big red star on the left: Yes."], tmp_path / "own.model", 500)
    scratchpad, answer = tokenizer.separators
    plain, special = (
        OmniMixture(tokenizer.encode, Scenes("train", 64, speech=False), 6, style="wide", separators=separators)
        for separators in (None, tokenizer.separators)
    )
    examples = [pair for index in range(6) for pair in zip(plain[index], special[index], strict=True)]
    questions = [(one, two) for one, two in examples if two.answer != one.answer]
    assert len(questions) > 6 * 7  # nearly all typed questions, and some unanswerable ones
    for one, two in questions:
        assert two.answer.count(scratchpad) == two.answer.count(answer) == 1 and two.prompt == one.prompt
        assert tokenizer.decode(two.answer) == tokenizer.decode(one.answer)
        assert split_reply(two.answer, tokenizer) == parse_reply(tokenizer.decode(one.answer), spoken=False)


def test_other_wordings_are_heard_too() -> None:
    plain, wide = Speech(size=200), Speech(size=200, style="wide")
    texts = [(plain.text(index), wide.text(index)) for index in range(200)]
    assert 0.1 < sum(one != two for one, two in texts) / 200 < 0.3


def test_a_chat_remembers_where_the_model_was_trained_to(monkeypatch: pytest.MonkeyPatch) -> None:
    omni, turns = Omni(), [Turn("Where is the star?", "On the left.")] * 9
    assert history(omni, turns, "And the ring?") == []
    omni.style = "wide"
    assert history(omni, turns, "And the ring?") == turns[:HISTORY]
    assert history(omni, turns, "Where is the ring?") == history(omni, turns, "What time is it?") == []
    assert history(omni, [Turn("red " * 100, "No.")], "Where is it?") == []
    prompts: list[str] = []

    def reply(prompt: str, *args: object, **options: object) -> None:
        prompts.append(prompt)
        raise InterruptedError

    monkeypatch.setattr(omni, "reply", reply)
    session = Session(omni, lambda _: None)
    session.turns = turns[:1]
    with pytest.raises(InterruptedError):
        session.ask("and the ring")
    assert prompts == ["Where is the star? On the left. And the ring."]
    session.handle_line("/image")
    assert session.turns == []


def test_the_threshold_keeps_wrong_answers_out() -> None:
    right, wrong = [-0.1 * n for n in range(50)], [-0.05, -1.05, -2.05, -3.05]
    assert threshold(right, wrong) == pytest.approx(-4.8, abs=0.1)
    at = threshold(right, wrong, 0.05)
    sure = [each for each in (*right, *wrong) if each >= at]
    assert sum(each in wrong for each in sure) <= 0.05 * len(sure) and at > threshold(right, wrong)
    assert threshold([-1.0], [0.0], 0.0) == 0.0
    sample = Scenes("validation", 4, speech=False)[0]
    assert validation_wording(sample, "plain") == sample.question.text != ""
