"""Lesson 04, the Thinker: its oracles take one token at a time; that of the block is torch's own encoder layer."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tinyomni.grade.exercise import AnswerError, exercise, load_weights, parameters_of, share_weights

NOTEBOOK, TITLE = "04_thinker", "The Thinker"

RMSNORM = "1. RMSNorm: keep the numbers in a range"
SWIGLU = "2. SwiGLU: a gated MLP for each token"
RESIDUAL = "3. Residual connections: add, do not replace"
BLOCK = "4. The decoder block"
STACK = "5. The stack and the LM head"
LOSS = "7. Cross-entropy: how surprised was it?"
BUGS = "8. Three shape-preserving bugs"


# ---- norm -----------------------------------------------------------------------------------------------------------


@exercise(
    "RMSNorm",
    minutes=15,
    level=1,
    answer_name="RMSNorm",
    rtol=2e-3,
    atol=1e-4,
    gradients=("x",),
    forbidden=("rms_norm",),
)
def rms_norm(
    x: Float[Tensor, "batch tokens dim"], weight: Float[Tensor, "dim"], eps: float = 1e-6
) -> Float[Tensor, "batch tokens dim"]:
    """One token at a time, with Python's own floats."""
    out = torch.empty_like(x)
    for b, t in torch.cartesian_prod(*map(torch.arange, x.shape[:2])).tolist():
        row = x[b, t].tolist()
        rms = math.sqrt(sum(number * number for number in row) / len(row) + eps)
        out[b, t] = torch.tensor([number / rms * g for number, g in zip(row, weight.tolist(), strict=True)])
    return out


@rms_norm.cases
def _(rng):
    yield "all sizes different", {"x": rng.randn(2, 5, 7) + 1, "weight": rng.randn(7), "eps": 0.1}
    yield "the usual eps", {"x": rng.randn(2, 3, 4), "weight": rng.randn(4)}
    yield "batch 1, one token", {"x": rng.randn(1, 1, 3), "weight": rng.randn(3)}
    yield "as many tokens as channels", {"x": rng.randn(1, 3, 3), "weight": rng.randn(3)}
    yield "zeros: no division by zero", {"x": torch.zeros(1, 2, 3), "weight": rng.randn(3)}
    half = (300 * torch.sign(rng.randn(1, 2, 4)) * (1 + rng.randn(1, 2, 4).abs())).half()
    yield "large numbers in half precision", {"x": half, "weight": torch.ones(4).half()}


@rms_norm.random_inputs
def _(rng):
    dim = rng.size(6)
    x = rng.choice((1e-3, 1.0, 1e4)) * rng.randn(rng.size(3), rng.size(3), dim)
    return {"x": x, "weight": rng.randn(dim), "eps": rng.choice((1e-6, 1e-3, 0.5))}


@rms_norm.invoke
def _(answer, x, weight, eps=1e-6):
    layer = answer(x.shape[-1], eps)
    initial = parameters_of(layer).get("weight", torch.ones(()))
    if not bool((initial == 1).all()):
        raise AnswerError("the parameter `weight` should be 1 in the beginning")
    return load_weights(layer, weight=weight)(x)


