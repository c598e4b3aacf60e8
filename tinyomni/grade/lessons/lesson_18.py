"""Lesson 18, the dry run: four broken programs to fix, and a whole model to put together.

The oracles treat one sample, one text, one number at a time; the last one is the library's own cached generation.
"""

import functools
from itertools import accumulate, chain
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tinyomni.audio import AudioEncoderTiny, MelFrontend
from tinyomni.config import AudioConfig, ThinkerConfig, VisionConfig
from tinyomni.generation import stream
from tinyomni.grade.exercise import exercise
from tinyomni.thinker import ThinkerLM
from tinyomni.vision import ViTTiny

NOTEBOOK, TITLE = "18_unified_dry_run", "The unified dry run"

TEXT = "2. Part 1: text"
ALL = "5. Part 4: image, audio and text"
PITFALLS = "10. Four pitfalls"
QUESTIONS = "12. Seven questions"
INSIGHTS = "13. Nine insights"


def drawn(rng, module):
    """All weights drawn from a normal distribution: with fresh ones, the output hardly depends on the input."""
    for parameter in module.parameters():
        parameter.data = rng.randn(*parameter.shape)
    return module.eval()


def small_thinker(rng, d_model=8, vocab=20):
    """A Thinker of one layer."""
    return drawn(
        rng, ThinkerLM(ThinkerConfig(layers=1, d_model=d_model, heads=2, kv_heads=2, intermediate_size=12, vocab=vocab))
    )


fault: Any  # what a mutant changes


# ---- 1: the width ---------------------------------------------------------------------------------------------------


def unprojected(thinker, proj_v, cls, ids):
    """The broken program: the CLS token is not projected."""
    x = torch.cat([cls, thinker.embed(ids)], dim=1)
    return thinker(embeddings=x)


@exercise(
    "Pitfall 1: the wrong width", minutes=5, level=1, float64=False, rtol=1e-3, atol=1e-3, starter=unprojected,
    gradients=("cls",),
)  # fmt: skip
def image_and_text(
    thinker: nn.Module,
    proj_v: nn.Module,
    cls: Float[Tensor, "batch 1 vision_dim"],
    ids: Int[Tensor, "batch text_tokens"],
) -> Float[Tensor, "batch tokens vocab"]:
    """Sample by sample, the projection as sums of products."""
    rows, table = [], thinker.get_parameter("tok_emb.weight")
    weights, biases = proj_v.get_parameter("weight"), proj_v.get_parameter("bias")
    for vector, text in zip(cls, ids, strict=True):
        image = [
            sum(w * n for w, n in zip(row, vector[0], strict=True)) + b for row, b in zip(weights, biases, strict=True)
        ]
        rows.append(torch.cat([torch.stack(image)[None], table[text]]))
    logits = torch.cat([thinker(embeddings=row[None]) for row in rows])
    return logits if cls.requires_grad else logits.detach()


@image_and_text.invoke
def _(answer, thinker, proj_v, cls, ids):
    logits = answer(thinker, proj_v, cls, ids)
    return logits if cls.requires_grad else logits.detach()


@image_and_text.cases
def _(rng):
    def given(batch, width, text_tokens):
        return {
            "thinker": small_thinker(rng),
            "proj_v": drawn(rng, nn.Linear(width, 8)),
            "cls": rng.randn(batch, 1, width),
            "ids": rng.randint(20, batch, text_tokens, low=3),
        }

    yield "all sizes different", given(2, 6, 5)
    yield "batch 1, one token", given(1, 6, 1)
    yield "an image encoder as wide as the Thinker: no error shows the mistake", given(2, 8, 3)
    yield "an image encoder that is wider", given(2, 11, 4)


@image_and_text.random_inputs
def _(rng):
    width, batch = rng.size(8, 2), rng.size(3)
    return {
        "thinker": small_thinker(rng), "proj_v": drawn(rng, nn.Linear(width, 8)), "cls": rng.randn(batch, 1, width),
        "ids": rng.randint(20, batch, rng.size(4)),
    }  # fmt: skip


def concatenated(
    thinker,
    proj_v,
    cls,
    ids,
    *,
    project=lambda proj, cls: proj(cls),
    join=lambda image, text: torch.cat([image, text], dim=1),
):
    """The fixed program; a mutant changes one step of it."""
    return thinker(embeddings=join(project(proj_v, cls), thinker.embed(ids)))


def interpolated(proj, cls):
    return F.interpolate(cls, size=len(proj.weight), mode="linear")


