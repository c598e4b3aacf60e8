"""What evaluation measures: questions, retrieval, recognition, the codec, speech, and the independent ASR judge."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from tinyomni.data import unanswerable, world
from tinyomni.data.datasets import Scenes, pixels
from tinyomni.data.rendering import render
from tinyomni.data.tts import utter
from tinyomni.data.world import Question
from tinyomni.errors import InputError
from tinyomni.evaluation import asr_judge, questions, speech
from tinyomni.evaluation.questions import (
    Answer,
    accuracy_by_kind,
    accuracy_of,
    most_frequent_answers,
    one_of_each_kind,
    spoken_answers,
    typed_answers,
)
from tinyomni.evaluation.vision import image_text_retrieval, slot_accuracy
from tinyomni.tokenizer import BPETokenizer
from tinyomni.training.omni_examples import OmniExample
from tinyomni.training.omni_mixture import scratchpad
from tinyomni.training.recipe import RunDir
from tinyomni.training.stages.codec import CodecStage
from tinyomni.training.stages.omni import OmniStage
from tinyomni.training.stages.talker import TalkerDataset
from tinyomni.training.stages.vision import VisionStage
from tinyomni.training.train import train

TOKENIZER = BPETokenizer()


@pytest.fixture
def stage() -> OmniStage:
    """Weights large enough that a mistake shows."""
    stage = OmniStage().eval()
    for parameter in stage.parameters():
        nn.init.normal_(parameter, std=0.05)
    return stage


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A folder in which the stages of speech have taken their few steps."""
    torch.manual_seed(0)
    run_dir = RunDir(tmp_path_factory.mktemp("speech"), "smoke")
    for each in ("audio", "codec", "talker"):
        train(each, run_dir)
    return run_dir


# ---- questions ------------------------------------------------------------------------------------------------------


def test_answers_are_counted_by_kind() -> None:
    answers = [Answer(Question("colour", "What colour is it?", "Red."), "red."),
               Answer(Question("colour", "Tell me the colour!", "Blue."), "Green."),
               Answer(Question("count", "How many?", "Two."), "two.")]  # fmt: skip
    assert {kind: (rate.rate, rate.n) for kind, rate in accuracy_by_kind(answers).items()} == {
        "colour": (0.5, 2), "count": (1.0, 1)}  # fmt: skip
    assert accuracy_of(answers).parts == (1, 0, 1)


def test_questions_about_held_out_pairs_name_their_colour_or_shape() -> None:
    for index in range(10):
        things = world.draw_scene("compositional", index)
        pairs = world.colour_shape_pairs(things) & world.HELD_OUT
        words = {word for c, s in pairs for word in (c, s, world.PLURALS[s])}
        asked = one_of_each_kind(things, "x")
        assert asked and all(words & set(question.text.strip("?").split()) for question in asked)
    asked = one_of_each_kind(world.draw_scene("test", 0), "x")
    assert len({question.kind for question in asked}) == len(asked) >= 4


def test_the_most_frequent_answer_is_often_wrong_and_an_untrained_model_always(stage: OmniStage) -> None:
    asked = [Answer(question, "") for index in range(60)
             for question in one_of_each_kind(world.draw_scene("test", index), f"test {index}")]  # fmt: skip
    assert 0.2 < accuracy_of(most_frequent_answers(asked, scenes=600)).rate < 0.6
    answers = typed_answers(stage, TOKENIZER, scenes=2, blank=True)
    assert len(answers) >= 8 and accuracy_of(answers).rate == 0


