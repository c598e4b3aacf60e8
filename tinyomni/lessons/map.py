"""The map of the model, with "you are here": every lesson opens with it. Sizes come from the configuration."""

from dataclasses import dataclass

from matplotlib.figure import Figure

from tinyomni.config import TINY
from tinyomni.lessons.canvas import Sheet
from tinyomni.palette import AUDIO, IMAGE, MODEL, SPEECH, TEXT, Look


@dataclass(frozen=True)
class Part:
    """A part of the model: where it stands on the map, and what leaves it for 1 s of audio and a text of 9 tokens."""

    title: str
    shape: str
    x: float
    y: float
    look: Look
    width: float = 108


_D, _V, _A, _C = TINY.thinker.d_model, TINY.vision, TINY.audio, TINY.codec
_PER_SECOND = _A.sample_rate // _A.hop
PARTS = {
    "vit": Part("ViTTiny", f"CLS (1, {_V.vision_dim})", 190, 80, IMAGE),
    "mel": Part("MelFrontend", f"({_PER_SECOND}, {_A.n_mels})", 128, 150, AUDIO, 96),
    "ear": Part("AudioEncoderTiny", f"({_PER_SECOND // 4}, {_A.audio_dim})", 248, 150, AUDIO, 120),
    "tok": Part("BPETokenizer", "ids (9,)", 128, 220, TEXT, 96),
    "emb": Part("tok_emb", f"(9, {_D})", 248, 220, TEXT, 120),
    "seq": Part("one sequence", f"({1 + _PER_SECOND // 4 + 9}, {_D})", 398, 150, MODEL),
    "thinker": Part(f"ThinkerLM · {TINY.thinker.layers} blocks", f"→ ({TINY.thinker.vocab},) for each token", 550, 150,
                    MODEL, 138),
    "answer": Part("next token", "text, one by one", 702, 80, TEXT),
    "talker": Part("TalkerTiny", f"codes (frames, {_C.codebooks})", 702, 150, SPEECH),
    "codec": Part("SpeechCodec", f"(frames, {_C.codec_dim})", 702, 220, SPEECH),
    "vocoder": Part("Griffin-Lim", f"{_C.hop} samples a frame", 840, 220, SPEECH, 122),
    "loop": Part("training loop: loss → gradients → step", "", 476, 282, MODEL, 470),
}  # fmt: skip
HERE: dict[int, tuple[str, ...]] = {
    0: tuple(part for part in PARTS if part != "loop"), 1: ("tok", "emb"), 2: ("thinker",), 3: ("thinker",),
    4: ("thinker",), 5: ("thinker", "answer"), 6: ("vit",), 7: ("mel", "ear"), 8: ("vit", "ear", "emb", "seq"),
    9: ("codec",), 10: ("talker",), 11: ("vocoder",), 12: ("loop",), 13: ("thinker", "loop"), 14: ("vit", "loop"),
    15: ("mel", "ear", "loop"), 16: ("codec", "talker", "loop"), 17: ("seq", "thinker", "loop"),
    18: tuple(part for part in PARTS if part != "loop"), 19: ("thinker", "loop"),
    20: ("vit", "thinker"), 21: ("thinker", "loop"), 22: ("thinker", "answer", "loop"), 23: ("mel", "ear", "loop"),
}  # fmt: skip
FOCUS = {2: "its positions", 3: "its attention", 4: "all of it", 5: "its cache"}
"""What of a part a lesson is about, where several lessons share the part."""


def draw_map(lesson: int) -> tuple[Figure, str]:
    """The map with a lesson's parts filled, and its description. Raises KeyError for a number that is no lesson."""
    here = HERE[lesson]
    everything = len(here) >= len(PARTS) - 1
    place = "the whole model" if everything else describe(lesson)
    sheet = Sheet(920, 316, f"You are here: {place}")
    sheet.text(56, 80, "image", color=IMAGE.colour, weight="bold")
    sheet.text(56, 96, f"3 × {_V.image_size} × {_V.image_size}", size=7.5)
    sheet.text(40, 150, "audio", color=AUDIO.colour, weight="bold")
    sheet.text(40, 166, f"{_A.sample_rate:,} / s", size=7.5)
    sheet.text(40, 220, "text", color=TEXT.colour, weight="bold")
    sheet.text(880, 80, "text", color=TEXT.colour, weight="bold")
    sheet.text(840, 150, "speech", color=SPEECH.colour, weight="bold")
    for mark, x, y in ((IMAGE, 56, 62), (AUDIO, 40, 132), (TEXT, 40, 204), (TEXT, 880, 62), (SPEECH, 840, 132)):
        sheet.ax.plot([x], [y], mark.marker, color=mark.colour, markersize=7)
    edge = {name: (part.x - part.width / 2, part.x + part.width / 2) for name, part in PARTS.items()}
    sheet.arrow((92, 80), (edge["vit"][0] - 2, 80))
    sheet.arrow((66, 150), (edge["mel"][0] - 2, 150))
    sheet.arrow((66, 220), (edge["tok"][0] - 2, 220))
    for source, target in (("mel", "ear"), ("tok", "emb"), ("ear", "seq"), ("seq", "thinker"), ("thinker", "talker")):
        sheet.arrow((edge[source][1] + 1, PARTS[source].y), (edge[target][0] - 2, PARTS[target].y))
    sheet.text(328, 139, "proj_a", size=6.5)
    sheet.path((edge["vit"][1], 80), (398, 80), (398, 128))
    sheet.text(300, 71, f"proj_v  (1, {_D})", size=7)
    sheet.path((edge["emb"][1], 220), (398, 220), (398, 172))
    sheet.path((590, 128), (590, 80), (edge["answer"][0] - 2, 80))
    sheet.text(586, 100, "lm_head", size=7, ha="right")
    sheet.path((702, 58), (702, 44), (520, 44), (520, 127))
    sheet.text(522, 36, "and again, with the KV cache", size=7, ha="left")
    sheet.arrow((edge["answer"][1] + 1, 80), (862, 80))
    sheet.arrow((702, 103), (702, 127))
    sheet.arrow((702, 173), (702, 197))
    sheet.arrow((edge["codec"][1] + 1, 220), (edge["vocoder"][0] - 2, 220))
    sheet.arrow((840, 197), (840, 160))
    for name, part in PARTS.items():
        tall = 34 if name == "loop" else 44
        on = name in here
        sheet.box(part.x, part.y, part.width, tall, part.title, part.shape, part.look, strong=on and not everything,
                  faded=not on)  # fmt: skip
    alt = "Map of the model: image, audio and text become one sequence; the Thinker writes text, the Talker speaks it. "
    return sheet.figure, f"{alt}You are here: {place}."


def describe(lesson: int) -> str:
    """The names of a lesson's parts."""
    names = [PARTS[part].title.partition(" · ")[0].partition(":")[0] for part in HERE[lesson]]
    return ", ".join(names) + (f", {FOCUS[lesson]}" if lesson in FOCUS else "")