def zero_padded(proj, cls):
    return F.pad(cls, (0, len(proj.weight) - cls.shape[-1]))


for cause, fault, section in (
    (
        "the vector is padded with zeros to the right width: the Thinker has not learned what its numbers mean",
        {"project": zero_padded},
        PITFALLS,
    ),
    (
        "the vector is interpolated like an image: neighbouring numbers of an embedding are unrelated",
        {"project": interpolated},
        PITFALLS,
    ),
    ("the weights are applied without the bias", {"project": lambda proj, cls: cls @ proj.weight.T}, PITFALLS),
    (
        "one image is used for the whole batch",
        {"project": lambda proj, cls: proj(cls[:1]).expand(len(cls), -1, -1)},
        INSIGHTS,
    ),
    (
        "the text is before the image: its tokens cannot attend to it",
        {"join": lambda image, text: torch.cat([text, image], dim=1)},
        ALL,
    ),
    (
        "the image is added to each token of the text instead of being a token before it",
        {"join": lambda image, text: image + text},
        ALL,
    ),
    (
        "the image replaces BOS",
        {"join": lambda image, text: torch.cat([image, text[:, 1:]], dim=1)},
        PITFALLS,
    ),
):
    image_and_text.mutant(cause, section)(functools.partial(concatenated, **fault))


image_and_text.alternative(concatenated)


@image_and_text.alternative
def _(thinker, proj_v, cls, ids):
    x = torch.stack([proj_v(cls).squeeze(1), *thinker.tok_emb(ids).unbind(dim=1)], dim=1)
    return thinker(embeddings=x)


# ---- 2: too many tokens ---------------------------------------------------------------------------------------------


class Adder(nn.Module):
    """Always predicts the sum of its input ids, modulo `vocab`; counts its calls."""

    def __init__(self, vocab):
        super().__init__()
        self.vocab, self.calls = vocab, 0

    def forward(self, ids):
        self.calls += 1
        return F.one_hot(ids.cumsum(dim=1) % self.vocab, self.vocab).float()


def grown(
    thinker,
    ids,
    new_tokens,
    ctx_len=512,
    *,
    count=lambda ids, new: ids.shape[1],
    most=lambda limit: limit,
    refuse=None,
    inside=False,
):
    """Generation; a mutant changes what is counted, and what happens when there are too many tokens."""
    for step in range(max(1, new_tokens)):
        if (inside or step == 0) and count(ids, new_tokens) > most(ctx_len):
            if refuse is None:
                raise ValueError("too many tokens")
            ids, new_tokens = refuse(ids, new_tokens, ctx_len)
        if step < new_tokens:
            ids = torch.cat([ids, thinker(ids)[:, -1:].argmax(dim=-1)], dim=1)
    return ids


@exercise("Pitfall 2: too many tokens", minutes=10, level=2, raises=(ValueError,), starter=grown)
def answer_within(
    thinker: nn.Module, ids: Int[Tensor, "batch tokens"], new_tokens: int, ctx_len: int = 512
) -> Int[Tensor, "batch total"]:
    """Count on a list first; then one text at a time, as integers."""
    positions = [*range(ids.shape[1]), *range(new_tokens)]
    if len(positions) > ctx_len:
        raise ValueError(f"prompt {ids.shape[1]} + new {new_tokens} = {len(positions)} tokens > {ctx_len}")
    texts = ids.tolist()
    for text in texts:
        for _ in range(new_tokens):
            text.append(sum(text) % thinker.vocab)
    return torch.tensor(texts)


@answer_within.invoke
def _(answer, thinker, ids, new_tokens, ctx_len=512):
    thinker.calls = 0
    try:
        return answer(thinker, ids, new_tokens, ctx_len)
    except ValueError as error:
        if thinker.calls:
            raise RuntimeError(f"the Thinker was called {thinker.calls} times before the error: {error}") from error
        raise
    finally:
        thinker.calls = 0


@answer_within.cases
def _(rng):
    def given(batch, tokens, new, **more):
        return {"thinker": Adder(11), "ids": rng.randint(9, batch, tokens, low=1), "new_tokens": new, **more}

    yield "all sizes different", given(2, 5, 3)
    yield "batch 1, one token", given(1, 1, 2)
    yield "it just fits", given(2, 4, 6, ctx_len=10)
    yield "one too many: an error is expected", given(2, 4, 7, ctx_len=10)
    yield "the prompt alone is too long", given(1, 12, 1, ctx_len=10)
    yield "the batch size does not count", given(5, 3, 2, ctx_len=6)
    yield "over 512", given(1, 500, 13)
    yield "an answer longer than the context", given(1, 2, 9, ctx_len=6)
    yield "a long context", given(1, 510, 4, ctx_len=600)
    yield "a prompt that is too long already, and no answer to it", given(1, 11, 0, ctx_len=10)


