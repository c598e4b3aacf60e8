"""Lessons 13 to 16: training each part."""

import itertools
import math

import torch
import torch.nn.functional as F

from answers import right, wrong

right("grammar_entropy")(lambda w, lines, tokens: (w * (lines / w).log()).sum() / (w * tokens).sum())
right("grammar_entropy")(
    lambda w, lines, tokens: torch.dot(w, lines.to(w.dtype).log() - w.log()) / torch.dot(w, tokens)
)
right("grammar_entropy")(lambda w, lines, tokens: torch.tensor(
    sum(a * math.log(n / a) for a, n in zip(w.tolist(), lines.tolist(), strict=True))
    / sum(a * t for a, t in zip(w.tolist(), tokens.tolist(), strict=True)), dtype=w.dtype))  # fmt: skip
wrong("grammar_entropy", "bits")(lambda w, lines, tokens: (w * (lines / w).log2()).sum() / (w * tokens).sum())
wrong("grammar_entropy", "entropy of the families left out")(
    lambda w, lines, tokens: (w * lines.log()).sum() / (w * tokens).sum()
)
wrong("grammar_entropy", "entropy of the families only")(
    lambda w, lines, tokens: -(w * w.log()).sum() / (w * tokens).sum()
)
wrong("grammar_entropy", "ratio inside the sum")(lambda w, lines, tokens: (w * (lines / w).log() / tokens).sum())
wrong("grammar_entropy", "plain mean of tokens")(lambda w, lines, tokens: (w * (lines / w).log()).sum() / tokens.mean())
wrong("grammar_entropy", "per line")(lambda w, lines, tokens: (w * (lines / w).log()).sum())
wrong("grammar_entropy", "n · w")(lambda w, lines, tokens: (w * (lines * w).log()).sum() / (w * tokens).sum())
wrong("grammar_entropy", "tokens weighted by lines")(
    lambda w, lines, tokens: (w * (lines / w).log()).sum() / ((lines * tokens).sum() / lines.sum())
)
wrong("grammar_entropy", "log of all lines together")(
    lambda w, lines, tokens: lines.sum().to(w.dtype).log() / (w * tokens).sum()
)


def bigram(smooth=1.0, count_pad=False, test_pad=False, direction=1, denominator=None, average=None):
    def answer(train, test, vocab, pad=0):
        counts = torch.zeros(vocab, vocab)
        for row in train.tolist():
            for a, b in itertools.pairwise(row):
                if count_pad or pad not in (a, b):
                    counts[(a, b)[:: 1 if direction == 1 else -1]] += 1
        total = counts.sum(1, keepdim=True) + vocab * smooth if denominator is None else denominator(counts)
        losses = []
        for row in test.tolist():
            pairs = [(a, b) for a, b in itertools.pairwise(row) if test_pad or pad not in (a, b)]
            losses.append([-torch.log((counts[a, b] + smooth) / total[a, 0]) for a, b in pairs])
        if average:
            return average(losses)
        flat = [x for each in losses for x in each]
        return torch.stack(flat).mean()

    return answer


right("bigram_loss")(bigram())


@right("bigram_loss")
def _(train, test, vocab, pad=0):
    a, b = train[:, :-1].flatten(), train[:, 1:].flatten()
    keep = (a != pad) & (b != pad)
    counts = torch.bincount(a[keep] * vocab + b[keep], minlength=vocab * vocab).view(vocab, vocab) + 1
    logp = counts.log() - counts.sum(1, keepdim=True).log()
    a, b = test[:, :-1], test[:, 1:]
    keep = (a != pad) & (b != pad)
    return -logp[a[keep], b[keep]].mean()


@right("bigram_loss")
def _(train, test, vocab, pad=0):
    hot = F.one_hot(train, vocab).float() * (train != pad)[..., None]
    counts = torch.einsum("lta,ltb->ab", hot[:, :-1], hot[:, 1:]) + 1.0
    logp = (counts / counts.sum(-1, keepdim=True)).log()
    return F.nll_loss(logp[test[:, :-1]].flatten(0, 1), test[:, 1:].flatten(), ignore_index=pad)


