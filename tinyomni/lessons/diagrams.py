"""The diagrams of the lessons. Each returns its figure and its description; sizes come from the configuration."""

import math
from collections.abc import Callable

from matplotlib.figure import Figure

from tinyomni.config import TINY
from tinyomni.lessons.canvas import Sheet
from tinyomni.palette import AUDIO, FAINT, IMAGE, MODEL, SPEECH, TEXT

Drawing = tuple[Figure, str]


def attention_head() -> Drawing:
    """Five tokens through one head."""
    tokens, dim = 5, TINY.thinker.d_model
    head = dim // TINY.thinker.heads
    sheet = Sheet(900, 270, "One head: compare, mask, weigh, average")
    sheet.cells(30, 88, tokens, 4, 22, TEXT)
    sheet.text(74, 212, f"x  ({tokens}, {dim})")
    for y, name in ((76, "q"), (144, "k"), (218, "v")):
        sheet.box(208, y, 64, 30, f"{name}_proj")
        sheet.arrow((122, 142), (174, y))
        sheet.cells(262, y - 22, tokens, 3, 9, MODEL, gap=1)
        sheet.text(276, y + 32, f"{name}  ({tokens}, {head})", size=7.5)
        sheet.arrow((241, y), (259, y))
    sheet.arrow((295, 76), (361, 104), "RoPE")
    sheet.arrow((295, 144), (361, 116), "RoPE", offset=(0, 12))
    sheet.box(398, 110, 72, 40, "q · kᵀ", f"/ √{head}")
    lower = [[column <= row for column in range(tokens)] for row in range(tokens)]
    sheet.arrow((435, 110), (468, 110))
    sheet.cells(472, 66, tokens, tokens, 18, MODEL, lower)
    sheet.text(517, 50, "causal mask", size=7.5)
    sheet.text(517, 168, f"scores  ({tokens} queries, {tokens} keys)", size=7.5)
    sheet.arrow((566, 110), (602, 110))
    sheet.box(640, 110, 76, 40, "softmax", "rows sum to 1")
    sheet.arrow((679, 110), (718, 133))
    sheet.path((295, 218), (728, 218), (728, 152))
    sheet.plus(728, 140, "×")
    sheet.text(520, 208, "the values are averaged with these weights", size=7.5)
    sheet.arrow((738, 140), (776, 140))
    sheet.cells(780, 102, tokens, 4, 16, TEXT)
    sheet.text(812, 196, f"out  ({tokens}, {head})")
    return sheet.figure, "An attention head: x becomes q, k and v; scores, causal mask, softmax, weighted average of v"


def decoder_block() -> Drawing:
    """Norm, attention, sum; norm, MLP, sum."""
    dim, inner = TINY.thinker.d_model, TINY.thinker.intermediate_size
    sheet = Sheet(900, 220, "A decoder block: both halves read the residual stream and add to it")
    line = 160
    sheet.arrow((30, line), (866, line), colour=TEXT.colour)
    sheet.text(40, line + 18, f"x (tokens, {dim})", ha="left", size=8)
    sheet.text(860, line + 18, f"the same shape (tokens, {dim})", ha="right", size=8)
    for left, names in (
        (90, (("RMSNorm", ""), ("attention", f"{TINY.thinker.heads} heads, RoPE, causal"))),
        (480, (("RMSNorm", ""), ("SwiGLU", f"{dim} → {inner} → {dim}"))),
    ):
        sheet.path((left, line), (left, 85), (left + 26, 85), colour=FAINT)
        sheet.box(left + 68, 85, 80, 40, names[0][0])
        sheet.arrow((left + 109, 85), (left + 138, 85))
        sheet.box(left + 215, 85, 150, 40, *names[1])
        sheet.path((left + 291, 85), (left + 330, 85), (left + 330, line - 11), colour=FAINT)
        sheet.plus(left + 330, line)
    sheet.text(left + 338, 118, "added", size=7.5, ha="left")
    sheet.text(428, 118, "added", size=7.5, ha="left")
    return sheet.figure, "A decoder block: norm and attention are added to x, then norm and MLP are added"


