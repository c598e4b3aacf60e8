"""Lesson 22, learning from a judge: its oracles go through groups, replies and tokens one number at a time."""

import functools
import math
import statistics
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tinyomni.grade.exercise import exercise

NOTEBOOK, TITLE = "22_learning_from_a_judge", "Learning from a judge"

SAMPLES = "2. Samples, and how likely they were"
ADVANTAGES = "3. Better than the rest of the group: advantages"
POLICY = "4. The policy gradient, clipped"
LEASH = "5. A leash: the KL divergence from the reference"
HACKS = "7. A reward with a hole"

fault: Any  # what a mutant changes


# ---- sampling -------------------------------------------------------------------------------------------------------


@exercise("Sample, and keep the log-probability", minutes=20, level=2)
def sample_with_log_probs(
    logits: Float[Tensor, "batch vocab"], uniform: Float[Tensor, "batch"], temperature: float = 1.0
) -> tuple[Int[Tensor, "batch"], Float[Tensor, "batch"]]:
    """Walk through the vocabulary until the sum of the probabilities exceeds the random number."""
    ids, log_probs = [], []
    for row, number in zip(logits.tolist(), uniform.tolist(), strict=True):
        best = max(row)
        odds = [math.exp((z - best) / temperature) for z in row]
        reached, chosen = 0.0, 0
        for token, each in enumerate(odds):
            if each:
                chosen = token
            reached += each / sum(odds)
            if reached > number:
                break
        ids.append(chosen)
        log_probs.append((row[chosen] - best) / temperature - math.log(sum(odds)))
    return torch.tensor(ids), torch.tensor(log_probs, dtype=logits.dtype)


@sample_with_log_probs.cases
def _(rng):
    yield (
        "all sizes different",
        {"logits": rng.randn(3, 5), "uniform": torch.tensor([0.15, 0.5, 0.93]), "temperature": 0.7},
    )
    yield "temperature 1", {"logits": rng.randn(4, 6), "uniform": torch.tensor([0.05, 0.3, 0.62, 0.97])}
    yield "batch 1, hot", {"logits": 3 * rng.randn(1, 4), "uniform": torch.tensor([0.6]), "temperature": 2.0}
    yield (
        "a forbidden token first, and a random number of 0",
        {"logits": torch.tensor([[-torch.inf, 1.0, 0.5]]), "uniform": torch.tensor([0.0])},
    )
    yield (
        "the temperature decides",
        {"logits": torch.tensor([[2.0, 1.0, 0.0]]), "uniform": torch.tensor([0.5]), "temperature": 3.0},
    )
    yield "large logits", {"logits": torch.tensor([[200.0, 201.0, 199.0]]), "uniform": torch.tensor([0.3])}
    yield (
        "the least likely token, which comes first",
        {"logits": torch.tensor([[-12.0, 2.5, 1.0]]), "uniform": torch.tensor([0.0])},
    )
    yield (
        "rounded, the running sum never exceeds the random number: the last token",
        {"logits": torch.zeros(1, 55), "uniform": torch.tensor([1 - 2**-24])},
    )


@sample_with_log_probs.random_inputs
def _(rng):
    logits = rng.choice((1.0, 100.0)) * rng.randn(rng.size(4), rng.size(6))
    logits[:, 1:2] = -torch.inf
    uniform = torch.tensor([rng.choice((0.0, rng.number(0.0, 0.999))) for _ in logits])
    return {"logits": logits, "uniform": uniform, "temperature": rng.number(0.2, 3.0)}


def sample_variant(
    logits, uniform, temperature=1.0, *, drawn=lambda z, t: z / t, told=lambda z, t: z / t, dim=-1,
    pick=lambda p, u: (p.cumsum(-1) <= u[:, None]).sum(-1), log=torch.log_softmax,
):  # fmt: skip
    """`sample_with_log_probs`; each keyword injects one fault."""
    ids = pick(drawn(logits, temperature).softmax(dim=dim), uniform).clamp(max=logits.shape[-1] - 1)
    return ids, log(told(logits, temperature), dim).gather(-1, ids[:, None]).squeeze(-1)


