"""Lesson 23, real speech: its oracles go through names, rows and symbols one by one, or ask torch's own CTC."""

import functools
import re
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tinyomni.grade.exercise import exercise

NOTEBOOK, TITLE = "23_real_speech", "Real speech"

SPLIT = "3. A split that is honest"
CHOICE = "2. What does the shipped recogniser hear?"
FREEZE = "4. Fine-tune: little data, a small step"
INTERVAL = "5. What it has learned"

fault: Any  # what a mutant changes


# ---- the split ------------------------------------------------------------------------------------------------------


@exercise("A split by words", minutes=10, level=1)
def split_by_words(transcripts: list[str], every: int) -> tuple[list[int], list[int]]:
    """Row by row: what place has its word among all different words?"""
    words = sorted(set(transcripts))
    held_out = {word for place, word in enumerate(words) if place % every == 0}
    train = [row for row, text in enumerate(transcripts) if text not in held_out]
    return train, [row for row, text in enumerate(transcripts) if text in held_out]


@split_by_words.cases
def _(rng):
    yield (
        "words that are recorded twice",
        {"transcripts": ["two", "six", "ten", "six", "one", "two", "four"], "every": 2},
    )
    yield "every word once", {"transcripts": ["delta", "alpha", "echo", "bravo", "charlie"], "every": 3}
    yield "one word, four times", {"transcripts": ["star"] * 4, "every": 5}
    yield "in the order of the alphabet", {"transcripts": ["a", "b", "b", "c", "d", "d", "e"], "every": 3}
    yield "all words held out", {"transcripts": ["no", "yes", "no"], "every": 1}
    yield "no rows", {"transcripts": [], "every": 2}


@split_by_words.random_inputs
def _(rng):
    return {"transcripts": rng.chosen(("no", "yes", "up", "stop", "go", "on", "a"), 12), "every": rng.size(4)}


def split_variant(
    transcripts,
    every,
    *,
    words=lambda texts: sorted(set(texts)),
    chosen=lambda place, every: place % every == 0,
    swapped=False,
    both=False,
):
    """`split_by_words`; each keyword injects one fault."""
    held_out = {word for place, word in enumerate(words(transcripts)) if chosen(place, every)}
    train = [row for row, text in enumerate(transcripts) if both or text not in held_out]
    test = [row for row, text in enumerate(transcripts) if text in held_out]
    return (test, train) if swapped else (train, test)


for cause, fault in (
    ("words are counted in the order in which they come, not in that of the alphabet",
     {"words": lambda texts: list(dict.fromkeys(texts))}),
    ("every recording is counted, not every different word", {"words": sorted}),
    ("the words are in descending order", {"words": lambda texts: sorted(set(texts), reverse=True)}),
    ("words are sorted by their length",
     {"words": lambda texts: sorted(set(texts), key=lambda word: (len(word), word))}),
    ("counting starts at one: the first word is number 0, and held out",
     {"chosen": lambda place, every: (place + 1) % every == 0}),
    ("the first words are held out instead of every k-th", {"chosen": lambda place, every: place < every}),
    ("training and test are swapped: every k-th word is held out", {"swapped": True}),
    ("held-out rows are trained on too", {"both": True}),
):  # fmt: skip
    split_by_words.mutant(cause, SPLIT)(functools.partial(split_variant, **fault))


@split_by_words.mutant("rows are split, not words: the second recording of a word ends up on the other side", SPLIT)
def _(transcripts, every):
    rows = range(len(transcripts))
    return [row for row in rows if row % every], [row for row in rows if row % every == 0]


@split_by_words.mutant("texts are returned, not the numbers of their rows", SPLIT)
def _(transcripts, every):
    return tuple([transcripts[row] for row in part] for part in split_variant(transcripts, every))


@split_by_words.mutant("a word's second recording is lost: rows are looked up by their word", SPLIT)
def _(transcripts, every):
    words = sorted(set(transcripts))
    held_out = sorted(transcripts.index(word) for word in words[::every])
    return sorted(transcripts.index(word) for word in words if word not in words[::every]), held_out


split_by_words.alternative(split_variant)


