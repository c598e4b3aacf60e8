"""What evaluation measures: questions, retrieval, recognition, the codec, speech, and the independent recogniser."""

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from tinyomni.data import unanswerable, world
from tinyomni.data.datasets import Scenes, pixels
from tinyomni.data.rendering import picture
from tinyomni.data.tts import utter
from tinyomni.evaluation import asr_judge, questions, speech
from tinyomni.evaluation.questions import Answer, best_guess, by_kind, one_of_each_kind, spoken, typed
from tinyomni.evaluation.vision import image_text_retrieval, slot_accuracy
from tinyomni.tokenizer import BPETokenizer
from tinyomni.training.recipe import Place
from tinyomni.training.stages import audio, codec, omni, talker
from tinyomni.training.stages.omni import OmniStage, Row
from tinyomni.training.stages.vision import VisionStage

TOKENIZER = BPETokenizer()


@pytest.fixture
def stage() -> OmniStage:
    """Weights large enough that a mistake shows."""
    stage = OmniStage().eval()
    for parameter in stage.parameters():
        nn.init.normal_(parameter, std=0.05)
    return stage


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A folder in which the stages of speech have taken their few steps."""
    torch.manual_seed(0)
    place = Place(tmp_path_factory.mktemp("speech"), "smoke")
    for each in (audio, codec, talker):
        each.job(place).run(place)
    return place


# ---- questions ------------------------------------------------------------------------------------------------------


def test_answers_are_counted_by_kind() -> None:
    answers = [Answer("What colour is it?", "red.", "Red."), Answer("What colour is that?", "blue.", "Green."),
               Answer("How many?", "two.", "two.")]  # fmt: skip
    assert {kind: (rate.rate, rate.n) for kind, rate in by_kind(answers).items()} == {
        "What colour": (0.5, 2), "How many?": (1.0, 1)}  # fmt: skip


def test_questions_about_unseen_pairs_are_about_the_pair() -> None:
    for index in range(10):
        things = world.draw_scene("compositional", index)
        words = {word for c, s in world.pairs_of(things) & world.HELD_OUT for word in (c, s, world.PLURALS[s])}
        asked = one_of_each_kind(things, "x")
        assert asked and all(words & set(question.strip("?").split()) for question, _ in asked)
    assert len(one_of_each_kind(world.draw_scene("test", 0), "x")) >= 4


def test_the_best_guess_is_far_from_right_and_so_is_an_untrained_model(stage: OmniStage) -> None:
    asked = [Answer(question, answer, "") for index in range(60)
             for question, answer in one_of_each_kind(world.draw_scene("test", index), f"test {index}")]  # fmt: skip
    guesses = [each.right for each in best_guess(asked, seen=600)]
    assert 0.2 < sum(guesses) / len(guesses) < 0.6
    answers = typed(stage, TOKENIZER, scenes=2, blank=True)
    assert len(answers) >= 8 and not any(each.right for each in answers)


def test_typed_questions_can_be_about_easy_pictures(stage: OmniStage, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[torch.Tensor] = []
    monkeypatch.setattr(stage, "features", lambda row: shown.append(row.picture) or row)
    monkeypatch.setattr(questions, "say", lambda _, rows, *more: ["There is a star: Yes."] * len(rows))
    typed(stage, TOKENIZER, scenes=2, easy=1)
    due = [pixels(picture(world.draw_scene("test", index), hard=False)) for index in range(2)]
    assert torch.equal(torch.stack([each for each in shown if each is not None]), torch.stack(due))


def test_typed_questions_are_judged_by_the_answer_and_the_scene_apart(
    stage: OmniStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = world.in_order(world.draw_scene("test", 0)).removesuffix(".")
    asked = one_of_each_kind(world.draw_scene("test", 0), "test 0")
    texts = [omni.noted(f"{right}.", *pair) for pair in asked]
    texts[0] = omni.noted("There is a star.", *asked[0])
    texts[1] = omni.noted(f"{right}.", asked[1][0], "What?")
    monkeypatch.setattr(questions, "say", lambda *_: texts)
    answers = typed(stage, TOKENIZER, scenes=1)
    assert [each.right for each in answers] == [True, False, *[True] * (len(asked) - 2)]
    assert [each.seen == each.scene for each in answers] == [False, *[True] * (len(asked) - 1)]


def test_spoken_questions_are_judged_by_what_follows_the_question(
    stage: OmniStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Scenes("test", 3, heard=True)
    texts = [f"{data[i].question} There is a star: {data[i].answer}" for i in range(2)] + ["What? Nothing."]
    monkeypatch.setattr(questions, "say", lambda *_: texts)
    answers, written = spoken(stage, TOKENIZER, n=3, cache=str(tmp_path))
    assert [each.right for each in answers] == [True, True, False] and written.parts == (1, 1, 0)


def test_what_nobody_can_know_is_asked_in_four_ways(stage: OmniStage, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Row] = []

    def knows_nothing(_: OmniStage, rows: list[Row], tokenizer: BPETokenizer) -> list[str]:
        seen.extend(rows)
        return [f"I can see nothing: {unanswerable.DO_NOT_KNOW}"] * len(rows)

    monkeypatch.setattr(questions, "say", knows_nothing)
    found = questions.unknowable(stage, TOKENIZER, n=4)
    right = {kind: sum(each.right for each in answers) for kind, answers in found.items()}
    assert right == {"not there": 4, "unknown word": 4, "no scene": 4, "no speech": 0}
    assert [(each.picture is None, each.sound is None) for each in seen] == [(False, True)] * 12 + [(True, False)] * 4
    assert all(set(each.question.strip("?").split()) & set(unanswerable.NOUNS) for each in found["unknown word"])


# ---- vision ---------------------------------------------------------------------------------------------------------


def test_untrained_weights_and_blank_pictures_measure_chance() -> None:
    stage = VisionStage().eval()
    found = image_text_retrieval(stage, groups=1, among=16)
    assert found["picture → caption"].n == 16 and found["picture → caption"].rate < 0.5
    blank = image_text_retrieval(stage, groups=1, among=16, blank=True)
    assert blank["picture → caption"].rate == 1 / 16  # all pictures choose the same caption
    found = slot_accuracy(stage, scenes=8)
    assert found["scene"].rate == 0 and found["scene"].n == 8 and found["shape"].n >= 8


def test_a_perfect_stage_measures_1(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = VisionStage().eval()
    captions = partial(torch.nn.functional.one_hot, num_classes=16)
    monkeypatch.setattr(stage, "pictures", lambda cls: captions(torch.arange(len(cls))).float())
    monkeypatch.setattr(stage, "captions", lambda read: captions(torch.arange(len(read))).float())
    found = image_text_retrieval(stage, groups=2, among=16, swaps=False)
    assert all(rate.rate == 1 and rate.n == 32 for rate in found.values())


# ---- speech ---------------------------------------------------------------------------------------------------------


def test_the_measures_run_and_count(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech, "max_frames", lambda text_tokens: 12)  # it has not learned to end
    heard = speech.asr_cer(place, 3)
    assert set(heard) == {"grammar", "shuffled words", "unseen voice", "texts exchanged"}
    trips = speech.codec_cer(place, 3)
    hows = ("recordings", "codes", "unquantised", "mean frame", "texts exchanged")
    assert {f"{name}, {how}" for name in ("grammar", "shuffled words") for how in hows} == set(trips)
    spoken = speech.synthesize(place, 3, batch_size=2)
    rates = speech.tts_cer(place, spoken)
    assert all(rate.n == 3 for rate in (*heard.values(), *trips.values(), *rates.values()))
    assert [len(wave) for wave in spoken.waves] == [1280 * frames for frames in spoken.frames]
    mix = talker.Sayings(place, place.trained(codec.CodecStage()), "train", 400)
    assert 0.4 < sum(mix.text(index).islower() for index in range(400)) / 400 < 0.6  # half is words in random order
    words = speech.synthesize(place, 3, order=False)
    assert all(text.islower() for text in words.texts) and not any(text.islower() for text in spoken.texts)
    assert speech.tts_cer(place, words, order=False)["its codec"].wholes == tuple(map(len, words.texts))
    took = speech.real_time_factor(place, 2)
    assert took.n == 2 and min(took.parts) > 0 and set(took.wholes) == {12 * 0.08}
    facts = speech.codec_statistics(place, 3)
    assert 0 < facts["loss"] < 1 and 0 < facts["used 0"] <= 1


def test_other_ears_understand_a_recording_and_not_another_text() -> None:
    text = "There is a big red circle on the left."
    wave = utter(text, rate=150)
    assert asr_judge.word_error([wave], [text]).rate <= 0.2
    assert asr_judge.word_error([wave], ["How many hearts are there? Three."]).rate > 0.7


def test_without_pocketsphinx_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    asr_judge.decoder.cache_clear()
    with pytest.raises(ImportError, match=r"tinyomni\[test\]"):
        asr_judge.hear(torch.zeros(16_000))
