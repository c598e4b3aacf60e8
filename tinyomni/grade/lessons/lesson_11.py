"""Lesson 11, the vocoder: its oracles are least squares, torch's own inverse, and the Fourier sum written out."""

import functools
import math
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from tinyomni.grade.exercise import exercise

NOTEBOOK, TITLE = "11_vocoder", "The vocoder"

OVERLAP = "2. Back from windows to sound: overlap and add"
SEARCH = "3. Griffin-Lim: to sound and back, until it fits"
MEL = "4. Undo the mel filters"

fault: Any  # what a mutant changes


# ---- mel ------------------------------------------------------------------------------------------------------------


@exercise("Undo the mel filters", minutes=15, level=2, rtol=1e-3, atol=1e-4)
def invert_mel(
    mel: Float[Tensor, "mel_frames n_mels"], filters: Float[Tensor, "frequencies n_mels"]
) -> Float[Tensor, "frequencies mel_frames"]:
    """The shortest spectrum that has each mel frame, by least squares, one frame at a time."""
    wide = filters.T.double()
    found = [torch.linalg.lstsq(wide, frame.double()[:, None], driver="gelsd").solution[:, 0] for frame in mel]
    return torch.stack(found, dim=1).clamp(min=0).to(mel.dtype)


def bands(frequencies, n_mels):
    """Triangles that overlap, broader and broader, as mel filters are."""
    edges = torch.linspace(1, 2, n_mels + 2) ** 2
    edges = (edges - 1) / 3 * (frequencies - 1)
    place = torch.arange(float(frequencies))[:, None]
    rise, fall = (place - edges[:-2]) / (edges[1:-1] - edges[:-2]), (edges[2:] - place) / (edges[2:] - edges[1:-1])
    return torch.minimum(rise, fall).clamp(min=0)


@invert_mel.cases
def _(rng):
    filters = bands(23, 6)
    yield "all sizes different", {"mel": (rng.randn(23, 4).abs().T @ filters), "filters": filters}
    yield "loud and soft bands alternate", {"mel": torch.tensor([[5.0, 0.0, 5.0, 0.0, 5.0, 0.0]]), "filters": filters}
    yield "silence", {"mel": torch.zeros(2, 6), "filters": filters}
    yield "as many frames as bands", {"mel": rng.randn(3, 3).abs(), "filters": bands(11, 3)}
    yield "filters of other heights", {"mel": rng.randn(2, 3).abs(), "filters": bands(11, 3) * torch.tensor([1.0, 0.5, 0.2])}


def inverted(mel, filters, *, inverse=lambda filters: torch.linalg.pinv(filters.T), floor=lambda s: s.clamp(min=0)):
    """The product, with one thing to go wrong at a time."""
    return floor(inverse(filters) @ mel.T)


for cause, fault in (
    (
        "the filters themselves are put on, not their inverse: every band is smeared over its neighbours",
        {"inverse": lambda f: f},
    ),
    (
        "each band is shared out evenly: weights that add up to 1 are no inverse where bands overlap",
        {"inverse": lambda f: f / f.sum(dim=0, keepdim=True)},
    ),
    (
        "what each frequency gets is divided by all the filters on it: again, no inverse",
        {"inverse": lambda f: f / f.sum(dim=1, keepdim=True).clamp(min=1e-8)},
    ),
    ("magnitudes below 0 stay: loudness is never negative", {"floor": lambda s: s}),
    ("negative magnitudes are turned round instead of being set to 0", {"floor": torch.abs}),
    (
        "the exponential is taken: these are magnitudes already, no logarithms",
        {"floor": lambda s: s.clamp(min=0).exp()},
    ),
    (
        "the root is taken: the filters were put on magnitudes, not on their squares",
        {"floor": lambda s: s.clamp(min=0).sqrt()},
    ),
):
    invert_mel.mutant(cause, MEL)(functools.partial(inverted, **fault))


@invert_mel.mutant(
    "128 bands are stretched to all frequencies as one enlarges a picture: the mel scale is no ruler", MEL
)
def _(mel, filters):
    return torch.nn.functional.interpolate(mel[None], size=len(filters), mode="linear")[0].T


@invert_mel.mutant("frames stand in rows and frequencies in columns: the transform wants it the other way", MEL)
def _(mel, filters):
    return inverted(mel, filters).T


invert_mel.alternative(inverted)


@invert_mel.alternative
def _(mel, filters):
    return (filters @ torch.linalg.solve(filters.T @ filters, mel.T)).relu()


@invert_mel.replaces("tinyomni.vocoder.GriffinLimVocoder.invert_mel")
def _(answer):
    return lambda self, mel: answer(mel, self.mel.filters)


# ---- overlap and add ------------------------------------------------------------------------------------------------