for cause, fault in (
    ("the log-probability is that of temperature 1, not of the distribution that was sampled from",
     {"told": lambda z, t: z}),
    ("the temperature is missing", {"drawn": lambda z, t: z, "told": lambda z, t: z}),
    ("the logits are multiplied by the temperature", {"drawn": lambda z, t: z * t, "told": lambda z, t: z * t}),
    ("the probability is returned, not its logarithm", {"log": torch.softmax}),
    ("the logit is returned, without the softmax", {"log": lambda z, dim: z}),
    ("the softmax runs over the batch", {"dim": 0}),
    ("the most likely token is taken: nothing is sampled", {"pick": lambda p, u: p.argmax(-1)}),
    ("one token too early is taken", {"pick": lambda p, u: ((p.cumsum(-1) <= u[:, None]).sum(-1) - 1).clamp(min=0)}),
    ("the random number is compared with each probability, not with their running sum",
     {"pick": lambda p, u: (p <= u[:, None]).sum(-1)}),
    ("a token of probability 0 is chosen where the random number is 0: compare with > and not with ≥",
     {"pick": lambda p, u: (p.cumsum(-1) < u[:, None]).sum(-1)}),
    ("a small number is added before the logarithm: what is less likely is not told apart",
     {"log": lambda z, dim: (z.softmax(dim) + 1e-8).log()}),
    ("the tokens are sorted first, and the place in the sorted list is returned",
     {"pick": lambda p, u: (p.sort(-1, descending=True).values.cumsum(-1) <= u[:, None]).sum(-1)}),
):  # fmt: skip
    sample_with_log_probs.mutant(cause, SAMPLES)(functools.partial(sample_variant, **fault))


@sample_with_log_probs.mutant(
    "the id is outside of the vocabulary where the running sum, rounded, ends below 1", SAMPLES
)
def _(logits, uniform, temperature=1.0):
    scaled = logits / temperature
    ids = (scaled.softmax(dim=-1).cumsum(dim=-1) <= uniform[:, None]).sum(dim=-1)
    return ids, scaled.log_softmax(dim=-1).gather(-1, ids[:, None]).squeeze(-1)


sample_with_log_probs.alternative(sample_variant)


@sample_with_log_probs.alternative
def _(logits, uniform, temperature=1.0):
    scaled = logits / temperature
    log_probs = scaled - scaled.logsumexp(dim=-1, keepdim=True)
    ids = torch.searchsorted(log_probs.exp().cumsum(-1), uniform[:, None].contiguous(), right=True)
    ids = ids.clamp(max=logits.shape[-1] - 1)
    return ids[:, 0], torch.take_along_dim(log_probs, ids, dim=-1)[:, 0]


# ---- advantages -----------------------------------------------------------------------------------------------------


@exercise("Group advantages", minutes=10, level=1)
def group_advantages(rewards: Float[Tensor, "prompts samples"]) -> Float[Tensor, "prompts samples"]:
    """Group by group, with Python's own statistics."""
    rows = []
    for group in rewards.tolist():
        mean, std = statistics.fmean(group), statistics.pstdev(group)
        rows.append([(reward - mean) / std if std > 1e-6 else 0.0 for reward in group])
    return torch.tensor(rows, dtype=rewards.dtype)


@group_advantages.cases
def _(rng):
    yield "all sizes different", {"rewards": rng.randn(3, 5)}
    yield (
        "right and wrong answers",
        {"rewards": torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 0], [1, 0, 1, 0]])},
    )
    yield "all right, all wrong: nothing to learn", {"rewards": torch.tensor([[1.0, 1, 1], [0, 0, 0]])}
    yield "groups of different difficulty", {"rewards": torch.tensor([[10.0, 12.0], [0.0, 1.0]])}
    yield "one prompt", {"rewards": rng.randn(1, 6)}


@group_advantages.random_inputs
def _(rng):
    prompts, samples = rng.size(4), rng.size(5)
    rewards = rng.choice((rng.randint(2, prompts, samples).float(), 0.3 * rng.randn(prompts, samples) - 1))
    rewards[0] = rng.choice((0.0, 1.0, -2.5))
    return {"rewards": rewards}


def advantages_variant(
    rewards, *, dim=1, centre=lambda r, dim: r.mean(dim, keepdim=True), unbiased=False, power=1, scale=True,
    tiny=lambda x, std: torch.where(std > 1e-6, x / std.clamp(min=1e-6), 0.0), sign=1,
):  # fmt: skip
    """`group_advantages`; each keyword injects one fault."""
    x = sign * (rewards - centre(rewards, dim))
    std = rewards.std(dim, keepdim=True, unbiased=unbiased) ** power
    return tiny(x, std) if scale else x


