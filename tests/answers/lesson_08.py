"""Lesson 08: projectors, and one sequence of all modalities."""

import math

import torch
import torch.nn.functional as F

from answers import right, wrong

right("project")(lambda x, weight, bias: x @ weight.T + bias)
right("project")(lambda x, weight, bias: torch.einsum("bti,oi->bto", x, weight) + bias)
right("project")(lambda x, weight, bias: (x[:, :, None] * weight).sum(-1) + bias)
right("project")(
    lambda x, weight, bias: torch.stack([(x * w).sum(-1) + b for w, b in zip(weight, bias, strict=True)], -1)
)
right("project")(
    lambda x, weight, bias: torch.addmm(bias, x.reshape(-1, x.shape[-1]), weight.t()).reshape(*x.shape[:-1], -1)
)
wrong("project", "F.linear")(lambda x, weight, bias: F.linear(x, weight, bias))


@wrong("project", "nn.Linear")
def _(x, weight, bias):
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)
    return layer(x)


wrong("project", "no bias")(lambda x, weight, bias: x @ weight.T)
wrong("project", "bias subtracted")(lambda x, weight, bias: x @ weight.T - bias)
wrong("project", "reshaped weight")(lambda x, weight, bias: x @ weight.reshape(weight.shape[1], weight.shape[0]) + bias)
wrong("project", "bias twice")(lambda x, weight, bias: x @ weight.T + 2 * bias)
wrong("project", "weight detached")(lambda x, weight, bias: x @ weight.detach().T + bias)
wrong("project", "weight.data")(lambda x, weight, bias: x @ weight.data.T + bias)


def _sum(parts, ctx_len):
    total = sum(p.shape[1] for p in parts.values())
    return total, " + ".join(f"{n} {p.shape[1]}" for n, p in parts.items()) + f" = {total} tokens > {ctx_len}"


@right("fuse")
def _(parts, ctx_len):
    total, message = _sum(parts, ctx_len)
    if total > ctx_len:
        raise ValueError(message)
    return torch.cat(list(parts.values()), dim=1)


@right("fuse")
def _(parts, ctx_len):
    x = torch.cat(tuple(parts.values()), 1)
    if x.shape[1] > ctx_len:
        terms = [f"{name} {part.size(1)}" for name, part in parts.items()]
        raise ValueError(f"The sequence is too long: {' + '.join(terms)} = {x.size(1)} tokens > {ctx_len}.")
    return x


@right("fuse")
def _(parts, ctx_len):
    total, message = _sum(parts, ctx_len)
    if total > ctx_len:
        raise ValueError(message)
    first = next(iter(parts.values()))
    out = first.new_empty(first.shape[0], total, first.shape[2])
    at = 0
    for part in parts.values():
        out[:, at : at + part.shape[1]] = part
        at += part.shape[1]
    return out


def fuse(message=lambda parts, total, ctx: _sum(parts, ctx)[1], order=list, too_long=lambda n, c: n > c):
    def answer(parts, ctx_len):
        total = sum(p.shape[1] for p in parts.values())
        if too_long(total, ctx_len):
            raise ValueError(message(parts, total, ctx_len))
        return torch.cat([parts[name] for name in order(parts)], 1)

    return answer


wrong("fuse", "message without the sum")(fuse(lambda parts, total, ctx: "too long"))
wrong("fuse", "message with the total only")(fuse(lambda parts, total, ctx: f"{total} tokens > {ctx}"))
wrong("fuse", "message with numbers, no names")(
    fuse(lambda parts, total, ctx: " + ".join(str(p.shape[1]) for p in parts.values()) + f" = {total} tokens > {ctx}")
)
wrong("fuse", "len(part): the batch")(
    fuse(lambda parts, total, ctx: " + ".join(f"{n} {len(p)}" for n, p in parts.items()) + f" = {total} tokens > {ctx}")
)
wrong("fuse", "a fixed order")(fuse(order=lambda parts: sorted(parts, key=["image", "audio", "text"].index)
      if set(parts) <= {"image", "audio", "text"} else list(parts)))  # fmt: skip
