"""docs/reliability.md, made from what the measuring scripts stored: no figure in it is typed by hand.

python benchmarks/reliability.py          write it
python benchmarks/reliability.py --check  1 if it is not what the stored results give
"""

import json
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

from mutants import reason_of

TOP = Path(__file__).resolve().parents[1]
PAGE = TOP / "docs" / "reliability.md"
PROMISES = TOP / "benchmarks" / "promises.toml"


def stored(name: str) -> Any:
    """What a script measured, or None."""
    path = TOP / "benchmarks" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def kills() -> list[str]:
    """Of benchmarks/kills.py: a row for each stage."""
    found = stored("kills")
    if found is None:
        return ["Not measured yet."]
    rows = [
        "| stage | SIGKILL | SIGTERM | SIGINT | runs that reached their end | of them different |",
        "|---|--|--|--|--|--|",
    ]
    for each in found["stages"]:
        counts = [str(each["ended by"].get(name, 0)) for name in ("SIGKILL", "SIGTERM", "SIGINT")]
        rows.append(f"| {each['stage']} | {' | '.join(counts)} | {each['finished']} | {each['different']} |")
    total = sum(sum(each["ended by"].values()) for each in found["stages"])
    return [f"{total} runs of `tinyomni train` were ended (seed {found['seed']}).", "", *rows]


def mutants() -> list[str]:
    """Of benchmarks/mutants.py: a row for each module, and the survivors."""
    found = stored("mutants")
    if found is None:
        return ["Not measured yet."]
    outcomes: dict[str, Counter[str]] = {}
    for each in found["results"]:
        outcomes.setdefault(each["module"], Counter())[each["outcome"]] += 1
    rows = ["| module | run | of | killed | by the time limit | survived |", "|---|--|--|--|--|--|"]
    for module, counts in outcomes.items():
        cells = [counts.total(), found["of"][module], counts["killed"], counts["timeout"], counts["survived"]]
        rows.append(f"| {module} | {' | '.join(map(str, cells))} |")
    survivors = [each for each in found["results"] if each["outcome"] == "survived"]
    killed = 1 - len(survivors) / len(found["results"])
    at_first = sum(each["first"] != "survived" for each in found["results"]) / len(found["results"])
    run, every = len(found["results"]), sum(found["of"].values())
    sample = f"{'All' if run == every else f'A sample of {run:,} of'} {every:,} mutants (seed {found['seed']})"
    why = "Survivors, with the reason why no test has to notice them:"
    told = f"{sample}: {at_first:.0%} were killed at first, {killed:.0%} once survivors had got tests."
    lines = [told, "", *rows, "", why, ""]
    for each in survivors:
        why = reason_of(each) or "no reason yet: a test is missing"
        lines.append(f"- {each['module']}, `{each['code']}`: `{each['before']}` → `{each['after']}`. {why}")
    return lines


def fuzzing() -> list[str]:
    """Of benchmarks/fuzz.py: a row for each target, and every case that failed."""
    found = stored("fuzz")
    if found is None:
        return ["Not measured yet."]
    rows = ["| target | cases | read | refused | failed |", "|---|--|--|--|--|"]
    for target, each in found["targets"].items():
        counts = [each["cases"], each["read"], each["refused"], len(each["failed"])]
        rows.append(f"| {target} | {' | '.join(f'{count:,}' for count in counts)} |")
    failed = [f"- {target} {line}" for target, each in found["targets"].items() for line in each["failed"]]
    total = sum(each["cases"] for each in found["targets"].values())
    return [f"{total:,} cases (seed {found['seed']}).", "", *rows, *([""] * bool(failed)), *failed]


def memory() -> list[str]:
    """Of benchmarks/memory.py: a row for each command."""
    found = stored("memory")
    if found is None:
        return ["Not measured yet."]
    rows = ["| command | peak MB |", "|---|--:|"]
    rows += [f"| `tinyomni {each['arguments']}` | {each['mb']:,} |" for each in found["commands"].values()]
    return [f"{found['machine']}, Python {found['python']}, on the CPU.", "", *rows]


def promises() -> list[tuple[str, list[str]]]:
    """What is promised, and the tests that would fail if it did not hold, as `file::test`."""
    entries = tomllib.loads(PROMISES.read_text(encoding="utf-8"))["promise"]
    return [(each["text"], each["tests"]) for each in entries]


def promise_table() -> list[str]:
    """A row for each promise."""
    rows = ["| promise | tests |", "|---|---|"]
    return rows + [f"| {text} | {', '.join(f'`{test}`' for test in tests)} |" for text, tests in promises()]


def by_hand() -> list[str]:
    """A row for each thing that was tried by hand."""
    entries = tomllib.loads((TOP / "benchmarks" / "by_hand.toml").read_text(encoding="utf-8"))["check"]
    rows = ["| tried | day | found |", "|---|---|---|"]
    return rows + [f"| {each['what']} | {each['day']} | {each['found']} |" for each in entries]


def page() -> str:
    """The whole page."""
    parts = {
        "What each promise is tested by": (
            "From `benchmarks/promises.toml`. `tests/test_reliability.py` checks that each of these tests exists.",
            promise_table(),
        ),
        "Fuzzing": (
            "`python benchmarks/fuzz.py` sends mutated files and made-up values into every fuzz target. A case fails "
            "where anything but our own error is raised, where the process dies, or needs more than 4 GB or 20 s "
            "of processor time. Damaged weights and checkpoints also fail where they are read.",
            fuzzing(),
        ),
        "Kills": (
            "`python benchmarks/kills.py` starts stages of the smoke preset again and again and ends them at random "
            "moments. A run that reaches its end must have the weights and the log of a run in peace, bit for bit.",
            kills(),
        ),
        "Mutants": (
            "`python benchmarks/mutants.py` makes one change at a time to the models' code, and runs the tests "
            "about it.",
            mutants(),
        ),
        "Memory": (
            "`python benchmarks/memory.py` runs each command in a process of its own and takes its largest resident "
            "set, with that of its children.",
            memory(),
        ),
        "Tried by hand": ("From `benchmarks/by_hand.toml`. No script repeats it.", by_hand()),
    }
    made = "Made by `python benchmarks/reliability.py`; a script measured every figure but those of the last part."
    lines = ["# Reliability", "", made]
    for title, (text, found) in parts.items():
        lines += ["", f"## {title}", "", text, "", *found]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the page, or compare it."""
    if "--check" in sys.argv[1:]:
        return int(PAGE.read_text(encoding="utf-8") != page())
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
