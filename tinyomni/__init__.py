"""tinyomni: an omni model from scratch, with every tensor's shape annotated, checked and traced.

Names are imported when they are first used, so that the tracer alone needs torch, jaxtyping and beartype only.
"""

import importlib
import os
from typing import Any

_EXPORTS = {
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
    "InputError": "errors",
    "validate_loss": "stability",
    "check_gradient_explosion": "stability",
    "clip_gradients": "stability",
    "finite_checks": "stability",
    "trace": "tracing",
    "annotate": "tracing",
    "sweep": "tracing",
    "step": "tracing",
    "tokens": "tracing",
    "Spec": "tracing",
    "check_shapes": "tracing",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'tinyomni' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tinyomni.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return __all__


if os.environ.get("TINYOMNI_SHAPES", "0") == "1":
    from tinyomni.tracing.checks import check_shapes

    check_shapes()