for cause, fault in (
    ("mean and deviation are taken over the prompts: a hard question is compared with easy ones", {"dim": 0}),
    ("mean and deviation are those of the whole batch, not of each group", {"dim": (0, 1)}),
    ("the mean is not subtracted: where all rewards are positive, every answer is reinforced",
     {"centre": lambda r, dim: 0.0}),
    ("the advantages are not divided by the standard deviation", {"scale": False}),
    ("they are divided by the variance", {"power": 2}),
    ("the deviation is divided by samples − 1, not by samples", {"unbiased": True}),
    ("a group without differences is divided by 0: NaN", {"tiny": lambda x, std: x / std}),
    ("the sign is the wrong way round: bad answers are reinforced", {"sign": -1}),
    ("the median is subtracted, not the mean", {"centre": lambda r, dim: r.median(dim, keepdim=True).values}),
    ("the best reward is subtracted: no answer is ever reinforced",
     {"centre": lambda r, dim: r.amax(dim, keepdim=True)}),
):  # fmt: skip
    group_advantages.mutant(cause, ADVANTAGES)(functools.partial(advantages_variant, **fault))


group_advantages.alternative(advantages_variant)


@group_advantages.alternative
def _(rewards):
    centred = rewards - rewards.sum(dim=-1, keepdim=True) / rewards.shape[-1]
    return centred / (centred.square().mean(dim=-1, keepdim=True).sqrt() + 1e-8)


# ---- the clipped loss -----------------------------------------------------------------------------------------------


@exercise("The clipped policy-gradient loss", minutes=25, level=3, gradients=("log_probs",))
def policy_loss(
    log_probs: Float[Tensor, "batch tokens"],
    old_log_probs: Float[Tensor, "batch tokens"],
    advantages: Float[Tensor, "batch"],
    mask: Float[Tensor, "batch tokens"],
    clip: float = 0.2,
) -> Float[Tensor, ""]:
    """Token by token, with numbers."""
    replies = []
    for row, old, advantage, counted in zip(
        log_probs.tolist(), old_log_probs.tolist(), advantages.tolist(), mask.tolist(), strict=True
    ):
        gains = []
        for new_log_prob, old_log_prob, counts in zip(row, old, counted, strict=True):
            if counts:
                ratio = math.exp(new_log_prob - old_log_prob)
                gains.append(min(ratio * advantage, min(max(ratio, 1 - clip), 1 + clip) * advantage))
        replies.append(sum(gains) / len(gains))
    return torch.tensor(-sum(replies) / len(replies), dtype=log_probs.dtype)


def replies_of(rng, batch, tokens, lengths, apart=0.3):
    """Log-probabilities of two policies, advantages, and a mask of the given lengths."""
    old = -rng.randn(batch, tokens).abs()
    return {
        "log_probs": old + apart * rng.randn(batch, tokens),
        "old_log_probs": old,
        "advantages": rng.randn(batch),
        "mask": (torch.arange(tokens) < torch.tensor(lengths)[:, None]).float(),
    }


@policy_loss.cases
def _(rng):
    yield "all sizes different", replies_of(rng, 3, 5, [5, 2, 4])
    yield "the first step: the policy is still the old one", replies_of(rng, 4, 3, [3, 1, 2, 3], apart=0.0)
    yield "far away, another clip", replies_of(rng, 4, 6, [6, 5, 1, 3], apart=1.5) | {"clip": 0.1}
    yield "batch 1, tokens 1", replies_of(rng, 1, 1, [1], apart=1.0)
    yield (
        "a token that neither policy expects",
        {
            "log_probs": torch.tensor([[-24.9, -0.3]]), "old_log_probs": torch.tensor([[-25.0, -0.2]]),
            "advantages": torch.tensor([1.5]), "mask": torch.ones(1, 2),
        },
    )  # fmt: skip
    far = replies_of(rng, 2, 4, [1, 4], apart=0.0)
    yield (
        "a good answer that is far likelier already, a bad one that is far likelier still",
        far | {"log_probs": far["old_log_probs"] + 1.0, "advantages": torch.tensor([1.0, -1.0])},
    )
    yield (
        "padding with large numbers",
        far | {"log_probs": far["old_log_probs"] + torch.tensor([0.1, 5.0, 5.0, 5.0]) * torch.tensor([[1.0], [0.02]])},
    )