@answer_within.random_inputs
def _(rng):
    tokens, new = rng.size(5), rng.size(4, 0)
    ids = rng.randint(7, rng.size(3), tokens)
    return {"thinker": Adder(rng.size(9, 2)), "ids": ids, "new_tokens": new, "ctx_len": tokens + new + rng.size(1, -1)}


def both(ids, new):
    return ids.shape[1] + new


for cause, fault in (
    ("nothing is counted: the context overflows", {"most": lambda limit: 10**9}),
    (
        "the limit is checked before each token: by the time of the error, the Thinker has run for nothing",
        {"inside": True, "count": lambda ids, new: ids.shape[1] + 1},
    ),
    ("exactly `ctx_len` tokens are refused", {"count": both, "most": lambda limit: limit - 1}),
    ("the limit is always 512, whatever `ctx_len` says", {"count": both, "most": lambda limit: 512}),
    (
        "the tokens of the whole batch are counted, but each text has its own context",
        {"count": lambda ids, new: ids.numel() + new},
    ),
    ("only the new tokens are counted", {"count": lambda ids, new: new}),
    (
        "the start of the prompt is truncated silently: BOS and the question are gone",
        {"count": both, "refuse": lambda ids, new, limit: (ids[:, -max(1, limit - new) :], new)},
    ),
    (
        "the answer is shortened silently",
        {"count": both, "refuse": lambda ids, new, limit: (ids, max(0, limit - ids.shape[1]))},
    ),
):
    answer_within.mutant(cause, QUESTIONS if "each text" in cause else PITFALLS)(functools.partial(grown, **fault))


@answer_within.mutant("nothing is checked where nothing is generated: the prompt alone may be too long", PITFALLS)
def _(thinker, ids, new_tokens, ctx_len=512):
    return grown(thinker, ids, new_tokens, ctx_len, count=both) if new_tokens else ids


@answer_within.mutant("it is an `assert`: it raises another error, and `python -O` leaves it out", PITFALLS)
def _(thinker, ids, new_tokens, ctx_len=512):
    assert ids.shape[1] + new_tokens <= ctx_len
    return grown(thinker, ids, new_tokens, ctx_len)


@answer_within.alternative
def _(thinker, ids, new_tokens, ctx_len=512):
    return grown(thinker, ids, new_tokens, ctx_len, count=both)


@answer_within.alternative
def _(thinker, ids, new_tokens, ctx_len=512):
    left = ctx_len - ids.shape[1]
    if left < new_tokens:
        raise ValueError(f"{left} tokens left, {new_tokens} requested")
    sequence = F.pad(ids, (0, new_tokens))
    for position in range(ids.shape[1], sequence.shape[1]):
        sequence[:, position] = thinker(sequence[:, :position])[:, -1].argmax(dim=-1)
    return sequence


# ---- 3: BOS ---------------------------------------------------------------------------------------------------------


def joined(turns, bos=1):
    """The broken program: no BOS."""
    ids = []
    for turn in turns:
        ids += turn
    return ids


@exercise("Pitfall 3: BOS forgotten", minutes=5, level=1, starter=joined)
def prompt_ids(turns: list[list[int]], bos: int = 1) -> list[int]:
    """Remove every BOS, then put one at the start."""
    return [bos, *(number for turn in turns for number in turn if number != bos)]


@prompt_ids.cases
def _(rng):
    yield "a question", {"turns": [[285, 289, 354]]}
    yield "question, answer, question", {"turns": [[285, 289], [17, 4, 99], [354]]}
    yield "the first turn was encoded with BOS", {"turns": [[1, 285, 289], [17, 4]]}
    yield "each turn was encoded with BOS", {"turns": [[1, 285], [1, 17, 4], [1, 354]]}
    yield "an empty first turn", {"turns": [[], [354, 12]]}
    yield "the same words again", {"turns": [[285, 289, 289], [17, 285], [285, 289, 289]]}
    yield "no turn yet", {"turns": []}
    yield "another id for BOS", {"turns": [[5, 1, 7], [9, 6]], "bos": 9}
    yield "a turn that was put together from two", {"turns": [[1, 285, 289, 1, 17], [354]]}


