"""Lesson 06: images, patches, and the contrastive loss."""

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

from answers import right, wrong

right("image_to_tensor")(lambda values: values.permute(2, 0, 1).float() / 127.5 - 1)
right("image_to_tensor")(lambda values: (values.movedim(-1, 0) / 255 - 0.5) / 0.5)
right("image_to_tensor")(
    lambda values: torch.from_numpy(values.numpy().transpose(2, 0, 1).astype(np.float32) / 255 * 2 - 1)
)
wrong("image_to_tensor", "subtraction in 8 bits")(lambda values: (values - 128).permute(2, 0, 1) / 127.5)
wrong("image_to_tensor", "0 to 1")(lambda values: values.permute(2, 0, 1) / 255)
wrong("image_to_tensor", "divided by 128")(lambda values: values.permute(2, 0, 1) / 128 - 1)
wrong("image_to_tensor", "divided by 256")(lambda values: values.permute(2, 0, 1) / 256 * 2 - 1)
wrong("image_to_tensor", "width and height swapped")(lambda values: values.permute(2, 1, 0) / 127.5 - 1)
wrong("image_to_tensor", "reshape")(
    lambda values: values.reshape(values.shape[2], values.shape[0], values.shape[1]) / 127.5 - 1
)
wrong("image_to_tensor", "by the image's own range")(
    lambda values: (lambda x: (x - x.min()) / (x.max() - x.min()).clamp(min=1) * 2 - 1)(values.permute(2, 0, 1).float())
)
wrong("image_to_tensor", "channels last")(lambda values: values / 127.5 - 1)
wrong("image_to_tensor", "BGR")(lambda values: values.flip(-1).permute(2, 0, 1) / 127.5 - 1)
wrong("image_to_tensor", "float64")(lambda values: values.permute(2, 0, 1).double() / 127.5 - 1)

right("patchify")(lambda img, patch: rearrange(img, "b c (y p) (x q) -> b (y x) (c p q)", p=patch, q=patch))
right("patchify")(lambda img, patch: F.unfold(img, patch, stride=patch).mT)
right("patchify")(
    lambda img, patch: (
        img.unfold(2, patch, patch).unfold(3, patch, patch).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    )
)
right("patchify")(
    lambda img, patch: torch.stack([
        img[:, :, y : y + patch, x : x + patch].flatten(1)
        for y in range(0, img.shape[2], patch) for x in range(0, img.shape[3], patch)
    ], 1)
)  # fmt: skip
wrong("patchify", "reshape only")(lambda img, patch: img.reshape(img.shape[0], -1, img.shape[1] * patch * patch))
wrong("patchify", "column by column")(
    lambda img, patch: rearrange(img, "b c (y p) (x q) -> b (x y) (c p q)", p=patch, q=patch)
)
wrong("patchify", "channels last in the vector")(
    lambda img, patch: rearrange(img, "b c (y p) (x q) -> b (y x) (p q c)", p=patch, q=patch)
)
wrong("patchify", "columns within the patch")(
    lambda img, patch: rearrange(img, "b c (y p) (x q) -> b (y x) (c q p)", p=patch, q=patch)
)
wrong("patchify", "interleaved pixels")(
    lambda img, patch: rearrange(img, "b c (p y) (q x) -> b (y x) (c p q)", p=patch, q=patch)
)
wrong("patchify", "for square images only")(
    lambda img, patch: (lambda n: rearrange(
        img.reshape(*img.shape[:2], n * patch, -1)[..., : n * patch],
        "b c (y p) (x q) -> b (y x) (c p q)", p=patch, q=patch
    ))(int((img.shape[2] * img.shape[3]) ** 0.5) // patch)
)  # fmt: skip
wrong("patchify", "detached")(
    lambda img, patch: rearrange(img.detach(), "b c (y p) (x q) -> b (y x) (c p q)", p=patch, q=patch)
)

right("add_cls")(lambda patches, cls, positions: torch.cat([cls.repeat(len(patches), 1, 1), patches], 1) + positions)
right("add_cls")(lambda patches, cls, positions: torch.cat(
    [(cls + positions[:, :1]).expand(patches.shape[0], -1, -1), patches + positions[:, 1:]], dim=1))  # fmt: skip
right("add_cls")(lambda patches, cls, positions: torch.stack(
    [torch.vstack([cls[0], each]) + positions[0] for each in patches]))  # fmt: skip
wrong("add_cls", "CLS at the end")(
    lambda patches, cls, positions: torch.cat([patches, cls.expand(len(patches), -1, -1)], 1) + positions
)
wrong("add_cls", "CLS without position")(lambda patches, cls, positions: torch.cat(
    [cls.expand(len(patches), -1, -1), patches + positions[:, 1:]], 1))  # fmt: skip
wrong("add_cls", "positions shifted")(lambda patches, cls, positions: torch.cat(
    [cls.expand(len(patches), -1, -1) + positions[:, -1:], patches + positions[:, :-1]], 1))  # fmt: skip
wrong("add_cls", "no positions")(
    lambda patches, cls, positions: torch.cat([cls.expand(len(patches), -1, -1), patches], 1)
)
wrong("add_cls", "multiplied")(
    lambda patches, cls, positions: torch.cat([cls.expand(len(patches), -1, -1), patches], 1) * positions
)
wrong("add_cls", "CLS added to every patch")(lambda patches, cls, positions: torch.cat(
    [cls.expand(len(patches), -1, -1), patches + cls], 1) + positions)  # fmt: skip
wrong("add_cls", "zeros for CLS")(
    lambda patches, cls, positions: torch.cat([torch.zeros_like(patches[:, :1]), patches], 1) + positions
)
wrong("add_cls", "CLS detached")(
    lambda patches, cls, positions: torch.cat([cls.data.expand(len(patches), -1, -1), patches], 1) + positions
)


def _scores(images, texts):
    return F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).mT