@policy_loss.random_inputs
def _(rng):
    batch, tokens = rng.size(4), rng.size(5)
    lengths = [rng.size(tokens) for _ in range(batch)]
    replies = replies_of(rng, batch, tokens, lengths, apart=rng.choice((0.0, 0.3, 2.0)))
    return replies | {"clip": rng.number(0.05, 0.5)}


def policy_loss_variant(
    log_probs, old_log_probs, advantages, mask, clip=0.2, *, ratio=lambda new, old: (new - old).exp(),
    least=torch.minimum, bounds=lambda c: (1 - c, 1 + c), clipped=True, sign=-1, dim=1,
    mean=lambda gain, mask: ((gain * mask).sum(1) / mask.sum(1)).mean(), pair=lambda a: a[:, None],
):  # fmt: skip
    """`policy_loss`; each keyword injects one fault."""
    r, a = ratio(log_probs, old_log_probs), pair(advantages)
    gain = least(r * a, r.clamp(*bounds(clip)) * a) if clipped else r * a
    return sign * mean(gain, mask)


for cause, fault in (
    ("the sign is missing: descending this loss makes good answers rarer", {"sign": 1}),
    ("nothing is clipped", {"clipped": False}),
    ("the maximum of the two is taken: the pessimistic one is the minimum", {"least": torch.maximum}),
    ("only the clipped term is used: a bad answer that has become likelier gets no gradient",
     {"least": lambda plain, clipped: clipped}),
    ("the ratio is the wrong way round", {"ratio": lambda new, old: (old - new).exp()}),
    ("probabilities are divided, with a small number added: subtract the logarithms",
     {"ratio": lambda new, old: new.exp() / (old.exp() + 1e-8)}),
    ("the difference of the log-probabilities is used as the ratio: the exp is missing",
     {"ratio": lambda new, old: new - old}),
    ("log-probabilities are divided", {"ratio": lambda new, old: new / old}),
    ("it is clipped to 0 … 1 + clip: there is no lower bound", {"bounds": lambda c: (0.0, 1 + c)}),
    ("it is clipped to ±clip, not to 1 ± clip", {"bounds": lambda c: (-c, c)}),
    ("`clip` is ignored: always 0.2", {"bounds": lambda c: (0.8, 1.2)}),
    ("padding counts as well", {"mean": lambda gain, mask: gain.mean()}),
    ("it is divided by the length with padding: short replies count less",
     {"mean": lambda gain, mask: (gain * mask).mean(1).mean()}),
    ("all tokens have the same weight, so long replies count more: first the mean of each reply",
     {"mean": lambda gain, mask: (gain * mask).sum() / mask.sum()}),
    ("the sum over a reply is taken, not its mean", {"mean": lambda gain, mask: (gain * mask).sum(1).mean()}),
    ("the replies are added up, not averaged",
     {"mean": lambda gain, mask: ((gain * mask).sum(1) / mask.sum(1)).sum()}),
    ("REINFORCE without the ratio: the log-probabilities of the new policy times the advantage",
     {"ratio": lambda new, old: new, "clipped": False}),
):  # fmt: skip
    policy_loss.mutant(cause, POLICY)(functools.partial(policy_loss_variant, **fault))


policy_loss.alternative(policy_loss_variant)


@policy_loss.alternative
def _(log_probs, old_log_probs, advantages, mask, clip=0.2):
    ratio = torch.exp(log_probs - old_log_probs)
    good = torch.minimum(ratio, torch.full_like(ratio, 1 + clip))
    bad = torch.maximum(ratio, torch.full_like(ratio, 1 - clip))
    gain = torch.where(advantages[:, None] > 0, good, bad) * advantages[:, None]
    return -torch.stack([row[kept.bool()].mean() for row, kept in zip(gain, mask, strict=True)]).mean()


# ---- k3 -------------------------------------------------------------------------------------------------------------


