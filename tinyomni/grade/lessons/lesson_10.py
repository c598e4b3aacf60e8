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

TABLES = "2. A vector for each frame: one table for each codebook"
GUESSES = "3. From vector to two guesses"
SHIFT = "4. Shift, once"
LOSS = "5. One training step, with every shape (Part 6 of the dry run)"
OVER = "7. When is it over?"
CACHE = "8. Writing with the KV cache (Part 5 of the dry run)"

fault: Any  # what a mutant changes


# ---- tables ---------------------------------------------------------------------------------------------------------


@exercise("Several tables as one", minutes=10, level=1)
def embed_codes(
    codes: Int[Tensor, "batch frames codebooks"], table: Float[Tensor, "entries talker_dim"]
) -> Float[Tensor, "batch frames talker_dim"]:
    """The table is cut up again, and each code is looked up in its own part."""
    parts = table.chunk(codes.shape[2])
    said = table.new_zeros(*codes.shape[:2], table.shape[1])
    for b, t in torch.cartesian_prod(*map(torch.arange, codes.shape[:2])).tolist():
        for part, code in zip(parts, codes[b, t].tolist(), strict=True):
            said[b, t] = said[b, t] + part[code]
    return said


@embed_codes.cases
def _(rng):
    yield "all sizes different", {"codes": rng.randint(4, 2, 5, 3), "table": rng.randn(12, 7)}
    yield "batch 1, one frame", {"codes": rng.randint(5, 1, 1, 2), "table": rng.randn(10, 3)}
    yield "the same two codes in either order", {"codes": torch.tensor([[[1, 2], [2, 1]]]), "table": rng.randn(6, 2)}
    yield "one codebook", {"codes": rng.randint(5, 2, 3, 1), "table": rng.randn(5, 2)}
    yield "two books of 128", {"codes": rng.randint(128, 2, 3, 2), "table": rng.randn(256, 2)}


