"""Lesson 04, the Thinker: its oracles take one token at a time; that of the block is torch's own encoder layer."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tinyomni.grade.exercise import share_weights, exercise, load_weights

NOTEBOOK, TITLE = "04_thinker", "The Thinker"

NORM = "1. RMSNorm: keep the numbers in a range"
MLP = "2. SwiGLU: each token thinks for itself"
RESIDUAL = "3. Residual: add, do not replace"
BLOCK = "4. A block"
HALF = "5. The stack, and its end"
LOSS = "7. The loss: how surprised was it?"
BUGS = "8. Three bugs that keep the shape"


# ---- norm -----------------------------------------------------------------------------------------------------------


@exercise("Divide by the root mean square", minutes=15, level=1, answer_name="RMSNorm", rtol=2e-3, atol=1e-4)
def rms_norm(
    x: Float[Tensor, "batch tokens dim"], weight: Float[Tensor, "dim"], eps: float = 1e-6
) -> Float[Tensor, "batch tokens dim"]:
    """One token at a time, with Python's own floats."""
    out = torch.empty_like(x)
    for b, t in torch.cartesian_prod(*map(torch.arange, x.shape[:2])).tolist():
        row = x[b, t].tolist()
        size = math.sqrt(sum(number * number for number in row) / len(row) + eps)
        out[b, t] = torch.tensor([number / size * g for number, g in zip(row, weight.tolist(), strict=True)])
    return out


@rms_norm.cases
def _(rng):
    yield "all sizes different", {"x": rng.randn(2, 5, 7) + 1, "weight": rng.randn(7), "eps": 0.1}
    yield "the usual ε", {"x": rng.randn(2, 3, 4), "weight": rng.randn(4)}
    yield "batch 1, one token", {"x": rng.randn(1, 1, 3), "weight": rng.randn(3)}
    yield "as many tokens as features", {"x": rng.randn(1, 3, 3), "weight": rng.randn(3)}
    yield "zeros: nobody may divide by zero", {"x": torch.zeros(1, 2, 3), "weight": rng.randn(3)}
    half = (300 * torch.sign(rng.randn(1, 2, 4)) * (1 + rng.randn(1, 2, 4).abs())).half()
    yield "large numbers in half precision", {"x": half, "weight": torch.ones(4).half()}


@rms_norm.invoke
def _(answer, x, weight, eps=1e-6):
    return load_weights(answer(x.shape[-1], eps), weight=weight)(x)


