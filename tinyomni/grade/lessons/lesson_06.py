"""Lesson 06, seeing: its oracles go pixel by pixel, place by place, pair by pair; that of the patches is `unfold`."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from tinyomni.grade.exercise import exercise

NOTEBOOK, TITLE = "06_seeing", "Seeing"

NUMBERS = "1. A picture is numbers"
DOOR = "2. The door, and normalisation"
PATCHES = "3. Patches"
VECTOR = "4. From patch to vector"
CLS = "5. CLS: one token for the whole"
PLACES = "6. Positions"
GAME = "1. A game: which caption belongs to which picture?"  # of lesson 14


# ---- pixels ---------------------------------------------------------------------------------------------------------


@exercise("Channels first, around zero", minutes=10, level=1)
def picture_tensor(values: UInt8[Tensor, "height width channels"]) -> Float[Tensor, "channels height width"]:
    """One pixel at a time."""
    height, width, channels = values.shape
    out = torch.zeros(channels, height, width)
    for y, x, c in torch.cartesian_prod(*map(torch.arange, values.shape)).tolist():
        out[c, y, x] = int(values[y, x, c]) / 255 * 2 - 1
    return out


@picture_tensor.cases
def _(rng):
    yield "all sizes different", {"values": rng.randint(256, 5, 7, 3).to(torch.uint8)}
    yield "one pixel", {"values": torch.tensor([[[0, 128, 255]]], dtype=torch.uint8)}
    yield "as many rows as columns as channels", {"values": rng.randint(256, 3, 3, 3).to(torch.uint8)}
    yield "grey", {"values": rng.randint(256, 2, 3, 1).to(torch.uint8)}
    yield "dark", {"values": rng.randint(40, 2, 2, 3).to(torch.uint8)}


@picture_tensor.mutant(
    "`reshape` cuts the same row of numbers elsewhere instead of moving an axis: colours mix", NUMBERS
)
def _(values):
    return values.reshape(values.shape[2], *values.shape[:2]) / 255 * 2 - 1


@picture_tensor.mutant("height and width have changed places: the picture lies on its side", NUMBERS)
def _(values):
    return values.permute(2, 1, 0) / 255 * 2 - 1


@picture_tensor.mutant("the axes stay as they are in a file: the channels come last", NUMBERS)
def _(values):
    return values / 255 * 2 - 1


@picture_tensor.mutant("red and blue have changed places", NUMBERS)
def _(values):
    return values.permute(2, 0, 1).flip(0) / 255 * 2 - 1


@picture_tensor.mutant("the values lie in 0 … 1: they are not brought to −1 … 1", DOOR)
def _(values):
    return values.permute(2, 0, 1) / 255


@picture_tensor.mutant("the values still go up to 255", DOOR)
def _(values):
    return values.permute(2, 0, 1).float()


@picture_tensor.mutant("it is normalised twice", DOOR)
def _(values):
    return (values.permute(2, 0, 1) / 255 * 2 - 1) * 2 - 1


@picture_tensor.mutant("the largest value is taken to be 256: white is not quite 1", DOOR)
def _(values):
    return values.permute(2, 0, 1) / 256 * 2 - 1


@picture_tensor.mutant("each picture is divided by its own largest value: the dark ones get bright", DOOR)
def _(values):
    return values.permute(2, 0, 1) / values.max() * 2 - 1


@picture_tensor.mutant("whole numbers of 8 bits are doubled before they are floats: 2 · 128 is 0 there", DOOR)
def _(values):
    return (values * 2).permute(2, 0, 1) / 255 - 1


@picture_tensor.alternative
def _(values):
    return (rearrange(values, "height width channels -> channels height width").float() - 127.5) / 127.5


@picture_tensor.alternative
def _(values):
    return torch.stack([values[..., c].float().mul(2 / 255).sub(1) for c in range(values.shape[2])])


# ---- patches --------------------------------------------------------------------------------------------------------


@exercise("Cut into patches", minutes=15, level=2)
def patchify(img: Float[Tensor, "batch channels height width"], patch: int) -> Float[Tensor, "batch n_patches values"]:
    """torch's `unfold`, with its axes turned."""
    return F.unfold(img, patch, stride=patch).transpose(1, 2)


