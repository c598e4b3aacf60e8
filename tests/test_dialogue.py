"""The whole model end to end: spoken dialogue, inputs from outside the world, and thresholds of certainty."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_ask import answering
from torch import Tensor

from tinyomni import Omni
from tinyomni.apps.chat import uncertainty_note
from tinyomni.config import SAMPLE_RATE
from tinyomni.data.datasets import Scenes
from tinyomni.data.tts import FIXED_PROSODY, TALKER_VOICES, SpeechCache
from tinyomni.data.world import Question
from tinyomni.dry_run import AUDIO, IMAGE
from tinyomni.evaluation import asr_judge, dialogue, export
from tinyomni.evaluation.dialogue import Turn
from tinyomni.evaluation.registry import OUTSIDE
from tinyomni.io.audio import load_audio


@pytest.fixture(scope="module")
def omni() -> Omni:
    return answering()


def test_a_dialogue_is_measured_as_a_whole_and_in_parts(omni: Omni) -> None:
    reply = dialogue.ask(omni, (load_audio(AUDIO), SAMPLE_RATE), IMAGE)
    yes, no = Question(None, "Is it?", reply.answer), Question(None, "Is he?", "No.")
    turns = [Turn(yes, reply, reply.answer, asr_judge.words(reply.answer), ["no"]),
             Turn(no, reply, reply.answer, ["no"], ["no"])]  # fmt: skip
    assert {name: rate.parts for name, rate in dialogue.dialogue_rates(turns).items()} == {
        "accuracy": (1, 0), "transcript": (0, 0), "answer": (1, 0), "speech": (1, 1), "baseline": (0, 1),
        "accuracy_judge": (1, 1), "recording_judge": (0, 1)}  # fmt: skip
    without_judge = [replace(each, judge=None) for each in turns]
    assert "accuracy_judge" not in dialogue.dialogue_rates(without_judge)


def test_the_independent_asr_tells_answers_apart() -> None:
    if not asr_judge.available():
        pytest.skip("the independent ASR judge needs pocketsphinx")
    for text in ("Red.", "Three.", "On the left.", "A triangle.", "Yes."):
        wave = SpeechCache(None).utter(text, TALKER_VOICES[0], *FIXED_PROSODY)
        assert asr_judge.transcribe(wave, "answers") == asr_judge.words(text)


def test_the_independent_asr_reads_the_recordings_of_answers() -> None:
    """What it makes of the Talker says something about the Talker only if it understands the recordings."""
    if not asr_judge.available():
        pytest.skip("the independent ASR judge needs pocketsphinx")
    read = []
    for answer in asr_judge.answers():
        wave = SpeechCache(None).utter(f"{answer.capitalize()}.", TALKER_VOICES[0], *FIXED_PROSODY)
        read.append(asr_judge.transcribe(wave, "answers") == answer.split())
    assert sum(read) >= 0.9 * len(read)


def test_a_person_who_says_other_words_gets_no_confident_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    claims = {}
    for name, answer, thresholds in (
        ("sure", "Red.", {"spoken": -100.0}),
        ("doubted", "Red.", {"spoken": -100.0, "asr": -100.0}),
        ("unsure", "Red.", {"spoken": 0.0}),
        ("says so", "I heard nothing.", {"spoken": -100.0}),
    ):
        omni = answering(answer)
        omni.thresholds = thresholds
        monkeypatch.setattr(omni, "recognize", lambda wav: ("Green.", -0.1))
        read, other, confident = dialogue.people(omni, 4)
        claims[name] = confident.rate
        assert confident.n == 8 and read.n == other.n == 4 and read.rate > 0.5 < other.rate
    assert claims == {"sure": 1.0, "doubted": 0.0, "unsure": 0.0, "says so": 0.0}


def test_a_spoken_question_gets_a_spoken_answer(omni: Omni, tmp_path: Path) -> None:
    (turn,) = dialogue.dialogue(omni, 1, str(tmp_path))
    assert turn.reply.text == "Is it? Yes." and not turn.understood and isinstance(turn.transcript, str)


def test_inputs_from_outside_the_world_are_counted() -> None:
    knows, does_not = answering(), answering("Is it? I do not know.")
    knows.thresholds, does_not.thresholds = {"typed": 0.0, "spoken": 0.0}, {}  # nothing is certain enough for the first
    for omni, says in ((knows, 0.0), (does_not, None)):
        rates = {kind: (one.rate, either.rate) for kind, one, either in dialogue.outside(omni, 1)}
        assert list(rates) == list(OUTSIDE)
        if says is None:  # typed questions are answered so; in a reply to audio the question is repeated
            assert rates["not there"] == rates["photograph"] == (1.0, 1.0)
        else:
            assert set(rates.values()) == {(says, 1.0)}
    right, wrong = dialogue.unsure(knows, 4)
    assert right.n + wrong.n == 4 and set((*right.parts, *wrong.parts)) == {1}


def test_thresholds_are_what_right_answers_reach(tmp_path: Path) -> None:
    samples = [Scenes("validation", 6, speech=False)[index] for index in range(6)]
    common = max(samples, key=lambda each: [other.answer for other in samples].count(each.answer)).answer
    omni = answering(f"Is it? {common}")
    right = [dialogue.ask(omni, each.question.text, each.image).certainty for each in samples
             if each.answer == common]  # fmt: skip
    found = export.thresholds(omni, 6, str(tmp_path))
    assert found["typed"] == pytest.approx(np.quantile(right, 0.02), abs=1e-6) and set(found) == {"typed"}


def test_the_wide_style_has_a_threshold_of_scenes(tmp_path: Path) -> None:
    omni = answering("There is a big red star on the left: Yes.")
    assert dialogue.ask(omni, "Is it?", IMAGE).scene_certainty is not None
    omni.style = "wide"
    found = export.thresholds(omni, 12, str(tmp_path))
    omni.thresholds = {"typed": -100.0, "scene": 0.5}
    reply = dialogue.ask(omni, "Is it?", IMAGE)
    assert "scene" in found and reply.doubts_scene and "a scene it can describe" in uncertainty_note(reply)
    assert not dialogue.ask(omni, "Is it?", None).doubts_scene


def test_speech_that_the_recogniser_reads_otherwise_is_doubted(monkeypatch: pytest.MonkeyPatch) -> None:
    omni = answering("Is it? There is a big red star on the left: Yes.")
    omni.thresholds = {"spoken": -100.0, "asr": -100.0}
    heard: list[int] = []

    def recognize(wav: Tensor) -> tuple[str, float]:
        heard.append(len(wav))
        return "Bring me tea.", -0.1

    monkeypatch.setattr(omni, "recognize", recognize)
    rng = np.random.default_rng(0)
    wave = np.concatenate([np.zeros(8000), rng.standard_normal(16_000), np.zeros(8000)]).astype(np.float32) / 8
    reply = dialogue.ask(omni, (wave, 16_000), IMAGE)
    assert reply.unsure and "letter by letter it was heard as 'Bring me tea.'" in uncertainty_note(reply)
    assert len(heard) == 1 and 16_000 <= heard[0] < 17_000  # as the Thinker was given it: without the silence
    omni.thresholds = {"spoken": -100.0}  # of an untrained recogniser nothing is known
    assert dialogue.ask(omni, (wave, 16_000), IMAGE).unsure is False