class Norm(nn.Module):
    """RMSNorm; a mutant changes `apart`."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        return (self.apart(x.float()) * self.weight.float()).to(x.dtype)

    def apart(self, x):
        return x / (x.square().mean(dim=-1, keepdim=True) + self.eps).sqrt()


@rms_norm.mutant("the mean is taken over the tokens instead of the features: the future leaks in", BUGS)
class OverTokens(Norm):
    def apart(self, x):
        return x / (x.square().mean(dim=1, keepdim=True) + self.eps).sqrt()


@rms_norm.mutant("the vector's mean is taken off first, as LayerNorm does", NORM)
class MeanOff(Norm):
    def apart(self, x):
        return super().apart(x - x.mean(dim=-1, keepdim=True))


@rms_norm.mutant("squares are added up but not divided by their number: that makes vectors of length 1", NORM)
class LengthOne(Norm):
    def apart(self, x):
        return x / (x.square().sum(dim=-1, keepdim=True) + self.eps).sqrt()


@rms_norm.mutant("the root is missing: the vector is divided by its mean square", NORM)
class NoRoot(Norm):
    def apart(self, x):
        return x / (x.square().mean(dim=-1, keepdim=True) + self.eps)


@rms_norm.mutant("ε is added behind the root instead of under it", NORM)
class EpsBehind(Norm):
    def apart(self, x):
        return x / (x.square().mean(dim=-1, keepdim=True).sqrt() + self.eps)


@rms_norm.mutant("ε is left out: a vector of zeros becomes 0/0, which is NaN", NORM)
class NoEps(Norm):
    def apart(self, x):
        return x / x.square().mean(dim=-1, keepdim=True).sqrt()


@rms_norm.mutant("the `eps` that was handed over is not used", NORM)
class FixedEps(Norm):
    def __init__(self, width, eps=1e-6):
        super().__init__(width)


@rms_norm.mutant("the learned weight is forgotten", NORM)
class NoWeight(Norm):
    def forward(self, x):
        return self.apart(x.float()).to(x.dtype)


@rms_norm.mutant("the squares are taken in half precision, where 300² is infinite already", HALF)
class HalfSquares(Norm):
    def forward(self, x):
        return self.apart(x) * self.weight


@rms_norm.alternative
class TorchNorm(Norm):
    def forward(self, x):
        return F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), self.eps).to(x.dtype)


@rms_norm.alternative
class DoubleNorm(Norm):
    def forward(self, x):
        scale = torch.rsqrt(torch.einsum("...d,...d->...", x.double(), x.double()) / x.shape[-1] + self.eps)
        return self.weight * (x * scale[..., None]).to(x.dtype)


@rms_norm.replaces("tinyomni.layers.RMSNorm")
def _(answer, old):
    return share_weights(answer(old.weight.shape[0], old.eps), old)


# ---- SwiGLU ---------------------------------------------------------------------------------------------------------


@exercise("Workers with a gate", minutes=15, level=2, answer_name="SwiGLU")
def swiglu(
    x: Float[Tensor, "batch tokens dim"],
    gate: Float[Tensor, "intermediate_size dim"],
    up: Float[Tensor, "intermediate_size dim"],
    down: Float[Tensor, "dim intermediate_size"],
) -> Float[Tensor, "batch tokens dim"]:
    """One worker at a time."""
    out = torch.zeros_like(x)
    for b, t, h in torch.cartesian_prod(*map(torch.arange, (*x.shape[:2], len(gate)))).tolist():
        match = gate[h] @ x[b, t]
        out[b, t] += match / (1 + math.exp(-match)) * (up[h] @ x[b, t]) * down[:, h]
    return out


@swiglu.cases
def _(rng):
    def layer(width, hidden):
        return {"gate": rng.randn(hidden, width), "up": rng.randn(hidden, width), "down": rng.randn(width, hidden)}

    yield "all sizes different", {"x": rng.randn(2, 5, 3), **layer(3, 7)}
    yield "batch 1, one token", {"x": rng.randn(1, 1, 4), **layer(4, 2)}
    yield "as wide inside as outside", {"x": rng.randn(1, 2, 3), **layer(3, 3)}
    yield "one worker", {"x": rng.randn(2, 2, 3), **layer(3, 1)}


@swiglu.invoke
def _(answer, x, gate, up, down):
    weights = {"gate__weight": gate, "up__weight": up, "down__weight": down}
    return load_weights(answer(x.shape[-1], len(gate)), **weights)(x)


class Workers(nn.Module):
    """SwiGLU; a mutant changes `inner`."""

    def __init__(self, dim: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(dim, intermediate_size, bias=False), nn.Linear(dim, intermediate_size, bias=False)
        self.down = nn.Linear(intermediate_size, dim, bias=False)

    def forward(self, x):
        return self.down(self.inner(self.gate(x), self.up(x)))

    def inner(self, gate, up):
        return F.silu(gate) * up


def workers(inner: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """The layer with another middle."""
    return type("SwiGLU", (Workers,), {"inner": lambda self, gate, up: inner(gate, up)})


for cause, middle in (
    ("gate and up have changed roles: SiLU goes around up", lambda gate, up: gate * F.silu(up)),
    ("the gate is a plain sigmoid: SiLU is z times the sigmoid of z", lambda gate, up: torch.sigmoid(gate) * up),
    ("the curve is missing: gate and up are multiplied as they are", lambda gate, up: gate * up),
    ("the curve comes after the product instead of on the gate alone", lambda gate, up: F.silu(gate * up)),
    ("gate and up are added instead of multiplied", lambda gate, up: F.silu(gate) + up),
    ("the curve is ReLU, with its sharp bend, instead of SiLU", lambda gate, up: F.relu(gate) * up),
    ("the curve is GELU instead of SiLU", lambda gate, up: F.gelu(gate) * up),
    ("`up` is not used: an MLP without a gate", lambda gate, up: F.silu(gate)),
):
    swiglu.mutant(cause, MLP)(workers(middle))


@swiglu.mutant("the input is added here already: that is the block's work", RESIDUAL)
class AddsInput(Workers):
    def forward(self, x):
        return x + super().forward(x)


@swiglu.alternative
class OneMatrix(Workers):
    def forward(self, x):
        both = x @ torch.cat([self.gate.weight, self.up.weight]).T
        gate, up = both.chunk(2, dim=-1)
        return torch.einsum("bth,dh->btd", gate * gate.sigmoid() * up, self.down.weight)


@swiglu.replaces("tinyomni.layers.SwiGLU")
def _(answer, old):
    return share_weights(answer(old.gate.in_features, old.gate.out_features), old)


# ---- block ----------------------------------------------------------------------------------------------------------


class Look(nn.Module):
    """torch's attention, called with one sequence, as ours is."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x):
        return self.layer(x, x, x, need_weights=False)[0]


