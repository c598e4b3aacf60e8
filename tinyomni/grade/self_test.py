"""Short questions over all lessons, asked again after days: `tinyomni quiz`, or `quiz("03")` in a notebook.

The questions are in assets/quiz.toml; when each is asked again is in a file on this machine, beside the progress.
"""

import datetime
import hashlib
import json
import random
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tinyomni.errors import InputError
from tinyomni.grade.progress import data_dir, write_json

QUESTIONS = Path(__file__).resolve().parents[1] / "assets" / "quiz.toml"
DAYS = (1, 3, 7, 21, 60)  # until the next time, after 0, 1, 2, … right answers in a row
LETTERS = "abcdef"

Schedule = dict[str, tuple[int, str]]  # question → right answers in a row, and the day from which it is asked again


@dataclass(frozen=True)
class Question:
    """One right answer, some wrong ones, and the reason."""

    lesson: str
    ask: str
    right: str
    wrong: tuple[str, ...]
    why: str

    @property
    def key(self) -> str:
        """Its name in the file: another wording is another question."""
        return hashlib.sha256(self.ask.encode()).hexdigest()[:12]


def questions() -> list[Question]:
    """All of them, lesson by lesson."""
    with QUESTIONS.open("rb") as file:
        return [Question(**each | {"wrong": tuple(each["wrong"])}) for each in tomllib.load(file)["questions"]]


def schedule_file() -> Path:
    """Beside the progress."""
    return data_dir() / "quiz.json"


def load_schedule() -> Schedule:
    """Raises InputError if the file is damaged."""
    if not schedule_file().exists():
        return {}
    try:
        stored = json.loads(schedule_file().read_text(encoding="utf-8"))
        return {str(key): (int(streak), str(datetime.date.fromisoformat(day))) for key, (streak, day) in stored.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"quiz: cannot read {schedule_file()} ({error}). Move it away to start over.") from error


def save_schedule(schedule: Schedule) -> None:
    """In one operation."""
    write_json(schedule_file(), schedule)


def choose_questions(schedule: Schedule, today: datetime.date, lesson: str = "", count: int = 10) -> list[Question]:
    """Those to be asked again, the longest overdue first, then new ones. Raises InputError for an unknown lesson."""
    if count < 1:
        raise InputError(f"expected at least 1 question, got {count}")
    known = [each for each in questions() if lesson in ("", each.lesson)]
    if not known:
        lessons = sorted({each.lesson for each in questions()})
        raise InputError(f"expected one of the lessons {', '.join(lessons)}, got {lesson!r}")
    again = [each for each in known if each.key in schedule and schedule[each.key][1] <= today.isoformat()]
    new = [each for each in known if each.key not in schedule]
    return (sorted(again, key=lambda each: schedule[each.key][1]) + new)[:count]


def quiz(
    lesson: str = "",
    count: int = 10,
    read: Callable[[str], str] = lambda prompt: input(prompt),
    report: Callable[[str], None] = print,
    today: datetime.date | None = None,
) -> None:
    """Ask, explain, and note when to ask again. An empty line leaves a question for later, `q` ends."""
    today, lesson = today or datetime.date.today(), lesson and lesson.zfill(2)
    schedule, right = load_schedule(), 0
    chosen = choose_questions(schedule, today, lesson, count)
    asked = 0
    for each in chosen:
        options = [each.right, *each.wrong]
        random.Random(f"{each.key} {today}").shuffle(options)
        report(f"\n{each.lesson} · {each.ask}")
        report("\n".join(f"  {letter}  {option}" for letter, option in zip(LETTERS, options, strict=False)))
        try:
            answer = read_letter(read, len(options))
        except EOFError:
            answer = "q"
        if answer == "q":
            break
        if not answer:
            continue
        asked += 1
        passed = options[LETTERS.index(answer)] == each.right
        streak = schedule.get(each.key, (0, ""))[0] + 1 if passed else 0
        days = DAYS[min(streak, len(DAYS) - 1)]
        schedule[each.key] = streak, (today + datetime.timedelta(days=days)).isoformat()
        save_schedule(schedule)
        right += passed
        report(f"{'✔' if passed else f'✘ {each.right}'}\n  {each.why}")
    report(f"\n{summary(schedule, today, lesson, right, asked)}")


def read_letter(read: Callable[[str], str], options: int) -> str:
    """The letter of an option, "q", or "" for later."""
    allowed = ("", "q", *LETTERS[:options])
    prompt = f"{', '.join(LETTERS[: options - 1])} or {LETTERS[options - 1]} (Enter: later, q: end) > "
    while (answer := read(prompt).strip().lower()) not in allowed:
        pass
    return answer


def summary(schedule: Schedule, today: datetime.date, lesson: str, right: int, asked: int) -> str:
    """The score, and when to come back."""
    known = [each for each in questions() if lesson in ("", each.lesson)]
    days = sorted(schedule[each.key][1] for each in known if each.key in schedule)
    score = f"{right} of {asked} right. " if asked else ""
    seen = f"{len(days)} of {len(known)} questions seen"
    return f"{score}{seen}{f'; the next one comes on {max(days[0], today.isoformat())}' if days else ''}."
