"""What `tinyomni doctor` checks: what is installed, what is wrong, how to repair it.

What may be broken is imported in a process of its own, so that the doctor itself survives.
"""

import ctypes.util
import importlib.metadata
import importlib.util
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tinyomni.cli.extras import packages

TORCH = "2.11.0"
REPAIR = "Run python3 course.py dry-run, which installs the pinned packages."


class Finding(NamedTuple):
    """One line of the doctor's report."""

    good: bool
    name: str
    text: str  # what was found, and how to repair it


def version(package: str) -> str | None:
    """The installed version, without importing the package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def run_code(code: str) -> tuple[bool, str]:
    """Whether a line of Python succeeds in a process of its own, and the last line that it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    lines = (done.stderr if done.returncode else done.stdout).strip().splitlines()
    return done.returncode == 0, lines[-1] if lines else ""


def check_python() -> Finding:
    """Python 3.11 to 3.13."""
    good = (3, 11) <= sys.version_info[:2] <= (3, 13)
    more = "" if good else ": expected 3.11 to 3.13. Make a new environment."
    return Finding(good, "Python", platform.python_version() + more)


def check_torch(torch: str | None, torchaudio: str | None) -> Finding:
    """Whether torch and torchaudio are of one release and one build; torchaudio's binary fits one torch only."""
    name, both = "torch and torchaudio", f"torch {torch}, torchaudio {torchaudio}"
    if torch is None or torchaudio is None:
        missing = [package for package, found in (("torch", torch), ("torchaudio", torchaudio)) if found is None]
        return Finding(False, name, f"{' and '.join(missing)} missing. {REPAIR}")
    install = f"pip install torch=={TORCH} torchaudio=={TORCH}"
    (release, _, build), (audio_release, _, audio_build) = torch.partition("+"), torchaudio.partition("+")
    if release.split(".")[:2] != audio_release.split(".")[:2]:
        return Finding(False, name, f"{both}: two releases, importing torchaudio fails. {install}")
    if build and audio_build and build != audio_build:
        return Finding(False, name, f"{both}: two builds (+{build}, +{audio_build}), torchaudio fails. {install}")
    if release != TORCH:
        return Finding(False, name, f"{both}: the course was tested with {TORCH} only. {install}")
    return Finding(True, name, both)


def check_import(package: str) -> Finding:
    """Whether the package can really be imported."""
    good, last = run_code(f"import {package}")
    return Finding(good, f"import {package}", "works" if good else f"{last or 'no message'}. {REPAIR}")


TRY_IMPORTS = """
import importlib, sys
for name in sys.argv[1:]:
    print(name, flush=True)
    try:
        importlib.import_module(name)
    except BaseException as error:
        print(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:200]}", flush=True)
"""


def check_packages() -> list[Finding]:
    """Packages that are installed and cannot be imported, each with why; one good finding if there are none."""
    declared = [name for name, extra in packages().items() if extra in ("", "course", "judge", "demo", "onnx")]
    names = [name for name in declared if importlib.util.find_spec(name)]
    broken: dict[str, str] = {}
    left = names
    while left:  # a package that ends the process costs only itself
        done = subprocess.run([sys.executable, "-c", TRY_IMPORTS, *left], capture_output=True, text=True)
        lines = done.stdout.splitlines()
        tried = [line for line in lines if line in left]
        broken |= {name: text for name, _, text in (line.partition(": ") for line in lines) if name in left and text}
        if done.returncode == 0 or not tried:
            break
        broken[tried[-1]] = f"importing it ends the process (exit status {done.returncode})"
        left = left[left.index(tried[-1]) + 1 :]
    if not broken:
        return [Finding(True, "packages", f"{len(names)} can be imported")]
    return [
        Finding(False, name, f"is installed and cannot be imported: {text}. {REPAIR}") for name, text in broken.items()
    ]


def check_gpu() -> Finding:
    """Which accelerator there is; none is fine."""
    _, name = run_code("import torch as t; print(t.cuda.get_device_name() if t.cuda.is_available() else '')")
    return Finding(True, "GPU", name or "none: everything runs on the CPU, training takes longer")


def check_audio_files() -> Finding:
    """Whether recordings can be read and written."""
    name = "audio files"
    if version("soundfile") is None:
        return Finding(False, name, f"soundfile missing. {REPAIR}")
    if not run_code("import soundfile")[0]:
        found = ctypes.util.find_library("sndfile")
        return Finding(False, name, f"libsndfile cannot be loaded (found: {found}). On Linux: apt install libsndfile1")
    return Finding(True, name, f"soundfile {version('soundfile')}")


def check_espeak() -> Finding:
    """Whether eSpeak NG can be loaded; only generated speech needs it."""
    name, without = "eSpeak NG", "without it no speech can be generated; everything else works"
    if version("espeakng-loader") is None:
        return Finding(False, name, f"espeakng-loader missing: {without}. {REPAIR}")
    good, _ = run_code("import ctypes, espeakng_loader; ctypes.CDLL(str(espeakng_loader.get_library_path()))")
    found = f"espeakng-loader {version('espeakng-loader')}"
    return Finding(good, name, found if good else f"{found}: its library cannot be loaded here; {without}")


def check_tokenizer() -> Finding:
    """Whether the shipped tokenizer is there and undamaged."""
    if version("sentencepiece") is None:
        return Finding(False, "tokenizer", f"sentencepiece missing. {REPAIR}")
    good, last = run_code("import sentencepiece")
    if not good:
        return Finding(False, "tokenizer", f"{last or 'sentencepiece cannot be imported'}. {REPAIR}")
    from tinyomni.tokenizer import SHIPPED, BPETokenizer

    try:
        return Finding(True, "tokenizer", f"{BPETokenizer().n_pieces} pieces")
    except (OSError, ValueError) as error:
        return Finding(False, "tokenizer", f"{error}. Restore it: git checkout -- tinyomni/assets/{SHIPPED.name}")


def check_kernel(folder: Path | None = None) -> Finding:
    """Whether Jupyter's Python kernel starts this Python."""
    name, repair = "Jupyter kernel", "python -m ipykernel install --sys-prefix"
    if version("ipykernel") is None:
        return Finding(False, name, f"ipykernel missing. {REPAIR}")
    spec = (folder or Path(sys.prefix) / "share" / "jupyter" / "kernels" / "python3") / "kernel.json"
    try:
        program = str(json.loads(spec.read_text(encoding="utf-8"))["argv"][0])
    except OSError:
        return Finding(False, name, f"no kernelspec at {spec.parent}. {repair}")
    except (ValueError, LookupError, TypeError) as error:
        return Finding(False, name, f"{spec} is damaged ({type(error).__name__}: {error}). {repair}")
    if Path(program).is_absolute() and Path(program) != Path(sys.executable):
        return Finding(False, name, f"starts {program}, not this Python. {repair}")
    return Finding(True, name, "python3")


def findings() -> list[Finding]:
    """Every check, in an order in which each may rely on those before it."""
    found = [check_python(), check_torch(version("torch"), version("torchaudio"))]
    if found[-1].good:
        found += [check_import("torchaudio"), check_gpu()]
    found += check_packages() if found[-1].good else []
    return [*found, check_audio_files(), check_espeak(), check_tokenizer(), check_kernel()]


def main(out: Callable[[str], None] = print) -> int:
    """Print a line for each finding; 0 if all is well."""
    found = findings()
    for each in found:
        out(f"{'OK   ' if each.good else 'WRONG'}  {each.name}: {each.text}")
    return 0 if all(each.good for each in found) else 1