@exercise("The KL estimator k3", minutes=10, level=2, gradients=("log_probs",))
def kl_k3(
    log_probs: Float[Tensor, "batch tokens"], reference_log_probs: Float[Tensor, "batch tokens"]
) -> Float[Tensor, "batch tokens"]:
    """Number by number: r − log r − 1, for the ratio r of the reference to the policy."""
    out = torch.zeros_like(log_probs)
    for b, (row, reference) in enumerate(zip(log_probs.tolist(), reference_log_probs.tolist(), strict=True)):
        for t, (one, other) in enumerate(zip(row, reference, strict=True)):
            ratio = math.exp(other) / math.exp(one)
            out[b, t] = ratio - math.log(ratio) - 1
    return out


@kl_k3.cases
def _(rng):
    log_probs = -rng.randn(3, 5).abs()
    yield "all sizes different", {"log_probs": log_probs, "reference_log_probs": -rng.randn(3, 5).abs()}
    yield "the same policy: 0", {"log_probs": log_probs, "reference_log_probs": log_probs.clone()}
    yield (
        "batch 1, tokens 1: a token that the reference finds unlikely",
        {"log_probs": torch.tensor([[-0.1]]), "reference_log_probs": torch.tensor([[-4.0]])},
    )
    yield (
        "a token that the policy finds unlikely",
        {"log_probs": torch.tensor([[-3.0, -2.0]]), "reference_log_probs": torch.tensor([[-0.5, -0.2]])},
    )
    yield (
        "far apart",
        {"log_probs": torch.tensor([[-9.0, -0.1]]), "reference_log_probs": torch.tensor([[-0.5, -20.0]])},
    )


@kl_k3.random_inputs
def _(rng):
    log_probs, apart = -2 * rng.randn(rng.size(4), rng.size()).abs(), rng.choice((0.0, 0.1, 2.0))
    return {"log_probs": log_probs, "reference_log_probs": log_probs + apart * rng.randn(*log_probs.shape)}


for cause, function in (
    ("it is k1, the difference of the log-probabilities: unbiased, but often negative", lambda new, ref: new - ref),
    ("it is k2, half of the squared difference", lambda new, ref: (new - ref).square() / 2),
    ("the ratio is the wrong way round: policy over reference", lambda new, ref: (new - ref).exp() - (new - ref) - 1),
    ("the −1 is missing: the same policy does not get 0", lambda new, ref: (ref - new).exp() - (ref - new)),
    ("the logarithm is added, not subtracted", lambda new, ref: (ref - new).exp() + (ref - new) - 1),
    ("the logarithm is missing", lambda new, ref: (ref - new).exp() - 1),
    ("it is weighted with the probability: the average over samples does that already",
     lambda new, ref: new.exp() * ((ref - new).exp() - (ref - new) - 1)),
    ("the sign is wrong: a divergence is never negative", lambda new, ref: (ref - new) - (ref - new).exp() + 1),
    ("log-probabilities are divided to get the ratio", lambda new, ref: ref / new - (ref - new) - 1),
    ("the policy is detached: the divergence does not hold it back",
     lambda new, ref: (ref - new.detach()).exp() - (ref - new) - 1),
):  # fmt: skip
    kl_k3.mutant(cause, LEASH)(function)


@kl_k3.alternative
def _(log_probs, reference_log_probs):
    return torch.expm1(reference_log_probs - log_probs) + log_probs - reference_log_probs


@kl_k3.alternative
def _(log_probs, reference_log_probs):
    ratio = reference_log_probs.exp() / log_probs.exp()
    return ratio - 1 - ratio.log()


# ---- a reward without a hole ----------------------------------------------------------------------------------------

HACKED = ("red or blue.", "red blue green.", "a red star.", "not red.", "re", "redred.", "reddish.", "red. or blue.",
          "red.red.", "red? blue!", "i think red.", "red..", "red.\nblue.", ". red", "red,", "r e d")  # fmt: skip


@exercise("A reward without a hole", minutes=20, level=2)
def judge_replies(replies: list[str], answer: str) -> list[float]:
    """Letter by letter: skip spaces around it, and one full stop at its end."""
    rewards = []
    for reply in replies:
        letters = list(reply)
        while letters and letters[0].isspace():
            letters.pop(0)
        while letters and letters[-1].isspace():
            letters.pop()
        if letters and letters[-1] == ".":
            letters.pop()
        while letters and letters[-1].isspace():
            letters.pop()
        rewards.append(1.0 if [letter.lower() for letter in letters] == list(answer.lower()) else 0.0)
    return rewards


