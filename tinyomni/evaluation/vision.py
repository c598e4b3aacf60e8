"""How good is the image encoder? Image-text retrieval, and what its CLS token says of each thing."""

import torch

from tinyomni.data import world
from tinyomni.data.datasets import Sample, Scenes
from tinyomni.metrics import Rate, accuracy
from tinyomni.tokenizer import BPETokenizer
from tinyomni.training.distributed import to_device
from tinyomni.training.stages.vision import CHOICES, FIELDS, VisionStage, collate, in_batches


@torch.no_grad()
def image_text_retrieval(
    stage: VisionStage, split: str = "test", groups: int = 8, among: int = 64, swaps: bool = True, blank: bool = False
) -> dict[str, Rate]:
    """Recall@1 among 64, `image → text` and `text → image`. Chance is 1 in 64.

    With `swaps`, each scene brings along all that differ from it by one swap: a group is some twenty scenes and their
    hard negatives, no two of them the same. `blank` shows grey images instead: the baseline.
    """
    scenes, encode, index = Scenes(split, 100_000, speech=False), BPETokenizer().encode, 0
    correct: dict[str, list[bool]] = {"image → text": [], "text → image": []}
    for _ in range(groups):
        group: dict[str, Sample] = {}
        while len(group) < among:
            for sample in scenes.with_negatives(index) if swaps else [scenes[index]]:
                group.setdefault(world.scene_key(sample.things), sample)
            index += 1
        batch = to_device(collate(list(group.values())[:among], encode), stage.log_scale.device)
        shown = torch.full_like(batch.pixels, 0.5) if blank else batch.pixels
        images = torch.cat([stage.embed_images(stage.vision(part)) for part in shown.split(32)])
        scores = images @ stage.embed_captions(stage.text(batch.caption, batch.lengths)).T
        own = torch.arange(among, device=scores.device)
        correct["image → text"] += (scores.argmax(dim=1) == own).tolist()
        correct["text → image"] += (scores.argmax(dim=0) == own).tolist()
    return {direction: accuracy(found) for direction, found in correct.items()}


@torch.no_grad()
def slot_accuracy(stage: VisionStage, split: str = "test", scenes: int = 256, blank: bool = False) -> dict[str, Rate]:
    """What the slots read from the CLS token: each field of the things that are there, and whole scenes, `scene`.

    `blank` is the baseline, as above.
    """
    correct: dict[str, list[bool]] = {name: [] for name in (*FIELDS, "scene")}
    for batch in in_batches(Scenes(split, scenes, speech=False), BPETokenizer().encode):
        batch = to_device(batch, stage.log_scale.device)
        shown = torch.full_like(batch.pixels, 0.5) if blank else batch.pixels
        logits = stage.slot_logits(stage.vision(shown)[:, 0]).split(CHOICES, dim=-1)
        good = torch.stack([each.argmax(dim=-1) for each in logits], dim=-1) == batch.slots
        there = batch.slots[..., 0] > 0
        for number, field in enumerate(FIELDS):
            correct[field] += good[there][:, number].tolist()
        correct["scene"] += good.flatten(1).all(dim=1).tolist()
    return {name: accuracy(found) for name, found in correct.items()}
