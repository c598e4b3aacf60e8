"""Lesson 08, one sequence: its oracles go number by number and token by token."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from tinyomni.grade.exercise import AnswerError, exercise

NOTEBOOK, TITLE = "08_one_sequence", "One sequence"

PROJECTOR = "2. The projector: one matrix"
SEQUENCE = "3. Concatenation"
THINKER = "5. The Thinker reads the sequence"
BUGS = "6. Two bugs that keep the shape"
BUDGET = "7. The token budget"


# ---- projector ------------------------------------------------------------------------------------------------------


@exercise(
    "The projector",
    minutes=5,
    level=1,
    gradients=("x", "weight", "bias"),
    forbidden=("linear",),
)
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
    yield "the same width", {"x": rng.randn(2, 3, 4), "weight": rng.randn(4, 4), "bias": rng.randn(4)}
    yield "batch 1, one token: an image", {"x": rng.randn(1, 1, 2), "weight": rng.randn(5, 2), "bias": rng.randn(5)}
    yield "as many tokens as channels", {"x": rng.randn(1, 3, 3), "weight": rng.randn(3, 3), "bias": rng.randn(3)}


@project.random_inputs
def _(rng):
    d_in, d_out = rng.size(), rng.size()
    return {"x": rng.randn(rng.size(3), rng.size(4), d_in), "weight": rng.randn(d_out, d_in), "bias": rng.randn(d_out)}


@project.mutant("the bias is missing", PROJECTOR)
def _(x, weight, bias):
    return x @ weight.T


@project.mutant("the matrix is not transposed: `weight` is (d_out, d_in), and `x @ weight` sums over d_out", PROJECTOR)
def _(x, weight, bias):
    return x @ weight + bias


@project.mutant("the bias is added before the product", PROJECTOR)
def _(x, weight, bias):
    return (x + bias[: x.shape[2]]) @ weight.T


@project.mutant("the tokens are averaged to one: a projector never changes their number", PROJECTOR)
def _(x, weight, bias):
    return (x @ weight.T + bias).mean(dim=1, keepdim=True)


@project.mutant("an activation follows: negative numbers are lost", PROJECTOR)
def _(x, weight, bias):
    return (x @ weight.T + bias).relu()


@project.mutant("the matrix multiplies the token axis: tokens are mixed with each other", PROJECTOR)
def _(x, weight, bias):
    return (weight @ x).mT + bias


@project.mutant("something is detached: the projector, or what is before it, is never trained", PROJECTOR)
def _(x, weight, bias):
    return x @ weight.detach().T + bias.detach()


@project.mutant("the bias is subtracted", PROJECTOR)
def _(x, weight, bias):
    return x @ weight.T - bias


@project.mutant("only the first token is projected", PROJECTOR)
def _(x, weight, bias):
    return x[:, :1] @ weight.T + bias


@project.mutant("one bias, the first, is added to all numbers", PROJECTOR)
def _(x, weight, bias):
    return x @ weight.T + bias[:1]


@project.alternative
def _(x, weight, bias):
    return torch.einsum("bti,oi->bto", x, weight) + bias


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


# ---- concatenation --------------------------------------------------------------------------------------------------


@exercise("Concatenate the modalities", minutes=15, level=2, raises=(ValueError,), gradients=("parts",))
def fuse(parts: dict[str, Float[Tensor, "batch _ d_model"]], ctx_len: int) -> Float[Tensor, "batch total d_model"]:
    """Token by token."""
    tokens = [part[:, t] for part in parts.values() for t in range(part.shape[1])]
    if len(tokens) > ctx_len:
        raise ValueError(spelled_out(parts, ctx_len))
    return torch.stack(tokens, dim=1)


def spelled_out(parts, ctx_len, length=lambda part: part.shape[1]):
    """`image 1 + text 9 = 10 tokens > 8`."""
    terms = " + ".join(f"{name} {length(part)}" for name, part in parts.items())
    return f"{terms} = {sum(map(length, parts.values()))} tokens > {ctx_len}"


@fuse.invoke
def _(answer, parts, ctx_len):
    try:
        return answer(parts, ctx_len)
    except ValueError as error:
        example = spelled_out(parts, ctx_len)
        if "".join(example.split()).partition("tokens")[0] not in "".join(str(error).split()):
            raise AnswerError(f"the message should spell out the sum: expected “{example}”, got “{error}”") from error
        raise


@fuse.cases
def _(rng):
    def parts(batch, width, **counts):
        return {name: rng.randn(batch, length, width) for name, length in counts.items()}

    yield "image, audio, text", {"parts": parts(2, 7, image=1, audio=4, text=5), "ctx_len": 20}
    yield "batch 1, one token each", {"parts": parts(1, 3, image=1, text=1), "ctx_len": 9}
    yield "text first: the caller decides the order", {"parts": parts(2, 3, text=2, image=1), "ctx_len": 9}
    yield "many texts of few tokens", {"parts": parts(8, 2, image=1, text=2), "ctx_len": 3}
    yield "text only", {"parts": parts(2, 3, text=4), "ctx_len": 9}
    yield "exactly ctx_len", {"parts": parts(2, 3, image=1, audio=3, text=2), "ctx_len": 6}
    yield "one token too many: expects an error", {"parts": parts(1, 3, image=1, audio=3, text=2), "ctx_len": 5}
    yield (
        "each part fits, their sum does not: expects an error",
        {"parts": parts(1, 3, image=2, audio=3, text=2), "ctx_len": 5},
    )
    yield "far too many: expects an error", {"parts": parts(1, 2, audio=9), "ctx_len": 4}
    yield "equally many tokens in each", {"parts": parts(1, 2, image=2, audio=2), "ctx_len": 4}


@fuse.random_inputs
def _(rng):
    batch, width, names = rng.size(3), rng.size(4), ["text", "image", "audio", "video"]
    parts = {name: rng.randn(batch, rng.size(4), width) for name in rng.chosen(names, 5, 1)}
    total = sum(part.shape[1] for part in parts.values())
    return {"parts": parts, "ctx_len": max(1, total + rng.size(1, -1))}


def fuse_variant(parts, ctx_len, *, order=list, length=lambda x: x.shape[1], limit_of=lambda limit: limit, dim=1):
    """`fuse`; each keyword injects one fault."""
    row = torch.cat([parts[name] for name in order(parts)], dim=dim)
    if length(row) > limit_of(ctx_len):
        raise ValueError(spelled_out(parts, ctx_len))
    return row


@fuse.mutant("the sequence is silently truncated at the end: part of the question is missing", BUDGET)
def _(parts, ctx_len):
    return fuse_variant(parts, math.inf)[:, :ctx_len]


@fuse.mutant("the sequence is silently truncated at the front: the image is the first to go", BUDGET)
def _(parts, ctx_len):
    return fuse_variant(parts, math.inf)[:, -ctx_len:]


@fuse.mutant("the length is not checked: the Thinker gets more tokens than its context holds", BUDGET)
def _(parts, ctx_len):
    return fuse_variant(parts, math.inf)


@fuse.mutant("a sequence of exactly `ctx_len` tokens is rejected", BUDGET)
def _(parts, ctx_len):
    return fuse_variant(parts, ctx_len, limit_of=lambda limit: limit - 1)


@fuse.mutant("one token too many is accepted", BUDGET)
def _(parts, ctx_len):
    return fuse_variant(parts, ctx_len, limit_of=lambda limit: limit + 1)


@fuse.mutant("each part is compared with the limit, but not their sum", BUDGET)
def _(parts, ctx_len):
    if any(part.shape[1] > ctx_len for part in parts.values()):
        raise ValueError(spelled_out(parts, ctx_len))
    return fuse_variant(parts, math.inf)


@fuse.mutant("the tokens of all samples are counted together: a batch that fits is rejected", BUDGET)
def _(parts, ctx_len):
    return fuse_variant(parts, ctx_len, length=lambda row: row.shape[0] * row.shape[1])


@fuse.mutant("the parts are always sorted, ignoring the caller's order", BUGS)
def _(parts, ctx_len):
    return fuse_variant(
        parts, ctx_len, order=lambda parts: [name for name in ("image", "audio", "text") if name in parts]
    )


@fuse.mutant("the last part comes first: the question is read before the image", THINKER)
def _(parts, ctx_len):
    return fuse_variant(parts, ctx_len, order=lambda parts: list(parts)[::-1])


@fuse.mutant("the parts are concatenated along the channels instead of the tokens", SEQUENCE)
def _(parts, ctx_len):
    return fuse_variant(parts, ctx_len, dim=2)


@fuse.mutant("samples are mixed up: the other parts of a sample come from its neighbour in the batch", BUGS)
def _(parts, ctx_len):
    first, *others = parts
    return fuse_variant({first: parts[first]} | {name: parts[name].roll(1, dims=0) for name in others}, ctx_len)


@fuse.mutant("the message counts with `len`, which is the batch, not the tokens", BUDGET)
def _(parts, ctx_len):
    if sum(part.shape[1] for part in parts.values()) > ctx_len:
        raise ValueError(spelled_out(parts, ctx_len, len))
    return fuse_variant(parts, ctx_len)


@fuse.alternative
def _(parts, ctx_len):
    return fuse_variant(parts, ctx_len)


@fuse.alternative
def _(parts, ctx_len):
    from einops import pack

    row = pack(list(parts.values()), "batch * d_model")[0]
    if row.shape[1] <= ctx_len:
        return row
    raise ValueError(f"too long: {spelled_out(parts, ctx_len)}")


fuse.replaces("tinyomni.omni.fuse")


# ---- budget ---------------------------------------------------------------------------------------------------------


@exercise("The remaining tokens of the context", minutes=15, level=2, raises=(ValueError,))
def remaining_tokens(image: bool, samples: int, text_tokens: int, ctx_len: int = 512) -> int:
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


@remaining_tokens.cases
def _(rng):
    yield "an image, a second of audio, a question", {"image": True, "samples": 16_000, "text_tokens": 9}
    yield "text only", {"image": False, "samples": 0, "text_tokens": 6}
    yield "short audio", {"image": False, "samples": 4_800, "text_tokens": 5}
    yield "a remainder shorter than a frame", {"image": False, "samples": 16_100, "text_tokens": 5}
    yield "one more frame begins a token", {"image": False, "samples": 16_160, "text_tokens": 5}
    yield "the maximum of audio", {"image": True, "samples": 81_920, "text_tokens": 9}
    yield "10 ms too much audio: expects an error", {"image": False, "samples": 82_080, "text_tokens": 9}
    yield "no tokens left", {"image": True, "samples": 0, "text_tokens": 511}
    yield "one token too many: expects an error", {"image": True, "samples": 0, "text_tokens": 512}
    yield "a short context", {"image": True, "samples": 20_480, "text_tokens": 30, "ctx_len": 128}
    yield (
        "a short context, too much audio: expects an error",
        {"image": False, "samples": 21_120, "text_tokens": 3, "ctx_len": 128},
    )


@remaining_tokens.random_inputs
def _(rng):
    ctx_len, image = 4 * rng.size(40), bool(rng.randbool(1))
    audio_tokens = rng.choice((0, 1, ctx_len // 4, ctx_len // 4 + 1))
    samples = max(0, 640 * audio_tokens + rng.choice((-640, -481, -480, -1, 0, 159, 160)))
    rest = max(0, ctx_len - image - -(samples // -640))
    return {
        "image": image, "samples": samples, "text_tokens": rng.choice((0, 1, rest, rest + 1)), "ctx_len": ctx_len
    }  # fmt: skip


def remaining_tokens_variant(
    image,
    samples,
    text_tokens,
    ctx_len=512,
    *,
    frames=lambda n: n // 160,
    tokens=lambda n: -(-n // 4),
    image_tokens=1,
    max_audio_tokens=lambda limit: limit // 4,
    minimum=0,
    truncate=False,
):
    """`remaining_tokens`; each keyword injects one fault."""
    audio_tokens = tokens(frames(samples))
    if audio_tokens > max_audio_tokens(ctx_len):
        if not truncate:
            raise ValueError("too much audio")
        audio_tokens = max_audio_tokens(ctx_len)
    left = ctx_len - image_tokens * image - audio_tokens - text_tokens
    if left < minimum:
        raise ValueError("too many tokens")
    return left


for cause, fault in (
    (
        "one mel frame too many is counted, as the usual centered STFT gives it: 26 tokens a second",
        {"frames": lambda n: n // 160 + (n > 0)},
    ),
    ("mel frames are rounded up instead of down", {"frames": lambda n: -(-n // 160)}),
    ("audio tokens are rounded down instead of up", {"tokens": lambda n: n // 4}),
    (
        "each mel frame is a token: the two convolutions are forgotten",
        {"tokens": lambda n: n, "max_audio_tokens": lambda n: n},
    ),
    ("an image is counted as its 196 patches: only CLS becomes a token", {"image_tokens": 196}),
    ("the image is not counted", {"image_tokens": 0}),
    ("the limit for audio, a quarter of the context, is not checked", {"max_audio_tokens": lambda limit: limit}),
    ("the limit for audio is always 128, ignoring `ctx_len`", {"max_audio_tokens": lambda limit: 128}),
    ("audio of exactly the limit is rejected", {"max_audio_tokens": lambda limit: limit // 4 - 1}),
    ("too much audio is silently truncated", {"truncate": True}),
    ("too many tokens raise no error: the result is negative", {"minimum": -math.inf}),
    ("a prompt of exactly `ctx_len` tokens is rejected", {"minimum": 1}),
):
    remaining_tokens.mutant(cause, BUDGET)(
        lambda *inputs, fault=fault, **more: remaining_tokens_variant(*inputs, **more, **fault)
    )


@remaining_tokens.mutant("the context is always 512, ignoring `ctx_len`", BUDGET)
def _(image, samples, text_tokens, ctx_len=512):
    return remaining_tokens_variant(image, samples, text_tokens)


@remaining_tokens.alternative
def _(*inputs, **more):
    return remaining_tokens_variant(*inputs, **more)


@remaining_tokens.alternative
def _(image, samples, text_tokens, ctx_len=512):
    audio_tokens = math.ceil(samples // 160 / 4)
    left = ctx_len - sum((int(image), audio_tokens, text_tokens))
    if 4 * audio_tokens > ctx_len or left < 0:
        raise ValueError(f"{int(image)} + {audio_tokens} + {text_tokens} of {ctx_len}")
    return left