@prompt_ids.random_inputs
def _(rng):
    return {"turns": [rng.chosen(range(5), 5) for _ in range(rng.size(4, 0))], "bos": rng.size(4, 0)}


def bare(turns, bos):
    return [number for turn in turns for number in turn if number != bos]


for cause, fault in (
    (
        "BOS is before each turn: to the Thinker, a new text starts there",
        lambda turns, bos: [n for turn in turns for n in [bos, *bare([turn], bos)]],
    ),
    ("BOS is at the end", lambda turns, bos: [*bare(turns, bos), bos]),
    ("BOS is duplicated where a turn was encoded with it", lambda turns, bos: [bos, *joined(turns)]),
    ("BOS replaces the first token", lambda turns, bos: [bos, *bare(turns, bos)[1:]]),
    ("BOS is always 1, whatever `bos` says", lambda turns, bos: [1, *bare(turns, 1)]),
    ("EOS (2) is at the start: it marks the end of a text", lambda turns, bos: [2, *bare(turns, bos)]),
    (
        "BOS is only added where the first turn lacks it, and is not removed from later turns",
        lambda turns, bos: joined(turns) if joined(turns)[:1] == [bos] else [bos, *joined(turns)],
    ),
    ("an empty text gets no BOS", lambda turns, bos: [bos, *bare(turns, bos)] if bare(turns, bos) else []),
    ("repeated tokens are dropped: a prompt is not a set", lambda turns, bos: [*dict.fromkeys([bos, *joined(turns)])]),
    ("only the last turn is kept", lambda turns, bos: [bos, *bare(turns[-1:], bos)]),
    (
        "BOS is removed at the start of each turn only, and not inside of one",
        lambda turns, bos: [bos, *(n for turn in turns for at, n in enumerate(turn) if at or n != bos)],
    ),
):
    prompt_ids.mutant(cause, PITFALLS)(lambda turns, bos=1, fault=fault: fault(turns, bos))


@prompt_ids.alternative
def _(turns, bos=1):
    return [bos, *bare(turns, bos)]


@prompt_ids.alternative
def _(turns, bos=1):
    ids = list(chain.from_iterable(turns))
    while bos in ids:
        ids.remove(bos)
    ids.insert(0, bos)
    return ids


# ---- 4: the batch axis ----------------------------------------------------------------------------------------------


class Loose(nn.Module):
    """A model without shape checks: axis 0 is the batch, axis 1 the tokens, whatever the input is."""

    table: Tensor
    head: Tensor

    def __init__(self, rng, vocab, width=5):
        super().__init__()
        self.register_buffer("table", rng.randn(vocab, width))
        self.register_buffer("head", rng.randn(width, vocab))

    def forward(self, ids):
        return self.table[ids].cumsum(dim=1).sin() @ self.head


def flat(thinker, texts):
    """The broken program: no batch axis."""
    new = []
    for text in texts:
        logits = thinker(torch.tensor(text))
        new.append(int(logits[-1].argmax()))
    return new


@exercise("Pitfall 4: no batch axis", minutes=10, level=1, starter=flat)
def next_tokens(thinker: nn.Module, texts: list[list[int]]) -> list[int]:
    """The model by hand: the running sum of a text's vectors, and the highest logit."""
    new = []
    table, head = thinker.get_buffer("table"), thinker.get_buffer("head")
    for text in texts:
        total = torch.stack([table[number] for number in text]).sum(dim=0)
        logits = [float((total.sin() * column).sum()) for column in head.T]
        new.append(logits.index(max(logits)))
    return new


@next_tokens.cases
def _(rng):
    yield "three texts", {"thinker": Loose(rng, 13), "texts": [[1, 5, 9], [1, 4], [1, 7, 3, 12, 6]]}
    yield "one text", {"thinker": Loose(rng, 11), "texts": [[1, 8, 2, 10]]}
    yield "one token", {"thinker": Loose(rng, 9), "texts": [[1]]}
    yield (
        "many texts of many lengths",
        {"thinker": Loose(rng, 17), "texts": [rng.randint(17, n, low=1).tolist() for n in (3, 9, 1, 6, 2, 7, 5, 4)]},
    )
    yield (
        "equally long texts",
        {"thinker": Loose(rng, 12), "texts": [rng.randint(12, 4, low=1).tolist() for _ in range(6)]},
    )


@next_tokens.random_inputs
def _(rng):
    vocab = rng.size(9, 2)
    return {"thinker": Loose(rng, vocab), "texts": [rng.chosen(range(vocab), 6, 1) for _ in range(rng.size())]}


