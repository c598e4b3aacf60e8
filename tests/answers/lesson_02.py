"""Lesson 02: rotary position embedding."""

import math

import numpy as np
import torch
from einops import rearrange

from answers import right, wrong


def angles(tokens, head_dim, theta=10_000.0, first=0):
    """Correct angles, for answers whose mistake is elsewhere."""
    t = torch.arange(first, first + tokens, dtype=torch.float64)
    return t[:, None] * theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)


def rotated(x, first=0, theta=10_000.0):
    """Correct rotation, for answers whose mistake is elsewhere."""
    a = angles(x.shape[-2], x.shape[-1], theta, first).to(x.dtype)
    x1, x2 = x.chunk(2, -1)
    return torch.cat([x1 * a.cos() - x2 * a.sin(), x2 * a.cos() + x1 * a.sin()], -1)


right("rope_angles")(lambda tokens, head_dim, theta=10_000.0: torch.outer(
    torch.arange(tokens).float(), torch.exp(-math.log(theta) * torch.arange(0, head_dim, 2) / head_dim)
))  # fmt: skip
right("rope_angles")(lambda tokens, head_dim, theta=10_000.0: torch.tensor(
    [[t * theta ** (-2 * p / head_dim) for p in range(head_dim // 2)] for t in range(tokens)]
))  # fmt: skip
right("rope_angles")(lambda tokens, head_dim, theta=10_000.0: torch.from_numpy(
    np.arange(tokens)[:, None] / theta ** (2 * np.arange(head_dim // 2) / head_dim)
).float())  # fmt: skip
wrong("rope_angles", "exponent 2p / pairs")(lambda tokens, head_dim, theta=10_000.0: torch.outer(
    torch.arange(tokens).float(), theta ** (-2 * torch.arange(head_dim // 2) / (head_dim // 2))
))  # fmt: skip
wrong("rope_angles", "exponent p / D")(lambda tokens, head_dim, theta=10_000.0: torch.outer(
    torch.arange(tokens).float(), theta ** (-torch.arange(head_dim // 2) / head_dim)
))  # fmt: skip
wrong("rope_angles", "exponent 2p / (D - 2), so that the last pair has theta itself")(
    lambda tokens, head_dim, theta=10_000.0: torch.outer(
        torch.arange(tokens).float(), theta ** (-2 * torch.arange(head_dim // 2) / max(head_dim - 2, 1))
    )
)
wrong("rope_angles", "pairs counted from 1")(lambda tokens, head_dim, theta=10_000.0: torch.outer(
    torch.arange(tokens).float(), theta ** (-2 * torch.arange(1, head_dim // 2 + 1) / head_dim)
))  # fmt: skip
wrong("rope_angles", "theta is always 10000")(lambda tokens, head_dim, theta=10_000.0: angles(tokens, head_dim).float())
wrong("rope_angles", "each angle twice")(
    lambda tokens, head_dim, theta=10_000.0: angles(tokens, head_dim, theta).float().repeat(1, 2)
)
wrong("rope_angles", "half precision on the way")(
    lambda tokens, head_dim, theta=10_000.0: angles(tokens, head_dim, theta).bfloat16().float()
)
wrong("rope_angles", "angles modulo 2 pi")(
    lambda tokens, head_dim, theta=10_000.0: (angles(tokens, head_dim, theta) % (2 * math.pi)).float()
)

right("apply_rope")(lambda x, cos, sin: x * cos + torch.cat(
    [-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]], -1) * sin)  # fmt: skip
right("apply_rope")(lambda x, cos, sin: torch.view_as_real(
    torch.complex(*(part.contiguous() for part in x.chunk(2, -1)))
    * torch.complex(*(part[:, : x.shape[-1] // 2].contiguous() for part in (cos, sin)))
).movedim(-1, -2).flatten(-2))  # fmt: skip


@right("apply_rope")
def _(x, cos, sin):
    half = x.shape[-1] // 2
    out = torch.empty_like(x)
    for p in range(half):
        out[..., p] = x[..., p] * cos[:, p] - x[..., p + half] * sin[:, p]
        out[..., p + half] = x[..., p + half] * cos[:, p] + x[..., p] * sin[:, p]
    return out


@wrong("apply_rope", "neighbouring pairs")
def _(x, cos, sin):
    half = x.shape[-1] // 2
    x1, x2 = x[..., 0::2], x[..., 1::2]
    c, s = cos[:, :half], sin[:, :half]
    return torch.stack([x1 * c - x2 * s, x2 * c + x1 * s], -1).flatten(-2)


@wrong("apply_rope", "the second half uses the new first half")
def _(x, cos, sin):
    half = x.shape[-1] // 2
    out = x.clone()
    out[..., :half] = x[..., :half] * cos[:, :half] - x[..., half:] * sin[:, :half]
    out[..., half:] = x[..., half:] * cos[:, half:] + out[..., :half] * sin[:, half:]
    return out


wrong("apply_rope", "rotates the other way")(lambda x, cos, sin: x * cos - torch.cat(
    [-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]], -1) * sin)  # fmt: skip
wrong("apply_rope", "sign lost")(lambda x, cos, sin: x * cos + x.roll(x.shape[-1] // 2, -1) * sin)
wrong("apply_rope", "rolls by one")(lambda x, cos, sin: x * cos + x.roll(1, -1) * sin)
wrong("apply_rope", "negative sign at the second half")(lambda x, cos, sin: x * cos + torch.cat(
    [x[..., x.shape[-1] // 2 :], -x[..., : x.shape[-1] // 2]], -1) * sin)  # fmt: skip
wrong("apply_rope", "computes without gradient")(
    lambda x, cos, sin: (x * cos + torch.cat([-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]], -1) * sin).data
)

right("interleaved_to_halves")(lambda x: rearrange(x, "b h t (p two) -> b h t (two p)", two=2))
right("interleaved_to_halves")(lambda x: x.unflatten(-1, (-1, 2)).mT.flatten(-2))
right("interleaved_to_halves")(lambda x: x[..., [*range(0, x.shape[-1], 2), *range(1, x.shape[-1], 2)]])
wrong("interleaved_to_halves", "the inverse")(lambda x: x.unflatten(-1, (2, -1)).mT.flatten(-2))
wrong("interleaved_to_halves", "second ones first")(lambda x: torch.cat([x[..., 1::2], x[..., 0::2]], -1))
wrong("interleaved_to_halves", "flips the second half")(lambda x: torch.cat([x[..., 0::2], x[..., 1::2].flip(-1)], -1))
wrong("interleaved_to_halves", "reorders the tokens")(lambda x: torch.cat([x[..., 0::2, :], x[..., 1::2, :]], -2))
wrong("interleaved_to_halves", "does nothing")(lambda x: x.clone())


@right("apply_rope_qkv")
def _(q, k, v, offset=0, theta=10_000.0):
    return rotated(q, offset, theta), rotated(k, offset, theta), v


@right("apply_rope_qkv")
def _(q, k, v, offset=0, theta=10_000.0):
    half = q.shape[-1] // 2
    turn = torch.polar(torch.ones(half, dtype=torch.float64), angles(2, 2 * half, theta)[1])

    def rotate(x):
        z = torch.complex(x[..., :half].double(), x[..., half:].double())
        z = z * turn ** (offset + torch.arange(x.shape[-2])[:, None])
        return torch.cat([z.real, z.imag], -1).to(x.dtype)

    return (rotate(q), rotate(k), v)


def _interleaved(x, first, theta):
    a = angles(x.shape[-2], x.shape[-1], theta, first).to(x.dtype)
    x1, x2 = x[..., 0::2], x[..., 1::2]
    return torch.stack([x1 * a.cos() - x2 * a.sin(), x2 * a.cos() + x1 * a.sin()], -1).flatten(-2)


wrong("apply_rope_qkv", "values rotated too")(lambda q, k, v, offset=0, theta=1e4: tuple(
    rotated(x, offset, theta) for x in (q, k, v)))  # fmt: skip
wrong("apply_rope_qkv", "offset forgotten for the keys")(
    lambda q, k, v, offset=0, theta=1e4: (rotated(q, offset, theta), rotated(k, 0, theta), v)
)
wrong("apply_rope_qkv", "offset forgotten")(
    lambda q, k, v, offset=0, theta=1e4: (rotated(q, 0, theta), rotated(k, 0, theta), v)
)
wrong("apply_rope_qkv", "offset + 1")(
    lambda q, k, v, offset=0, theta=1e4: (rotated(q, offset + 1, theta), rotated(k, offset + 1, theta), v)
)
wrong("apply_rope_qkv", "offset multiplies")(
    lambda q, k, v, offset=0, theta=1e4: (
        (rotated(q, 0, theta), rotated(k, 0, theta), v) if not offset else
        (rotated(q, offset * q.shape[-2], theta), rotated(k, offset * q.shape[-2], theta), v)
    )
)  # fmt: skip
wrong("apply_rope_qkv", "theta forgotten")(
    lambda q, k, v, offset=0, theta=1e4: (rotated(q, offset), rotated(k, offset), v)
)
wrong("apply_rope_qkv", "neighbouring pairs")(
    lambda q, k, v, offset=0, theta=1e4: (_interleaved(q, offset, theta), _interleaved(k, offset, theta), v)
)
wrong("apply_rope_qkv", "queries only")(lambda q, k, v, offset=0, theta=1e4: (rotated(q, offset, theta), k, v))
