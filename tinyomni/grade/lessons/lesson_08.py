"""Lesson 08, one sequence: its oracles write number by number, place by place, and count token by token."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tinyomni.grade.exercise import exercise

NOTEBOOK, TITLE = "08_one_sequence", "One sequence"

PROJECT = "2. The projector: one matrix"
ROW = "3. One row"
THINKER = "5. The Thinker reads the row"
BUGS = "6. Two bugs that keep the shape"
BUDGET = "7. The budget"


# ---- projector ------------------------------------------------------------------------------------------------------


@exercise("The projector", minutes=5, level=1)
def project(
    x: Float[Tensor, "batch tokens d_in"], weight: Float[Tensor, "d_out d_in"], bias: Float[Tensor, "d_out"]
) -> Float[Tensor, "batch tokens d_out"]:
    """One number at a time."""
    out = x.new_zeros(*x.shape[:2], len(weight))
    for b, t, j in torch.cartesian_prod(*map(torch.arange, out.shape)).tolist():
        out[b, t, j] = bias[j] + sum(weight[j, i] * x[b, t, i] for i in range(x.shape[2]))
    return out


@project.cases
def _(rng):
    yield "all sizes different", {"x": rng.randn(2, 5, 3), "weight": rng.randn(7, 3), "bias": rng.randn(7)}
    yield "as wide as before", {"x": rng.randn(2, 3, 4), "weight": rng.randn(4, 4), "bias": rng.randn(4)}
    yield "batch 1, one token: a picture", {"x": rng.randn(1, 1, 2), "weight": rng.randn(5, 2), "bias": rng.randn(5)}
    yield "as many tokens as numbers", {"x": rng.randn(1, 3, 3), "weight": rng.randn(3, 3), "bias": rng.randn(3)}


@project.mutant("the bias is forgotten", PROJECT)
def _(x, weight, bias):
    return x @ weight.T


@project.mutant("the matrix is not turned: `weight` is (d_out, d_in), and `x @ weight` sums over d_out", PROJECT)
def _(x, weight, bias):
    return x @ weight + bias


@project.mutant("the bias is inside the product: it is multiplied by the matrix too", PROJECT)
def _(x, weight, bias):
    return (x + bias[: x.shape[2]]) @ weight.T


@project.mutant("the tokens are averaged to one: a projector never changes their number", PROJECT)
def _(x, weight, bias):
    return F.linear(x, weight, bias).mean(dim=1, keepdim=True)


@project.mutant("a curve follows: negative numbers are lost", PROJECT)
def _(x, weight, bias):
    return F.linear(x, weight, bias).relu()


@project.mutant("the matrix multiplies the token axis: tokens are mixed with each other", PROJECT)
def _(x, weight, bias):
    return (weight @ x).mT + bias


@project.alternative
def _(x, weight, bias):
    return F.linear(x, weight, bias)


@project.alternative
def _(x, weight, bias):
    return (x[:, :, None] * weight).sum(dim=-1) + bias


@project.replaces("tinyomni.omni.Omni.embed_image")
def _(answer):
    return lambda self, img: answer(self.vision(img), self.proj_v.weight, self.proj_v.bias)


@project.replaces("tinyomni.omni.Omni.embed_audio")
def _(answer):
    def embed_audio(self, wav):
        self.check_audio(wav)
        return answer(self.audio(self.mel(wav)), self.proj_a.weight, self.proj_a.bias)

    return embed_audio


# ---- one row --------------------------------------------------------------------------------------------------------


@exercise("All parts in one row", minutes=15, level=2, raises=(ValueError,))
def fuse(parts: dict[str, Float[Tensor, "batch _ d_model"]], ctx_len: int) -> Float[Tensor, "batch total d_model"]:
    """Token by token."""
    tokens = [part[:, t] for part in parts.values() for t in range(part.shape[1])]
    if len(tokens) > ctx_len:
        raise ValueError(f"{len(tokens)} tokens > {ctx_len}")
    return torch.stack(tokens, dim=1)


@fuse.cases
def _(rng):
    def parts(batch, width, **counts):
        return {name: rng.randn(batch, count, width) for name, count in counts.items()}

    yield "picture, sound, text", {"parts": parts(2, 7, image=1, audio=4, text=5), "ctx_len": 20}
    yield "batch 1, one token each", {"parts": parts(1, 3, image=1, text=1), "ctx_len": 9}
    yield "text first: the order is the caller's", {"parts": parts(2, 3, text=2, image=1), "ctx_len": 9}
    yield "text alone", {"parts": parts(2, 3, text=4), "ctx_len": 9}
    yield "it just fits", {"parts": parts(2, 3, image=1, audio=3, text=2), "ctx_len": 6}
    yield "one too many: an error is due", {"parts": parts(1, 3, image=1, audio=3, text=2), "ctx_len": 5}
    yield "each part fits, their sum does not", {"parts": parts(1, 3, image=2, audio=3, text=2), "ctx_len": 5}
    yield "far too many", {"parts": parts(1, 2, audio=9), "ctx_len": 4}
    yield "as many tokens in each", {"parts": parts(1, 2, image=2, audio=2), "ctx_len": 4}


def fused(parts, ctx_len, *, order=list, count=lambda x: x.shape[1], most=lambda limit: limit, dim=1):
    """Count, then join, with one thing to go wrong at a time."""
    row = torch.cat([parts[name] for name in order(parts)], dim=dim)
    if count(row) > most(ctx_len):
        raise ValueError("too many")
    return row


@fuse.mutant("what does not fit is cut off, and nobody is told: the end of the question is missing", BUDGET)
def _(parts, ctx_len):
    return fused(parts, math.inf)[:, :ctx_len]


@fuse.mutant("the beginning is cut off: the picture is the first to go", BUDGET)
def _(parts, ctx_len):
    return fused(parts, math.inf)[:, -ctx_len:]


@fuse.mutant("nobody counts: the Thinker gets more tokens than it can hold", BUDGET)
def _(parts, ctx_len):
    return fused(parts, math.inf)


@fuse.mutant("a row that just fits is refused", BUDGET)
def _(parts, ctx_len):
    return fused(parts, ctx_len, most=lambda limit: limit - 1)


@fuse.mutant("one token too many goes through", BUDGET)
def _(parts, ctx_len):
    return fused(parts, ctx_len, most=lambda limit: limit + 1)


@fuse.mutant("each part is held against the limit, but not their sum", BUDGET)
def _(parts, ctx_len):
    if any(part.shape[1] > ctx_len for part in parts.values()):
        raise ValueError("too many")
    return fused(parts, math.inf)


@fuse.mutant("the tokens of all samples are counted together: a batch is refused that fits", BUDGET)
def _(parts, ctx_len):
    return fused(parts, ctx_len, count=lambda row: row.shape[0] * row.shape[1])


@fuse.mutant("the parts are always sorted, whatever the caller says: order must be decided in one place", BUGS)
def _(parts, ctx_len):
    return fused(parts, ctx_len, order=lambda parts: [name for name in ("image", "audio", "text") if name in parts])


@fuse.mutant("the last part comes first: the question is read before anything was seen", THINKER)
def _(parts, ctx_len):
    return fused(parts, ctx_len, order=lambda parts: list(parts)[::-1])


@fuse.mutant("the parts are joined along the features instead of the tokens", ROW)
def _(parts, ctx_len):
    return fused(parts, ctx_len, dim=2)


@fuse.mutant("rows are mixed up: the other parts of a sample come from its neighbour in the batch", BUGS)
def _(parts, ctx_len):
    first, *others = parts
    return fused({first: parts[first]} | {name: parts[name].roll(1, dims=0) for name in others}, ctx_len)


@fuse.alternative
def _(parts, ctx_len):
    return fused(parts, ctx_len)


@fuse.alternative
def _(parts, ctx_len):
    from einops import pack

    row = pack(list(parts.values()), "batch * d_model")[0]
    if row.shape[1] <= ctx_len:
        return row
    raise ValueError(" + ".join(f"{name} {part.shape[1]}" for name, part in parts.items()))


fuse.replaces("tinyomni.omni.fuse")


# ---- budget ---------------------------------------------------------------------------------------------------------


@exercise("How much room is left?", minutes=15, level=2, raises=(ValueError,))
def room_left(image: bool, samples: int, text_tokens: int, ctx_len: int = 512) -> int:
    """Count up: a token begins with every fourth of the mel frames, of which each needs 160 whole samples."""
    audio_tokens = sum(1 for number, _ in enumerate(range(160, samples + 1, 160)) if number % 4 == 0)
    if audio_tokens > ctx_len // 4:
        raise ValueError(f"{audio_tokens} audio tokens > {ctx_len // 4}")
    free = [None] * ctx_len
    for _ in range(image + audio_tokens + text_tokens):
        if not free:
            raise ValueError(f"{image} + {audio_tokens} + {text_tokens} tokens > {ctx_len}")
        free.pop()
    return len(free)


@room_left.cases
def _(rng):
    yield "a picture, a second of sound, a question", {"image": True, "samples": 16_000, "text_tokens": 9}
    yield "text alone", {"image": False, "samples": 0, "text_tokens": 6}
    yield "a short sound", {"image": False, "samples": 4_800, "text_tokens": 5}
    yield "less than a frame is left over", {"image": False, "samples": 16_100, "text_tokens": 5}
    yield "one frame more begins a token", {"image": False, "samples": 16_160, "text_tokens": 5}
    yield "the most sound that there may be", {"image": True, "samples": 81_920, "text_tokens": 9}
    yield "10 ms too much sound: an error is due", {"image": False, "samples": 82_080, "text_tokens": 9}
    yield "nothing is left", {"image": True, "samples": 0, "text_tokens": 511}
    yield "one token too many: an error is due", {"image": True, "samples": 0, "text_tokens": 512}
    yield "a short context", {"image": True, "samples": 20_480, "text_tokens": 30, "ctx_len": 128}
    yield "a short context, too much sound", {"image": False, "samples": 21_120, "text_tokens": 3, "ctx_len": 128}


def room(image, samples, text_tokens, ctx_len=512, *, frames=lambda n: n // 160, tokens=lambda n: -(-n // 4), picture=1,
         share=lambda limit: limit // 4, least=0, cut=False):  # fmt: skip
    """The sum, with one thing to go wrong at a time."""
    audio_tokens = tokens(frames(samples))
    if audio_tokens > share(ctx_len):
        if not cut:
            raise ValueError("too much sound")
        audio_tokens = share(ctx_len)
    left = ctx_len - picture * image - audio_tokens - text_tokens
    if left < least:
        raise ValueError("too many tokens")
    return left


for cause, fault in (
    ("a mel frame too many is counted, as the usual centred transform gives it: 26 tokens a second",
     {"frames": lambda n: n // 160 + (n > 0)}),
    ("a rest of samples makes a whole mel frame: frames are rounded down", {"frames": lambda n: -(-n // 160)}),
    ("a rest of mel frames makes no token: the convolutions round up", {"tokens": lambda n: n // 4}),
    ("each mel frame is a token: the two convolutions are forgotten", {"tokens": lambda n: n, "share": lambda n: n}),
    ("a picture is counted as its 196 patches: CLS is one token", {"picture": 196}),
    ("the picture is not counted", {"picture": 0}),
    ("sound may take as much as it likes: its share is a quarter", {"share": lambda limit: limit}),
    ("the share of sound is always 128, however long the context", {"share": lambda limit: 128}),
    ("sound that just fits its share is refused", {"share": lambda limit: limit // 4 - 1}),
    ("too much sound is cut, and nobody is told", {"cut": True}),
    ("too many tokens are no error: less than nothing is left", {"least": -math.inf}),
    ("a prompt that just fits is refused", {"least": 1}),
):  # fmt: skip
    room_left.mutant(cause, BUDGET)(lambda *inputs, fault=fault, **more: room(*inputs, **more, **fault))


@room_left.mutant("the context is always 512, whatever `ctx_len` says", BUDGET)
def _(image, samples, text_tokens, ctx_len=512):
    return room(image, samples, text_tokens)


@room_left.alternative
def _(*inputs, **more):
    return room(*inputs, **more)


@room_left.alternative
def _(image, samples, text_tokens, ctx_len=512):
    audio_tokens = math.ceil(samples // 160 / 4)
    left = ctx_len - sum((int(image), audio_tokens, text_tokens))
    if 4 * audio_tokens > ctx_len or left < 0:
        raise ValueError(f"{int(image)} + {audio_tokens} + {text_tokens} of {ctx_len}")
    return left