class Norm(nn.Module):
    """`rms_norm`; a mutant overrides `normalize`."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        return (self.normalize(x.float()) * self.weight.float()).to(x.dtype)

    def normalize(self, x):
        return x / (x.square().mean(dim=-1, keepdim=True) + self.eps).sqrt()


@rms_norm.mutant("the mean is taken over the tokens instead of the channels: later tokens leak into earlier ones", BUGS)
class OverTokens(Norm):
    def normalize(self, x):
        return x / (x.square().mean(dim=1, keepdim=True) + self.eps).sqrt()


@rms_norm.mutant("the mean of the vector is subtracted first, as LayerNorm does", RMSNORM)
class MeanOff(Norm):
    def normalize(self, x):
        return super().normalize(x - x.mean(dim=-1, keepdim=True))


@rms_norm.mutant("the squares are summed, not averaged: that is L2 normalization", RMSNORM)
class LengthOne(Norm):
    def normalize(self, x):
        return x / (x.square().sum(dim=-1, keepdim=True) + self.eps).sqrt()


@rms_norm.mutant("the square root is missing: the vector is divided by its mean square", RMSNORM)
class NoRoot(Norm):
    def normalize(self, x):
        return x / (x.square().mean(dim=-1, keepdim=True) + self.eps)


@rms_norm.mutant("eps is added after the square root instead of under it", RMSNORM)
class EpsBehind(Norm):
    def normalize(self, x):
        return x / (x.square().mean(dim=-1, keepdim=True).sqrt() + self.eps)


@rms_norm.mutant("eps is missing: a vector of zeros becomes 0/0, which is NaN", RMSNORM)
class NoEps(Norm):
    def normalize(self, x):
        return x / x.square().mean(dim=-1, keepdim=True).sqrt()


@rms_norm.mutant("the `eps` argument is ignored", RMSNORM)
class FixedEps(Norm):
    def __init__(self, width, eps=1e-6):
        super().__init__(width)


@rms_norm.mutant("the learned weight is not used", RMSNORM)
class NoWeight(Norm):
    def forward(self, x):
        return self.normalize(x.float()).to(x.dtype)


@rms_norm.mutant("the squares are computed in half precision, where 300² overflows", STACK)
class HalfSquares(Norm):
    def forward(self, x):
        return self.normalize(x) * self.weight


@rms_norm.alternative
class FloatNorm(Norm):
    def forward(self, x):
        scale = x.float().norm(dim=-1, keepdim=True).square() / x.shape[-1] + self.eps
        return (x.float() / scale.sqrt() * self.weight).to(x.dtype)


@rms_norm.alternative
class DoubleNorm(Norm):
    def forward(self, x):
        scale = torch.rsqrt(torch.einsum("...d,...d->...", x.double(), x.double()) / x.shape[-1] + self.eps)
        return self.weight * (x * scale[..., None]).to(x.dtype)


@rms_norm.replaces("tinyomni.layers.RMSNorm")
def _(answer, original):
    return share_weights(answer(original.weight.shape[0], original.eps), original)


# ---- SwiGLU ---------------------------------------------------------------------------------------------------------


@exercise("SwiGLU", minutes=15, level=2, answer_name="SwiGLU", gradients=("x",))
def swiglu(
    x: Float[Tensor, "batch tokens dim"],
    gate: Float[Tensor, "intermediate_size dim"],
    up: Float[Tensor, "intermediate_size dim"],
    down: Float[Tensor, "dim intermediate_size"],
) -> Float[Tensor, "batch tokens dim"]:
    """One hidden unit at a time."""
    out = torch.zeros_like(x)
    for b, t, h in torch.cartesian_prod(*map(torch.arange, (*x.shape[:2], len(gate)))).tolist():
        gated = gate[h] @ x[b, t]
        out[b, t] += gated / (1 + torch.exp(-gated)) * (up[h] @ x[b, t]) * down[:, h]
    return out


@swiglu.cases
def _(rng):
    def layer(width, hidden):
        return {"gate": rng.randn(hidden, width), "up": rng.randn(hidden, width), "down": rng.randn(width, hidden)}

    yield "all sizes different", {"x": rng.randn(2, 5, 3), **layer(3, 7)}
    yield "batch 1, one token", {"x": rng.randn(1, 1, 4), **layer(4, 2)}
    yield "as wide inside as outside", {"x": rng.randn(1, 2, 3), **layer(3, 3)}
    yield "one hidden unit", {"x": rng.randn(2, 2, 3), **layer(3, 1)}


@swiglu.random_inputs
def _(rng):
    dim, hidden = rng.size(4), rng.size(4)
    gate, up = rng.randn(2, hidden, dim)
    return {"x": 3 * rng.randn(rng.size(2), rng.size(3), dim), "gate": gate, "up": up, "down": rng.randn(dim, hidden)}


@swiglu.invoke
def _(answer, x, gate, up, down):
    weights = {"gate__weight": gate, "up__weight": up, "down__weight": down}
    return load_weights(answer(x.shape[-1], len(gate)), **weights)(x)


class SwiGLUVariant(nn.Module):
    """`swiglu`; a mutant overrides `activate`."""

    def __init__(self, dim: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate, self.up = (
            nn.Linear(dim, intermediate_size, bias=False),
            nn.Linear(dim, intermediate_size, bias=False),
        )
        self.down = nn.Linear(intermediate_size, dim, bias=False)

    def forward(self, x):
        return self.down(self.activate(self.gate(x), self.up(x)))

    def activate(self, gate, up):
        return F.silu(gate) * up


def with_activation(activate: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """The layer with another activation."""
    return type("SwiGLU", (SwiGLUVariant,), {"activate": lambda self, gate, up: activate(gate, up)})


for cause, activation in (
    ("gate and up are exchanged: SiLU is applied to up", lambda gate, up: gate * F.silu(up)),
    ("the activation is a plain sigmoid: SiLU is z times the sigmoid of z", lambda gate, up: torch.sigmoid(gate) * up),
    ("the activation is missing: gate and up are multiplied as they are", lambda gate, up: gate * up),
    ("the activation is applied to the product instead of the gate alone", lambda gate, up: F.silu(gate * up)),
    ("gate and up are added instead of multiplied", lambda gate, up: F.silu(gate) + up),
    ("the activation is ReLU instead of SiLU", lambda gate, up: F.relu(gate) * up),
    ("the activation is GELU instead of SiLU", lambda gate, up: F.gelu(gate) * up),
    ("`up` is not used: that is an MLP without a gate", lambda gate, up: F.silu(gate)),
):
    swiglu.mutant(cause, SWIGLU)(with_activation(activation))


@swiglu.mutant("the residual connection is in it already: that belongs to the block", RESIDUAL)
class AddsInput(SwiGLUVariant):
    def forward(self, x):
        return x + super().forward(x)


@swiglu.alternative
class OneMatrix(SwiGLUVariant):
    def forward(self, x):
        both = x @ torch.cat([self.gate.weight, self.up.weight]).T
        gate, up = both.chunk(2, dim=-1)
        return torch.einsum("bth,dh->btd", gate * gate.sigmoid() * up, self.down.weight)


@swiglu.replaces("tinyomni.layers.SwiGLU")
def _(answer, original):
    return share_weights(answer(original.gate.in_features, original.gate.out_features), original)


# ---- block ----------------------------------------------------------------------------------------------------------


class SelfAttention(nn.Module):
    """torch's attention, called with one sequence, as ours is."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x):
        return self.layer(x, x, x, need_weights=False)[0]