@split_by_words.alternative
def _(transcripts, every):
    place = {word: number for number, word in enumerate(sorted(set(transcripts)))}
    parts: tuple[list[int], list[int]] = ([], [])
    for row, text in enumerate(transcripts):
        parts[place[text] % every == 0].append(row)
    return parts


# ---- choosing among words -------------------------------------------------------------------------------------------


@exercise("The probability of each candidate", minutes=20, level=2, gradients=("log_probs",))
def candidate_probabilities(
    log_probs: Float[Tensor, "audio_tokens characters"], candidates: list[Int[Tensor, "_"]]
) -> Float[Tensor, "candidates"]:
    """torch's own CTC, one candidate after the other."""
    tokens = torch.tensor([len(log_probs)])
    scores = [
        -F.ctc_loss(log_probs[:, None], ids[None], tokens, torch.tensor([len(ids)]), reduction="sum")
        for ids in candidates
    ]
    return torch.stack(scores).softmax(dim=0)


@candidate_probabilities.cases
def _(rng):
    def given(tokens, characters, *candidates):
        log_probs = (2 * rng.randn(tokens, characters)).log_softmax(-1)
        return {"log_probs": log_probs, "candidates": [torch.tensor(ids) for ids in candidates]}

    yield "three candidates of different lengths", given(7, 5, (3, 1), (2, 4, 1, 2), (1,))
    yield "the same length", given(6, 4, (1, 2, 3), (3, 2, 1), (2, 1, 3), (1, 3, 2))
    yield "an equal pair", given(5, 3, (1, 1), (1, 2), (2, 2, 1))
    yield "one is too long to be emitted", given(3, 4, (1, 2), (1, 1, 2, 3), (3,))
    yield "a single candidate", given(4, 3, (2, 1))
    unlikely = torch.full((5, 4), -60.0)
    unlikely[:, 0] = 0.0
    few = [torch.tensor([1, 2]), torch.tensor([3, 3])]
    yield "losses above 100: exp(−loss) is 0 in float32", {"log_probs": unlikely, "candidates": few}
    yield "a long recording", given(30, 6, (1, 5), (5, 1, 4, 4, 2), (2, 3, 4), (4,))


@candidate_probabilities.random_inputs
def _(rng):
    tokens, characters = rng.size(24, 5), rng.size(5, 2)
    log_probs = (rng.choice((1.0, 3.0, 40.0)) * rng.randn(tokens, characters)).log_softmax(-1)
    candidates = [rng.randint(characters, rng.size(6), low=1) for _ in range(rng.size(4))]
    return {"log_probs": log_probs, "candidates": [torch.tensor([1]), *candidates]}


def candidate_variant(
    log_probs,
    candidates,
    *,
    sign=-1.0,
    length=lambda ids: 1,
    final=lambda scores: scores.softmax(dim=0),
    score=None,
    blank=0,
    shift=0,
):
    """`candidate_probabilities`; each keyword injects one fault."""
    found = []
    for ids in candidates:
        if score:
            found.append(score(log_probs, ids))
            continue
        loss = F.ctc_loss(
            log_probs[:, None],
            (ids - shift)[None],
            torch.tensor([len(log_probs)]),
            torch.tensor([len(ids)]),
            blank=blank % log_probs.shape[1],
            reduction="sum",
        )
        found.append(sign * loss / length(ids))
    return final(torch.stack(found))


def best_path(log_probs, ids):
    """The likeliest single path that reads `ids`."""
    symbols = [0] + [symbol for each in ids.tolist() for symbol in (each, 0)]
    alpha = [log_probs[0, symbol] if s < 2 else torch.tensor(-torch.inf) for s, symbol in enumerate(symbols)]
    for row in log_probs[1:]:
        ways = [
            [alpha[s], *([alpha[s - 1]] if s else []),
             *([alpha[s - 2]] if s >= 2 and symbol and symbol != symbols[s - 2] else [])]
            for s, symbol in enumerate(symbols)
        ]  # fmt: skip
        alpha = [torch.stack(way).max() + row[symbol] for way, symbol in zip(ways, symbols, strict=True)]
    return torch.stack(alpha[-2:]).max()


def without_order(log_probs, ids):
    """How likely the characters are somewhere, in any order."""
    return log_probs[:, ids].max(dim=0).values.sum()


