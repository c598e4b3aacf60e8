"""`benchmarks/gpu.py`, without a GPU: every part in small sizes; what failed is tried again."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP / "benchmarks"))
import gpu  # noqa: E402

SCRIPT = TOP / "benchmarks" / "gpu.py"
ELSEWHERE = ("tests", "lessons", "step-base", "ddp")
"""Parts that start what CI runs anyway, or that are as another in small sizes; two processes are tested below."""


def test_every_part_runs_on_the_cpu_in_small_sizes(tmp_path: Path) -> None:
    stages = [f"train-{name}" for name in gpu.STAGES if name != "thinker"]  # the smoke runs of the test suite
    parts = [name for name in gpu.PARTS if name not in (*ELSEWHERE, *stages)]
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--small", "--folder", str(tmp_path), "--here", *parts]
    environment = os.environ | {"TINYOMNI_SHAPES": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = dict(zip(parts, map(json.loads, done.stdout.splitlines()), strict=True))
    assert all(found["decoding"][f"batch 2: {way}, same tokens"] == 1 for way in ("fixed memory", "compiled"))
    assert found["step-tiny"]["ours, times nanoGPT"] > 0 and found["fp16"]["skipped"] == 0
    trained = found["train-thinker"]
    assert trained["projected, seconds"] > 0 and 0 <= trained["waiting for data"] <= 1
    known = {(part, label) for part, entry in found.items() for label in entry}
    assert {goal for goal in gpu.GOALS if goal[0] in found and "graph" not in goal[1].lower()} <= known


def test_the_parts_for_pytest_name_files_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []

    def run(command: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, len(commands) > 2, "FAILED x\n== 3 passed ==", "")

    monkeypatch.setattr(subprocess, "run", run)
    setup = gpu.Setup("cpu", True, TOP)
    assert gpu.tests(setup) == gpu.lessons(setup) == {"pytest": "3 passed"}
    files = [word for command in commands for word in command if word.endswith((".py", ".ipynb"))]
    assert len(files) == 3 and all((TOP / name).is_file() for name in files)
    with pytest.raises(RuntimeError, match="FAILED x"):
        gpu.tests(setup)


def test_two_processes_must_agree_with_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The processes are played: test_distributed.py has real ones."""
    ranks = []

    class Process:
        returncode = 0

        def __init__(self, command: list[str], env: dict[str, str], **more: Any) -> None:
            ranks.append((env["RANK"], env["WORLD_SIZE"], command[command.index("--here") + 1]))

        def communicate(self) -> tuple[str, None]:
            return 'a line of torch\n{"losses": [2.0, 1.0]}\n', None

    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(gpu, "few_steps", lambda *arguments: (None, one))
    one = [2.0, 1.001]
    found = gpu.ddp(gpu.Setup("cpu", True, tmp_path))
    assert ranks == [("0", "2", "ddp-worker"), ("1", "2", "ddp-worker")] and "ddp-worker" in gpu.HIDDEN
    assert found["largest difference of a loss"] == pytest.approx(0.001, rel=0.01)
    one = [2.0, 1.5]
    with pytest.raises(RuntimeError, match="two processes"):
        gpu.ddp(gpu.Setup("cpu", True, tmp_path))


def test_a_second_run_does_what_the_first_did_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Processes in the place of parts: one fails, one hangs; the next run tries these two again."""
    scripts = {"machine": "print('{\"cores\": 2.0}')", "ddp": "raise SystemExit('no')", "fp16": "while True: pass"}
    monkeypatch.setattr(gpu, "PARTS", {name: (lambda setup: {}, 1 if name == "fp16" else 100) for name in scripts})
    begun: list[str] = []

    def popen(command: list[str], real: Any = subprocess.Popen, **more: Any) -> Any:
        begun.append(command[command.index("--here") + 1])
        return real([sys.executable, "-S", "-c", scripts[begun[-1]]], **more)

    monkeypatch.setattr(subprocess, "Popen", popen)
    arguments = ["gpu.py", "--device", "cpu", "--json", str(tmp_path / "x.json"), "--folder", str(tmp_path)]
    for expected in (["machine", "ddp", "fp16"], ["ddp", "fp16"]):
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as stop:
            gpu.main()
        assert stop.value.code == 1 and begun == expected
        begun.clear()
    printed = capsys.readouterr().out
    assert "| machine | cores | 2 | " in printed and "| ddp | **failed** no |" in printed
    assert "| fp16 | **not done in 1 s** " in printed
    monkeypatch.setattr(sys, "argv", [*arguments, "--small"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "other sizes" in capsys.readouterr().err


def test_goals_and_the_sum_of_all_stages() -> None:
    entry = {"status": "ok", "found": {"projected, seconds": 90.0, "waiting for data": 0.2}}
    done = {f"train-{stage}": entry for stage in gpu.STAGES}
    text = gpu.summary(done)
    assert "| all | train all, projected minutes | 10.5 | ≤ 10 **missed** |" in text
    assert "| train-omni | waiting for data | 0.2 | ≤ 0.05 **missed** |" in text
    assert gpu.totals(dict(list(done.items())[1:])) == {}