def _both(scores):
    right_ones = torch.arange(len(scores))
    return (F.cross_entropy(scores, right_ones) + F.cross_entropy(scores.mT, right_ones)) / 2


right("info_nce")(lambda images, texts, temperature=0.07: _both(_scores(images, texts) / temperature))


@right("info_nce")
def _(images, texts, temperature=0.07):
    s = F.cosine_similarity(images[:, None], texts[None], dim=-1) / temperature
    d = s.diagonal()
    return ((s.logsumexp(1) - d).mean() + (s.logsumexp(0) - d).mean()) / 2


@right("info_nce")
def _(images, texts, temperature=0.07):
    a = images / images.norm(dim=1, keepdim=True)
    b = texts / texts.norm(dim=1, keepdim=True)
    s = torch.einsum("id,jd->ij", a, b) / temperature
    return -0.5 * (s.log_softmax(0).diag().mean() + s.log_softmax(1).diag().mean())


wrong("info_nce", "one direction")(
    lambda images, texts, temperature=0.07: F.cross_entropy(
        _scores(images, texts) / temperature, torch.arange(len(images))
    )
)
wrong("info_nce", "the other direction")(
    lambda images, texts, temperature=0.07: F.cross_entropy(
        _scores(texts, images) / temperature, torch.arange(len(images))
    )
)
wrong("info_nce", "sum of both")(
    lambda images, texts, temperature=0.07: 2 * _both(_scores(images, texts) / temperature)
)
wrong("info_nce", "not normalized")(lambda images, texts, temperature=0.07: _both(images @ texts.mT / temperature))
wrong("info_nce", "times temperature")(
    lambda images, texts, temperature=0.07: _both(_scores(images, texts) * temperature)
)
wrong("info_nce", "temperature ignored")(lambda images, texts, temperature=0.07: _both(_scores(images, texts) / 0.07))
wrong("info_nce", "normalized over the batch")(
    lambda images, texts, temperature=0.07: _both(
        F.normalize(images, dim=0) @ F.normalize(texts, dim=0).mT / temperature
    )
)
wrong("info_nce", "only one side normalized")(
    lambda images, texts, temperature=0.07: _both(F.normalize(images, dim=-1) @ texts.mT / temperature)
)
wrong("info_nce", "sum over the batch")(
    lambda images, texts, temperature=0.07: _both(_scores(images, texts) / temperature) * len(images)
)
wrong("info_nce", "texts detached")(
    lambda images, texts, temperature=0.07: _both(_scores(images, texts.detach()) / temperature)
)
wrong("info_nce", "negatives only in the denominator")(
    lambda images, texts, temperature=0.07: (lambda s: (
        (s.masked_fill(torch.eye(len(s)).bool(), -torch.inf).logsumexp(1) - s.diag()).mean()
        + (s.masked_fill(torch.eye(len(s)).bool(), -torch.inf).logsumexp(0) - s.diag()).mean()
    ) / 2)(_scores(images, texts) / temperature)
)  # fmt: skip
