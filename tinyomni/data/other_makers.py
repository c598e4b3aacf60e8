"""Speech synthesizers of other makers, each used where it is installed: a recogniser that has heard only eSpeak NG
understands no other.

    "flite:rms"           Flite, clustergen voices   apt install flite                                 8 or 16 kHz
    "pico:en-GB"          SVOX Pico, unit selection  pip install ttspico                               16 kHz
    "sam:sam"             SAM, formants, from 1982   pip install --no-deps samtts                      22 kHz, 8 bits
    "festival:kal_diphone"  Festival, diphones, HTS  apt install festival festvox-kallpc16k festvox-us-slt-hts

TRAINED may train. HELD_OUT only evaluate: all of Festival, and a speaker of Flite's whom Festival has too. None of them
is needed: training then hears eSpeak NG alone. Nothing of them is in this repository.
"""

import functools
import importlib.metadata
import importlib.util
import io
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tinyomni.config import SAMPLE_RATE
from tinyomni.errors import InputError
from tinyomni.io.audio import resample

TRAINED = ("flite:awb", "flite:rms", "pico:en-GB", "pico:en-US", "sam:sam")
HELD_OUT = ("festival:kal_diphone", "festival:cmu_us_slt_arctic_hts", "flite:slt")
INSTALLED = "installed"
USUAL_RATE = 160  # words per minute, about what each of them speaks if not told otherwise
TIMEOUT = 60  # seconds for one utterance

Speak = Callable[[str, str, float, int], tuple[np.ndarray, int]]


@dataclass(frozen=True)
class Maker:
    """A synthesizer: whether it is there, its version, how it is installed, and how it speaks.

    `speak(text, voice, tempo, pitch)` gives float32 samples within -1…1 and their rate; the tempo of 1 is the usual
    one, pitch is 0 … 99 with 50 as the usual one, and not every maker can change it.
    """

    version: Callable[[], str | None]
    install: str
    speak: Speak


def of_wheel(name: str) -> Callable[[], str | None]:
    """The version of a Python package, None if it is not installed."""
    return lambda: importlib.metadata.version(name) if importlib.util.find_spec(name) else None


def of_program(*command: str) -> Callable[[], str | None]:
    """The line in which a program names its version, None if it is not installed."""

    def version() -> str | None:
        if shutil.which(command[0]) is None:
            return None
        said = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
        lines = [line for line in (said.stdout + said.stderr).splitlines() if "version" in line.lower()]
        return " ".join(lines[0].split()) if lines else command[0]

    return version


def run_to_file(command: list[str], text: str, folder: str) -> tuple[np.ndarray, int]:
    """What a program writes to `folder`/out.wav, with the text on its standard input."""
    import soundfile

    done = subprocess.run(command, input=text, text=True, capture_output=True, timeout=TIMEOUT, cwd=folder)
    path = Path(folder) / "out.wav"
    if done.returncode or not path.exists():
        raise InputError(f"Speech: {command[0]} ended with {done.returncode}: {done.stderr.strip()[:200]}")
    samples, rate = soundfile.read(io.BytesIO(path.read_bytes()), dtype="float32")
    return samples, rate


def flite(text: str, voice: str, tempo: float, pitch: int) -> tuple[np.ndarray, int]:
    """Black & Lenzo, Flite: a small fast run-time synthesis engine (2001)."""
    with tempfile.TemporaryDirectory() as folder:
        stretch = f"duration_stretch={1 / tempo:.3f}"
        return run_to_file(["flite", "-voice", voice, "--setf", stretch, "-t", text, "-o", "out.wav"], "", folder)


def festival(text: str, voice: str, tempo: float, pitch: int) -> tuple[np.ndarray, int]:
    """Taylor, Black & Caley, The architecture of the Festival speech synthesis system (1998)."""
    with tempfile.TemporaryDirectory() as folder:
        evals = [f"(voice_{voice})", f"(Parameter.set 'Duration_Stretch {1 / tempo:.3f})"]
        command = ["text2wave", "-o", "out.wav", *(part for each in evals for part in ("-eval", each))]
        return run_to_file(command, text, folder)


