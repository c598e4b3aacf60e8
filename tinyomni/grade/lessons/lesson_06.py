"""Lesson 06, vision: its oracles go pixel by pixel, token by token, pair by pair; that of the patches is `unfold`."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from tinyomni.grade.exercise import exercise

NOTEBOOK, TITLE = "06_seeing", "Vision"

TENSOR = "1. An image is a tensor"
NORMALIZATION = "2. Loading and normalization"
PATCHES = "3. Patches"
EMBEDDING = "4. Patch embedding: a strided convolution"
CLS = "5. The CLS token"
POSITIONS = "6. Position embeddings"
CONTRASTIVE = "1. Contrastive learning: which caption belongs to which image?"  # of lesson 14


# ---- pixels ---------------------------------------------------------------------------------------------------------


@exercise("Image to tensor", minutes=10, level=1)
def image_to_tensor(values: UInt8[Tensor, "height width channels"]) -> Float[Tensor, "channels height width"]:
    """One pixel at a time."""
    height, width, channels = values.shape
    out = torch.zeros(channels, height, width)
    for y, x, c in torch.cartesian_prod(*map(torch.arange, values.shape)).tolist():
        out[c, y, x] = int(values[y, x, c]) / 255 * 2 - 1
    return out


@image_to_tensor.cases
def _(rng):
    yield "all sizes different", {"values": rng.randint(256, 5, 7, 3).to(torch.uint8)}
    yield "one pixel", {"values": torch.tensor([[[0, 128, 255]]], dtype=torch.uint8)}
    yield "as many rows as columns as channels", {"values": rng.randint(256, 3, 3, 3).to(torch.uint8)}
    yield "grey", {"values": rng.randint(256, 2, 3, 1).to(torch.uint8)}
    yield "dark", {"values": rng.randint(40, 2, 2, 3).to(torch.uint8)}


@image_to_tensor.random_inputs
def _(rng):
    return {"values": rng.randint(256, rng.size(), rng.size(), rng.choice((1, 3, 4))).to(torch.uint8)}


@image_to_tensor.mutant(
    "`reshape` reinterprets the same order of numbers instead of moving an axis: colours mix", TENSOR
)
def _(values):
    return values.reshape(values.shape[2], *values.shape[:2]) / 255 * 2 - 1


@image_to_tensor.mutant("height and width are exchanged: the image is transposed", TENSOR)
def _(values):
    return values.permute(2, 1, 0) / 255 * 2 - 1


@image_to_tensor.mutant("the axes stay as they are in a file: the channels come last", TENSOR)
def _(values):
    return values / 255 * 2 - 1


@image_to_tensor.mutant("red and blue are exchanged", TENSOR)
def _(values):
    return values.permute(2, 0, 1).flip(0) / 255 * 2 - 1


@image_to_tensor.mutant("the values are in 0 … 1: they are not scaled to −1 … 1", NORMALIZATION)
def _(values):
    return values.permute(2, 0, 1) / 255


@image_to_tensor.mutant("the values still go up to 255", NORMALIZATION)
def _(values):
    return values.permute(2, 0, 1).float()


@image_to_tensor.mutant("it is normalized twice", NORMALIZATION)
def _(values):
    return (values.permute(2, 0, 1) / 255 * 2 - 1) * 2 - 1


@image_to_tensor.mutant("the values are divided by 256 instead of 255: white is not quite 1", NORMALIZATION)
def _(values):
    return values.permute(2, 0, 1) / 256 * 2 - 1


@image_to_tensor.mutant("each image is divided by its own maximum: dark images become bright", NORMALIZATION)
def _(values):
    return values.permute(2, 0, 1) / values.max() * 2 - 1


@image_to_tensor.mutant(
    "uint8 values are doubled before they are converted to float: 2 · 128 overflows to 0", NORMALIZATION
)
def _(values):
    return (values * 2).permute(2, 0, 1) / 255 - 1


@image_to_tensor.alternative
def _(values):
    return (rearrange(values, "height width channels -> channels height width").float() - 127.5) / 127.5


@image_to_tensor.alternative
def _(values):
    return torch.stack([values[..., c].float().mul(2 / 255).sub(1) for c in range(values.shape[2])])


# ---- patches --------------------------------------------------------------------------------------------------------


@exercise("Split into patches", minutes=15, level=2, gradients=("img",))
def patchify(img: Float[Tensor, "batch channels height width"], patch: int) -> Float[Tensor, "batch n_patches values"]:
    """torch's `unfold`, with its axes transposed."""
    return F.unfold(img, patch, stride=patch).transpose(1, 2)


