"""Speech for the closed world, by eSpeak NG through the wheel `espeakng-loader`.

Upstream is GPL-3: nothing of it is in this repository.

eSpeak keeps state from call to call: the same text twice in one process gives different samples. So the library is
loaded afresh for each utterance, and the same call always gives the same samples.
"""

import ctypes
import importlib.util
import sys

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torchaudio.functional import resample

SAMPLE_RATE = 16_000
VOICES = ("en-us", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan")
RETRIEVAL, CHARS_UTF8, RATE, PITCH = 1, 1, 1, 3

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


def utter(text: str, voice: str = "en-us", rate: int = 160, pitch: int = 50) -> Float[Tensor, "samples"]:
    """`text` as spoken by eSpeak NG: float32 at 16 kHz, about -1…1.

    rate: words a minute, 80 … 450. pitch: 0 … 99. Raises SpeechUnavailable where the library cannot be loaded, and
    ValueError for a voice that it does not have, an empty text, or a rate or pitch out of range.
    """
    if not text.strip():
        raise ValueError("Speech: the text is empty: there is nothing to say")
    if not 80 <= rate <= 450 or not 0 <= pitch <= 99:
        raise ValueError(f"Speech: rate should lie in 80 … 450 and pitch in 0 … 99, got {rate} and {pitch}")
    if importlib.util.find_spec("espeakng_loader") is None:
        raise SpeechUnavailable("Speech: pip install espeakng-loader. Pictures and text work without it.")
    import espeakng_loader

    try:
        library = ctypes.CDLL(str(espeakng_loader.get_library_path()))
    except OSError as error:
        raise SpeechUnavailable(
            f"Speech: eSpeak NG cannot be loaded here ({error}). Pictures and text work without it."
        ) from error
    try:
        source_rate = library.espeak_Initialize(RETRIEVAL, 0, str(espeakng_loader.get_data_path()).encode(), 0)
        if source_rate <= 0:
            raise SpeechUnavailable("Speech: eSpeak NG does not find its data. Reinstall espeakng-loader.")
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"Speech: eSpeak NG has no voice {voice!r}; the course uses {', '.join(VOICES)}")
        library.espeak_SetParameter(RATE, rate, 0)
        library.espeak_SetParameter(PITCH, pitch, 0)
        chunks: list[np.ndarray] = []

        @Callback
        def collect(samples: "ctypes._Pointer[ctypes.c_short]", count: int, _: int) -> int:
            if count > 0:
                chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
            return 0

        library.espeak_SetSynthCallback(collect)
        data = text.encode() + b"\0"
        library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 0, 0, CHARS_UTF8, None, None)
        library.espeak_Synchronize()
        library.espeak_Terminate()
    finally:
        close(library._handle)
    if not chunks:
        raise ValueError(f"Speech: eSpeak NG says nothing for {text!r}")
    wave = torch.from_numpy(np.concatenate(chunks).astype(np.float32) / 32768)
    return resample(wave, source_rate, SAMPLE_RATE)


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