@patchify.cases
def _(rng):
    yield "all sizes different", {"img": rng.randn(2, 3, 8, 12), "patch": 4}
    yield "batch 1, more rows than columns", {"img": rng.randn(1, 2, 6, 4), "patch": 2}
    yield "as many rows as columns", {"img": rng.randn(1, 3, 6, 6), "patch": 3}
    yield "one patch", {"img": rng.randn(2, 3, 2, 2), "patch": 2}
    yield "patches of one pixel", {"img": rng.randn(1, 3, 2, 3), "patch": 1}


def cut(img, patch, rows="(rows p)", columns="(columns q)", sequence="(rows columns)", inside="(channels p q)"):
    """By einops, with one thing to go wrong at a time."""
    return rearrange(img, f"batch channels {rows} {columns} -> batch {sequence} {inside}", p=patch, q=patch)


@patchify.mutant("`reshape` cuts rows of pixels into pieces: a piece is no square", PATCHES)
def _(img, patch):
    return img.reshape(len(img), -1, img.shape[1] * patch * patch)


@patchify.mutant("patches are numbered down the columns instead of along the rows", VECTOR)
def _(img, patch):
    return cut(img, patch, sequence="(columns rows)")


@patchify.mutant("inside a patch the channels come last: the numbers meet the wrong weights", VECTOR)
def _(img, patch):
    return cut(img, patch, inside="(p q channels)")


@patchify.mutant("inside a patch rows and columns have changed places", VECTOR)
def _(img, patch):
    return cut(img, patch, inside="(channels q p)")


@patchify.mutant("a patch takes every n-th pixel instead of a square of neighbours", PATCHES)
def _(img, patch):
    return cut(img, patch, rows="(p rows)", columns="(q columns)")


@patchify.mutant("values and patches have changed places, as `unfold` gives them", PATCHES)
def _(img, patch):
    return F.unfold(img, patch, stride=patch)


@patchify.mutant("the windows move on by one pixel, and overlap", VECTOR)
def _(img, patch):
    return F.unfold(img, patch).mT


@patchify.mutant("each patch is its mean: 1 number for each channel", PATCHES)
def _(img, patch):
    return F.avg_pool2d(img, patch).flatten(2).mT


@patchify.mutant("each channel has patches of its own", PATCHES)
def _(img, patch):
    return cut(img, patch, sequence="(channels rows columns)", inside="(p q)")


@patchify.alternative
def _(img, patch):
    return cut(img, patch)


@patchify.alternative
def _(img, patch):
    tiles = img.unfold(2, patch, patch).unfold(3, patch, patch)  # batch channels rows columns p q
    return tiles.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