def kv_cache() -> Drawing:
    """Three moments: the prompt, and two new tokens."""
    sheet = Sheet(900, 225, "The KV cache fills: each new token computes one column, and reads all before it")
    for number, (title, old, new) in enumerate(
        (("prefill: 5 prompt tokens at once", 0, 5), ("decode: token 6", 5, 1), ("decode: token 7", 6, 1))
    ):
        left = 30 + number * 295
        sheet.text(left, 58, title, ha="left", weight="bold", size=8.5)
        for row, name in enumerate("KV"):
            y = 78 + row * 52
            sheet.text(left, y + 18, name, ha="left", weight="bold")
            sheet.cells(left + 18, y, 2, old, 20, MODEL) if old else None
            sheet.cells(left + 18 + old * 20, y, 2, new, 20, TEXT)
            sheet.cells(left + 18 + (old + new) * 20, y, 2, 10 - old - new, 20, MODEL, [[False] * 10] * 2)
        read = "nothing to read yet" if not old else f"{old} columns are read"
        sheet.text(left + 18, 192, f"{new} computed · {read}", ha="left", size=8)
    sheet.text(30, 212, "coloured: computed now   ·   grey: kept   ·   empty: still free", ha="left", size=7.5)
    return sheet.figure, "The KV cache after the prompt and after two new tokens: old columns kept, one new column each"


def patches_to_cls() -> Drawing:
    """The image encoder."""
    vision = TINY.vision
    side, count, dim = vision.side, vision.side**2, vision.vision_dim
    sheet = Sheet(900, 235, f"{count} patches and one CLS token; only CLS goes on to the Thinker")
    sheet.cells(30, 70, 6, 6, 18, IMAGE)
    sheet.text(83, 198, f"{side} × {side} patches of\n{vision.patch} × {vision.patch} × 3 = {vision.patch**2 * 3}",
               size=8)  # fmt: skip
    sheet.arrow((142, 124), (178, 124))
    sheet.box(228, 124, 96, 44, "proj", f"{vision.patch**2 * 3} → {dim}", IMAGE)
    sheet.arrow((277, 124), (312, 124))
    for place, label in enumerate(("CLS", "1", "2", "3", "…", str(count))):
        look = MODEL if not place else IMAGE
        sheet.token(338 + place * 36, 124, label, look, 32)
    sheet.text(430, 166, f"+ learned positions: ({count + 1}, {dim})", size=8)
    sheet.arrow((537, 124), (572, 124))
    sheet.box(632, 124, 118, 64, f"{vision.layers} encoder blocks", "full attention", IMAGE)
    sheet.arrow((692, 108), (738, 82))
    sheet.token(764, 78, "CLS", MODEL)
    sheet.arrow((785, 78), (812, 78))
    sheet.box(850, 78, 72, 40, "proj_v", f"→ {TINY.thinker.d_model}")
    sheet.arrow((692, 140), (738, 164))
    sheet.text(744, 164, f"feature grid ({count}, {dim}):\nset aside", ha="left", size=8, color="#666666")
    return (
        sheet.figure,
        "Patches of an image, CLS in front, four encoder blocks; CLS goes through proj_v to the Thinker",
    )


