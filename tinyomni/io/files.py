"""The doors: pictures and recordings as they lie on a disk become tensors, or a clear error.

A picture becomes (3, 224, 224) floats in 0…1, a recording (samples,) floats at 16 kHz, mono.
"""

import functools
import math
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchaudio.transforms import Resample

from tinyomni.shapes import ShapeError, describe

IMAGE_SIZE = 224
SAMPLE_RATE = 16_000
MOST_PIXELS = 80_000_000
MOST_SECONDS = 1800
LOUDEST = 16.0
QUIET = 1e-5
FAINT = 0.01  # of the loudest moment: 40 dB below it
# no EPS: Pillow would start another program for it
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "ICO", "TGA")


def existing_file(step: str, source: str | os.PathLike[str]) -> Path:
    """The path, if there is a file with something in it."""
    path = Path(source)
    if path.is_dir():
        raise IsADirectoryError(f"{step}: {path} is a folder, a file was expected")
    if not path.is_file():
        raise FileNotFoundError(f"{step}: there is no file {path}. Is the path right?")
    if path.stat().st_size == 0:
        raise ValueError(f"{step}: {path} is empty (0 bytes). Was the copy or download cut off?")
    return path


def as_tensor(step: str, source: Any) -> Tensor:
    """Whatever array or list of numbers came, on the CPU."""
    try:
        # numpy's own copy puts reversed rows and foreign byte orders right, which torch does not take
        if isinstance(source, np.ndarray):
            source = np.ascontiguousarray(source, dtype=source.dtype.newbyteorder("="))
        return torch.as_tensor(source).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{step}: expected an array of numbers, got {type(source).__name__} ({error})") from error


# ---- pictures -------------------------------------------------------------------------------------------------------


def check_pixels(step: str, name: str, image: Image.Image) -> None:
    """Refuse a picture that would fill the memory; its size is known before it is decoded."""
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(
            f"{step}: {name} has {image.width} × {image.height} pixels, more than {MOST_PIXELS:,}. Make it smaller."
        )