wrong("bigram_loss", "padding counted")(bigram(count_pad=True))
wrong("bigram_loss", "padding evaluated")(bigram(test_pad=True))
wrong("bigram_loss", "the other way round")(bigram(direction=-1))
wrong("bigram_loss", "vocab missing in the denominator")(bigram(denominator=lambda c: c.sum(1, keepdim=True) + 1))
wrong("bigram_loss", "divided by all pairs")(bigram(denominator=lambda c: (c.sum() + len(c) ** 2).expand(len(c), 1)))
wrong("bigram_loss", "no smoothing to speak of")(bigram(smooth=1e-3))
wrong("bigram_loss", "column sums")(bigram(denominator=lambda c: c.sum(0)[:, None] + len(c)))
wrong("bigram_loss", "mean of the lines")(
    bigram(average=lambda losses: torch.stack([torch.stack(x).mean() for x in losses if x]).mean())
)
wrong("bigram_loss", "sum")(bigram(average=lambda losses: torch.stack([x for each in losses for x in each]).sum()))
wrong("bigram_loss", "pad is 0")(lambda train, test, vocab, pad=0: bigram()(train, test, vocab))
wrong("bigram_loss", "assignment where pairs repeat")(
    lambda train, test, vocab, pad=0: bigram()(torch.unique(train, dim=0), test, vocab, pad)
)


@wrong("bigram_loss", "repeated pairs counted once")
def _(train, test, vocab, pad=0):
    a, b = train[:, :-1].flatten(), train[:, 1:].flatten()
    keep = (a != pad) & (b != pad)
    counts = torch.zeros(vocab, vocab)
    counts[a[keep], b[keep]] += 1
    logp = ((counts + 1) / (counts.sum(1, keepdim=True) + vocab)).log()
    a, b = test[:, :-1], test[:, 1:]
    keep = (a != pad) & (b != pad)
    return -logp[a[keep], b[keep]].mean()


def _cosine(a, b):
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).mT


right("similarities")(lambda a, b, s: _cosine(a, b) * s.exp())
right("similarities")(lambda a, b, s: F.cosine_similarity(a[:, None], b[None], dim=-1) * torch.exp(s))
right("similarities")(
    lambda a, b, s: (
        torch.einsum("id,cd->ic", a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)) * math.e**s
    )
)
wrong("similarities", "exp by .item()")(lambda a, b, s: _cosine(a, b) * math.exp(s.item()))
wrong("similarities", "without exp")(lambda a, b, s: _cosine(a, b) * s)
wrong("similarities", "divided")(lambda a, b, s: _cosine(a, b) / s.exp())
wrong("similarities", "not normalized")(lambda a, b, s: a @ b.mT * s.exp())
wrong("similarities", "images only normalized")(lambda a, b, s: F.normalize(a, dim=-1) @ b.mT * s.exp())
wrong("similarities", "over the batch")(lambda a, b, s: F.normalize(a, dim=0) @ F.normalize(b, dim=0).mT * s.exp())
wrong("similarities", "transposed")(lambda a, b, s: _cosine(b, a) * s.exp())
wrong("similarities", "clamped at 100")(lambda a, b, s: _cosine(a, b) * s.exp().clamp(max=100))
wrong("similarities", "log scale clamped at ln 50")(lambda a, b, s: _cosine(a, b) * s.clamp(max=math.log(50)).exp())
wrong("similarities", "negative ones clamped")(lambda a, b, s: _cosine(a, b).clamp(min=0) * s.exp())
wrong("similarities", "scale at least 1")(lambda a, b, s: _cosine(a, b) * s.exp().clamp(min=1))
wrong("similarities", "captions detached")(lambda a, b, s: _cosine(a, b.detach()) * s.exp())
wrong("similarities", "softmax")(lambda a, b, s: (_cosine(a, b) * s.exp()).softmax(-1))
wrong("similarities", "log-scale added")(lambda a, b, s: _cosine(a, b) + s.exp())

right("recall_at_k")(lambda logits, targets, k=1: (
    logits.topk(min(k, logits.shape[1])).indices == targets[:, None]).any(1).float().mean().item())  # fmt: skip