def audio_tokens() -> Drawing:
    """Waveform to tokens."""
    audio = TINY.audio
    frames = audio.sample_rate // audio.hop
    sheet = Sheet(900, 225, f"One second: {audio.sample_rate:,} samples → {frames} mel frames → {frames // 4} tokens")
    xs = [30 + n * 1.0 for n in range(150)]
    ys = [110 - 34 * math.sin(n / 4) * math.exp(-(((n - 75) / 38) ** 2)) for n in range(150)]
    sheet.ax.plot(xs, ys, color=AUDIO.colour, linewidth=1.2)
    sheet.text(105, 170, f"waveform\n({audio.sample_rate:,},)", size=8)
    sheet.arrow((186, 110), (222, 110))
    sheet.box(278, 110, 104, 46, "MelFrontend", f"hop {audio.hop}, {audio.n_mels} bands", AUDIO)
    sheet.arrow((331, 110), (362, 110))
    sheet.cells(366, 74, 6, 12, 12, AUDIO, gap=1)
    sheet.text(438, 170, f"log-mel\n({frames}, {audio.n_mels})", size=8)
    sheet.arrow((514, 110), (542, 110))
    sheet.box(595, 110, 100, 46, "2 convolutions", "stride 2 each", AUDIO)
    sheet.arrow((646, 110), (674, 110))
    for place in range(3):
        sheet.token(698 + place * 36, 110, ("1", "…", str(frames // 4))[place], AUDIO, 32)
    sheet.text(734, 170, f"tokens\n({frames // 4}, {audio.audio_dim})", size=8)
    sheet.arrow((790, 110), (814, 110))
    sheet.box(852, 110, 72, 46, f"{audio.layers} blocks", "full attention", AUDIO)
    sheet.text(852, 170, "proj_a, or\ncharacters", size=8)
    return sheet.figure, "Waveform, mel spectrogram, two convolutions of stride 2, audio tokens, encoder blocks"


def rvq_stages() -> Drawing:
    """Two codebooks, one after the other."""
    codec = TINY.codec
    sheet = Sheet(900, 235, "Two stages: the second codebook describes what the first left over")
    sheet.box(84, 110, 108, 46, "latent", f"({codec.codec_dim},) → ({codec.code_dim},)", SPEECH)
    sheet.arrow((139, 110), (200, 110))
    sheet.text(155, 100, "x", size=8)
    for number, (left, name) in enumerate(((270, "base"), (600, "residual"))):
        sheet.box(left, 110, 138, 46, f"codebook {number + 1}", f"nearest of {codec.codebook_size}", SPEECH)
        sheet.arrow((left, 134), (left, 172))
        sheet.token(left, 190, ("45", "12")[number], SPEECH, 44, 34)
        sheet.text(left + 30, 190, f"{name} code", ha="left", size=8)
    sheet.arrow((340, 110), (424, 110), "its entry")
    sheet.plus(434, 110, "−")
    sheet.path((170, 110), (170, 62), (434, 62), (434, 99))
    sheet.text(300, 54, "x again", size=7.5)
    sheet.arrow((444, 110), (530, 110), "the residual")
    sheet.arrow((670, 110), (756, 110), "its entry")
    sheet.plus(766, 110, "+")
    sheet.path((382, 110), (382, 84), (766, 84), (766, 99), colour=FAINT)
    sheet.text(560, 77, "first entry", size=7.5)
    sheet.arrow((776, 110), (812, 110))
    sheet.text(852, 110, "x, nearly:\nthe sum", size=8.5)
    return sheet.figure, "Residual vector quantization: the nearest entry is subtracted, the rest is quantized again"


def talker_heads() -> Drawing:
    """What goes into the Talker, and its outputs."""
    talker = TINY.talker
    sheet = Sheet(900, 255, "The Talker reads the text and its own codes so far, and predicts two codes a frame")
    for place, label in enumerate(("text", "text", "text")):
        sheet.token(54 + place * 44, 150, label, TEXT)
    for place, label in enumerate(("start", "t=1", "t=2")):
        sheet.token(202 + place * 44, 150, label, SPEECH)
    sheet.text(98, 188, "prefix", size=8)
    sheet.text(246, 192, "each frame: base embedding\n+ residual embedding", size=8)
    sheet.arrow((314, 150), (350, 150))
    sheet.box(430, 150, 152, 70, f"{talker.layers} decoder blocks", f"causal, width {talker.talker_dim}", SPEECH)
    for y, title, shape in (
        (80, "base head", f"→ {talker.codebook_size} logits: base code"),
        (150, "residual head", f"→ {talker.codebook_size} logits: residual code"),
        (220, "end", "→ was it over before?"),
    ):
        sheet.arrow((507, 150), (566, y))
        sheet.box(648, y, 160, 44, title, shape, SPEECH)
    sheet.path((729, 80), (770, 80), (770, 44), (246, 44), (246, 124), colour=FAINT, dashed=True)
    sheet.text(400, 54, "the two codes are the next frame's input", size=7.5)
    sheet.ax.plot([770, 770], [80, 150], color=FAINT, linewidth=1.3, linestyle="--")
    sheet.ax.plot([729, 770], [150, 150], color=FAINT, linewidth=1.3, linestyle="--")
    return (
        sheet.figure,
        "The Talker: text and previous code frames in; a base head, a residual head, an end output",
    )


def griffin_lim() -> Drawing:
    """The loop."""
    sheet = Sheet(900, 230, "Griffin-Lim: keep the wanted magnitude, take the phase from the signal, repeat")
    sheet.box(110, 120, 132, 52, "magnitude |S|", "known, from the mel", SPEECH)
    sheet.arrow((177, 120), (236, 120))
    sheet.plus(248, 120, "×")
    sheet.arrow((258, 120), (316, 120))
    sheet.box(376, 120, 116, 48, "inverse STFT", "", SPEECH)
    sheet.arrow((435, 120), (486, 120))
    xs = [492 + n for n in range(90)]
    sheet.ax.plot(xs, [120 - 24 * math.sin(n / 4) for n in range(90)], color=SPEECH.colour, linewidth=1.3)
    sheet.text(537, 160, "waveform", size=8)
    sheet.arrow((588, 120), (640, 120))
    sheet.box(690, 120, 96, 48, "STFT", "", SPEECH)
    sheet.path((690, 145), (690, 198), (248, 198), (248, 131))
    sheet.box(470, 198, 176, 30, "keep its phase only", "", SPEECH)
    sheet.text(248, 76, "first time:\nrandom phase", size=8)
    sheet.arrow((248, 94), (248, 109), dashed=True)
    sheet.text(760, 120, "its magnitude differs\nfrom |S|: the less,\nthe better", size=8, ha="left")
    return sheet.figure, "Griffin-Lim's loop: magnitude times phase, inverse STFT, STFT, keep the phase, again"


def training_step() -> Drawing:
    """One step of the loop."""
    sheet = Sheet(900, 200, "One training step, and the two places where it refuses to go on")
    steps = ("batch", "forward", "loss", "backward", "clip", "optimizer\nstep")
    for place, name in enumerate(steps):
        x = 78 + place * 148
        sheet.box(x, 100, 96, 48, name, "", TEXT if not place else MODEL)
        if place:
            sheet.arrow((x - 99, 100), (x - 50, 100))
    for place, text in ((2, "NaN or out of range?\nskip the batch"), (4, "norm too large, or NaN?\nskip the step")):
        x = 78 + place * 148
        sheet.arrow((x, 125), (x, 150), dashed=True)
        sheet.text(x, 170, text, size=8)
    sheet.path((818, 75), (818, 54), (226, 54), (226, 74), colour=FAINT)
    sheet.text(522, 45, "zero the gradients, and again with new weights and the next batch", size=7.5)
    return (
        sheet.figure,
        "A training step: batch, forward, loss, backward, clip, optimizer step; bad losses are skipped",
    )


def fused_sequence() -> Drawing:
    """The tokens of all modalities in a row."""
    per_second = TINY.audio.sample_rate // TINY.audio.hop // 4
    total, limit = 1 + per_second + 9, TINY.thinker.ctx_len
    sheet = Sheet(900, 200, f"1 image + {per_second} audio + 9 text = {total} tokens of width {TINY.thinker.d_model}")
    x = 50.0
    for label, look in (
        *(("CLS", IMAGE),), *((text, AUDIO) for text in ("1", "2", "3", "…", str(per_second))),
        *((text, TEXT) for text in ("BOS", "What", "do", "you", "…", "?")),
    ):  # fmt: skip
        sheet.token(x, 105, label, look, 54)
        x += 66 if label in ("CLS", str(per_second)) else 58
    for x, text, look in ((50, "image", IMAGE), (232, "audio", AUDIO), (570, "text", TEXT)):
        sheet.text(x, 66, text, weight="bold", color=look.colour)
    sheet.text(16, 160, f"At most {limit} tokens in all, of which at most {TINY.audio_limit} audio. "
               "The text is last, so that the answer follows it.", ha="left", size=8.5)  # fmt: skip
    return sheet.figure, "One sequence: an image token, audio tokens, then BOS and the text tokens"


DIAGRAMS: dict[str, Callable[[], Drawing]] = {
    draw.__name__: draw
    for draw in (
        attention_head, decoder_block, kv_cache, patches_to_cls, audio_tokens, rvq_stages, talker_heads, griffin_lim,
        training_step, fused_sequence,
    )
}  # fmt: skip
