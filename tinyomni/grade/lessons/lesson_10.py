"""Lesson 10, the Talker: its oracles go frame by frame, through lists of plain numbers."""

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tinyomni.grade.exercise import exercise

NOTEBOOK, TITLE = "10_talker", "The Talker"

EMBEDDINGS = "2. Code embeddings: one table for each codebook"
HEADS = "3. Two output heads"
SHIFT = "4. Teacher forcing: shift once"
LOSS = "5. One training step, with every shape (Part 6 of the dry run)"
END = "7. When to stop"
CACHE = "8. Generation with the KV cache (Part 5 of the dry run)"

fault: Any  # what a mutant changes


# ---- embeddings -----------------------------------------------------------------------------------------------------


@exercise("Embeddings for several codebooks", minutes=10, level=1, gradients=("table",))
def embed_codes(
    codes: Int[Tensor, "batch frames codebooks"], table: Float[Tensor, "entries talker_dim"]
) -> Float[Tensor, "batch frames talker_dim"]:
    """The table is split again, and each code is looked up in its own part."""
    parts = table.chunk(codes.shape[2])
    summed = table.new_zeros(*codes.shape[:2], table.shape[1])
    for b, t in torch.cartesian_prod(*map(torch.arange, codes.shape[:2])).tolist():
        for part, code in zip(parts, codes[b, t].tolist(), strict=True):
            summed[b, t] = summed[b, t] + part[code]
    return summed


@embed_codes.cases
def _(rng):
    yield "all sizes different", {"codes": rng.randint(4, 2, 5, 3), "table": rng.randn(12, 7)}
    yield "batch 1, one frame", {"codes": rng.randint(5, 1, 1, 2), "table": rng.randn(10, 3)}
    yield "the same two codes in either order", {"codes": torch.tensor([[[1, 2], [2, 1]]]), "table": rng.randn(6, 2)}
    yield "one codebook", {"codes": rng.randint(5, 2, 3, 1), "table": rng.randn(5, 2)}
    yield "two codebooks of 128", {"codes": rng.randint(128, 2, 3, 2), "table": rng.randn(256, 2)}


@embed_codes.random_inputs
def _(rng):
    books, size = rng.size(4), rng.size()
    return {"codes": rng.randint(size, rng.size(3), rng.size(4), books), "table": rng.randn(books * size, rng.size())}