def test_typed_questions_can_be_about_easy_images(stage: OmniStage, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[torch.Tensor] = []
    monkeypatch.setattr(stage, "featurize", lambda example: shown.append(example.image) or example)
    monkeypatch.setattr(
        questions, "generate_ids", lambda _, examples, *more: [TOKENIZER.encode("Yes.")] * len(examples)
    )
    typed_answers(stage, TOKENIZER, scenes=2, easy=1)
    expected = [pixels(render(world.draw_scene("test", index), hard=False)) for index in range(2)]
    assert torch.equal(torch.stack([each for each in shown if each is not None]), torch.stack(expected))


def test_answer_and_description_of_a_typed_question_are_judged_apart(
    stage: OmniStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = world.ordered_description(world.draw_scene("test", 0))
    asked = one_of_each_kind(world.draw_scene("test", 0), "test 0")
    texts = [scratchpad(right, question) for question in asked]
    texts[0] = scratchpad("There is a big red star on the left.", asked[0])
    texts[1] = scratchpad(right, replace(asked[1], answer="What?"))
    monkeypatch.setattr(questions, "generate_ids", lambda *_: [TOKENIZER.encode(text) for text in texts])
    answers = typed_answers(stage, TOKENIZER, scenes=1)
    assert [each.question for each in answers] == asked
    assert [each.correct for each in answers] == [True, False, *[True] * (len(asked) - 2)]
    exact = [each.description == each.expected_description for each in answers]
    assert exact == [False, *[True] * (len(asked) - 1)]


def test_answer_and_transcript_of_a_spoken_question_are_judged_apart(
    stage: OmniStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [Scenes("test", 4, spoken_in_training=True)[index] for index in range(4)]
    texts = [f"{each.question.text} There is a big red star on the left: {each.answer}" for each in samples]
    texts[2], texts[3] = f"What? {texts[2].partition('? ')[2]}", "What? Nothing."
    monkeypatch.setattr(questions, "generate_ids", lambda *_: [TOKENIZER.encode(text) for text in texts])
    answers, transcripts = spoken_answers(stage, TOKENIZER, n=4, cache=str(tmp_path))
    assert [each.correct for each in answers] == [True, True, True, False] and transcripts.parts == (1, 1, 0, 0)


def test_unanswerable_inputs_are_of_four_kinds(stage: OmniStage, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[OmniExample] = []

    def knows_nothing(_: OmniStage, examples: list[OmniExample], tokenizer: BPETokenizer) -> list[list[int]]:
        seen.extend(examples)
        return [tokenizer.encode(f"I can see nothing: {unanswerable.DO_NOT_KNOW}")] * len(examples)

    monkeypatch.setattr(questions, "generate_ids", knows_nothing)
    found = questions.unanswerable_answers(stage, TOKENIZER, n=4)
    correct = {kind: sum(accuracy_of(answers).parts) for kind, answers in found.items()}
    assert correct == {"not there": 4, "unknown word": 4, "no scene": 4, "no speech": 0}
    assert [(each.image is None, each.audio is None) for each in seen] == [(False, True)] * 12 + [(True, False)] * 4
    assert all(set(each.question.text.strip("?").split()) & set(unanswerable.NOUNS) for each in found["unknown word"])


# ---- vision ---------------------------------------------------------------------------------------------------------


def test_untrained_weights_and_blank_images_give_chance() -> None:
    stage = VisionStage().eval()
    found = image_text_retrieval(stage, groups=1, among=16)
    assert found["image → text"].n == 16 and found["image → text"].rate < 0.5
    blank = image_text_retrieval(stage, groups=1, among=16, blank=True)
    assert blank["image → text"].rate == 1 / 16  # all images choose the same caption
    found = slot_accuracy(stage, scenes=8)
    assert found["scene"].rate == 0 and found["scene"].n == 8 and found["shape"].n >= 8


def test_a_perfect_stage_has_a_recall_of_1(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = VisionStage().eval()
    captions = partial(torch.nn.functional.one_hot, num_classes=16)
    monkeypatch.setattr(stage, "embed_images", lambda cls: captions(torch.arange(len(cls))).float())
    monkeypatch.setattr(stage, "embed_captions", lambda read: captions(torch.arange(len(read))).float())
    found = image_text_retrieval(stage, groups=2, among=16, swaps=False)
    assert all(rate.rate == 1 and rate.n == 32 for rate in found.values())


# ---- speech ---------------------------------------------------------------------------------------------------------


def test_speech_is_measured(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech, "max_frames", lambda text_tokens: 12)  # it has not learned to end
    heard = speech.asr_cer(run_dir, 3)
    assert set(heard) == {"grammar", "shuffled words", "held-out voice", "baseline"}
    trips = speech.codec_cer(run_dir, 3)
    hows = ("recordings", "codes", "unquantized", "baseline")
    assert {f"{name}, {how}" for name in ("grammar", "shuffled words") for how in hows} == set(trips)
    spoken = speech.synthesize(run_dir, 3, batch_size=2)
    rates = speech.tts_cer(run_dir, spoken)
    assert all(rate.n == 3 for rate in (*heard.values(), *trips.values(), *rates.values()))
    assert [len(wave) for wave in spoken.waves] == [1280 * frames for frames in spoken.frames]
    mix = TalkerDataset(run_dir, run_dir.trained(CodecStage()), "train", 400)
    assert 0.4 < sum(mix.text(index).islower() for index in range(400)) / 400 < 0.6  # half is words in random order
    words = speech.synthesize(run_dir, 3, order=False)
    assert all(text.islower() for text in words.texts) and not any(text.islower() for text in spoken.texts)
    assert speech.tts_cer(run_dir, words, order=False)["codec"].wholes == tuple(map(len, words.texts))
    took = speech.real_time_factor(run_dir, 2)
    assert took.n == 2 and min(took.parts) > 0 and set(took.wholes) == {12 * 0.08}
    unexplained, utilization = speech.codec_statistics(run_dir, 3)
    assert 0 < unexplained < 1 and len(utilization) == 2 and 0 < min(utilization) <= max(utilization) <= 1


def test_the_independent_asr_reads_a_recording_and_not_another_text() -> None:
    text = "There is a big red circle on the left."
    wave = utter(text, rate=150)
    assert asr_judge.wer([wave], [text]).rate <= 0.2
    assert asr_judge.wer([wave], ["How many hearts are there? Three."]).rate > 0.7
    assert asr_judge.transcribe(utter("Blue star."), "(red | blue | pink) (ring | star | heart)") == ["blue", "star"]


def test_without_pocketsphinx_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    asr_judge.decoder.cache_clear()
    with pytest.raises(InputError, match=r"tinyomni\[test\]"):
        asr_judge.transcribe(torch.zeros(16_000))