for cause, fault in (
    ("the sign is inverted: the loss of the right candidate is the smallest", {"sign": 1.0}),
    ("scores are divided by the number of characters: those are no probabilities any more", {"length": len}),
    ("the result is log-probabilities", {"final": lambda scores: scores.log_softmax(dim=0)}),
    ("probabilities of the texts are not made to sum to 1 over the candidates", {"final": torch.exp}),
    ("scores are divided by their sum, without `exp`", {"final": lambda scores: scores / scores.sum()}),
    ("the candidates are in descending order of their probability: each has to stay at its place",
     {"final": lambda scores: scores.softmax(dim=0).sort(descending=True).values}),
    ("exp(−loss) is computed before it is divided by the sum: it underflows to 0, and 0/0 is NaN",
     {"final": lambda scores: scores.exp() / scores.exp().sum()}),
    ("only the best candidate gets a probability, 1", {"final": lambda scores: (scores == scores.max()).float()}),
    ("only the best path of each candidate counts: all must be summed", {"score": best_path}),
    ("the order of the characters is ignored", {"score": without_order}),
    ("the blank is the last symbol: here it is 0", {"blank": -1}),
):  # fmt: skip
    candidate_probabilities.mutant(cause, CHOICE)(functools.partial(candidate_variant, **fault))


candidate_probabilities.alternative(candidate_variant)


@candidate_probabilities.alternative
def _(log_probs, candidates):
    count = len(candidates)
    loss = F.ctc_loss(
        log_probs[:, None].expand(-1, count, -1),
        torch.cat(candidates),
        torch.full((count,), len(log_probs)),
        torch.tensor([len(ids) for ids in candidates]),
        reduction="none",
    )
    return (-loss).softmax(dim=0)


@candidate_probabilities.alternative
def _(log_probs, candidates):
    p = log_probs.double().exp()
    found = []
    for ids in candidates:
        symbols = torch.zeros(2 * len(ids) + 1, dtype=torch.long)
        symbols[1::2] = ids
        free = torch.zeros(len(symbols), dtype=torch.bool)
        free[2:] = (symbols[2:] != 0) & (symbols[2:] != symbols[:-2])
        alpha = torch.cat([p[0, symbols[:2]], p.new_zeros(len(symbols) - 2)])
        for row in p[1:]:
            alpha = (alpha + F.pad(alpha[:-1], (1, 0)) + F.pad(alpha[:-2], (2, 0)) * free) * row[symbols]
        found.append(alpha[-2:].sum())
    return (torch.stack(found) / torch.stack(found).sum()).to(log_probs)


# ---- freezing -------------------------------------------------------------------------------------------------------


@exercise("Freeze what is below", minutes=10, level=1)
def trainable_names(names: list[str], first_block: int) -> list[str]:
    """Name by name, the number of its block read by a regular expression."""
    kept = []
    for name in names:
        block = re.fullmatch(r"encoder\.blocks\.(\d+)\..+", name)
        above = int(block[1]) >= first_block if block else name.startswith(("encoder.norm.", "head."))
        kept += [name] * above
    return kept


def parameter_names(blocks):
    """As those of an AudioStage, fewer of each block."""
    below = ["encoder.down.0.weight", "encoder.down.2.bias", "encoder.proj.weight", "encoder.proj.bias"]
    inside = ("norm1.weight", "attn.qkv.weight", "mlp.0.bias")
    above = ["encoder.norm.weight", "encoder.norm.bias", "head.out.weight", "head.out.bias"]
    return below + [f"encoder.blocks.{block}.{name}" for block in range(blocks) for name in inside] + above


@trainable_names.cases
def _(rng):
    yield "four blocks, the last two are trained", {"names": parameter_names(4), "first_block": 2}
    yield "all blocks", {"names": parameter_names(3), "first_block": 0}
    yield "no block", {"names": parameter_names(3), "first_block": 3}
    yield "twelve blocks, from the third one", {"names": parameter_names(12), "first_block": 2}
    yield "twelve blocks, the last two", {"names": parameter_names(12), "first_block": 10}
    yield "another order", {"names": parameter_names(4)[::-1], "first_block": 1}


@trainable_names.random_inputs
def _(rng):
    blocks = rng.size(13)
    names = parameter_names(blocks)
    return {"names": rng.choice((names, names[::-1], names[5:] + names[:5])), "first_block": rng.size(blocks, 0)}


