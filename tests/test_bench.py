"""The harness of the benchmarks: both programs take turns, ratios are of least times; a question as users ask it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP / "benchmarks" / "speed"))
import harness  # noqa: E402


def test_both_take_turns_and_the_ratio_is_that_of_the_least_times(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls, costs = (
        [0.0],
        [],
        {"a": iter([9.0, 5.0, 3.0, 4.0, 6.0, 8.0]), "b": iter([9.0, 1.0, 2.0, 1.5, 1.0, 3.0])},
    )

    def run(name: str) -> None:
        calls.append(name)
        clock[0] += next(costs[name])

    monkeypatch.setattr(harness, "timer", lambda device: lambda: clock[0])
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    row = harness.compare(harness.Case("x", lambda: run("a"), lambda: run("b"), "b", 2.0), seconds=0)
    assert "".join(calls) == "ab" + "abbaabbaab"[:10]
    assert row.ours == (3.0, 5.0) and row.reference == (1.0, 1.5) and row.rounds == 5 and row.ratio == 3.0
    assert "≤ 2.00 **missed**" in harness.table([row]) and harness.from_json(harness.to_json([row])) == [row]


def test_a_question_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, str(TOP / "benchmarks" / "speed"), "rvq", "--seconds", "0"]
    done = subprocess.run([*command, "--json", str(tmp_path / "x.json")], capture_output=True, text=True, check=True)
    rows = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["rows"]["rvq, 1 threads"]
    assert len(rows) == 3 and all(0 < row["ratio"] < 1000 and row["rounds"] >= 5 for row in rows)
    assert done.stdout.count("| encode (") == 3
    wrong = subprocess.run([*command[:2], "rvs"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and "expected questions of decoding, encoders" in wrong.stderr
