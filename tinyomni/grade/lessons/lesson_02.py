"""Lesson 02, positions: its oracles rotate one pair at a time, as complex numbers."""

import cmath
import math

import torch
from jaxtyping import Float
from torch import Tensor

from tinyomni.grade.exercise import exercise

NOTEBOOK, TITLE = "02_positions", "Positions"

ROTATION = "3. One pair: rotation by an angle"
FREQUENCIES = "4. Many pairs, each with its own frequency"
THREE_WAYS = "5. RoPE three ways: loop, vectorized, library"
RELATIVE = "6. Only the relative position counts"
THINKER = "7. RoPE in the Thinker"
BUGS = "8. Three shape-preserving bugs"


# ---- angles ---------------------------------------------------------------------------------------------------------


@exercise("Rotation angles", minutes=10, level=1)
def rope_angles(tokens: int, head_dim: int, theta: float = 10_000.0) -> Float[Tensor, "tokens pairs"]:
    """One angle at a time."""
    pairs = range(head_dim // 2)
    return torch.tensor([[t / math.pow(theta, 2 * p / head_dim) for p in pairs] for t in range(tokens)])


@rope_angles.cases
def _(rng):
    yield "five tokens, head_dim 8", {"tokens": 5, "head_dim": 8}
    yield "another θ", {"tokens": 3, "head_dim": 4, "theta": 100.0}
    yield "one token", {"tokens": 1, "head_dim": 6}
    yield "more than a whole turn", {"tokens": 300, "head_dim": 4}
    yield "one pair", {"tokens": 4, "head_dim": 2}


@rope_angles.random_inputs
def _(rng):
    return {"tokens": rng.size(40), "head_dim": 2 * rng.size(), "theta": rng.choice((10.0, 500.0, 10_000.0, 1e6))}


def rope_angles_variant(tokens, head_dim, theta=10_000.0, *, first=0, step=2, sign=-1, divisor=None):
    """`rope_angles`; each keyword injects one fault."""
    inv_freq = theta ** (sign * step * torch.arange(head_dim // 2) / (divisor or head_dim))
    return torch.outer(torch.arange(first, first + tokens).float(), inv_freq)


@rope_angles.mutant(
    "the frequency is θ^(−p/D): the 2 is missing, and the low-frequency pairs rotate too fast", FREQUENCIES
)
def _(*inputs, **more):
    return rope_angles_variant(*inputs, **more, step=1)


@rope_angles.mutant("the exponent is positive, so that later pairs rotate faster and faster", FREQUENCIES)
def _(*inputs, **more):
    return rope_angles_variant(*inputs, **more, sign=1)


@rope_angles.mutant("positions start at 1: the first token is rotated already", THREE_WAYS)
def _(*inputs, **more):
    return rope_angles_variant(*inputs, **more, first=1)


@rope_angles.mutant("θ is always 10,000, ignoring `theta`", FREQUENCIES)
def _(tokens, head_dim, theta=10_000.0):
    return rope_angles_variant(tokens, head_dim)


@rope_angles.mutant("the exponent is divided by the number of pairs instead of head_dim", FREQUENCIES)
def _(tokens, head_dim, theta=10_000.0):
    return rope_angles_variant(tokens, head_dim, theta, divisor=head_dim // 2)


@rope_angles.mutant("the pairs are in reverse order: the lowest frequency comes first", FREQUENCIES)
def _(*inputs, **more):
    return rope_angles_variant(*inputs, **more).flip(1)


@rope_angles.mutant("every pair has the same frequency: the angles repeat after 6 tokens", FREQUENCIES)
def _(*inputs, **more):
    return rope_angles_variant(*inputs, **more)[:, :1].expand(-1, inputs[1] // 2)


@rope_angles.mutant(
    "each angle occurs twice, once for each number of its pair; here each is expected once", FREQUENCIES
)
def _(*inputs, **more):
    return rope_angles_variant(*inputs, **more).repeat(1, 2)


@rope_angles.alternative
def _(tokens, head_dim, theta=10_000.0):
    inv_freq = torch.logspace(0, -(head_dim - 2) / head_dim, head_dim // 2, base=theta)
    return torch.arange(tokens)[:, None] * inv_freq


@rope_angles.alternative
def _(tokens, head_dim, theta=10_000.0):
    exponent = torch.arange(0, head_dim, 2) / head_dim
    return torch.arange(tokens)[:, None] / theta**exponent


@rope_angles.replaces("tinyomni.rope.rope_table")
def _(answer):
    def rope_table(length, head_dim, theta=10_000.0):
        twice = answer(length, head_dim, theta).repeat(1, 2)
        return twice.cos(), twice.sin()

    return rope_table


# ---- rotation -------------------------------------------------------------------------------------------------------


@exercise("Apply RoPE", minutes=15, level=2, gradients=("x",))
def apply_rope(
    x: Float[Tensor, "batch heads tokens head_dim"],
    cos: Float[Tensor, "tokens head_dim"],
    sin: Float[Tensor, "tokens head_dim"],
) -> Float[Tensor, "batch heads tokens head_dim"]:
    """A pair is a complex number; a rotation is a product."""
    half = x.shape[-1] // 2
    rotated = torch.complex(x[..., :half], x[..., half:]) * torch.complex(cos[:, :half], sin[:, :half])
    return torch.cat([rotated.real, rotated.imag], dim=-1)


def random_cos_sin(rng, tokens, head_dim):
    """Cosine and sine of arbitrary angles, each twice."""
    angle = rng.randn(tokens, head_dim // 2).repeat(1, 2)
    return {"cos": angle.cos(), "sin": angle.sin()}


@apply_rope.cases
def _(rng):
    yield "all sizes different", {"x": rng.randn(2, 3, 5, 8), **random_cos_sin(rng, 5, 8)}
    yield "as many heads as tokens", {"x": rng.randn(1, 3, 3, 4), **random_cos_sin(rng, 3, 4)}
    yield "batch 1, one token", {"x": rng.randn(1, 2, 1, 4), **random_cos_sin(rng, 1, 4)}
    yield "one pair", {"x": rng.randn(1, 1, 2, 2), **random_cos_sin(rng, 2, 2)}


@apply_rope.random_inputs
def _(rng):
    tokens, head_dim = rng.size(), 2 * rng.size()
    return {"x": rng.randn(rng.size(), rng.size(), tokens, head_dim), **random_cos_sin(rng, tokens, head_dim)}


def rotate_half(x, sign=-1):
    """(x1, x2) → (−x2, x1): transformers calls it `rotate_half`."""
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat([sign * x2, x1], dim=-1)


@apply_rope.mutant("the rotation goes the other way: the minus sign is on the wrong half", ROTATION)
def _(x, cos, sin):
    return x * cos - rotate_half(x) * sin


@apply_rope.mutant("the minus sign is missing: that is no rotation, and lengths change", THREE_WAYS)
def _(x, cos, sin):
    return x * cos + rotate_half(x, sign=1) * sin


@apply_rope.mutant("neighbours are paired, (2p, 2p+1), instead of halves, (p, p + D/2)", BUGS)
def _(x, cos, sin):
    pairs, half = x.unflatten(-1, (-1, 2)), x.shape[-1] // 2
    x1, x2, c, s = pairs[..., 0], pairs[..., 1], cos[:, :half], sin[:, :half]
    return torch.stack([x1 * c - x2 * s, x2 * c + x1 * s], dim=-1).flatten(-2)


@apply_rope.mutant("neighbours are paired, (2p, 2p+1), though the angles come in halves, (p, p + D/2)", BUGS)
def _(x, cos, sin):
    return x * cos + torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2) * sin


@apply_rope.mutant("cosine and sine are exchanged", ROTATION)
def _(x, cos, sin):
    return x * sin + rotate_half(x) * cos


@apply_rope.mutant("each number is paired with itself", THREE_WAYS)
def _(x, cos, sin):
    return x * cos + x * sin


@apply_rope.mutant("only the first half is rotated, the second stays as it was", THREE_WAYS)
def _(x, cos, sin):
    half = x.shape[-1] // 2
    return torch.cat([(x * cos + rotate_half(x) * sin)[..., :half], x[..., half:]], dim=-1)


@apply_rope.mutant("each head is rotated by its own index, and all tokens alike", BUGS)
def _(x, cos, sin):
    c, s = cos[: x.shape[1], None], sin[: x.shape[1], None]
    return x * c + rotate_half(x) * s


@apply_rope.mutant("the rotated halves are interleaved instead of concatenated", THREE_WAYS)
def _(x, cos, sin):
    x1, x2 = (x * cos + rotate_half(x) * sin).chunk(2, dim=-1)
    return torch.stack([x1, x2], dim=-1).flatten(-2)


@apply_rope.mutant("the angles are added, as in additive position embeddings, instead of rotated by", THINKER)
def _(x, cos, sin):
    return x + torch.cat([cos, sin], dim=-1)[:, ::2]


@apply_rope.alternative
def _(x, cos, sin):
    x1, x2 = x.chunk(2, dim=-1)
    c, s = cos.chunk(2, dim=-1)[0], sin.chunk(2, dim=-1)[0]
    return torch.cat([x1 * c - x2 * s, x1 * s + x2 * c], dim=-1)


@apply_rope.alternative
def _(x, cos, sin):
    half = x.shape[-1] // 2
    sign = torch.ones(x.shape[-1], dtype=x.dtype)
    sign[:half] = -1
    return x * cos + x.roll(half, dims=-1) * sign * sin


apply_rope.replaces("tinyomni.rope.apply_rope")


@exercise("Interleaved pairs to half pairs", minutes=5, level=2, gradients=("x",))
def interleaved_to_halves(
    x: Float[Tensor, "batch heads tokens head_dim"],
) -> Float[Tensor, "batch heads tokens head_dim"]:
    """The even positions, then the odd ones."""
    order = [*range(0, x.shape[-1], 2), *range(1, x.shape[-1], 2)]
    return torch.stack([x[..., positions] for positions in order], dim=-1)


@interleaved_to_halves.cases
def _(rng):
    yield "all sizes different", {"x": rng.randn(2, 3, 5, 8)}
    yield "batch 1, one token", {"x": torch.arange(6.0).reshape(1, 1, 1, 6)}
    yield "one pair", {"x": rng.randn(1, 2, 2, 2)}


@interleaved_to_halves.random_inputs
def _(rng):
    return {"x": rng.randn(rng.size(), rng.size(), rng.size(), 2 * rng.size())}


@interleaved_to_halves.mutant("it goes from halves to interleaved: that is the inverse", BUGS)
def _(x):
    return x.unflatten(-1, (2, -1)).mT.flatten(-2)


@interleaved_to_halves.mutant("the second numbers of the pairs come first", BUGS)
def _(x):
    return torch.cat([x[..., 1::2], x[..., ::2]], dim=-1)


@interleaved_to_halves.mutant("nothing is reordered", BUGS)
def _(x):
    return x.clone()


@interleaved_to_halves.mutant("the two numbers of each pair are exchanged", BUGS)
def _(x):
    return x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)


@interleaved_to_halves.mutant("the second half is in reverse order", BUGS)
def _(x):
    return torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], dim=-1)


@interleaved_to_halves.mutant("the even *pairs* come first instead of the first numbers of all pairs", BUGS)
def _(x):
    pairs = x.unflatten(-1, (-1, 2))
    return torch.cat([pairs[..., ::2, :], pairs[..., 1::2, :]], dim=-2).flatten(-2)


@interleaved_to_halves.mutant(
    "the numbers of the last pair stay behind: the loop over the pairs ends one too early", BUGS
)
def _(x):
    half = x.shape[-1] // 2
    out = x.clone()
    for p in range(half - 1):
        out[..., p], out[..., p + half] = x[..., 2 * p], x[..., 2 * p + 1]
    return out


@interleaved_to_halves.mutant("numbers are moved while they are still read: the result overwrites its own input", BUGS)
def _(x):
    out, half = x.clone(), x.shape[-1] // 2
    for p in range(half):
        out[..., p], out[..., p + half] = out[..., 2 * p].clone(), out[..., 2 * p + 1].clone()
    return out


@interleaved_to_halves.mutant("the result is detached: no gradient reaches the weights", BUGS)
def _(x):
    return x.detach().unflatten(-1, (-1, 2)).mT.flatten(-2)


@interleaved_to_halves.alternative
def _(x):
    return x.unflatten(-1, (-1, 2)).mT.flatten(-2)


# ---- with an offset -------------------------------------------------------------------------------------------------


@exercise(
    "RoPE for queries and keys, with an offset",
    minutes=20,
    level=3,
    gradients=("q", "k", "v"),
)
def apply_rope_qkv(
    q: Float[Tensor, "batch heads tokens head_dim"],
    k: Float[Tensor, "batch kv_heads tokens head_dim"],
    v: Float[Tensor, "batch kv_heads tokens head_dim"],
    offset: int = 0,
    theta: float = 10_000.0,
) -> tuple[
    Float[Tensor, "batch heads tokens head_dim"],
    Float[Tensor, "batch kv_heads tokens head_dim"],
    Float[Tensor, "batch kv_heads tokens head_dim"],
]:
    """One token and one pair at a time."""
    q, k = q.clone(), k.clone()
    half = q.shape[-1] // 2
    for t in range(q.shape[2]):
        for p in range(half):
            rotation = cmath.rect(1, (offset + t) * theta ** (-p / half))
            for x in (q, k):
                x1, x2 = x[:, :, t, p].clone(), x[:, :, t, p + half].clone()
                x[:, :, t, p] = x1 * rotation.real - x2 * rotation.imag
                x[:, :, t, p + half] = x2 * rotation.real + x1 * rotation.imag
    return q, k, v


@apply_rope_qkv.cases
def _(rng):
    def three(batch, heads, kv_heads, tokens, head_dim):
        return {"q": rng.randn(batch, heads, tokens, head_dim), "k": rng.randn(batch, kv_heads, tokens, head_dim),
                "v": rng.randn(batch, kv_heads, tokens, head_dim)}  # fmt: skip

    yield "all sizes different", {**three(3, 4, 2, 5, 8), "offset": 6}
    yield "no offset", three(1, 2, 1, 3, 4)
    yield "one new token after nine cached ones", {**three(1, 2, 2, 1, 4), "offset": 9}
    yield "another θ", {**three(1, 1, 1, 2, 4), "offset": 2, "theta": 50.0}
    yield "far into a long text", {**three(1, 2, 1, 2, 4), "offset": 1100}


@apply_rope_qkv.random_inputs
def _(rng):
    kv_heads, (batch, tokens, head_dim) = rng.size(2), (rng.size(3), rng.size(3), 2 * rng.size(3))
    q = rng.randn(batch, kv_heads * rng.size(2), tokens, head_dim)
    k, v = rng.randn(2, batch, kv_heads, tokens, head_dim)
    return {"q": q, "k": k, "v": v, "offset": rng.size(40, 0), "theta": rng.choice((20.0, 10_000.0))}


def rotated(x, offset=0, theta=10_000.0):
    """One tensor, rotated from position `offset` on."""
    angle = rope_angles_variant(x.shape[2], x.shape[-1], theta, first=offset).repeat(1, 2)
    return x * angle.cos() + rotate_half(x) * angle.sin()


@apply_rope_qkv.mutant(
    "the values are rotated as well: positions decide which tokens are attended to, not what they contain", THINKER
)
def _(q, k, v, offset=0, theta=10_000.0):
    return rotated(q, offset, theta), rotated(k, offset, theta), rotated(v, offset, theta)


@apply_rope_qkv.mutant("`offset` is ignored: every new token is at position 0", BUGS)
def _(q, k, v, offset=0, theta=10_000.0):
    return rotated(q, 0, theta), rotated(k, 0, theta), v


@apply_rope_qkv.mutant("only the queries are rotated: then absolute positions count, not relative ones", RELATIVE)
def _(q, k, v, offset=0, theta=10_000.0):
    return rotated(q, offset, theta), k, v


@apply_rope_qkv.mutant("only the keys are rotated", RELATIVE)
def _(q, k, v, offset=0, theta=10_000.0):
    return q, rotated(k, offset, theta), v


@apply_rope_qkv.mutant("the keys start at 0 while the queries start at `offset`", RELATIVE)
def _(q, k, v, offset=0, theta=10_000.0):
    return rotated(q, offset, theta), rotated(k, 0, theta), v


@apply_rope_qkv.mutant(
    "the keys are rotated the other way: then the sum of the positions counts, not their difference", RELATIVE
)
def _(q, k, v, offset=0, theta=10_000.0):
    return rotated(q, offset, theta), rotated(k.flip(2), 1 - offset - k.shape[2], theta).flip(2), v


@apply_rope_qkv.mutant("the first position is one too high", BUGS)
def _(q, k, v, offset=0, theta=10_000.0):
    return rotated(q, offset + 1, theta), rotated(k, offset + 1, theta), v


@apply_rope_qkv.mutant("all new tokens are at the same position, `offset`", BUGS)
def _(q, k, v, offset=0, theta=10_000.0):
    both = (torch.cat([rotated(x[:, :, t : t + 1], offset, theta) for t in range(x.shape[2])], dim=2) for x in (q, k))
    return *both, v


@apply_rope_qkv.mutant("θ is always 10,000, ignoring `theta`", FREQUENCIES)
def _(q, k, v, offset=0, theta=10_000.0):
    return rotated(q, offset), rotated(k, offset), v


@apply_rope_qkv.alternative
def _(q, k, v, offset=0, theta=10_000.0):
    return rotated(q, offset, theta), rotated(k, offset, theta), v


@apply_rope_qkv.alternative
def _(q, k, v, offset=0, theta=10_000.0):
    positions = torch.arange(offset, offset + q.shape[2], dtype=torch.float64)
    inv_freq = theta ** -torch.linspace(0, 1, q.shape[-1] // 2 + 1, dtype=torch.float64)[:-1]
    rotation = torch.polar(torch.ones(1, 1, dtype=torch.float64), positions[:, None] * inv_freq)
    both = []
    for x in (q, k):
        z = torch.complex(*x.double().chunk(2, dim=-1)) * rotation
        both.append(torch.cat([z.real, z.imag], dim=-1).to(x.dtype))
    return both[0], both[1], v
