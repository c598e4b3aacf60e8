"""Lesson 07: spectrograms, convolutions, CTC."""

import math
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F

from answers import right, wrong


def framed(wav, size, hop, before=None, mode="constant"):
    before = size // 2 if before is None else before
    n = wav.shape[-1] // hop
    padded = F.pad(wav[:, None], (before, size), mode="constant")[:, 0]
    if mode == "reflect":
        padded = F.pad(wav[:, None], (before, before), mode="reflect")[:, 0]
        padded = F.pad(padded, (0, size))
    return padded.unfold(-1, size, hop)[:, :n]


right("frame")(lambda wav, size, hop: framed(wav, size, hop))


@right("frame")
def _(wav, size, hop):
    rows = wav.new_zeros(wav.shape[0], wav.shape[1] // hop, size)
    for t in range(rows.shape[1]):
        for i in range(size):
            at = t * hop - size // 2 + i
            if 0 <= at < wav.shape[1]:
                rows[:, t, i] = wav[:, at]
    return rows


@right("frame")
def _(wav, size, hop):
    n = wav.shape[1] // hop
    at = torch.arange(n)[:, None] * hop + torch.arange(size) - size // 2
    inside = (at >= 0) & (at < wav.shape[1])
    return torch.where(inside, wav[:, at.clamp(0, max(wav.shape[1] - 1, 0))], torch.zeros((), dtype=wav.dtype))


wrong("frame", "not centered")(lambda wav, size, hop: framed(wav, size, hop, 0))
wrong("frame", "centered one sample off")(lambda wav, size, hop: framed(wav, size, hop, size // 2 - 1))
wrong("frame", "one frame more")(
    lambda wav, size, hop: F.pad(wav, (size // 2, size // 2 + hop)).unfold(-1, size, hop)[:, : wav.shape[1] // hop + 1]
)
wrong("frame", "starts after half a hop")(lambda wav, size, hop: framed(wav, size, hop, size // 2 - hop // 2))
wrong("frame", "hop and size swapped")(
    lambda wav, size, hop: F.pad(wav, (size // 2, size + hop)).unfold(-1, size, size)[:, : wav.shape[1] // hop]
)
wrong("frame", "edge repeated")(
    lambda wav, size, hop: F.pad(wav[:, None], (size // 2, size), mode="replicate")[:, 0]
    .unfold(-1, size, hop)[:, : wav.shape[1] // hop]
)  # fmt: skip
wrong("frame", "ceil of frames")(
    lambda wav, size, hop: F.pad(wav, (size // 2, size + hop)).unfold(-1, size, hop)[:, : math.ceil(wav.shape[1] / hop)]
)
wrong("frame", "window before time")(lambda wav, size, hop: framed(wav, size, hop).mT)


def logmel(wav, filters, size, hop, floor=1e-5, window=None, power=1, end=None):
    w = (torch.hann_window(size) if window is None else window(size)).to(wav.dtype)
    mags = torch.fft.rfft(framed(wav, size, hop) * w).abs() ** power
    return torch.log((mags @ filters).clamp(min=floor)) if end is None else end(mags @ filters, floor)


right("log_mel")(logmel)
right("log_mel")(lambda wav, filters, size, hop, floor=1e-5: torch.einsum(
    "btf,fm->btm", torch.stft(wav, size, hop, window=torch.hann_window(size, dtype=wav.dtype), pad_mode="constant",
    return_complex=True).abs().mT[:, : wav.shape[1] // hop], filters).clamp_min(floor).log())  # fmt: skip


@right("log_mel")
def _(wav, filters, size, hop, floor=1e-5):
    rows = framed(wav, size, hop) * torch.hann_window(size, dtype=wav.dtype)
    spectrum = torch.fft.fft(rows)[..., : size // 2 + 1]
    mel = torch.sqrt(spectrum.real**2 + spectrum.imag**2) @ filters
    return torch.maximum(mel, torch.tensor(floor, dtype=mel.dtype)).log()


wrong("log_mel", "power")(lambda *a, **k: logmel(*a, **k, power=2))
wrong("log_mel", "symmetric window")(
    lambda *a, **k: logmel(*a, **k, window=lambda n: torch.hann_window(n, periodic=False))
)
wrong("log_mel", "hamming")(lambda *a, **k: logmel(*a, **k, window=torch.hamming_window))
wrong("log_mel", "no window")(lambda *a, **k: logmel(*a, **k, window=torch.ones))
wrong("log_mel", "floor added")(lambda *a, **k: logmel(*a, **k, end=lambda m, f: (m + f).log()))
wrong("log_mel", "log10")(lambda *a, **k: logmel(*a, **k, end=lambda m, f: m.clamp(min=f).log10()))
wrong("log_mel", "floor after the logarithm")(lambda *a, **k: logmel(*a, **k, end=lambda m, f: m.log().clamp(min=f)))
wrong("log_mel", "decibels")(lambda *a, **k: logmel(*a, **k, end=lambda m, f: 20 * m.clamp(min=f).log10()))
wrong("log_mel", "log1p")(lambda *a, **k: logmel(*a, **k, end=lambda m, f: m.clamp(min=f).log1p()))
wrong("log_mel", "floor ignored")(lambda wav, filters, size, hop, floor=1e-5: logmel(wav, filters, size, hop))
wrong("log_mel", "bands before frames")(lambda *a, **k: logmel(*a, **k).mT)
wrong("log_mel", "real part")(
    lambda wav, filters, size, hop, floor=1e-5: (
        (torch.fft.rfft(framed(wav, size, hop) * torch.hann_window(size, dtype=wav.dtype)).real.abs() @ filters)
        .clamp(min=floor)
        .log()
    )
)
wrong("log_mel", "reflect padding")(
    lambda wav, filters, size, hop, floor=1e-5: (
        (
            torch.fft.rfft(framed(wav, size, hop, mode="reflect") * torch.hann_window(size, dtype=wav.dtype)).abs()
            @ filters
        )
        .clamp(min=floor)
        .log()
    )
)
wrong("log_mel", "log of the magnitudes first")(
    lambda wav, filters, size, hop, floor=1e-5: torch.fft.rfft(
        framed(wav, size, hop) * torch.hann_window(size, dtype=wav.dtype)).abs().clamp(min=floor).log() @ filters
)  # fmt: skip


@right("conv_output_length")
def _(length, layers):
    for kernel, stride, padding in layers:
        length = (length + 2 * padding - kernel) // stride + 1
    return length


@right("conv_output_length")
def _(length, layers):
    if not layers:
        return length
    (kernel, stride, padding), *others = layers
    here = len(range(0, length + 2 * padding - kernel + 1, stride))
    return conv(others, here)


def conv(layers, length):
    for kernel, stride, padding in layers:
        length = math.floor((length + 2 * padding - kernel) / stride + 1)
    return length


def lengths_by(step):
    def answer(length, layers):
        for layer in layers:
            length = step(length, *layer)
        return length

    return answer


wrong("conv_output_length", "padding once")(lengths_by(lambda n, k, s, p: (n + p - k) // s + 1))
wrong("conv_output_length", "ceil")(lengths_by(lambda n, k, s, p: math.ceil((n + 2 * p - k) / s) + 1))
wrong("conv_output_length", "no + 1")(lengths_by(lambda n, k, s, p: (n + 2 * p - k) // s))
wrong("conv_output_length", "+ 1 before the division")(lengths_by(lambda n, k, s, p: (n + 2 * p - k + 1) // s))
wrong("conv_output_length", "length // stride")(lengths_by(lambda n, k, s, p: n // s))
wrong("conv_output_length", "ceil(length / stride)")(lengths_by(lambda n, k, s, p: -(-n // s)))
wrong("conv_output_length", "stride and padding swapped")(
    lengths_by(lambda n, k, p, s: (n + 2 * p - k) // max(s, 1) + 1)
)
wrong("conv_output_length", "the first layer only")(
    lambda length, layers: (length + 2 * layers[0][2] - layers[0][0]) // layers[0][1] + 1 if layers else length
)
wrong("conv_output_length", "the last layer only")(
    lambda length, layers: (length + 2 * layers[-1][2] - layers[-1][0]) // layers[-1][1] + 1 if layers else length
)
wrong("conv_output_length", "a float")(lengths_by(lambda n, k, s, p: (n + 2 * p - k) / s + 1))
wrong("conv_output_length", "no layers: 0")(lambda length, layers: conv(layers, length) if layers else 0)

right("flatten_bands")(lambda x: x.permute(0, 2, 1, 3).flatten(2))
right("flatten_bands")(lambda x: torch.cat(list(x.unbind(1)), -1))
right("flatten_bands")(lambda x: torch.einsum("bctf->btcf", x).reshape(x.shape[0], x.shape[2], -1))
wrong("flatten_bands", "reshape")(lambda x: x.reshape(x.shape[0], x.shape[2], -1))
wrong("flatten_bands", "bands outside")(lambda x: x.permute(0, 2, 3, 1).flatten(2))
wrong("flatten_bands", "time last")(lambda x: x.permute(0, 1, 3, 2).flatten(1, 2))
wrong("flatten_bands", "sum over the channels")(lambda x: x.sum(1))
wrong("flatten_bands", "mean, repeated")(lambda x: x.mean(1).repeat(1, 1, x.shape[1]))


@right("ctc_collapse")
def _(path, lengths, blank=0):
    return [[k for k, _ in groupby(row[:n].tolist()) if k != blank] for row, n in zip(path, lengths, strict=True)]


@right("ctc_collapse")
def _(path, lengths, blank=0):
    return [
        (u := torch.unique_consecutive(path[i, : int(lengths[i])]))[u != blank].tolist() for i in range(path.shape[0])
    ]


@right("ctc_collapse")
def _(path, lengths, blank=0):
    texts = []
    for row, n in zip(path.numpy(), lengths.tolist(), strict=True):
        row = row[:n]
        new = np.concatenate([[True], row[1:] != row[:-1]])[:n]
        texts.append([int(c) for c in row[new & (row != blank)]])
    return texts


def collapse(keep):
    return lambda path, lengths, blank=0: [
        keep(row[:n].tolist(), blank) for row, n in zip(path, lengths.tolist(), strict=True)
    ]


wrong("ctc_collapse", "blanks first")(collapse(lambda r, blank: [k for k, _ in groupby(c for c in r if c != blank)]))
wrong("ctc_collapse", "not merged")(collapse(lambda r, blank: [c for c in r if c != blank]))
wrong("ctc_collapse", "blanks stay")(collapse(lambda r, blank: [k for k, _ in groupby(r)]))
wrong("ctc_collapse", "blank is 0")(collapse(lambda r, blank: [k for k, _ in groupby(r) if k != 0]))
wrong("ctc_collapse", "each id once")(collapse(lambda r, blank: [k for k in dict.fromkeys(r) if k != blank]))
wrong("ctc_collapse", "sorted set")(collapse(lambda r, blank: sorted(set(r) - {blank})))
wrong("ctc_collapse", "lengths ignored")(
    lambda path, lengths, blank=0: [[k for k, _ in groupby(r) if k != blank] for r in path.tolist()]
)
wrong("ctc_collapse", "one token too few")(
    lambda path, lengths, blank=0: [
        [k for k, _ in groupby(r[: n - 1]) if k != blank] for r, n in zip(path.tolist(), lengths.tolist(), strict=True)
    ]
)
wrong("ctc_collapse", "empty rows left out")(
    lambda path, lengths, blank=0: [
        t
        for r, n in zip(path.tolist(), lengths.tolist(), strict=True)
        if (t := [k for k, _ in groupby(r[:n]) if k != blank])
    ]
)
wrong("ctc_collapse", "stops at the first blank after text")(
    collapse(
        lambda r, blank: next(([k for k, _ in groupby(g)] for b, g in groupby(r, lambda c: c == blank) if not b), [])
    )
)


def ctc(scores, tokens, texts, prepare=lambda s: s.log_softmax(-1), end=None, **more):
    lengths = torch.tensor([len(t) for t in texts])
    labels = torch.tensor([c for t in texts for c in t], dtype=torch.long)
    losses = F.ctc_loss(prepare(scores).transpose(0, 1), labels, tokens, lengths, reduction="none", **more)
    return end(losses, lengths) if end else losses.sum() / lengths.sum()


right("ctc_batch_loss")(ctc)


@right("ctc_batch_loss")
def _(scores, tokens, texts):
    total = scores.new_zeros(())
    for row, n, text in zip(scores, tokens, texts, strict=True):
        lp = F.log_softmax(row[:n], -1)
        total = total + F.ctc_loss(
            lp, torch.tensor(text), torch.tensor(int(n)), torch.tensor(len(text)), reduction="sum"
        )
    return total / sum(map(len, texts))


@right("ctc_batch_loss")
def _(scores, tokens, texts):
    longest = max(map(len, texts))
    padded = torch.tensor([t + [1] * (longest - len(t)) for t in texts])
    sizes = torch.tensor([len(t) for t in texts])
    loss = torch.nn.CTCLoss(reduction="sum")(scores.log_softmax(-1).permute(1, 0, 2), padded, tokens, sizes)
    return loss / sizes.sum()


wrong("ctc_batch_loss", "no log_softmax")(lambda *a: ctc(*a, prepare=lambda s: s))
wrong("ctc_batch_loss", "softmax")(lambda *a: ctc(*a, prepare=lambda s: s.softmax(-1)))
wrong("ctc_batch_loss", "over time")(lambda *a: ctc(*a, prepare=lambda s: s.log_softmax(1)))
wrong("ctc_batch_loss", "infinite ones hidden")(lambda *a: ctc(*a, zero_infinity=True))
wrong("ctc_batch_loss", "mean of each recording's mean")(
    lambda *a: ctc(*a, end=lambda x, n: (x / n.clamp(min=1)).mean())
)
wrong("ctc_batch_loss", "per recording")(lambda *a: ctc(*a, end=lambda x, n: x.mean()))
wrong("ctc_batch_loss", "sum")(lambda *a: ctc(*a, end=lambda x, n: x.sum()))
wrong("ctc_batch_loss", "all tokens count")(
    lambda scores, tokens, texts: ctc(scores, torch.full_like(tokens, scores.shape[1]), texts)
)
wrong("ctc_batch_loss", "per audio token")(
    lambda scores, tokens, texts: ctc(scores, tokens, texts, end=lambda x, n: x.sum() / tokens.sum())
)
wrong("ctc_batch_loss", "the last id is the blank")(
    lambda scores, tokens, texts: ctc(scores, tokens, texts, blank=scores.shape[-1] - 1)
)
wrong("ctc_batch_loss", "scores detached")(lambda scores, tokens, texts: ctc(scores.detach(), tokens, texts))
