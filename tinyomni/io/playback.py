"""Audio out of the program while it is still being made: 16-bit PCM into a player, or to standard output.

pieces of samples, as they come → aplay, pw-play, paplay, ffplay or sox
"""

import shutil
import struct
import subprocess
from collections.abc import Callable, Iterable

from jaxtyping import Float
from torch import Tensor

from tinyomni.errors import InputError

PLAYERS = {
    "aplay": "-q -t raw -f S16_LE -c 1 -r {rate} -",
    "pw-play": "--raw --format s16 --channels 1 --rate {rate} -",
    "paplay": "--raw --format=s16le --channels=1 --rate={rate}",
    "ffplay": "-nodisp -autoexit -loglevel error -f s16le -ch_layout mono -ar {rate} -",
    "play": "-q -t raw -e signed -b 16 -c 1 -r {rate} -",  # sox
}
"""Programs that play raw samples from standard input, in the order in which they are looked for → their arguments."""


def pcm16(wave: Float[Tensor, "samples"]) -> bytes:
    """Samples within -1…1 → 16-bit little-endian integers."""
    return bytes((wave.clamp(-1, 1) * 32767).round().short().cpu().numpy().astype("<i2").tobytes())


def wav_header(rate: int) -> bytes:
    """The head of a 16-bit mono WAV file whose length is not known yet: both sizes are the largest there are."""
    unknown = 2**32 - 1
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", unknown, b"WAVE", b"fmt ", 16),
        *(1, 1, rate, 2 * rate, 2, 16),  # PCM, channels, Hz, bytes per second, bytes per sample, bits
        *(b"data", unknown),
    )


def write_raw(pieces: Iterable[Float[Tensor, "_"]], write: Callable[[bytes], object]) -> int:
    """Write each piece as soon as it is there; how many samples that were."""
    samples = 0
    for piece in pieces:
        write(pcm16(piece))
        samples += len(piece)
    return samples


def player(rate: int) -> list[str]:
    """The command of the first player that is installed. Raises InputError where there is none."""
    for name, arguments in PLAYERS.items():
        if path := shutil.which(name):
            return [path, *arguments.format(rate=rate).split()]
    raise InputError(
        f"playback: expected one of {', '.join(PLAYERS)}, found none. "
        "Install one (apt install alsa-utils), or write a file: -o speech.wav; -o - gives raw samples."
    )


def play(pieces: Iterable[Float[Tensor, "_"]], rate: int) -> int:
    """Play each piece as soon as it is there; how many samples that were. Raises InputError where that fails."""
    command = player(rate)
    # without a buffer, so that nothing waits in it
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin is not None and process.stderr is not None
        try:
            samples = write_raw(pieces, process.stdin.write)
            process.stdin.close()
        except BrokenPipeError:
            samples = 0
        said = process.stderr.read().decode(errors="replace").strip()
    if process.returncode:
        raise InputError(f"playback: {command[0]} ended with {process.returncode}: {said[:200]}")
    return samples
