"""Write the trained model as ONNX graphs, and one JSON file with all that a runtime without Python needs.

    graphs.py → torch.export → ONNX (float32) → int8 weights, one scale for each output channel → OUT/*.onnx
    OUT/model.json: sizes, tokenizer, characters, thresholds, and each graph's inputs and outputs with their axis names

The axis names are read from the annotations of `graphs.py` by the tracer's own reader: there is no second list.
"""

import contextlib
import hashlib
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import torch
from torch import Tensor, nn

from tinyomni.audio import CHARS
from tinyomni.data import normalization, rendering
from tinyomni.data.world import SHAPES
from tinyomni.errors import InputError
from tinyomni.files import read_json
from tinyomni.io import levels
from tinyomni.io.weights import SHIPPED
from tinyomni.omni import Omni
from tinyomni.onnx import graphs
from tinyomni.reply import DESCRIBES, HEARD_NOTHING, MOST_APART, SCRATCHPAD, SENTENCE
from tinyomni.stability import finite_checks
from tinyomni.tracing import annotations

OPSET = 20
SMALLEST = 1024  # numbers: a tensor with fewer stays in float32
PAST, NEW = 7, 5  # sizes of the traced example: larger than 1, and different, so that no axis is taken for fixed


@dataclass(frozen=True)
class Graph:
    """One exported graph: a module, an example input, and which axes may have any length."""

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    dynamic: dict[str, tuple[int, ...]]


