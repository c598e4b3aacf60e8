"""Lesson 18, the dry run: four broken programs to mend, and a whole model to put together.

The oracles treat one sample, one text, one number at a time; the last one is the library's own generation.
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
ALL = "5. Part 4: picture, sound and text"
PITFALLS = "10. Four pitfalls"
QUESTIONS = "12. Seven questions"
INSIGHTS = "13. Nine insights"


def drawn(rng, module):
    """All weights normal numbers: with fresh ones, the answers hardly depend on the input."""
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
    """As it is given."""
    x = torch.cat([cls, thinker.embed(ids)], dim=1)
    return thinker(embeddings=x)


@exercise("Pitfall 1: the wrong width", minutes=5, level=1, float64=False, rtol=1e-3, atol=1e-3, starter=unprojected)
def picture_and_text(
    thinker: nn.Module,
    proj_v: nn.Module,
    cls: Float[Tensor, "batch 1 vision_dim"],
    ids: Int[Tensor, "batch text_tokens"],
) -> Float[Tensor, "batch tokens vocab"]:
    """Sample by sample, the projection as sums of products."""
    rows, table = [], thinker.get_parameter("tok_emb.weight")
    weights, biases = proj_v.get_parameter("weight"), proj_v.get_parameter("bias")
    for seen, text in zip(cls, ids, strict=True):
        picture = [
            sum(w * n for w, n in zip(row, seen[0], strict=True)) + b for row, b in zip(weights, biases, strict=True)
        ]
        rows.append(torch.cat([torch.stack(picture)[None], table[text]]))
    return torch.cat([thinker(embeddings=row[None]) for row in rows]).detach()


@picture_and_text.invoke
def _(answer, thinker, proj_v, cls, ids):
    return answer(thinker, proj_v, cls, ids).detach()


@picture_and_text.cases
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
    yield "an eye as wide as the Thinker: no error shows the mistake", given(2, 8, 3)
    yield "an eye that is wider", given(2, 11, 4)


def seen(
    thinker,
    proj_v,
    cls,
    ids,
    *,
    project=lambda proj, cls: proj(cls),
    join=lambda picture, text: torch.cat([picture, text], dim=1),
):
    """The mended program, with one thing to go wrong at a time."""
    return thinker(embeddings=join(project(proj_v, cls), thinker.embed(ids)))


def stretched(proj, cls):
    return F.interpolate(cls, size=len(proj.weight), mode="linear")


def filled(proj, cls):
    return F.pad(cls, (0, len(proj.weight) - cls.shape[-1]))


for cause, fault, section in (
    (
        "the vector is filled up with zeros to the right width: nothing says what its numbers mean to the Thinker",
        {"project": filled},
        PITFALLS,
    ),
    (
        "the vector is stretched like a picture: neighbouring numbers of it are no neighbours",
        {"project": stretched},
        PITFALLS,
    ),
    ("the weights are put on without the bias", {"project": lambda proj, cls: cls @ proj.weight.T}, PITFALLS),
    (
        "one picture is shown to the whole batch",
        {"project": lambda proj, cls: proj(cls[:1]).expand(len(cls), -1, -1)},
        INSIGHTS,
    ),
    (
        "the text stands before the picture: its tokens cannot look at it",
        {"join": lambda picture, text: torch.cat([text, picture], dim=1)},
        ALL,
    ),
    (
        "the picture is added to each token of the text instead of standing before it",
        {"join": lambda picture, text: picture + text},
        ALL,
    ),
    (
        "the picture takes the place of BOS",
        {"join": lambda picture, text: torch.cat([picture, text[:, 1:]], dim=1)},
        PITFALLS,
    ),
):
    picture_and_text.mutant(cause, section)(functools.partial(seen, **fault))


picture_and_text.alternative(seen)


@picture_and_text.alternative
def _(thinker, proj_v, cls, ids):
    x = torch.stack([proj_v(cls).squeeze(1), *thinker.tok_emb(ids).unbind(dim=1)], dim=1)
    return thinker(embeddings=x)


# ---- 2: too many tokens ---------------------------------------------------------------------------------------------


class Adder(nn.Module):
    """Always says the sum of all that it sees, modulo `vocab`; knows how often it was asked."""

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
    """The loop; a mutant changes what is counted and what happens then."""
    for step in range(new_tokens):
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
    """Count on a list first; then each text by itself, in whole numbers."""
    places = [*range(ids.shape[1]), *range(new_tokens)]
    if len(places) > ctx_len:
        raise ValueError(f"prompt {ids.shape[1]} + new {new_tokens} = {len(places)} tokens > {ctx_len}")
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
            raise RuntimeError(
                f"the Thinker was asked {thinker.calls} times before this was refused: {error}"
            ) from error
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
    yield "one too many: an error is due", given(2, 4, 7, ctx_len=10)
    yield "the prompt alone is too long", given(1, 12, 1, ctx_len=10)
    yield "a batch does not count", given(5, 3, 2, ctx_len=6)
    yield "over 512", given(1, 500, 13)
    yield "an answer longer than the context", given(1, 2, 9, ctx_len=6)
    yield "a long context", given(1, 510, 4, ctx_len=600)


def both(ids, new):
    return ids.shape[1] + new


for cause, fault in (
    ("nothing is counted: the context overflows", {"most": lambda limit: 10**9}),
    (
        "the count is looked at before each token: the Thinker has worked for nothing when it is refused",
        {"inside": True, "count": lambda ids, new: ids.shape[1] + 1},
    ),
    ("what just fits is refused", {"count": both, "most": lambda limit: limit - 1}),
    ("the limit is always 512, whatever `ctx_len` says", {"count": both, "most": lambda limit: 512}),
    (
        "the tokens of the whole batch are counted: each text has a context of its own",
        {"count": lambda ids, new: ids.numel() + new},
    ),
    ("only the new tokens are counted", {"count": lambda ids, new: new}),
    (
        "the front of the prompt is cut off, and nobody is told: BOS and the question are gone",
        {"count": both, "refuse": lambda ids, new, limit: (ids[:, -max(1, limit - new) :], new)},
    ),
    (
        "the answer is made shorter than was asked for, and nobody is told",
        {"count": both, "refuse": lambda ids, new, limit: (ids, max(0, limit - ids.shape[1]))},
    ),
):
    answer_within.mutant(cause, QUESTIONS if "each text" in cause else PITFALLS)(functools.partial(grown, **fault))


@answer_within.mutant("it is an `assert`: its error is another one, and `python -O` leaves it out", PITFALLS)
def _(thinker, ids, new_tokens, ctx_len=512):
    assert ids.shape[1] + new_tokens <= ctx_len
    return grown(thinker, ids, new_tokens, ctx_len)


@answer_within.alternative
def _(thinker, ids, new_tokens, ctx_len=512):
    return grown(thinker, ids, new_tokens, ctx_len, count=both)


@answer_within.alternative
def _(thinker, ids, new_tokens, ctx_len=512):
    room = ctx_len - ids.shape[1]
    if room < new_tokens:
        raise ValueError(f"room for {room} tokens, {new_tokens} are asked for")
    row = F.pad(ids, (0, new_tokens))
    for place in range(ids.shape[1], row.shape[1]):
        row[:, place] = thinker(row[:, :place])[:, -1].argmax(dim=-1)
    return row


# ---- 3: BOS ---------------------------------------------------------------------------------------------------------


def joined(turns, bos=1):
    """As it is given."""
    ids = []
    for turn in turns:
        ids += turn
    return ids


@exercise("Pitfall 3: BOS forgotten", minutes=5, level=1, starter=joined)
def prompt_ids(turns: list[list[int]], bos: int = 1) -> list[int]:
    """BOS wherever somebody put it is taken out; then it is put where it belongs."""
    return [bos, *(number for turn in turns for number in turn if number != bos)]


@prompt_ids.cases
def _(rng):
    yield "a question", {"turns": [[285, 289, 354]]}
    yield "question, answer, question", {"turns": [[285, 289], [17, 4, 99], [354]]}
    yield "the first turn was encoded with BOS", {"turns": [[1, 285, 289], [17, 4]]}
    yield "each turn was encoded with BOS", {"turns": [[1, 285], [1, 17, 4], [1, 354]]}
    yield "an empty first turn", {"turns": [[], [354, 12]]}
    yield "no turn yet", {"turns": []}
    yield "another id for BOS", {"turns": [[5, 1, 7], [9, 6]], "bos": 9}


def bare(turns, bos):
    return [number for turn in turns for number in turn if number != bos]


for cause, fault in (
    (
        "BOS stands before each turn: to the Thinker, a new text begins there",
        lambda turns, bos: [n for turn in turns for n in [bos, *bare([turn], bos)]],
    ),
    ("BOS stands at the end", lambda turns, bos: [*bare(turns, bos), bos]),
    ("BOS stands there twice where a text was encoded with it", lambda turns, bos: [bos, *joined(turns)]),
    ("BOS takes the place of the first token", lambda turns, bos: [bos, *bare(turns, bos)[1:]]),
    ("BOS is always 1, whatever `bos` says", lambda turns, bos: [1, *bare(turns, 1)]),
    ("EOS (2) is put in front: it says that a text is over", lambda turns, bos: [2, *bare(turns, bos)]),
    (
        "BOS is only put where the first turn lacks it, and stays in front of later turns",
        lambda turns, bos: joined(turns) if joined(turns)[:1] == [bos] else [bos, *joined(turns)],
    ),
    ("an empty text gets no BOS", lambda turns, bos: [bos, *bare(turns, bos)] if bare(turns, bos) else []),
    ("only the newest turn is kept", lambda turns, bos: [bos, *bare(turns[-1:], bos)]),
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
    """A model that takes whatever comes: axis 0 is the batch, axis 1 the tokens, and nobody looks."""

    table: Tensor
    head: Tensor

    def __init__(self, rng, vocab, width=5):
        super().__init__()
        self.register_buffer("table", rng.randn(vocab, width))
        self.register_buffer("head", rng.randn(width, vocab))

    def forward(self, ids):
        return self.table[ids].cumsum(dim=1).sin() @ self.head


def flat(thinker, texts):
    """As it is given."""
    new = []
    for text in texts:
        logits = thinker(torch.tensor(text))
        new.append(int(logits[-1].argmax()))
    return new


@exercise("Pitfall 4: no batch axis", minutes=10, level=1, starter=flat)
def next_tokens(thinker: nn.Module, texts: list[list[int]]) -> list[int]:
    """The model by hand: the running sum of a text's vectors, and the best of the scores."""
    new = []
    table, head = thinker.get_buffer("table"), thinker.get_buffer("head")
    for text in texts:
        total = torch.stack([table[number] for number in text]).sum(dim=0)
        scores = [float((total.sin() * column).sum()) for column in head.T]
        new.append(scores.index(max(scores)))
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


