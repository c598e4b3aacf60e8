"""One command for the whole course. Needs only Python 3.11 to 3.13; everything else it installs into .venv, here.

    python3 course.py dry-run     run the six pipelines and check every shape
    python3 course.py lab         open the lessons in JupyterLab; with notebooks/06_seeing.ipynb behind it, that one
    python3 course.py test        everything that CI runs (installs the linters and what tests compare with, too)

    python3 course.py COMMAND …   any command of tinyomni, with its options:
        ask caption transcribe speak chat demo      talk to the model
        progress grade milestone quiz               exercises
        world data train curves report              train and measure a model of your own
        export export-onnx                          its weights as one file; as graphs for other runtimes
        trace doctor                                look at shapes; look at the installation

    python3 course.py notebooks   run all lessons again and store their outputs
    python3 course.py exercises   make exercises/ from solutions/; with --as-py, as Python files for an editor; with
                                  --nbgrader DIR or --otter DIR, for one of these graders; with --release or --exam
                                  FILE.zip, what students get
    python3 course.py bench       how fast it is, beside others; bench thinker, --device cuda, --json FILE and so on;
                                  bench speedrun FILE.safetensors: an entry of benchmarks/speedrun.md
    python3 course.py site        lessons, documents, traces and the live page as a static site in site/build/site;
                                  the live page needs Node 20 or newer, and npm once

--cpu, as the first word or behind the command, asks for the CPU build of torch: a smaller download for a machine
without a GPU. The .venv then keeps to that build; delete it to change your mind.
"""

from __future__ import annotations  # so that an older Python gets as far as the message that it is too old

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
VENV = HERE / ".venv"
HOME = HERE / ".home"  # settings and caches of Jupyter, matplotlib and others: nothing goes into the user's home
STAMP = VENV / "course-stamp"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
OLDEST, NEWEST = (3, 11), (3, 13)
PASSED_ON = (
    "dry-run", "ask", "caption", "transcribe", "speak", "chat", "demo", "progress", "grade", "milestone", "quiz",
    "world", "data", "train", "curves", "report", "export", "export-onnx", "trace", "doctor",
)  # fmt: skip
"""The commands of tinyomni."""
EXTRAS = {
    "test": ["judge", "test"],
    "demo": ["demo"],
    "report": ["judge"],
    "export": ["judge"],
    "export-onnx": ["onnx"],
    "site": ["onnx"],
    "bench": ["test"],
}
"""What a command needs beyond what every learner gets, as extras of pyproject.toml."""


def say(text: str) -> None:
    """Print at once, also on a console that lacks some letters."""
    encoding = sys.stdout.encoding or "ascii"
    print(text.encode(encoding, errors="replace").decode(encoding), flush=True)


def environment() -> dict[str, str]:
    """The environment in which everything runs: this checkout's venv, UTF-8, and no file outside the checkout."""
    foreign = ("PYTHONHOME", "PYTHONPATH", "CONDA_PREFIX")
    env = {name: value for name, value in os.environ.items() if name not in foreign}
    env["VIRTUAL_ENV"] = str(VENV)
    env["PATH"] = str(BIN) + os.pathsep + env.get("PATH", "")
    env["PYTHONUTF8"] = "1"
    folders = {
        "JUPYTER_CONFIG_DIR": "jupyter", "JUPYTER_DATA_DIR": "jupyter-data", "JUPYTER_RUNTIME_DIR": "jupyter-run",
        "JUPYTERLAB_SETTINGS_DIR": "lab-settings", "JUPYTERLAB_WORKSPACES_DIR": "lab-work", "IPYTHONDIR": "ipython",
        "MPLCONFIGDIR": "matplotlib", "NUMBA_CACHE_DIR": "numba", "HF_HOME": "huggingface", "TORCH_HOME": "torch",
        "TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_HOME": "triton", "XDG_CACHE_HOME": "cache",
        "RUSTUP_HOME": "rustup",  # pip asks rustc for its version, and a rustup that is not set up writes its settings
    }  # fmt: skip
    # the package managers keep their own caches, so that nothing is downloaded twice
    for name, tool in (("UV_CACHE_DIR", "uv"), ("PIP_CACHE_DIR", "pip")):
        if name not in env and os.name != "nt" and sys.platform != "darwin":
            env[name] = str(Path(env.get("XDG_CACHE_HOME", Path.home() / ".cache")) / tool)
    env["TINYOMNI_PROGRAM"] = "python course.py" if os.name == "nt" else "python3 course.py"  # for its messages
    return env | {name: str(HOME / folder) for name, folder in folders.items()}


