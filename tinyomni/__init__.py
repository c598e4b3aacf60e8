"""tinyomni: an omni model from nothing, with every tensor's shape annotated, checked and traced.

Names are loaded when they are first used, so that the tracer alone needs torch, jaxtyping and beartype only.
"""

import importlib
import os
from typing import Any

ROOMS = {
    "BPETokenizer": "tokenizer",
    "ThinkerLM": "thinker",
    "generate": "generation",
    "ViTTiny": "vision",
    "MelFrontend": "audio",
    "AudioEncoderTiny": "audio",
    "CTCHead": "audio",
    "RVQ": "codec",
    "SpeechCodec": "codec",
    "TalkerTiny": "talker",
    "GriffinLimVocoder": "vocoder",
    "Omni": "omni",
    "KVCache": "attention",
    "TINY": "config",
    "AXES": "glossary",
    "ShapeError": "shapes",
    "validate_loss": "stability",
    "check_gradient_explosion": "stability",
    "clip_gradients": "stability",
    "finite_checks": "stability",
    "trace": "tracing",
    "sweep": "tracing",
    "step": "tracing",
    "tokens": "tracing",
    "Spec": "tracing",
    "check_shapes": "tracing",
}

__all__ = sorted(ROOMS)


def __getattr__(name: str) -> Any:
    if name not in ROOMS:
        raise AttributeError(f"module 'tinyomni' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tinyomni.{ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return __all__


if os.environ.get("TINYOMNI_SHAPES", "0") == "1":
    from tinyomni.tracing.checks import check_shapes

    check_shapes()
