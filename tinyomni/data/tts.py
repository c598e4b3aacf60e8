"""Speech for the closed world, by eSpeak NG through the wheel `espeakng-loader`.

Upstream is GPL-3: nothing of it is in this repository.

eSpeak keeps state from call to call: the same text twice in one process gives different samples. So the library is
loaded afresh for each utterance, and the same call always gives the same samples, in any order and process.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tinyomni.io.files import SAMPLE_RATE, change_rate

VOICES = (
    "en-us", "en-us+f3", "en-us+m3",
    "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029",
)  # fmt: skip
HELD_OUT_VOICE = "en-us-nyc"
"""Nobody trains on it."""
TALKER_VOICES = VOICES[:2]
"""The codec and the Talker are for these; the first is spoken when nobody asks for a voice."""
STEADY = (160, 50)
"""Their rate and pitch: what `utter` has by default."""
SYNCHRONOUS, CHARS_UTF8, RATE, VOLUME, PITCH, IPA = 2, 1, 1, 2, 3, 2
ONE_AT_A_TIME = threading.Lock()
"""Loading twice at once gives one library, and then its state is shared."""

Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class SpeechUnavailable(RuntimeError):
    """eSpeak NG cannot be loaded on this machine."""


def close(handle: int) -> None:
    """Unload the library, so that the next load starts with a clean state."""
    import _ctypes

    if sys.platform == "win32":
        _ctypes.FreeLibrary(handle)
    else:
        _ctypes.dlclose(handle)


@contextlib.contextmanager
def espeak(voice: str) -> Iterator[tuple[ctypes.CDLL, int]]:
    """The library, loaded afresh with one voice, and its sample rate."""
    if importlib.util.find_spec("espeakng_loader") is None:
        raise SpeechUnavailable("Speech: pip install espeakng-loader. Lessons on text and pictures run without it.")
    import espeakng_loader

    with ONE_AT_A_TIME:
        try:
            library = ctypes.CDLL(str(espeakng_loader.get_library_path()))
        except OSError as error:
            raise SpeechUnavailable(
                f"Speech: eSpeak NG cannot be loaded here ({error}). Lessons on text and pictures run without it."
            ) from error
        try:
            # synchronous: samples come before the call returns; its other mode has a thread of its own, which can hang
            rate = library.espeak_Initialize(SYNCHRONOUS, 0, str(espeakng_loader.get_data_path()).encode(), 0)
            if rate <= 0:
                raise SpeechUnavailable("Speech: eSpeak NG does not find its data. Reinstall espeakng-loader.")
            library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # else the clock seeds the breath of some voices
            if library.espeak_SetVoiceByName(voice.encode()) != 0:
                known = ", ".join((*VOICES, HELD_OUT_VOICE))
                raise ValueError(f"Speech: eSpeak NG has no voice {voice!r}; the course uses {known}")
            yield library, rate
        finally:
            library.espeak_Terminate()
            close(library._handle)


def utter(text: str, voice: str = "en-us", rate: int = 160, pitch: int = 50) -> Float[Tensor, "samples"]:
    """`text` as spoken by eSpeak NG: float32 at 16 kHz, within -1…1.

    rate: words a minute, 80 … 450. pitch: 0 … 99. Raises SpeechUnavailable where the library cannot be loaded, and
    ValueError for a voice that it does not have, an empty text, or a rate or pitch out of range.
    """
    if not text.strip():
        raise ValueError("Speech: the text is empty: there is nothing to say")
    if not 80 <= rate <= 450 or not 0 <= pitch <= 99:
        raise ValueError(f"Speech: rate should lie in 80 … 450 and pitch in 0 … 99, got {rate} and {pitch}")
    chunks: list[np.ndarray] = []

    @Callback
    def collect(samples: "ctypes._Pointer[ctypes.c_short]", count: int, _: int) -> int:
        if count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    with espeak(voice) as (library, source_rate):
        library.espeak_SetParameter(RATE, rate, 0)
        library.espeak_SetParameter(PITCH, pitch, 0)
        library.espeak_SetParameter(VOLUME, 70, 0)  # at 100, some voices reach the largest number and are cut flat
        library.espeak_SetSynthCallback(collect)
        data = text.encode() + b"\0"
        library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 0, 0, CHARS_UTF8, None, None)
    spoken = np.concatenate(chunks) if chunks else np.zeros(0, dtype=np.int16)
    if not spoken.any():
        raise ValueError(f"Speech: eSpeak NG says nothing for {text!r}")
    # resampling may reach a little over the peak
    return change_rate(torch.from_numpy(spoken.astype(np.float32) / 32768), source_rate, SAMPLE_RATE).clamp(-1, 1)


def phonemes(text: str, voice: str = "en-us") -> str:
    """What eSpeak NG makes of a text before it speaks: numbers and abbreviations written out, as IPA."""
    with espeak(voice) as (library, _):
        library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        rest = ctypes.c_char_p(text.encode())
        parts = []
        while rest.value:
            part = library.espeak_TextToPhonemes(ctypes.byref(rest), CHARS_UTF8, IPA)
            parts.append(part.decode() if part else "")
    return " ".join(part for part in parts if part)


class SpeechCache:
    """Utterances on disk, one file each, named after everything that decides about the samples.

    A file is written under another name first and then renamed, so that several processes can share a folder.
    `folder=None` keeps nothing.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder)

    def utter(self, text: str, voice: str = "en-us", rate: int = 160, pitch: int = 50) -> Float[Tensor, "samples"]:
        """As `utter`, from the disk if it has been said before."""
        return self.get(f"{engine()} {voice} {rate} {pitch} {text}", lambda: utter(text, voice, rate, pitch))

    def get(self, key: str, make: Callable[[], Float[Tensor, "samples"]]) -> Float[Tensor, "samples"]:
        """What is stored under a key, or what `make` gives, which is then stored."""
        if self.folder is None:
            return make()
        path = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}.npy"
        if path.exists():
            try:
                return torch.from_numpy(np.load(path))
            except (ValueError, OSError, EOFError) as error:
                raise ValueError(f"Speech: the cached file {path} is damaged; delete it ({error})") from error
        wave = make()
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix="part-") as room:
            np.save(part := Path(room) / path.name, wave.numpy())
            os.replace(part, path)
        return wave


@functools.cache
def engine() -> str:
    """The version of the wheel, since another one may speak otherwise."""
    return importlib.metadata.version("espeakng-loader")


def trim(wave: Float[Tensor, "samples"], floor: float = 1e-3) -> Float[Tensor, "spoken"]:
    """Cut silence off both ends."""
    loud = (wave.abs() > floor).nonzero().squeeze(-1)
    return wave[int(loud[0]) : int(loud[-1]) + 1] if len(loud) else wave[:0]


def course_recording() -> Float[Tensor, "samples"]:
    """The recording that ships with the course: exactly one second, 16,000 samples."""
    spoken = trim(utter("There is a red circle.", rate=200))
    if len(spoken) > SAMPLE_RATE:
        raise RuntimeError(f"the course's sentence takes {len(spoken)} samples, more than {SAMPLE_RATE}")
    before = (SAMPLE_RATE - len(spoken)) // 2
    return torch.nn.functional.pad(spoken, (before, SAMPLE_RATE - len(spoken) - before))