@exercise("A block", minutes=10, level=2)
def block(
    x: Float[Tensor, "batch tokens dim"], norm1: nn.Module, attention: nn.Module, norm2: nn.Module, mlp: nn.Module
) -> Float[Tensor, "batch tokens dim"]:
    """torch's encoder layer with these parts built in."""
    look: Any = attention
    first, _, last = list(mlp.children())
    layer: Any = nn.TransformerEncoderLayer(
        x.shape[2], 1, dropout=0.0, activation=F.gelu, batch_first=True, norm_first=True
    )
    layer.norm1, layer.self_attn, layer.norm2, layer.linear1, layer.linear2 = norm1, look.layer, norm2, first, last
    out: Tensor = layer(x)
    return out


@block.cases
def _(rng):
    def parts(width, heads, hidden):
        made = {
            "norm1": nn.LayerNorm(width),
            "attention": Look(width, heads),
            "norm2": nn.LayerNorm(width),
            "mlp": nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)),
        }
        for part in made.values():
            for weight in part.parameters():
                weight.data = rng.randn(*weight.shape) / 2
        return made

    yield "all sizes different", {"x": rng.randn(2, 5, 6), **parts(6, 2, 7)}
    yield "batch 1, one token", {"x": rng.randn(1, 1, 4), **parts(4, 1, 3)}
    yield "large numbers in the stream", {"x": 100 * rng.randn(1, 3, 2), **parts(2, 1, 3)}


@block.mutant("the layers replace the stream instead of adding to it: there is no residual", RESIDUAL)
def _(x, norm1, attention, norm2, mlp):
    return mlp(norm2(attention(norm1(x))))


@block.mutant("attention's result replaces the stream: the first residual is missing", RESIDUAL)
def _(x, norm1, attention, norm2, mlp):
    x = attention(norm1(x))
    return x + mlp(norm2(x))


@block.mutant("the MLP's result replaces the stream: the second residual is missing", RESIDUAL)
def _(x, norm1, attention, norm2, mlp):
    return mlp(norm2(x + attention(norm1(x))))


@block.mutant("the norms come after the sums, on the stream itself, as in the Transformer of 2017", RESIDUAL)
def _(x, norm1, attention, norm2, mlp):
    x = norm1(x + attention(x))
    return norm2(x + mlp(x))


