"""What the pipelines read: the files and sentences that ship with the course, or custom ones."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tinyomni.errors import InputError
from tinyomni.omni import Omni

ASSETS = Path(__file__).parents[1] / "assets"
IMAGE = ASSETS / "scene.png"
AUDIO = ASSETS / "speech.wav"
NEW_TOKENS = 64


@dataclass
class Inputs:
    """A text for each pipeline that reads one, an image, a recording.

    `custom` names those that the user gave ("text", "image", "audio"): with them a run is compared with the formulas of
    its specification, but not with the numbers that hold for the shipped input.
    """

    texts: dict[str, str]
    image: Any = IMAGE
    audio: Any = AUDIO
    custom: set[str] = field(default_factory=set)


@torch.no_grad()
def check_inputs(omni: Omni, inputs: Inputs) -> None:
    """Raise for custom input that a pipeline cannot use, before anything is printed."""
    if "text" in inputs.custom:
        omni.speech_ids(inputs.texts["speech"])
    text = inputs.texts["multimodal"] if "text" in inputs.custom else "Hello."
    total = omni.embed(text, inputs.image, inputs.audio).shape[1]
    ctx_len = omni.cfg.thinker.ctx_len
    if total + NEW_TOKENS > ctx_len:
        raise InputError(
            f"dry run: {total} prompt tokens + {NEW_TOKENS} new tokens = {total + NEW_TOKENS} > ctx_len = {ctx_len}. "
            "Shorten the text or the recording."
        )