@exercise("A decoder block", minutes=10, level=2, gradients=("x",))
def block(
    x: Float[Tensor, "batch tokens dim"], norm1: nn.Module, attention: nn.Module, norm2: nn.Module, mlp: nn.Module
) -> Float[Tensor, "batch tokens dim"]:
    """torch's encoder layer with these parts built in."""
    attention_layer: Any = attention
    first, _, last = list(mlp.children())
    layer: Any = nn.TransformerEncoderLayer(
        x.shape[2], 1, dropout=0.0, activation=F.gelu, batch_first=True, norm_first=True
    )
    layer.norm1, layer.self_attn, layer.norm2, layer.linear1, layer.linear2 = (
        norm1,
        attention_layer.layer,
        norm2,
        first,
        last,
    )
    out: Tensor = layer(x)
    return out


def block_parts(rng, width, heads, hidden):
    """Norms, attention and MLP with random weights."""
    made = {
        "norm1": nn.LayerNorm(width),
        "attention": SelfAttention(width, heads),
        "norm2": nn.LayerNorm(width),
        "mlp": nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)),
    }
    for part in made.values():
        for weight in part.parameters():
            weight.data = rng.randn(*weight.shape) / 2
    return made


@block.cases
def _(rng):
    yield "all sizes different", {"x": rng.randn(2, 5, 6), **block_parts(rng, 6, 2, 7)}
    yield "batch 1, one token", {"x": rng.randn(1, 1, 4), **block_parts(rng, 4, 1, 3)}
    yield "large numbers in the residual stream", {"x": 100 * rng.randn(1, 3, 2), **block_parts(rng, 2, 1, 3)}


@block.random_inputs
def _(rng):
    width = 2 * rng.size(3)
    return {"x": 3 * rng.randn(rng.size(3), rng.size(4), width), **block_parts(rng, width, 2, rng.size())}


@block.mutant("the sublayers replace the stream instead of adding to it: there is no residual connection", RESIDUAL)
def _(x, norm1, attention, norm2, mlp):
    return mlp(norm2(attention(norm1(x))))


@block.mutant("the output of attention replaces the stream: the first residual connection is missing", RESIDUAL)
def _(x, norm1, attention, norm2, mlp):
    x = attention(norm1(x))
    return x + mlp(norm2(x))