@judge_replies.cases
def _(rng):
    yield "right and wrong", {"replies": ["red.", "blue.", "green."], "answer": "red"}
    yield "the same in another form", {"replies": ["Red.", " red. ", "RED", "red .", "red"], "answer": "Red"}
    yield "attacks: a list, a hedge, a sentence, a part, twice", {"replies": list(HACKED), "answer": "red"}
    yield "nothing", {"replies": ["", " ", ".", " ."], "answer": "red"}
    yield (
        "several words",
        {
            "replies": [
                "On the left.",
                "on the left or on the right.",
                "the left",
                "left.",
                "on the  left",
                "left on the",
            ],
            "answer": "on the left",
        },
    )
    yield "a word that begins with the answer", {"replies": ["bigger.", "big.", "very big."], "answer": "big"}


@judge_replies.random_inputs
def _(rng):
    answer = rng.choice(("red", "on the left", "3"))
    words = (answer, answer.upper(), answer.title(), answer[:-1], f"{answer} {answer}", "")
    before, after = ("", "", " ", "  ", "a ", ".", "-"), ("", ".", " .", "..", ". ", " ", "!", ". .", " not", "s")
    return {
        "replies": [rng.choice(before) + rng.choice(words) + rng.choice(after) for _ in range(12)],
        "answer": answer,
    }


def cleaned(reply):
    """A reply as it is compared."""
    return reply.strip().removesuffix(".").strip().lower()


for cause, test in (
    ("a reply that *contains* the answer is right: a list of all answers always wins",
     lambda reply, answer: answer in cleaned(reply)),
    ("a reply that *begins* with the answer is right: `red or blue` wins",
     lambda reply, answer: cleaned(reply).startswith(answer)),
    ("a reply that *ends* in the answer is right: `not red` wins",
     lambda reply, answer: cleaned(reply).endswith(answer)),
    ("a part of the answer is right, even an empty reply", lambda reply, answer: cleaned(reply) in answer),
    ("only the first word is compared", lambda reply, answer: cleaned(reply).split()[:1] == answer.split()[:1]),
    ("words are compared as a set: their order and repetitions do not count",
     lambda reply, answer: set(cleaned(reply).split()) == set(answer.split())),
    ("any of the words of the answer is enough",
     lambda reply, answer: bool(set(cleaned(reply).split()) & set(answer.split()))),
    ("capital letters count", lambda reply, answer: reply.strip().removesuffix(".").strip() == answer),
    ("the full stop counts: a right answer without it is punished",
     lambda reply, answer: reply.strip().lower() in (f"{answer}.", f"{answer} .")),
    ("all punctuation is removed, in the middle too",
     lambda reply, answer: "".join(c for c in reply if c.isalnum() or c == " ").strip().lower() == answer),
    ("every full stop at the end is removed, not one", lambda reply, answer: reply.strip(" .").lower() == answer),
    ("spaces around the reply count", lambda reply, answer: reply.removesuffix(".").lower() == answer),
    ("all spaces are removed: `r e d` wins",
     lambda reply, answer: cleaned(reply).replace(" ", "") == answer.replace(" ", "")),
    ("the first sentence alone is compared, what follows is not read",
     lambda reply, answer: reply.strip().split(".")[0].strip().lower() == answer),
    ("similar lengths are enough", lambda reply, answer: len(cleaned(reply)) == len(answer)),
):  # fmt: skip

    @judge_replies.mutant(cause, HACKS)
    def _(replies, answer, test=test):
        return [float(test(reply, answer.lower())) for reply in replies]


@judge_replies.mutant("a hedge gets half a point: with two of two answers that is certain", HACKS)
def _(replies, answer):
    right = answer.lower()
    return [float(cleaned(each) == right) or 0.5 * (right in cleaned(each).split()) for each in replies]


@judge_replies.mutant("a wrong reply gets −1, not 0", HACKS)
def _(replies, answer):
    return [1.0 if cleaned(reply) == answer.lower() else -1.0 for reply in replies]


@judge_replies.alternative
def _(replies, answer):
    return [float(cleaned(reply) == answer.lower()) for reply in replies]


@judge_replies.alternative
def _(replies, answer):
    import re

    pattern = re.compile(rf"\s*{re.escape(answer)}\s*\.?\s*", re.IGNORECASE)
    return [1.0 if pattern.fullmatch(reply) else 0.0 for reply in replies]
