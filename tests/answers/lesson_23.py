"""Lesson 23: a split by words, choosing among words, freezing, masking, an interval."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from answers import right, wrong

# ---- the split ------------------------------------------------------------------------------------------------------


@right("split_by_words")
def _(transcripts, every):
    test_words = sorted(set(transcripts))[::every]
    test = [i for i, t in enumerate(transcripts) if t in test_words]
    return [i for i in range(len(transcripts)) if i not in test], test


@right("split_by_words")
def _(transcripts, every):
    train, test, order = [], [], sorted(set(transcripts))
    for i in range(len(transcripts)):
        if order.index(transcripts[i]) % every == 0:
            test.append(i)
        else:
            train.append(i)
    return train, test


@right("split_by_words")
def _(transcripts, every):
    inverse = np.unique(np.array(transcripts, dtype=object), return_inverse=True)[1]
    held_out = inverse % every == 0
    return np.flatnonzero(~held_out).tolist(), np.flatnonzero(held_out).tolist()


@wrong("split_by_words", "every k-th row")
def _(transcripts, every):
    rows = list(range(len(transcripts)))
    return [r for r in rows if r not in rows[::every]], rows[::every]


@wrong("split_by_words", "a set has no order")
def _(transcripts, every):
    words = sorted(set(transcripts), key=lambda word: word[::-1] + word)
    return [i for i, t in enumerate(transcripts) if t not in words[::every]], [
        i for i, t in enumerate(transcripts) if t in words[::every]
    ]


@wrong("split_by_words", "the first fraction of the words")
def _(transcripts, every):
    words = sorted(set(transcripts))
    held = words[: math.ceil(len(words) / every) + 1]
    return [i for i, t in enumerate(transcripts) if t not in held], [i for i, t in enumerate(transcripts) if t in held]


@wrong("split_by_words", "counted from every - 1")
def _(transcripts, every):
    held = sorted(set(transcripts))[every - 1 :: every]
    return [i for i, t in enumerate(transcripts) if t not in held], [i for i, t in enumerate(transcripts) if t in held]


@wrong("split_by_words", "the words")
def _(transcripts, every):
    words = sorted(set(transcripts))
    return [w for w in words if w not in words[::every]], words[::every]


# ---- choosing -------------------------------------------------------------------------------------------------------


@right("candidate_probabilities")
def _(log_probs, candidates):
    losses = []
    for ids in candidates:
        losses.append(
            F.ctc_loss(log_probs.unsqueeze(1), ids.unsqueeze(0), [len(log_probs)], [len(ids)], reduction="sum")
        )
    return torch.softmax(-torch.stack(losses), 0)


@right("candidate_probabilities")
def _(log_probs, candidates):
    longest = max(map(len, candidates))
    table = torch.stack([F.pad(ids, (0, longest - len(ids)), value=1) for ids in candidates])
    sizes = torch.tensor([len(ids) for ids in candidates])
    tokens = torch.full_like(sizes, len(log_probs))
    loss = F.ctc_loss(log_probs[:, None].repeat(1, len(candidates), 1), table, tokens, sizes, reduction="none")
    scores = -loss
    return (scores - scores.logsumexp(0)).exp()


@right("candidate_probabilities")
def _(log_probs, candidates):
    # without a batch axis
    loss = [
        F.ctc_loss(log_probs, ids, torch.tensor(len(log_probs)), torch.tensor(len(ids)), reduction="none").reshape(())
        for ids in candidates
    ]
    likelihood = torch.exp(-torch.stack(loss).double())
    return (likelihood / likelihood.sum()).to(log_probs.dtype)


def losses_of(log_probs, candidates, reduction="sum"):
    def loss(ids):
        sizes = torch.tensor([len(log_probs)]), torch.tensor([len(ids)])
        return F.ctc_loss(log_probs[:, None], ids[None], *sizes, reduction=reduction)

    return torch.stack([loss(ids) for ids in candidates])


wrong("candidate_probabilities", "softmax of losses")(lambda p, c: losses_of(p, c).softmax(0))
wrong("candidate_probabilities", "reduction='mean' divides by the length")(
    lambda p, c: (-losses_of(p, c, "mean")).softmax(0)
)
wrong("candidate_probabilities", "likelihoods")(lambda p, c: (-losses_of(p, c)).exp())
wrong("candidate_probabilities", "detached")(lambda p, c: (-losses_of(p.detach(), c)).softmax(0))
wrong("candidate_probabilities", "the index of the best")(lambda p, c: losses_of(p, c).argmin())
wrong("candidate_probabilities", "divided by the tokens")(lambda p, c: (-losses_of(p, c) / len(p)).softmax(0))
wrong("candidate_probabilities", "sigmoid")(lambda p, c: (-losses_of(p, c)).sigmoid())


# ---- freezing -------------------------------------------------------------------------------------------------------


@right("trainable_names")
def _(names, first_block):
    out = []
    for name in names:
        parts = name.split(".")
        if (parts[1] == "blocks" and int(parts[2]) >= first_block) or parts[1] == "norm" or parts[0] == "head":
            out.append(name)
    return out


@right("trainable_names")
def _(names, first_block):
    def frozen(name):
        if name.startswith(("encoder.down", "encoder.proj")):
            return True
        return "blocks" in name and int(name.removeprefix("encoder.blocks.").partition(".")[0]) < first_block

    return [name for name in names if not frozen(name)]


@right("trainable_names")
def _(names, first_block):
    blocks = {int(n.split(".")[2]) for n in names if n.startswith("encoder.blocks.")}
    heads = ["encoder.norm.", "head."] + [f"encoder.blocks.{b}." for b in blocks if b >= first_block]
    return list(filter(lambda name: name.startswith(tuple(heads)), names))


@wrong("trainable_names", "a set")
def _(names, first_block):
    return {n for n in names if n.startswith(("head", "encoder.norm"))}


@wrong("trainable_names", "one digit")
def _(names, first_block):
    return [
        n
        for n in names
        if n.startswith(("head", "encoder.norm")) or (".blocks." in n and int(n[len("encoder.blocks.")]) >= first_block)
    ]


@wrong("trainable_names", "norm inside the blocks too")
def _(names, first_block):
    return [n for n in names if "norm" in n or "head" in n or (".blocks." in n and int(n.split(".")[2]) >= first_block)]


@wrong("trainable_names", "counted from the top")
def _(names, first_block):
    last = max((int(n.split(".")[2]) for n in names if ".blocks." in n), default=0)
    return [
        n
        for n in names
        if n.startswith(("head", "encoder.norm")) or (".blocks." in n and int(n.split(".")[2]) > last - first_block)
    ]


@wrong("trainable_names", "all")
def _(names, first_block):
    return names


# ---- masking --------------------------------------------------------------------------------------------------------


@right("mask_spectrogram")
def _(mel, frames, bands):
    t, b = torch.arange(mel.shape[1])[None, :, None], torch.arange(mel.shape[2])[None, None]
    hidden = (t >= frames[:, 0, None, None]) & (t < frames[:, 1, None, None])
    hidden = hidden | ((b >= bands[:, 0, None, None]) & (b < bands[:, 1, None, None]))
    return mel.masked_fill(hidden, 0) + hidden * mel.mean((1, 2), keepdim=True)


@right("mask_spectrogram")
def _(mel, frames, bands):
    out = []
    for x, f, b in zip(mel, frames, bands, strict=True):
        y = x.clone()
        y[f[0] : f[1]] = x.mean()
        y[:, b[0] : b[1]] = x.mean()
        out.append(y)
    return torch.stack(out)


@right("mask_spectrogram")
def _(mel, frames, bands):
    keep = torch.ones_like(mel)
    for i in range(mel.shape[0]):
        keep[i, int(frames[i, 0]) : int(frames[i, 1])] = 0
        keep[i, :, int(bands[i, 0]) : int(bands[i, 1])] = 0
    mean = mel.flatten(1).mean(1)[:, None, None]
    return mean + (mel - mean) * keep


@wrong("mask_spectrogram", "in place")
def _(mel, frames, bands):
    for x, f, b in zip(mel, frames, bands, strict=True):
        mean = x.mean()
        x[f[0] : f[1]] = mean
        x[:, b[0] : b[1]] = mean
    return mel


@wrong("mask_spectrogram", "axes swapped")
def _(mel, frames, bands):
    out = mel.clone()
    for y, x, f, b in zip(out, mel, frames, bands, strict=True):
        y[:, f[0] : f[1]] = x.mean()
        y[b[0] : b[1]] = x.mean()
    return out


@wrong("mask_spectrogram", "zeros")
def _(mel, frames, bands):
    out = mel.clone()
    for y, f, b in zip(out, frames, bands, strict=True):
        y[f[0] : f[1]] = 0
        y[:, b[0] : b[1]] = 0
    return out


@wrong("mask_spectrogram", "a rectangle")
def _(mel, frames, bands):
    out = mel.clone()
    for y, x, f, b in zip(out, mel, frames, bands, strict=True):
        y[f[0] : f[1], b[0] : b[1]] = x.mean()
    return out


@wrong("mask_spectrogram", "start and length")
def _(mel, frames, bands):
    out = mel.clone()
    for y, x, f, b in zip(out, mel, frames, bands, strict=True):
        y[f[0] : f[0] + f[1]] = x.mean()
        y[:, b[0] : b[0] + b[1]] = x.mean()
    return out


# ---- the interval ---------------------------------------------------------------------------------------------------


@right("bootstrap_interval")
def _(errors, characters, rows):
    rates = (errors[rows].sum(1) / characters[rows].sum(1)).sort().values
    low, high = rates.quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


@right("bootstrap_interval")
def _(errors, characters, rows):
    rates = [errors[r].sum().item() / characters[r].sum().item() for r in rows]
    return tuple(np.percentile(rates, [2.5, 97.5]))


@right("bootstrap_interval")
def _(errors, characters, rows):
    counts = torch.stack([torch.bincount(r, minlength=len(errors)) for r in rows]).to(errors.dtype)
    rates = (counts @ errors) / (counts @ characters)
    return torch.quantile(rates, 0.025).item(), torch.quantile(rates, 0.975).item()


@wrong("bootstrap_interval", "a mean of rates")
def _(errors, characters, rows):
    rates = (errors / characters)[rows].mean(1)
    return rates.quantile(0.025).item(), rates.quantile(0.975).item()


@wrong("bootstrap_interval", "80%")
def _(errors, characters, rows):
    rates = errors[rows].sum(1) / characters[rows].sum(1)
    return rates.quantile(0.1).item(), rates.quantile(0.9).item()


@wrong("bootstrap_interval", "another resampling of the characters")
def _(errors, characters, rows):
    rates = errors[rows].sum(1) / characters[rows.flip(0)].sum(1)
    return rates.quantile(0.025).item(), rates.quantile(0.975).item()


@wrong("bootstrap_interval", "one end")
def _(errors, characters, rows):
    rates = errors[rows].sum(1) / characters[rows].sum(1)
    return rates.quantile(0.975).item()


@wrong("bootstrap_interval", "the standard error")
def _(errors, characters, rows):
    rates = errors[rows].sum(1) / characters[rows].sum(1)
    middle = (errors.sum() / characters.sum()).item()
    spread = 1.96 * rates.std(correction=0).item()
    return middle - spread, middle + spread
