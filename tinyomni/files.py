"""The doors: pictures and recordings as they lie on a disk become tensors, or a clear error.

A picture becomes (3, 224, 224) floats in 0…1, a recording (samples,) floats at 16 kHz, mono.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchaudio.functional import resample

from tinyomni.axes import ShapeError, describe

IMAGE_SIZE = 224
SAMPLE_RATE = 16_000
MOST_PIXELS = 100_000_000
QUIET = 1e-5


def existing_file(step: str, source: str | Path) -> Path:
    """The path, if there is a file with something in it."""
    path = Path(source)
    if path.is_dir():
        raise IsADirectoryError(f"{step}: {path} is a folder, a file was expected")
    if not path.is_file():
        raise FileNotFoundError(f"{step}: there is no file {path}. Is the path right?")
    if path.stat().st_size == 0:
        raise ValueError(f"{step}: {path} is empty (0 bytes). Was the copy or download cut off?")
    return path


# ---- pictures -------------------------------------------------------------------------------------------------------


def open_image(source: str | Path) -> Image.Image:
    """Read and decode a picture file completely."""
    step = "Reading the picture"
    path = existing_file(step, source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise ValueError(
                        f"{step}: {path} has {image.width} × {image.height} pixels, more than {MOST_PIXELS:,}. "
                        "Make it smaller."
                    )
                image.load()
                return image
    except UnidentifiedImageError as error:
        raise ValueError(f"{step}: {path} is no picture that can be decoded (PNG, JPEG, … expected)") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{step}: {path} has more than {MOST_PIXELS:,} pixels. Make it smaller.") from error
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(f"{step}: {path} is damaged or cut off ({error})") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any colour mode → RGB: turned as the camera held it, see-through parts on white, 16 bits scaled to 8."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float64)
        # 16-bit greyscale comes as I;16 or I; a float picture is taken as it is
        scale = 257.0 if image.mode != "F" and values.max(initial=0) > 255 else 1.0
        return Image.fromarray((values / scale).clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if "A" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def load_image(source: Any) -> Float[Tensor, "channels height width"]:
    """A path, a PIL image or a float array (3, h, w) in 0…1 → (3, 224, 224) float32 in 0…1.

    The shorter side is brought to 224 and the middle is cut out, as CLIP does; 224 × 224 passes unchanged.
    Raises FileNotFoundError, IsADirectoryError, ShapeError for wrong axes, ValueError for what cannot be decoded,
    NaN, or values outside 0…1.
    """
    step = "Reading the picture"
    if isinstance(source, (np.ndarray, Tensor)):
        pixels = torch.as_tensor(source).detach().cpu()
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
        pixels = pixels.float()
    else:
        if isinstance(source, (str, Path)):
            source = open_image(source)
        if not isinstance(source, Image.Image):
            raise TypeError(f"{step}: expected a path, a PIL image or a tensor (3, h, w), got {type(source).__name__}")
        pixels = torch.from_numpy(np.array(to_rgb(source))).permute(2, 0, 1).float() / 255
    return crop(pixels)


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
    """A path, or a pair (samples, rate) → (samples,) float32 at 16 kHz; several channels are averaged.

    Samples are (samples,) or (channels, samples), floats in about -1…1, or whole numbers, which are scaled.
    Raises FileNotFoundError, IsADirectoryError, ShapeError for wrong axes, ValueError for what cannot be decoded, for
    no samples at all, for NaN or infinity.
    """
    step = "Reading the recording"
    if isinstance(source, (str, Path)):
        path = existing_file(step, source)
        try:
            promised = soundfile.info(path).frames
            data, source_rate = soundfile.read(path, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: raw samples, without a head
            raise ValueError(
                f"{step}: {path} is no recording that can be decoded (WAV, FLAC, OGG expected): {error}"
            ) from error
        with path.open("rb") as file:
            head = file.read(8)
        # a WAV file says in its head how long it is; libsndfile reads what is there without a word
        missing = int.from_bytes(head[4:], "little") + 8 - path.stat().st_size if head[:4] == b"RIFF" else 0
        if 0 < missing < 2**31 or len(data) < promised:
            raise ValueError(f"{step}: {path} is cut off: its head promises more bytes than there are")
        wav, name = torch.from_numpy(data.T), str(path)
    else:
        if not isinstance(source, (tuple, list)) or len(source) != 2:
            raise TypeError(f"{step}: expected a path or a pair (samples, rate), got {type(source).__name__}")
        wav, source_rate, name = torch.as_tensor(source[0]).detach().cpu(), source[1], "the recording"
        if wav.ndim not in (1, 2) or (wav.ndim == 2 and wav.shape[0] > wav.shape[1] > 0):
            fix = " Are the axes swapped? samples.T" if wav.ndim == 2 else ""
            raise ShapeError(f"{step}: samples should be (samples,) or (channels, samples); got {describe(wav)}.{fix}")
        if not wav.is_floating_point():
            wav = wav.double() / (torch.iinfo(wav.dtype).max + 1)
        wav = wav.float() if wav.ndim == 2 else wav.float()[None]
    if not isinstance(source_rate, (int, np.integer)) or not 1000 <= source_rate <= 768_000:
        raise ValueError(f"{step}: the rate should be whole samples a second, 1,000 … 768,000; got {source_rate!r}")
    if wav.shape[-1] == 0:
        raise ValueError(f"{step}: {name} holds no samples")
    if not bool(torch.isfinite(wav).all()):
        raise ValueError(f"{step}: {name} holds {int((~torch.isfinite(wav)).sum())} samples that are NaN or infinite")
    return resample(wav.mean(dim=0), int(source_rate), rate)


def check_not_silent(wav: Float[Tensor, "*batch samples"]) -> None:
    """Raise a ValueError for a recording in which nothing can be heard."""
    if wav.numel() and float(wav.abs().max()) < QUIET:
        raise ValueError(
            f"Reading the recording: it is silent (no sample is louder than {QUIET:g}). Was the microphone on?"
        )