def looked_up(codes, table, *, begin=lambda i, size, books: i * size, join=lambda found: found.sum(dim=2)):
    """One table; a mutant changes where the part of book i begins."""
    books = codes.shape[2]
    begins = torch.tensor([begin(i, len(table) // books, books) for i in range(books)])
    return join(table[(codes + begins) % len(table)])


for cause, fault in (
    (
        "all codes are looked up in the first part: (45, 12) and (12, 45) become one",
        {"begin": lambda i, size, books: 0},
    ),
    ("the parts begin one row after the other and overlap", {"begin": lambda i, size, books: i}),
    (
        "the parts begin at multiples of the number of codebooks, not of their size",
        {"begin": lambda i, size, books: i * books},
    ),
    (
        "the parts are taken from the end: base codes are looked up in the last one",
        {"begin": lambda i, size, books: (books - 1 - i) * size},
    ),
    ("the mean is taken instead of the sum", {"join": lambda found: found.mean(dim=2)}),
    ("only the base code is looked up", {"join": lambda found: found[:, :, 0]}),
    ("the vectors stand side by side instead of being added", {"join": lambda found: found.flatten(2)}),
    ("the sum runs over the frames instead of the codebooks", {"join": lambda found: found.sum(dim=1)}),
):
    embed_codes.mutant(cause, TABLES)(functools.partial(looked_up, **fault))


@embed_codes.mutant("the part is 128 rows long, whatever the table says", TABLES)
def _(codes, table):
    return table[codes + 128 * torch.arange(codes.shape[2])].sum(dim=2)


@embed_codes.alternative
def _(codes, table):
    return looked_up(codes, table)


@embed_codes.alternative
def _(codes, table):
    books = codes.shape[2]
    parts = table.unflatten(0, (books, -1))
    return sum(F.embedding(codes[..., i], parts[i]) for i in range(books))


@embed_codes.replaces("tinyomni.talker.TalkerTiny.embed_codes")
def _(answer):
    return lambda self, codes: answer(codes, torch.cat([table.weight for table in self.code_emb]))


# ---- shift ----------------------------------------------------------------------------------------------------------


@exercise("What it sees, what it says", minutes=10, level=1)
def teacher_forcing(
    codes: Int[Tensor, "batch frames codebooks"],
) -> tuple[Int[Tensor, "batch frames codebooks"], Int[Tensor, "batch frames codebooks"]]:
    """Frame t - 1 is seen where frame t is said."""
    sees = torch.zeros_like(codes)
    for t in range(1, codes.shape[1]):
        sees[:, t] = codes[:, t - 1]
    return sees, codes


@teacher_forcing.cases
def _(rng):
    yield "all sizes different", {"codes": rng.randint(90, 3, 5, 2, low=1)}
    yield "batch 1, one frame", {"codes": rng.randint(90, 1, 1, 2, low=1)}
    yield "as many frames as codebooks", {"codes": rng.randint(90, 2, 2, 2, low=1)}
    yield "two frames", {"codes": rng.randint(90, 1, 2, 3, low=1)}


def rolled(codes, by=1, dim=1, start=0):
    """`torch.roll`, and the first frame overwritten."""
    sees = codes.roll(by, dim)
    if start is not None:
        sees[:, 0] = start
    return sees


for cause, fault in (
    ("nothing is shifted: each frame is told what it should say", lambda codes: (codes.clone(), codes)),
    (
        "the input and the target are both shifted: it learns to speak two frames ahead",
        lambda codes: (rolled(codes), codes.roll(-1, 1)),
    ),
    (
        "the last frame comes round to the front: the end is known before it begins",
        lambda codes: (rolled(codes, start=None), codes),
    ),
    (
        "the input is shifted to the left: each frame sees the one that comes after it",
        lambda codes: (torch.cat([codes[:, 1:], torch.zeros_like(codes[:, :1])], dim=1), codes),
    ),
    ("the target is shifted instead of the input: frame 0 is never said", lambda codes: (codes, codes.roll(-1, 1))),
    ("the codes of a frame are shifted, not the frames", lambda codes: (rolled(codes, dim=2), codes)),
    ("every sample sees the sample before it in the batch", lambda codes: (rolled(codes, dim=0), codes)),
    (
        "the first frame stands there twice instead of zeros",
        lambda codes: (torch.cat([codes[:, :1], codes[:, :-1]], dim=1), codes),
    ),
    ("input and target are exchanged", lambda codes: (codes, rolled(codes))),
    (
        "the start frame makes the input one frame longer than the target",
        lambda codes: (F.pad(codes, (0, 0, 1, 0)), codes),
    ),
):
    teacher_forcing.mutant(cause, SHIFT)(fault)


@teacher_forcing.alternative
def _(codes):
    return rolled(codes), codes


@teacher_forcing.alternative
def _(codes):
    return F.pad(codes, (0, 0, 1, 0))[:, :-1], codes.clone()


@teacher_forcing.replaces("tinyomni.talker.previous")
def _(answer):
    return lambda codes: answer(codes)[0]


# ---- the loss -------------------------------------------------------------------------------------------------------


@exercise("Two guesses, one loss", minutes=10, level=2)
def talker_loss(
    base_logit: Float[Tensor, "batch frames codebook_size"],
    res_logit: Float[Tensor, "batch frames codebook_size"],
    codes: Int[Tensor, "batch frames codebooks"],
) -> Float[Tensor, ""]:
    """Minus the logarithm of each right answer's share, one at a time."""
    total = 0.0
    for b, t in torch.cartesian_prod(*map(torch.arange, codes.shape[:2])).tolist():
        for logits, right in zip((base_logit, res_logit), codes[b, t].tolist(), strict=True):
            row = logits[b, t].double()
            total += math.log(float((row - row.max()).exp().sum())) - float(row[right] - row.max())
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


def flat(logits, codes, **more):
    return F.cross_entropy(logits.flatten(0, 1), codes.flatten(), **more)


for cause, fault in (
    (
        "the residual is not in the loss: the first loss would be ln 128, half of what is due",
        lambda base, res, codes: flat(base, codes[..., 0]),
    ),
    (
        "both heads are asked for the base code",
        lambda base, res, codes: flat(base, codes[..., 0]) + flat(res, codes[..., 0]),
    ),
    (
        "the targets of the two heads are exchanged",
        lambda base, res, codes: flat(base, codes[..., 1]) + flat(res, codes[..., 0]),
    ),
    (
        "the mean of both losses is taken instead of their sum",
        lambda base, res, codes: (flat(base, codes[..., 0]) + flat(res, codes[..., 1])) / 2,
    ),
    (
        "the losses of all frames are added up, and long recordings count more",
        lambda base, res, codes: flat(base, codes[..., 0], reduction="sum") + flat(res, codes[..., 1], reduction="sum"),
    ),
    (
        "the softmax is taken twice: cross_entropy takes it itself",
        lambda base, res, codes: flat(base.softmax(-1), codes[..., 0]) + flat(res.softmax(-1), codes[..., 1]),
    ),
    (
        "the target is shifted once more, though the input is shifted already",
        lambda base, res, codes: flat(base[:, :-1], codes[:, 1:, 0]) + flat(res[:, :-1], codes[:, 1:, 1]),
    ),
    (
        "code 0 is taken for padding and left out: it is a sound like all others",
        lambda base, res, codes: flat(base, codes[..., 0], ignore_index=0) + flat(res, codes[..., 1], ignore_index=0),
    ),
):
    talker_loss.mutant(cause, SHIFT if "shifted" in cause else LOSS)(fault)


@talker_loss.alternative
def _(base_logit, res_logit, codes):
    return flat(base_logit, codes[..., 0]) + flat(res_logit, codes[..., 1])


@talker_loss.alternative
def _(base_logit, res_logit, codes):
    shares = torch.stack([base_logit, res_logit], dim=2).log_softmax(dim=-1)
    return -shares.gather(-1, codes[..., None]).mean() * 2


# ---- one step of writing --------------------------------------------------------------------------------------------


class Voice(nn.Module):
    """A Talker with nothing but tables: each frame knows those before it, their sum is what it guesses from."""

    tables: Tensor
    heads: Tensor
    last: Tensor

    def __init__(self, rng, size, width=4):
        super().__init__()
        for name, numbers in (
            ("tables", rng.randn(2, size, width)),
            ("heads", 2 * rng.randn(2, width, size)),
            ("last", rng.randn(width)),
        ):
            self.register_buffer(name, numbers)

    def forward(self, codes):
        x = (self.tables[0][codes[..., 0]] + self.tables[1][codes[..., 1]]).cumsum(dim=1)
        return x @ self.heads[0], x @ self.heads[1], x @ self.last


@exercise("Write one frame more", minutes=20, level=2)
def talker_step(
    talker: nn.Module, codes: Int[Tensor, "batch frames codebooks"]
) -> tuple[Int[Tensor, "batch frames+1 codebooks"], Float[Tensor, "batch"]]:
    """Sample by sample, through lists."""
    longer, over = [], []
    for sample in codes:
        base, res, end = (each[0] for each in talker(sample[None]))
        new = [scores[-1].tolist().index(float(scores[-1].max())) for scores in (base, res)]
        longer.append([*sample.tolist(), new])
        over.append(1 / (1 + (-end[-1]).exp()))
    return torch.tensor(longer), torch.stack(over)


@talker_step.cases
def _(rng):
    yield "all sizes different", {"talker": Voice(rng, 11), "codes": rng.randint(11, 3, 5, 2)}
    yield "the start frame alone", {"talker": Voice(rng, 7), "codes": torch.zeros(1, 1, 2, dtype=torch.long)}
    yield "batch 1", {"talker": Voice(rng, 9), "codes": rng.randint(9, 1, 4, 2)}
    yield "as many samples as codebooks", {"talker": Voice(rng, 8), "codes": rng.randint(8, 2, 3, 2)}
    yield "more samples", {"talker": Voice(rng, 13), "codes": rng.randint(13, 4, 2, 2)}


def spoken(
    talker,
    codes,
    *,
    at=-1,
    choose=lambda z: z.argmax(dim=-1),
    pair=lambda base, res: (base, res),
    put=lambda codes, new: torch.cat([codes, new[:, None]], dim=1),
    over=lambda end: end[:, -1].sigmoid(),
    dim=-1,
):
    """The fast way, with one thing to go wrong at a time."""
    base, res, end = talker(codes)
    new = [choose(each[:, at]) for each in pair(base, res)]
    return put(codes, torch.stack(new, dim=dim).reshape(len(codes), 2)), over(end)


for cause, fault, section in (
    ("the guesses at the first frame are read, not those at the last", {"at": 0}, CACHE),
    ("the least likely codes are taken", {"choose": lambda z: z.argmin(dim=-1)}, GUESSES),
    ("the residual code is read from the base head", {"pair": lambda base, res: (base, base)}, GUESSES),
    ("the two codes are written in the wrong order", {"pair": lambda base, res: (res, base)}, TABLES),
    ("the codes are joined along the batch: samples of a batch get mixed", {"dim": 0}, GUESSES),
    (
        "the new frame is put before the others",
        {"put": lambda codes, new: torch.cat([new[:, None], codes], dim=1)},
        SHIFT,
    ),
    (
        "the new frame takes the place of the last one: nothing grows",
        {"put": lambda codes, new: torch.cat([codes[:, :-1], new[:, None]], dim=1)},
        CACHE,
    ),
    ("the new frame alone comes back", {"put": lambda codes, new: new[:, None]}, CACHE),
    ("the logit of the end is given out: it is no probability yet", {"over": lambda end: end[:, -1]}, OVER),
    ("the end is read at the first frame", {"over": lambda end: end[:, 0].sigmoid()}, OVER),
    (
        "the softmax of the end runs over the frames: it asks which frame, not whether",
        {"over": lambda end: end.softmax(dim=-1)[:, -1]},
        OVER,
    ),
    (
        "the end is turned round: how likely it is that the speech goes on",
        {"over": lambda end: (-end[:, -1]).sigmoid()},
        OVER,
    ),
    ("yes or no is given out instead of a probability", {"over": lambda end: (end[:, -1] > 0).to(end.dtype)}, OVER),
):
    talker_step.mutant(cause, section)(functools.partial(spoken, **fault))


@talker_step.alternative
def _(talker, codes):
    return spoken(talker, codes)


@talker_step.alternative
def _(talker, codes):
    base, res, end = (each.select(1, codes.shape[1] - 1) for each in talker(codes))
    longer = F.pad(codes, (0, 0, 0, 1))
    longer[:, -1, 0], longer[:, -1, 1] = base.topk(1).indices[:, 0], res.topk(1).indices[:, 0]
    return longer, 1 / (1 + torch.exp(-end))


@talker_step.replaces("tinyomni.talker.next_frame")
def _(answer):
    def next_frame(talker, codes, text, cache):
        first = cache.size == 0

        def cached(codes):  # the cache knows the frames before, and the text after the first call
            return talker.predict(codes if first else codes[:, -1:], text if first else None, cache)

        return answer(cached, codes)

    return next_frame


# ---- how long at most -----------------------------------------------------------------------------------------------


@exercise("The hard cap", minutes=5, level=1)
def duration_cap(text_tokens: int, per_token: int = 30, least: int = 50, most: int = 1000) -> int:
    """Count up, frame by frame."""
    frames = 0
    while frames < most and (frames < least or frames < per_token * text_tokens):
        frames += 1
    return frames


@duration_cap.cases
def _(rng):
    yield "ten tokens", {"text_tokens": 10}
    yield "one token: at least 4 s", {"text_tokens": 1}
    yield "no token", {"text_tokens": 0}
    yield "just under the most", {"text_tokens": 33}
    yield "a long text: at most 80 s", {"text_tokens": 512}
    yield "other figures", {"text_tokens": 10, "per_token": 4, "least": 7, "most": 33}
    yield "other figures, a short text", {"text_tokens": 1, "per_token": 4, "least": 7, "most": 33}
    yield "other figures, in between", {"text_tokens": 5, "per_token": 4, "least": 7, "most": 33}


for cause, fault in (
    ("there is no least: a short word has no time to be said", lambda n, per, least, most: min(most, per * n)),
    ("there is no most: a Talker that finds no end goes on and on", lambda n, per, least, most: max(least, per * n)),
    (
        "the two limits are exchanged: every text gets the least",
        lambda n, per, least, most: min(least, max(most, per * n)),
    ),
    (
        "every text gets the most: `max` stands where `min` is due",
        lambda n, per, least, most: max(least, most, per * n),
    ),
    (
        "the figure for a token is added once, not for each token",
        lambda n, per, least, most: max(least, min(most, per + n)),
    ),
    ("the start frame is counted as speech", lambda n, per, least, most: max(least, min(most, per * n)) + 1),
    ("BOS is counted as a token of the text", lambda n, per, least, most: max(least, min(most, per * (n + 1)))),
    (
        "the cap is given in seconds instead of frames",
        lambda n, per, least, most: max(least, min(most, per * n)) * 0.08,
    ),
):
    duration_cap.mutant(cause, OVER)(
        lambda text_tokens, per_token=30, least=50, most=1000, fault=fault: fault(text_tokens, per_token, least, most)
    )


@duration_cap.mutant("the figures are always 30, 50 and 1000, whatever is asked for", OVER)
def _(text_tokens, per_token=30, least=50, most=1000):
    return max(50, min(1000, 30 * text_tokens))


@duration_cap.alternative
def _(text_tokens, per_token=30, least=50, most=1000):
    return max(least, min(most, per_token * text_tokens))


@duration_cap.alternative
def _(text_tokens, per_token=30, least=50, most=1000):
    return sorted([least, text_tokens * per_token, most])[1]


duration_cap.replaces("tinyomni.talker.max_frames")