def all_graphs(omni: Omni) -> Iterator[Graph]:
    """Every graph of the model, each with an example input."""
    thinker, talker, audio = omni.cfg.thinker, omni.cfg.talker, omni.cfg.audio

    def cache(layers: int, heads: int, head_dim: int) -> dict[str, Tensor]:
        return {name: torch.randn(layers, 1, heads, PAST, head_dim) for name in ("keys", "values")}

    ids = torch.arange(3, 3 + NEW)[None]
    codes = torch.randint(omni.cfg.codec.codebook_size, (1, NEW, omni.cfg.codec.codebooks))
    size = omni.cfg.vision.image_size
    yield Graph("image", graphs.Image(omni), {"image": torch.rand(1, 3, size, size)}, ("token", "attention"), {})
    wav = torch.randn(1, 20 * audio.hop + 3)
    yield Graph("mel", omni.mel, {"wav": wav}, ("mel",), {"wav": (1,)})
    mel = torch.randn(1, 4 * NEW + 2, audio.n_mels)
    yield Graph("audio", graphs.Audio(omni), {"mel": mel}, ("tokens", "log_probs"), {"mel": (1,)})
    yield Graph("embed", graphs.Embed(omni), {"ids": ids}, ("embeddings",), {"ids": (1,)})
    growing = {"keys": (3,), "values": (3,)}
    yield Graph(
        "think",
        graphs.Think(omni),
        {
            "embeddings": torch.randn(1, NEW, thinker.d_model),
            **cache(thinker.layers, thinker.kv_heads, thinker.d_model // thinker.heads),
            "head_scale": torch.ones(thinker.layers, thinker.heads),
        },
        ("logits", "attention", "new_keys", "new_values"),
        {"embeddings": (1,), **growing},
    )
    yield Graph(
        "talk",
        graphs.Talk(omni),
        {
            "text": ids,
            "codes": codes[:, :3],
            **cache(talker.layers, talker.heads, talker.talker_dim // talker.heads),
            "head_scale": torch.ones(talker.layers, talker.heads),
        },
        ("base", "residual", "end", "attention", "new_keys", "new_values"),
        {"text": (1,), "codes": (1,), **growing},
    )
    yield Graph("codec", graphs.Codec(omni), {"codes": codes}, ("mel",), {"codes": (1,)})


def to_onnx(graph: Graph) -> Any:
    """The graph as an `onnx.ModelProto` in float32, without names of files on the machine that exported it."""
    shapes = {
        name: {axis: torch.export.Dim.DYNAMIC for axis in graph.dynamic.get(name, ())} or None for name in graph.inputs
    }
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad(), finite_checks(False), without_shape_checks():
        warnings.simplefilter("ignore")  # of the exporter's own deprecations
        program = torch.onnx.export(
            graph.module.eval(),
            tuple(graph.inputs.values()),
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=tuple(shapes.values()),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    return strip(program.model_proto)


@contextlib.contextmanager
def without_shape_checks() -> Iterator[None]:
    """jaxtyping looks at sizes, which are symbols while a graph is recorded."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def strip(model: Any) -> Any:
    """Remove stack traces and docs: they name paths of this machine."""
    parts = [model, model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info]
    parts += [part for function in model.functions for part in (function, *function.node)]
    for part in (*parts, *model.graph.initializer):
        for field in ("metadata_props", "doc_string"):
            if hasattr(part, field):
                part.ClearField(field)
    return model


def int8(model: Any) -> Any:
    """Each large matrix as int8 and one float32 scale for each row of its first axis; multiplied back when loaded.

    Rounding to nearest, symmetric around 0: the largest entry of a row becomes 127. A runtime folds `Cast` and `Mul`
    into a float32 constant when it loads the graph, so no step becomes slower.
    """
    import onnx
    from onnx import helper, numpy_helper

    kept, nodes = [], []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.data_type != onnx.TensorProto.FLOAT or values.ndim < 2 or values.size < SMALLEST:
            kept.append(tensor)
            continue
        scale = np.abs(values).reshape(len(values), -1).max(axis=1) / 127
        scale = np.where(scale > 0, scale, 1).astype(np.float32).reshape(-1, *[1] * (values.ndim - 1))
        small, scales, wide = (f"{tensor.name}.{part}" for part in ("int8", "scale", "float"))
        kept += [
            numpy_helper.from_array(np.rint(values / scale).astype(np.int8), small),
            numpy_helper.from_array(scale, scales),
        ]
        nodes += [
            helper.make_node("Cast", [small], [wide], to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", [wide, scales], [tensor.name]),
        ]
    rest = list(model.graph.node)
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend(nodes + rest)
    onnx.checker.check_model(model)
    return model


def axes_of(forward: Callable[..., Any]) -> dict[str, Any]:
    """The axis names of a graph, from the annotations of its module's forward."""
    return {name: annotations.show(hint) for name, hint in annotations.hints_of(forward).items()}


def drawing() -> dict[str, Any]:
    """How the closed world draws its easy images: outlines with radius 1, colours, places, sizes."""
    outlines = {"circle": [], "ring": [], "cross": rendering.cross(), "heart": rendering.heart()}
    outlines |= {shape: rendering.corners(shape, 0.0) for shape in SHAPES if shape not in outlines}
    return {
        "colours": rendering.RGB, "outlines": outlines, "places": rendering.PLACE_OFFSETS, "radii": rendering.RADII,
        "background": rendering.BACKGROUNDS[0], "step": rendering.STEP, "hole": rendering.HOLE,
    }  # fmt: skip


def normalization_data() -> dict[str, Any]:
    """The word lists of `data.normalization`."""
    return {
        "vocabulary": sorted(normalization.vocabulary()),
        "known": sorted(normalization.known_words()),
        "questions": sorted(" ".join(each) for each in normalization.known_questions()),
        "phrases": {" ".join(words): phrase for words, phrase in normalization.phrases().items()},
        "spellings": normalization.SPELLINGS,
        "names": normalization.NAMES,
        "question_words": sorted(normalization.QUESTION_WORDS),
        "short_shapes": sorted(normalization.SHORT_SHAPES),
        "long": normalization.LONG,
    }


def in_javascript(pattern: re.Pattern[str]) -> str:
    """The same regular expression there: only named groups are written in another way."""
    return pattern.pattern.replace("(?P<", "(?<")


def fingerprint(weights: str | Path | None) -> str:
    """SHA-256 of a weights file, None being the shipped one: which weights graphs were made from."""
    return hashlib.sha256(Path(weights or SHIPPED).read_bytes()).hexdigest()


def graphs_of(weights: str | Path | None, folder: Path, say: Callable[[str], None]) -> Path:
    """The folder, with the int8 graphs of these weights in it; exported now where it has others or none."""
    file = folder / "model.json"
    if not file.is_file() or read_json(file).get("weights") != fingerprint(weights):
        say(f"exporting the graphs to {folder}: about a minute, once")
        export(Omni.from_pretrained(weights), folder, weights=fingerprint(weights))
    return folder


def describe(omni: Omni, made: list[Graph], weights: str = "") -> dict[str, Any]:
    """What stands in model.json."""
    tokenizer, vocoder = omni.tokenizer, omni.codec.vocoder
    return {
        "format": "tinyomni onnx 1",
        "weights": weights,
        "config": asdict(omni.cfg),
        "thresholds": omni.thresholds,
        "style": omni.style,
        "characters": list(CHARS),
        "tokenizer": {"pieces": tokenizer.vocabulary(), "fingerprint": tokenizer.fingerprint},
        "voices": omni.cfg.talker.voices,
        "vocoder": {"n_fft": vocoder.n_fft, "hop": vocoder.hop},
        "inverse": [round(number, 6) for number in vocoder.inverse.flatten().tolist()],
        "reply": {
            "scratchpad": in_javascript(SCRATCHPAD),
            "sentence": in_javascript(SENTENCE),
            "describes": DESCRIBES,
            "heard_nothing": HEARD_NOTHING,
            "most_apart": MOST_APART,
        },
        "world": drawing(),
        "normalization": normalization_data(),
        "level": {"usual": list(levels.USUAL), "target": levels.TARGET, "loud": levels.LOUD},
        "graphs": {
            each.name: {
                "inputs": {name: list(value.shape) for name, value in each.inputs.items()},
                "dynamic": {name: list(axes) for name, axes in each.dynamic.items()},
                "outputs": list(each.outputs),
                "axes": axes_of(type(each.module).forward),
            }
            for each in made
        },
    }


def export(omni: Omni, folder: Path, quantize: bool = True, weights: str = "") -> dict[str, int]:
    """Write all graphs and model.json into a folder; the size of each of these files in bytes.

    `weights` is the `fingerprint` of the file that the model was loaded from, where it was loaded from one.

    Raises InputError where the extra `onnx` is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"export-onnx needs the extra `onnx`: pip install -e '.[onnx]' ({error})") from error
    folder.mkdir(parents=True, exist_ok=True)
    made = list(all_graphs(omni))
    for graph in made:
        model = to_onnx(graph)
        (folder / f"{graph.name}.onnx").write_bytes((int8(model) if quantize else model).SerializeToString())
    (folder / "model.json").write_text(json.dumps(describe(omni, made, weights), ensure_ascii=False), encoding="utf-8")
    names = [*(f"{graph.name}.onnx" for graph in made), "model.json"]
    return {name: (folder / name).stat().st_size for name in names}