def open_image(source: str | os.PathLike[str]) -> Image.Image:
    """Read and decode a picture file completely, turned as the camera held it."""
    step = "Reading the picture"
    path = existing_file(step, source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # damage in what the camera noted does not touch the picture
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(path, formats=FORMATS)
        except UnidentifiedImageError as error:
            raise ValueError(
                f"{step}: {path} is no picture that can be decoded ({', '.join(FORMATS)} expected). A picture of "
                "another kind, such as HEIC, has to be saved as JPEG or PNG first."
            ) from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ValueError(f"{step}: {path} has more than {MOST_PIXELS:,} pixels. Make it smaller.") from error
        except PermissionError:
            raise
        except Exception as error:  # decoders of foreign bytes raise whatever comes: all of it means the same
            raise ValueError(f"{step}: {path} is damaged or cut off ({error})") from error
        with image:
            check_pixels(step, str(path), image)
            return upright(step, str(path), image)


def upright(step: str, name: str, image: Image.Image) -> Image.Image:
    """Decode, and turn as the camera held it."""
    try:
        image.load()
        return ImageOps.exif_transpose(image)
    except Exception as error:  # see open_image
        raise ValueError(f"{step}: {name} is damaged or cut off ({error})") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any colour mode → RGB: see-through parts on white, 16 bits scaled to 8.

    Mode I;16 is 0 … 65535. Mode I (32 bits) does not say what its white is: 65535 where a value is above 255. Mode F
    neither: 1 where no value is above it, else 255.
    """
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image).astype(np.float32)
        if not np.isfinite(values).all():
            raise ValueError(
                f"Reading the picture: it holds {int((~np.isfinite(values)).sum())} NaN or infinite pixels"
            )
        most = values.max(initial=0)
        if image.mode == "F":
            white = 1.0 if most <= 1 else 255.0
        else:
            white = 65535.0 if image.mode != "I" or most > 255 else 255.0
        return Image.fromarray((values / white * 255).clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("La", "RGBa"):  # alpha multiplied in already
        image = image.convert(image.mode.upper())
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def load_image(source: Any) -> Float[Tensor, "channels height width"]:
    """A path, a PIL image or a float array (3, h, w) in 0…1 → (3, 224, 224) float32 in 0…1.

    The largest square in the middle is brought to 224 × 224, as CLIP does, so that nothing is stretched; a picture of
    224 × 224 passes unchanged. EXIF rotation is honoured, alpha lies on white, the first picture of several is taken.

    Raises FileNotFoundError, IsADirectoryError, ShapeError for wrong axes, TypeError for what is no picture at all,
    ValueError for what cannot be decoded, for more than 80 million pixels, NaN, or values outside 0…1.
    """
    step = "Reading the picture"
    if isinstance(source, (np.ndarray, Tensor)):
        pixels = as_tensor(step, source)
        if pixels.ndim != 3 or pixels.shape[0] != 3 or 0 in pixels.shape:
            fix = " The channels come first: permute(2, 0, 1)." if pixels.ndim == 3 and pixels.shape[-1] == 3 else ""
            fix = " One picture at a time: image[0]." if pixels.ndim == 4 else fix
            raise ShapeError(f"{step}: a tensor should be (channels=3, height, width); got {describe(pixels)}.{fix}")
        if not pixels.is_floating_point():
            raise ShapeError(f"{step}: a tensor should hold floats in 0…1; got {pixels.dtype}. Divide by 255.")
        if not bool(torch.isfinite(pixels).all()):
            raise ValueError(f"{step}: the tensor holds {int((~torch.isfinite(pixels)).sum())} NaN or infinite values")
        if float(pixels.min()) < 0 or float(pixels.max()) > 1:
            raise ValueError(
                f"{step}: values should lie in 0…1, these lie in {float(pixels.min()):g} … {float(pixels.max()):g}. "
                "Divide by 255, or give the picture before it was normalised."
            )
        return crop(pixels.float())
    if isinstance(source, (str, os.PathLike)):
        image = open_image(source)
    elif isinstance(source, Image.Image):
        check_pixels(step, "the picture", source)
        image = upright(step, "the picture", source)
    else:
        raise TypeError(f"{step}: expected a path, a PIL image or a tensor (3, h, w), got {type(source).__name__}")
    if 0 in image.size:
        raise ValueError(f"{step}: the picture has no pixels ({image.width} × {image.height})")
    image = to_rgb(image)
    # a very large picture is first made smaller by a whole number, which is quick and takes little memory
    image = image.reduce(max(1, min(image.size) // (8 * IMAGE_SIZE)))
    return crop(torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255)


def crop(pixels: Float[Tensor, "channels any_height any_width"]) -> Float[Tensor, "channels height width"]:
    """The largest square in the middle, brought to 224 × 224 with smoothing."""
    height, width = pixels.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = pixels[:, top : top + side, left : left + side]
    if side == IMAGE_SIZE:
        return square.contiguous()
    size = (IMAGE_SIZE, IMAGE_SIZE)
    return torch.nn.functional.interpolate(square[None], size=size, mode="bilinear", antialias=True)[0].clamp(0, 1)


# ---- recordings -----------------------------------------------------------------------------------------------------


def load_audio(source: Any, rate: int = SAMPLE_RATE) -> Float[Tensor, "samples"]:
    """A path, or a pair (samples, rate) → (samples,) float32 at `rate` (16 kHz); several channels are averaged.

    Samples are (samples,) or (channels, samples), floats in about -1…1, or whole numbers, which are scaled.

    Raises FileNotFoundError, IsADirectoryError, ShapeError for wrong axes, TypeError for what is no recording at all,
    ValueError for what cannot be decoded, for no samples, more than 30 minutes, NaN, infinity, or floats that were
    never scaled. Silence passes; see `check_not_silent`. An MP3 or a WAV of 4 GB that is cut off cannot be told.
    """
    step = "Reading the recording"
    if isinstance(source, (str, os.PathLike)):
        path = existing_file(step, source)
        (wav, source_rate), name = decode(step, path), str(path)
    else:
        if not isinstance(source, (tuple, list)) or len(source) != 2:
            raise TypeError(f"{step}: expected a path or a pair (samples, rate), got {type(source).__name__}")
        source_rate, name = check_rate(step, source[1]), "the recording"
        wav = average(step, as_tensor(step, source[0]))
        if len(wav) > MOST_SECONDS * source_rate:
            raise ValueError(f"{step}: {name} is longer than {MOST_SECONDS // 60} minutes. Cut it into pieces.")
    if len(wav) == 0:
        raise ValueError(f"{step}: {name} holds no samples")
    if not bool(torch.isfinite(wav).all()):
        raise ValueError(f"{step}: {name} holds {int((~torch.isfinite(wav)).sum())} samples that are NaN or infinite")
    peak = float(wav.abs().max())
    if peak > LOUDEST:
        raise ValueError(
            f"{step}: samples should lie in about -1…1; those of {name} reach {peak:g}. Samples of 16 bits are divided "
            "by 32768."
        )
    return change_rate(wav, source_rate, rate)


def check_rate(step: str, rate: Any) -> int:
    """A rate that recordings really have; 16000.0 is one too."""
    if isinstance(rate, (float, np.floating)) and float(rate).is_integer():
        rate = int(rate)
    if isinstance(rate, bool) or not isinstance(rate, (int, np.integer)) or not 1000 <= rate <= 768_000:
        raise ValueError(f"{step}: the rate should be whole samples a second, 1,000 … 768,000; got {rate!r}")
    return int(rate)


def average(step: str, wav: Tensor) -> Float[Tensor, "samples"]:
    """(samples,) or (channels, samples), floats or whole numbers → the mean of the channels, float32 in -1…1."""
    if wav.ndim not in (1, 2) or (wav.ndim == 2 and wav.shape[0] > wav.shape[1] > 0):
        fix = {0: " Are the two swapped? (samples, rate)", 2: " Are the axes swapped? samples.T"}.get(wav.ndim, "")
        fix = " One recording at a time: samples[0]" if wav.ndim == 3 else fix
        raise ShapeError(f"{step}: samples should be (samples,) or (channels, samples); got {describe(wav)}.{fix}")
    if wav.is_complex() or wav.dtype == torch.bool:
        raise ShapeError(f"{step}: samples should be floats in about -1…1 or whole numbers; got {describe(wav)}")
    if not wav.is_floating_point():
        kind = torch.iinfo(wav.dtype)
        half = (kind.max - kind.min + 1) / 2
        wav = (wav.double() - (half if kind.min == 0 else 0)) / half  # 8-bit samples are 0 … 255 with 128 as silence
    if wav.ndim == 2:
        wav = wav.double().mean(dim=0) if len(wav) else wav.new_zeros(0)
    return wav.float()


def decode(step: str, path: Path) -> tuple[Float[Tensor, "samples"], int]:
    """Read a sound file piece by piece, averaging its channels; notice one that is cut off."""
    try:
        with soundfile.SoundFile(path) as file:
            rate, kind, promised = check_rate(step, file.samplerate), file.format, file.frames
            parts, count = [], 0
            for block in file.blocks(2**18, dtype="float32", always_2d=True):
                count += len(block)
                if count > MOST_SECONDS * rate:
                    raise ValueError(f"{step}: {path} is longer than {MOST_SECONDS // 60} minutes. Cut it into pieces.")
                with np.errstate(invalid="ignore", over="ignore"):
                    parts.append(block.mean(axis=1))
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: raw samples, without a head
        raise ValueError(
            f"{step}: {path} is no recording that can be decoded (WAV, FLAC, OGG expected): {error}"
        ) from error
    # how long an MP3 is, its head only guesses; 2**62 is a stream whose length was never written
    short = kind not in ("MP3", "MPEG") and count < promised < 2**62
    if short or bytes_missing(path):
        raise ValueError(f"{step}: {path} is cut off: its head promises more than there is. Copy or download it again.")
    return torch.from_numpy(np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)), rate


def bytes_missing(path: Path) -> bool:
    """Whether the file says that it is longer than it is; libsndfile reads what is there without a word."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        if head[:4] in (b"RIFF", b"FORM"):
            promised = int.from_bytes(head[4:], "little" if head[:4] == b"RIFF" else "big")
            return size < promised + 8 < 2**31  # larger: a stream whose length was never written
        if head[:4] == b"OggS":
            file.seek(max(0, size - 2**17))
            tail = file.read()
            page = tail[tail.rfind(b"OggS") :]
            pieces = page[26] if len(page) > 26 else 255
            # bit 4 marks the last page; behind its head stand the lengths of its pieces, then the pieces
            return not page[5:6] or not page[5] & 4 or len(page) < 27 + pieces + sum(page[27 : 27 + pieces])
    return False


def change_rate(wav: Float[Tensor, "samples"], old: int, new: int) -> Float[Tensor, "new_samples"]:
    """Resample: torchaudio's windowed sinc.

    Its table has about old × new / gcd² numbers: gigabytes for a rate such as 44,101. Then the Fourier transform of the
    whole seconds is cut or filled up instead.
    """
    if max(old, new) <= 2000 * math.gcd(old, new):
        return resampler(old, new)(wav)
    seconds = math.ceil(len(wav) / old)
    spectrum = torch.fft.rfft(torch.nn.functional.pad(wav, (0, seconds * old - len(wav))))
    return torch.fft.irfft(spectrum, n=seconds * new)[: math.ceil(len(wav) * new / old)] * (new / old)


@functools.lru_cache(maxsize=8)
def resampler(old: int, new: int) -> Resample:
    """To make its filter takes longer than to use it."""
    return Resample(old, new)


def load_speech(source: Any) -> tuple[Float[Tensor, "samples"], int]:
    """What is said in a recording, as (samples, rate), without the silence before and after it.

    The ear has learned on speech that starts at once. What is 40 dB fainter than the loudest moment is cut off at both
    ends, but for 10 ms. Raises what `load_audio` raises, and ValueError for silence.
    """
    wav = load_audio(source)
    check_not_silent(wav)
    step = SAMPLE_RATE // 100
    moments = torch.nn.functional.pad(wav, (0, -len(wav) % step)).unflatten(0, (-1, step)).square().mean(dim=1)
    loud = (moments > moments.max() * FAINT**2).nonzero()
    first, last = int(loud[0]), int(loud[-1])
    return wav[max(0, first - 1) * step : (last + 2) * step], SAMPLE_RATE


def check_not_silent(wav: Float[Tensor, "*batch samples"]) -> None:
    """Raise a ValueError for a recording in which nothing can be heard."""
    if wav.numel() and float(wav.abs().max()) < QUIET:
        raise ValueError(
            f"Reading the recording: it is silent (no sample is louder than {QUIET:g}). Was the microphone on?"
        )
