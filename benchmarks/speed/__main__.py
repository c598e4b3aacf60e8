"""How fast is it? One file of this folder per question, each beside a reference, as ratios.

    python3 course.py bench [QUESTION …] [--device cuda] [--threads 1 2] [--seconds 5] [--json FILE] [--write]

Every question runs in a process of its own, with the checks of shapes and of finite numbers off.
`--write` draws the figures of questions that have one and, where all are asked, puts the tables into
benchmarks/RESULTS.md. Only ratios are promises: times are those of one machine.
"""

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from harness import Row, compare, from_json, table, to_json

HERE = Path(__file__).parent
RESULTS = HERE.parent / "RESULTS.md"
QUESTIONS = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in ("__main__", "harness", "references"))


def measure(question: str, device: str, threads: int, seconds: float, figure: bool = False) -> list[Row]:
    """All cases of one question, in this process; then its figure."""
    import torch

    from tinyomni import finite_checks

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    module = importlib.import_module(question)
    with finite_checks(False):
        rows = [compare(case, seconds, device) for case in module.cases(device)]
    if figure and hasattr(module, "draw"):
        module.draw(RESULTS.parent / f"{question}.svg")
    return rows


def in_own_process(question: str, args: argparse.Namespace, threads: int) -> list[Row]:
    """The same in a process of its own, so that none warms up, or fills the memory of, another."""
    command = [sys.executable, str(HERE), question, "--device", args.device, "--seconds", str(args.seconds)]
    command += ["--write"] * args.write
    environment = os.environ | {"TINYOMNI_SHAPES": "0", "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [*command, "--threads", str(threads), "--here"], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{question} failed:\n{done.stderr[-3000:]}")
    return from_json(done.stdout.splitlines()[-1])


def question_of(name: str) -> str:
    """The first line of the file's docstring."""
    return (HERE / f"{name}.py").read_text(encoding="utf-8").split('"""')[1].splitlines()[0]


def limits_of(name: str) -> str:
    """What limits it: the paragraph of the file's docstring that says so, or nothing."""
    paragraphs = (HERE / f"{name}.py").read_text(encoding="utf-8").split('"""')[1].split("\n\n")
    return "".join(f"\n{each.strip()}\n" for each in paragraphs if each.startswith("Limits"))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="course.py bench", description=__doc__.splitlines()[0])
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=f"of {', '.join(QUESTIONS)} (default: all)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--seconds", type=float, default=5.0, help="for each case (default 5)")
    parser.add_argument("--json", metavar="FILE", help="also write what was measured to this file")
    parser.add_argument(
        "--write", action="store_true", help=f"write figures, and of all questions benchmarks/{RESULTS.name}"
    )
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := set(args.questions) - set(QUESTIONS):
        parser.error(f"expected questions of {', '.join(QUESTIONS)}, got {', '.join(sorted(unknown))}")
    if args.here:
        print(to_json(measure(args.questions[0], args.device, args.threads[0], args.seconds, args.write)))
        return
    about = (
        f"{datetime.now(UTC).date()}; {args.device}; Python {platform.python_version()}, torch {version('torch')}, "
        f"transformers {version('transformers')}, {platform.machine()}, {os.cpu_count()} cores"
    )
    text, found = f"# Speed, beside others\n\n{about}. Made by `python3 course.py bench --write`.\n", {}
    for name in args.questions or QUESTIONS:
        for threads in args.threads:
            rows = in_own_process(name, args, threads)
            found[f"{name}, {threads} threads"] = [asdict(row) | {"ratio": row.ratio} for row in rows]
            head = f"{threads} thread{'s' * (threads > 1)}; the least of all rounds (median)."
            part = f"\n## {question_of(name)}\n\n{head}\n\n{table(rows)}\n"
            print(part, flush=True)
            text += part
        text += limits_of(name)
    if args.json:
        Path(args.json).write_text(json.dumps({"about": about, "rows": found}, indent=1), encoding="utf-8")
    if args.write and not args.questions:
        RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
