"""Lesson 07, hearing: its oracles are torch's centred transform, real convolutions, and CTC's sum over all ways."""

import math
from collections.abc import Callable
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from tinyomni.grade.exercise import exercise

NOTEBOOK, TITLE = "07_hearing", "Hearing"

WINDOWS = "2. How much of each frequency?"
COUNT = "3. 94, 100 or 101?"
MEL = "4. The mel scale: bands as the ear has them"
SWAPPED = "5. A bug that keeps the shape: the axes swapped"
STRIDE = "6. Two convolutions with stride 2"
RESHAPE = "8. Another bug that keeps the shape: `reshape` without turning"
PADDING = "9. A batch of recordings: padding that must not be heard"
LETTERS = "10. From tokens to letters: who says when?"
LOSS = "11. The loss: add up all the ways"


# ---- frames ---------------------------------------------------------------------------------------------------------


@exercise("Cut a sound into frames", minutes=15, level=2)
def frame(wav: Float[Tensor, "batch samples"], size: int, hop: int) -> Float[Tensor, "batch mel_frames window"]:
    """Sample by sample; past the ends of the sound there is silence."""
    frames = wav.new_zeros(len(wav), wav.shape[1] // hop, size)
    for b, t, i in torch.cartesian_prod(*map(torch.arange, frames.shape)).tolist():
        place = t * hop + i - size // 2
        if 0 <= place < wav.shape[1]:
            frames[b, t, i] = wav[b, place]
    return frames


@frame.cases
def _(rng):
    yield "all sizes different", {"wav": rng.randn(2, 23), "size": 8, "hop": 5}
    yield "a whole number of hops", {"wav": rng.randn(2, 12), "size": 6, "hop": 4}
    yield "batch 1, one frame", {"wav": rng.randn(1, 5), "size": 4, "hop": 3}
    yield "shorter than half a window", {"wav": rng.randn(1, 2), "size": 8, "hop": 2}
    yield "as long as wide", {"wav": rng.randn(1, 16), "size": 4, "hop": 4}


def framed(wav, size, hop, *, before=None, after=None, last=None, mode="constant"):
    """Fill up, then slide, with one thing to go wrong at a time."""
    before, after = (size // 2 if each is None else each for each in (before, after))
    padded = F.pad(wav, (before, after), mode=mode)
    return padded.unfold(1, size, hop)[:, : (wav.shape[1] // hop if last is None else last)]


@frame.mutant("the last frame, centred where the sound is already over, is not left out: 101 instead of 100", COUNT)
def _(wav, size, hop):
    return framed(wav, size, hop, last=wav.shape[1])


@frame.mutant("frame t begins at sample t · hop instead of being centred on it", COUNT)
def _(wav, size, hop):
    return framed(wav, size, hop, before=0, after=size)


@frame.mutant("only windows that lie wholly inside the sound are taken", COUNT)
def _(wav, size, hop):
    return framed(wav, max(min(size, wav.shape[1]), 1), hop, before=0, after=0)


@frame.mutant("the ends are filled up with a mirror image instead of silence: short sounds cannot be mirrored", COUNT)
def _(wav, size, hop):
    return framed(wav, size, hop, mode="reflect")


@frame.mutant("the ends are filled up with the first and the last sample instead of silence", COUNT)
def _(wav, size, hop):
    return framed(wav, size, hop, mode="replicate")


@frame.mutant("all the silence is put in front: frame t ends at sample t · hop", COUNT)
def _(wav, size, hop):
    return framed(wav, size, hop, before=size, after=0)


@frame.mutant("the centre is off by one sample", COUNT)
def _(wav, size, hop):
    return framed(wav, size, hop, before=size // 2 - 1, after=size // 2 + 1)


@frame.mutant("frames stand in columns: (batch, window, mel_frames)", SWAPPED)
def _(wav, size, hop):
    return framed(wav, size, hop).mT


@frame.mutant("each window moves on by its own size instead of by `hop`", WINDOWS)
def _(wav, size, hop):
    return framed(wav, size, size)


@frame.alternative
def _(wav, size, hop):
    return framed(wav, size, hop)


@frame.alternative
def _(wav, size, hop):
    place = torch.arange(wav.shape[1] // hop)[:, None] * hop + torch.arange(size) - size // 2
    inside = (place >= 0) & (place < wav.shape[1])
    return wav[:, place.clamp(0, wav.shape[1] - 1)] * inside


# ---- log-mel --------------------------------------------------------------------------------------------------------


@exercise("The log-mel spectrogram", minutes=20, level=3)
def log_mel(
    wav: Float[Tensor, "batch samples"],
    filters: Float[Tensor, "frequencies n_mels"],
    size: int,
    hop: int,
    floor: float = 1e-5,
) -> Float[Tensor, "batch mel_frames n_mels"]:
    """torch's centred transform without its last frame, then one band at a time."""
    spectrum = torch.stft(
        wav, size, hop, window=torch.hann_window(size, dtype=wav.dtype), pad_mode="constant", return_complex=True
    ).abs()
    out = wav.new_zeros(len(wav), wav.shape[1] // hop, filters.shape[1])
    for b, t, m in torch.cartesian_prod(*map(torch.arange, out.shape)).tolist():
        loud = sum(float(spectrum[b, f, t] * filters[f, m]) for f in range(len(filters)))
        out[b, t, m] = math.log(max(loud, floor))
    return out


@log_mel.cases
def _(rng):
    yield "all sizes different", {
        "wav": rng.randn(2, 23), "filters": rng.randn(5, 4).abs() / 4, "size": 8, "hop": 5, "floor": 1.0
    }  # fmt: skip
    yield "the usual floor", {"wav": rng.randn(2, 16), "filters": rng.randn(4, 3).abs(), "size": 6, "hop": 4}
    yield "batch 1, one frame", {"wav": rng.randn(1, 5), "filters": rng.randn(4, 2).abs(), "size": 6, "hop": 5}
    yield "silence", {"wav": torch.zeros(1, 8), "filters": rng.randn(3, 2).abs(), "size": 4, "hop": 4}
    yield "as many frames as bands", {"wav": rng.randn(1, 12), "filters": rng.randn(3, 3).abs(), "size": 4, "hop": 4}


def spectrogram(wav, filters, size, hop, floor=1e-5, *, window=None, length=torch.abs, log=torch.log,
                above=lambda bands, floor: bands.clamp(min=floor), **ends):  # fmt: skip
    """All of it, with one thing to go wrong at a time."""
    window = torch.hann_window(size, dtype=wav.dtype) if window is None else window(size).to(wav.dtype)
    bands = length(torch.fft.rfft(framed(wav, size, hop, **ends) * window)) @ filters
    return log(above(bands, floor))


for cause, section, fault in (
    ("powers are added up instead of magnitudes: each length is squared", MEL, {"length": lambda z: z.abs() ** 2}),
    ("only the cosine part is looked at: loudness then depends on where the wave starts", WINDOWS,
     {"length": lambda z: z.real.abs()}),
    ("the windows are cut hard, not faded in and out: each cut clicks", WINDOWS, {"window": torch.ones}),
    ("the window is symmetric: `hann_window` is meant to repeat, so that its last value is not its first", WINDOWS,
     {"window": lambda size: torch.hann_window(size, periodic=False)}),
    ("the logarithm is to base 10", MEL, {"log": torch.log10}),
    ("the values are decibels, 20 times the logarithm to base 10", MEL, {"log": lambda bands: 20 * bands.log10()}),
    ("the logarithm is forgotten", MEL, {"log": lambda bands: bands}),
    ("the floor is added instead of being the least value", MEL, {"above": torch.add}),
    ("silence has no floor: its logarithm is −∞", MEL, {"above": lambda bands, floor: bands}),
    ("the floor that was handed over is not used", MEL, {"above": lambda bands, floor: bands.clamp(min=1e-5)}),
    ("the floor is applied to the logarithm: nothing is below it any more", MEL,
     {"above": lambda bands, floor: bands.clamp(min=math.exp(floor))}),
    ("frame t begins at sample t · hop instead of being centred on it", COUNT, {"before": 0, "after": 64}),
):  # fmt: skip
    log_mel.mutant(cause, section)(lambda *inputs, fault=fault, **more: spectrogram(*inputs, **more, **fault))


@log_mel.mutant("the logarithm is taken of each frequency, before the bands add them up", MEL)
def _(wav, filters, size, hop, floor=1e-5):
    return spectrogram(wav, torch.eye(len(filters)).to(wav), size, hop, floor) @ filters


@log_mel.mutant("bands come before frames: (batch, n_mels, mel_frames)", SWAPPED)
def _(*inputs, **more):
    return spectrogram(*inputs, **more).mT


@log_mel.mutant("the last frame, centred where the sound is already over, is not left out: 101 instead of 100", COUNT)
def _(wav, filters, size, hop, floor=1e-5):
    return spectrogram(wav, filters, size, hop, floor, last=wav.shape[1])


@log_mel.alternative
def _(*inputs, **more):
    return spectrogram(*inputs, **more)


@log_mel.alternative
def _(wav, filters, size, hop, floor=1e-5):
    place = torch.arange(size, dtype=wav.dtype)
    angle = 2 * math.pi / size * torch.outer(place, place[: size // 2 + 1])
    faded = framed(wav, size, hop) * (0.5 - 0.5 * (2 * math.pi * place / size).cos())
    magnitudes = ((faded @ angle.cos()) ** 2 + (faded @ angle.sin()) ** 2).sqrt()
    return torch.einsum("btf,fm->btm", magnitudes, filters).clamp(min=floor).log()


class Ear(nn.Module):
    """The library's front end with the learner's transform; its filters and sizes stay."""

    def __init__(self, answer: Callable[..., Any], old: nn.Module) -> None:
        super().__init__()
        self.answer, self.old = answer, old

    def forward(self, wav):
        old: Any = self.old
        return self.answer(wav.float(), old.filters, old.n_fft, old.hop)


log_mel.replaces("tinyomni.audio.MelFrontend", Ear)


# ---- lengths --------------------------------------------------------------------------------------------------------


@exercise("How long is the result?", minutes=10, level=1)
def conv_length(length: int, layers: list[tuple[int, int, int]]) -> int:
    """By real convolutions, over zeros."""
    x = torch.zeros(1, 1, length)
    for kernel, stride, padding in layers:
        x = F.conv1d(x, torch.zeros(1, 1, kernel), stride=stride, padding=padding)
    return x.shape[2]


@conv_length.cases
def _(rng):
    ear = [(3, 2, 1), (3, 2, 1)]
    for frames in (97, 100, 101, 1):
        yield f"the ear, {frames} frames", {"length": frames, "layers": ear}
    yield "no layer", {"length": 9, "layers": []}
    yield "no padding", {"length": 16, "layers": [(4, 3, 0)]}
    yield "patches", {"length": 224, "layers": [(16, 16, 0)]}
    yield "the two orders differ", {"length": 23, "layers": [(5, 3, 0), (2, 1, 2)]}
    yield "a wide window", {"length": 30, "layers": [(10, 5, 3), (8, 4, 2), (2, 2, 1)]}


def lengths(length, layers, *, step=lambda n, k, s, p: (n + 2 * p - k) // s + 1):
    """Layer after layer."""
    for layer in layers:
        length = step(length, *layer)
    return length


for cause, step in (
    ("the stride alone is divided by, rounding down: window and padding are forgotten", lambda n, k, s, p: n // s),
    ("the stride alone is divided by, rounding up: right for the ear, not elsewhere", lambda n, k, s, p: -(-n // s)),
    ("the + 1 is missing: a fence of n sections has n + 1 posts", lambda n, k, s, p: (n + 2 * p - k) // s),
    ("padding is counted once: it stands at both ends", lambda n, k, s, p: (n + p - k) // s + 1),
    ("padding is left out", lambda n, k, s, p: (n - k) // s + 1),
    ("it is rounded up: a window that does not fit is counted", lambda n, k, s, p: -((k - n - 2 * p) // s) + 1),
    ("it is rounded to the nearest instead of down", lambda n, k, s, p: round((n + 2 * p - k) / s) + 1),
    ("kernel and stride have changed places", lambda n, k, s, p: (n + 2 * p - s) // k + 1),
    ("the 1 is added before dividing", lambda n, k, s, p: (n + 2 * p - k + 1) // s),
):  # fmt: skip
    conv_length.mutant(cause, STRIDE)(lambda length, layers, step=step: lengths(length, layers, step=step))


@conv_length.mutant("only the first layer is counted", STRIDE)
def _(length, layers):
    return lengths(length, layers[:1])


@conv_length.mutant("the layers are walked through from the last to the first", STRIDE)
def _(length, layers):
    return lengths(length, layers[::-1])


@conv_length.alternative
def _(length, layers):
    return lengths(length, layers)


@conv_length.alternative
def _(length, layers):
    for kernel, stride, padding in layers:
        length = len(range(0, length + 2 * padding - kernel + 1, stride))
    return length


@conv_length.replaces("tinyomni.audio.audio_token_count")
def _(answer):
    return lambda mel_frames: answer(mel_frames, [(3, 2, 1), (3, 2, 1)])


# ---- one vector for each moment -------------------------------------------------------------------------------------


@exercise("All that is known of one moment", minutes=5, level=1)
def flatten_bands(
    x: Float[Tensor, "batch channels audio_tokens bands"],
) -> Float[Tensor, "batch audio_tokens dim"]:
    """One moment at a time."""
    moments = [torch.cat([x[:, c, t] for c in range(x.shape[1])], dim=-1) for t in range(x.shape[2])]
    return torch.stack(moments, dim=1)


@flatten_bands.cases
def _(rng):
    yield "all sizes different", {"x": rng.randn(2, 3, 5, 4)}
    yield "batch 1, one moment", {"x": rng.randn(1, 2, 1, 3)}
    yield "as many channels as moments", {"x": rng.randn(1, 3, 3, 2)}
    yield "one band", {"x": rng.randn(2, 3, 2, 1)}


@flatten_bands.mutant("`reshape` alone goes straight to the shape that is due, and mixes times", RESHAPE)
def _(x):
    return x.reshape(x.shape[0], x.shape[2], -1)


@flatten_bands.mutant("the bands stand before the channels: the numbers meet the wrong weights", RESHAPE)
def _(x):
    return rearrange(x, "batch channels audio_tokens bands -> batch audio_tokens (bands channels)")


@flatten_bands.mutant("the channels are added up instead of standing side by side", RESHAPE)
def _(x):
    return x.sum(dim=1)


@flatten_bands.mutant("moments are joined to the channels: there is no time axis left", RESHAPE)
def _(x):
    return x.flatten(1, 2)


@flatten_bands.mutant("bands, not moments, become the tokens", SWAPPED)
def _(x):
    return rearrange(x, "batch channels audio_tokens bands -> batch bands (channels audio_tokens)")


@flatten_bands.alternative
def _(x):
    return x.transpose(1, 2).flatten(2)


@flatten_bands.alternative
def _(x):
    return torch.einsum("bctf->btcf", x).reshape(x.shape[0], x.shape[2], x.shape[1] * x.shape[3])


@flatten_bands.replaces("tinyomni.audio.AudioEncoderTiny.flatten")
def _(answer):
    return lambda self, x: answer(x)


# ---- collapse -------------------------------------------------------------------------------------------------------


@exercise("Collapse a CTC path", minutes=15, level=2)
def ctc_collapse(
    path: Int[Tensor, "batch audio_tokens"], lengths: Int[Tensor, "batch"], blank: int = 0
) -> list[list[int]]:
    """Groups of equal neighbours, one number each; then without blanks."""
    rows = [row[:length] for row, length in zip(path.tolist(), lengths.tolist(), strict=True)]
    return [[number for number, _ in groupby(row) if number != blank] for row in rows]


@ctc_collapse.cases
def _(rng):
    yield "two recordings, one with padding", {
        "path": torch.tensor([[0, 3, 3, 0, 3, 5, 5], [4, 4, 0, 2, 6, 6, 1]]), "lengths": torch.tensor([7, 4])
    }  # fmt: skip
    yield "batch 1, two equal letters", {"path": torch.tensor([[7, 5, 3, 0, 3, 4]]), "lengths": torch.tensor([6])}
    yield "a letter comes back", {"path": torch.tensor([[1, 2, 2, 1, 0, 2]]), "lengths": torch.tensor([6])}
    yield "nothing but blanks", {"path": torch.tensor([[0, 0, 0], [0, 2, 2]]), "lengths": torch.tensor([3, 2])}
    yield "another blank", {"path": torch.tensor([[9, 2, 9, 2, 0, 0]]), "lengths": torch.tensor([6]), "blank": 9}
    yield "no sound at all", {"path": torch.tensor([[3, 3]]), "lengths": torch.tensor([0])}


def collapsed(path, lengths, blank=0, *, row=lambda row, blank: [n for n, _ in groupby(row) if n != blank]):
    """Row by row."""
    return [row(each[:n], blank) for each, n in zip(path.tolist(), lengths.tolist(), strict=True)]


for cause, wrong_row in (
    ("blanks go first and then repeats become one: “hel-lo” is “helo”", lambda row, blank: [
        n for n, _ in groupby(n for n in row if n != blank)]),
    ("repeats do not become one", lambda row, blank: [n for n in row if n != blank]),
    ("the blanks are still in it", lambda row, blank: [n for n, _ in groupby(row)]),
    ("each letter is kept once in the whole text, not once in a run", lambda row, blank: list(
        dict.fromkeys(n for n in row if n != blank))),
    ("letters stand in the order of their numbers, not of the path", lambda row, blank: sorted(
        n for n, _ in groupby(row) if n != blank)),
    ("letters that come without repeats are taken for noise", lambda row, blank: [
        n for n, run in groupby(row) if n != blank and len(list(run)) > 1]),
    ("the number 0 is taken for the blank, whatever `blank` says", lambda row, blank: [
        n for n, _ in groupby(row) if n != 0]),
):  # fmt: skip
    ctc_collapse.mutant(cause, LETTERS)(lambda *inputs, row=wrong_row, **more: collapsed(*inputs, **more, row=row))


@ctc_collapse.mutant("`lengths` is not used: the padding is written down too", PADDING)
def _(path, lengths, blank=0):
    return collapsed(path, torch.full_like(lengths, path.shape[1]), blank)


@ctc_collapse.mutant("`lengths` is taken to count mel frames: a quarter of the tokens is read", STRIDE)
def _(path, lengths, blank=0):
    return collapsed(path, (lengths + 3) // 4, blank)


@ctc_collapse.alternative
def _(*inputs, **more):
    return collapsed(*inputs, **more)


@ctc_collapse.alternative
def _(path, lengths, blank=0):
    kept = [row[:length].unique_consecutive() for row, length in zip(path, lengths, strict=True)]
    return [row[row != blank].tolist() for row in kept]


@ctc_collapse.replaces("tinyomni.audio.ctc_greedy")
def _(answer):
    from tinyomni.audio import CHARS

    def greedy(log_probs, lengths=None):
        best = log_probs.argmax(dim=-1)
        lengths = torch.full((len(best),), best.shape[1]) if lengths is None else lengths
        return ["".join(CHARS[number - 1] for number in row) for row in answer(best, lengths)]

    return greedy


# ---- loss -----------------------------------------------------------------------------------------------------------


@exercise("The CTC loss of a batch", minutes=20, level=3)
def speech_loss(
    scores: Float[Tensor, "batch audio_tokens characters"], tokens: Int[Tensor, "batch"], texts: list[list[int]]
) -> Float[Tensor, ""]:
    """All ways added up, as in the lesson: `ways[s]` are those that now stand at place s of the line with blanks."""
    nats = 0.0
    for row, count, text in zip(scores.double(), tokens.tolist(), texts, strict=True):
        line = [0, *(number for letter in text for number in (letter, 0))]
        ways = [1.0] + [0.0] * (len(line) - 1)
        for t in range(count):
            shares = (row[t] - row[t].max()).exp()
            shares = shares / shares.sum()
            came = []
            for s, number in enumerate(line):
                from_before = ways[s] + (ways[s - 1] if s else 0.0)
                if s > 1 and number not in (0, line[s - 2]):
                    from_before += ways[s - 2]
                came.append(from_before * float(shares[number]))
            ways = came
        likely = ways[-1] + (ways[-2] if text else 0.0)
        nats += -math.log(likely) if likely else math.inf
    return scores.new_tensor(nats / sum(map(len, texts)))


@speech_loss.cases
def _(rng):
    yield "all sizes different", {
        "scores": 2 * rng.randn(3, 7, 5), "tokens": torch.tensor([7, 4, 6]), "texts": [[1, 3, 3, 2], [4], [2, 1]]
    }  # fmt: skip
    yield "batch 1", {"scores": rng.randn(1, 4, 3), "tokens": torch.tensor([4]), "texts": [[1, 2]]}
    yield "as many recordings as tokens", {
        "scores": rng.randn(3, 3, 4), "tokens": torch.tensor([3, 3, 3]), "texts": [[1], [2, 3], [3]]
    }  # fmt: skip
    yield "too long a text has no way: the loss is infinite", {
        "scores": rng.randn(2, 3, 4), "tokens": torch.tensor([3, 2]), "texts": [[1, 2], [3, 1, 2]]
    }  # fmt: skip
    yield "two equal letters", {"scores": rng.randn(1, 5, 3), "tokens": torch.tensor([5]), "texts": [[2, 2, 1]]}
    yield "one token, one letter", {"scores": rng.randn(2, 1, 4), "tokens": torch.tensor([1, 1]), "texts": [[3], [1]]}
    yield "silence, and nothing is said", {
        "scores": rng.randn(2, 4, 3), "tokens": torch.tensor([4, 3]), "texts": [[], [1, 2]]
    }  # fmt: skip


def ctc(scores, tokens, texts, *, log=lambda z: z.log_softmax(dim=-1), turn=True, reduction="sum",
        by=lambda texts: sum(map(len, texts)), **more):  # fmt: skip
    """torch's loss, with one thing to go wrong at a time."""
    log_probs = log(scores)
    sizes = torch.tensor([len(text) for text in texts])
    letters = torch.tensor([letter for text in texts for letter in text], dtype=torch.long)
    loss = F.ctc_loss(log_probs.transpose(0, 1) if turn else log_probs, letters, tokens, sizes, reduction=reduction,
                      **more)  # fmt: skip
    return loss / by(texts)


for cause, setting in (
    ("the scores go in as they are: the softmax is missing, and nothing adds up to 1", {"log": lambda z: z}),
    ("probabilities go in instead of their logarithms", {"log": lambda z: z.softmax(dim=-1)}),
    ("the softmax runs over time instead of characters", {"log": lambda z: z.log_softmax(dim=1)}),
    ("batch and tokens are not exchanged: `ctc_loss` wants time first", {"turn": False}),
    ("each text is divided by its own length first, so that a letter of a short text counts for more",
     {"reduction": "mean", "by": lambda texts: 1}),
    ("the loss is for each text, not for each character: long texts weigh more", {"by": len}),
    ("the sum is not divided by the number of characters", {"by": lambda texts: 1}),
    ("`zero_infinity=True` hides a text that has no way: nobody notices", {"zero_infinity": True}),
    ("the last character is taken for the blank", {"blank": -1}),
):  # fmt: skip

    def set_up(scores, tokens, texts, setting=setting):
        more = {**setting, "blank": scores.shape[2] - 1} if "blank" in setting else setting
        return ctc(scores, tokens, texts, **more)

    speech_loss.mutant(cause, LOSS)(set_up)


@speech_loss.mutant("all recordings are taken to be as long as the longest: the padding is heard", LOSS)
def _(scores, tokens, texts):
    return ctc(scores, torch.full_like(tokens, scores.shape[1]), texts)


@speech_loss.mutant("texts are filled up with 0 and the filling counts: 0 is the blank, not a letter", LOSS)
def _(scores, tokens, texts):
    longest = max(map(len, texts))
    filled = [text + [0] * (longest - len(text)) for text in texts]
    return ctc(scores, tokens, filled, by=lambda _: sum(map(len, texts)))


@speech_loss.mutant("two equal letters of the text are made one: that is done to paths, not to texts", LETTERS)
def _(scores, tokens, texts):
    short = [[letter for letter, _ in groupby(text)] for text in texts]
    return ctc(scores, tokens, short, by=lambda _: sum(map(len, texts)))


@speech_loss.alternative
def _(*inputs):
    return ctc(*inputs)


@speech_loss.alternative
def _(scores, tokens, texts):
    log_probs, nats = scores - scores.logsumexp(dim=-1, keepdim=True), []
    for row, count, text in zip(log_probs, tokens, texts, strict=True):
        letters = torch.tensor(text, dtype=torch.long)
        nats.append(F.ctc_loss(row[:count], letters, count, torch.tensor(len(text)), reduction="sum"))
    return torch.stack(nats).sum() / sum(len(text) for text in texts)
