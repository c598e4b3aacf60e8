"""Kill `tinyomni train` at random moments, stage after stage, and see that nothing is lost.

    python benchmarks/kills.py --kills 9 --minutes 60            9 kills in each stage, of the smoke preset, or as many
                                                                 as fit into the time: each stage has a seventh of it
    python benchmarks/kills.py --kills 3 --stages vision         a quick one

Each stage first runs once in peace. Then it is started again and again, and ended by SIGKILL (three of five times),
SIGTERM or SIGINT at a random moment, until it was ended often enough; the next start always resumes. In the end its
weights and its log must be those of the quiet run, bit for bit. The result goes to benchmarks/kills.json;
docs/reliability.md is made from it. Every run is a fork of a process that has loaded all libraries.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOP))
STAGES = ("tokenizer", "thinker", "vision", "audio", "codec", "talker", "omni")
SIGNALS = (signal.SIGKILL,) * 3 + (signal.SIGTERM, signal.SIGINT)
SECONDS = 600  # for one run


def start(stage: str, out: Path) -> int:
    """Train a stage in a fork; its process id."""
    child = os.fork()
    if child == 0:
        os.setsid()
        log = os.open(out.parent / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        from tinyomni import cli

        changes = [] if stage == "tokenizer" else ["--set", "checkpoint_freq=1"]
        status = cli.main(["train", stage, "--preset", "smoke", "--out", str(out), *changes])
        sys.stdout.flush()
        os._exit(status)
    return child


def wait(child: int, seconds: float) -> int | None:
    """Its exit status, or None if it is still running after that time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def result_of(folder: Path) -> list[Any]:
    """What has to be the same: the checksum of the last weights, and every loss and validation."""
    from tinyomni.training import checkpoint
    from tinyomni.training.log import read_log

    if (folder / "tokenizer.model").is_file():
        return [(folder / "tokenizer.model").read_bytes().hex()]
    path = checkpoint.read_pointer(folder, "last")
    assert path is not None
    keys = ("step", "loss", "grad_norm", "lr", "validation")
    log = [[entry.get(key) for key in keys] for entry in read_log(folder / "log.jsonl")]
    best = checkpoint.read_pointer(folder, "best")
    return [checkpoint.load(path)[1]["sha256"], best and best.name, log]


def check(status: int | None, out: Path) -> None:
    """Raises RuntimeError with the output of a run that did not end well."""
    if status != 0:
        raise RuntimeError(f"exit status {status}: {(out.parent / 'output.txt').read_text(errors='replace')[-2000:]}")


def torture(stage: str, quiet: Path, killed: Path, kills: int, minutes: float, chance: random.Random) -> dict[str, Any]:
    """Run a stage in peace, then with kills; how often each signal ended it, and whether anything differs."""
    began = time.monotonic()
    deadline = began + 60 * minutes
    check(wait(start(stage, quiet), SECONDS), quiet)
    seconds = time.monotonic() - began
    expected, ended, different, finished = result_of(quiet / stage), Counter[str](), 0, 0
    while True:
        child = start(stage, killed)
        enough = sum(ended.values()) >= kills or time.monotonic() > deadline
        status = wait(child, SECONDS if enough else chance.uniform(0, 1.1 * seconds))
        if status is None:
            number = chance.choice(SIGNALS)
            os.kill(child, number)
            status = wait(child, SECONDS)
            if status in (-number, 128 + number):
                ended[signal.Signals(number).name] += 1
                continue
        check(status, killed)
        finished += 1
        different += result_of(killed / stage) != expected
        if sum(ended.values()) >= kills or time.monotonic() > deadline:
            return {"stage": stage, "seconds": round(seconds, 1), "ended by": ended, "finished": finished,
                    "different": different}  # fmt: skip
        shutil.rmtree(killed / stage)  # it reached its end before it was ended often enough: once more


def main(arguments: Sequence[str] | None = None) -> int:
    """All stages; 1 if a single number differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=9, help="for each stage (default 9)")
    parser.add_argument("--minutes", type=float, default=90, help="for all stages; no kill comes later (default 90)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=str(TOP / "benchmarks" / "kills.json"), metavar="FILE")
    args = parser.parse_args(arguments)
    os.environ["TINYOMNI_SHAPES"] = "0"
    import torch

    from tinyomni.training import stages

    torch.set_num_threads(1)
    assert set(STAGES) == set(stages.names())
    chance, found = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as folder:
        quiet, killed = Path(folder) / "quiet" / "runs", Path(folder) / "killed" / "runs"
        for stage in args.stages:
            for runs in (quiet, killed):
                runs.mkdir(parents=True, exist_ok=True)
            found.append(torture(stage, quiet, killed, args.kills, args.minutes / len(args.stages), chance))
            print(json.dumps(found[-1]), flush=True)
            # after each stage: a run that is stopped has what it measured
            Path(args.out).write_text(
                json.dumps({"seed": args.seed, "stages": found}, indent=1) + "\n", encoding="utf-8"
            )
    return int(any(each["different"] for each in found))


if __name__ == "__main__":
    sys.exit(main())