def trainable_variant(
    names,
    first_block,
    *,
    at_least=lambda block, first: int(block) >= int(first),
    others=("encoder.norm.", "head."),
    invert=False,
    order=list,
):
    """`trainable_names`; each keyword injects one fault."""

    def chosen(name):
        if name.startswith("encoder.blocks."):
            return at_least(name.split(".")[2], first_block)
        return name.startswith(others)

    return order(name for name in names if chosen(name) != invert)


for cause, fault in (
    ("the first trained block is frozen too: `first_block` is included",
     {"at_least": lambda block, first: int(block) > first}),
    ("numbers are compared as strings: \"10\" comes before \"2\"",
     {"at_least": lambda block, first: block >= str(first)}),
    ("a single block is trained, not all from there on", {"at_least": lambda block, first: int(block) == first}),
    ("the blocks below are trained, not those above", {"at_least": lambda block, first: int(block) < first}),
    ("the final norm is frozen: it is behind the last block", {"others": ("head.",)}),
    ("the head is frozen", {"others": ("encoder.norm.",)}),
    ("the blocks alone are trained: the final norm and the head are frozen", {"others": ()}),
    ("the projection below the blocks is trained too", {"others": ("encoder.norm.", "head.", "encoder.proj.")}),
    ("the convolutions and the projection are trained too",
     {"others": ("encoder.norm.", "head.", "encoder.proj.", "encoder.down.")}),
    ("the frozen names are returned", {"invert": True}),
    ("the names are sorted: they should stay in their order", {"order": sorted}),
):  # fmt: skip
    trainable_names.mutant(cause, FREEZE)(functools.partial(trainable_variant, **fault))


@trainable_names.mutant('blocks are found by a prefix: "blocks.1" is also the beginning of "blocks.10"', FREEZE)
def _(names, first_block):
    frozen = tuple(["encoder.down", "encoder.proj"] + [f"encoder.blocks.{block}" for block in range(first_block)])
    return [name for name in names if not name.startswith(frozen)]


trainable_names.alternative(trainable_variant)


@trainable_names.alternative
def _(names, first_block):
    frozen = ["encoder.down.", "encoder.proj."] + [f"encoder.blocks.{block}." for block in range(first_block)]
    return [name for name in names if not any(name.startswith(each) for each in frozen)]


# ---- masking --------------------------------------------------------------------------------------------------------


@exercise("SpecAugment: mask a stretch of time and of bands", minutes=15, level=2)
def mask_spectrogram(
    mel: Float[Tensor, "batch mel_frames n_mels"],
    frames: Int[Tensor, "batch 2"],
    bands: Int[Tensor, "batch 2"],
) -> Float[Tensor, "batch mel_frames n_mels"]:
    """Number by number."""
    result = mel.clone()
    for row in range(len(mel)):
        mean = mel[row].mean()
        for frame in range(mel.shape[1]):
            for band in range(mel.shape[2]):
                in_time = frames[row, 0] <= frame < frames[row, 1]
                if in_time or bands[row, 0] <= band < bands[row, 1]:
                    result[row, frame, band] = mean
    return result


@mask_spectrogram.cases
def _(rng):
    def given(shape, frames, bands):
        return {"mel": 2 * rng.randn(*shape) - 4, "frames": torch.tensor(frames), "bands": torch.tensor(bands)}

    yield "another mask for each recording", given((3, 6, 5), [[1, 3], [0, 1], [4, 6]], [[0, 2], [3, 4], [1, 4]])
    yield "as many frames as bands", given((2, 4, 4), [[1, 2], [2, 4]], [[3, 4], [0, 1]])
    yield "time alone", given((2, 5, 3), [[0, 2], [3, 5]], [[0, 0], [2, 2]])
    yield "bands alone", given((2, 3, 6), [[1, 1], [0, 0]], [[2, 5], [0, 3]])
    yield "nothing is masked", given((2, 3, 4), [[2, 2], [0, 0]], [[1, 1], [4, 4]])
    yield "everything is masked", given((1, 3, 2), [[0, 3]], [[0, 2]])


