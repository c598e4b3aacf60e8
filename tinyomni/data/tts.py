"""Text to speech for the closed world: eSpeak NG, through the wheel `espeakng-loader`.

Upstream is GPL-3: nothing of it is in this repository.

eSpeak keeps state from call to call: the same text twice in one process gives different samples. So the library is
loaded again for each utterance, and the same call always gives the same samples, in any order and process.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tinyomni.config import SAMPLE_RATE
from tinyomni.data import other_makers
from tinyomni.errors import InputError
from tinyomni.files import temporary_folder
from tinyomni.io.audio import resample

TTS_VOICES = (
    "en-us", "en-us+f3", "en-us+m3",
    "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029",
)  # fmt: skip
HELD_OUT_VOICE = "en-us-nyc"
"""No training hears it."""
TALKER_VOICES = TTS_VOICES[:2]
"""Those that codec and Talker learn; the first is the Talker's default."""
FIXED_PROSODY = (160, 50)
"""Rate and pitch of what the Talker learns; the defaults of `utter`."""
SYNCHRONOUS, CHARS_UTF8, RATE, VOLUME, PITCH = 2, 1, 1, 2, 3
ONE_AT_A_TIME = threading.Lock()
"""Two loads at the same time would give one library, with shared state."""

Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class SpeechUnavailable(InputError):
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
    """A fresh load of the library with one voice, and its sample rate."""
    if importlib.util.find_spec("espeakng_loader") is None:
        raise SpeechUnavailable(
            "Speech: eSpeak NG is missing: pip install espeakng-loader. Lessons on text and images run without it."
        )
    import espeakng_loader

    with ONE_AT_A_TIME:
        try:
            library = ctypes.CDLL(str(espeakng_loader.get_library_path()))
        except OSError as error:
            raise SpeechUnavailable(
                f"Speech: eSpeak NG cannot be loaded here ({error}). Lessons on text and images run without it."
            ) from error
        try:
            # synchronous: samples come before the call returns; its other mode uses a thread, which can hang
            rate = library.espeak_Initialize(SYNCHRONOUS, 0, str(espeakng_loader.get_data_path()).encode(), 0)
            if rate <= 0:
                raise SpeechUnavailable("Speech: eSpeak NG does not find its data. Reinstall espeakng-loader.")
            library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # else the clock seeds the breath of some voices
            if library.espeak_SetVoiceByName(voice.encode()) != 0:
                known = ", ".join((*TTS_VOICES, HELD_OUT_VOICE))
                raise InputError(f"Speech: eSpeak NG has no voice {voice!r}; the course uses {known}")
            yield library, rate
        finally:
            library.espeak_Terminate()
            close(library._handle)


def utter(text: str, voice: str = "en-us", rate: int = 160, pitch: int = 50) -> Float[Tensor, "samples"]:
    """`text` as spoken by eSpeak NG, or in a voice MAKER:VOICE of `other_makers`: float32 at 16 kHz, within -1…1.

    rate: words per minute, 80 … 450. pitch: 0 … 99. Raises SpeechUnavailable where the library cannot be loaded, and
    InputError for an unknown voice, an empty text, or a rate or pitch out of range.
    """
    if not text.strip():
        raise InputError("Speech: expected some text to say, got an empty one")
    if not 80 <= rate <= 450 or not 0 <= pitch <= 99:
        raise InputError(f"Speech: rate must be within 80 … 450 and pitch within 0 … 99, got {rate} and {pitch}")
    if ":" in voice:
        return other_makers.utter(text, voice, rate, pitch)
    chunks: list[np.ndarray] = []

    @Callback
    def collect(samples: "ctypes._Pointer[ctypes.c_short]", count: int, _: int) -> int:
        if count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    with espeak(voice) as (library, source_rate):
        library.espeak_SetParameter(RATE, rate, 0)
        library.espeak_SetParameter(PITCH, pitch, 0)
        library.espeak_SetParameter(VOLUME, 70, 0)  # at 100, some voices clip
        library.espeak_SetSynthCallback(collect)
        data = text.encode() + b"\0"
        library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 0, 0, CHARS_UTF8, None, None)
    spoken = np.concatenate(chunks) if chunks else np.zeros(0, dtype=np.int16)
    if not spoken.any():
        raise InputError(f"Speech: eSpeak NG gives no audio for {text!r}")
    # resampling may overshoot the peak a little
    return resample(torch.from_numpy(spoken.astype(np.float32) / 32768), source_rate, SAMPLE_RATE).clamp(-1, 1)


class SpeechCache:
    """Utterances on disk, one file each, named by a hash of everything that determines the samples.

    A file is written under another name first and then renamed, so that several processes can share a folder.
    `folder=None` keeps nothing.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder)

    def utter(self, text: str, voice: str = "en-us", rate: int = 160, pitch: int = 50) -> Float[Tensor, "samples"]:
        """As `utter`, read from disk if it is there."""
        return self.get(f"{engine(voice)} {voice} {rate} {pitch} {text}", lambda: utter(text, voice, rate, pitch))

    def get(self, key: str, make: Callable[[], Float[Tensor, "samples"]]) -> Float[Tensor, "samples"]:
        """The recording stored under a key; if there is none, the result of `make`, which is then stored."""
        if self.folder is None:
            return make()
        path = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}.npy"
        if path.exists():
            try:
                return torch.from_numpy(np.load(path))
            except (ValueError, OSError, EOFError) as error:
                raise InputError(f"Speech: the cached file {path} is damaged; delete it ({error})") from error
        wave = make()
        self.folder.mkdir(parents=True, exist_ok=True)
        with temporary_folder(self.folder, "part-") as folder:
            np.save(folder / path.name, wave.numpy())
            os.replace(folder / path.name, path)
        return wave


@functools.cache
def engine(voice: str = "en-us") -> str | None:
    """The version of the synthesizer that has this voice: another one may give other samples."""
    maker, other, _ = voice.partition(":")
    if other and maker in other_makers.MAKERS:
        return other_makers.engine(maker)
    return importlib.metadata.version("espeakng-loader")


def trim(wave: Float[Tensor, "samples"], floor: float = 1e-3) -> Float[Tensor, "spoken"]:
    """Without the silence at both ends."""
    loud = (wave.abs() > floor).nonzero().squeeze(-1)
    return wave[int(loud[0]) : int(loud[-1]) + 1] if len(loud) else wave[:0]