@patchify.cases
def _(rng):
    yield "all sizes different", {"img": rng.randn(2, 3, 8, 12), "patch": 4}
    yield "batch 1, more rows than columns", {"img": rng.randn(1, 2, 6, 4), "patch": 2}
    yield "as many rows as columns", {"img": rng.randn(1, 3, 6, 6), "patch": 3}
    yield "one patch", {"img": rng.randn(2, 3, 2, 2), "patch": 2}
    yield "patches of one pixel", {"img": rng.randn(1, 3, 2, 3), "patch": 1}


@patchify.random_inputs
def _(rng):
    patch = rng.size(3)
    return {"img": rng.randn(rng.size(3), rng.size(4), patch * rng.size(4), patch * rng.size(4)), "patch": patch}


def patchify_variant(
    img, patch, rows="(rows p)", columns="(columns q)", sequence="(rows columns)", inside="(channels p q)"
):
    """`patchify`; each keyword injects one fault."""
    return rearrange(img, f"batch channels {rows} {columns} -> batch {sequence} {inside}", p=patch, q=patch)


@patchify.mutant("`reshape` cuts rows of pixels into pieces: a piece is not a square", PATCHES)
def _(img, patch):
    return img.reshape(len(img), -1, img.shape[1] * patch * patch)


@patchify.mutant("patches are numbered down the columns instead of along the rows", EMBEDDING)
def _(img, patch):
    return patchify_variant(img, patch, sequence="(columns rows)")


@patchify.mutant("inside a patch the channels come last: the numbers meet the wrong weights", EMBEDDING)
def _(img, patch):
    return patchify_variant(img, patch, inside="(p q channels)")


@patchify.mutant("inside a patch rows and columns are exchanged", EMBEDDING)
def _(img, patch):
    return patchify_variant(img, patch, inside="(channels q p)")


@patchify.mutant("a patch takes every n-th pixel instead of a square of neighbours", PATCHES)
def _(img, patch):
    return patchify_variant(img, patch, rows="(p rows)", columns="(q columns)")


@patchify.mutant("values and patches are exchanged, as `unfold` returns them", PATCHES)
def _(img, patch):
    return F.unfold(img, patch, stride=patch)


@patchify.mutant("the stride is one pixel, so that patches overlap", EMBEDDING)
def _(img, patch):
    return F.unfold(img, patch).mT


@patchify.mutant("each patch is averaged to one number for each channel", PATCHES)
def _(img, patch):
    return F.avg_pool2d(img, patch).flatten(2).mT


@patchify.mutant("each channel is split into separate patches", PATCHES)
def _(img, patch):
    return patchify_variant(img, patch, sequence="(channels rows columns)", inside="(p q)")


@patchify.alternative
def _(img, patch):
    return patchify_variant(img, patch)


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


@exercise(
    "CLS token and position embeddings",
    minutes=10,
    level=1,
    gradients=("patches", "cls", "positions"),
)
def add_cls(
    patches: Float[Tensor, "batch n_patches vision_dim"],
    cls: Float[Tensor, "1 1 vision_dim"],
    positions: Float[Tensor, "1 n_patches+1 vision_dim"],
) -> Float[Tensor, "batch n_patches+1 vision_dim"]:
    """One position at a time."""
    batch, n_patches, features = patches.shape
    tokens = patches.new_zeros(batch, n_patches + 1, features)
    for b in range(batch):
        tokens[b, 0] = cls[0, 0] + positions[0, 0]
        for n in range(n_patches):
            tokens[b, n + 1] = patches[b, n] + positions[0, n + 1]
    return tokens