def fingerprint() -> str:
    """Changes when everything has to be installed again."""
    parts = [sys.version, str(HERE)]
    parts += [(HERE / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "constraints.txt")]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def installed() -> dict[str, Any]:
    """What the stamp says of .venv: its fingerprint, its extras and whether it has the CPU build of torch."""
    nothing = {"fingerprint": "", "extras": [], "cpu": False}
    try:
        return nothing | json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):  # no stamp, or a damaged one: install again
        return nothing


def works(command: list[str]) -> bool:
    """Can this be started, and does it succeed?"""
    try:
        return subprocess.run(command, capture_output=True, env=environment()).returncode == 0
    except OSError:
        return False


def find_uv() -> list[str]:
    """How to call a uv that works, or an empty list."""
    candidates = [[found] for found in [shutil.which("uv")] if found] + [[sys.executable, "-m", "uv"]]
    return next((each for each in candidates if works([*each, "--version"])), [])


def follow(command: list[str]) -> None:
    """Run a long command behind one progress line; its output is shown only if it fails."""
    start, log = time.monotonic(), VENV / "course-install.log"
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment(), cwd=HERE)
        try:
            while process.poll() is None:
                if sys.stdout.isatty():
                    print(f"\r  installing … {time.monotonic() - start:.0f} s".replace("…", "..."), end="", flush=True)
                time.sleep(0.5)
        finally:
            if process.poll() is None:
                process.kill()
    if sys.stdout.isatty():
        print()
    if process.returncode:
        say(log.read_text(encoding="utf-8", errors="replace")[-3000:])
        raise SystemExit(
            f"course.py: the installation failed (exit {process.returncode}). Is there a network, and 6 GB of disk?"
        )
    say(f"  installed in {time.monotonic() - start:.0f} s")


