"""Lesson 02, positions: its oracles turn one pair at a time, as complex numbers."""

import cmath
import math

import torch
from jaxtyping import Float
from torch import Tensor

from tinyomni.grade.exercise import exercise

NOTEBOOK, TITLE = "02_positions", "Positions"

ARROW = "3. Two numbers: turn the arrow"
PAIRS = "4. Many pairs, each with its own speed"
LOOP = "5. The slow loop, the fast line, the library"
DISTANCE = "6. Only the distance counts"
WHERE = "7. Where it happens in the Thinker"
BUGS = "8. Three bugs that keep the shape"
REACH = "9. How far it reaches"


# ---- angles ---------------------------------------------------------------------------------------------------------


@exercise("An angle for each position and pair", minutes=10, level=1)
def rope_angles(tokens: int, head_dim: int, theta: float = 10_000.0) -> Float[Tensor, "tokens pairs"]:
    """One angle at a time."""
    pairs = range(head_dim // 2)
    return torch.tensor([[t / math.pow(theta, 2 * p / head_dim) for p in pairs] for t in range(tokens)])


@rope_angles.cases
def _(rng):
    yield "five tokens, heads of eight", {"tokens": 5, "head_dim": 8}
    yield "another θ", {"tokens": 3, "head_dim": 4, "theta": 100.0}
    yield "one token", {"tokens": 1, "head_dim": 6}
    yield "one pair", {"tokens": 4, "head_dim": 2}


def angles(tokens, head_dim, theta=10_000.0, *, first=0, step=2, sign=-1, width=None):
    """The table, with one thing to go wrong at a time."""
    speed = theta ** (sign * step * torch.arange(head_dim // 2) / (width or head_dim))
    return torch.outer(torch.arange(first, first + tokens).float(), speed)


@rope_angles.mutant("pair p has the speed θ^(−p/D): the 2 is forgotten, and the slow pairs are too fast", PAIRS)
def _(*inputs, **more):
    return angles(*inputs, **more, step=1)


@rope_angles.mutant("the exponent is positive, so that later pairs turn faster and faster", PAIRS)
def _(*inputs, **more):
    return angles(*inputs, **more, sign=1)


@rope_angles.mutant("positions begin at 1: the first token is turned already", LOOP)
def _(*inputs, **more):
    return angles(*inputs, **more, first=1)


@rope_angles.mutant("θ is always 10,000, whatever `theta` says", PAIRS)
def _(tokens, head_dim, theta=10_000.0):
    return angles(tokens, head_dim)


@rope_angles.mutant("the exponent is divided by the number of pairs instead of head_dim", PAIRS)
def _(tokens, head_dim, theta=10_000.0):
    return angles(tokens, head_dim, theta, width=head_dim // 2)


@rope_angles.mutant("the slowest pair comes first", PAIRS)
def _(*inputs, **more):
    return angles(*inputs, **more).flip(1)


@rope_angles.mutant("every pair turns at the same speed: the arrows come round after 6 tokens", PAIRS)
def _(*inputs, **more):
    return angles(*inputs, **more)[:, :1].expand(-1, inputs[1] // 2)


@rope_angles.mutant("each angle stands there twice, once for each number of its pair; here one is asked for", PAIRS)
def _(*inputs, **more):
    return angles(*inputs, **more).repeat(1, 2)


@rope_angles.alternative
def _(tokens, head_dim, theta=10_000.0):
    speed = torch.logspace(0, -(head_dim - 2) / head_dim, head_dim // 2, base=theta)
    return torch.arange(tokens)[:, None] * speed


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


# ---- turning --------------------------------------------------------------------------------------------------------


@exercise("Turn all pairs at once", minutes=15, level=2)
def apply_rope(
    x: Float[Tensor, "batch heads tokens head_dim"],
    cos: Float[Tensor, "tokens head_dim"],
    sin: Float[Tensor, "tokens head_dim"],
) -> Float[Tensor, "batch heads tokens head_dim"]:
    """A pair is a complex number; turning is a product."""
    half = x.shape[-1] // 2
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.complex(cos[:, :half], sin[:, :half])
    return torch.cat([turned.real, turned.imag], dim=-1)


def table(rng, tokens, head_dim):
    """Cosine and sine of any angles, each twice."""
    angle = rng.randn(tokens, head_dim // 2).repeat(1, 2)
    return {"cos": angle.cos(), "sin": angle.sin()}


@apply_rope.cases
def _(rng):
    yield "all sizes different", {"x": rng.randn(2, 3, 5, 8), **table(rng, 5, 8)}
    yield "as many heads as tokens", {"x": rng.randn(1, 3, 3, 4), **table(rng, 3, 4)}
    yield "batch 1, one token", {"x": rng.randn(1, 2, 1, 4), **table(rng, 1, 4)}
    yield "one pair", {"x": rng.randn(1, 1, 2, 2), **table(rng, 2, 2)}


def other_half(x, sign=-1):
    """(x1, x2) → (−x2, x1)."""
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat([sign * x2, x1], dim=-1)


@apply_rope.mutant("the arrows are turned the other way: the minus stands at the wrong half", ARROW)
def _(x, cos, sin):
    return x * cos - other_half(x) * sin


@apply_rope.mutant("the minus is missing: that is no rotation, and lengths change", LOOP)
def _(x, cos, sin):
    return x * cos + other_half(x, sign=1) * sin


@apply_rope.mutant("neighbours are paired, (2p, 2p+1), instead of halves, (p, p + D/2)", BUGS)
def _(x, cos, sin):
    pairs, half = x.unflatten(-1, (-1, 2)), x.shape[-1] // 2
    x1, x2, c, s = pairs[..., 0], pairs[..., 1], cos[:, :half], sin[:, :half]
    return torch.stack([x1 * c - x2 * s, x2 * c + x1 * s], dim=-1).flatten(-2)


@apply_rope.mutant("cosine and sine have changed places", ARROW)
def _(x, cos, sin):
    return x * sin + other_half(x) * cos


@apply_rope.mutant("each number is paired with itself", LOOP)
def _(x, cos, sin):
    return x * cos + x * sin


@apply_rope.mutant("only the first half is turned, the second stays as it was", LOOP)
def _(x, cos, sin):
    half = x.shape[-1] // 2
    return torch.cat([(x * cos + other_half(x) * sin)[..., :half], x[..., half:]], dim=-1)


@apply_rope.mutant("each head is turned by its own number, and all tokens alike", BUGS)
def _(x, cos, sin):
    c, s = cos[: x.shape[1], None], sin[: x.shape[1], None]
    return x * c + other_half(x) * s


@apply_rope.mutant("the turned halves stand alternately instead of one after the other", LOOP)
def _(x, cos, sin):
    x1, x2 = (x * cos + other_half(x) * sin).chunk(2, dim=-1)
    return torch.stack([x1, x2], dim=-1).flatten(-2)


@apply_rope.mutant("the angles are added, as older models did with positions, instead of turned by", WHERE)
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


@exercise("From one custom of pairing to the other", minutes=5, level=2)
def halves(x: Float[Tensor, "batch heads tokens head_dim"]) -> Float[Tensor, "batch heads tokens head_dim"]:
    """The even places, then the odd ones."""
    order = [*range(0, x.shape[-1], 2), *range(1, x.shape[-1], 2)]
    return torch.stack([x[..., place] for place in order], dim=-1)


@halves.cases
def _(rng):
    yield "all sizes different", {"x": rng.randn(2, 3, 5, 8)}
    yield "batch 1, one token", {"x": torch.arange(6.0).reshape(1, 1, 1, 6)}
    yield "one pair", {"x": rng.randn(1, 2, 2, 2)}


@halves.mutant("it goes from halves to neighbours: that is the way back", BUGS)
def _(x):
    return x.unflatten(-1, (2, -1)).mT.flatten(-2)


@halves.mutant("the second numbers of the pairs come first", BUGS)
def _(x):
    return torch.cat([x[..., 1::2], x[..., ::2]], dim=-1)


@halves.mutant("nothing is moved", BUGS)
def _(x):
    return x.clone()


@halves.mutant("the two numbers of each pair change places", BUGS)
def _(x):
    return x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)


@halves.mutant("the second half runs backwards", BUGS)
def _(x):
    return torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], dim=-1)


@halves.alternative
def _(x):
    return x.unflatten(-1, (-1, 2)).mT.flatten(-2)


# ---- where a token stands -------------------------------------------------------------------------------------------


@exercise("Tokens that come later", minutes=20, level=3)
def rotate(
    q: Float[Tensor, "batch heads tokens head_dim"],
    k: Float[Tensor, "batch kv_heads tokens head_dim"],
    v: Float[Tensor, "batch kv_heads tokens head_dim"],
    start: int = 0,
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
            turn = cmath.rect(1, (start + t) * theta ** (-p / half))
            for x in (q, k):
                x1, x2 = x[:, :, t, p].clone(), x[:, :, t, p + half].clone()
                x[:, :, t, p] = x1 * turn.real - x2 * turn.imag
                x[:, :, t, p + half] = x2 * turn.real + x1 * turn.imag
    return q, k, v


@rotate.cases
def _(rng):
    def three(batch, heads, kv_heads, tokens, head_dim):
        return {"q": rng.randn(batch, heads, tokens, head_dim), "k": rng.randn(batch, kv_heads, tokens, head_dim),
                "v": rng.randn(batch, kv_heads, tokens, head_dim)}  # fmt: skip

    yield "all sizes different", {**three(3, 4, 2, 5, 8), "start": 6}
    yield "from the beginning", three(1, 2, 1, 3, 4)
    yield "one new token behind nine", {**three(1, 2, 2, 1, 4), "start": 9}
    yield "another θ", {**three(1, 1, 1, 2, 4), "start": 2, "theta": 50.0}


def turned(x, start=0, theta=10_000.0):
    """One tensor, turned from `start` on."""
    angle = angles(x.shape[2], x.shape[-1], theta, first=start).repeat(1, 2)
    return x * angle.cos() + other_half(x) * angle.sin()


@rotate.mutant("the values are turned as well: the angle decides whom to look at, not what is handed over", WHERE)
def _(q, k, v, start=0, theta=10_000.0):
    return turned(q, start, theta), turned(k, start, theta), turned(v, start, theta)


@rotate.mutant("`start` is ignored: every new token stands at position 0", BUGS)
def _(q, k, v, start=0, theta=10_000.0):
    return turned(q, 0, theta), turned(k, 0, theta), v


@rotate.mutant("only the queries are turned: then it counts where they are, not how far apart", DISTANCE)
def _(q, k, v, start=0, theta=10_000.0):
    return turned(q, start, theta), k, v


@rotate.mutant("only the keys are turned", DISTANCE)
def _(q, k, v, start=0, theta=10_000.0):
    return q, turned(k, start, theta), v


@rotate.mutant("the keys begin at 0 while the queries begin at `start`", DISTANCE)
def _(q, k, v, start=0, theta=10_000.0):
    return turned(q, start, theta), turned(k, 0, theta), v


@rotate.mutant("the keys are turned the other way: then the sum of the positions counts, not their distance", DISTANCE)
def _(q, k, v, start=0, theta=10_000.0):
    return turned(q, start, theta), turned(k.flip(2), 1 - start - k.shape[2], theta).flip(2), v


@rotate.mutant("it begins one position too late", BUGS)
def _(q, k, v, start=0, theta=10_000.0):
    return turned(q, start + 1, theta), turned(k, start + 1, theta), v


@rotate.mutant("all new tokens stand at the same position, `start`", BUGS)
def _(q, k, v, start=0, theta=10_000.0):
    both = (torch.cat([turned(x[:, :, t : t + 1], start, theta) for t in range(x.shape[2])], dim=2) for x in (q, k))
    return *both, v


@rotate.mutant("θ is always 10,000, whatever `theta` says", PAIRS)
def _(q, k, v, start=0, theta=10_000.0):
    return turned(q, start), turned(k, start), v


@rotate.alternative
def _(q, k, v, start=0, theta=10_000.0):
    return turned(q, start, theta), turned(k, start, theta), v


@rotate.alternative
def _(q, k, v, start=0, theta=10_000.0):
    place = torch.arange(start, start + q.shape[2], dtype=torch.float64)
    speed = theta ** -torch.linspace(0, 1, q.shape[-1] // 2 + 1, dtype=torch.float64)[:-1]
    turn = torch.polar(torch.ones(1, 1, dtype=torch.float64), place[:, None] * speed)
    both = []
    for x in (q, k):
        z = torch.complex(*x.double().chunk(2, dim=-1)) * turn
        both.append(torch.cat([z.real, z.imag], dim=-1).to(x.dtype))
    return both[0], both[1], v
