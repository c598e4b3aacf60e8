"""After lessons 05, 08, 11 and 17: the learner's own parts in the trained model, and something to read, see or hear.

    milestone("05")      in a notebook of exercises/, or `tinyomni milestone 05`

All answers of the lessons so far that pass their exercise and have a counterpart in the library are swapped in; the
library does the rest.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile

from tinyomni.data.tts import utter
from tinyomni.errors import InputError
from tinyomni.grade import swapping
from tinyomni.grade.build import has_answers
from tinyomni.grade.grading import grade_answer
from tinyomni.grade.notebook import read_cells
from tinyomni.grade.registry import NO_GRADERS, Lesson, lessons
from tinyomni.grade.swapping import swap
from tinyomni.omni import DESCRIBE, Omni

ASSETS = Path(__file__).resolve().parents[1] / "assets"
SCENE, SPEECH = ASSETS / "scene.png", ASSETS / "speech.wav"
QUESTIONS = ("What colour is the circle?", DESCRIBE)
SENTENCE = "The circle is red."
NO_ANSWER = re.compile(r"^\s*(check\.|%|!|swap\(|with \(?.*swap|.*\bmilestone\()", re.MULTILINE)

Report = Callable[[str], None]


@dataclass(frozen=True)
class Milestone:
    """What can be shown after a lesson; `show` may write a WAV file."""

    title: str
    show: Callable[[Omni, Path, Report], None]


def write_text(omni: Omni, sound: Path, report: Report) -> None:
    """The Thinker answers typed questions about an image, which the library's encoder sees for it."""
    for question in QUESTIONS:
        report(f"  {question}  →  {omni.generate(text=question, image=SCENE)}")


def see_and_hear(omni: Omni, sound: Path, report: Report) -> None:
    """A caption, and a transcript."""
    report(f"  {SCENE.name}   →  {omni.generate(text=DESCRIBE, image=SCENE)}")
    report(f"  {SPEECH.name}  →  {''.join(omni.transcribe(SPEECH))}")


def say_sentence(omni: Omni, sound: Path, report: Report) -> None:
    """The Talker says a sentence."""
    write_speech(omni, SENTENCE, sound, report)


def answer_aloud(omni: Omni, sound: Path, report: Report) -> None:
    """A spoken question about an image, and a spoken answer."""
    question = utter(QUESTIONS[0]), omni.cfg.audio.sample_rate
    reply = omni.reply(image=SCENE, audio=question).finish()
    report(f"  a spoken question about {SCENE.name}  →  {reply.transcript or ''}")
    report(f"  answer  →  {reply.answer}")
    write_speech(omni, reply.answer, sound, report)


def write_speech(omni: Omni, text: str, sound: Path, report: Report) -> None:
    """Into a WAV file."""
    wav = omni.speak(text)
    rate = omni.cfg.audio.sample_rate
    soundfile.write(sound, wav.numpy(), rate)
    report(f"  “{text}”  →  {sound}, {len(wav) / rate:.1f} s to listen to")


MILESTONES = {
    "05": Milestone("your Thinker writes", write_text),
    "08": Milestone("your encoders see and hear", see_and_hear),
    "11": Milestone("your Talker speaks", say_sentence),
    "17": Milestone("your omni model answers a spoken question about an image", answer_aloud),
}


def milestone(
    number: str,
    folder: str | Path = ".",
    weights: str | Path | None = None,
    sound: str | Path = "milestone.wav",
    report: Report = print,
) -> None:
    """Show it, with the answers in the notebooks and `.py` files of a folder.

    Raises InputError for another number, or if no answer passes that the model can use.
    """
    if swapping.deferred:
        raise swapping.CellSkipped("not run while the notebook is graded")
    if (number := number.zfill(2)) not in MILESTONES:
        raise InputError(f"milestone must be one of {', '.join(MILESTONES)}, got {number!r}")
    if not Path(folder).is_dir():
        raise InputError(
            f"milestone {number}: there is no folder {folder}; name that of your exercises with --exercises"
        )
    if not lessons():
        raise InputError(NO_GRADERS)
    answers: dict[str, Any] = {}
    for lesson in lessons():
        if lesson.notebook[:2] <= number and any(each.replacements for each in lesson.exercises):
            mine, missing = answers_of(lesson, Path(folder), report)
            answers |= mine
            report(f"{lesson.notebook}: yours {', '.join(mine) or '–'}; the library's {', '.join(missing) or '–'}")
    if not answers:
        raise InputError(
            f"milestone {number}: no answer in {Path(folder).resolve()} passes that the model can use. "
            "Run it where your exercises are, or name their folder with --exercises."
        )
    omni = Omni.from_pretrained(weights)
    with swap(**answers):
        report(f"Milestone {number}: {MILESTONES[number].title}, with {len(answers)} parts of your own")
        MILESTONES[number].show(omni, Path(sound), report)


def answers_of(lesson: Lesson, folder: Path, report: Report) -> tuple[dict[str, Any], list[str]]:
    """The answers to a lesson that pass and can be swapped in, and the names of the others.

    Where there is a notebook and a Python file, an answer in either of them is enough.
    """
    usable = [each for each in lesson.exercises if each.replacements]
    mine: dict[str, Any] = {}
    for suffix in (".ipynb", ".py"):
        path = folder / f"{lesson.notebook}{suffix}"
        if path.is_file() and has_answers(path):
            names = names_of(path, report)
            mine |= {
                each.name: names[each.answer_name]
                for each in usable
                if each.answer_name in names and grade_answer(each, names[each.answer_name])
            }
    return mine, [each.name for each in usable if each.name not in mine]


def names_of(path: Path, report: Report) -> dict[str, Any]:
    """What the cells of a file define, those left out that check or swap."""
    names: dict[str, Any] = {"display": lambda *shown, **more: None}
    for kind, source in read_cells(path):
        if kind == "code" and not NO_ANSWER.search(source):
            try:
                exec(compile(source, str(path), "exec", dont_inherit=True), names)
            except Exception as error:  # whatever a learner's cell raises: the others may still be used
                report(f"  a cell of {path.name} raises {type(error).__name__}: {error}")
    return names
