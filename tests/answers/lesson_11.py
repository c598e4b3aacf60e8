"""Lesson 11: the vocoder."""

import numpy as np
import torch

from answers import right, wrong

right("invert_mel")(lambda mel, filters: (torch.linalg.pinv(filters.T) @ mel.T).clamp(min=0))
right("invert_mel")(lambda mel, filters: torch.relu((mel @ torch.linalg.pinv(filters)).T))
right("invert_mel")(
    lambda mel, filters: torch.from_numpy(
        np.maximum(np.linalg.lstsq(filters.numpy().T, mel.numpy().T, rcond=None)[0], 0)
    ).to(mel.dtype)
)
wrong("invert_mel", "transpose instead of inverse")(lambda mel, filters: (filters @ mel.T).clamp(min=0))
wrong("invert_mel", "negative values stay")(lambda mel, filters: torch.linalg.pinv(filters.T) @ mel.T)
wrong("invert_mel", "absolute values")(lambda mel, filters: (torch.linalg.pinv(filters.T) @ mel.T).abs())
wrong("invert_mel", "clamped at 1e-5")(lambda mel, filters: (torch.linalg.pinv(filters.T) @ mel.T).clamp(min=1e-3))
wrong("invert_mel", "clamped to 0 … 1")(lambda mel, filters: (torch.linalg.pinv(filters.T) @ mel.T).clamp(0, 1))
wrong("invert_mel", "inverse clamped before the product")(
    lambda mel, filters: torch.linalg.pinv(filters.T).clamp(min=0) @ mel.T
)
wrong("invert_mel", "mel clamped, not the result")(
    lambda mel, filters: torch.linalg.pinv(filters.T) @ mel.T.clamp(min=0)
)
wrong("invert_mel", "exp of mel first")(lambda mel, filters: (torch.linalg.pinv(filters.T) @ mel.exp().T).clamp(min=0))
wrong("invert_mel", "frames first")(lambda mel, filters: (mel @ torch.linalg.pinv(filters)).clamp(min=0))
wrong("invert_mel", "clamped from above")(lambda mel, filters: (torch.linalg.pinv(filters.T) @ mel.T).clamp(max=0))
wrong("invert_mel", "columns normalized transpose")(
    lambda mel, filters: ((filters / filters.sum(0)) @ mel.T).clamp(min=0)
)


def ola(pieces, hop, window, weight=lambda w: w, norm=lambda w: w * w, start=None, length=None, eps=None):
    n, size = pieces.shape
    total = pieces.new_zeros((n - 1) * hop + size)
    weights = torch.zeros_like(total)
    for j in range(n):
        total[j * hop : j * hop + size] += pieces[j] * weight(window)
        weights[j * hop : j * hop + size] += norm(window)
    start = size // 2 if start is None else start
    length = (n - 1) * hop if length is None else length(n, hop, size)
    cut = slice(start, start + length)
    return total[cut] / (weights[cut] if eps is None else weights[cut] + eps)


right("overlap_add")(lambda pieces, hop, window: ola(pieces, hop, window))


@right("overlap_add")
def _(pieces, hop, window):
    n, size = pieces.shape
    out = [pieces.new_zeros(()) for _ in range((n - 1) * hop)]
    for i in range(len(out)):
        top = bottom = 0.0
        for j in range(n):
            at = i + size // 2 - j * hop
            if 0 <= at < size:
                top = top + pieces[j, at] * window[at]
                bottom = bottom + window[at] ** 2
        out[i] = top / bottom
    return torch.stack(out) if out else pieces.new_zeros(0)