@exercise("Overlap and add", minutes=20, level=3, atol=1e-4)
def overlap_add(
    pieces: Float[Tensor, "columns window"], hop: int, window: Float[Tensor, "window"]
) -> Float[Tensor, "samples"]:
    """torch's own: the pieces as spectra, and back."""
    n_fft, length = pieces.shape[1], (len(pieces) - 1) * hop
    spectrum = torch.fft.rfft(pieces, dim=1).T
    return torch.istft(spectrum, n_fft, hop, window=window, length=length)


@overlap_add.cases
def _(rng):
    yield "all sizes different", {"pieces": rng.randn(5, 16), "hop": 4, "window": torch.hann_window(16)}
    yield "half overlap", {"pieces": rng.randn(4, 12), "hop": 6, "window": torch.hann_window(12)}
    yield "little overlap", {"pieces": rng.randn(4, 16), "hop": 12, "window": torch.hann_window(16)}
    yield "two columns", {"pieces": rng.randn(2, 8), "hop": 2, "window": torch.hann_window(8)}
    yield "a flat window", {"pieces": rng.randn(6, 8), "hop": 3, "window": torch.ones(8)}
    yield "a lopsided window", {"pieces": rng.randn(6, 8), "hop": 2, "window": torch.linspace(0.3, 1.5, 8)}


def added(
    pieces, hop, window, *, by=lambda piece, w: piece * w, over=lambda w: w**2, divide=True, first=None, put="add"
):
    """The loop, with one thing to go wrong at a time."""
    columns, n = pieces.shape
    sound, total = (pieces.new_zeros((columns - 1) * hop + n) for _ in range(2))
    for j, piece in enumerate(pieces):
        place = slice(j * hop, j * hop + n)
        if put == "add":
            sound[place] += by(piece, window)
        else:
            sound[place] = by(piece, window)
        total[place] += over(window)
    sound = sound / total.clamp(min=1e-11) if divide else sound
    first = n // 2 if first is None else first
    return sound[first : first + (columns - 1) * hop]


for cause, fault in (
    ("nothing is divided: where more windows overlap it is louder", {"divide": False}),
    ("the sum is divided by windows, not by their squares: the window was put on twice", {"over": lambda w: w}),
    ("the pieces are not multiplied by the window before they are added", {"by": lambda piece, w: piece}),
    ("the window is put on once, and divided by the count of pieces", {"over": torch.ones_like}),
    (
        "it begins with the first window's first sample: a centred window has half of itself before the sound",
        {"first": 0},
    ),
    ("later pieces overwrite earlier ones instead of being added", {"put": "set"}),
    (
        "the window is divided out of each piece instead of being put on",
        {"by": lambda piece, w: piece / w.clamp(min=1e-3)},
    ),
):
    overlap_add.mutant(cause, OVERLAP)(functools.partial(added, **fault))


