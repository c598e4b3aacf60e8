"""How good is the image encoder? Image-text retrieval, and what its CLS token says of each thing."""

import torch

from tinyomni.data import world
from tinyomni.data.datasets import Sample, Scenes
from tinyomni.metrics import Rate, share
from tinyomni.tokenizer import BPETokenizer
from tinyomni.training.distributed import to_device
from tinyomni.training.stages.vision import CHOICES, FIELDS, VisionStage, collate, in_batches


@torch.no_grad()
def image_text_retrieval(
    stage: VisionStage, split: str = "test", groups: int = 8, among: int = 64, swaps: bool = True, blank: bool = False
) -> dict[str, Rate]:
    """Recall@1: how often a picture finds its caption among 64, and a caption its picture. Chance is 1 in 64.

    With `swaps`, each scene brings along all that differ from it by one swap: a group is some twenty scenes and their
    like, no two of them the same. `blank` shows grey instead of the pictures: the control.
    """
    scenes, encode, index = Scenes(split, 100_000, speech=False), BPETokenizer().encode, 0
    right: dict[str, list[bool]] = {"picture → caption": [], "caption → picture": []}
    for _ in range(groups):
        group: dict[str, Sample] = {}
        while len(group) < among:
            for sample in scenes.with_negatives(index) if swaps else [scenes[index]]:
                group.setdefault(world.key(list(sample.things)), sample)
            index += 1
        batch = to_device(collate(list(group.values())[:among], encode), stage.log_scale.device)
        shown = torch.full_like(batch.pixels, 0.5) if blank else batch.pixels
        pictures = torch.cat([stage.pictures(stage.vision(part)) for part in shown.split(32)])
        scores = pictures @ stage.captions(stage.text(batch.caption, batch.lengths)).T
        own = torch.arange(among, device=scores.device)
        right["picture → caption"] += (scores.argmax(dim=1) == own).tolist()
        right["caption → picture"] += (scores.argmax(dim=0) == own).tolist()
    return {way: share(found) for way, found in right.items()}


@torch.no_grad()
def slot_accuracy(stage: VisionStage, split: str = "test", scenes: int = 256, blank: bool = False) -> dict[str, Rate]:
    """What is read off the CLS: each field of the things that are there, and whole scenes without a fault.

    `blank` is the control, as above.
    """
    right: dict[str, list[bool]] = {name: [] for name in (*FIELDS, "scene")}
    for batch in in_batches(Scenes(split, scenes, speech=False), BPETokenizer().encode):
        batch = to_device(batch, stage.log_scale.device)
        shown = torch.full_like(batch.pixels, 0.5) if blank else batch.pixels
        logits = stage.slot_logits(stage.vision(shown)[:, 0]).split(CHOICES, dim=-1)
        good = torch.stack([each.argmax(dim=-1) for each in logits], dim=-1) == batch.slots
        there = batch.slots[..., 0] > 0
        for number, field in enumerate(FIELDS):
            right[field] += good[there][:, number].tolist()
        right["scene"] += good.flatten(1).all(dim=1).tolist()
    return {name: share(found) for name, found in right.items()}
