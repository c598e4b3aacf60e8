"""Lesson 07, speech recognition: its oracles are torch's centered STFT, real convolutions, and the CTC recursion."""

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

NOTEBOOK, TITLE = "07_hearing", "Speech recognition"

STFT = "2. The short-time Fourier transform: how much of each frequency?"
FRAMES = "3. Counting frames: 94, 100 or 101?"
MEL = "4. The mel scale and the log-mel spectrogram"
SWAPPED = "5. A shape-preserving bug: the axes swapped"
STRIDE = "6. Two convolutions with stride 2"
RESHAPE = "8. Another shape-preserving bug: `reshape` without a transpose"
PADDING = "9. A batch of recordings: padding must be masked"
CTC_DECODING = "10. CTC decoding: from tokens to characters"
CTC_LOSS = "11. The CTC loss: the sum over all alignments"


# ---- frames ---------------------------------------------------------------------------------------------------------


@exercise("Split audio into frames", minutes=15, level=2)
def frame(wav: Float[Tensor, "batch samples"], size: int, hop: int) -> Float[Tensor, "batch mel_frames window"]:
    """Sample by sample; beyond both ends there are zeros."""
    frames = wav.new_zeros(len(wav), wav.shape[1] // hop, size)
    for b, t, i in torch.cartesian_prod(*map(torch.arange, frames.shape)).tolist():
        position = t * hop + i - size // 2
        if 0 <= position < wav.shape[1]:
            frames[b, t, i] = wav[b, position]
    return frames


@frame.cases
def _(rng):
    yield "all sizes different", {"wav": rng.randn(2, 23), "size": 8, "hop": 5}
    yield "a whole number of hops", {"wav": rng.randn(2, 12), "size": 6, "hop": 4}
    yield "batch 1, one frame", {"wav": rng.randn(1, 5), "size": 4, "hop": 3}
    yield "shorter than half a window", {"wav": rng.randn(1, 2), "size": 8, "hop": 2}
    yield "no remainder", {"wav": rng.randn(1, 16), "size": 4, "hop": 4}


@frame.random_inputs
def _(rng):
    hop = rng.size(6)
    return {"wav": rng.randn(rng.size(3), rng.size(20, hop)), "size": 2 * rng.size(), "hop": hop}


def frame_variant(wav, size, hop, *, before=None, after=None, last=None, mode="constant"):
    """`frame`; each keyword injects one fault."""
    before, after = (size // 2 if each is None else each for each in (before, after))
    padded = F.pad(wav, (before, after), mode=mode)
    return padded.unfold(1, size, hop)[:, : (wav.shape[1] // hop if last is None else last)]


@frame.mutant("the last frame, centered at the end of the audio, is kept: 101 instead of 100", FRAMES)
def _(wav, size, hop):
    return frame_variant(wav, size, hop, last=wav.shape[1])


@frame.mutant("frame t begins at sample t · hop instead of being centered there", FRAMES)
def _(wav, size, hop):
    return frame_variant(wav, size, hop, before=0, after=size)


@frame.mutant("only windows that lie inside the audio are taken", FRAMES)
def _(wav, size, hop):
    return frame_variant(wav, max(min(size, wav.shape[1]), 1), hop, before=0, after=0)


@frame.mutant(
    "reflection padding is used instead of zeros: audio shorter than half a window cannot be reflected", FRAMES
)
def _(wav, size, hop):
    return frame_variant(wav, size, hop, mode="reflect")


@frame.mutant("replication padding is used instead of zeros", FRAMES)
def _(wav, size, hop):
    return frame_variant(wav, size, hop, mode="replicate")


@frame.mutant("all the padding is in front: frame t ends at sample t · hop", FRAMES)
def _(wav, size, hop):
    return frame_variant(wav, size, hop, before=size, after=0)


@frame.mutant("the center is off by one sample", FRAMES)
def _(wav, size, hop):
    return frame_variant(wav, size, hop, before=size // 2 - 1, after=size // 2 + 1)


@frame.mutant("the axes are exchanged: (batch, window, mel_frames)", SWAPPED)
def _(wav, size, hop):
    return frame_variant(wav, size, hop).mT


@frame.mutant("the hop is the window size instead of `hop`", STFT)
def _(wav, size, hop):
    return frame_variant(wav, size, size)


@frame.alternative
def _(wav, size, hop):
    return frame_variant(wav, size, hop)


@frame.alternative
def _(wav, size, hop):
    position = torch.arange(wav.shape[1] // hop)[:, None] * hop + torch.arange(size) - size // 2
    inside = (position >= 0) & (position < wav.shape[1])
    return wav[:, position.clamp(0, wav.shape[1] - 1)] * inside


# ---- log-mel --------------------------------------------------------------------------------------------------------


@exercise("The log-mel spectrogram", minutes=20, level=3)
def log_mel(
    wav: Float[Tensor, "batch samples"],
    filters: Float[Tensor, "frequencies n_mels"],
    size: int,
    hop: int,
    floor: float = 1e-5,
) -> Float[Tensor, "batch mel_frames n_mels"]:
    """torch's centered STFT without its last frame, then one mel band at a time."""
    magnitudes = torch.stft(
        wav, size, hop, window=torch.hann_window(size, dtype=wav.dtype), pad_mode="constant", return_complex=True
    ).abs()
    out = wav.new_zeros(len(wav), wav.shape[1] // hop, filters.shape[1])
    for b, t, m in torch.cartesian_prod(*map(torch.arange, out.shape)).tolist():
        energy = sum(float(magnitudes[b, f, t] * filters[f, m]) for f in range(len(filters)))
        out[b, t, m] = math.log(max(energy, floor))
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


@log_mel.random_inputs
def _(rng):
    size, hop = 2 * rng.size(5, 2), rng.size(6)
    wav = rng.choice((0.01, 1.0)) * rng.randn(rng.size(3), rng.size(24, hop))
    wav[0, hop:] = 0
    filters = rng.randn(size // 2 + 1, rng.size(4)).abs()
    return {"wav": wav, "filters": filters, "size": size, "hop": hop, "floor": rng.choice((1e-3, 0.1))}


def log_mel_variant(wav, filters, size, hop, floor=1e-5, *, window=None, length=torch.abs, log=torch.log,
                clamp=lambda bands, floor: bands.clamp(min=floor), **ends):  # fmt: skip
    """`log_mel`; each keyword injects one fault."""
    window = torch.hann_window(size, dtype=wav.dtype) if window is None else window(size).to(wav.dtype)
    bands = length(torch.fft.rfft(frame_variant(wav, size, hop, **ends) * window)) @ filters
    return log(clamp(bands, floor))


for cause, section, fault in (
    ("powers are summed instead of magnitudes", MEL, {"length": lambda z: z.abs() ** 2}),
    ("only the real part is used: loudness then depends on the phase", STFT,
     {"length": lambda z: z.real.abs()}),
    ("the window is rectangular instead of Hann", STFT, {"window": torch.ones}),
    ("the Hann window is symmetric instead of periodic, the default of `torch.hann_window`", STFT,
     {"window": lambda size: torch.hann_window(size, periodic=False)}),
    ("the logarithm is to base 10", MEL, {"log": torch.log10}),
    ("the values are decibels, 20 times the logarithm to base 10", MEL, {"log": lambda bands: 20 * bands.log10()}),
    ("the logarithm is missing", MEL, {"log": lambda bands: bands}),
    ("the floor is added instead of being the minimum", MEL, {"clamp": torch.add}),
    ("there is no floor: the logarithm of silence is −∞", MEL, {"clamp": lambda bands, floor: bands}),
    ("the `floor` argument is ignored", MEL, {"clamp": lambda bands, floor: bands.clamp(min=1e-5)}),
    ("the floor is applied to the logarithm: nothing is below it any more", MEL,
     {"clamp": lambda bands, floor: bands.clamp(min=math.exp(floor))}),
    ("frame t begins at sample t · hop instead of being centered there", FRAMES, {"before": 0, "after": 64}),
):  # fmt: skip
    log_mel.mutant(cause, section)(lambda *inputs, fault=fault, **more: log_mel_variant(*inputs, **more, **fault))


@log_mel.mutant("the logarithm is taken of each frequency, before the mel filters sum them", MEL)
def _(wav, filters, size, hop, floor=1e-5):
    return log_mel_variant(wav, torch.eye(len(filters)).to(wav), size, hop, floor) @ filters


@log_mel.mutant("the axes are exchanged: (batch, n_mels, mel_frames)", SWAPPED)
def _(*inputs, **more):
    return log_mel_variant(*inputs, **more).mT


@log_mel.mutant("the last frame, centered at the end of the audio, is kept: 101 instead of 100", FRAMES)
def _(wav, filters, size, hop, floor=1e-5):
    return log_mel_variant(wav, filters, size, hop, floor, last=wav.shape[1])


@log_mel.alternative
def _(*inputs, **more):
    return log_mel_variant(*inputs, **more)


@log_mel.alternative
def _(wav, filters, size, hop, floor=1e-5):
    position = torch.arange(size, dtype=wav.dtype)
    angle = 2 * math.pi / size * torch.outer(position, position[: size // 2 + 1])
    faded = frame_variant(wav, size, hop) * (0.5 - 0.5 * (2 * math.pi * position / size).cos())
    magnitudes = ((faded @ angle.cos()) ** 2 + (faded @ angle.sin()) ** 2).sqrt()
    return torch.einsum("btf,fm->btm", magnitudes, filters).clamp(min=floor).log()


class LearnersFrontend(nn.Module):
    """The library's front end with the learner's transform; its filters and sizes stay."""

    def __init__(self, answer: Callable[..., Any], original: nn.Module) -> None:
        super().__init__()
        self.answer, self.original = answer, original

    def forward(self, wav):
        original: Any = self.original
        return self.answer(wav.float(), original.filters, original.n_fft, original.hop)


log_mel.replaces("tinyomni.audio.MelFrontend", LearnersFrontend)


# ---- lengths --------------------------------------------------------------------------------------------------------


@exercise("Output length of convolutions", minutes=10, level=1)
def conv_output_length(length: int, layers: list[tuple[int, int, int]]) -> int:
    """Real convolutions over zeros."""
    x = torch.zeros(1, 1, length)
    for kernel, stride, padding in layers:
        x = F.conv1d(x, torch.zeros(1, 1, kernel), stride=stride, padding=padding)
    return x.shape[2]


@conv_output_length.cases
def _(rng):
    encoder = [(3, 2, 1), (3, 2, 1)]
    for frames in (97, 100, 101, 1):
        yield f"the audio encoder, {frames} frames", {"length": frames, "layers": encoder}
    yield "no layer", {"length": 9, "layers": []}
    yield "no padding", {"length": 16, "layers": [(4, 3, 0)]}
    yield "patches", {"length": 224, "layers": [(16, 16, 0)]}
    yield "the order of two layers matters", {"length": 23, "layers": [(5, 3, 0), (2, 1, 2)]}
    yield "large kernels", {"length": 30, "layers": [(10, 5, 3), (8, 4, 2), (2, 2, 1)]}


@conv_output_length.random_inputs
def _(rng):
    length = left = rng.size(60)
    layers = []
    for _ in range(rng.size(3, 0)):
        stride, padding = rng.size(4), rng.size(2, 0)
        kernel = rng.size(min(5, left + 2 * padding))
        layers.append((kernel, stride, padding))
        left = len(range(kernel, left + 2 * padding + 1, stride))
    return {"length": length, "layers": layers}


def lengths(length, layers, *, step=lambda n, k, s, p: (n + 2 * p - k) // s + 1):
    """`conv_output_length`; each keyword injects one fault."""
    for layer in layers:
        length = step(length, *layer)
    return length


for cause, step in (
    ("the length is divided by the stride and rounded down: kernel and padding are ignored", lambda n, k, s, p: n // s),
    (
        "the length is divided by the stride and rounded up: right for this encoder, not elsewhere",
        lambda n, k, s, p: -(-n // s),
    ),
    ("the + 1 is missing: n sections of a fence have n + 1 posts", lambda n, k, s, p: (n + 2 * p - k) // s),
    ("padding is counted once: it is added at both ends", lambda n, k, s, p: (n + p - k) // s + 1),
    ("padding is ignored", lambda n, k, s, p: (n - k) // s + 1),
    ("it is rounded up: a window that does not fit is counted", lambda n, k, s, p: -((k - n - 2 * p) // s) + 1),
    ("it is rounded to the nearest instead of down", lambda n, k, s, p: round((n + 2 * p - k) / s) + 1),
    ("kernel and stride are exchanged", lambda n, k, s, p: (n + 2 * p - s) // k + 1),
    ("the 1 is added before dividing", lambda n, k, s, p: (n + 2 * p - k + 1) // s),
):
    conv_output_length.mutant(cause, STRIDE)(lambda length, layers, step=step: lengths(length, layers, step=step))


@conv_output_length.mutant("only the first layer is counted", STRIDE)
def _(length, layers):
    return lengths(length, layers[:1])


@conv_output_length.mutant("the layers are applied from the last to the first", STRIDE)
def _(length, layers):
    return lengths(length, layers[::-1])


@conv_output_length.alternative
def _(length, layers):
    return lengths(length, layers)


@conv_output_length.alternative
def _(length, layers):
    for kernel, stride, padding in layers:
        length = len(range(0, length + 2 * padding - kernel + 1, stride))
    return length


@conv_output_length.replaces("tinyomni.audio.audio_token_count")
def _(answer):
    return lambda mel_frames: answer(mel_frames, [(3, 2, 1), (3, 2, 1)])


# ---- flatten --------------------------------------------------------------------------------------------------------


@exercise("One vector for each time step", minutes=5, level=1, gradients=("x",))
def flatten_bands(
    x: Float[Tensor, "batch channels audio_tokens bands"],
) -> Float[Tensor, "batch audio_tokens dim"]:
    """One time step at a time."""
    moments = [torch.cat([x[:, c, t] for c in range(x.shape[1])], dim=-1) for t in range(x.shape[2])]
    return torch.stack(moments, dim=1)


@flatten_bands.cases
def _(rng):
    yield "all sizes different", {"x": rng.randn(2, 3, 5, 4)}
    yield "batch 1, one moment", {"x": rng.randn(1, 2, 1, 3)}
    yield "as many channels as time steps", {"x": rng.randn(1, 3, 3, 2)}
    yield "one band", {"x": rng.randn(2, 3, 2, 1)}


@flatten_bands.random_inputs
def _(rng):
    return {"x": rng.randn(rng.size(), rng.size(), rng.size(), rng.size())}


@flatten_bands.mutant("`reshape` goes straight to the final shape, and mixes time steps", RESHAPE)
def _(x):
    return x.reshape(x.shape[0], x.shape[2], -1)


@flatten_bands.mutant("the bands come before the channels: the numbers meet the wrong weights", RESHAPE)
def _(x):
    return rearrange(x, "batch channels audio_tokens bands -> batch audio_tokens (bands channels)")


@flatten_bands.mutant("the channels are summed instead of concatenated", RESHAPE)
def _(x):
    return x.sum(dim=1)


@flatten_bands.mutant("time is merged with the channels: there is no time axis left", RESHAPE)
def _(x):
    return x.flatten(1, 2)


@flatten_bands.mutant("bands, not time steps, become the tokens", SWAPPED)
def _(x):
    return rearrange(x, "batch channels audio_tokens bands -> batch bands (channels audio_tokens)")


@flatten_bands.mutant("the channels are averaged instead of concatenated", RESHAPE)
def _(x):
    return x.mean(dim=1)


@flatten_bands.mutant("only the first channel is used", RESHAPE)
def _(x):
    return x[:, 0].repeat(1, 1, x.shape[1])


@flatten_bands.mutant("the channels are in reverse order: the numbers meet the wrong weights", RESHAPE)
def _(x):
    return x.flip(1).transpose(1, 2).flatten(2)


@flatten_bands.mutant("the result is detached: the convolutions learn nothing", RESHAPE)
def _(x):
    return x.detach().transpose(1, 2).flatten(2)


@flatten_bands.mutant("recordings are merged with time: the batch is one long recording", RESHAPE)
def _(x):
    return x.transpose(1, 2).flatten(2).flatten(0, 1)[None]


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


@exercise("CTC: collapse a path", minutes=15, level=2)
def ctc_collapse(
    path: Int[Tensor, "batch audio_tokens"], lengths: Int[Tensor, "batch"], blank: int = 0
) -> list[list[int]]:
    """Groups of equal neighbours, one id each; then without blanks."""
    rows = [row[:length] for row, length in zip(path.tolist(), lengths.tolist(), strict=True)]
    return [[number for number, _ in groupby(row) if number != blank] for row in rows]


@ctc_collapse.cases
def _(rng):
    yield "two recordings, one with padding", {
        "path": torch.tensor([[0, 3, 3, 0, 3, 5, 5], [4, 4, 0, 2, 6, 6, 1]]), "lengths": torch.tensor([7, 4])
    }  # fmt: skip
    yield "batch 1, two equal letters", {"path": torch.tensor([[7, 5, 3, 0, 3, 4]]), "lengths": torch.tensor([6])}
    yield "a character comes back", {"path": torch.tensor([[1, 2, 2, 1, 0, 2]]), "lengths": torch.tensor([6])}
    yield "only blanks", {"path": torch.tensor([[0, 0, 0], [0, 2, 2]]), "lengths": torch.tensor([3, 2])}
    yield "another blank", {"path": torch.tensor([[9, 2, 9, 2, 0, 0]]), "lengths": torch.tensor([6]), "blank": 9}
    yield "no audio at all", {"path": torch.tensor([[3, 3]]), "lengths": torch.tensor([0])}


@ctc_collapse.random_inputs
def _(rng):
    batch, tokens = rng.size(4), rng.size(8)
    lengths = rng.randint(tokens + 1, batch)
    return {"path": rng.randint(3, batch, tokens), "lengths": lengths, "blank": rng.size(2, 0)}


def ctc_collapse_variant(path, lengths, blank=0, *, row=lambda row, blank: [n for n, _ in groupby(row) if n != blank]):
    """`ctc_collapse`, row by row."""
    return [row(each[:n], blank) for each, n in zip(path.tolist(), lengths.tolist(), strict=True)]


for cause, wrong_row in (
    ("blanks are removed before repeats are merged: “hel-lo” becomes “helo”", lambda row, blank: [
        n for n, _ in groupby(n for n in row if n != blank)]),
    ("repeats are not merged", lambda row, blank: [n for n in row if n != blank]),
    ("the blanks are not removed", lambda row, blank: [n for n, _ in groupby(row)]),
    ("each character is kept once in the whole text, not once in a run", lambda row, blank: list(
        dict.fromkeys(n for n in row if n != blank))),
    ("the characters are sorted by id", lambda row, blank: sorted(
        n for n, _ in groupby(row) if n != blank)),
    ("characters without repeats are dropped as noise", lambda row, blank: [
        n for n, run in groupby(row) if n != blank and len(list(run)) > 1]),
    ("0 is treated as the blank, ignoring `blank`", lambda row, blank: [
        n for n, _ in groupby(row) if n != 0]),
):  # fmt: skip
    ctc_collapse.mutant(cause, CTC_DECODING)(
        lambda *inputs, row=wrong_row, **more: ctc_collapse_variant(*inputs, **more, row=row)
    )


@ctc_collapse.mutant("`lengths` is ignored: the padding is transcribed too", PADDING)
def _(path, lengths, blank=0):
    return ctc_collapse_variant(path, torch.full_like(lengths, path.shape[1]), blank)


@ctc_collapse.mutant("`lengths` is taken to count mel frames: a quarter of the tokens is read", STRIDE)
def _(path, lengths, blank=0):
    return ctc_collapse_variant(path, (lengths + 3) // 4, blank)


@ctc_collapse.alternative
def _(*inputs, **more):
    return ctc_collapse_variant(*inputs, **more)


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


@exercise("The CTC loss of a batch", minutes=20, level=3, gradients=("scores",))
def ctc_batch_loss(
    scores: Float[Tensor, "batch audio_tokens characters"], tokens: Int[Tensor, "batch"], texts: list[list[int]]
) -> Float[Tensor, ""]:
    """The forward algorithm, as in the lesson: `alpha[s]` sums the alignments that are now at symbol s."""
    nats = 0.0
    for row, count, text in zip(scores.double(), tokens.tolist(), texts, strict=True):
        symbols = [0, *(number for letter in text for number in (letter, 0))]
        alpha = [1.0] + [0.0] * (len(symbols) - 1)
        for t in range(count):
            shares = (row[t] - row[t].max()).exp()
            shares = shares / shares.sum()
            new_alpha = []
            for s, number in enumerate(symbols):
                from_before = alpha[s] + (alpha[s - 1] if s else 0.0)
                if s > 1 and number not in (0, symbols[s - 2]):
                    from_before += alpha[s - 2]
                new_alpha.append(from_before * float(shares[number]))
            alpha = new_alpha
        total = alpha[-1] + (alpha[-2] if text else 0.0)
        nats += -math.log(total) if total else math.inf
    return scores.new_tensor(nats / sum(map(len, texts)))


@ctc_batch_loss.cases
def _(rng):
    yield "all sizes different", {
        "scores": 2 * rng.randn(3, 7, 5), "tokens": torch.tensor([7, 4, 6]), "texts": [[1, 3, 3, 2], [4], [2, 1]]
    }  # fmt: skip
    yield "batch 1", {"scores": rng.randn(1, 4, 3), "tokens": torch.tensor([4]), "texts": [[1, 2]]}
    yield "as many recordings as tokens", {
        "scores": rng.randn(3, 3, 4), "tokens": torch.tensor([3, 3, 3]), "texts": [[1], [2, 3], [3]]
    }  # fmt: skip
    yield "a text that is too long has no alignment: the loss is infinite", {
        "scores": rng.randn(2, 3, 4), "tokens": torch.tensor([3, 2]), "texts": [[1, 2], [3, 1, 2]]
    }  # fmt: skip
    yield "sure of the wrong character", {
        "scores": torch.tensor([[[0.0, 15.0, -12.0]]]), "tokens": torch.tensor([1]), "texts": [[2]]
    }  # fmt: skip
    yield "two equal characters", {"scores": rng.randn(1, 5, 3), "tokens": torch.tensor([5]), "texts": [[2, 2, 1]]}
    yield (
        "one token, one character",
        {"scores": rng.randn(2, 1, 4), "tokens": torch.tensor([1, 1]), "texts": [[3], [1]]},
    )
    yield "silence and an empty text", {
        "scores": rng.randn(2, 4, 3), "tokens": torch.tensor([4, 3]), "texts": [[], [1, 2]]
    }  # fmt: skip


@ctc_batch_loss.random_inputs
def _(rng):
    batch, time, characters = rng.size(3), rng.size(7), rng.size(4, 2)
    texts = [rng.chosen(range(1, characters), 3, 1)] + [rng.chosen(range(1, characters), 3) for _ in range(batch - 1)]
    return {
        "scores": 2 * rng.randn(batch, time, characters), "tokens": rng.randint(time + 1, batch, low=1), "texts": texts
    }  # fmt: skip


def ctc_batch_loss_variant(
    scores,
    tokens,
    texts,
    *,
    log=lambda z: z.log_softmax(dim=-1),
    transpose=True,
    reduction="sum",
    by=lambda texts: sum(map(len, texts)),
    **more,
):
    """`ctc_batch_loss`, by torch; each keyword injects one fault."""
    log_probs = log(scores)
    sizes = torch.tensor([len(text) for text in texts])
    letters = torch.tensor([letter for text in texts for letter in text], dtype=torch.long)
    loss = F.ctc_loss(
        log_probs.transpose(0, 1) if transpose else log_probs, letters, tokens, sizes, reduction=reduction, **more
    )
    return loss / by(texts)


for cause, setting in (
    ("raw scores are passed instead of log-probabilities: the log-softmax is missing", {"log": lambda z: z}),
    ("probabilities are passed instead of log-probabilities", {"log": lambda z: z.softmax(dim=-1)}),
    ("the softmax runs over time instead of characters", {"log": lambda z: z.log_softmax(dim=1)}),
    ("the axes are not transposed: `ctc_loss` expects time first", {"transpose": False}),
    ("each text is divided by its own length first, so that a character of a short text counts for more",
     {"reduction": "mean", "by": lambda texts: 1}),
    ("the loss is averaged over texts, not characters: long texts weigh more", {"by": len}),
    ("the sum is not divided by the number of characters", {"by": lambda texts: 1}),
    ("`zero_infinity=True` hides a text without an alignment", {"zero_infinity": True}),
    ("the last character is used as the blank", {"blank": -1}),
):  # fmt: skip

    def faulty(scores, tokens, texts, setting=setting):
        more = {**setting, "blank": scores.shape[2] - 1} if "blank" in setting else setting
        return ctc_batch_loss_variant(scores, tokens, texts, **more)

    ctc_batch_loss.mutant(cause, CTC_LOSS)(faulty)


@ctc_batch_loss.mutant("`tokens` is ignored: the padding is read as audio", CTC_LOSS)
def _(scores, tokens, texts):
    return ctc_batch_loss_variant(scores, torch.full_like(tokens, scores.shape[1]), texts)


@ctc_batch_loss.mutant("texts are padded with 0 and the padding counts: 0 is the blank, not a character", CTC_LOSS)
def _(scores, tokens, texts):
    longest = max(map(len, texts))
    filled = [text + [0] * (longest - len(text)) for text in texts]
    return ctc_batch_loss_variant(scores, tokens, filled, by=lambda _: sum(map(len, texts)))


@ctc_batch_loss.mutant("two equal characters of the text are merged: only paths are collapsed, not texts", CTC_DECODING)
def _(scores, tokens, texts):
    short = [[letter for letter, _ in groupby(text)] for text in texts]
    return ctc_batch_loss_variant(scores, tokens, short, by=lambda _: sum(map(len, texts)))


@ctc_batch_loss.alternative
def _(*inputs):
    return ctc_batch_loss_variant(*inputs)


@ctc_batch_loss.alternative
def _(scores, tokens, texts):
    log_probs, nats = scores - scores.logsumexp(dim=-1, keepdim=True), []
    for row, count, text in zip(log_probs, tokens, texts, strict=True):
        letters = torch.tensor(text, dtype=torch.long)
        nats.append(F.ctc_loss(row[:count], letters, count, torch.tensor(len(text)), reduction="sum"))
    return torch.stack(nats).sum() / sum(len(text) for text in texts)