@overlap_add.mutant("half a window too much is kept at the end", OVERLAP)
def _(pieces, hop, window):
    long = added(torch.cat([pieces, torch.zeros_like(pieces)]), hop, window)
    return long[: (len(pieces) - 1) * hop + pieces.shape[1] // 2]


@overlap_add.mutant("the window is read backwards", OVERLAP)
def _(pieces, hop, window):
    return added(pieces, hop, window.flip(0))


overlap_add.alternative(added)


@overlap_add.alternative
def _(pieces, hop, window):
    columns, n = pieces.shape
    place = torch.arange(columns)[:, None] * hop + torch.arange(n)
    flat, length = place.flatten(), (columns - 1) * hop
    put = pieces.new_zeros(length + n)
    sound = put.index_add(0, flat, (pieces * window).flatten())
    total = put.index_add(0, flat, (window**2).expand(columns, -1).flatten())
    return (sound / total.clamp(min=1e-11))[n // 2 : n // 2 + length]


# ---- one round of Griffin-Lim ---------------------------------------------------------------------------------------


@exercise("One round of Griffin-Lim", minutes=25, level=3, rtol=1e-3, atol=1e-3, float64=False)
def griffin_lim_step(
    magnitudes: Float[Tensor, "frequencies columns"],
    table: Complex[Tensor, "frequencies columns"],
    before: Complex[Tensor, "frequencies columns"],
    hop: int,
    momentum: float = 0.99,
) -> tuple[Complex[Tensor, "frequencies columns"], Complex[Tensor, "frequencies columns"]]:
    """To sound and back by the Fourier sums themselves; then angle and length of each number."""
    n, columns = 2 * (len(table) - 1), table.shape[1]
    window = [0.5 - 0.5 * math.cos(2 * math.pi * i / n) for i in range(n)]
    turn = torch.arange(n // 2 + 1)[:, None] * torch.arange(n) * (2 * math.pi / n)
    wave = torch.polar(torch.ones_like(turn, dtype=torch.float64), turn.double())
    twice = torch.full((n // 2 + 1, 1), 2.0, dtype=torch.float64)
    twice[0] = twice[-1] = 1
    pieces = (table.to(torch.complex128).T @ (twice * wave)).real / n
    sound, total = [0.0] * ((columns - 1) * hop + n), [0.0] * ((columns - 1) * hop + n)
    for j, piece in enumerate(pieces.tolist()):
        for i, number in enumerate(piece):
            sound[j * hop + i] += number * window[i]
            total[j * hop + i] += window[i] ** 2
    ends = range(n // 2, n // 2 + (columns - 1) * hop)
    sound = [number / total[i] if i in ends else 0.0 for i, number in enumerate(sound)]
    framed = torch.tensor([[sound[j * hop + i] * window[i] for i in range(n)] for j in range(columns)]).double()
    rebuilt = (framed.to(torch.complex128) @ wave.conj().T).T
    ahead = rebuilt + momentum * (rebuilt - before)
    new = torch.polar(magnitudes.double(), ahead.angle())
    return new.to(table.dtype), rebuilt.to(table.dtype)


@griffin_lim_step.cases
def _(rng):
    def given(n, columns, hop, **more):
        size = (n // 2 + 1, columns)
        tables = [torch.polar(0.3 + rng.randn(*size).abs(), 3 * rng.randn(*size)) for _ in range(2)]
        return {"magnitudes": 0.3 + rng.randn(*size).abs(), "table": tables[0], "before": tables[1], "hop": hop, **more}

    yield "all sizes different", given(16, 6, 4, momentum=0.7)
    yield "momentum 0.99", given(8, 4, 2)
    yield "no momentum", given(8, 5, 2, momentum=0.0)
    yield "half overlap", given(12, 5, 6, momentum=0.5)
    first = given(16, 5, 4)
    yield "the first round: nothing was before", first | {"before": torch.zeros_like(first["before"])}
    hush = given(8, 4, 2, momentum=0.5)
    nothing = torch.zeros_like(hush["table"])
    yield "silence stays silence", hush | {"magnitudes": hush["magnitudes"] * 0, "table": nothing, "before": nothing}


def there_and_back(table, hop, pad_mode="constant", window=torch.hann_window):
    """The sound that a table stands for, and what that sound really has."""
    n, columns = 2 * (len(table) - 1), table.shape[1]
    shape = window(n, dtype=table.real.dtype)
    sound = torch.istft(table, n, hop, window=shape, length=(columns - 1) * hop)
    return torch.stft(sound, n, hop, window=shape, pad_mode=pad_mode, return_complex=True)


def searched(
    magnitudes,
    table,
    before,
    hop,
    momentum=0.99,
    *,
    ahead=lambda c, b, m: c + m * (c - b),
    back=there_and_back,
    lengths=lambda angles, magnitudes, c: magnitudes * angles,
    old=lambda c, ahead: c,
):
    """The round, with one thing to go wrong at a time."""
    c = back(table, hop)
    moved = ahead(c, before, momentum)
    return lengths(moved / moved.abs().clamp(min=1e-16), magnitudes, c), old(c, moved)


for cause, fault in (
    ("there is no momentum", {"ahead": lambda c, b, m: c}),
    (
        "the momentum has the wrong sign: a mean of new and old holds the search back",
        {"ahead": lambda c, b, m: c - m * (c - b)},
    ),
    ("the last change is taken alone, without the place it starts from", {"ahead": lambda c, b, m: m * (c - b)}),
    ("the momentum is always 0.99, whatever is asked for", {"ahead": lambda c, b, m: c + 0.99 * (c - b)}),
    (
        "the lengths of the rebuilt table are kept, not those that were asked for",
        {"lengths": lambda angles, s, c: c.abs() * angles},
    ),
    ("the angles come back with length 1: the magnitudes are missing", {"lengths": lambda angles, s, c: angles}),
    (
        "the table with the momentum is kept for the next round instead of the consistent one",
        {"old": lambda c, moved: moved},
    ),
    (
        'the sound is mirrored at its ends, which is torch\'s default: `pad_mode="constant"` is due',
        {"back": lambda table, hop: there_and_back(table, hop, "reflect")},
    ),
    ("a flat window is used: Hann is due", {"back": lambda table, hop: there_and_back(table, hop, window=torch.ones)}),
    ("the table never becomes a sound: it agrees with itself at once", {"back": lambda table, hop: table}),
):
    griffin_lim_step.mutant(cause, SEARCH)(functools.partial(searched, **fault))


@griffin_lim_step.mutant("it is divided by a length of 0, and silence becomes NaN", SEARCH)
def _(magnitudes, table, before, hop, momentum=0.99):
    c = there_and_back(table, hop)
    moved = c + momentum * (c - before)
    return magnitudes * (moved / moved.abs()), c


griffin_lim_step.alternative(searched)


@griffin_lim_step.alternative
def _(magnitudes, table, before, hop, momentum=0.99):
    c = there_and_back(table, hop)
    return torch.polar(magnitudes, (c - before * (momentum / (1 + momentum))).angle()).to(c.dtype), c
