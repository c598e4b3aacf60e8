"""Lesson 10: the Talker."""

import torch
import torch.nn.functional as F

from answers import right, wrong


def _offsets(codes, table):
    return torch.arange(codes.shape[-1]) * (len(table) // codes.shape[-1])


right("embed_codes")(lambda codes, table: table[codes + _offsets(codes, table)].sum(2))
right("embed_codes")(lambda codes, table: sum(t[codes[..., i]] for i, t in enumerate(table.chunk(codes.shape[-1]))))
right("embed_codes")(
    lambda codes, table: F.embedding_bag((codes + _offsets(codes, table)).flatten(0, 1), table, mode="sum").unflatten(
        0, codes.shape[:2]
    )
)
wrong("embed_codes", "no offset")(lambda codes, table: table[codes].sum(2))
wrong("embed_codes", "mean")(lambda codes, table: table[codes + _offsets(codes, table)].mean(2))
wrong("embed_codes", "detached")(lambda codes, table: table.detach()[codes + _offsets(codes, table)].sum(2))
wrong("embed_codes", "offset by 128")(
    lambda codes, table: table[(codes + 128 * torch.arange(codes.shape[-1])) % len(table)].sum(2)
)
wrong("embed_codes", "interleaved rows")(
    lambda codes, table: table[codes * codes.shape[-1] + torch.arange(codes.shape[-1])].sum(2)
)
wrong("embed_codes", "the last table on top")(lambda codes, table: table[codes + _offsets(codes, table).flip(0)].sum(2))
wrong("embed_codes", "offset by one")(
    lambda codes, table: table[(codes + _offsets(codes, table) + torch.arange(codes.shape[-1])) % len(table)].sum(2)
)
wrong("embed_codes", "concatenated")(lambda codes, table: table[codes + _offsets(codes, table)].flatten(2))
wrong("embed_codes", "half of the table, whatever the number")(
    lambda codes, table: table[(codes + torch.arange(codes.shape[-1]) * (len(table) // 2)) % len(table)].sum(2)
)

right("teacher_forcing")(lambda codes: (F.pad(codes, (0, 0, 1, 0))[:, :-1], codes))
right("teacher_forcing")(lambda codes: (torch.cat([torch.zeros_like(codes[:, :1]), codes[:, :-1]], 1), codes.clone()))


@right("teacher_forcing")
def _(codes):
    inputs = codes.roll(1, dims=1)
    inputs[:, 0] = 0
    return [inputs, codes]


wrong("teacher_forcing", "[:, :-1] and [:, 1:]")(lambda codes: (codes[:, :-1], codes[:, 1:]))
wrong("teacher_forcing", "rolled")(lambda codes: (codes.roll(1, 1), codes))
wrong("teacher_forcing", "the other way")(lambda codes: (F.pad(codes, (0, 0, 0, 1))[:, 1:], codes))
wrong("teacher_forcing", "labels shifted")(lambda codes: (codes, F.pad(codes, (0, 0, 0, 1))[:, 1:]))
wrong("teacher_forcing", "shifted twice")(
    lambda codes: (F.pad(codes, (0, 0, 1, 0))[:, :-1], F.pad(codes, (0, 0, 0, 1))[:, 1:])
)
wrong("teacher_forcing", "shifted along the codebooks")(lambda codes: (F.pad(codes, (1, 0))[..., :-1], codes))
wrong("teacher_forcing", "no shift")(lambda codes: (codes.clone(), codes))
wrong("teacher_forcing", "one frame longer")(lambda codes: (F.pad(codes, (0, 0, 1, 0)), codes))
wrong("teacher_forcing", "swapped")(lambda codes: (codes, F.pad(codes, (0, 0, 1, 0))[:, :-1]))
wrong("teacher_forcing", "first frame repeated")(lambda codes: (torch.cat([codes[:, :1], codes[:, :-1]], 1), codes))
wrong("teacher_forcing", "floats")(
    lambda codes: (torch.cat([torch.zeros(len(codes), 1, codes.shape[2]), codes[:, :-1]], 1), codes)
)


@wrong("teacher_forcing", "in place")
def _(codes):
    labels = codes.clone()
    codes[:, 1:] = labels[:, :-1]
    codes[:, 0] = 0
    return codes, labels


def _ce(logits, codes, **more):
    return F.cross_entropy(logits.flatten(0, 1), codes.flatten(), **more)


right("talker_loss")(lambda base, res, codes: _ce(base, codes[..., 0]) + _ce(res, codes[..., 1]))
right("talker_loss")(lambda base, res, codes: sum(
    -x.log_softmax(-1).gather(-1, codes[..., i : i + 1]).mean() for i, x in enumerate([base, res])))  # fmt: skip
right("talker_loss")(lambda base, res, codes: 2 * F.cross_entropy(
    torch.stack([base, res], -1).permute(0, 2, 1, 3), codes))  # fmt: skip
wrong("talker_loss", "under no_grad")(
    lambda base, res, codes: torch.no_grad()(lambda: _ce(base, codes[..., 0]) + _ce(res, codes[..., 1]))()
)
wrong("talker_loss", "mean of both")(lambda base, res, codes: (_ce(base, codes[..., 0]) + _ce(res, codes[..., 1])) / 2)
wrong("talker_loss", "base codes for both")(lambda base, res, codes: _ce(base, codes[..., 0]) + _ce(res, codes[..., 0]))
wrong("talker_loss", "swapped")(lambda base, res, codes: _ce(base, codes[..., 1]) + _ce(res, codes[..., 0]))
wrong("talker_loss", "base only")(lambda base, res, codes: _ce(base, codes[..., 0]))
wrong("talker_loss", "shifted again")(
    lambda base, res, codes: _ce(base[:, :-1], codes[:, 1:, 0]) + _ce(res[:, :-1], codes[:, 1:, 1])
    if codes.shape[1] > 1 else _ce(base, codes[..., 0]) + _ce(res, codes[..., 1])
)  # fmt: skip
wrong("talker_loss", "sum over the frames")(
    lambda base, res, codes: _ce(base, codes[..., 0], reduction="sum") + _ce(res, codes[..., 1], reduction="sum")
)
wrong("talker_loss", "code 0 ignored as padding")(
    lambda base, res, codes: _ce(base, codes[..., 0], ignore_index=0) + _ce(res, codes[..., 1], ignore_index=0)
)
wrong("talker_loss", "residual detached")(
    lambda base, res, codes: _ce(base, codes[..., 0]) + _ce(res.detach(), codes[..., 1])
)
wrong("talker_loss", "softmax first")(
    lambda base, res, codes: _ce(base.softmax(-1), codes[..., 0]) + _ce(res.softmax(-1), codes[..., 1])
)


@right("talker_step")
def _(talker, codes):
    base, res, stop = talker(codes)
    new = torch.stack([base[:, -1].argmax(-1), res[:, -1].argmax(-1)], -1)
    return torch.cat([codes, new[:, None]], 1), stop[:, -1].sigmoid()


@right("talker_step")
def _(talker, codes):
    outputs = talker(codes)
    frame = torch.cat([x[:, -1:].argmax(dim=2, keepdim=True) for x in outputs[:2]], dim=2)
    return [torch.cat((codes, frame), dim=1), 1 / (1 + torch.exp(-outputs[2][:, -1]))]


def step(at=-1, stop_at=-1, prob=torch.sigmoid, order=(0, 1), keep=True):
    def answer(talker, codes):
        base, res, stop = talker(codes)
        picked = [(base, res)[i][:, at if at == -1 else at(codes)].argmax(-1) for i in order]
        new = torch.stack(picked, -1)[:, None]
        return (torch.cat([codes, new], 1) if keep else new), prob(
            stop[:, stop_at if stop_at == -1 else stop_at(codes)]
        )

    return answer


wrong("talker_step", "all frames come: logits at the length of the codes")(
    step(lambda codes: codes.shape[1] - 1, lambda codes: codes.shape[1] - 1)
)
wrong("talker_step", "stop from the length of the codes")(step(-1, lambda codes: codes.shape[1] - 1))
wrong("talker_step", "the first frame")(step(lambda codes: 0, lambda codes: 0))
wrong("talker_step", "stop of the first frame")(step(-1, lambda codes: 0))
wrong("talker_step", "logit instead of a probability")(step(prob=lambda x: x))
wrong("talker_step", "1 - probability")(step(prob=lambda x: 1 - x.sigmoid()))
wrong("talker_step", "softmax over the batch")(step(prob=lambda x: x.softmax(0)))
wrong("talker_step", "residual before base")(step(order=(1, 0)))
wrong("talker_step", "base twice")(step(order=(0, 0)))
wrong("talker_step", "the new frame only")(step(keep=False))
wrong("talker_step", "a decision instead of a probability")(step(prob=lambda x: x > 0))
wrong("talker_step", "exp of the logit")(step(prob=torch.exp))


@wrong("talker_step", "stop after the new frame")
def _(talker, codes):
    base, res, _ = talker(codes)
    codes = torch.cat([codes, torch.stack([base[:, -1].argmax(-1), res[:, -1].argmax(-1)], -1)[:, None]], 1)
    return codes, talker(codes)[2][:, -1].sigmoid()


@wrong("talker_step", "only the newest frame is given to the Talker")
def _(talker, codes):
    base, res, stop = talker(codes[:, -1:])
    new = torch.stack([base[:, -1].argmax(-1), res[:, -1].argmax(-1)], -1)[:, None]
    return torch.cat([codes, new], 1), stop[:, -1].sigmoid()


right("duration_cap")(lambda n, frames_per_token=30, minimum=50, maximum=1000: max(
    minimum, min(maximum, n * frames_per_token)))  # fmt: skip
right("duration_cap")(lambda n, frames_per_token=30, minimum=50, maximum=1000: sorted(
    [minimum, n * frames_per_token, maximum])[1])  # fmt: skip


@right("duration_cap")
def _(text_tokens, frames_per_token=30, minimum=50, maximum=1000):
    frames = frames_per_token * text_tokens
    if frames < minimum:
        return minimum
    return maximum if frames > maximum else frames


wrong("duration_cap", "min and max swapped")(lambda n, frames_per_token=30, minimum=50, maximum=1000: min(
    minimum, max(maximum, n * frames_per_token)))  # fmt: skip
wrong("duration_cap", "no minimum")(
    lambda n, frames_per_token=30, minimum=50, maximum=1000: min(maximum, n * frames_per_token)
)
wrong("duration_cap", "no maximum")(
    lambda n, frames_per_token=30, minimum=50, maximum=1000: max(minimum, n * frames_per_token)
)
wrong("duration_cap", "minimum added")(
    lambda n, frames_per_token=30, minimum=50, maximum=1000: min(maximum, minimum + n * frames_per_token)
)
wrong("duration_cap", "30 is fixed")(
    lambda n, frames_per_token=30, minimum=50, maximum=1000: max(minimum, min(maximum, n * 30))
)
wrong("duration_cap", "minimum is 50")(
    lambda n, frames_per_token=30, minimum=50, maximum=1000: max(50, min(maximum, n * frames_per_token))
)
wrong("duration_cap", "maximum is 1000")(
    lambda n, frames_per_token=30, minimum=50, maximum=1000: max(minimum, min(1000, n * frames_per_token))
)
wrong("duration_cap", "a float")(
    lambda n, frames_per_token=30, minimum=50, maximum=1000: float(max(minimum, min(maximum, n * frames_per_token)))
)
wrong("duration_cap", "divided")(
    lambda n, frames_per_token=30, minimum=50, maximum=1000: max(minimum, min(maximum, n // frames_per_token))
)