def padded(texts):
    """All texts as one batch, zeros behind the short ones."""
    return nn.utils.rnn.pad_sequence([torch.tensor(text) for text in texts], batch_first=True)


def run_on(thinker, texts):
    """One text after the other in one row, read at the end of each."""
    logits = thinker(torch.tensor([list(chain.from_iterable(texts))]))[0]
    return [int(logits[end - 1].argmax()) for end in accumulate(map(len, texts))]


for cause, fault in (
    (
        "the axis is put at the wrong end: n texts of one token instead of one text of n",
        lambda think, texts: [int(think(torch.tensor(text)[:, None])[-1, -1].argmax()) for text in texts],
    ),
    (
        "the axis is there, but the first token's guess is read",
        lambda think, texts: [int(think(torch.tensor([text]))[0, 0].argmax()) for text in texts],
    ),
    (
        "the best of all scores of all places is taken: tokens and vocabulary in one row",
        lambda think, texts: [int(think(torch.tensor([text])).argmax()) for text in texts],
    ),
    (
        "all places are added up before the best is taken",
        lambda think, texts: [int(think(torch.tensor([text])).sum(dim=1).argmax()) for text in texts],
    ),
    (
        "short texts are filled up, and the guess is read behind the padding",
        lambda think, texts: think(padded(texts))[:, -1].argmax(dim=-1).tolist(),
    ),
    (
        "the batch and the tokens are exchanged: texts are read across",
        lambda think, texts: think(padded(texts).T)[-1].argmax(dim=-1).tolist(),
    ),
    ("all texts become one long text", run_on),
    (
        "the second-last place is read, as if the last one were the target",
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
    """Eye, ear, projectors and Thinker under the names that they have in `Omni`, all very small."""

    def __init__(self, rng, vocab=9):
        super().__init__()
        ear = AudioConfig(n_mels=16, conv_channels=2, audio_dim=12, layers=1, heads=2, intermediate_size=8)
        self.thinker = small_thinker(rng, vocab=vocab)
        self.vision = drawn(
            rng, ViTTiny(VisionConfig(image_size=32, vision_dim=12, layers=1, heads=2, intermediate_size=8))
        )
        self.mel, self.audio = MelFrontend(cfg=ear), drawn(rng, AudioEncoderTiny(ear))
        self.proj_v, self.proj_a = drawn(rng, nn.Linear(12, 8)), drawn(rng, nn.Linear(12, 8))


@exercise("The whole model, put together", minutes=30, level=3, float64=False)
def ask(
    omni: nn.Module,
    ids: Int[Tensor, "1 text_tokens"],
    img: Float[Tensor, "1 channels side side"] | None = None,
    wav: Float[Tensor, "1 samples"] | None = None,
    new_tokens: int = 8,
) -> list[int]:
    """The library's stream, with its cache."""
    model: Any = omni
    parts = [model.thinker.tok_emb.weight[ids]]
    if wav is not None:
        parts.insert(0, F.linear(model.audio(model.mel(wav)), model.proj_a.weight, model.proj_a.bias))
    if img is not None:
        parts.insert(0, F.linear(model.vision(img), model.proj_v.weight, model.proj_v.bias))
    new = stream(model.thinker, embeddings=torch.cat(parts, dim=1).detach(), max_new_tokens=new_tokens)
    return [number for number in (int(step.ids) for step in new) if number != 2]


@ask.cases
def _(rng):
    def given(tokens, picture=True, sound=True, **more):
        found = {
            "omni": Parts(rng),
            "ids": torch.cat([torch.ones(1, 1, dtype=torch.long), rng.randint(9, 1, tokens - 1, low=3)], dim=1),
        }
        found |= {"img": rng.randn(1, 3, 32, 32)} if picture else {}
        return found | ({"wav": 0.1 * rng.randn(1, 1600)} if sound else {}) | more

    yield "picture, sound and text", given(5)
    for number in range(2):
        yield f"picture, sound and text, {number + 2}", given(4 + number, new_tokens=4 + number)
    yield "text alone", given(4, False, False)
    yield "BOS alone, and a picture", given(1, sound=False)
    yield "sound and text", given(6, picture=False, new_tokens=5)
    yield "one new token", given(3, sound=False, new_tokens=1)
    yield "a longer answer", given(4, new_tokens=9)
    yield "a longer answer to a text", given(7, False, False, new_tokens=9)


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
    eye=lambda omni, x: omni.proj_v(x),
    ear=lambda omni, x: omni.proj_a(x),
):
    """The loop without a cache, with one thing to go wrong at a time."""
    parts = {"text": omni.thinker.embed(ids)}
    if img is not None:
        parts["img"] = eye(omni, omni.vision(img))
    if wav is not None:
        parts["wav"] = ear(omni, omni.audio(omni.mel(wav)))
    row = torch.cat([parts[name] for name in order.split() if name in parts], dim=1)
    said = ids[0].tolist() if prompt else []
    for _ in range(new_tokens):
        new = omni.thinker(embeddings=row)[:, at].argmax(dim=-1)
        if stop and int(new) == 2:
            if keep:
                said.append(2)
            break
        said.append(int(new))
        vector = omni.thinker.embed(new[None])
        row = {"all": torch.cat([row, vector], dim=1), "new": vector, "never": row}[feed]
    return said


for cause, fault, section in (
    ("the text stands before picture and sound: its tokens cannot look at them", {"order": "text img wav"}, ALL),
    ("the sound stands before the picture", {"order": "wav img text"}, ALL),
    ("the picture is left out: the answer comes from sound and text alone", {"order": "wav text"}, ALL),
    ("the sound is left out", {"order": "img text"}, ALL),
    ("the guess at the first place is read, which has seen nothing of the question", {"at": 0}, TEXT),
    ("what it has said is never fed back: the same token again and again", {"feed": "never"}, TEXT),
    ("only the newest token is fed, without a cache: the question is forgotten", {"feed": "new"}, QUESTIONS),
    ("it goes on behind EOS", {"stop": False}, TEXT),
    ("EOS is in the answer: it is a sign, no word", {"keep": True}, TEXT),
    ("the question stands in the answer", {"prompt": True}, TEXT),
    ("picture and sound go through the same projector", {"ear": lambda omni, x: omni.proj_v(x)}, PITFALLS),
    (
        "the two projectors are exchanged",
        {"ear": lambda omni, x: omni.proj_v(x), "eye": lambda omni, x: omni.proj_a(x)},
        PITFALLS,
    ),
    (
        "the mean of all sound tokens stands for the sound: what came when is lost",
        {"ear": lambda omni, x: omni.proj_a(x).mean(dim=1, keepdim=True)},
        ALL,
    ),
):
    ask.mutant(cause, section)(functools.partial(asked, **fault))


ask.alternative(asked)


@ask.alternative
def _(omni, ids, img=None, wav=None, new_tokens=8):
    seen = [] if img is None else [omni.proj_v(omni.vision(img))]
    heard = [] if wav is None else [omni.proj_a(omni.audio(omni.mel(wav)))]
    cache, said = omni.thinker.new_cache(1), []
    logits = omni.thinker(embeddings=torch.cat([*seen, *heard, omni.thinker.tok_emb(ids)], dim=1), cache=cache)
    while (new := int(logits[0, -1].argmax())) != 2:
        said.append(new)
        if len(said) == new_tokens:
            break
        logits = omni.thinker(torch.tensor([[new]]), cache=cache)
    return said
