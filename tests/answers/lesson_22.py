"""Lesson 22: learning from a judge."""

import re

import torch
from torch.distributions import Categorical

from answers import right, wrong


@right("sample_with_log_probs")
def _(logits, uniform, temperature=1.0):
    probs = torch.softmax(logits / temperature, dim=-1)
    over = probs.cumsum(dim=-1) > uniform.unsqueeze(-1)
    over[:, -1] = True
    ids = over.long().argmax(dim=-1)
    return ids, Categorical(probs).log_prob(ids)


@right("sample_with_log_probs")
def _(logits, uniform, temperature=1.0):
    log_probs = torch.log_softmax(logits / temperature, dim=-1)
    ids = []
    for row, u in zip(log_probs.exp(), uniform, strict=True):
        edges = torch.cumsum(row, 0)
        ids.append(next((i for i in range(len(row)) if edges[i] > u), len(row) - 1))
    ids = torch.tensor(ids)
    return ids, log_probs[torch.arange(len(ids)), ids]


def sampled(scale=lambda z, t: z / t, over=-1, inverse=True, told=None):
    def answer(logits, uniform, temperature=1.0):
        log_probs = scale(logits, temperature).log_softmax(over)
        edges = log_probs.exp().cumsum(-1)
        ids = (edges <= uniform[:, None]).sum(-1) if inverse else log_probs.argmax(-1)
        ids = ids.clamp(max=logits.shape[1] - 1)
        log_probs = told(logits).log_softmax(-1) if told else log_probs
        return ids, log_probs[torch.arange(len(ids)), ids]

    return answer


@wrong("sample_with_log_probs", "the first token where no sum exceeds the number")
def _(logits, uniform, temperature=1.0):
    log_probs = (logits / temperature).log_softmax(dim=-1)
    ids = (log_probs.exp().cumsum(dim=-1) > uniform[:, None]).long().argmax(dim=-1)
    return ids, log_probs[torch.arange(len(ids)), ids]


wrong("sample_with_log_probs", "no temperature")(sampled(scale=lambda z, t: z))
wrong("sample_with_log_probs", "times the temperature")(sampled(scale=lambda z, t: z * t))
wrong("sample_with_log_probs", "softmax over the batch")(sampled(over=0))
wrong("sample_with_log_probs", "greedy")(sampled(inverse=False))
wrong("sample_with_log_probs", "log-probabilities without the temperature")(sampled(told=lambda z: z))
wrong("sample_with_log_probs", "the order swapped")(lambda *inputs, **more: sampled()(*inputs, **more)[::-1])
wrong("sample_with_log_probs", "its own random numbers")(
    lambda logits, uniform, temperature=1.0: (
        ids := torch.multinomial((logits / temperature).softmax(-1), 1)[:, 0],
        (logits / temperature).log_softmax(-1)[torch.arange(len(ids)), ids],
    )
)


@right("group_advantages")
def _(rewards):
    std, mean = torch.std_mean(rewards, dim=1, correction=0, keepdim=True)
    return (rewards - mean) / (std + 1e-7)


@right("group_advantages")
def _(rewards):
    groups = []
    for group in rewards:
        spread = group.var(correction=0).sqrt()
        groups.append((group - group.mean()) / spread if spread > 1e-5 else torch.zeros_like(group))
    return torch.stack(groups)


wrong("group_advantages", "over the batch")(lambda r: (r - r.mean()) / (r.std() + 1e-7))
wrong("group_advantages", "over the prompts")(lambda r: (r - r.mean(0)) / (r.std(0, correction=0) + 1e-7))
wrong("group_advantages", "not divided")(lambda r: r - r.mean(1, keepdim=True))
wrong("group_advantages", "the sample deviation")(
    lambda r: (r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + 1e-7)
)
wrong("group_advantages", "NaN without differences")(
    lambda r: (r - r.mean(1, keepdim=True)) / r.std(1, keepdim=True, correction=0)
)
wrong("group_advantages", "the rewards themselves")(lambda r: r)
wrong("group_advantages", "a softmax")(lambda r: r.softmax(1))


@right("policy_loss")
def _(log_probs, old_log_probs, advantages, mask, clip=0.2):
    ratio = (log_probs - old_log_probs).exp()
    a = advantages.unsqueeze(1)
    gain = torch.min(ratio * a, torch.clamp(ratio, 1 - clip, 1 + clip) * a)
    return -((gain * mask).sum(1) / mask.sum(1)).mean()