@add_cls.cases
def _(rng):
    yield (
        "all sizes different",
        {"patches": rng.randn(2, 5, 7), "cls": rng.randn(1, 1, 7), "positions": rng.randn(1, 6, 7)},
    )
    yield (
        "batch 1, one patch",
        {"patches": rng.randn(1, 1, 3), "cls": rng.randn(1, 1, 3), "positions": rng.randn(1, 2, 3)},
    )
    yield (
        "as many patches as images",
        {"patches": rng.randn(3, 3, 2), "cls": rng.randn(1, 1, 2), "positions": rng.randn(1, 4, 2)},
    )


@add_cls.random_inputs
def _(rng):
    patches, dim = rng.size(), rng.size()
    return {
        "patches": rng.randn(rng.size(), patches, dim), "cls": rng.randn(1, 1, dim),
        "positions": rng.randn(1, patches + 1, dim),
    }  # fmt: skip


def add_cls_variant(patches, cls, positions, *, join=lambda cls, patches: torch.cat([cls, patches], dim=1),
           add=torch.add):  # fmt: skip
    """`add_cls`; each keyword injects one fault."""
    return add(join(cls.expand(len(patches), -1, -1), patches), positions)


@add_cls.mutant("CLS is appended at the end: whoever reads token 0 gets the upper left patch", CLS)
def _(*inputs):
    return add_cls_variant(*inputs, join=lambda cls, patches: torch.cat([patches, cls], dim=1))


@add_cls.mutant("CLS is added to every patch instead of being a token in front of them", CLS)
def _(patches, cls, positions):
    return patches + cls + positions[:, 1:]


@add_cls.mutant("position embeddings are added before CLS: CLS has none, and the patches are off by one", POSITIONS)
def _(patches, cls, positions):
    return add_cls_variant(patches + positions[:, :-1], cls, torch.zeros_like(positions))


@add_cls.mutant("CLS gets no position embedding: the first one belongs to it", POSITIONS)
def _(patches, cls, positions):
    return add_cls_variant(patches + positions[:, 1:], cls, torch.zeros_like(positions))


@add_cls.mutant("the position embeddings are missing: the encoder cannot tell where a patch was", POSITIONS)
def _(*inputs):
    return add_cls_variant(*inputs, add=lambda tokens, positions: tokens)


@add_cls.mutant("tokens are multiplied by the position embeddings", POSITIONS)
def _(*inputs):
    return add_cls_variant(*inputs, add=torch.mul)


@add_cls.mutant("position embeddings are concatenated, which doubles the width, instead of being added", POSITIONS)
def _(*inputs):
    return add_cls_variant(*inputs, add=lambda tokens, where: torch.cat([tokens, where.expand_as(tokens)], dim=-1))


@add_cls.mutant("the patches are in reverse order", POSITIONS)
def _(patches, cls, positions):
    return add_cls_variant(patches.flip(1), cls, positions)


@add_cls.mutant("CLS is the mean of the patches instead of the learned vector", CLS)
def _(patches, cls, positions):
    return torch.cat([patches.mean(dim=1, keepdim=True), patches], dim=1) + positions


@add_cls.alternative
def _(*inputs):
    return add_cls_variant(*inputs)


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


# ---- contrastive loss -----------------------------------------------------------------------------------------------


@exercise(
    "The contrastive loss InfoNCE",
    minutes=20,
    level=3,
    taught_in="14_training_the_image_encoder",
    gradients=("images", "texts"),
)
def info_nce(
    images: Float[Tensor, "batch dim"], texts: Float[Tensor, "batch dim"], temperature: float = 0.07
) -> Float[Tensor, ""]:
    """Each image's choice among all captions, each caption's choice among all images; then the mean."""

    def similarity(one, other):
        return float(one @ other) / math.sqrt(float(one @ one) * float(other @ other)) / temperature

    losses = []
    for queries, candidates in ((images, texts), (texts, images)):
        for i, one in enumerate(queries):
            scores = [similarity(one, other) for other in candidates]
            best = max(scores)
            losses.append(best + math.log(sum(math.exp(each - best) for each in scores)) - scores[i])
    return images.new_tensor(sum(losses) / len(losses))


