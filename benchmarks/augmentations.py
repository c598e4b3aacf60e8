"""What each augmentation of the image encoder is worth: train without it, and look at another renderer's drawings.

    python benchmarks/augmentations.py                          all runs, on one thread: 20 minutes of processor time
    python benchmarks/augmentations.py --only none all --seeds 1

A small image encoder learns one thing a scene, of twelve colours and four shapes, from images of
`tinyomni.data.randomization`: with none of its families of variation, with all, with all but one. Then it reads the
colour, shape, size and place of things off drawings of `tinyomni.evaluation.independent_renderer`, which no training
has. The result goes to tinyomni/assets/augmentations.json after every run, and what is there is not run again; lesson
14 and docs/studies.md show it.
"""

import argparse
import itertools
import json
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tinyomni.config import VisionConfig
from tinyomni.data.randomization import NOTHING, WIDE, Randomization, render
from tinyomni.data.world import COLOURS, PLACES, SIZES, Thing
from tinyomni.evaluation.independent_renderer import LOOKS, draw
from tinyomni.lessons.augmentations import CONCERNED, MEASURED, other_looks, share
from tinyomni.training.optim import Muon, learning_rate
from tinyomni.training.settings import MUON, Settings
from tinyomni.training.stages.vision import CHOICES, FIELDS, fields_loss, patches_loss, slots_of
from tinyomni.vision import ViTTiny

FAMILIES: dict[str, tuple[str, ...]] = {
    "place": ("shift", "image_shift"),
    "size": ("size", "image_scale"),
    "rotation": ("rotation",),
    "colour": ("colour", "light"),
    "background": ("background", "gradient", "texture"),
    "outline": ("outline", "thick", "hollow"),
    "hand": ("hand_drawn", "scribble", "pixel_edges"),
    "file": ("blur", "low_resolution", "noise", "jpeg"),
}
"""Every field of `Randomization`, by what it varies."""
CONDITIONS = ("none", "all", *(f"all but {name}" for name in FAMILIES))
SHAPES = ("circle", "square", "heart", "cross")
SCENES = [Thing(*values) for values in itertools.product(SIZES, COLOURS, SHAPES, PLACES)]
SMALL = VisionConfig(image_size=112, patch=16, vision_dim=64, heads=2, layers=2, intermediate_size=256)


def families_of(condition: str) -> Randomization:
    """`none`, `all` or `all but NAME` as the renderer takes it."""
    left_out = [name for name in FAMILIES if condition in ("none", f"all but {name}")]
    return replace(WIDE, **{field: 0.0 for name in left_out for field in FAMILIES[name]})


class SmallImageEncoder(nn.Module):
    """A ViT for images of 112 × 112, and what each CLS token and each patch shows.

    Four convolutions of 3 × 3 stand in for the one of 16 × 16: with that one, no shape was told from another after as
    many images (Xiao et al., Early Convolutions Help Transformers See Better, 2021, arXiv:2106.14881).
    """

    def __init__(self) -> None:
        super().__init__()
        self.vision = ViTTiny(SMALL)
        layers: list[nn.Module] = []
        for before, after in pairwise((3, 16, 32, 64, 64)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(4, after), nn.GELU()]
        self.vision.proj = nn.Sequential(*layers, nn.Conv2d(64, SMALL.vision_dim, 1))  # type: ignore[assignment]
        self.thing, self.patch = (nn.Linear(SMALL.vision_dim, sum(CHOICES)) for _ in range(2))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, 3, 112, 112) bytes → logits of the thing (batch, 31), and of each patch (batch, 49, 31)."""
        cls, patches = self.vision.forward_features(images / 255)
        return self.thing(cls[:, 0]), self.patch(patches)


def halved(image: Image.Image) -> np.ndarray:
    """(3, 112, 112) bytes."""
    return np.asarray(image.reduce(2)).transpose(2, 0, 1)


def training_set(how: Randomization, size: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, the four numbers of each one's thing, and which of its 49 patches show it. The same scenes for each
    `how`. The first half goes from plain to wild.
    """
    rng, images, labels, shown = random.Random(seed), [], [], []
    for number in range(size):
        thing = rng.choice(SCENES)
        image, patches, _ = render([thing], rng.randrange(2**32), how.scaled(min(1.0, 2 * number / size)))
        blocks = patches.reshape(7, 2, 7, 2)
        thing_there, least = blocks.max(axis=(1, 3)) > NOTHING, blocks.min(axis=(1, 3))
        images.append(halved(image))
        labels.append(slots_of([thing])[0])
        shown.append(np.where(thing_there, 0, least).flatten())
    return torch.from_numpy(np.stack(images)), torch.stack(labels), torch.from_numpy(np.stack(shown))