@block.mutant("the output of the MLP replaces the stream: the second residual connection is missing", RESIDUAL)
def _(x, norm1, attention, norm2, mlp):
    return mlp(norm2(x + attention(norm1(x))))


@block.mutant(
    "the norms come after the sums, on the stream itself: that is post-norm, as in the Transformer of 2017", RESIDUAL
)
def _(x, norm1, attention, norm2, mlp):
    x = norm1(x + attention(x))
    return norm2(x + mlp(x))


@block.mutant("the norms are applied to the outputs of the sublayers instead of their inputs", RESIDUAL)
def _(x, norm1, attention, norm2, mlp):
    x = x + norm1(attention(x))
    return x + norm2(mlp(x))


@block.mutant("the normalized vectors are added instead of the stream itself: the identity path is lost", RESIDUAL)
def _(x, norm1, attention, norm2, mlp):
    x = norm1(x)
    x = norm2(x + attention(x))
    return x + mlp(x)


@block.mutant("the norms are missing", RESIDUAL)
def _(x, norm1, attention, norm2, mlp):
    x = x + attention(x)
    return x + mlp(x)


@block.mutant("the MLP reads the block's input instead of the output of attention: the two run in parallel", BLOCK)
def _(x, norm1, attention, norm2, mlp):
    return x + attention(norm1(x)) + mlp(norm2(x))


@block.mutant("`norm1` is used twice: each sublayer has a norm of its own", BLOCK)
def _(x, norm1, attention, norm2, mlp):
    x = x + attention(norm1(x))
    return x + mlp(norm1(x))


@block.mutant("the MLP comes first: attention must come before it", BLOCK)
def _(x, norm1, attention, norm2, mlp):
    x = x + mlp(norm2(x))
    return x + attention(norm1(x))


@block.mutant("the output of attention is lost: the second sum starts again from the block's input", RESIDUAL)
def _(x, norm1, attention, norm2, mlp):
    return x + mlp(norm2(x + attention(norm1(x))))


@block.mutant("`+=` modifies the input in place", RESIDUAL)
def _(x, norm1, attention, norm2, mlp):
    x += attention(norm1(x))
    x += mlp(norm2(x))
    return x


@block.alternative
def _(x, norm1, attention, norm2, mlp):
    for norm, layer in ((norm1, attention), (norm2, mlp)):
        x = torch.add(x, layer(norm(x)))
    return x


class LearnersBlock(nn.Module):
    """A library block whose forward is the learner's."""

    def __init__(self, answer: Callable[..., Any], original: nn.Module) -> None:
        super().__init__()
        self.answer, self.original = answer, original

    def forward(self, x, cache=None, layer=0, mask=None):
        original: Any = self.original
        return self.answer(
            x,
            original.norm1,
            lambda normed: original.attn(normed, cache=cache, layer=layer, mask=mask),
            original.norm2,
            original.mlp,
        )


block.replaces("tinyomni.layers.DecoderBlock", LearnersBlock)


# ---- loss -----------------------------------------------------------------------------------------------------------


@exercise("Next-token cross-entropy", minutes=15, level=2, gradients=("logits",))
def next_token_loss(
    logits: Float[Tensor, "batch tokens vocab"], ids: Int[Tensor, "batch tokens"], pad: int = 0
) -> Float[Tensor, ""]:
    """One token at a time."""
    losses = []
    for row, text in zip(logits, ids.tolist(), strict=True):
        for scores, token in zip(row, text[1:], strict=False):
            if token != pad:
                losses.append(scores.exp().sum().log() - scores[token])
    return torch.stack(losses).mean() if losses else logits.new_tensor(torch.nan)


@next_token_loss.cases
def _(rng):
    yield "all sizes different", {
        "logits": 2 * rng.randn(3, 5, 7), "ids": torch.tensor([[1, 4, 6, 2, 0], [1, 3, 2, 0, 0], [1, 5, 4, 3, 2]])
    }  # fmt: skip
    yield "batch 1, no padding", {"logits": rng.randn(1, 3, 4), "ids": torch.tensor([[1, 3, 2]])}
    yield "a row that is all padding", {"logits": rng.randn(2, 3, 4), "ids": torch.tensor([[1, 3, 2], [0, 0, 0]])}
    yield "another pad id", {
        "logits": rng.randn(2, 4, 6), "ids": torch.tensor([[1, 0, 2, 5], [1, 3, 0, 2]]), "pad": 5
    }  # fmt: skip
    yield "two tokens", {"logits": rng.randn(2, 2, 5), "ids": torch.tensor([[1, 3], [1, 4]])}
    yield "sure of something else", {
        "logits": torch.tensor([[[15.0, 0.0, -12.0], [0.0, 1.0, 2.0]]]), "ids": torch.tensor([[1, 2]])
    }  # fmt: skip
    yield "BOS alone: nothing is predicted, the mean of nothing is NaN", {
        "logits": rng.randn(2, 1, 3), "ids": torch.tensor([[1], [1]])
    }  # fmt: skip