def set_up(extras: Sequence[str] = (), cpu: bool = False) -> None:
    """Make .venv and install the pinned packages, unless that is done already. What is installed once stays."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        raise SystemExit(
            f"course.py: Python 3.11 to 3.13 is needed, this is {sys.version.split()[0]}. Try python3.12 course.py"
        )
    before = installed()
    cpu = cpu or before["cpu"]
    wanted: dict[str, Any] = {
        "fingerprint": fingerprint(),
        "extras": sorted({"course", *extras, *before["extras"]}),
        "cpu": cpu,
    }
    if PYTHON.exists() and wanted == before:
        return
    first = not before["fingerprint"]
    say("Setting up .venv (the first time: some GB, a minute or several)" if first else "Bringing .venv up to date")
    uv = find_uv()
    if not works([str(PYTHON), "-c", ""]):
        shutil.rmtree(VENV, ignore_errors=True)
        maker = [*uv, "venv", "-q", "--seed", "--python", sys.executable] if uv else [sys.executable, "-m", "venv"]
        if subprocess.run([*maker, str(VENV)], env=environment()).returncode:
            raise SystemExit("course.py: .venv could not be made. On Debian and Ubuntu: apt install python3-venv")
    if not uv and works([str(PYTHON), "-m", "pip", "install", "-q", "--disable-pip-version-check", "uv"]):
        uv = [str(PYTHON), "-m", "uv"]
    STAMP.unlink(missing_ok=True)
    packages = ["-c", "constraints.txt", "-e", f".[{','.join(wanted['extras'])}]"]
    if uv:
        backend = ["--torch-backend", "cpu"] if cpu else []
        follow([*uv, "pip", "install", "--python", str(PYTHON), *backend, *packages])
    else:
        if cpu:
            say("  --cpu needs uv, which could not be installed; going on with the usual build of torch")
        follow([str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", *packages])
    STAMP.write_text(json.dumps(wanted), encoding="utf-8")
    if first:
        activate = BIN / "activate" if os.name == "nt" else f"source {BIN.relative_to(HERE) / 'activate'}"
        say(f"  To type `tinyomni …` instead of `python3 course.py …`, activate the environment: {activate}")


def run(*command: str | Path, folder: Path = HERE, **more: str) -> int:
    """Run a command of the venv, in the checkout if no other folder is named; its exit status."""
    try:
        return subprocess.run([str(part) for part in command], cwd=folder, env=environment() | more).returncode
    except KeyboardInterrupt:
        return 130


def test() -> int:
    """Linters, types, tests, lessons; all of them run, the first failure gives the exit status."""
    pytest: list[str | Path] = [PYTHON, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile"]
    parts: dict[str, list[str | Path]] = {
        "ruff": [PYTHON, "-m", "ruff", "check", "."],
        "ruff format": [PYTHON, "-m", "ruff", "format", "--check", "."],
        "mypy": [PYTHON, "-m", "mypy"],
        "imports": [BIN / "lint-imports", "--no-cache"],
        "tests": pytest,
    }
    if any((HERE / "notebooks").glob("*.ipynb")):
        parts["notebooks"] = [*pytest, "--nbval", "notebooks"]
    results = {}
    for name, command in parts.items():
        say(f"== {name}")
        start = time.monotonic()
        # two processes on two cores: with two threads each they would only wait for each other
        results[name] = run(*command, OMP_NUM_THREADS="1"), time.monotonic() - start
    for name, (status, seconds) in results.items():
        say(f"{'ok    ' if status == 0 else 'FAILED'}  {name} ({seconds:.0f} s)")
    return next((status for status, _ in results.values() if status), 0)


def notebooks() -> int:
    """Execute every lesson in place."""
    lessons = sorted((HERE / "notebooks").glob("*.ipynb"))
    quiet = "--ExecutePreprocessor.record_timing=False"  # times would change the files at each run
    return run(PYTHON, "-m", "nbconvert", "--to", "notebook", "--execute", "--inplace", quiet, *lessons)


def exercises(options: list[str]) -> int:
    """Cut the solutions out of solutions/*.ipynb."""
    return run(PYTHON, "-m", "tinyomni.grade.handout", *options, folder=Path.cwd())


def bench(options: Sequence[str]) -> int:
    """Measure speed, or a weights file of the speedrun; `bench --help` and `bench speedrun --help` say how."""
    if options[:1] == ["speedrun"]:
        return run(PYTHON, Path("benchmarks", "speedrun.py"), *options[1:])
    return run(PYTHON, Path("benchmarks", "speed"), *options)


def site() -> int:
    """Write the static site."""
    return run(PYTHON, Path("site", "pages.py"))


def lab(options: list[str]) -> int:
    """Open JupyterLab on a lesson: the first one, or the one that is named."""
    for name, value in (
        # without this file JupyterLab asks, in a box over the lesson, whether it may fetch news
        ("apputils-extension/notification", '{"fetchNews": "false", "checkForUpdates": false}\n'),
        # all cells are laid out at once: else a jump to a heading misses it by the height of figures not drawn yet
        ("notebook-extension/tracker", '{"windowingMode": "none"}\n'),
    ):
        settings = HOME / "lab-settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        if not settings.exists():
            settings.parent.mkdir(parents=True, exist_ok=True)
            settings.write_text(value, encoding="utf-8")
    named = [each for each in options if each.endswith(".ipynb")]
    first = named or sorted((HERE / "notebooks").glob("*.ipynb"))[:1]
    flags = [each for each in options if each not in named]
    return run(PYTHON, "-m", "jupyterlab", f"--ServerApp.root_dir={HERE}", *flags, *first)


def main(arguments: list[str]) -> int:
    """Set up, then do what was asked."""
    cpu = "--cpu" in arguments[:2]
    words = [word for place, word in enumerate(arguments) if not (word == "--cpu" and place < 2)]
    command, *options = words or ["help"]
    own = {"test": test, "notebooks": notebooks, "site": site}
    with_options = {"lab": lab, "exercises": exercises, "bench": bench}
    if command not in (*with_options, *own, *PASSED_ON):
        asked = command in ("help", "-h", "--help")
        say(
            (__doc__ or "").strip() if asked else f"course.py: unknown command {command!r}; python3 course.py lists all"
        )
        return 0 if asked else 2
    if options and command in own:
        say(f"course.py {command}: expected no options, got {' '.join(options)}")
        return 2
    try:
        set_up(EXTRAS.get(command, []), cpu)
    except KeyboardInterrupt:
        say("\nstopped; the next run continues where this one ended")
        return 130
    if command in PASSED_ON:
        return run(PYTHON, "-m", "tinyomni", command, *options, folder=Path.cwd())
    return with_options[command](options) if command in with_options else own[command]()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
