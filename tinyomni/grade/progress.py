"""What is done: one small file on this machine, and nothing that is sent anywhere.

It lies in the folder TINYOMNI_HOME if that is set; else in `.home/` of the checkout; else, without a checkout, in the
user's folder for data.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

from tinyomni.grade.judge import EMPTY, PASSED, Verdict


def folder() -> Path:
    """Where the file lies."""
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
    """Exercise → "passed" or "failed". Raises ValueError if the file is damaged."""
    file = folder() / "progress.json"
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"progress: {file} is damaged ({error}). Move it away to begin anew.") from error
    if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
        raise ValueError(f"progress: {file} does not hold exercises and their states. Move it away to begin anew.")
    return found


def record(verdict: Verdict) -> Verdict:
    """Keep it: what has passed once stays passed. Where it cannot be kept, the verdict says so."""
    if verdict.status == EMPTY:
        return verdict
    try:
        states = load()
        state = PASSED if PASSED in (states.get(verdict.exercise), verdict.status) else verdict.status
        if states.get(verdict.exercise) != state:
            folder().mkdir(parents=True, exist_ok=True)
            draft = folder() / f"progress.{os.getpid()}"
            draft.write_text(json.dumps(states | {verdict.exercise: state}, indent=1) + "\n", encoding="utf-8")
            draft.replace(folder() / "progress.json")
    except (OSError, ValueError) as error:
        return dataclasses.replace(verdict, note=f"This was not kept: {error}")
    return verdict


def table() -> str:
    """Done of all, lesson by lesson, and the one thing to do next."""
    from tinyomni.grade.catalogue import lessons

    states = load()
    rows, ahead = [], []
    for lesson in lessons():
        done = [each for each in lesson.exercises if states.get(each.name) == PASSED]
        begun = sum(states.get(each.name) not in (None, PASSED) for each in lesson.exercises)
        bar = "".join("■" if each in done else "·" for each in lesson.exercises)
        more = f"  {begun} begun" if begun else ""
        rows.append(f"{lesson.book[:2]}  {lesson.title:24} {len(done):2} of {len(lesson.exercises):2}  {bar}{more}")
        ahead += [each for each in lesson.exercises if each not in done]
    if not ahead:
        return "\n".join([*rows, "All exercises are done."])
    one = ahead[0]
    return "\n".join([*rows, f"Next: {one.name} ({one.title}, {one.minutes} minutes) in exercises/{one.book}.ipynb"])