@right("overlap_add")
def _(pieces, hop, window):
    n, size = pieces.shape
    length = (n - 1) * hop + size
    at = (torch.arange(n)[:, None] * hop + torch.arange(size)).flatten()
    top = pieces.new_zeros(length).index_add(0, at, (pieces * window).flatten())
    bottom = pieces.new_zeros(length).index_add(0, at, (window**2).repeat(n))
    return (top[size // 2 :] / bottom[size // 2 :])[: (n - 1) * hop]


wrong("overlap_add", "pieces not windowed")(lambda p, hop, w: ola(p, hop, w, weight=torch.ones_like))
wrong("overlap_add", "divided by the sum of windows")(lambda p, hop, w: ola(p, hop, w, norm=lambda w: w))
wrong("overlap_add", "not divided")(lambda p, hop, w: ola(p, hop, w, norm=lambda w: torch.zeros_like(w), eps=1.0))
wrong("overlap_add", "eps added to the sum")(lambda p, hop, w: ola(p, hop, w, eps=1e-2))
wrong("overlap_add", "from the start")(lambda p, hop, w: ola(p, hop, w, start=0).nan_to_num(0.0))
wrong("overlap_add", "one sample late")(lambda p, hop, w: ola(p, hop, w, start=p.shape[1] // 2 - 1))
wrong("overlap_add", "half a hop later")(lambda p, hop, w: ola(p, hop, w, start=hop // 2).nan_to_num(0.0))
wrong("overlap_add", "columns · hop samples")(lambda p, hop, w: ola(p, hop, w, length=lambda n, hop, size: n * hop))
wrong("overlap_add", "not cut at all")(
    lambda p, hop, w: ola(p, hop, w, start=0, length=lambda n, hop, size: (n - 1) * hop + size).nan_to_num(0.0)
)
wrong("overlap_add", "mean of overlapping pieces")(lambda p, hop, w: ola(p, hop, w, norm=torch.ones_like))
wrong("overlap_add", "later pieces overwrite")(
    lambda p, hop, w: torch.cat([row[:hop] for row in p] + [p[-1, hop:]])[p.shape[1] // 2 :][: (len(p) - 1) * hop]
)


def gl(mag, spectrum, previous, hop, momentum=0.99, window=torch.hann_window, pad="constant", keep=None, first=None):
    size = 2 * (mag.shape[0] - 1)
    w = window(size).to(mag.dtype)
    wav = torch.istft(spectrum, size, hop, window=w, length=(mag.shape[1] - 1) * hop)
    c = torch.stft(wav, size, hop, window=w, pad_mode=pad, return_complex=True)
    moved = c + momentum * (c - previous) if first is None else first(c, previous, momentum, spectrum)
    return torch.polar(mag, moved.angle()), (c if keep is None else keep(c, moved))


right("griffin_lim_step")(gl)


@right("griffin_lim_step")
def _(magnitudes, spectrum, previous, hop, momentum=0.99):
    _, c = gl(magnitudes, spectrum, previous, hop)
    moved = (1 + momentum) * c - momentum * previous
    size = moved.abs()
    unit = torch.where(size == 0, torch.ones_like(moved), moved / torch.where(size == 0, 1.0, size))
    return magnitudes * unit, c


@right("griffin_lim_step")
def _(magnitudes, spectrum, previous, hop, momentum=0.99):
    n = 2 * (magnitudes.shape[0] - 1)
    w = torch.hann_window(n, dtype=magnitudes.dtype)
    frames = torch.fft.irfft(spectrum.T, n)
    wav = ola(frames, hop, w)
    padded = torch.nn.functional.pad(wav, (n // 2, n // 2))
    c = torch.fft.rfft(padded.unfold(0, n, hop) * w).T
    m = c + momentum * (c - previous)
    phase = torch.atan2(m.imag, m.real)
    return torch.complex(magnitudes * phase.cos(), magnitudes * phase.sin()), c


wrong("griffin_lim_step", "momentum ignored")(lambda *a, **k: gl(*a, **k, first=lambda c, p, m, s: c))
wrong("griffin_lim_step", "extrapolated from the spectrum")(
    lambda *a, **k: gl(*a, **k, first=lambda c, p, m, s: s + m * (c - p))
)
wrong("griffin_lim_step", "minus momentum")(lambda *a, **k: gl(*a, **k, first=lambda c, p, m, s: c - m * (c - p)))
wrong("griffin_lim_step", "moving average")(lambda *a, **k: gl(*a, **k, first=lambda c, p, m, s: m * c + (1 - m) * p))
wrong("griffin_lim_step", "fast: c - m p / (1 + m) without the norm is right, c - m p is not")(
    lambda *a, **k: gl(*a, **k, first=lambda c, p, m, s: c - m * p)
)
wrong("griffin_lim_step", "momentum 0.99 fixed")(lambda *a, **k: gl(*a[:4]))
wrong("griffin_lim_step", "the extrapolated one is returned")(lambda *a, **k: gl(*a, **k, keep=lambda c, moved: moved))
wrong("griffin_lim_step", "reflect padding")(lambda *a, **k: gl(*a, **k, pad="reflect"))
wrong("griffin_lim_step", "symmetric window")(
    lambda *a, **k: gl(*a, **k, window=lambda n: torch.hann_window(n, periodic=False))
)
wrong("griffin_lim_step", "division by the magnitude: NaN at 0")(
    lambda mag, spectrum, previous, hop, momentum=0.99: (
        lambda c: (mag * (m := c + momentum * (c - previous)) / m.abs(), c)
    )(gl(mag, spectrum, previous, hop)[1])
)
wrong("griffin_lim_step", "magnitudes not set")(
    lambda mag, spectrum, previous, hop, momentum=0.99: (lambda c: (c + momentum * (c - previous), c))(
        gl(mag, spectrum, previous, hop)[1]
    )
)
wrong("griffin_lim_step", "angles of the old spectrum")(
    lambda mag, spectrum, previous, hop, momentum=0.99: (
        torch.polar(mag, spectrum.angle()),
        gl(mag, spectrum, previous, hop)[1],
    )
)