@next_token_loss.random_inputs
def _(rng):
    batch, tokens, vocab = rng.size(4), rng.size(6, 2), rng.size(6, 2)
    logits = rng.choice((1.0, 20.0)) * rng.randn(batch, tokens, vocab)
    return {"logits": logits, "ids": rng.randint(vocab, batch, tokens), "pad": rng.size(vocab - 1, 0)}


def next_token_loss_variant(
    logits, ids, pad=0, *, inputs=slice(None, -1), labels=slice(1, None), ignore=None, reduction="mean"
):
    """`next_token_loss`; each keyword injects one fault."""
    ignore = pad if ignore is None else ignore
    return F.cross_entropy(
        logits[:, inputs].flatten(0, 1), ids[:, labels].flatten(), ignore_index=ignore, reduction=reduction
    )


@next_token_loss.mutant("a small number is added before the logarithm: what is less likely is not told apart", LOSS)
def _(logits, ids, pad=0):
    probability = logits[:, :-1].softmax(dim=-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return -(probability + 1e-9).log()[ids[:, 1:] != pad].mean()


@next_token_loss.mutant("the labels are not shifted: the model is asked for the token that it has just read", BUGS)
def _(*inputs, **more):
    return next_token_loss_variant(*inputs, **more, inputs=slice(None), labels=slice(None))


@next_token_loss.mutant("the labels are shifted the wrong way: the model is asked for the previous token", LOSS)
def _(*inputs, **more):
    return next_token_loss_variant(*inputs, **more, inputs=slice(1, None), labels=slice(None, -1))


@next_token_loss.mutant("padding is not masked: the model is trained to predict PAD", BUGS)
def _(*inputs, **more):
    return next_token_loss_variant(*inputs, **more, ignore=-100)


@next_token_loss.mutant("0 is treated as padding, ignoring `pad`", LOSS)
def _(logits, ids, pad=0):
    return next_token_loss_variant(logits, ids, 0)


@next_token_loss.mutant(
    "the sum is divided by the number of all tokens, padding included: the more padding, the smaller the loss", BUGS
)
def _(logits, ids, pad=0):
    return next_token_loss_variant(logits, ids, pad, reduction="sum") / ids[:, 1:].numel()


@next_token_loss.mutant("the sum is divided by a count that includes the first tokens, which nothing predicts", LOSS)
def _(logits, ids, pad=0):
    return next_token_loss_variant(logits, ids, pad, reduction="sum") / (ids != pad).sum()


@next_token_loss.mutant("the mask comes from the inputs, not from the labels: PAD after EOS counts", LOSS)
def _(logits, ids, pad=0):
    each = F.cross_entropy(logits[:, :-1].mT, ids[:, 1:], reduction="none")
    return each[ids[:, :-1] != pad].mean()


@next_token_loss.mutant("each text is averaged first, so that a token of a short text counts for more", LOSS)
def _(logits, ids, pad=0):
    counts = ids[:, 1:] != pad
    each = F.cross_entropy(logits[:, :-1].mT, ids[:, 1:], reduction="none") * counts
    return (each.sum(dim=1) / counts.sum(dim=1).clamp(min=1)).mean()


@next_token_loss.mutant("the sum is not divided by the number of tokens", LOSS)
def _(*inputs, **more):
    return next_token_loss_variant(*inputs, **more, reduction="sum")


@next_token_loss.mutant("softmax is applied twice: `cross_entropy` expects logits", LOSS)
def _(logits, ids, pad=0):
    return next_token_loss_variant(logits.softmax(dim=-1), ids, pad)


@next_token_loss.mutant("EOS is masked as well: the model never learns to stop", LOSS)
def _(logits, ids, pad=0):
    return next_token_loss_variant(logits, ids.masked_fill(ids == 2, pad), pad)


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