@mask_spectrogram.random_inputs
def _(rng):
    batch, frames, bands = rng.size(3), rng.size(6), rng.size(5)
    stretches = [rng.randint(size + 1, batch, 2).sort(dim=1).values for size in (frames, bands)]
    mel = rng.choice((1.0, 20.0)) * rng.randn(batch, frames, bands) - 4
    return {"mel": mel, "frames": stretches[0], "bands": stretches[1]}


def mask_variant(
    mel,
    frames,
    bands,
    *,
    inside=lambda at, low, high: (at >= low) & (at < high),
    combine=torch.logical_or,
    value=lambda mel: mel.mean(dim=(1, 2), keepdim=True),
    shared=False,
    time=True,
    frequency=True,
    invert=False,
):
    """`mask_spectrogram`; each keyword injects one fault."""
    if shared:
        frames, bands = frames[:1].expand_as(frames), bands[:1].expand_as(bands)
    at_frame, at_band = torch.arange(mel.shape[1]), torch.arange(mel.shape[2])
    in_time = inside(at_frame, frames[:, :1], frames[:, 1:])[:, :, None]
    in_bands = inside(at_band, bands[:, :1], bands[:, 1:])[:, None, :]
    mask = combine(in_time & torch.tensor(time), in_bands & torch.tensor(frequency))
    return torch.where(mask != invert, value(mel), mel)


for cause, fault in (
    ("the masks hold zeros: a log-mel of 0 is loud, fill in the mean", {"value": torch.zeros_like}),
    ("the mean is that of the whole batch: a recording then depends on its neighbours",
     {"value": lambda mel: mel.mean()}),
    ("each band has a mean of its own: one number for each recording",
     {"value": lambda mel: mel.mean(dim=1, keepdim=True)}),
    ("each frame has a mean of its own: one number for each recording",
     {"value": lambda mel: mel.mean(dim=2, keepdim=True)}),
    ("the masks hold the minimum, not the mean", {"value": lambda mel: mel.amin(dim=(1, 2), keepdim=True)}),
    ("the end is masked too: a stretch ends before it", {"inside": lambda at, low, high: (at >= low) & (at <= high)}),
    ("the second number is taken for a length", {"inside": lambda at, low, high: (at >= low) & (at < low + high)}),
    ("only what both masks cover is masked", {"combine": torch.logical_and}),
    ("what both masks cover is left as it was", {"combine": torch.logical_xor}),
    ("all recordings have the mask of the first one", {"shared": True}),
    ("time is not masked", {"time": False}),
    ("the bands are not masked", {"frequency": False}),
    ("everything but the masks is masked", {"invert": True}),
):  # fmt: skip
    mask_spectrogram.mutant(cause, FREEZE)(functools.partial(mask_variant, **fault))


@mask_spectrogram.mutant("the spectrogram of the caller is changed: work on a copy", FREEZE)
def _(mel, frames, bands):
    return mel.copy_(mask_variant(mel, frames, bands))


@mask_spectrogram.mutant(
    "the mean is computed again after time was masked: take the mean of the recording as it is", FREEZE
)
def _(mel, frames, bands):
    return mask_variant(mask_variant(mel, frames, bands, frequency=False), frames, bands, time=False)


mask_spectrogram.alternative(mask_variant)


@mask_spectrogram.alternative
def _(mel, frames, bands):
    result = mel.clone()
    for row, ((begin, end), (low, high)) in enumerate(zip(frames.tolist(), bands.tolist(), strict=True)):
        mean = mel[row].mean()
        result[row, begin:end] = mean
        result[row, :, low:high] = mean
    return result


# ---- the interval ---------------------------------------------------------------------------------------------------


@exercise("A confidence interval by bootstrap", minutes=15, level=2, float64=False)
def bootstrap_interval(
    errors: Float[Tensor, "recordings"], characters: Float[Tensor, "recordings"], rows: Int[Tensor, "rounds recordings"]
) -> tuple[float, float]:
    """Round by round: the rate of each, sorted, and between which two a quantile lies."""
    rates = sorted(
        sum(float(errors[row]) for row in chosen) / sum(float(characters[row]) for row in chosen)
        for chosen in rows.tolist()
    )

    def quantile(q):
        place = q * (len(rates) - 1)
        below = int(place)
        above = min(below + 1, len(rates) - 1)
        return rates[below] + (place - below) * (rates[above] - rates[below])

    return quantile(0.025), quantile(0.975)