@block.mutant("the norms come after the layers instead of before them", RESIDUAL)
def _(x, norm1, attention, norm2, mlp):
    x = x + norm1(attention(x))
    return x + norm2(mlp(x))


@block.mutant("the normed vectors are added instead of the stream itself: the road past the layers is lost", RESIDUAL)
def _(x, norm1, attention, norm2, mlp):
    x = norm1(x)
    x = norm2(x + attention(x))
    return x + mlp(x)


@block.mutant("the norms are left out", RESIDUAL)
def _(x, norm1, attention, norm2, mlp):
    x = x + attention(x)
    return x + mlp(x)


@block.mutant("the MLP reads what came in, not what attention has added: the two work side by side", BLOCK)
def _(x, norm1, attention, norm2, mlp):
    return x + attention(norm1(x)) + mlp(norm2(x))


@block.mutant("`norm1` is used twice: each half has a norm of its own", BLOCK)
def _(x, norm1, attention, norm2, mlp):
    x = x + attention(norm1(x))
    return x + mlp(norm1(x))


@block.mutant("the MLP comes first: a token thinks before it has looked", BLOCK)
def _(x, norm1, attention, norm2, mlp):
    x = x + mlp(norm2(x))
    return x + attention(norm1(x))


@block.mutant("attention's result is lost: the second sum starts again from what came in", RESIDUAL)
def _(x, norm1, attention, norm2, mlp):
    return x + mlp(norm2(x + attention(norm1(x))))


@block.mutant("`+=` writes into the very tensor that was handed over", RESIDUAL)
def _(x, norm1, attention, norm2, mlp):
    x += attention(norm1(x))
    x += mlp(norm2(x))
    return x


@block.alternative
def _(x, norm1, attention, norm2, mlp):
    for norm, layer in ((norm1, attention), (norm2, mlp)):
        x = torch.add(x, layer(norm(x)))
    return x


class Built(nn.Module):
    """A block of the library whose forward is the learner's."""

    def __init__(self, answer: Callable[..., Any], old: nn.Module) -> None:
        super().__init__()
        self.answer, self.old = answer, old

    def forward(self, x, cache=None, layer=0, mask=None):
        old: Any = self.old
        return self.answer(
            x, old.norm1, lambda normed: old.attn(normed, cache=cache, layer=layer, mask=mask), old.norm2, old.mlp
        )


block.replaces("tinyomni.layers.DecoderBlock", Built)


# ---- loss -----------------------------------------------------------------------------------------------------------


@exercise("How surprised was it?", minutes=15, level=2)
def next_token_loss(
    logits: Float[Tensor, "batch tokens vocab"], ids: Int[Tensor, "batch tokens"], pad: int = 0
) -> Float[Tensor, ""]:
    """One surprise at a time."""
    surprises = []
    for row, text in zip(logits, ids.tolist(), strict=True):
        for scores, token in zip(row, text[1:], strict=False):
            if token != pad:
                surprises.append(scores.exp().sum().log() - scores[token])
    return torch.stack(surprises).mean() if surprises else logits.new_tensor(torch.nan)


@next_token_loss.cases
def _(rng):
    yield "all sizes different", {
        "logits": 2 * rng.randn(3, 5, 7), "ids": torch.tensor([[1, 4, 6, 2, 0], [1, 3, 2, 0, 0], [1, 5, 4, 3, 2]])
    }  # fmt: skip
    yield "batch 1, no padding", {"logits": rng.randn(1, 3, 4), "ids": torch.tensor([[1, 3, 2]])}
    yield "a row that is all padding", {"logits": rng.randn(2, 3, 4), "ids": torch.tensor([[1, 3, 2], [0, 0, 0]])}
    yield "another number for padding", {
        "logits": rng.randn(2, 4, 6), "ids": torch.tensor([[1, 0, 2, 5], [1, 3, 0, 2]]), "pad": 5
    }  # fmt: skip
    yield "two tokens", {"logits": rng.randn(2, 2, 5), "ids": torch.tensor([[1, 3], [1, 4]])}
    yield "BOS alone: nothing is predicted, the mean of nothing is NaN", {
        "logits": rng.randn(2, 1, 3), "ids": torch.tensor([[1], [1]])
    }  # fmt: skip