right("recall_at_k")(lambda logits, targets, k=1: float(
    ((logits > logits.gather(1, targets[:, None])).sum(1) < k).double().mean()))  # fmt: skip
right("recall_at_k")(lambda logits, targets, k=1: sum(
    t in sorted(range(len(row)), key=lambda c: -row[c])[:k]
    for row, t in zip(logits.tolist(), targets.tolist(), strict=True)
) / len(logits))  # fmt: skip
wrong("recall_at_k", "k ignored")(lambda logits, targets, k=1: (logits.argmax(1) == targets).float().mean().item())
wrong("recall_at_k", "target is the row's number")(
    lambda logits, targets, k=1: (
        logits.topk(min(k, logits.shape[1])).indices == torch.arange(len(logits))[:, None]
    ).any(1).float().mean().item()
)  # fmt: skip
wrong("recall_at_k", "text to image")(
    lambda logits, targets, k=1: (
        logits.mT.topk(min(k, logits.shape[0])).indices[targets] == torch.arange(len(logits))[:, None]
    ).any(1).float().mean().item()
)  # fmt: skip
wrong("recall_at_k", "lowest scores")(
    lambda logits, targets, k=1: (
        logits.topk(min(k, logits.shape[1]), largest=False).indices == targets[:, None]
    ).any(1).float().mean().item()
)  # fmt: skip
wrong("recall_at_k", "divided by k")(
    lambda logits, targets, k=1: (
        (logits.topk(min(k, logits.shape[1])).indices == targets[:, None]).float().mean().item()
    )
)
wrong("recall_at_k", "a count")(
    lambda logits, targets, k=1: float((logits.topk(min(k, logits.shape[1])).indices == targets[:, None]).any(1).sum())
)
wrong("recall_at_k", "percent")(
    lambda logits, targets, k=1: 100 * (
        logits.topk(min(k, logits.shape[1])).indices == targets[:, None]
    ).any(1).float().mean().item()
)  # fmt: skip
wrong("recall_at_k", "a tensor")(
    lambda logits, targets, k=1: (
        (logits.topk(min(k, logits.shape[1])).indices == targets[:, None]).any(1).float().mean()
    )
)
wrong("recall_at_k", "k-th only")(
    lambda logits, targets, k=1: (logits.topk(min(k, logits.shape[1])).indices[:, -1] == targets).float().mean().item()
)
wrong("recall_at_k", "k - 1")(
    lambda logits, targets, k=1: (
        ((logits > logits.gather(1, targets[:, None])).sum(1) < max(k - 1, 1)).float().mean().item()
    )
)

right("min_ctc_length")(lambda text: len(text) + int((text[1:] == text[:-1]).sum()))
right("min_ctc_length")(lambda text: text.numel() + int((text.diff() == 0).sum()))


@right("min_ctc_length")
def _(text):
    needed, last = 0, None
    for c in text.tolist():
        needed += 2 if c == last else 1
        last = c
    return needed


wrong("min_ctc_length", "2n + 1")(lambda text: 2 * len(text) + 1)
wrong("min_ctc_length", "n")(lambda text: len(text))
wrong("min_ctc_length", "duplicates anywhere")(lambda text: 2 * len(text) - len(set(text.tolist())))
wrong("min_ctc_length", "runs counted")(lambda text: len(torch.unique_consecutive(text)))
wrong("min_ctc_length", "runs once each")(
    lambda text: len(text) + int((torch.unique_consecutive(text, return_counts=True)[1] > 1).sum())
)
wrong("min_ctc_length", "2n - 1")(lambda text: max(2 * len(text) - 1, 0))
wrong("min_ctc_length", "a tensor")(lambda text: len(text) + (text[1:] == text[:-1]).sum())
wrong("min_ctc_length", "at least 1")(lambda text: max(1, len(text) + int((text[1:] == text[:-1]).sum())))
wrong("min_ctc_length", "minus the repeats")(lambda text: len(text) - int((text[1:] == text[:-1]).sum()))