wrong("fuse", "alphabetical")(fuse(order=sorted))
wrong("fuse", ">=")(fuse(too_long=lambda n, c: n >= c))
wrong("fuse", "no limit")(fuse(too_long=lambda n, c: False))
wrong("fuse", "truncates")(lambda parts, ctx_len: torch.cat(list(parts.values()), 1)[:, :ctx_len])
wrong("fuse", "the longest part is compared")(
    lambda parts, ctx_len: fuse(too_long=lambda n, c: max(p.shape[1] for p in parts.values()) > c)(parts, ctx_len)
)
wrong("fuse", "batch axis")(lambda parts, ctx_len: torch.cat(list(parts.values()), 0))
wrong("fuse", "tokens of the batch counted together")(
    lambda parts, ctx_len: fuse(too_long=lambda n, c: sum(p.shape[0] * p.shape[1] for p in parts.values()) > c)(
        parts, ctx_len
    )
)


@wrong("fuse", "assert")
def _(parts, ctx_len):
    total, message = _sum(parts, ctx_len)
    assert total <= ctx_len, message
    return torch.cat(list(parts.values()), 1)


@right("remaining_tokens")
def _(image, samples, text_tokens, ctx_len=512):
    audio = -(-(samples // 160) // 4)
    if audio > ctx_len // 4:
        raise ValueError("audio")
    left = ctx_len - int(image) - audio - text_tokens
    if left < 0:
        raise ValueError("prompt")
    return left


@right("remaining_tokens")
def _(image, samples, text_tokens, ctx_len=512):
    audio = (samples // 160 + 3) // 4
    if not audio <= ctx_len // 4:
        raise ValueError(f"audio {audio} tokens > {ctx_len // 4}")
    used = sum([1 if image else 0, audio, text_tokens])
    if used > ctx_len:
        raise ValueError(f"{used} > {ctx_len}")
    return max(0, ctx_len - used)


@right("remaining_tokens")
def _(image, samples, text_tokens, ctx_len=512):
    frames, audio = samples // 160, 0
    while frames > 0:
        frames, audio = frames - 4, audio + 1
    if audio * 4 > ctx_len - ctx_len % 4 or image + audio + text_tokens > ctx_len:
        raise ValueError
    return ctx_len - image - audio - text_tokens


def remaining(
    audio=lambda n: (n // 160 + 3) // 4, image=int, limit=lambda a, c: a > c // 4, full=lambda left: left < 0
):
    def answer(image_given, samples, text_tokens, ctx_len=512):
        a = audio(samples)
        left = ctx_len - image(image_given) - a - text_tokens
        if limit(a, ctx_len) or full(left):
            raise ValueError
        return left

    return answer


wrong("remaining_tokens", "samples // 640")(remaining(lambda n: n // 640))
wrong("remaining_tokens", "ceil(samples / 640)")(remaining(lambda n: -(-n // 640)))
wrong("remaining_tokens", "mel frames rounded up")(remaining(lambda n: (math.ceil(n / 160) + 3) // 4))
wrong("remaining_tokens", "both rounded down")(remaining(lambda n: n // 160 // 4))
wrong("remaining_tokens", "image ignored")(remaining(image=lambda i: 0))
wrong("remaining_tokens", "image always 1")(remaining(image=lambda i: 1))
wrong("remaining_tokens", "image 16 tokens")(remaining(image=lambda i: 16 * i))
wrong("remaining_tokens", "no limit for audio")(remaining(limit=lambda a, c: False))
wrong("remaining_tokens", "a quarter is already too much")(remaining(limit=lambda a, c: a >= c // 4))
wrong("remaining_tokens", "a quarter of 512")(remaining(limit=lambda a, c: a > 128))
wrong("remaining_tokens", "0 left is an error")(remaining(full=lambda left: left <= 0))
wrong("remaining_tokens", "never an error for the prompt")(remaining(full=lambda left: False))
wrong("remaining_tokens", "another BOS")(
    lambda image, samples, text_tokens, ctx_len=512: remaining()(image, samples, text_tokens + 1, ctx_len)
)
wrong("remaining_tokens", "ctx_len is 512")(
    lambda image, samples, text_tokens, ctx_len=512: remaining()(image, samples, text_tokens)
)
