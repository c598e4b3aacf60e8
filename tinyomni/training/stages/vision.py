"""Stage vision: the CLS token of the image encoder learns to describe an image.

    contrastive     which of all captions in the batch belongs to an image, and the other way round
    slots           colour, shape, size and place of the first, the second and the third thing, or that there is none,
                    read off the CLS token
    patches         the same four read off each patch, about the thing that it shows
    caption_slots   the slots read off the caption, by a head of its own

The first is CLIP's objective. Alone it learns colours and little else, even where a batch holds scenes that differ by
one swap: good enough to tell captions apart, not to answer questions. The slots make the CLS say everything about each
thing. They have the order of `world.PLACES`, which is that of a description: who describes an image reads them one
after the other. The patches learn to say what the CLS then only has to collect. The text tower must know as much: which
colour goes with which shape, or a swap cannot be told. Custom images have no slots: then the first objective is all.

Sources: Radford et al., CLIP (2021); Yuksekgonul et al. (2022), arXiv:2210.01936, for swaps as hard negatives; Liu et
al., PatchDropout (2022), arXiv:2208.07220.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.data import Dataset

from tinyomni.config import IMAGE_SIZE, TINY
from tinyomni.data import world
from tinyomni.data.custom import train_validation_split
from tinyomni.data.datasets import Encode, Sample, Scenes, check_style, encode_all, pixels
from tinyomni.data.manifests import Item
from tinyomni.data.randomization import FOREIGN_SHAPE, NOTHING, UNCLEAR
from tinyomni.data.rendering import PLACE_OFFSETS, RADII
from tinyomni.data.unanswerable import CANNOT_TELL, UNCLEAR_IMAGES
from tinyomni.errors import InputError
from tinyomni.layers import DecoderBlock, RMSNorm
from tinyomni.training.distributed import to_device
from tinyomni.training.optim import cosine_ends
from tinyomni.training.recipe import Job, RunDir
from tinyomni.training.settings import MUON, Settings
from tinyomni.training.stage import Stage
from tinyomni.training.stages import StageSpec, register
from tinyomni.vision import ViTTiny


@dataclass(frozen=True)
class VisionSettings(Settings):
    """How to train the image encoder, and on how many scenes of the closed world."""

    scenes: int = 100_000
    validation_scenes: int = 256
    style: str = "plain"  # "wide": images as people and programs draw them (data/randomization.py), each seen once
    unmasked: int = 0  # so many last steps of the wide style encode all patches of every image

    def __post_init__(self) -> None:
        super().__post_init__()
        check_style(self.style)
        if self.unmasked < 0:
            raise InputError(f"Settings: unmasked must be at least 0, got {self.unmasked}")


PRESETS = {
    "smoke": VisionSettings(steps=4, batch_size=4, warmup=2, eval_every=4, scenes=64, validation_scenes=8, **MUON),
    "laptop": VisionSettings(
        steps=9500, cycle=8000, restarts=3, restart_lr=8e-4, unmasked=1500, batch_size=24, lr=1.5e-3, warmup=100,
        eval_every=500, checkpoint_freq=250, style="wide", **MUON,
    ),
    "quick": VisionSettings(
        steps=500, batch_size=16, lr=1.5e-3, warmup=40, eval_every=250, scenes=16_000, validation_scenes=64, **MUON
    ),
    "gpu": VisionSettings(
        steps=8000, unmasked=600, batch_size=128, lr=1e-3, warmup=200, eval_every=500, num_workers=12,
        validation_scenes=1024, style="wide", **MUON,
    ),
}  # fmt: skip
PRESETS["shipped"] = replace(PRESETS["laptop"], steps=19_500, restarts=6, unmasked=11_500, skip_grad_norm=2000.0)
RAMP = 0.2  # of the first cycle of the wide style, over which images vary more and more, from scratch
P_UNCLEAR = 0.3  # of its images have no description
MASKED_PATCHES = 48  # that are encoded of most images where the masks of the things are known
WHOLE = {"plain": 4, "wide": 32}  # one of so many images is encoded with all patches
CAPTIONS = {"plain": 1, "wide": 4}  # one of so many captions is read
IGNORE = -100  # a label that cross-entropy leaves out
EASY = 7  # every so many-th image is an easy one; a divisor of no batch size, so that they occur anywhere in a batch

# ---- the labels of a scene ------------------------------------------------------------------------------------------

FIELDS = {"colour": world.COLOURS, "shape": world.SHAPES, "size": world.SIZES, "place": world.PLACES}
CHOICES = [1 + len(words) for words in FIELDS.values()]  # 0 means that nothing is there
THINGS = 3  # the most that a scene has
UNCLEAR_SENTENCES = tuple(dict.fromkeys(UNCLEAR_IMAGES.values()))
CANNOT_TELL_KIND = 1 + UNCLEAR_SENTENCES.index(CANNOT_TELL)
STEP = 67  # pixels from the middle to the other places, on average


def slots_of(things: Sequence[world.Thing]) -> Int[Tensor, "things fields"]:
    """(3, 4): colour, shape, size and place of each thing, in the order of `world.PLACES`; 0 where there is none, and
    for a shape that the world has no word for.
    """
    slots = torch.zeros(THINGS, len(FIELDS), dtype=torch.int64)
    for number, thing in enumerate(world.sort_by_place(things)):
        words = [(known, getattr(thing, field)) for field, known in FIELDS.items()]
        slots[number] = torch.tensor([0 if word == FOREIGN_SHAPE else 1 + known.index(word) for known, word in words])
    return slots


def labels_of(sample: Sample) -> tuple[Int[Tensor, "things fields"], Int[Tensor, "n_patches"], int]:
    """Slots, what the patches show, and the kind: 0 for a scene, else 1 + the sentence in UNCLEAR_SENTENCES."""
    slots, shown = slots_of(sample.things), sample.shown
    if sample.unclear in ("too many", "overlapping"):
        slots.fill_(IGNORE)
    kind = 0 if sample.unclear is None else 1 + UNCLEAR_SENTENCES.index(UNCLEAR_IMAGES[sample.unclear])
    return slots, shown_by_patches(sample.things) if shown is None else torch.from_numpy(shown).flatten(), kind


def shown_by_patches(things: Sequence[world.Thing]) -> Int[Tensor, "n_patches"]:
    """Of each patch, which thing it shows, or NOTHING; UNCLEAR at the edge, since drawing moves things a little."""
    patch = TINY.vision.patch
    middle = torch.arange(IMAGE_SIZE // patch) * patch + patch / 2
    shown = torch.full((len(middle), len(middle)), NOTHING)
    for number, thing in enumerate(world.sort_by_place(things)):
        right, down = (IMAGE_SIZE / 2 + STEP * step for step in PLACE_OFFSETS[thing.place])
        distance = torch.hypot(middle[:, None] - down, middle[None] - right)
        edge = distance < RADII[thing.size] + patch
        shown[edge & (shown == NOTHING)] = UNCLEAR
        shown[distance < 0.85 * RADII[thing.size]] = number
    return shown.flatten()


class ScenesWithSwaps(Dataset[list[Sample]]):
    """A scene, and one that differs from it by one swap, if there is one in the same split, drawn from all of them."""

    def __init__(self, scenes: Scenes) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> list[Sample]:
        if self.scenes.style == "wide" and random.Random(f"unclear {index}").random() < P_UNCLEAR:
            return [self.scenes.unclear(index)]
        things = self.scenes.things(index)
        swaps = [each for each in world.hard_negatives(things) if world.split_of_scene(each) == self.scenes.split]
        chosen = [things, *([random.Random(index).choice(swaps)] if swaps else [])]
        return [self.scenes.sample(index, each) for each in chosen]


@dataclass(frozen=True)
class ImageBatch:
    """Images with their captions; without slots where the scene is not known."""

    pixels: Float[Tensor, "batch channels height width"]
    caption: Int[Tensor, "batch text_tokens"]
    lengths: Int[Tensor, "batch"]
    slots: Int[Tensor, "batch things fields"] | None = None
    shown: Int[Tensor, "batch n_patches"] | None = None
    kinds: Int[Tensor, "batch"] | None = None  # 0 for a scene, else 1 + the index in UNCLEAR_SENTENCES
    unmasked: bool = False  # whether all patches of every image are encoded


def collate(
    samples: Sequence[Sample | Item | list[Sample]], encode: Encode, unmasked_from: int | None = None
) -> ImageBatch:
    """Samples of the closed world, with or without their swaps, or rows of custom data, as one batch. Those from the
    index `unmasked_from` on are encoded with all patches.
    """
    flat = [each for sample in samples for each in (sample if isinstance(sample, list) else [sample])]
    drawn = [each for each in flat if isinstance(each, Sample)]
    ids, lengths = encode_all(encode, [caption_of(each) for each in flat])
    images = torch.stack([pixels(each.image) if isinstance(each, Sample) else each.pixels for each in flat])
    if not drawn:
        return ImageBatch(images, ids, lengths)
    slots, shown, kinds = zip(*map(labels_of, drawn), strict=True)
    unmasked = unmasked_from is not None and all(each.index >= unmasked_from for each in drawn)
    return ImageBatch(images, ids, lengths, torch.stack(slots), torch.stack(shown), torch.tensor(kinds), unmasked)


def caption_of(sample: Sample | Item) -> str:
    """The caption; of a row with a question and no caption, question and answer."""
    if isinstance(sample, Sample):
        return sample.caption
    texts = sample.texts
    return texts.get("caption") or f"{texts['question']} {texts['answer']}"


# ---- the text tower -------------------------------------------------------------------------------------------------


class TextTower(nn.Module):
    """A caption → one vector of the ViT's width: a small causal transformer, read at EOS, as CLIP's is.

    It has RoPE. Which words belong together is a matter of their distance. Measured once, on captions alone, asked for
    the slots: two blocks with learned positions and full attention read 10% of the captions of two things without a
    fault after 1000 steps of 28; two of these blocks 84% after 600, three 96%.
    """

    def __init__(self, width: int = TINY.vision.vision_dim, layers: int = 3, max_seq_len: int = 128) -> None:
        super().__init__()
        self.tok_emb = nn.Embedding(TINY.thinker.vocab, width)
        self.blocks = nn.ModuleList(DecoderBlock(width, 2, 4 * width, max_seq_len) for _ in range(layers))
        self.norm = RMSNorm(width)
        self.width, self.max_seq_len = width, max_seq_len

    def forward(
        self, ids: Int[Tensor, "batch text_tokens"], lengths: Int[Tensor, "batch"]
    ) -> Float[Tensor, "batch dim"]:
        """(batch, text_tokens), each with EOS at its end and padded → (batch, 128)."""
        if ids.shape[1] > self.max_seq_len:
            raise InputError(f"TextTower: a caption can have {self.max_seq_len} tokens at most, got {ids.shape[1]}")
        x = self.tok_emb(ids)
        for block in self.blocks:
            x = block(x)  # causal: padding lies behind the end, so it is never seen
        return self.norm(at_end(x, lengths))


def at_end(x: Float[Tensor, "batch text_tokens dim"], lengths: Int[Tensor, "batch"]) -> Float[Tensor, "batch dim"]:
    """The last token of each text."""
    return x[torch.arange(len(x), device=x.device), lengths - 1]


# ---- the objectives -------------------------------------------------------------------------------------------------


def info_nce(
    logits: Float[Tensor, "batch batch"], same: Bool[Tensor, "batch batch"] | None = None
) -> Float[Tensor, ""]:
    """Image i belongs to caption i: cross-entropy along the rows and along the columns.

    `same` is True where two captions are equal: such a pair is no negative, so it is masked out.
    """
    target = torch.arange(len(logits), device=logits.device)
    if same is not None:
        other = ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(same & other, -torch.inf)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def by_thing(logits: Float[Tensor, "*tokens slots"]) -> Float[Tensor, "*tokens things choices"]:
    """93 → (3, 31)."""
    return logits.unflatten(-1, (THINGS, sum(CHOICES)))


def fields_loss(logits: Float[Tensor, "*slots choices"], labels: Int[Tensor, "*slots fields"]) -> Float[Tensor, ""]:
    """Cross-entropy of colour, shape, size and place, added up; the mean over all slots, 0 where nothing is asked."""
    parts = zip(logits.split(CHOICES, dim=-1), labels.unbind(-1), strict=True)
    asked = (labels[..., 0] != IGNORE).sum().clamp(min=1)
    found = [F.cross_entropy(each.flatten(0, -2), field.flatten(), reduction="sum") for each, field in parts]
    return torch.stack(found).sum() / asked


def patch_labels(
    slots: Int[Tensor, "batch things fields"], shown: Int[Tensor, "batch n_patches"]
) -> Int[Tensor, "batch n_patches fields"]:
    """The labels of each patch, if it shows a thing: the four fields of that thing."""
    return slots.gather(1, shown.clamp(min=0)[..., None].expand(-1, -1, slots.shape[-1]))


def patches_loss(
    logits: Float[Tensor, "*patches choices"], labels: Int[Tensor, "*patches fields"], shown: Int[Tensor, "*patches"]
) -> Float[Tensor, ""]:
    """Each patch is to say what it shows. Those that show something are few, so they and the empty ones are averaged
    apart."""
    there, nothing = shown >= 0, shown == NOTHING
    return fields_loss(logits[there], labels[there]) + fields_loss(logits[nothing], torch.zeros_like(labels[nothing]))


class VisionStage(Stage):
    """The ViT with what teaches it: a text tower, and the heads of the slots, by the names of the weights file."""

    name = "vision"
    weights_file = (("vision.", "vision."), ("eye.", ""))

    def __init__(
        self,
        text: TextTower | None = None,
        validation: Callable[[], Iterator[ImageBatch]] | None = None,
        style: str = "plain",
    ) -> None:
        super().__init__()
        width, shared = TINY.vision.vision_dim, 128
        self.vision = ViTTiny()
        self.text = text or TextTower()
        self.picture_out = nn.Linear(width, shared, bias=False)
        self.text_out = nn.Linear(self.text.width, shared, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(14.3).log())  # 1 / temperature; CLIP starts at 0.07
        self.slots = nn.Linear(width, THINGS * sum(CHOICES))
        self.patch_slot = nn.Linear(width, sum(CHOICES))
        self.text_slots = nn.Linear(self.text.width, THINGS * sum(CHOICES))
        self.kind = nn.Linear(width, 1 + len(UNCLEAR_SENTENCES))
        self.validation, self.style = validation, style

    def embed_images(self, cls: Float[Tensor, "batch 1 vision_dim"]) -> Float[Tensor, "batch shared"]:
        """CLS → a vector of length 1."""
        return F.normalize(self.picture_out(cls[:, 0]), dim=-1)

    def embed_captions(self, text: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch shared"]:
        """Output of the text tower → vectors of length 1, in the same space."""
        return F.normalize(self.text_out(text), dim=-1)

    def slot_logits(self, cls: Float[Tensor, "batch vision_dim"]) -> Float[Tensor, "batch things choices"]:
        """CLS → (batch, 3, 13 + 9 + 3 + 6)."""
        return by_thing(self.slots(cls))

    def encode_image(
        self,
        img: Float[Tensor, "batch channels height width"],
        salient: bool = False,
        shown: Int[Tensor, "batch n_patches"] | None = None,
    ) -> tuple[Float[Tensor, "batch 1 vision_dim"], Float[Tensor, "batch patches vision_dim"], Int[Tensor, "batch _"]]:
        """CLS, patches, and which patches these are: all, or the `salient` third, those unlike the background.

        Where backgrounds vary, these are not the things: with `shown`, 48 are taken, those of the things first.
        """
        vision = self.vision
        tokens = vision.add_positions(vision.add_cls(patches := vision.flatten(vision.patchify(img))))
        number = patches.shape[1]
        if salient:
            if shown is None:
                distance = (patches - patches.median(dim=1, keepdim=True).values).norm(dim=-1)
                kept = distance.topk(number // 3, dim=1).indices
            else:
                order = (shown != NOTHING) + torch.rand(shown.shape, device=img.device)
                kept = order.topk(MASKED_PATCHES, dim=1).indices
            index = torch.cat([torch.zeros_like(kept[:, :1]), kept + 1], dim=1)[..., None]
            tokens = tokens.gather(1, index.expand(-1, -1, tokens.shape[-1]))
        else:
            kept = torch.arange(number, device=img.device).expand(len(img), -1)
        tokens = vision.encode(tokens)
        return tokens[:, :1], tokens[:, 1:], kept

    def losses(self, batch: ImageBatch) -> dict[str, Float[Tensor, ""]]:
        """Each objective, where the batch has what it needs.

        In training a quarter of the images are encoded with all patches, so that the background is known too, the
        others with a third of them, which takes a third of the time. Of the wide style, whose masks are known, one of
        32 is enough; but what is asked later is asked of whole images, so its last steps have all patches, as FLIP's
        have (Li et al., 2023, "Scaling Language-Image Pre-training via Masking", section 3, "Unmasking").
        """
        masked = self.training and not batch.unmasked
        whole = -(-len(batch.pixels) // WHOLE[self.style]) if masked else len(batch.pixels)
        parts = [(slice(whole), *self.encode_image(batch.pixels[:whole]))]
        if whole < len(batch.pixels):
            masks = batch.shown[whole:] if self.style == "wide" and batch.shown is not None else None
            few = self.encode_image(batch.pixels[whole:], True, *([] if masks is None else [masks]))
            parts.append((slice(whole, None), *few))
        cls = torch.cat([each for _, each, _, _ in parts])
        # of the wide style only every fourth caption is read: it takes as long as an image, and is learned sooner
        read = slice(-(-len(batch.pixels) // CAPTIONS[self.style]) if self.training else len(batch.pixels))
        caption = batch.caption[read]
        text = self.text(caption, batch.lengths[read])
        logits = self.log_scale.exp().clamp(max=100.0) * self.embed_images(cls[read]) @ self.embed_captions(text).T
        same = (caption[:, None] == caption[None]).all(-1)
        losses = {"contrastive": info_nce(logits, same)}
        if batch.slots is not None and batch.shown is not None:
            losses["slots"] = fields_loss(self.slot_logits(cls[:, 0]), batch.slots)
            patch_logits, labels, shown = [], [], []
            for rows, _, patches, kept in parts:
                shows = batch.shown[rows].gather(1, kept)
                patch_logits.append(self.patch_slot(patches).flatten(0, 1))
                labels.append(patch_labels(batch.slots[rows], shows).flatten(0, 1))
                shown.append(shows.flatten())
            losses["patches"] = patches_loss(torch.cat(patch_logits), torch.cat(labels), torch.cat(shown))
            told = batch.slots[read]
            if batch.kinds is not None:  # "I cannot tell …" does not tell what is beside the foreign shape
                told = told.masked_fill((batch.kinds[read] == CANNOT_TELL_KIND)[:, None, None], IGNORE)
            losses["caption_slots"] = fields_loss(by_thing(self.text_slots(text)), told)
            if batch.kinds is not None and self.style == "wide":
                losses["kind"] = F.cross_entropy(self.kind(cls[:, 0]), batch.kinds)
        return losses

    def forward(self, batch: ImageBatch) -> tuple[Float[Tensor, ""], dict[str, Any]]:
        """The sum of the objectives."""
        losses = self.losses(batch)
        return sum(losses.values()), {name: loss.detach() for name, loss in losses.items()}  # type: ignore[return-value]

    def validate(self) -> dict[str, float]:
        """Each loss on held-out images. `loss` is that of the slots: they are what the Thinker will be asked about."""
        if self.validation is None:
            return {}
        parts: dict[str, list[float]] = {}
        for batch in self.validation():
            losses = self.losses(to_device(batch, self.log_scale.device))
            for name, loss in losses.items():
                parts.setdefault(name, []).append(float(loss))
        means = {name: sum(values) / len(values) for name, values in parts.items()}
        return {"loss": means.get("slots", means["contrastive"]), **means}


# ---- what to train --------------------------------------------------------------------------------------------------


def in_batches(dataset: Dataset[Any], encode: Encode, size: int = 32) -> Iterator[ImageBatch]:
    """The whole data set in order, as batches."""
    for start in range(0, len(dataset), size):  # type: ignore[arg-type]
        yield collate([dataset[i] for i in range(start, min(start + size, len(dataset)))], encode)  # type: ignore[arg-type]


def build(run_dir: RunDir, settings: VisionSettings) -> Job:
    """Scenes of the closed world with their swaps, or custom images with captions."""
    encode = run_dir.tokenizer().encode
    train: Dataset[Any]
    held_out: Dataset[Any]
    wide, unmasked_from = settings.style == "wide" and run_dir.data is None, None
    if wide:
        size = settings.steps * settings.batch_size
        unmasked_from = (settings.steps - settings.unmasked) * settings.batch_size
        first = cosine_ends(settings)[0] * settings.batch_size
        train = ScenesWithSwaps(
            Scenes(
                size=size,
                speech=False,
                easy=EASY,
                style="wide",
                ramp=0 if settings.init_from else int(RAMP * first),
                seed=settings.seed,
            )
        )
        held_out = Scenes("validation", settings.validation_scenes, speech=False, style="wide")
    elif run_dir.data is None:
        train = ScenesWithSwaps(Scenes(size=settings.scenes, speech=False, easy=EASY))
        held_out = Scenes("validation", settings.validation_scenes, speech=False, easy=EASY)
    else:
        train, held_out = train_validation_split(run_dir.custom_data("caption", "question"))
    stage = VisionStage(validation=partial(in_batches, held_out, encode), style="wide" if wide else "plain")
    return Job(stage, train, partial(collate, encode=encode, unmasked_from=unmasked_from), settings, in_order=wide)


SPEC = register(StageSpec("vision", PRESETS, build, requires=("tokenizer",), untrained=VisionStage))
