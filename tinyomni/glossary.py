"""The glossary of axis names, and the cheap shape check that every model makes at its door.

The same word always means the same axis. Annotations use these words, the tracer prints them, and error messages
explain them with the sentences below.
"""

import torch
from jaxtyping import TypeCheckError
from torch import Tensor

AXES: dict[str, str] = {
    "batch": "samples that are processed together",
    "tokens": "positions of one sequence: text pieces, picture, sound, or all of them",
    "queries": "tokens that look (a part of `tokens` when the rest lies in a KV cache)",
    "keys": "tokens that are looked at",
    "text_tokens": "positions that hold text, BOS included",
    "d_model": "width of the Thinker (256)",
    "features": "width of whichever model this layer belongs to",
    "hidden": "inner width of an MLP",
    "heads": "attention heads, each with its own query",
    "kv_heads": "heads that keep keys and values; fewer than `heads` when heads share them",
    "head_dim": "width of one head (64)",
    "vocab": "rows of the token table (5000)",
    "samples": "sound pressure values, 16,000 a second",
    "mel_frames": "spectrogram frames of 10 ms (100 a second)",
    "n_mels": "mel frequency bands (128)",
    "audio_tokens": "positions that hold sound, 40 ms each (25 a second)",
    "audio_dim": "width of the audio encoder (192)",
    "characters": "outputs of the CTC head: the blank and 98 characters",
    "channels": "colours of a picture, or feature maps of a convolution",
    "height": "rows of a picture",
    "width": "columns of a picture",
    "rows": "rows of patches (14)",
    "columns": "columns of patches (14)",
    "n_patches": "patches of a picture (14 × 14 = 196)",
    "vision_dim": "width of the ViT (128)",
    "frames": "code frames of 80 ms (12.5 a second)",
    "codec_dim": "numbers that describe one code frame (128)",
    "code_dim": "width in which the codebooks live (64)",
    "codebooks": "codes for each frame: base and residual (2)",
    "codebook_size": "entries of one codebook (128)",
    "talker_dim": "width of the Talker (192)",
    "image_tokens": "positions that hold a picture (1)",
    "new_tokens": "tokens that were written, one after the other",
    "positions": "places in a sequence that have room, used or not",
    "layers": "blocks, one after the other",
    "frequencies": "rows of a spectrum, from 0 Hz to half the sample rate",
    "pairs": "numbers that RoPE turns together, two by two",
    "pictures": "pictures, each to be held against all captions",
    "captions": "captions, each to be held against all pictures",
    "things": "what a scene holds, in the order of `PLACES` (3)",
    "fields": "colour, shape, size and place of a thing (4)",
    "choices": "scores for every value of every field (13 + 9 + 3 + 6 = 31)",
}


class ShapeError(TypeCheckError, ValueError):
    """A tensor whose axes, sizes or dtype are not what the step asks for."""


def describe(tensor: Tensor) -> str:
    """`(1, 6, 256) float32`, for error messages."""
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def expect(where: str, name: str, tensor: Tensor, axes: str, fix: str = "", **sizes: int) -> None:
    """Raise a `ShapeError` unless `tensor` has these axes: the check that stays when jaxtyping's is off.

    `axes` is a jaxtyping string with words and numbers, such as `"batch tokens d_model"`. `sizes` gives the axes
    whose size is known. Integer axes words `batch tokens` with `integer=1` ask for whole numbers, otherwise floats.
    Only sizes and dtype are read, never values, so that nothing waits for a GPU.
    """
    whole = bool(sizes.pop("integer", 0))
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{where}: {name} should be a tensor, got {type(tensor).__name__}. {fix}".rstrip())
    words = axes.split()
    due = [int(word) if word.isdigit() else sizes.get(word) for word in words]
    wanted = ", ".join(
        word if size is None or word.isdigit() else f"{word}={size}" for word, size in zip(words, due, strict=True)
    )
    kind = "whole numbers (int64)" if whole else "floats"
    problem = ""
    if tensor.ndim != len(words):
        problem = f"{tensor.ndim} axes came, {len(words)} are due"
        if tensor.ndim == len(words) - 1:
            fix = f"Is the batch axis missing? `{name}.unsqueeze(0)`"
    else:
        for word, size, came in zip(words, due, tensor.shape, strict=True):
            if size is not None and size != came:
                meaning = f" ({AXES[word]})" if word in AXES else ""
                problem = f"{word}{meaning} is {size} here, this has {came}"
                break
    if not problem and whole != (tensor.dtype in (torch.int64, torch.int32)):
        problem = f"{kind} are due, {str(tensor.dtype).removeprefix('torch.')} came"
        fix = f"`{name}.long()`" if whole else fix
    if problem:
        raise ShapeError(
            f"{where}: {name} should be ({wanted}), {kind}; got {describe(tensor)}: {problem}. {fix}".rstrip()
        )