def forward(
    add=None, skip=lambda e, s: s >= 2 and e[s] != 0 and e[s] != e[s - 2], start=2, ends=2, first=True, total=None
):
    def answer(log_probs, text):
        e = [0]
        for c in text.tolist():
            e += [c, 0]
        none = log_probs.new_tensor(-torch.inf)
        alpha = [log_probs[0, c] if s < start else none for s, c in enumerate(e)]
        join = add or (lambda values: torch.logsumexp(torch.stack(values), 0))
        for row in log_probs[1:] if first else log_probs:
            new = []
            for s, c in enumerate(e):
                values = [alpha[s]]
                if s >= 1:
                    values.append(alpha[s - 1])
                if skip(e, s):
                    values.append(alpha[s - 2])
                values = [v for v in values if v > -torch.inf] or [none]
                new.append(join(values) + row[c])
            alpha = new
        values = [v for v in alpha[-ends:] if v > -torch.inf] or [none]
        return -join(values) if total is None else total(-join(values), log_probs, text)

    return answer


right("ctc_forward")(forward())


@right("ctc_forward")
def _(log_probs, text):
    p = log_probs.double().exp()
    e = torch.zeros(2 * len(text) + 1, dtype=torch.long)
    e[1::2] = text
    may_skip = torch.zeros(len(e), dtype=torch.bool)
    may_skip[2:] = (e[2:] != 0) & (e[2:] != e[:-2])
    alpha = torch.zeros(len(e), dtype=torch.float64)
    alpha = torch.cat([p[0, e[:2]], alpha[2:]])
    for row in p[1:]:
        one = F.pad(alpha, (1, 0))[: len(e)]
        two = F.pad(alpha, (2, 0))[: len(e)] * may_skip
        alpha = (alpha + one + two) * row[e]
    return -alpha[-2:].sum().log().to(log_probs.dtype)


@right("ctc_forward")
def _(log_probs, text):
    return F.ctc_loss(
        log_probs[:, None], text[None], torch.tensor([len(log_probs)]), torch.tensor([len(text)]), reduction="sum"
    )


wrong("ctc_forward", "Viterbi: the best path")(forward(add=lambda values: torch.stack(values).max()))
wrong("ctc_forward", "skips onto blanks too")(forward(skip=lambda e, s: (s >= 2 and e[s] != e[s - 2])
      or (s >= 2 and e[s] == 0)))  # fmt: skip
wrong("ctc_forward", "skips between equal neighbours")(forward(skip=lambda e, s: s >= 2 and e[s] != 0))
wrong("ctc_forward", "never skips")(forward(skip=lambda e, s: False))
wrong("ctc_forward", "starts with the blank only")(forward(start=1))
wrong("ctc_forward", "ends at the last blank only")(forward(ends=1))
wrong("ctc_forward", "the first token twice")(forward(first=False))
wrong("ctc_forward", "per character")(forward(total=lambda loss, lp, text: loss / max(len(text), 1)))
wrong("ctc_forward", "plus sign")(forward(total=lambda loss, lp, text: -loss))
wrong("ctc_forward", "infinity becomes 0")(forward(total=lambda loss, lp, text: loss.nan_to_num(0, posinf=0.0)))
wrong("ctc_forward", "starts anywhere")(forward(start=10**6))
wrong("ctc_forward", "ends anywhere")(forward(ends=10**6))
wrong("ctc_forward", "per token")(forward(total=lambda loss, lp, text: loss / len(lp)))


def kmeans(distance=torch.cdist, empty=lambda c, x: c, mean=lambda total, n: total / n):
    def answer(x, centroids):
        near = distance(x, centroids).argmin(1)
        hot = F.one_hot(near, len(centroids)).to(x.dtype)
        n = hot.sum(0)[:, None]
        return torch.where(n > 0, mean(hot.T @ x, n.clamp(min=1)), empty(centroids, x))

    return answer


right("kmeans_step")(kmeans())


@right("kmeans_step")
def _(x, centroids):
    near = ((x[:, None] - centroids) ** 2).sum(-1).argmin(1)
    new = centroids.clone()
    for i in range(len(centroids)):
        if (near == i).any():
            new[i] = x[near == i].mean(0)
    return new


