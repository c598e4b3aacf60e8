"""The vision stage: one CLS token learns to say what a picture shows.

    captions   which of all captions in the batch belongs to a picture, and the other way round
    slots      colour, shape, size and place of the first, the second and the third thing, or that there is none: asked
               of the CLS
    patches    the same four asked of each patch, about the thing that it shows
    words      the slots asked of the caption, by a head of its own

The first is CLIP's objective. Alone it learns colours and little else, even where a batch holds scenes that differ by
one swap: good enough to tell captions apart, not to answer questions. The slots make the CLS say everything about each
thing. They stand in the order of `world.PLACES`, which is that of a description: who speaks of a picture reads them one
after the other. The patches learn to write down what the CLS then only has to collect. Who reads the caption must know
as much: which colour goes with which shape, or a swap can't be told. Pictures of one's own have no slots: then the
first objective is all.

Sources: Radford et al., CLIP (2021); Yuksekgonul et al. (2022), arXiv:2210.01936, for swaps as hard negatives; Liu et
al., PatchDropout (2022), arXiv:2208.07220.
"""

import functools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from tinyomni.config import TINY
from tinyomni.data import world
from tinyomni.data.datasets import Encode, Sample, Scenes, encode_all, pixels
from tinyomni.data.manifests import Item
from tinyomni.data.rendering import RADII, SIDE, STEPS
from tinyomni.layers import DecoderBlock, RMSNorm
from tinyomni.thinker import ThinkerLM
from tinyomni.training.distributed import to_device
from tinyomni.training.engine import MUON, Settings, Stage
from tinyomni.training.recipe import Job, Place
from tinyomni.vision import ViTTiny

SETTINGS = {
    "smoke": Settings(steps=4, batch_size=4, warmup=2, validate_freq=4, **MUON),
    "laptop": Settings(steps=2500, batch_size=16, lr=1.5e-3, warmup=60, validate_freq=400, checkpoint_freq=200, **MUON),
    "gpu": Settings(steps=3000, batch_size=128, lr=1e-3, warmup=200, validate_freq=500, workers=12, **MUON),
}
SCENES = {"smoke": 64, "laptop": 100_000, "gpu": 1_000_000}
EASY = 7  # every so many-th picture is an easy one; a divisor of no batch, so that they come in all its places
HELD_OUT_PICTURES = {"smoke": 8, "laptop": 256, "gpu": 1024}

# ---- what is to be learned from a scene -----------------------------------------------------------------------------

FIELDS = {"colour": world.COLOURS, "shape": world.SHAPES, "size": world.SIZES, "place": world.PLACES}
CHOICES = [1 + len(words) for words in FIELDS.values()]  # 0 means that nothing is there
THINGS = 3  # the most that a scene has
NOTHING, UNCLEAR = -1, -2  # what a patch shows, beside the number of a thing
STEP = 67  # pixels from the middle to the other places, on average


def slots_of(things: Sequence[world.Thing]) -> Int[Tensor, "things fields"]:
    """(3, 4): colour, shape, size and place of each thing, in the order of `world.PLACES`; 0 where there is none."""
    slots = torch.zeros(THINGS, len(FIELDS), dtype=torch.int64)
    for number, thing in enumerate(world.sort(things)):
        slots[number] = torch.tensor([1 + words.index(getattr(thing, field)) for field, words in FIELDS.items()])
    return slots


