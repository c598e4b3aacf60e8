"""Wrong answers that passed once: what is detached, what hides small numbers, what equals a limit."""

import torch
import torch.nn.functional as F

from answers import wrong


@wrong("fuse", "detached")
def _(parts, ctx_len):
    if (total := sum(part.shape[1] for part in parts.values())) > ctx_len:
        raise ValueError(" + ".join(f"{k} {v.shape[1]}" for k, v in parts.items()) + f" = {total} tokens > {ctx_len}")
    return torch.cat([part.detach() for part in parts.values()], dim=1)


@wrong("fuse", "a float32 buffer")
def _(parts, ctx_len):
    if (total := sum(part.shape[1] for part in parts.values())) > ctx_len:
        raise ValueError(" + ".join(f"{k} {v.shape[1]}" for k, v in parts.items()) + f" = {total} tokens > {ctx_len}")
    first = next(iter(parts.values()))
    joined, begin = torch.zeros(len(first), total, first.shape[2]), 0
    for part in parts.values():
        joined[:, begin : begin + part.shape[1]] = part
        begin += part.shape[1]
    return joined


@wrong("image_and_text", "without gradients")
@torch.no_grad()
def _(thinker, proj_v, cls, ids):
    return thinker(embeddings=torch.cat([proj_v(cls), thinker.embed(ids)], dim=1))


@wrong("info_nce", "a small number before the logarithm")
def _(images, texts, temperature=0.07):
    scores = F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T / temperature
    return -sum((scores.softmax(dim).diagonal() + 1e-8).log().mean() for dim in (0, 1)) / 2


@wrong("next_token_loss", "probabilities clamped before the logarithm")
def _(logits, ids, pad=0):
    probability = logits[:, :-1].softmax(dim=-1).gather(-1, ids[:, 1:, None])[..., 0]
    return -probability.clamp(min=1e-7).log()[ids[:, 1:] != pad].mean()


@wrong("ctc_batch_loss", "a small number before the logarithm")
def _(scores, tokens, texts):
    log_probs, lengths = (scores.softmax(dim=-1) + 1e-8).log().transpose(0, 1), torch.tensor([*map(len, texts)])
    characters = torch.tensor([each for text in texts for each in text], dtype=torch.long)
    return F.ctc_loss(log_probs, characters, tokens, lengths, reduction="sum") / lengths.sum()


@wrong("kl_k3", "the difference clamped")
def _(log_probs, reference_log_probs):
    difference = (reference_log_probs - log_probs).clamp(-5, 5)
    return difference.exp() - difference - 1


@wrong("policy_loss", "the old probability clamped")
def _(log_probs, old_log_probs, advantages, mask, clip=0.2):
    ratio, gain = log_probs.exp() / old_log_probs.exp().clamp(min=0.01), advantages[:, None]
    gain = torch.minimum(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain)
    return -((gain * mask).sum(dim=1) / mask.sum(dim=1)).mean()


@wrong("compute_optimal", "the run whose cost is nearest to the budget, above it too")
def _(parameters, tokens, losses, budgets):
    costs = 6 * parameters.double() * tokens.double()
    nearest = (budgets[:, None] - costs[None]).abs().argmin(dim=1)
    return torch.where((costs[None] <= budgets[:, None]).any(dim=1), nearest, -1)
