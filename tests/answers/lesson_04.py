"""Lesson 04: the Thinker's layers and its loss."""

import torch
import torch.nn.functional as F
from torch import nn

from answers import right, wrong


def norm_layer(compute, initial=torch.ones, name="weight"):
    """A layer with one parameter, and `compute(x, weight, eps)`."""

    class RMSNorm(nn.Module):
        def __init__(self, dim, eps=1e-6):
            super().__init__()
            setattr(self, name, nn.Parameter(initial(dim)))
            self.eps = eps

        def forward(self, x):
            return compute(x, getattr(self, name), self.eps)

    return RMSNorm


right("rms_norm")(norm_layer(
    lambda x, w, eps:
    (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * w.to(x.dtype)
    if x.dtype != torch.float64 else x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * w
))  # fmt: skip
right("rms_norm")(norm_layer(
    lambda x, w, eps:
    (w * (x.double() / (x.double().square().sum(-1, keepdim=True) / x.shape[-1] + eps).sqrt())).to(x.dtype)
))  # fmt: skip
right("rms_norm")(norm_layer(
    lambda x, w, eps: ((y := x.float() if x.dtype.itemsize < 4 else x)
                       / torch.sqrt((y * y).mean(dim=-1)[..., None] + eps) * w).to(x.dtype)
))  # fmt: skip
wrong("rms_norm", "L2 norm")(norm_layer(lambda x, w, eps: (
    x.float() / (x.float().norm(dim=-1, keepdim=True) + eps) * w).to(x.dtype)))  # fmt: skip
wrong("rms_norm", "LayerNorm")(norm_layer(lambda x, w, eps: F.layer_norm(
    x.float(), x.shape[-1:], w.float(), None, eps).to(x.dtype)))  # fmt: skip
wrong("rms_norm", "root forgotten")(norm_layer(lambda x, w, eps: (
    x.float() / (x.float().pow(2).mean(-1, keepdim=True) + eps) * w).to(x.dtype)))  # fmt: skip
wrong("rms_norm", "over the tokens")(norm_layer(lambda x, w, eps: (
    x.float() * (x.float().pow(2).mean(-2, keepdim=True) + eps).rsqrt() * w).to(x.dtype)))  # fmt: skip
wrong("rms_norm", "in half precision")(norm_layer(lambda x, w, eps: (
    x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * w).to(x.dtype)))  # fmt: skip
wrong("rms_norm", "returns float32")(norm_layer(lambda x, w, eps: (
    x.float() * (x.float().pow(2).mean(-1, keepdim=True) + eps).rsqrt() * w)))  # fmt: skip
wrong("rms_norm", "eps outside the root")(norm_layer(lambda x, w, eps: (
    x.float() / (x.float().pow(2).mean(-1, keepdim=True).sqrt() + eps) * w).to(x.dtype)))  # fmt: skip
wrong("rms_norm", "no eps")(norm_layer(lambda x, w, eps: (
    x.float() / x.float().pow(2).mean(-1, keepdim=True).sqrt() * w).to(x.dtype)))  # fmt: skip
wrong("rms_norm", "weight initially random")(norm_layer(lambda x, w, eps: (
    x.float() * (x.float().pow(2).mean(-1, keepdim=True) + eps).rsqrt() * w).to(x.dtype), torch.rand))  # fmt: skip
wrong("rms_norm", "parameter called gamma")(norm_layer(lambda x, w, eps: (
    x.float() * (x.float().pow(2).mean(-1, keepdim=True) + eps).rsqrt() * w).to(x.dtype), name="gamma"))  # fmt: skip
wrong("rms_norm", "no gradient through the norm")(norm_layer(lambda x, w, eps: (
    x.float() * (x.float().pow(2).mean(-1, keepdim=True) + eps).rsqrt().detach() * w).to(x.dtype)))  # fmt: skip


@wrong("rms_norm", "the library's nn.RMSNorm")
class RMSNorm(nn.RMSNorm):
    def __init__(self, dim, eps=1e-6):
        super().__init__(dim, eps)

    def forward(self, x):
        return super().forward(x.float() if x.dtype.itemsize < 4 else x).to(x.dtype)


wrong("rms_norm", "the library's F.rms_norm")(norm_layer(lambda x, w, eps: F.rms_norm(
    x.float() if x.dtype.itemsize < 4 else x, x.shape[-1:], w.float() if x.dtype.itemsize < 4 else w, eps
).to(x.dtype)))  # fmt: skip


def mlp_layer(compute, bias=False, names=("gate", "up", "down")):
    """A layer with three projections, and `compute(gate, up, down, x)`."""

    class SwiGLU(nn.Module):
        def __init__(self, dim, intermediate_size):
            super().__init__()
            for name in names[:2]:
                setattr(self, name, nn.Linear(dim, intermediate_size, bias=bias))
            setattr(self, names[2], nn.Linear(intermediate_size, dim, bias=bias))

        def forward(self, x):
            return compute(*(getattr(self, name) for name in names), x)

    return SwiGLU


right("swiglu")(mlp_layer(lambda gate, up, down, x: down(F.silu(gate(x)) * up(x))))
right("swiglu")(mlp_layer(lambda gate, up, down, x: down((g := gate(x)) * torch.sigmoid(g) * up(x))))
right("swiglu")(mlp_layer(lambda gate, up, down, x: down(nn.SiLU()(x @ gate.weight.T).mul(up(x)))))
wrong("swiglu", "silu on up")(mlp_layer(lambda gate, up, down, x: down(gate(x) * F.silu(up(x)))))
wrong("swiglu", "gelu")(mlp_layer(lambda gate, up, down, x: down(F.gelu(gate(x)) * up(x))))
wrong("swiglu", "sigmoid: GLU")(mlp_layer(lambda gate, up, down, x: down(gate(x).sigmoid() * up(x))))
wrong("swiglu", "sum")(mlp_layer(lambda gate, up, down, x: down(F.silu(gate(x)) + up(x))))
wrong("swiglu", "relu")(mlp_layer(lambda gate, up, down, x: down(F.relu(gate(x)) * up(x))))
wrong("swiglu", "silu at the end")(mlp_layer(lambda gate, up, down, x: F.silu(down(gate(x) * up(x)))))
wrong("swiglu", "silu around the product")(mlp_layer(lambda gate, up, down, x: down(F.silu(gate(x) * up(x)))))
wrong("swiglu", "residual inside")(mlp_layer(lambda gate, up, down, x: x + down(F.silu(gate(x)) * up(x))))
wrong("swiglu", "with bias")(mlp_layer(lambda gate, up, down, x: down(F.silu(gate(x)) * up(x)), bias=True))
wrong("swiglu", "w1, w2, w3")(mlp_layer(
    lambda gate, up, down, x: down(F.silu(gate(x)) * up(x)), names=("w1", "w3", "w2")))  # fmt: skip


@right("block")
def _(x, norm1, attention, norm2, mlp):
    y = torch.add(x, attention(norm1(x)))
    return torch.add(y, mlp(norm2(y)))


@right("block")
def _(x, norm1, attention, norm2, mlp):
    stream = x.clone()
    for norm, layer in ((norm1, attention), (norm2, mlp)):
        stream = layer.forward(norm.forward(stream)) + stream
    return stream


@right("block")
def _(x, norm1, attention, norm2, mlp):
    a = attention(norm1(x))
    return x + a + mlp(norm2(x + a))


@wrong("block", "in place")
def _(x, norm1, attention, norm2, mlp):
    x += attention(norm1(x))
    x += mlp(norm2(x))
    return x


@wrong("block", "post-norm")
def _(x, norm1, attention, norm2, mlp):
    x = norm1(x + attention(x))
    return norm2(x + mlp(x))


@wrong("block", "residual from the norm")
def _(x, norm1, attention, norm2, mlp):
    h = norm1(x)
    x = h + attention(h)
    h = norm2(x)
    return h + mlp(h)


@wrong("block", "parallel")
def _(x, norm1, attention, norm2, mlp):
    return x + attention(norm1(x)) + mlp(norm2(x))


@wrong("block", "no second residual")
def _(x, norm1, attention, norm2, mlp):
    x = x + attention(norm1(x))
    return mlp(norm2(x))


@wrong("block", "second residual from the input")
def _(x, norm1, attention, norm2, mlp):
    y = x + attention(norm1(x))
    return x + mlp(norm2(y))


@wrong("block", "norm1 twice")
def _(x, norm1, attention, norm2, mlp):
    x = x + attention(norm1(x))
    return x + mlp(norm1(x))


@wrong("block", "a norm at the end")
def _(x, norm1, attention, norm2, mlp):
    x = x + attention(norm1(x))
    return norm2(x + mlp(norm2(x)))


@wrong("block", "MLP first")
def _(x, norm1, attention, norm2, mlp):
    x = x + mlp(norm2(x))
    return x + attention(norm1(x))


@wrong("block", "the stream is detached")
def _(x, norm1, attention, norm2, mlp):
    x = x.detach() + attention(norm1(x))
    return x + mlp(norm2(x))


right("next_token_loss")(lambda logits, ids, pad=0: F.cross_entropy(
    logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), ignore_index=pad))  # fmt: skip