@right("kmeans_step")
def _(x, centroids):
    groups = [[] for _ in centroids]
    for row in x:
        groups[int((centroids - row).norm(dim=1).argmin())].append(row)
    return torch.stack([torch.stack(g).mean(0) if g else c for g, c in zip(groups, centroids, strict=True)])


wrong("kmeans_step", "NaN for empty ones")(kmeans(empty=lambda c, x: torch.full_like(c, torch.nan)))
wrong("kmeans_step", "0 for empty ones")(kmeans(empty=lambda c, x: torch.zeros_like(c)))
wrong("kmeans_step", "mean of all for empty ones")(kmeans(empty=lambda c, x: x.mean(0).expand_as(c)))
wrong("kmeans_step", "sum")(kmeans(mean=lambda total, n: total))
wrong("kmeans_step", "Manhattan")(kmeans(lambda x, c: torch.cdist(x, c, p=1)))
wrong("kmeans_step", "dot product")(kmeans(lambda x, c: -x @ c.T))
wrong("kmeans_step", "farthest")(kmeans(lambda x, c: -torch.cdist(x, c)))
wrong("kmeans_step", "half-way")(lambda x, c: (kmeans()(x, c) + c) / 2)
wrong("kmeans_step", "old centroid counts as a row")(kmeans(mean=lambda total, n: total / (n + 1)))
wrong("kmeans_step", "two steps")(lambda x, c: kmeans()(x, kmeans()(x, c)))
wrong("kmeans_step", "divided by all rows")(lambda x, c: kmeans(mean=lambda total, n: total / len(x))(x, c))
wrong("kmeans_step", "median")(
    lambda x, c: torch.stack([
        x[near == i].median(0).values if (near == i).any() else c[i] for i in range(len(c))
    ]) if (near := torch.cdist(x, c).argmin(1)) is not None else c
)  # fmt: skip
wrong("kmeans_step", "the nearest row for each centroid")(lambda x, c: x[torch.cdist(c, x).argmin(1)])


@wrong("kmeans_step", "in place")
def _(x, centroids):
    near = torch.cdist(x, centroids).argmin(1)
    for i in range(len(centroids)):
        if (near == i).any():
            centroids[i] = x[near == i].mean(0)
    return centroids


right("speech_masks")(lambda frames, length: (
    torch.arange(length) < frames[:, None], torch.arange(length) == frames[:, None]))  # fmt: skip


@right("speech_masks")
def _(frames, length):
    speech = torch.tensor([[t < n for t in range(length)] for n in frames.tolist()])
    end = torch.tensor([[t == n for t in range(length)] for n in frames.tolist()])
    return [speech, end]


@right("speech_masks")
def _(frames, length):
    hot = F.one_hot(frames, length + 1).bool()
    return ~(hot.cumsum(1) > 0)[:, :length], hot[:, :length]


def masks(speech=lambda t, n: t < n, end=lambda t, n: t == n):
    return lambda frames, length: (
        speech(torch.arange(length), frames[:, None]),
        end(torch.arange(length), frames[:, None]),
    )


wrong("speech_masks", "speech includes the end")(masks(speech=lambda t, n: t <= n))
wrong("speech_masks", "end is the last frame")(masks(end=lambda t, n: t == n - 1))
wrong("speech_masks", "everything after counts as end")(masks(end=lambda t, n: t >= n))
wrong("speech_masks", "one late")(masks(end=lambda t, n: t == n + 1))
wrong("speech_masks", "first frame left out")(masks(speech=lambda t, n: (t > 0) & (t < n)))
wrong("speech_masks", "swapped")(lambda frames, length: masks()(frames, length)[::-1])
wrong("speech_masks", "padding")(masks(speech=lambda t, n: t >= n))
wrong("speech_masks", "numbers")(lambda frames, length: tuple(m.float() for m in masks()(frames, length)))
wrong("speech_masks", "full rows get their end at the last position")(
    lambda frames, length: (masks()(frames, length)[0],
                            torch.arange(length) == frames.clamp(max=length - 1)[:, None])
)  # fmt: skip
wrong("speech_masks", "one longer")(lambda frames, length: masks()(frames, length + 1))