def shown_by_patches(things: Sequence[world.Thing]) -> Int[Tensor, "n_patches"]:
    """Of each patch, which thing it shows, or NOTHING; UNCLEAR at the edge, since things move when they are drawn."""
    patch = TINY.vision.patch
    middle = torch.arange(SIDE // patch) * patch + patch / 2
    shown = torch.full((len(middle), len(middle)), NOTHING)
    for number, thing in enumerate(world.sort(things)):
        right, down = (SIDE / 2 + STEP * step for step in STEPS[thing.place])
        distance = torch.hypot(middle[:, None] - down, middle[None] - right)
        edge = distance < RADII[thing.size] + patch
        shown[edge & (shown == NOTHING)] = UNCLEAR
        shown[distance < 0.85 * RADII[thing.size]] = number
    return shown.flatten()


class WithSwap(Dataset[list[Sample]]):
    """A scene, and one that differs from it by one swap, if there is one in the same split: one of all in turn."""

    def __init__(self, scenes: Scenes) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> list[Sample]:
        things = self.scenes.things(index)
        swaps = [each for each in world.hard_negatives(things) if world.split_of_scene(each) == self.scenes.split]
        chosen = [things, *([random.Random(index).choice(swaps)] if swaps else [])]
        return [self.scenes.sample(index, each) for each in chosen]


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side with their captions; without slots where the scene is not known."""

    pixels: Float[Tensor, "batch channels height width"]
    caption: Int[Tensor, "batch text_tokens"]
    lengths: Int[Tensor, "batch"]
    slots: Int[Tensor, "batch things fields"] | None = None
    shown: Int[Tensor, "batch n_patches"] | None = None


def collate(samples: Sequence[Sample | Item | list[Sample]], encode: Encode) -> Pictures:
    """Samples of the world, with or without their swaps, or rows of one's own."""
    flat = [each for sample in samples for each in (sample if isinstance(sample, list) else [sample])]
    drawn = [each for each in flat if isinstance(each, Sample)]
    ids, lengths = encode_all(encode, [caption_of(each) for each in flat])
    images = torch.stack([pixels(each.picture) if isinstance(each, Sample) else each.pixels for each in flat])
    if not drawn:
        return Pictures(images, ids, lengths)
    slots, shown = ([of(each.things) for each in drawn] for of in (slots_of, shown_by_patches))
    return Pictures(images, ids, lengths, torch.stack(slots), torch.stack(shown))


def caption_of(sample: Sample | Item) -> str:
    """The caption; of rows with a question, if they have no caption, question and answer."""
    if isinstance(sample, Sample):
        return sample.caption
    texts = sample.texts
    return texts.get("caption") or f"{texts['question']} {texts['answer']}"


# ---- who reads the captions -----------------------------------------------------------------------------------------


class TextTower(nn.Module):
    """A caption → one vector of the ViT's width: a small causal transformer, read at EOS, as CLIP's is.

    It has RoPE. Which words belong together is a matter of their distance. Measured once, on captions alone, asked for
    the slots: two blocks with learned positions, in which every token looks at every other, read 10% of the captions of
    two things without a fault after 1000 steps of 28; two of these blocks 84% after 600, three 96%.
    """

    def __init__(self, width: int = TINY.vision.vision_dim, layers: int = 3, longest: int = 128) -> None:
        super().__init__()
        self.tok_emb = nn.Embedding(TINY.thinker.vocab, width)
        self.blocks = nn.ModuleList(DecoderBlock(width, 2, 4 * width, longest) for _ in range(layers))
        self.norm = RMSNorm(width)
        self.width, self.longest = width, longest

    def forward(
        self, ids: Int[Tensor, "batch text_tokens"], lengths: Int[Tensor, "batch"]
    ) -> Float[Tensor, "batch features"]:
        """(batch, text_tokens), each with EOS at its end and padded → (batch, 128). What is too long is an error."""
        if ids.shape[1] > self.longest:
            raise ValueError(f"TextTower: a caption has {ids.shape[1]} tokens, {self.longest} are the most")
        x = self.tok_emb(ids)
        for block in self.blocks:
            x = block(x)  # causal: padding lies behind the end, so it is never seen
        return self.norm(at_end(x, lengths))


class ThinkerTower(nn.Module):
    """The same by the Thinker: what it knows when it has read the caption up to EOS."""

    def __init__(self, thinker: ThinkerLM) -> None:
        super().__init__()
        self.thinker, self.width = thinker, thinker.cfg.d_model
        thinker.lm_head.requires_grad_(False)  # no word is asked for

    def forward(
        self, ids: Int[Tensor, "batch text_tokens"], lengths: Int[Tensor, "batch"]
    ) -> Float[Tensor, "batch features"]:
        """(batch, text_tokens) → (batch, 256)."""
        x = self.thinker.embed(ids)
        for block in self.thinker.blocks:
            x = block(x)
        return self.thinker.norm(at_end(x, lengths))


def at_end(
    x: Float[Tensor, "batch text_tokens features"], lengths: Int[Tensor, "batch"]
) -> Float[Tensor, "batch features"]:
    """The last token of each text."""
    return x[torch.arange(len(x), device=x.device), lengths - 1]


# ---- the objectives -------------------------------------------------------------------------------------------------


def info_nce(
    logits: Float[Tensor, "batch batch"], same: Bool[Tensor, "batch batch"] | None = None
) -> Float[Tensor, ""]:
    """Picture i belongs to caption i: cross-entropy along the rows and along the columns.

    `same` is True where two captions say the same: such a pair is no mistake, so it is left out.
    """
    target = torch.arange(len(logits), device=logits.device)
    if same is not None:
        other = ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(same & other, -torch.inf)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def by_thing(logits: Float[Tensor, "*tokens slots"]) -> Float[Tensor, "*tokens things choices"]:
    """93 → (3, 31)."""
    return logits.unflatten(-1, (THINGS, sum(CHOICES)))


def fields_loss(logits: Float[Tensor, "*slots choices"], due: Int[Tensor, "*slots fields"]) -> Float[Tensor, ""]:
    """Cross-entropy of colour, shape, size and place, added up; the mean over all slots."""
    parts = zip(logits.split(CHOICES, dim=-1), due.unbind(-1), strict=True)
    return torch.stack([F.cross_entropy(each.flatten(0, -2), field.flatten()) for each, field in parts]).sum()


def due_of_patches(
    slots: Int[Tensor, "batch things fields"], shown: Int[Tensor, "batch n_patches"]
) -> Int[Tensor, "batch n_patches fields"]:
    """What each patch is due to say, if it shows a thing: the four of that thing."""
    return slots.gather(1, shown.clamp(min=0)[..., None].expand(-1, -1, slots.shape[-1]))


def patches_loss(
    logits: Float[Tensor, "*patches choices"], due: Int[Tensor, "*patches fields"], shown: Int[Tensor, "*patches"]
) -> Float[Tensor, ""]:
    """A patch is due to say what it shows. Those that show something are few, so they and the empty ones are averaged
    apart."""
    there, nothing = shown >= 0, shown == NOTHING
    return fields_loss(logits[there], due[there]) + fields_loss(logits[nothing], torch.zeros_like(due[nothing]))


class VisionStage(Stage):
    """The ViT with what teaches it: a text tower, and the heads of the slots."""

    name = "vision"

    def __init__(
        self, text: nn.Module | None = None, validation: Callable[[], Iterator[Pictures]] | None = None
    ) -> None:
        super().__init__()
        width, shared = TINY.vision.vision_dim, 128
        self.vision = ViTTiny()
        self.text = text or TextTower()
        self.picture_out = nn.Linear(width, shared, bias=False)
        self.text_out = nn.Linear(self.text.width, shared, bias=False)  # type: ignore[arg-type]
        self.log_scale = nn.Parameter(torch.tensor(14.3).log())  # 1 / temperature; CLIP starts at 0.07
        self.slots = nn.Linear(width, THINGS * sum(CHOICES))
        self.patch_slot = nn.Linear(width, sum(CHOICES))
        self.text_slots = nn.Linear(self.text.width, THINGS * sum(CHOICES))  # type: ignore[arg-type]
        self.validation = validation

    def pictures(self, cls: Float[Tensor, "batch 1 vision_dim"]) -> Float[Tensor, "batch shared"]:
        """CLS → a vector of length 1."""
        return F.normalize(self.picture_out(cls[:, 0]), dim=-1)

    def captions(self, read: Float[Tensor, "batch features"]) -> Float[Tensor, "batch shared"]:
        """What the text tower made of captions → vectors of length 1, in the same space."""
        return F.normalize(self.text_out(read), dim=-1)

    def slot_logits(self, cls: Float[Tensor, "batch vision_dim"]) -> Float[Tensor, "batch things choices"]:
        """CLS → (batch, 3, 13 + 9 + 3 + 6)."""
        return by_thing(self.slots(cls))

    def look(
        self, img: Float[Tensor, "batch channels height width"], few: bool = False
    ) -> tuple[Float[Tensor, "batch 1 vision_dim"], Float[Tensor, "batch patches vision_dim"], Int[Tensor, "batch _"]]:
        """CLS, patches, and which patches these are: all, or a `few`, those where something is to be seen."""
        vision = self.vision
        tokens = vision.add_positions(vision.add_cls(patches := vision.flatten(vision.patchify(img))))
        number = patches.shape[1]
        if few:
            odd = (patches - patches.median(dim=1, keepdim=True).values).norm(dim=-1)
            kept = odd.topk(number // 3, dim=1).indices
            index = torch.cat([torch.zeros_like(kept[:, :1]), kept + 1], dim=1)[..., None]
            tokens = tokens.gather(1, index.expand(-1, -1, tokens.shape[-1]))
        else:
            kept = torch.arange(number, device=img.device).expand(len(img), -1)
        tokens = vision.encode(tokens)
        return tokens[:, :1], tokens[:, 1:], kept

    def losses(self, batch: Pictures) -> dict[str, Float[Tensor, ""]]:
        """Each objective, where the batch has what it needs.

        In training a quarter of the pictures show all patches, so that the ground is known too, the others a few of
        them, which takes a third of the time.
        """
        whole = -(-len(batch.pixels) // 4) if self.training else len(batch.pixels)
        parts = [(slice(whole), *self.look(batch.pixels[:whole]))]
        if whole < len(batch.pixels):
            parts.append((slice(whole, None), *self.look(batch.pixels[whole:], few=True)))
        cls = torch.cat([each for _, each, _, _ in parts])
        read = self.text(batch.caption, batch.lengths)
        logits = self.log_scale.exp().clamp(max=100.0) * self.pictures(cls) @ self.captions(read).T
        same = (batch.caption[:, None] == batch.caption[None]).all(-1)
        losses = {"captions": info_nce(logits, same)}
        if batch.slots is not None and batch.shown is not None:
            losses["slots"] = fields_loss(self.slot_logits(cls[:, 0]), batch.slots)
            said, due, shown = [], [], []
            for rows, _, patches, kept in parts:
                shows = batch.shown[rows].gather(1, kept)
                said.append(self.patch_slot(patches).flatten(0, 1))
                due.append(due_of_patches(batch.slots[rows], shows).flatten(0, 1))
                shown.append(shows.flatten())
            losses["patches"] = patches_loss(torch.cat(said), torch.cat(due), torch.cat(shown))
            losses["words"] = fields_loss(by_thing(self.text_slots(read)), batch.slots)
        return losses

    def forward(self, batch: Pictures) -> tuple[Float[Tensor, ""], dict[str, Any]]:
        """The sum of the objectives."""
        losses = self.losses(batch)
        return sum(losses.values()), {name: loss.detach() for name, loss in losses.items()}  # type: ignore[return-value]

    def validate(self) -> dict[str, float]:
        """Held-out pictures. `loss` is that of the slots, since they are what the Thinker will be asked about."""
        if self.validation is None:
            return {}
        parts: dict[str, list[float]] = {}
        for batch in self.validation():
            losses = self.losses(to_device(batch, self.log_scale.device))
            for name, loss in losses.items():
                parts.setdefault(name, []).append(float(loss))
        means = {name: sum(values) / len(values) for name, values in parts.items()}
        return {"loss": means.get("slots", means["captions"]), **means}


# ---- the job --------------------------------------------------------------------------------------------------------


def in_batches(dataset: Dataset[Any], encode: Encode, size: int = 32) -> Iterator[Pictures]:
    """All of it, in order."""
    for start in range(0, len(dataset), size):  # type: ignore[arg-type]
        yield collate([dataset[i] for i in range(start, min(start + size, len(dataset)))], encode)  # type: ignore[arg-type]


def job(place: Place, text: nn.Module | None = None) -> Job:
    """Scenes of the world with their swaps, or captioned pictures of one's own, of which every twentieth is held out.

    `text` reads the captions: a TextTower, or ThinkerTower(thinker).
    """
    settings, encode = place.settings(SETTINGS), place.tokenizer().encode
    train: Dataset[Any]
    held_out: Dataset[Any]
    if place.data is None:
        train = WithSwap(Scenes(size=SCENES[place.preset], speech=False, easy=EASY))
        held_out = Scenes("validation", HELD_OUT_PICTURES[place.preset], speech=False, easy=EASY)
    else:
        rows = place.own("caption", "question")
        train = Subset(rows, [i for i in range(len(rows)) if i % 20 or len(rows) < 40])
        held_out = Subset(rows, range(0, len(rows), 20))
    stage = VisionStage(text, functools.partial(in_batches, held_out, encode))
    return Job(stage, train, functools.partial(collate, encode=encode), settings)