@bootstrap_interval.cases
def _(rng):
    def given(recordings, rounds, longest=9):
        characters = rng.randint(longest, recordings, low=1).float()
        errors = (rng.randint(100, recordings) / 100 * (characters + 2)).floor()
        return {"errors": errors, "characters": characters, "rows": rng.randint(recordings, rounds, recordings)}

    yield "all sizes different", given(6, 40)
    yield "more recordings", given(30, 101)
    yield "one round", given(5, 1)
    yield "one recording", given(1, 4)
    equal = given(8, 50)
    yield "all transcripts of one length", equal | {"characters": torch.full((8,), 4.0)}
    yield "no errors", given(4, 20) | {"errors": torch.zeros(4)}


@bootstrap_interval.random_inputs
def _(rng):
    recordings, characters = rng.size(8), rng.choice((3, 60))
    return {
        "errors": rng.randint(characters, recordings).float(),
        "characters": rng.randint(characters, recordings, low=1).float(),
        "rows": rng.randint(recordings, rng.size(60), recordings),
    }


def interval_variant(
    errors,
    characters,
    rows,
    *,
    rates=lambda errors, characters, rows: errors[rows].sum(dim=1) / characters[rows].sum(dim=1),
    quantiles=(0.025, 0.975),
    final=lambda low, high: (low, high),
):
    """`bootstrap_interval`; each keyword injects one fault."""
    found = rates(errors.double(), characters.double(), rows)
    low, high = (float(torch.quantile(found, q)) for q in quantiles)
    return final(low, high)


def normal_interval(errors, characters, rows):
    """Mean ± 1.96 standard deviations of the rounds, as numbers whose quantiles are these two."""
    rates = errors[rows].sum(dim=1) / characters[rows].sum(dim=1)
    spread = 1.96 * rates.std(unbiased=False)
    return torch.stack([rates.mean() - spread, rates.mean() + spread])


for cause, fault in (
    ("each recording's own rate is averaged: a rate is a sum over a sum",
     {"rates": lambda e, c, rows: (e / c)[rows].mean(dim=1)}),
    ("errors are drawn again, the characters are those of all recordings: draw both together",
     {"rates": lambda e, c, rows: e[rows].sum(dim=1) / c.sum()}),
    ("characters are drawn again, the errors are those of all recordings",
     {"rates": lambda e, c, rows: e.sum() / c[rows].sum(dim=1)}),
    ("rates are not drawn again: these are the quantiles of single recordings", {"rates": lambda e, c, rows: e / c}),
    ("the sum is over the rounds, not over the recordings of a round",
     {"rates": lambda e, c, rows: e[rows].sum(dim=0) / c[rows].sum(dim=0)}),
    ("errors are not divided by characters", {"rates": lambda e, c, rows: e[rows].sum(dim=1)}),
    ("the result is accuracy, 1 − rate", {"final": lambda low, high: (1 - high, 1 - low)}),
    ("this is an interval of 90%: 5% are left out on each side", {"quantiles": (0.05, 0.95)}),
    ("this is an interval of 97.5%", {"quantiles": (0.0125, 0.9875)}),
    ("smallest and largest round: an interval of 95% leaves out 2.5% on each side", {"quantiles": (0.0, 1.0)}),
    ("the lower end is the median", {"quantiles": (0.5, 0.975)}),
    ("the ends are swapped", {"final": lambda low, high: (high, low)}),
    ("the result is percent", {"final": lambda low, high: (100 * low, 100 * high)}),
    ("mean ± 1.96 standard deviations: take the quantiles of the rounds",
     {"rates": normal_interval, "quantiles": (0.0, 1.0)}),
):  # fmt: skip
    bootstrap_interval.mutant(cause, INTERVAL)(functools.partial(interval_variant, **fault))


bootstrap_interval.alternative(interval_variant)


@bootstrap_interval.alternative
def _(errors, characters, rows):
    import numpy as np

    wrong, right = errors.numpy()[rows.numpy()].sum(1), characters.numpy()[rows.numpy()].sum(1)
    low, high = np.quantile(wrong.astype(float) / right, [0.025, 0.975])
    return float(low), float(high)