def padded(texts):
    """All texts as one batch, padded with zeros on the right."""
    return nn.utils.rnn.pad_sequence([torch.tensor(text) for text in texts], batch_first=True)


def run_on(thinker, texts):
    """All texts concatenated; the logits at the end of each."""
    logits = thinker(torch.tensor([list(chain.from_iterable(texts))]))[0]
    return [int(logits[end - 1].argmax()) for end in accumulate(map(len, texts))]


for cause, fault in (
    (
        "the axis is added at the wrong end: n texts of one token instead of one text of n",
        lambda think, texts: [int(think(torch.tensor(text)[:, None])[-1, -1].argmax()) for text in texts],
    ),
    (
        "the axis is right, but the logits of the first token are used",
        lambda think, texts: [int(think(torch.tensor([text]))[0, 0].argmax()) for text in texts],
    ),
    (
        "the argmax runs over all positions: tokens and vocabulary are flattened",
        lambda think, texts: [int(think(torch.tensor([text])).argmax()) for text in texts],
    ),
    (
        "the logits of all positions are summed before the argmax",
        lambda think, texts: [int(think(torch.tensor([text])).sum(dim=1).argmax()) for text in texts],
    ),
    (
        "short texts are padded, and the logits behind the padding are used",
        lambda think, texts: think(padded(texts))[:, -1].argmax(dim=-1).tolist(),
    ),
    (
        "batch and tokens are swapped: each text is read as a column",
        lambda think, texts: think(padded(texts).T)[-1].argmax(dim=-1).tolist(),
    ),
    ("all texts are concatenated to one", run_on),
    (
        "the second-last position is used, as if the last one were the target",
        lambda think, texts: [int(think(torch.tensor([text]))[0, max(0, len(text) - 2)].argmax()) for text in texts],
    ),
):
    next_tokens.mutant(cause, PITFALLS if "axis" in cause or "batch" in cause else TEXT)(fault)


@next_tokens.alternative
def _(thinker, texts):
    return [int(thinker(torch.tensor(text)[None])[0, -1].argmax()) for text in texts]


@next_tokens.alternative
def _(thinker, texts):
    logits, ends = thinker(padded(texts)), torch.tensor([len(text) for text in texts]) - 1
    return logits[torch.arange(len(texts)), ends].argmax(dim=-1).tolist()


# ---- all of it ------------------------------------------------------------------------------------------------------


class Parts(nn.Module):
    """Encoders, projectors and Thinker under their names in `Omni`, all very small."""

    def __init__(self, rng, vocab=9):
        super().__init__()
        audio = AudioConfig(n_mels=16, conv_channels=2, audio_dim=12, layers=1, heads=2, intermediate_size=8)
        self.thinker = small_thinker(rng, vocab=vocab)
        self.vision = drawn(
            rng, ViTTiny(VisionConfig(image_size=32, vision_dim=12, layers=1, heads=2, intermediate_size=8))
        )
        self.mel, self.audio = MelFrontend(cfg=audio), drawn(rng, AudioEncoderTiny(audio))
        self.proj_v, self.proj_a = drawn(rng, nn.Linear(12, 8)), drawn(rng, nn.Linear(12, 8))


@exercise("The whole model, put together", minutes=30, level=3, float64=False)
def ask(
    omni: nn.Module,
    ids: Int[Tensor, "1 text_tokens"],
    img: Float[Tensor, "1 channels side side"] | None = None,
    wav: Float[Tensor, "1 samples"] | None = None,
    new_tokens: int = 8,
) -> list[int]:
    """The library's `stream`, with its cache."""
    model: Any = omni
    parts = [model.thinker.tok_emb.weight[ids]]
    if wav is not None:
        parts.insert(0, F.linear(model.audio(model.mel(wav)), model.proj_a.weight, model.proj_a.bias))
    if img is not None:
        parts.insert(0, F.linear(model.vision(img), model.proj_v.weight, model.proj_v.bias))
    new = stream(model.thinker, embeddings=torch.cat(parts, dim=1).detach(), max_new_tokens=new_tokens)
    return [number for number in (int(step.ids) for step in new) if number != 2]


def question(rng, tokens, image=True, audio=True, **more):
    """A model of random weights, a text that begins with BOS, and perhaps an image and a recording."""
    found = {
        "omni": Parts(rng),
        "ids": torch.cat([torch.ones(1, 1, dtype=torch.long), rng.randint(9, 1, tokens - 1, low=3)], dim=1),
    }
    found |= {"img": rng.randn(1, 3, 32, 32)} if image else {}
    return found | ({"wav": 0.1 * rng.randn(1, 1600)} if audio else {}) | more