@info_nce.cases
def _(rng):
    yield "all sizes different", {"images": rng.randn(3, 5), "texts": rng.randn(3, 5), "temperature": 0.5}
    same = rng.randn(4, 3)
    yield "the usual temperature", {"images": same + 0.3 * rng.randn(4, 3), "texts": 2 * same}
    yield "batch 1: nothing to choose, no loss", {"images": rng.randn(1, 4), "texts": rng.randn(1, 4)}
    yield "each image is sure of another caption", {"images": torch.eye(3), "texts": torch.eye(3).roll(1, 0) - 0.1}
    yield "as many images as features", {"images": rng.randn(3, 3), "texts": 3 * rng.randn(3, 3), "temperature": 0.2}


@info_nce.random_inputs
def _(rng):
    images, texts = rng.choice((0.1, 1.0, 20.0)) * rng.randn(2, rng.size(5), rng.size(5, 2))
    texts[-1] = texts[0]  # the same caption twice
    return {"images": images, "texts": texts, "temperature": rng.number(0.05, 1.0)}


def info_nce_variant(
    images,
    texts,
    temperature=0.07,
    *,
    normalize=lambda x: F.normalize(x, dim=-1),
    scale=lambda z, t: z / t,
    both=lambda one, other: (one + other) / 2,
):
    """`info_nce`; each keyword injects one fault."""
    logits, labels = scale(normalize(images) @ normalize(texts).T, temperature), torch.arange(len(images))
    return both(F.cross_entropy(logits, labels), F.cross_entropy(logits.T, labels))


@info_nce.mutant("the vectors are not normalized: the longest wins, not the most similar", CONTRASTIVE)
def _(*inputs, **more):
    return info_nce_variant(*inputs, **more, normalize=lambda x: x)


@info_nce.mutant("vectors are normalized over the batch instead of their features", CONTRASTIVE)
def _(*inputs, **more):
    return info_nce_variant(*inputs, **more, normalize=lambda x: F.normalize(x, dim=0))


@info_nce.mutant("only image → text is computed: the captions are never asked", CONTRASTIVE)
def _(*inputs, **more):
    return info_nce_variant(*inputs, **more, both=lambda one, other: one)


@info_nce.mutant("only text → image is computed: the images are never asked", CONTRASTIVE)
def _(*inputs, **more):
    return info_nce_variant(*inputs, **more, both=lambda one, other: other)


@info_nce.mutant("the two directions are summed instead of averaged", CONTRASTIVE)
def _(*inputs, **more):
    return info_nce_variant(*inputs, **more, both=torch.add)


@info_nce.mutant("the similarities are multiplied by the temperature instead of divided", CONTRASTIVE)
def _(*inputs, **more):
    return info_nce_variant(*inputs, **more, scale=lambda z, t: z * t)


@info_nce.mutant("the `temperature` argument is ignored", CONTRASTIVE)
def _(images, texts, temperature=0.07):
    return info_nce_variant(images, texts)


@info_nce.mutant("the label of every image is 0: that of image i is i", CONTRASTIVE)
def _(images, texts, temperature=0.07):
    logits = F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T / temperature
    zero = torch.zeros(len(logits), dtype=torch.long)
    return (F.cross_entropy(logits, zero) + F.cross_entropy(logits.T, zero)) / 2


@info_nce.mutant("images are compared with images, where each is most similar to itself", CONTRASTIVE)
def _(images, texts, temperature=0.07):
    return info_nce_variant(images, images, temperature)


@info_nce.mutant("the positive pair is missing in the denominator", CONTRASTIVE)
def _(images, texts, temperature=0.07):
    logits = F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T / temperature
    others = logits.masked_fill(torch.eye(len(logits), dtype=torch.bool), -torch.inf)
    return (others.logsumexp(1) + others.logsumexp(0)).mean() / 2 - logits.diagonal().mean()


@info_nce.alternative
def _(*inputs, **more):
    return info_nce_variant(*inputs, **more)


@info_nce.alternative
def _(images, texts, temperature=0.07):
    logits = F.cosine_similarity(images[:, None], texts[None], dim=-1) / temperature
    shares = logits.log_softmax(dim=0) + logits.log_softmax(dim=1)
    return -shares.diagonal().sum() / (2 * len(logits))