@right("next_token_loss")
def _(logits, ids, pad=0):
    logp = logits[:, :-1].log_softmax(-1)
    target = ids[:, 1:]
    picked = -logp.gather(2, target[..., None])[..., 0]
    return picked[target != pad].mean()


@right("next_token_loss")
def _(logits, ids, pad=0):
    losses = [
        torch.logsumexp(logits[b, t], 0) - logits[b, t, ids[b, t + 1]]
        for b in range(ids.shape[0]) for t in range(ids.shape[1] - 1) if ids[b, t + 1] != pad
    ]  # fmt: skip
    return torch.stack(losses).mean() if losses else logits.sum() * torch.nan


wrong("next_token_loss", "labels without shift")(lambda logits, ids, pad=0: F.cross_entropy(
    logits.flatten(0, 1), ids.flatten(), ignore_index=pad))  # fmt: skip
wrong("next_token_loss", "shifted the other way")(lambda logits, ids, pad=0: F.cross_entropy(
    logits[:, 1:].flatten(0, 1), ids[:, :-1].flatten(), ignore_index=pad))  # fmt: skip
wrong("next_token_loss", "padding counts")(lambda logits, ids, pad=0: F.cross_entropy(
    logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))  # fmt: skip
wrong("next_token_loss", "pad is always 0")(lambda logits, ids, pad=0: F.cross_entropy(
    logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), ignore_index=0))  # fmt: skip
