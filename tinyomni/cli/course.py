"""`tinyomni grade`, `progress`, `milestone`, `quiz` and `doctor`."""

import argparse
import json
import math
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyomni.cli.console import say

if TYPE_CHECKING:
    from tinyomni.grade.isolation import Limits


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands to the parser."""
    grade = commands.add_parser("grade", help="grade exercises: one notebook or .py file, or a folder of submissions")
    grade.add_argument("path", metavar="PATH", help="such as exercises/03_attention.ipynb, or a folder of submissions")
    for kind, what in (
        ("csv", "the scores as a table"),
        ("json", "the verdicts"),
        ("html", "a page with scores and common mistakes, and in feedback/ beside it a page for each student"),
    ):
        grade.add_argument(
            f"--{kind}",
            nargs="?",
            const="",
            metavar="FILE",
            help=f"also write {what}; by default to scores.{kind} in --out",
        )
    grade.add_argument("--out", metavar="DIR", help="where results are kept (default: PATH-graded, for a folder)")
    grade.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="submissions at a time")
    grade.add_argument(
        "--timeout", type=float, default=30.0, metavar="S", help="processor time for a cell or an exercise (default 30)"
    )
    grade.add_argument("--total-timeout", type=float, default=600.0, metavar="S", help="for all of it (default 600)")
    grade.add_argument("--memory", type=int, default=3000, metavar="MB", help="memory of its processes (default 3000)")
    grade.set_defaults(run=run_grade)

    progress = commands.add_parser("progress", help="which exercises are done, and which one is next")
    progress.add_argument(
        "--watch", metavar="FILE", help="check this notebook or .py file whenever it is saved, with hints that unfold"
    )
    progress.set_defaults(run=run_progress)

    milestone = commands.add_parser("milestone", help="your own parts in the trained model: read, see and hear it")
    milestone.add_argument("number", metavar="LESSON", help="05, 08, 11 or 17")
    milestone.add_argument("--exercises", default="exercises", metavar="DIR", help="default exercises")
    milestone.add_argument("--weights", metavar="FILE", help="weights other than the shipped ones")
    milestone.add_argument("-o", "--out", default="milestone.wav", metavar="FILE", help="default milestone.wav")
    milestone.set_defaults(run=run_milestone)

    quiz = commands.add_parser("quiz", help="short questions over all lessons, asked again after days")
    quiz.add_argument("lesson", nargs="?", default="", metavar="LESSON", help="01 to 23 (default: all)")
    quiz.add_argument("-n", "--count", type=int, default=10, metavar="N", help="questions (default 10)")
    quiz.set_defaults(run=run_quiz)

    doctor = commands.add_parser("doctor", help="check the installation, and say how to repair it")
    doctor.set_defaults(run=run_doctor)


def run_grade(args: argparse.Namespace) -> int:
    """Grade a file, 1 unless every exercise passed; or a folder of them, 0 if all could be graded."""
    from tinyomni.errors import InputError
    from tinyomni.grade import isolation

    for name in ("timeout", "total_timeout", "memory", "jobs"):
        if not 0 < getattr(args, name) < math.inf:
            flag = name.replace("_", "-")
            raise InputError(f"--{flag} must be positive and finite, got {getattr(args, name):g}")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that it cleans up
    limits = isolation.Limits(args.timeout, args.total_timeout, args.memory)
    path = Path(args.path)
    if isolation.FORKS:
        isolation.warm_up()  # it imports while this process does
    return grade_submissions(path, limits, args) if path.is_dir() else grade_one(path, limits, args)


def grade_one(path: Path, limits: "Limits", args: argparse.Namespace) -> int:
    """One file."""
    from tinyomni.grade.notebook import format_grades, grade_notebook

    result = grade_notebook(path, limits)
    say(format_grades(result))
    named = {"student": path.stem, "file": path.name} | result
    write_tables([named], Path(args.out or "."), args, result)
    return 0 if result["passed"] == result["of"] else 1


def grade_submissions(folder: Path, limits: "Limits", args: argparse.Namespace) -> int:
    """A folder."""
    from tinyomni.grade.classroom import format_scores, grade_folder, left_out

    out = Path(args.out or f"{folder.resolve()}-graded")
    results = grade_folder(folder, out, limits, args.jobs, say)
    say("\n" + format_scores(results))
    if others := left_out(folder):
        say(f"Not graded, neither notebooks nor Python files with a check: {', '.join(others)}")
    write_tables(results, out, args, results)
    return 0 if all(one["lesson"] for one in results) else 1


def write_tables(results: list[dict[str, Any]], out: Path, args: argparse.Namespace, verdicts: Any) -> None:
    """The files that were asked for."""
    from tinyomni.grade.classroom import to_csv, write_pages

    def target(kind: str) -> Path | None:
        name = getattr(args, kind)
        return None if name is None else Path(name) if name else out / f"scores.{kind}"

    out.mkdir(parents=True, exist_ok=True)
    if path := target("json"):
        path.write_text(json.dumps(verdicts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if path := target("csv"):
        path.write_text(to_csv(results), encoding="utf-8")
    if path := target("html"):
        write_pages(results, path)
    written = [str(path) for path in map(target, ("csv", "json", "html")) if path]
    if written:
        say(f"Written: {', '.join(written)}")


def run_progress(args: argparse.Namespace) -> int:
    """Print what is done, and the one thing to do next; or keep watching a file."""
    if args.watch:
        from tinyomni.grade import isolation

        if isolation.FORKS:
            isolation.warm_up()
        from tinyomni.grade.watching import watch

        watch(Path(args.watch), say)
    from tinyomni.grade.progress import format_progress

    say(format_progress())
    return 0


def run_milestone(args: argparse.Namespace) -> int:
    """Swap the learner's parts in, and show what the model does with them."""
    from tinyomni.grade.milestones import milestone

    milestone(args.number, args.exercises, args.weights, args.out, say)
    return 0


def run_quiz(args: argparse.Namespace) -> int:
    """Ask in the terminal."""
    from tinyomni.grade.self_test import quiz

    quiz(args.lesson, args.count, report=say)
    return 0


def run_doctor(args: argparse.Namespace) -> int:
    """Print what is installed, what is wrong, and how to repair it; 1 if anything is wrong."""
    from tinyomni.cli import doctor

    return doctor.main(say)