@right("policy_loss")
def _(log_probs, old_log_probs, advantages, mask, clip=0.2):
    total = 0.0
    for new, old, a, m in zip(log_probs, old_log_probs, advantages, mask, strict=True):
        n = int(m.sum())
        r = torch.exp(new[:n] - old[:n])
        worse = torch.maximum(-a * r, -a * r.clip(1 - clip, 1 + clip))
        total = total + worse.mean()
    return total / len(log_probs)


def loss(sign=-1.0, low=True, mean="replies", exp=True, choose=torch.min, flip=False):
    def answer(log_probs, old_log_probs, advantages, mask, clip=0.2):
        difference = old_log_probs - log_probs if flip else log_probs - old_log_probs
        r, a = difference.exp() if exp else difference, advantages[:, None]
        gain = choose(r * a, r.clamp(1 - clip if low else None, 1 + clip) * a)
        by = {
            "replies": lambda: ((gain * mask).sum(1) / mask.sum(1)).mean(),
            "tokens": lambda: (gain * mask).sum() / mask.sum(),
            "padding": lambda: gain.mean(),
            "sum": lambda: (gain * mask).sum(),
        }
        return sign * by[mean]()

    return answer


wrong("policy_loss", "the sign")(loss(sign=1.0))
wrong("policy_loss", "no lower bound")(loss(low=False))
wrong("policy_loss", "the mean of all tokens")(loss(mean="tokens"))
wrong("policy_loss", "padding counts")(loss(mean="padding"))
wrong("policy_loss", "the sum")(loss(mean="sum"))
wrong("policy_loss", "no exp")(loss(exp=False))
wrong("policy_loss", "the maximum")(loss(choose=torch.max))
wrong("policy_loss", "old over new")(loss(flip=True))
wrong("policy_loss", "not clipped")(loss(choose=lambda plain, clipped: plain))
wrong("policy_loss", "detached")(
    lambda log_probs, *inputs, **more: loss()(log_probs.detach(), *inputs, **more) + 0 * log_probs.sum()
)


@right("kl_k3")
def _(log_probs, reference_log_probs):
    log_ratio = reference_log_probs - log_probs
    return log_ratio.exp() - log_ratio - 1.0


@right("kl_k3")
def _(log_probs, reference_log_probs):
    return torch.exp(reference_log_probs - log_probs) - (1 + reference_log_probs - log_probs)


wrong("kl_k3", "k1")(lambda new, ref: new - ref)
wrong("kl_k3", "k2")(lambda new, ref: 0.5 * (new - ref) ** 2)
wrong("kl_k3", "the other way round")(lambda new, ref: (new - ref).exp() - (new - ref) - 1)
wrong("kl_k3", "no −1")(lambda new, ref: (ref - new).exp() - (ref - new))
wrong("kl_k3", "the exact sum's term")(lambda new, ref: new.exp() * (new - ref))
wrong("kl_k3", "the mean, one number")(lambda new, ref: ((ref - new).exp() - (ref - new) - 1).mean())


@right("judge_replies")
def _(replies, answer):
    def clean(text):
        text = text.strip()
        return (text[:-1] if text.endswith(".") else text).strip().casefold()

    return [1.0 if clean(reply) == answer.casefold() else 0.0 for reply in replies]


@right("judge_replies")
def _(replies, answer):
    pattern = rf"\s*{re.escape(answer.lower())}\s*(\.\s*)?"
    return [float(re.fullmatch(pattern, reply.lower()) is not None) for reply in replies]


wrong("judge_replies", "in")(lambda replies, answer: [float(answer.lower() in each.lower()) for each in replies])
wrong("judge_replies", "only equal")(lambda replies, answer: [float(each == answer) for each in replies])
wrong("judge_replies", "startswith")(
    lambda replies, answer: [float(each.strip().lower().startswith(answer.lower())) for each in replies]
)
wrong("judge_replies", "the last word")(
    lambda replies, answer: [float(each.lower().strip(" .").endswith(answer.lower())) for each in replies]
)
wrong("judge_replies", "words in common")(
    lambda replies, answer: [
        float(set(answer.lower().split()) <= set(re.findall(r"\w+", each.lower()))) for each in replies
    ]
)
wrong("judge_replies", "all marks stripped")(
    lambda replies, answer: [float(each.strip(" .,!?").lower() == answer.lower()) for each in replies]
)
