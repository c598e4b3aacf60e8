"""`tinyomni grade`, `tinyomni progress` and `tinyomni doctor`."""

import argparse
import json
import math
import signal
import sys
from pathlib import Path

from tinyomni.cli.console import say


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the three commands to the parser."""
    grade = commands.add_parser("grade", help="grade an exercise notebook; a copy of it is run, with limits")
    grade.add_argument("notebook", metavar="NOTEBOOK", help="such as exercises/03_attention.ipynb")
    grade.add_argument("--json", metavar="FILE", help="also write the verdicts to this file")
    grade.add_argument(
        "--timeout", type=float, default=30.0, metavar="S", help="seconds for each cell and each exercise (default 30)"
    )
    grade.add_argument("--total-timeout", type=float, default=600.0, metavar="S", help="for all of it (default 600)")
    grade.add_argument("--memory", type=int, default=3000, metavar="MB", help="memory of its processes (default 3000)")
    grade.set_defaults(run=run_grade)

    progress = commands.add_parser("progress", help="which exercises are done, and which one is next")
    progress.set_defaults(run=run_progress)

    doctor = commands.add_parser("doctor", help="check the installation, and say how to repair it")
    doctor.set_defaults(run=run_doctor)


def run_grade(args: argparse.Namespace) -> int:
    """Grade a learner's notebook; 1 unless every exercise passed."""
    from tinyomni.errors import InputError
    from tinyomni.grade.isolation import Limits
    from tinyomni.grade.notebook import format_grades, grade_notebook

    for name in ("timeout", "total_timeout", "memory"):
        if not 0 < getattr(args, name) < math.inf:
            flag = name.replace("_", "-")
            raise InputError(f"--{flag} must be positive and finite, got {getattr(args, name):g}")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that it cleans up
    limits = Limits(args.timeout, args.total_timeout, args.memory)
    result = grade_notebook(Path(args.notebook), limits)
    say(format_grades(result))
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0 if result["passed"] == result["of"] else 1


def run_progress(args: argparse.Namespace) -> int:
    """Print what is done, and the one thing to do next."""
    from tinyomni.grade.progress import format_progress

    say(format_progress())
    return 0


def run_doctor(args: argparse.Namespace) -> int:
    """Print what is installed, what is wrong, and how to repair it; 1 if anything is wrong."""
    from tinyomni.cli import doctor

    return doctor.main(say)
