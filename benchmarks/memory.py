"""The most memory that each command needs, in a process of its own.

    python benchmarks/memory.py                    all commands, on two threads; 10 to 20 minutes
    python benchmarks/memory.py --only ask speak   these, into the same file; the others keep what was measured

The result goes to benchmarks/memory.json; docs/reliability.md is made from it. Training is measured by every run: its
`result.json` has `peak_memory`.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[1]
ASSETS = TOP / "tinyomni" / "assets"
IMAGE, SPEECH = str(ASSETS / "scene.png"), str(ASSETS / "speech.wav")
SCRIPT = "from torch import nn, zeros\nnn.Sequential(nn.Linear(512, 512), nn.ReLU())(zeros(8, 512))\n"
COMMANDS: dict[str, list[str]] = {
    "dry-run": ["dry-run", "--json", "dry_run.json"],
    "trace": ["trace", "--html", "trace.html", "script.py"],
    "ask": ["ask", "What is it?", "--image", IMAGE, "--audio", SPEECH, "--speak", "answer.wav"],
    "caption": ["caption", IMAGE],
    "transcribe": ["transcribe", SPEECH],
    "speak": ["speak", "There is a red cube and a blue ball.", "-o", "speech.wav"],
    "report": ["report", "--weights", "--n", "20"],
    "export-onnx": ["export-onnx", "graphs"],
    "world": ["world"],
    "world --show": ["world", "--show"],
    "data inspect": ["data", "inspect", "rows.csv"],
    "progress": ["progress"],
    "doctor": ["doctor"],
    "train vision, smoke": ["train", "vision", "--preset", "smoke", "--set", "steps=3"],
    "train omni, laptop": ["train", "omni", "--preset", "laptop", "--set", "init_from=shipped", "--set", "steps=3"],
}
MEASURE = """
import json, resource, subprocess, sys
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
print(json.dumps([status.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, status.stderr[-600:]]))
"""


def measure(arguments: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run a command; its largest resident set in MB, with all its children, and its exit status."""
    command = [sys.executable, "-c", MEASURE, sys.executable, "-m", "tinyomni", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    status, most, told = json.loads(done.stdout)
    if status not in (0, 1):  # 1: a threshold is missed, which says nothing here
        raise RuntimeError(f"tinyomni {' '.join(arguments)}: exit status {status}\n{told}")
    return {"arguments": " ".join(Path(each).name if os.sep in each else each for each in arguments),
            "mb": round(most / (2**20 if sys.platform == "darwin" else 2**10))}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the commands."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS), metavar="COMMAND")
    parser.add_argument("--out", default=str(TOP / "benchmarks" / "memory.json"), metavar="FILE")
    args = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "2"
    out = Path(args.out)
    found = json.loads(out.read_text(encoding="utf-8"))["commands"] if out.is_file() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "script.py").write_text(SCRIPT)
        (folder / "a.wav").write_bytes(Path(SPEECH).read_bytes())
        (folder / "rows.csv").write_text("audio,text\n" + "a.wav,hello\n" * 100)
        for command in args.only:
            found[command] = measure(COMMANDS[command], folder)
            print(f"{command:22} {found[command]['mb']:6,} MB", flush=True)
            about = {"machine": f"{platform.system()} {platform.machine()}", "python": platform.python_version()}
            out.write_text(json.dumps({**about, "commands": found}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