def embed_codes_variant(codes, table, *, begin=lambda i, size, books: i * size, join=lambda found: found.sum(dim=2)):
    """`embed_codes`; a mutant changes where the part of codebook i begins."""
    books = codes.shape[2]
    begins = torch.tensor([begin(i, len(table) // books, books) for i in range(books)])
    return join(table[(codes + begins) % len(table)])


for cause, fault in (
    (
        "all codes are looked up in the first part: (45, 12) and (12, 45) get the same vector",
        {"begin": lambda i, size, books: 0},
    ),
    ("the parts begin one row after the other and overlap", {"begin": lambda i, size, books: i}),
    (
        "the parts begin at multiples of the number of codebooks, not of their size",
        {"begin": lambda i, size, books: i * books},
    ),
    (
        "the parts are in reverse order: base codes are looked up in the last one",
        {"begin": lambda i, size, books: (books - 1 - i) * size},
    ),
    ("the mean is taken instead of the sum", {"join": lambda found: found.mean(dim=2)}),
    ("only the base code is looked up", {"join": lambda found: found[:, :, 0]}),
    ("the vectors are concatenated instead of added", {"join": lambda found: found.flatten(2)}),
    ("the sum runs over the frames instead of the codebooks", {"join": lambda found: found.sum(dim=1)}),
):
    embed_codes.mutant(cause, EMBEDDINGS)(functools.partial(embed_codes_variant, **fault))


@embed_codes.mutant("the parts always have 128 rows, ignoring the size of the table", EMBEDDINGS)
def _(codes, table):
    return table[codes + 128 * torch.arange(codes.shape[2])].sum(dim=2)


@embed_codes.alternative
def _(codes, table):
    return embed_codes_variant(codes, table)


@embed_codes.alternative
def _(codes, table):
    books = codes.shape[2]
    parts = table.unflatten(0, (books, -1))
    return sum(F.embedding(codes[..., i], parts[i]) for i in range(books))


@embed_codes.replaces("tinyomni.talker.TalkerTiny.embed_codes")
def _(answer):
    return lambda self, codes: answer(codes, torch.cat([table.weight for table in self.code_emb]))


# ---- teacher forcing ------------------------------------------------------------------------------------------------


@exercise("Teacher forcing", minutes=10, level=1)
def teacher_forcing(
    codes: Int[Tensor, "batch frames codebooks"],
) -> tuple[Int[Tensor, "batch frames codebooks"], Int[Tensor, "batch frames codebooks"]]:
    """Frame t - 1 is the input where frame t is the label."""
    inputs = torch.zeros_like(codes)
    for t in range(1, codes.shape[1]):
        inputs[:, t] = codes[:, t - 1]
    return inputs, codes


@teacher_forcing.cases
def _(rng):
    yield "all sizes different", {"codes": rng.randint(90, 3, 5, 2, low=1)}
    yield "batch 1, one frame", {"codes": rng.randint(90, 1, 1, 2, low=1)}
    yield "as many frames as codebooks", {"codes": rng.randint(90, 2, 2, 2, low=1)}
    yield "two frames", {"codes": rng.randint(90, 1, 2, 3, low=1)}


@teacher_forcing.random_inputs
def _(rng):
    return {"codes": rng.randint(5, rng.size(), rng.size(), rng.size(4))}


def shift_frames(codes, by=1, dim=1, start=0):
    """`torch.roll`, with the first frame overwritten."""
    inputs = codes.roll(by, dim)
    if start is not None:
        inputs[:, 0] = start
    return inputs


for cause, fault in (
    ("nothing is shifted: the input of each frame is its own label", lambda codes: (codes.clone(), codes)),
    (
        "inputs and labels are both shifted: the model learns to predict two frames ahead",
        lambda codes: (shift_frames(codes), codes.roll(-1, 1)),
    ),
    (
        "the last frame wraps around to the front",
        lambda codes: (shift_frames(codes, start=None), codes),
    ),
    (
        "the inputs are shifted to the left: each frame sees the one after it",
        lambda codes: (torch.cat([codes[:, 1:], torch.zeros_like(codes[:, :1])], dim=1), codes),
    ),
    (
        "the labels are shifted instead of the inputs: frame 0 is never predicted",
        lambda codes: (codes, codes.roll(-1, 1)),
    ),
    (
        "one frame is cut off each, as for text, `[:, :-1]` and `[:, 1:]`: frame 0 is never predicted",
        lambda codes: (codes[:, :-1], codes[:, 1:]),
    ),
    ("the codebooks are shifted instead of the frames", lambda codes: (shift_frames(codes, dim=2), codes)),
    ("the batch is shifted instead of the frames", lambda codes: (shift_frames(codes, dim=0), codes)),
    (
        "the first frame is repeated instead of zeros",
        lambda codes: (torch.cat([codes[:, :1], codes[:, :-1]], dim=1), codes),
    ),
    ("inputs and labels are exchanged", lambda codes: (codes, shift_frames(codes))),
    (
        "the start frame makes the inputs one frame longer than the labels",
        lambda codes: (F.pad(codes, (0, 0, 1, 0)), codes),
    ),
):
    teacher_forcing.mutant(cause, SHIFT)(fault)


@teacher_forcing.alternative
def _(codes):
    return shift_frames(codes), codes


@teacher_forcing.alternative
def _(codes):
    return F.pad(codes, (0, 0, 1, 0))[:, :-1], codes.clone()


@teacher_forcing.replaces("tinyomni.talker.previous")
def _(answer):
    return lambda codes: answer(codes)[0]


# ---- the loss -------------------------------------------------------------------------------------------------------


@exercise(
    "The Talker's loss",
    minutes=10,
    level=2,
    gradients=("base_logit", "res_logit"),
)
def talker_loss(
    base_logit: Float[Tensor, "batch frames codebook_size"],
    res_logit: Float[Tensor, "batch frames codebook_size"],
    codes: Int[Tensor, "batch frames codebooks"],
) -> Float[Tensor, ""]:
    """Minus the log-probability of each label, one at a time."""
    total = 0.0
    for b, t in torch.cartesian_prod(*map(torch.arange, codes.shape[:2])).tolist():
        for logits, label in zip((base_logit, res_logit), codes[b, t].tolist(), strict=True):
            row = logits[b, t].double()
            total += math.log(float((row - row.max()).exp().sum())) - float(row[label] - row.max())
    return torch.tensor(total / codes[..., 0].numel(), dtype=base_logit.dtype)


@talker_loss.cases
def _(rng):
    def given(batch, frames, size, scale=1.0):
        return {
            "base_logit": scale * rng.randn(batch, frames, size),
            "res_logit": scale * rng.randn(batch, frames, size),
            "codes": rng.randint(size, batch, frames, 2),
        }

    yield "all sizes different", given(3, 5, 7)
    yield "batch 1, one frame", given(1, 1, 4)
    yield "large logits", given(2, 2, 3, scale=200.0)
    yield "as many entries as frames", given(2, 4, 4)


@talker_loss.random_inputs
def _(rng):
    batch, frames, size = rng.size(3), rng.size(4), rng.size(6)
    base, res = rng.choice((1.0, 100.0)) * rng.randn(2, batch, frames, size)
    return {"base_logit": base, "res_logit": res, "codes": rng.randint(size, batch, frames, 2)}


def cross_entropy(logits, codes, **more):
    return F.cross_entropy(logits.flatten(0, 1), codes.flatten(), **more)


for cause, fault in (
    (
        "the residual loss is missing: the initial loss would be ln 128, half of what it should be",
        lambda base, res, codes: cross_entropy(base, codes[..., 0]),
    ),
    (
        "both heads are trained on the base code",
        lambda base, res, codes: cross_entropy(base, codes[..., 0]) + cross_entropy(res, codes[..., 0]),
    ),
    (
        "the labels of the two heads are exchanged",
        lambda base, res, codes: cross_entropy(base, codes[..., 1]) + cross_entropy(res, codes[..., 0]),
    ),
    (
        "the two losses are averaged instead of summed",
        lambda base, res, codes: (cross_entropy(base, codes[..., 0]) + cross_entropy(res, codes[..., 1])) / 2,
    ),
    (
        "the losses of all frames are summed: long recordings count more",
        lambda base, res, codes: (
            cross_entropy(base, codes[..., 0], reduction="sum") + cross_entropy(res, codes[..., 1], reduction="sum")
        ),
    ),
    (
        "softmax is applied twice: `cross_entropy` expects logits",
        lambda base, res, codes: (
            cross_entropy(base.softmax(-1), codes[..., 0]) + cross_entropy(res.softmax(-1), codes[..., 1])
        ),
    ),
    (
        "the labels are shifted once more, though the inputs are shifted already",
        lambda base, res, codes: (
            cross_entropy(base[:, :-1], codes[:, 1:, 0]) + cross_entropy(res[:, :-1], codes[:, 1:, 1])
        ),
    ),
    (
        "code 0 is treated as padding: it is a code like all others",
        lambda base, res, codes: (
            cross_entropy(base, codes[..., 0], ignore_index=0) + cross_entropy(res, codes[..., 1], ignore_index=0)
        ),
    ),
):
    talker_loss.mutant(cause, SHIFT if "shifted" in cause else LOSS)(fault)


@talker_loss.mutant("no gradient comes back: a head is detached, or the loss is computed under `no_grad`", LOSS)
def _(base_logit, res_logit, codes):
    with torch.no_grad():
        return cross_entropy(base_logit, codes[..., 0]) + cross_entropy(res_logit, codes[..., 1])


@talker_loss.mutant("only the last frame counts", LOSS)
def _(base_logit, res_logit, codes):
    return cross_entropy(base_logit[:, -1:], codes[:, -1:, 0]) + cross_entropy(res_logit[:, -1:], codes[:, -1:, 1])


@talker_loss.mutant("the result is a Python number: nothing can be trained with it", LOSS)
def _(base_logit, res_logit, codes):
    return float(cross_entropy(base_logit, codes[..., 0]) + cross_entropy(res_logit, codes[..., 1]))


@talker_loss.alternative
def _(base_logit, res_logit, codes):
    return cross_entropy(base_logit, codes[..., 0]) + cross_entropy(res_logit, codes[..., 1])


@talker_loss.alternative
def _(base_logit, res_logit, codes):
    shares = torch.stack([base_logit, res_logit], dim=2).log_softmax(dim=-1)
    return -shares.gather(-1, codes[..., None]).mean() * 2


# ---- generation -----------------------------------------------------------------------------------------------------


class TableTalker(nn.Module):
    """A Talker of embedding tables: the logits of a frame depend on the sum of all frames so far."""

    tables: Tensor
    heads: Tensor
    last: Tensor

    def __init__(self, rng, size, width=4, newest_only=False):
        super().__init__()
        self.newest_only = newest_only  # as a Talker with a cache returns it
        for name, numbers in (
            ("tables", rng.randn(2, size, width)),
            ("heads", 2 * rng.randn(2, width, size)),
            ("last", rng.randn(width)),
        ):
            self.register_buffer(name, numbers)

    def forward(self, codes):
        x = (self.tables[0][codes[..., 0]] + self.tables[1][codes[..., 1]]).cumsum(dim=1)
        x = x[:, -1:] if self.newest_only else x
        return x @ self.heads[0], x @ self.heads[1], x @ self.last


@exercise("Generate one frame", minutes=20, level=2)
def talker_step(
    talker: nn.Module, codes: Int[Tensor, "batch frames codebooks"]
) -> tuple[Int[Tensor, "batch frames+1 codebooks"], Float[Tensor, "batch"]]:
    """Sample by sample, through lists."""
    extended, end_probability = [], []
    for sample in codes:
        base, res, end = (each[0] for each in talker(sample[None]))
        new = [scores[-1].tolist().index(float(scores[-1].max())) for scores in (base, res)]
        extended.append([*sample.tolist(), new])
        end_probability.append(1 / (1 + (-end[-1]).exp()))
    return torch.tensor(extended), torch.stack(end_probability)


@talker_step.cases
def _(rng):
    yield "all sizes different", {"talker": TableTalker(rng, 11), "codes": rng.randint(11, 3, 5, 2)}
    yield "only the start frame", {"talker": TableTalker(rng, 7), "codes": torch.zeros(1, 1, 2, dtype=torch.long)}
    yield "batch 1", {"talker": TableTalker(rng, 9), "codes": rng.randint(9, 1, 4, 2)}
    yield "a Talker that returns its newest frame only", {
        "talker": TableTalker(rng, 6, newest_only=True), "codes": rng.randint(6, 2, 4, 2)
    }  # fmt: skip
    yield "as many samples as codebooks", {"talker": TableTalker(rng, 8), "codes": rng.randint(8, 2, 3, 2)}
    yield "more samples", {"talker": TableTalker(rng, 13), "codes": rng.randint(13, 4, 2, 2)}


@talker_step.random_inputs
def _(rng):
    size = rng.size(9, 2)
    talker = TableTalker(rng, size, newest_only=bool(rng.randbool(1)))
    return {"talker": talker, "codes": rng.randint(size, rng.size(), rng.size(), 2)}


def talker_step_variant(
    talker,
    codes,
    *,
    at=-1,
    choose=lambda z: z.argmax(dim=-1),
    pair=lambda base, res: (base, res),
    put=lambda codes, new: torch.cat([codes, new[:, None]], dim=1),
    end_probability=lambda end: end[:, -1].sigmoid(),
    dim=-1,
):
    """`talker_step`; each keyword injects one fault."""
    base, res, end = talker(codes)
    new = [choose(each[:, at]) for each in pair(base, res)]
    return put(codes, torch.stack(new, dim=dim).reshape(len(codes), 2)), end_probability(end)


for cause, fault, section in (
    ("the logits of the first frame are used, not those of the last", {"at": 0}, CACHE),
    ("the least likely codes are taken", {"choose": lambda z: z.argmin(dim=-1)}, HEADS),
    ("the residual code comes from the base head", {"pair": lambda base, res: (base, base)}, HEADS),
    ("the two codes are in the wrong order", {"pair": lambda base, res: (res, base)}, EMBEDDINGS),
    ("the codes are stacked along the batch: samples of a batch get mixed", {"dim": 0}, HEADS),
    (
        "the new frame is put in front",
        {"put": lambda codes, new: torch.cat([new[:, None], codes], dim=1)},
        SHIFT,
    ),
    (
        "the new frame replaces the last one: nothing grows",
        {"put": lambda codes, new: torch.cat([codes[:, :-1], new[:, None]], dim=1)},
        CACHE,
    ),
    ("only the new frame is returned", {"put": lambda codes, new: new[:, None]}, CACHE),
    ("the logit of the end is returned: it is not a probability yet", {"end_probability": lambda end: end[:, -1]}, END),
    ("the end is read at the first frame", {"end_probability": lambda end: end[:, 0].sigmoid()}, END),
    (
        "the end's softmax runs over the frames: it asks which frame, not whether",
        {"end_probability": lambda end: end.softmax(dim=-1)[:, -1]},
        END,
    ),
    (
        "the probability is inverted: how likely it is that the speech goes on",
        {"end_probability": lambda end: (-end[:, -1]).sigmoid()},
        END,
    ),
    (
        "a boolean is returned instead of a probability",
        {"end_probability": lambda end: (end[:, -1] > 0).to(end.dtype)},
        END,
    ),
):
    talker_step.mutant(cause, section)(functools.partial(talker_step_variant, **fault))


@talker_step.mutant("the frames are counted from the start, but a Talker with a cache returns its newest only", CACHE)
def _(talker, codes):
    at = codes.shape[1] - 1
    return talker_step_variant(talker, codes, at=at, end_probability=lambda end: end[:, at].sigmoid())


@talker_step.alternative
def _(talker, codes):
    return talker_step_variant(talker, codes)


@talker_step.alternative
def _(talker, codes):
    base, res, end = (each.select(1, each.shape[1] - 1) for each in talker(codes))
    extended = F.pad(codes, (0, 0, 0, 1))
    extended[:, -1, 0], extended[:, -1, 1] = base.topk(1).indices[:, 0], res.topk(1).indices[:, 0]
    return extended, 1 / (1 + torch.exp(-end))


@talker_step.replaces("tinyomni.talker.next_frame")
def _(answer):
    def next_frame(talker, codes, text, cache):
        first = cache.size == 0

        def cached(codes):  # the cache knows the frames before, and the text after the first call
            return talker(codes if first else codes[:, -1:], text if first else None, cache, with_end=True)

        return answer(cached, codes)

    return next_frame


# ---- the length limit -----------------------------------------------------------------------------------------------


@exercise("The length limit", minutes=5, level=1)
def duration_cap(text_tokens: int, frames_per_token: int = 30, minimum: int = 50, maximum: int = 1000) -> int:
    """Count up, frame by frame."""
    frames = 0
    while frames < maximum and (frames < minimum or frames < frames_per_token * text_tokens):
        frames += 1
    return frames


@duration_cap.cases
def _(rng):
    yield "ten tokens", {"text_tokens": 10}
    yield "one token: at least 4 s", {"text_tokens": 1}
    yield "no token", {"text_tokens": 0}
    yield "just below the maximum", {"text_tokens": 33}
    yield "a long text: at most 80 s", {"text_tokens": 512}
    yield "other arguments", {"text_tokens": 10, "frames_per_token": 4, "minimum": 7, "maximum": 33}
    yield "other arguments, a short text", {"text_tokens": 1, "frames_per_token": 4, "minimum": 7, "maximum": 33}
    yield "other arguments, in between", {"text_tokens": 5, "frames_per_token": 4, "minimum": 7, "maximum": 33}


@duration_cap.random_inputs
def _(rng):
    minimum = rng.size(20, 0)
    return {
        "text_tokens": rng.size(12, 0), "frames_per_token": rng.size(6), "minimum": minimum,
        "maximum": minimum + rng.size(40, 0),
    }  # fmt: skip


for cause, fault in (
    (
        "there is no minimum: a short word has no time to be spoken",
        lambda n, each, minimum, maximum: min(maximum, each * n),
    ),
    (
        "there is no maximum: a Talker that finds no end goes on and on",
        lambda n, each, minimum, maximum: max(minimum, each * n),
    ),
    (
        "minimum and maximum are exchanged: every text gets the minimum",
        lambda n, each, minimum, maximum: min(minimum, max(maximum, each * n)),
    ),
    (
        "every text gets the maximum: `max` is used instead of `min`",
        lambda n, each, minimum, maximum: max(minimum, maximum, each * n),
    ),
    (
        "the frames per token are added once, not for each token",
        lambda n, each, minimum, maximum: max(minimum, min(maximum, each + n)),
    ),
    (
        "the start frame is counted as speech",
        lambda n, each, minimum, maximum: max(minimum, min(maximum, each * n)) + 1,
    ),
    (
        "BOS is counted as a token of the text",
        lambda n, each, minimum, maximum: max(minimum, min(maximum, each * (n + 1))),
    ),
    (
        "the limit is in seconds instead of frames",
        lambda n, each, minimum, maximum: max(minimum, min(maximum, each * n)) * 0.08,
    ),
):
    duration_cap.mutant(cause, END)(
        lambda text_tokens, frames_per_token=30, minimum=50, maximum=1000, fault=fault: fault(
            text_tokens, frames_per_token, minimum, maximum
        )
    )


@duration_cap.mutant("the limits are always 30, 50 and 1000, ignoring the arguments", END)
def _(text_tokens, frames_per_token=30, minimum=50, maximum=1000):
    return max(50, min(1000, 30 * text_tokens))


@duration_cap.alternative
def _(text_tokens, frames_per_token=30, minimum=50, maximum=1000):
    return max(minimum, min(maximum, frames_per_token * text_tokens))


@duration_cap.alternative
def _(text_tokens, frames_per_token=30, minimum=50, maximum=1000):
    return sorted([minimum, text_tokens * frames_per_token, maximum])[1]


duration_cap.replaces("tinyomni.talker.max_frames")