def batches(size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Numbers of 32 samples each: of the first, plain ones only, then of more and more, from the middle on of all."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        yield torch.randint(max(32, min(size, 2 * size * step // steps)), (32,), generator=generator)


def train(how: Randomization, size: int, epochs: int, seed: int) -> SmallImageEncoder:
    """An encoder that has seen each of `size` images `epochs` times, on average."""
    images, labels, shown = training_set(how, size, seed)
    torch.manual_seed(seed)
    settings = Settings(steps=size * epochs // 32, lr=2e-3, warmup=20, **MUON)
    encoder = SmallImageEncoder()
    optimizer = Muon(encoder, settings)
    for step, chosen in enumerate(batches(size, settings.steps, seed)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        thing, patches = encoder(images[chosen])
        there = labels[chosen][:, None]
        loss = fields_loss(thing[:, None], there)
        loss = loss + patches_loss(patches, there.expand(-1, patches.shape[1], -1), shown[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return encoder.eval()


def drawings(look: str, n: int) -> tuple[Tensor, Tensor]:
    """Scenes as the independent renderer draws them, with the four numbers of each."""
    chosen = random.Random(f"augmentations {look}").sample(SCENES, n)
    images = [halved(draw([thing], look, number)) for number, thing in enumerate(chosen)]
    return torch.from_numpy(np.stack(images)), torch.stack([slots_of([thing])[0] for thing in chosen])


@torch.no_grad()
def right(encoder: SmallImageEncoder, images: Tensor, labels: Tensor) -> dict[str, int]:
    """How many of each field, and of whole scenes, are read off without a fault."""
    parts = encoder(images)[0].split(CHOICES, dim=-1)
    found = torch.stack([1 + part[:, 1:].argmax(dim=-1) for part in parts], dim=-1) == labels
    return {**dict(zip(FIELDS, found.sum(dim=0).tolist(), strict=True)), "scene": int(found.all(dim=-1).sum())}


# ---- what it gives --------------------------------------------------------------------------------------------------


def cell(runs: Sequence[int]) -> str:
    """The runs' mean, and the range of several."""
    spread = f" ({min(runs)}…{max(runs)})" if len(runs) > 1 else ""
    return f"{statistics.mean(runs):.0f}{spread}" if runs else "–"


def table(result: dict[str, Any]) -> str:
    """All looks, with none and all families; then for each family its own looks and the others, without and with it."""
    lines = ["| trained with | scenes right (%) | colours | shapes | sizes | places |", "|---|---|---|---|---|---|"]
    for condition in ("none", "all"):
        cells = [cell(share(result, condition, field=field)) for field in ("scene", *FIELDS)]
        lines.append(f"| {condition} | {' | '.join(cells)} |")
    heads = ("its looks: none", "all but it", "all", "other looks: all but it", "all")
    lines += ["", f"| family | {' | '.join(heads)} |", "|---|---|---|---|---|---|"]
    for name in FAMILIES:
        cells = [cell(share(result, condition, CONCERNED[name])) for condition in ("none", f"all but {name}", "all")]
        cells += [cell(share(result, condition, other_looks(name))) for condition in (f"all but {name}", "all")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CONDITIONS, default=list(CONDITIONS), metavar="CONDITION")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--images", type=int, default=3000, help="that each encoder is trained on")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--n", type=int, default=100, help="drawings of each look")
    parser.add_argument("--out", type=Path, default=MEASURED, metavar="FILE")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    settings = {"images": args.images, "epochs": args.epochs, "n": args.n}
    result: dict[str, Any] = {**settings, "runs": []}
    if args.out.is_file():
        found = json.loads(args.out.read_text(encoding="utf-8"))
        if {name: found[name] for name in settings} == settings:
            result = found
    done = {(run["condition"], run["seed"]) for run in result["runs"]}
    missing = [key for key in itertools.product(args.only, range(args.seeds)) if key not in done]
    missing.sort(key=lambda key: key[1])
    tests = {look: drawings(look, args.n) for look in LOOKS} if missing else {}
    for condition, seed in missing:
        start = time.process_time()
        encoder = train(families_of(condition), args.images, args.epochs, seed)
        counts = {look: right(encoder, *tests[look]) for look in LOOKS}
        took = round(time.process_time() - start)
        result["runs"].append({"condition": condition, "seed": seed, "seconds": took, "right": counts})
        args.out.write_text(json.dumps(result) + "\n", encoding="utf-8")
        print(f"{condition:20} seed {seed} {took:4} s", flush=True)
    print(table(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