def pico(text: str, voice: str, tempo: float, pitch: int) -> tuple[np.ndarray, int]:
    """A fresh engine each time: it keeps state from call to call, and the same text would give other samples."""
    import ttspico

    engine = ttspico.TtsEngine(voice)
    engine.rate, engine.pitch = round(100 * tempo), round(100 + (pitch - 50) * 0.8)
    return np.frombuffer(engine.speak(text), dtype=np.int16).astype(np.float32) / 32768, 16_000


def sam(text: str, voice: str, tempo: float, pitch: int) -> tuple[np.ndarray, int]:
    """Its pitch is a period: a larger number is lower."""
    from samtts import SamTTS

    data = SamTTS(speed=round(72 / tempo), pitch=round(64 - (pitch - 50) * 0.8)).get_audio_data(text)
    return (np.frombuffer(bytes(data), dtype=np.uint8).astype(np.float32) - 128) / 128, 22_050


MAKERS = {
    "flite": Maker(of_program("flite", "--version"), "apt install flite", flite),
    "pico": Maker(of_wheel("ttspico"), "pip install ttspico", pico),
    "sam": Maker(of_wheel("samtts"), "pip install --no-deps samtts", sam),
    "festival": Maker(
        of_program("festival", "--version"), "apt install festival festvox-kallpc16k festvox-us-slt-hts", festival
    ),
}


@functools.cache
def engine(maker: str) -> str | None:
    """Which version of a maker is installed: another one may give other samples. None if it is not."""
    return MAKERS[maker].version()


def installed(voices: Sequence[str]) -> tuple[str, ...]:
    """Those of these voices whose maker is installed."""
    return tuple(voice for voice in voices if engine(voice.partition(":")[0]) is not None)


def resolve(makers: str) -> str:
    """`installed` → the names of all that may train and are installed, as in `flite,pico`; names stay as they are.

    Raises InputError for a name that is none of those, and for one that is not installed.
    """
    trained = tuple(dict.fromkeys(voice.partition(":")[0] for voice in TRAINED))
    if makers == INSTALLED:
        return ",".join(name for name in trained if engine(name) is not None)
    for name in filter(None, makers.split(",")):
        if name not in trained:
            raise InputError(f"Speech: makers must be {INSTALLED!r} or some of {', '.join(trained)}, got {makers!r}")
        if engine(name) is None:
            raise InputError(f"Speech: {name} is not installed: {MAKERS[name].install}")
    return makers


def voices_of(makers: str) -> tuple[str, ...]:
    """The voices that these makers, as `resolve` names them, train with."""
    return tuple(voice for voice in TRAINED if voice.partition(":")[0] in makers.split(","))


def utter(text: str, voice: str, rate: int = USUAL_RATE, pitch: int = 50) -> Float[Tensor, "samples"]:
    """`text` as a voice of another maker speaks it: float32 at 16 kHz, within -1…1.

    `voice` is MAKER:VOICE. Raises InputError for an unknown maker, one that is not installed, and where it says
    nothing.
    """
    maker, _, name = voice.partition(":")
    if voice not in (*TRAINED, *HELD_OUT):
        raise InputError(
            f"Speech: there is no voice {voice!r}; those of other makers are {', '.join(TRAINED + HELD_OUT)}"
        )
    if engine(maker) is None:
        raise InputError(f"Speech: the voice {voice!r} needs {maker}, which is not installed: {MAKERS[maker].install}")
    samples, source_rate = MAKERS[maker].speak(text, name, rate / USUAL_RATE, pitch)
    if not samples.any():
        raise InputError(f"Speech: {voice} gives no audio for {text!r}")
    return resample(torch.from_numpy(samples.copy()), source_rate, SAMPLE_RATE).clamp(-1, 1)