@ask.cases
def _(rng):
    yield "image, audio and text", question(rng, 5)
    for number in range(2):
        yield f"image, audio and text, {number + 2}", question(rng, 4 + number, new_tokens=4 + number)
    yield "text alone", question(rng, 4, False, False)
    yield "BOS alone, and an image", question(rng, 1, audio=False)
    yield "audio and text", question(rng, 5, image=False, new_tokens=5)
    yield "one new token", question(rng, 3, audio=False, new_tokens=1)
    yield "a longer answer", question(rng, 4, new_tokens=9)
    yield "a longer answer to a text", question(rng, 7, False, False, new_tokens=9)


@ask.random_inputs
def _(rng):
    image, audio = rng.randbool(2).tolist()
    return question(rng, rng.size(5), image, audio, new_tokens=rng.size(4))


def asked(
    omni,
    ids,
    img=None,
    wav=None,
    new_tokens=8,
    *,
    order="img wav text",
    at=-1,
    feed="all",
    stop=True,
    keep=False,
    prompt=False,
    extra=0,
    project_image=lambda omni, x: omni.proj_v(x),
    project_audio=lambda omni, x: omni.proj_a(x),
):
    """Generation without a cache; a mutant changes one step of it."""
    parts = {"text": omni.thinker.embed(ids)}
    if img is not None:
        parts["img"] = project_image(omni, omni.vision(img))
    if wav is not None:
        parts["wav"] = project_audio(omni, omni.audio(omni.mel(wav)))
    sequence = torch.cat([parts[name] for name in order.split() if name in parts], dim=1)
    generated = ids[0].tolist() if prompt else []
    for _ in range(new_tokens + extra):
        new = omni.thinker(embeddings=sequence)[:, at].argmax(dim=-1)
        if stop and int(new) == 2:
            if keep:
                generated.append(2)
            break
        generated.append(int(new))
        vector = omni.thinker.embed(new[None])
        sequence = {"all": torch.cat([sequence, vector], dim=1), "new": vector, "never": sequence}[feed]
    return generated


for cause, fault, section in (
    ("the text is before image and audio: its tokens cannot attend to them", {"order": "text img wav"}, ALL),
    ("the audio is before the image", {"order": "wav img text"}, ALL),
    ("the image is left out: the answer depends on audio and text alone", {"order": "wav text"}, ALL),
    ("the audio is left out", {"order": "img text"}, ALL),
    ("the logits of the first position are used, which cannot attend to the question", {"at": 0}, TEXT),
    ("the new token is never fed back: the same token again and again", {"feed": "never"}, TEXT),
    ("only the newest token is fed, without a cache: the question is forgotten", {"feed": "new"}, QUESTIONS),
    ("it continues after EOS", {"stop": False}, TEXT),
    ("one token too many is generated", {"extra": 1}, TEXT),
    ("EOS is in the answer: it is a special token, not text", {"keep": True}, TEXT),
    ("the prompt is part of the answer", {"prompt": True}, TEXT),
    ("image and audio go through the same projector", {"project_audio": lambda omni, x: omni.proj_v(x)}, PITFALLS),
    (
        "the two projectors are swapped",
        {"project_audio": lambda omni, x: omni.proj_v(x), "project_image": lambda omni, x: omni.proj_a(x)},
        PITFALLS,
    ),
    (
        "the audio tokens are averaged to one: their order in time is lost",
        {"project_audio": lambda omni, x: omni.proj_a(x).mean(dim=1, keepdim=True)},
        ALL,
    ),
):
    ask.mutant(cause, section)(functools.partial(asked, **fault))


ask.alternative(asked)


@ask.alternative
def _(omni, ids, img=None, wav=None, new_tokens=8):
    image = [] if img is None else [omni.proj_v(omni.vision(img))]
    audio = [] if wav is None else [omni.proj_a(omni.audio(omni.mel(wav)))]
    cache = omni.thinker.new_cache(1)
    generated: list[int] = []
    logits = omni.thinker(embeddings=torch.cat([*image, *audio, omni.thinker.tok_emb(ids)], dim=1), cache=cache)
    while len(generated) < new_tokens and (new := int(logits[0, -1].argmax())) != 2:
        generated.append(new)
        logits = omni.thinker(torch.tensor([[new]]), cache=cache)
    return generated