@patchify.replaces("tinyomni.vision.ViTTiny.patchify")
def _(answer):
    def convolve(self, img):
        values = answer(img * 2 - 1, self.cfg.patch)
        vectors = F.linear(values, self.proj.weight.flatten(1), self.proj.bias)
        return rearrange(vectors, "batch (rows columns) dim -> batch dim rows columns",
                         rows=img.shape[2] // self.cfg.patch)  # fmt: skip

    return convolve


# ---- CLS and positions ----------------------------------------------------------------------------------------------


@exercise("CLS in front, and a place for each", minutes=10, level=1)
def add_cls(
    patches: Float[Tensor, "batch n_patches vision_dim"],
    cls: Float[Tensor, "1 1 vision_dim"],
    positions: Float[Tensor, "1 n_patches+1 vision_dim"],
) -> Float[Tensor, "batch n_patches+1 vision_dim"]:
    """One place at a time."""
    batch, n_patches, features = patches.shape
    tokens = patches.new_zeros(batch, n_patches + 1, features)
    for b in range(batch):
        tokens[b, 0] = cls[0, 0] + positions[0, 0]
        for n in range(n_patches):
            tokens[b, n + 1] = patches[b, n] + positions[0, n + 1]
    return tokens


@add_cls.cases
def _(rng):
    yield "all sizes different", {"patches": rng.randn(2, 5, 7), "cls": rng.randn(1, 1, 7), "positions": rng.randn(1, 6, 7)}
    yield "batch 1, one patch", {"patches": rng.randn(1, 1, 3), "cls": rng.randn(1, 1, 3), "positions": rng.randn(1, 2, 3)}
    yield "as many patches as pictures", {"patches": rng.randn(3, 3, 2), "cls": rng.randn(1, 1, 2), "positions": rng.randn(1, 4, 2)}


def placed(patches, cls, positions, *, join=lambda cls, patches: torch.cat([cls, patches], dim=1),
           add=torch.add):  # fmt: skip
    """Join, then add, with one thing to go wrong at a time."""
    return add(join(cls.expand(len(patches), -1, -1), patches), positions)


@add_cls.mutant("CLS stands at the end: whoever takes token 0 gets the upper left corner", CLS)
def _(*inputs):
    return placed(*inputs, join=lambda cls, patches: torch.cat([patches, cls], dim=1))


@add_cls.mutant("CLS is added to every patch instead of standing in front of them", CLS)
def _(patches, cls, positions):
    return patches + cls + positions[:, 1:]


@add_cls.mutant(
    "positions are added before CLS is there: CLS has no place, and the patches have their neighbours'", PLACES
)
def _(patches, cls, positions):
    return placed(patches + positions[:, :-1], cls, torch.zeros_like(positions))


@add_cls.mutant("CLS gets no position: it has one of its own, the first", PLACES)
def _(patches, cls, positions):
    return placed(patches + positions[:, 1:], cls, torch.zeros_like(positions))


@add_cls.mutant("the positions are left out: the eye sees a puzzle as it sees a picture", PLACES)
def _(*inputs):
    return placed(*inputs, add=lambda tokens, positions: tokens)


@add_cls.mutant("tokens are multiplied by their positions", PLACES)
def _(*inputs):
    return placed(*inputs, add=torch.mul)


@add_cls.mutant("positions stand beside the vectors, which get twice as wide, instead of being added", PLACES)
def _(*inputs):
    return placed(*inputs, add=lambda tokens, where: torch.cat([tokens, where.expand_as(tokens)], dim=-1))


@add_cls.mutant("the patches come in the wrong order, from the last to the first", PLACES)
def _(patches, cls, positions):
    return placed(patches.flip(1), cls, positions)


@add_cls.mutant("CLS is the mean of the patches instead of the learned vector", CLS)
def _(patches, cls, positions):
    return torch.cat([patches.mean(dim=1, keepdim=True), patches], dim=1) + positions


@add_cls.alternative
def _(*inputs):
    return placed(*inputs)


@add_cls.alternative
def _(patches, cls, positions):
    tokens = positions.repeat(len(patches), 1, 1)
    tokens[:, 1:] += patches
    tokens[:, :1] += cls
    return tokens


@add_cls.replaces("tinyomni.vision.ViTTiny.add_cls")
def _(answer):
    return lambda self, patches: answer(patches, self.cls, torch.zeros_like(self.pos))


@add_cls.replaces("tinyomni.vision.ViTTiny.add_positions")
def _(answer):
    return lambda self, tokens: answer(tokens[:, 1:], tokens[:1, :1], self.pos[:, : tokens.shape[1]])


# ---- which caption belongs to which picture -------------------------------------------------------------------------


@exercise("Which caption belongs? InfoNCE", minutes=20, level=3, taught_in="14_training_the_image_encoder")
def info_nce(
    pictures: Float[Tensor, "batch dim"], texts: Float[Tensor, "batch dim"], temperature: float = 0.07
) -> Float[Tensor, ""]:
    """One picture's choice among all captions, one caption's choice among all pictures, and so on; then the mean."""

    def likeness(one, other):
        return float(one @ other) / math.sqrt(float(one @ one) * float(other @ other)) / temperature

    surprises = []
    for asked, offered in ((pictures, texts), (texts, pictures)):
        for i, one in enumerate(asked):
            scores = [likeness(one, other) for other in offered]
            best = max(scores)
            surprises.append(best + math.log(sum(math.exp(each - best) for each in scores)) - scores[i])
    return pictures.new_tensor(sum(surprises) / len(surprises))


@info_nce.cases
def _(rng):
    yield "all sizes different", {"pictures": rng.randn(3, 5), "texts": rng.randn(3, 5), "temperature": 0.5}
    same = rng.randn(4, 3)
    yield "the usual temperature", {"pictures": same + 0.3 * rng.randn(4, 3), "texts": 2 * same}
    yield "batch 1: nothing to choose, no loss", {"pictures": rng.randn(1, 4), "texts": rng.randn(1, 4)}
    yield "as many pictures as features", {"pictures": rng.randn(3, 3), "texts": 3 * rng.randn(3, 3), "temperature": 0.2}


def contrast(pictures, texts, temperature=0.07, *, unit=lambda x: F.normalize(x, dim=-1), scale=lambda z, t: z / t,
             both=lambda one, other: (one + other) / 2):  # fmt: skip
    """Cross-entropy in both directions, with one thing to go wrong at a time."""
    logits, right = scale(unit(pictures) @ unit(texts).T, temperature), torch.arange(len(pictures))
    return both(F.cross_entropy(logits, right), F.cross_entropy(logits.T, right))


@info_nce.mutant("the vectors are not brought to length 1: the longest wins, not the most alike", GAME)
def _(*inputs, **more):
    return contrast(*inputs, **more, unit=lambda x: x)


@info_nce.mutant("vectors are normalised over the batch instead of over their features", GAME)
def _(*inputs, **more):
    return contrast(*inputs, **more, unit=lambda x: F.normalize(x, dim=0))


@info_nce.mutant("only the pictures choose: the captions are never asked", GAME)
def _(*inputs, **more):
    return contrast(*inputs, **more, both=lambda one, other: one)


@info_nce.mutant("only the captions choose: the pictures are never asked", GAME)
def _(*inputs, **more):
    return contrast(*inputs, **more, both=lambda one, other: other)


@info_nce.mutant("the two directions are added up: the mean of them is due", GAME)
def _(*inputs, **more):
    return contrast(*inputs, **more, both=torch.add)


@info_nce.mutant("the likenesses are multiplied by the temperature instead of divided", GAME)
def _(*inputs, **more):
    return contrast(*inputs, **more, scale=lambda z, t: z * t)


@info_nce.mutant("the temperature that was handed over is not used", GAME)
def _(pictures, texts, temperature=0.07):
    return contrast(pictures, texts)


@info_nce.mutant("caption 0 is due for every picture: the right one for picture i is i", GAME)
def _(pictures, texts, temperature=0.07):
    logits = F.normalize(pictures, dim=-1) @ F.normalize(texts, dim=-1).T / temperature
    zero = torch.zeros(len(logits), dtype=torch.long)
    return (F.cross_entropy(logits, zero) + F.cross_entropy(logits.T, zero)) / 2


@info_nce.mutant("pictures choose among pictures, where each is most like itself", GAME)
def _(pictures, texts, temperature=0.07):
    return contrast(pictures, pictures, temperature)


@info_nce.mutant("the right caption is left out of the sum below the fraction", GAME)
def _(pictures, texts, temperature=0.07):
    logits = F.normalize(pictures, dim=-1) @ F.normalize(texts, dim=-1).T / temperature
    others = logits.masked_fill(torch.eye(len(logits), dtype=torch.bool), -torch.inf)
    return (others.logsumexp(1) + others.logsumexp(0)).mean() / 2 - logits.diagonal().mean()


@info_nce.alternative
def _(*inputs, **more):
    return contrast(*inputs, **more)


@info_nce.alternative
def _(pictures, texts, temperature=0.07):
    logits = F.cosine_similarity(pictures[:, None], texts[None], dim=-1) / temperature
    shares = logits.log_softmax(dim=0) + logits.log_softmax(dim=1)
    return -shares.diagonal().sum() / (2 * len(logits))
