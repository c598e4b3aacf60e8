"""The benchmarks: both programs take turns, ratios are of least times; growth, claims; entries of the speedrun."""

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tinyomni.evaluation.report import Report, result
from tinyomni.metrics import accuracy

TOP = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TOP / "benchmarks"), str(TOP / "benchmarks" / "speed")]
import claims  # noqa: E402
import growth  # noqa: E402
import harness  # noqa: E402
import speedrun  # noqa: E402


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
    assert wrong.returncode == 2 and "expected questions of claims, decoding, encoders" in wrong.stderr


def test_a_case_with_another_unit_is_run_once_and_not_timed() -> None:
    row = harness.compare(harness.Case("x", lambda: 3, lambda: 2, "theory", 1.2, "slope"), seconds=60)
    assert row.ratio == 1.5 and row.rounds == 1 and row.cells()[1:3] == ["3.00 slope", "2.00 slope"]
    assert harness.from_json(harness.to_json([row])) == [row]


# ---- growth, claims -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sweep", growth.SWEEPS, ids=lambda sweep: f"{sweep.kind} {sweep.label}")
def test_every_sweep_runs_and_memory_grows_as_expected(sweep: growth.Sweep) -> None:
    if sweep.kind == growth.MEMORY:
        assert sweep.measure("cpu") == pytest.approx(sweep.expected, abs=0.2)
    sweep.prepare(sweep.sizes[0], "cpu")()


def test_a_slope_is_that_of_the_largest_sizes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A program that takes 7 + size² of a clock of its own."""
    clock = [0.0]
    monkeypatch.setattr(growth, "timer", lambda device: lambda: clock[0])

    def prepare(size: int, device: str) -> Callable[[], None]:
        return lambda: clock.__setitem__(0, clock[0] + 7 + size**2)

    sweep = growth.Sweep("x", growth.TIME, "tokens", (1, 10, 100, 1000, 10_000), 2, prepare)
    assert sweep.measure("cpu") == pytest.approx(2, abs=0.01)
    assert sweep.costs == [7 + size**2 for size in sweep.sizes] and growth.slope((1, 2, 4), [3, 6, 12]) == 1
    monkeypatch.setattr(growth, "SWEEPS", (sweep, dataclasses.replace(sweep, kind=growth.MEMORY)))
    growth.draw(tmp_path / "growth.svg")
    assert (tmp_path / "growth.svg").read_text(encoding="utf-8").count("x: 2.00 (2)") == 2


def test_bf16_saves_no_memory_of_weights_nor_of_a_small_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "SIZES", ((2, 16),))
    cases = {case.label: case for case in claims.cases("cpu") if case.unit == "MB"}
    ratios = {label: case.ours() / case.reference() for label, case in cases.items()}
    # of a small batch, the 16-bit copies of the weights are larger than what it saves
    assert 1 < ratios["activations 2×16"] < 3 and ratios["weights, gradients, AdamW's moments"] == 1


# ---- speedrun -------------------------------------------------------------------------------------------------------


def made(**changes: object) -> dict[str, object]:
    """What a weights file says of a training of 90 minutes."""
    stage = {"device": "cpu", "processes": 1, "settings": {"seed": 0}, "seconds": 1800.0, "initialized_from": None,
             "steps": 1, "samples": 1, "tokens": 1, "skipped": 0}  # fmt: skip
    before = {"run": "runs/before", "seconds": 1800.0, "steps": 1, "samples": 1, "tokens": 1, "skipped": 0}
    return {"date": "2026-01-01", "commit": "0123456789ab", "hardware": "two cores",
            "stages": {"audio": stage, "omni": {**stage, "initialized_from": before, **changes}}}  # fmt: skip


@pytest.mark.parametrize(("size", "changes", "broken"), [
    (20_000_000, {}, None), (20_000_001, {}, "expected at most 20,000,000 bytes, got 20,000,001"),
    (1, {"device": "cuda:0"}, "omni: expected training on the CPU, got cuda:0"),
    (1, {"processes": 4}, "omni: expected at most 2 processes, got 4"),
    (1, {"settings": {"seed": 3}}, "omni: expected seed 0, got 3"),
])  # fmt: skip
def test_an_entry_keeps_the_rules(size: int, changes: dict[str, object], broken: str | None) -> None:
    assert speedrun.broken_rules(size, made(**changes)) == [broken] * (broken is not None)


def test_an_entry_is_measured_and_gets_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "entry.safetensors"
    file.write_bytes(b"\x80\x04 pickled")
    assert speedrun.main([str(file)]) == 2 and "entry.safetensors" in capsys.readouterr().err
    good, bad = (result("questions.typed", accuracy([each] * 4), 4, "laptop") for each in (1, 0))
    for metrics, status in (((good,), 0), ((good, bad), 1)):
        monkeypatch.setattr(speedrun.weights, "read", lambda path: ({}, {"made": json.dumps(made())}))
        monkeypatch.setattr(speedrun, "unpack", lambda path, folder, preset: (folder, preset))
        monkeypatch.setattr(speedrun.Omni, "from_pretrained", lambda path: None)
        found = Report("laptop", metrics, {}, ())
        monkeypatch.setattr(speedrun, "report", lambda run_dir, n, model, notify, found=found: found)
        assert speedrun.main([str(file)]) == status
    printed = capsys.readouterr().out
    assert "| 90.0 | 2026-01-01 | 1 of 1 | 0.0 | 0123456789 | two cores |" in printed
    assert "1 of 2" in printed and printed.count("✘ typed questions: accuracy is missed") == 1