wrong("next_token_loss", "mean of the rows' means")(lambda logits, ids, pad=0: torch.stack([
    F.cross_entropy(row[:-1], i[1:], ignore_index=pad) for row, i in zip(logits, ids, strict=True)
]).nanmean())  # fmt: skip
wrong("next_token_loss", "sum")(lambda logits, ids, pad=0: F.cross_entropy(
    logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), ignore_index=pad, reduction="sum"))  # fmt: skip
wrong("next_token_loss", "0 for nothing")(lambda logits, ids, pad=0: F.cross_entropy(
    logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), ignore_index=pad).nan_to_num(0.0))  # fmt: skip
wrong("next_token_loss", "rolled: the last position predicts the first token")(
    lambda logits, ids, pad=0: F.cross_entropy(logits.flatten(0, 1), ids.roll(-1, 1).flatten(), ignore_index=pad)
)
wrong("next_token_loss", "divided by all positions")(
    lambda logits, ids, pad=0: (
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), ignore_index=pad, reduction="sum")
        / ids[:, 1:].numel()
    )
)
wrong("next_token_loss", "masked by the input token")(
    lambda logits, ids, pad=0: F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")[
        (ids[:, :-1] != pad).flatten()
    ].mean()
)
wrong("next_token_loss", "bits")(lambda logits, ids, pad=0: F.cross_entropy(
    logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), ignore_index=pad) / 0.6931472)  # fmt: skip
wrong("next_token_loss", "softmax before cross_entropy")(lambda logits, ids, pad=0: F.cross_entropy(
    logits[:, :-1].softmax(-1).flatten(0, 1), ids[:, 1:].flatten(), ignore_index=pad))  # fmt: skip
wrong("next_token_loss", "a new tensor from .item()")(lambda logits, ids, pad=0: torch.tensor(F.cross_entropy(
    logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), ignore_index=pad).item(), dtype=logits.dtype))  # fmt: skip
