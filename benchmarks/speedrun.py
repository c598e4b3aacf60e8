"""Does a weights file keep the rules of the speedrun (benchmarks/speedrun.md), and which row does it get in its table?

    python3 course.py bench speedrun FILE.safetensors [--n 300] [--json FILE]

Size and format are checked, without running any code from the file; then what the file says of its training; then it
is measured as `tinyomni report --weights FILE --preset laptop` measures it.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyomni.errors import InputError
from tinyomni.evaluation.export import unpack
from tinyomni.evaluation.report import Report, report
from tinyomni.io import weights
from tinyomni.omni import Omni
from tinyomni.training.run import total_costs

MAX_BYTES = 20_000_000
COLUMNS = ("minutes", "date", "thresholds met", "MB", "commit", "hardware")


def broken_rules(size: int, made: Mapping[str, Any]) -> list[str]:
    """What keeps a file of this size, made like this, out of the table."""
    found = [f"expected at most {MAX_BYTES:,} bytes, got {size:,}"] * (size > MAX_BYTES)
    for name, result in made["stages"].items():
        if result["device"] != "cpu":
            found.append(f"{name}: expected training on the CPU, got {result['device']}")
        if result["processes"] > 2:
            found.append(f"{name}: expected at most 2 processes, got {result['processes']}")
        if (seed := result["settings"]["seed"]) != 0:
            found.append(f"{name}: expected seed 0, got {seed}")
    return found


def minutes(made: Mapping[str, Any]) -> float:
    """Of training, all stages and the runs that they started from."""
    return sum(total_costs(result)["seconds"] for result in made["stages"].values()) / 60


def row(path: Path, made: Mapping[str, Any], measured: Report) -> str:
    """The entry's line of the table."""
    passed = [each.passed for each in measured.results if each.passed is not None]
    cells = {
        "minutes": f"{minutes(made):.1f}",
        "date": made.get("date", ""),
        "thresholds met": f"{sum(passed)} of {len(passed)}",
        "MB": f"{path.stat().st_size / 1e6:.1f}",
        "commit": str(made.get("commit", ""))[:10],
        "hardware": made.get("hardware", ""),
    }
    return f"| {' | '.join(cells[column] for column in COLUMNS)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, measure, print the row; 1 where a rule is broken or a threshold missed."""
    parser = argparse.ArgumentParser(prog="course.py bench speedrun", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--n", type=int, default=300, help="samples for each metric (default 300, as the rules ask)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the metrics to this file")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        try:
            made = json.loads(weights.read(args.file)[1].get("made", "{}"))
            run_dir, model = unpack(args.file, Path(folder), "laptop"), Omni.from_pretrained(args.file)
        except InputError as error:
            print(f"{args.file}: {error}", file=sys.stderr)
            return 2
        broken = broken_rules(args.file.stat().st_size, made)
        measured = report(run_dir, args.n, model=model, notify=lambda text: print(text, file=sys.stderr))
    if args.json:
        measured.save(args.json)
    print(f"| {' | '.join(COLUMNS)} |\n{row(args.file, made, measured)}")
    missed = [f"{each.metric.label} is missed: {each}" for each in measured.results if each.passed is False]
    for problem in (*broken, *missed):
        print(f"✘ {problem}")
    return 1 if broken or missed else 0


if __name__ == "__main__":
    sys.exit(main())
