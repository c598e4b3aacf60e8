"""`tinyomni doctor`: what is installed, what is wrong, and how to mend it. It imports nothing that may be broken."""

import ctypes.util
import importlib.metadata
import importlib.util
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

PAIR = "2.11.0"
MEND = "Run python3 course.py dry-run, which installs the pinned packages."

Finding = tuple[bool, str, str]  # good, what was looked at, what was found and how to mend it


def version(package: str) -> str | None:
    """The installed version, without importing the package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def python() -> Finding:
    """Python 3.11 to 3.13."""
    good = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return (
        good,
        "Python",
        platform.python_version() + ("" if good else ": 3.11 to 3.13 is needed. Make a new environment."),
    )


def pair(torch: str | None, torchaudio: str | None) -> Finding:
    """Are torch and torchaudio of one release and one build? Torchaudio's binary fits one torch only."""
    name, both = "torch and torchaudio", f"torch {torch}, torchaudio {torchaudio}"
    if torch is None or torchaudio is None:
        missing = " and ".join(
            package for package, found in (("torch", torch), ("torchaudio", torchaudio)) if found is None
        )
        return False, name, f"{missing} missing. {MEND}"
    mend = f"pip install torch=={PAIR} torchaudio=={PAIR}"
    (release, _, build), (audio_release, _, audio_build) = torch.partition("+"), torchaudio.partition("+")
    if release.split(".")[:2] != audio_release.split(".")[:2]:
        return False, name, f"{both}: two releases, importing torchaudio fails. {mend}"
    if build and audio_build and build != audio_build:
        return False, name, f"{both}: two builds (+{build}, +{audio_build}), importing torchaudio fails. {mend}"
    if release != PAIR:
        return False, name, f"{both}: the course was tested with {PAIR} only. {mend}"
    return True, name, both


def importable(package: str) -> Finding:
    """Can the package really be imported? Tried in a process of its own."""
    done = subprocess.run([sys.executable, "-c", f"import {package}"], capture_output=True, text=True)
    if done.returncode == 0:
        return True, f"import {package}", "works"
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return False, f"import {package}", f"{last}. {MEND}"


def gpu() -> Finding:
    """Which accelerator there is. None is fine."""
    code = "import torch as t; print(t.cuda.get_device_name() if t.cuda.is_available() else '')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return True, "GPU", done.stdout.strip() or "none: everything runs on the CPU, training takes longer"


def sound() -> Finding:
    """Can recordings be read and written?"""
    if version("soundfile") is None:
        return False, "sound files", f"soundfile missing. {MEND}"
    done = subprocess.run([sys.executable, "-c", "import soundfile"], capture_output=True, text=True)
    if done.returncode:
        found = ctypes.util.find_library("sndfile")
        return False, "sound files", f"libsndfile cannot be loaded (found: {found}). On Linux: apt install libsndfile1"
    return True, "sound files", f"soundfile {version('soundfile')}"


def espeak() -> Finding:
    """Can eSpeak NG be loaded? Only made speech needs it."""
    from_wheel = version("espeakng-loader")
    if from_wheel is None:
        return False, "eSpeak NG", f"espeakng-loader missing: no speech can be made; all else works. {MEND}"
    code = "import ctypes, espeakng_loader; ctypes.CDLL(str(espeakng_loader.get_library_path()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        return False, "eSpeak NG", "its library cannot be loaded here: no speech can be made; all else works"
    return True, "eSpeak NG", f"espeakng-loader {from_wheel}"


def tokenizer() -> Finding:
    """Is the tokenizer there and whole?"""
    if version("sentencepiece") is None:
        return False, "tokenizer", f"sentencepiece missing. {MEND}"
    from tinyomni.tokenizer import SHIPPED, BPETokenizer

    try:
        return True, "tokenizer", f"{BPETokenizer().n_pieces} pieces"
    except (OSError, ValueError) as error:
        return False, "tokenizer", f"{error}. Restore it: git checkout -- tinyomni/assets/{SHIPPED.name}"


def kernel(folder: Path | None = None) -> Finding:
    """Does Jupyter's Python kernel start this Python?"""
    if version("ipykernel") is None:
        return False, "Jupyter kernel", f"ipykernel missing. {MEND}"
    spec = (folder or Path(sys.prefix) / "share" / "jupyter" / "kernels" / "python3") / "kernel.json"
    if not spec.is_file():
        return False, "Jupyter kernel", f"no kernelspec at {spec.parent}. python -m ipykernel install --sys-prefix"
    program = str(json.loads(spec.read_text(encoding="utf-8"))["argv"][0])
    if Path(program).is_absolute() and Path(program) != Path(sys.executable):
        return False, "Jupyter kernel", f"starts {program}, not this Python. python -m ipykernel install --sys-prefix"
    return True, "Jupyter kernel", "python3"


def findings() -> list[Finding]:
    """Every check, in the order in which one builds on the other."""
    found = [python(), pair(version("torch"), version("torchaudio"))]
    if found[-1][0]:
        found += [importable("torchaudio"), gpu()]
    return [*found, sound(), espeak(), tokenizer(), kernel()]


def main(out: Callable[[str], None] = print) -> int:
    """One line for each finding; 0 if all is well."""
    found = findings()
    for good, name, text in found:
        out(f"{'OK   ' if good else 'WRONG'}  {name}: {text}")
    return 0 if all(good for good, _, _ in found) else 1
