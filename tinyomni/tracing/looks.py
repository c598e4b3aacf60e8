"""How calls are drawn in tables and diagrams: a colour and a mark for what they work on, a word for their kind.

Both are read from names of classes, functions and modules, so they are there for any model, and they are a guess.
"""

import re
from dataclasses import dataclass

from tinyomni.tracing.records import Record, Value
from tinyomni.tracing.rows import Row


@dataclass(frozen=True)
class Modality:
    """One of the things that a model works on. The colours are Okabe & Ito's, which colour-blind readers tell apart."""

    name: str
    colour: str
    mark: str
    words: frozenset[str]


def _modality(name: str, colour: str, mark: str, words: str) -> Modality:
    return Modality(name, colour, mark, frozenset(words.split()))


TEXT = _modality("text", "#0072b2", "●", "text token tokens tokenize tokenizer language lm gpt bert thinker prompt")
IMAGE = _modality("image", "#d55e00", "■", "image images vision visual vit pixel pixels patch patches patchify")
AUDIO = _modality("audio", "#009e73", "▲", "audio mel spectrogram stft whisper ctc asr recording")
SPEECH = _modality("speech", "#cc79a7", "◆", "speech speak talker codec codes rvq vocoder tts")
MODALITIES = (SPEECH, IMAGE, AUDIO, TEXT)  # in this order: a Talker's text embedding is part of its speech

KINDS = {
    "attention": ("#e69f00", r"attention|attn|attend|rope|heads"),
    "norm": ("#999999", r"norm"),
    "MLP": ("#56b4e9", r"mlp|glu|feed_?forward|ffn|expert|moe"),
    "convolution": ("#b8a800", r"conv(?-i:(?!1D))|downsample|patchify"),
    "embedding": ("#7a68c4", r"embed|wte|wpe"),
    "linear": ("#56b4e9", r"linear|proj|head|(?-i:Conv1D)"),  # Conv1D: what transformers calls GPT-2's linear layer
    "block": ("#777777", r"block|layer"),
}
"""A kind of module or function: its colour, and what its name holds."""

WHOLE = re.compile(r"Model$|For[A-Z]\w*$")  # GPT2LMHeadModel, ConvNextForImageClassification: a whole model has no kind
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def modality_of(record: Record, above: Modality | None = None) -> Modality | None:
    """What a call works on, by the words of its name, else of its module's path; else what its caller works on."""
    for text in (record.call, record.path):
        words = {word.lower() for word in WORD.findall(text)}
        found = [modality for modality in MODALITIES if words & modality.words]
        if found:
            return found[0] if len(found) < 3 else None  # three at once are fused there
    return above


def modalities(rows: list[Row], above: Modality | None = None) -> dict[int, Modality | None]:
    """What each row works on, by the id of its last call; for all rows and those below them."""
    found: dict[int, Modality | None] = {}
    for row in rows:
        found[row.last.id] = here = modality_of(row.last, above)
        found |= modalities(row.below, here)
    return found


def kind_of(record: Record) -> str:
    """The kind of a call by the name of its class or function, else of its module; "" if neither says it."""
    name = record.call.removesuffix(".forward")
    for text in (name, record.path.rpartition(".")[2]) if not WHOLE.search(name) else ():
        for kind, (_, pattern) in KINDS.items():
            if re.search(pattern, text, re.IGNORECASE):
                return kind
    return ""


def values_in(row: Row) -> int:
    """How many numbers the outputs of a row's last call hold; a size that is no number counts as one."""
    return sum(_count(value) for value in row.last.outputs if value.dtype)


def _count(value: Value) -> int:
    total = 1
    for size in value.shape:
        total *= size if isinstance(size, int) else 1
    return total


def tint(colour: str) -> str:
    """The colour mixed with white, for areas with text on them."""
    channels = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(255 - 0.22 * (255 - channel)):02x}" for channel in channels)
