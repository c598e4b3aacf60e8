"""Which exercises have passed: one small file on this machine, and nothing that is sent anywhere.

It lies in the folder TINYOMNI_HOME if that is set; else in `.home/` of the checkout; else, without a checkout, in the
user's data folder.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from tinyomni.errors import InputError
from tinyomni.files import whole
from tinyomni.grade.grading import NOT_ATTEMPTED, PASSED, Verdict
from tinyomni.grade.registry import NO_GRADERS, lessons


def data_dir() -> Path:
    """The folder of the file."""
    if home := os.environ.get("TINYOMNI_HOME"):
        return Path(home)
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "course.py").is_file():
        return checkout / ".home" / "tinyomni"
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "tinyomni"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "tinyomni"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "tinyomni"


def load() -> dict[str, str]:
    """Exercise → "passed" or "failed". Raises InputError if the file is damaged."""
    path = data_dir() / "progress.json"
    if not path.exists():
        return {}
    try:
        states = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"progress: {path} is not valid JSON ({error}). Move it away to start over.") from error
    if not isinstance(states, dict) or not all(isinstance(state, str) for state in states.values()):
        raise InputError(
            f"progress: expected a JSON object of exercise names and states in {path}. Move it away to start over."
        )
    return states


def write_json(path: Path, value: Any) -> None:
    """Write a file of one's own data, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as out:
        out.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def record(verdict: Verdict) -> Verdict:
    """Save it: what has passed once stays passed. Where it cannot be saved, the verdict's note says so."""
    if verdict.status == NOT_ATTEMPTED or os.environ.get("NBGRADER_EXECUTION") == "autograde":  # somebody else's answer
        return verdict
    try:
        states = load()
        state = PASSED if PASSED in (states.get(verdict.exercise), verdict.status) else verdict.status
        if states.get(verdict.exercise) != state:
            write_json(data_dir() / "progress.json", states | {verdict.exercise: state})
    except (OSError, InputError) as error:
        return dataclasses.replace(verdict, note=f"Your progress was not saved: {error}")
    return verdict


def format_progress() -> str:
    """A line for each lesson, and the next exercise."""
    states = load()
    rows, open_exercises = [], []
    for lesson in lessons():
        passed = [each for each in lesson.exercises if states.get(each.name) == PASSED]
        failed = sum(states.get(each.name) not in (None, PASSED) for each in lesson.exercises)
        bar = "".join("■" if each in passed else "·" for each in lesson.exercises)
        counts = f"{len(passed):2} of {len(lesson.exercises):2}"
        started = f"  {failed} in progress" if failed else ""
        rows.append(f"{lesson.notebook[:2]}  {lesson.title:28} {counts}  {bar}{started}")
        open_exercises += [each for each in lesson.exercises if each not in passed]
    if not rows:
        return NO_GRADERS
    if not open_exercises:
        return "\n".join([*rows, "All exercises passed."])
    first = open_exercises[0]
    where = f"exercises/{first.notebook}.ipynb"
    return "\n".join([*rows, f"Next: {first.name} ({first.title}, {first.minutes} minutes) in {where}"])