def surprise(logits, ids, pad=0, *, reads=slice(None, -1), says=slice(1, None), ignore=None, reduction="mean"):
    """Cross-entropy with one thing to go wrong at a time."""
    ignore = pad if ignore is None else ignore
    return F.cross_entropy(
        logits[:, reads].flatten(0, 1), ids[:, says].flatten(), ignore_index=ignore, reduction=reduction
    )


@next_token_loss.mutant("the shift is forgotten: the model is asked for the token that it has just read", BUGS)
def _(*inputs, **more):
    return surprise(*inputs, **more, reads=slice(None), says=slice(None))


@next_token_loss.mutant("the shift goes the wrong way: the model is asked for the token before", LOSS)
def _(*inputs, **more):
    return surprise(*inputs, **more, reads=slice(1, None), says=slice(None, -1))


@next_token_loss.mutant("padding counts: the model is taught to write PAD", BUGS)
def _(*inputs, **more):
    return surprise(*inputs, **more, ignore=-100)


@next_token_loss.mutant("the number 0 is taken for padding, whatever `pad` says", LOSS)
def _(logits, ids, pad=0):
    return surprise(logits, ids, 0)


@next_token_loss.mutant("padding is in the number N that is divided by: the more padding, the smaller the loss", BUGS)
def _(logits, ids, pad=0):
    return surprise(logits, ids, pad, reduction="sum") / ids[:, 1:].numel()


@next_token_loss.mutant("N counts the first tokens too, which nobody predicts", LOSS)
def _(logits, ids, pad=0):
    return surprise(logits, ids, pad, reduction="sum") / (ids != pad).sum()


@next_token_loss.mutant(
    "padding is looked for where it is read, not where it would be said: PAD after EOS counts", LOSS
)
def _(logits, ids, pad=0):
    each = F.cross_entropy(logits[:, :-1].mT, ids[:, 1:], reduction="none")
    return each[ids[:, :-1] != pad].mean()


@next_token_loss.mutant("each text has its own mean first, so that a token of a short text counts for more", LOSS)
def _(logits, ids, pad=0):
    counts = ids[:, 1:] != pad
    each = F.cross_entropy(logits[:, :-1].mT, ids[:, 1:], reduction="none") * counts
    return (each.sum(dim=1) / counts.sum(dim=1).clamp(min=1)).mean()


@next_token_loss.mutant("surprises are added up and not divided by their number", LOSS)
def _(*inputs, **more):
    return surprise(*inputs, **more, reduction="sum")


@next_token_loss.mutant("the softmax is taken twice: `cross_entropy` wants the logits themselves", LOSS)
def _(logits, ids, pad=0):
    return surprise(logits.softmax(dim=-1), ids, pad)


@next_token_loss.mutant("EOS is left out as well: the model never learns to stop", LOSS)
def _(logits, ids, pad=0):
    return surprise(logits, ids.masked_fill(ids == 2, pad), pad)


@next_token_loss.alternative
def _(logits, ids, pad=0):
    log_p = logits.log_softmax(dim=-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    return -log_p[ids[:, 1:] != pad].mean()


@next_token_loss.alternative
def _(logits, ids, pad=0):
    labels = ids.roll(-1, dims=1).masked_fill(ids.roll(-1, dims=1) == pad, -100)
    labels[:, -1] = -100
    return F.cross_entropy(logits.mT, labels)


@next_token_loss.replaces("tinyomni.training.stages.thinker.next_token_loss")
def _(answer):
    def loss(logits, ids, targets=None):
        return answer(logits.float(), ids if targets is None else ids.masked_fill(~targets, 0), 0)

    return loss
