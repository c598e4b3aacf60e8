"""Stage vision: its objectives beside slow loops, the labels of a scene, a whole small run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tinyomni.data import world
from tinyomni.data.datasets import Scenes, pixels
from tinyomni.data.manifests import ManifestError
from tinyomni.data.rendering import render
from tinyomni.data.world import Thing
from tinyomni.errors import InputError
from tinyomni.tokenizer import BPETokenizer
from tinyomni.training.recipe import RunDir
from tinyomni.training.stages import vision
from tinyomni.training.stages.vision import (
    CHOICES,
    NOTHING,
    UNCLEAR,
    ImageBatch,
    ScenesWithSwaps,
    TextTower,
    VisionStage,
    collate,
    info_nce,
    patch_labels,
    patches_loss,
    shown_by_patches,
    slots_of,
)
from tinyomni.training.train import prepare

ENCODE = BPETokenizer().encode
SCENE = [Thing("big", "red", "circle", "on the left"), Thing("small", "cyan", "ring", "in the middle")]


def some(n: int = 3, split: str = "train") -> ImageBatch:
    """A batch of scenes with their swaps."""
    data = ScenesWithSwaps(Scenes(split, 50, speech=False))
    return collate([data[i] for i in range(n)], ENCODE)


# ---- objectives -----------------------------------------------------------------------------------------------------


def test_info_nce_is_a_slow_loop() -> None:
    logits = torch.randn(5, 5)
    same = torch.eye(5, dtype=torch.bool)
    same[1, 3] = same[3, 1] = True
    total = 0.0
    for i in range(5):
        others = [j for j in range(5) if j == i or not same[i, j]]
        row = sum(float(logits[i, j].exp()) for j in others)
        column = sum(float(logits[j, i].exp()) for j in others)
        total -= float((logits[i, i].exp() / row).log() + (logits[i, i].exp() / column).log()) / 10
    assert float(info_nce(logits, same)) == pytest.approx(total, abs=1e-5)
    assert float(info_nce(logits)) > float(info_nce(logits, same))  # fewer to be mistaken for


def test_info_nce_prefers_the_right_pairs() -> None:
    assert float(info_nce(50 * torch.eye(4))) < 1e-6
    assert float(info_nce(50 * torch.eye(4).flip(0))) > 10


def test_slots_say_what_is_there_in_the_order_of_the_places() -> None:
    slots = slots_of(SCENE)
    assert slots.tolist() == [[1, 1, 1, 1], [12, 8, 2, 5], [0, 0, 0, 0]]
    assert torch.equal(slots_of(SCENE[::-1]), slots)  # the order of the words does not matter


def test_patches_know_what_they_show() -> None:
    shown = shown_by_patches(SCENE).view(14, 14)
    left, middle = 0, 1  # the first thing and the second
    # a patch is 16 pixels: the left thing is drawn around pixel 45 of row 112, the middle one around 112
    assert (shown[6:8, 2:4] == left).all() and (shown[6:8, 6:8] == middle).all()
    assert (shown == left).sum() > (shown == middle).sum()  # it is big
    assert (shown[:3] == NOTHING).all() and (shown[:, 11:] == NOTHING).all()
    assert shown[7, 5] == UNCLEAR
    assert torch.equal(shown_by_patches(SCENE[::-1]), shown.flatten())


def test_what_patches_show_is_where_the_images_differ() -> None:
    """Against the images themselves: a patch that shows a thing differs from the same patch of another scene."""
    scenes = Scenes("train", 20, speech=False, hard=False)
    for index in range(4):
        with_things = scenes[index]
        batch, empty = collate([with_things], ENCODE), pixels(render([], hard=False))
        different = (batch.pixels[0] - empty).abs().amax(0).unfold(0, 16, 16).unfold(1, 16, 16).amax((2, 3)).flatten()
        assert batch.shown is not None
        assert (different[batch.shown[0] >= 0] > 0.05).all()
        assert (different[batch.shown[0] == NOTHING] < 0.05).all()


def test_patches_loss_is_a_slow_loop() -> None:
    slots, shown = torch.stack([slots_of(SCENE)] * 2), torch.tensor([[0, 1, NOTHING, UNCLEAR], [NOTHING, 0, 0, 1]])
    logits = torch.randn(2, 4, sum(CHOICES))
    costs: dict[bool, list[float]] = {True: [], False: []}
    for b in range(2):
        for n in range(4):
            if shown[b, n] == UNCLEAR:
                continue
            labels = slots[b, shown[b, n]].tolist() if shown[b, n] != NOTHING else [0, 0, 0, 0]
            parts = logits[b, n].split(CHOICES)
            costs[labels[0] > 0].append(-sum(float(p.log_softmax(0)[d]) for p, d in zip(parts, labels, strict=True)))
    want = sum(sum(each) / len(each) for each in costs.values())
    assert float(patches_loss(logits, patch_labels(slots, shown), shown)) == pytest.approx(want, abs=1e-4)


# ---- data -----------------------------------------------------------------------------------------------------------


def test_a_scene_comes_with_one_that_differs_by_a_swap_and_stays_in_training() -> None:
    data = ScenesWithSwaps(Scenes("train", 30, speech=False))
    pairs = [data[i] for i in range(30)]
    assert any(len(pair) == 2 for pair in pairs)
    for pair in pairs:
        for sample in pair:
            assert world.split_of_scene(list(sample.things)) == "train"
        if len(pair) == 2:
            one, other = (list(sample.things) for sample in pair)
            assert world.scene_key(other) in {world.scene_key(each) for each in world.hard_negatives(one)}


def test_custom_rows_have_captions_and_no_slots(tmp_path: Path) -> None:
    for i in range(5):
        Scenes("train", 5, speech=False)[i].image.save(tmp_path / f"{i}.png")
    (tmp_path / "own.csv").write_text("image,caption\n" + "".join(f"{i}.png,Picture {i}.\n" for i in range(5)))
    (tmp_path / "asked.csv").write_text("image,question,answer\n0.png,How many?,Two.\n1.png,Where?,Left.\n")
    (tmp_path / "words.txt").write_text("No images here.\n")
    job = prepare("vision", RunDir(tmp_path / "runs", "smoke", tmp_path / "own.csv"))
    batch = job.collate([job.train[i] for i in range(4)])
    assert batch.slots is None and batch.pixels.shape == (4, 3, 224, 224)
    loss, metrics = job.stage(batch)
    assert set(metrics) == {"contrastive"} and loss.isfinite()
    with torch.no_grad():
        assert job.stage.validate()["loss"] >= 0
    asked = prepare("vision", RunDir(tmp_path / "runs", "smoke", tmp_path / "asked.csv")).train
    assert len(asked) == 1 and vision.caption_of(asked[0]) in ("How many? Two.", "Where? Left.")
    with pytest.raises(ManifestError, match="this stage needs caption or question"):
        prepare("vision", RunDir(tmp_path / "runs", "smoke", tmp_path / "words.txt"))


# ---- the text tower -------------------------------------------------------------------------------------------------


def test_padding_of_a_caption_changes_nothing_and_the_order_of_words_matters() -> None:
    tower = TextTower().eval()
    for parameter in tower.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    ids, lengths = torch.randint(4, 900, (2, 9)), torch.tensor([9, 6])
    short = tower(ids[1:, :6], lengths[1:])
    torch.testing.assert_close(tower(ids, lengths)[1:], short, atol=1e-4, rtol=1e-4)
    turned = torch.cat([ids[1:, :5].flip(1), ids[1:, 5:6]], dim=1)
    assert not torch.allclose(tower(turned, lengths[1:]), short, atol=1e-2)


def test_a_caption_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="a caption can have 128 tokens at most, got 129"):
        TextTower()(torch.ones(1, 129, dtype=torch.long), torch.tensor([129]))


# ---- the stage ------------------------------------------------------------------------------------------------------


def test_the_salient_patches_are_those_with_something() -> None:
    stage, batch = VisionStage(), some(2)
    _, patches, kept = stage.encode_image(batch.pixels, salient=True)
    assert patches.shape[1] == kept.shape[1] == 65
    assert batch.shown is not None
    seen = batch.shown.gather(1, kept)
    assert (seen >= 0).sum() > 0.8 * (batch.shown >= 0).sum()
    cls, patches, kept = stage.encode_image(batch.pixels)
    whole = stage.vision.forward_features(batch.pixels)
    assert torch.equal(cls, whole[0]) and torch.equal(patches, whole[1]) and kept.shape == (len(cls), 196)


def test_in_training_a_quarter_of_the_images_show_all_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    stage, batch = VisionStage(), some(5)
    encode_image, encoded = stage.encode_image, []

    def counted(img: Tensor, salient: bool = False) -> Any:
        encoded.append((len(img), salient))
        return encode_image(img, salient)

    monkeypatch.setattr(stage, "encode_image", counted)
    with torch.no_grad():
        whole, part = stage.eval().losses(batch), stage.train().losses(batch)
    images = len(batch.pixels)
    quarter = -(-images // 4)
    assert encoded == [(images, False), (quarter, False), (images - quarter, True)]
    # the same images and the same text tower: fewer patches change what is said about images only
    assert torch.equal(whole["caption_slots"], part["caption_slots"])
    assert float(abs(whole["slots"] - part["slots"])) < 1.0 and not torch.equal(whole["slots"], part["slots"])


def test_of_wide_images_the_patches_of_things_are_encoded_and_every_fourth_caption_is_read() -> None:
    data = ScenesWithSwaps(Scenes("train", 60, speech=False, style="wide"))
    samples = [data[index] for index in range(40)]
    unclear = [sample for item in samples for sample in item if sample.unclear]
    assert 0 < len(unclear) < 20 and all(len(item) < 3 for item in samples)
    batch, stage = collate(samples, ENCODE), VisionStage(style="wide").train()
    assert batch.slots is not None and batch.shown is not None and batch.kinds is not None
    _, patches, kept = stage.encode_image(batch.pixels[:8], True, batch.shown[:8])
    assert patches.shape[1] == 48 and torch.equal(kept.sort(dim=1).values.unique_consecutive(dim=1), kept.sort().values)
    seen = batch.shown[:8].gather(1, kept)
    assert (seen != NOTHING).sum() == (batch.shown[:8] != NOTHING).sum()
    assert int((batch.kinds > 0).sum()) == len(unclear)
    flat = [sample for item in samples for sample in item]
    for sample, slots in zip(flat, batch.slots, strict=True):
        # of an empty image the slots say so; of too much nothing is asked; a foreign shape has a colour and no name
        colours, shapes = slots[:, 0], slots[:, 1]
        if sample.unclear in ("too many", "overlapping"):
            assert (slots == vision.IGNORE).all()
        else:
            assert int((colours > 0).sum()) == len(sample.things)
            assert int((shapes > 0).sum()) == len(sample.things) - (sample.unclear == "foreign")
    assert any(sample.unclear == "foreign" for sample in flat)
    losses = stage.losses(batch)
    assert set(losses) == {"contrastive", "slots", "patches", "caption_slots", "kind"}
    assert all(bool(torch.isfinite(loss)) for loss in losses.values())
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(each.grad is not None for each in stage.parameters())


def test_captions_of_foreign_shapes_are_not_asked_for_what_they_do_not_tell() -> None:
    """Nothing is asked of such a batch of captions: then the loss is 0, not NaN."""
    scenes = Scenes("train", 60, speech=False, style="wide")
    foreign = [each for each in map(scenes.unclear, range(60)) if each.unclear == "foreign"][:4]
    losses = VisionStage(style="wide").train().losses(collate(foreign, ENCODE))
    assert losses["caption_slots"] == 0 and losses["slots"] > 0 and losses["patches"] > 0
    assert all(bool(torch.isfinite(loss)) for loss in losses.values())


def test_a_wide_run_shows_each_image_once_in_order(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path, "smoke")
    job = prepare("vision", run_dir, {"style": "wide", "steps": "2", "validation_scenes": "4"})
    assert job.in_order and len(job.train) == 8 and job.train.scenes.ramp == 1  # type: ignore[attr-defined]
    assert set(job.run(run_dir).validation) == {"loss", "contrastive", "slots", "patches", "caption_slots", "kind"}
    with pytest.raises(InputError, match="style must be 'plain' or 'wide', got 'x'"):
        prepare("vision", run_dir, {"style": "x"})
    with pytest.raises(InputError, match="unmasked must be at least 0, got -1"):
        prepare("vision", run_dir, {"unmasked": "-1"})
    assert {name: spec.style for name, spec in vision.PRESETS.items()} == {
        "smoke": "plain", "laptop": "wide", "quick": "plain", "gpu": "wide", "shipped": "wide"}  # fmt: skip


def test_the_last_steps_of_a_wide_run_encode_all_patches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = prepare("vision", RunDir(tmp_path, "smoke"), {"style": "wide", "steps": "3", "unmasked": "1"})
    encoded: list[bool] = []
    encode_image = VisionStage.encode_image
    monkeypatch.setattr(
        VisionStage, "encode_image", lambda self, img, *few: encoded.append(bool(few)) or encode_image(self, img, *few)
    )
    for step in range(3):
        batch = job.collate([job.train[index] for index in range(4 * step, 4 * step + 4)])
        encoded.clear()
        with torch.no_grad():
            job.stage.train().losses(batch)
        assert batch.unmasked is (step == 2) and encoded == ([False] if step == 2 else [False, True])


def test_every_patch_is_asked_about_its_own_image() -> None:
    """One image after the other, patch by patch, beside what the batch in its two parts gives."""
    stage, batch = VisionStage().train(), some(3)
    assert batch.slots is not None and batch.shown is not None
    quarter = -(-len(batch.pixels) // 4)
    costs: dict[bool, list[float]] = {True: [], False: []}
    with torch.no_grad():
        found = float(stage.losses(batch)["patches"])
        for row in range(len(batch.pixels)):
            _, patches, kept = stage.encode_image(batch.pixels[row : row + 1], salient=row >= quarter)
            for logits, patch in zip(stage.patch_slot(patches[0]), kept[0].tolist(), strict=True):
                if (thing := int(batch.shown[row, patch])) != UNCLEAR:
                    labels = batch.slots[row, thing].tolist() if thing != NOTHING else [0] * 4
                    parts = zip(logits.split(CHOICES), labels, strict=True)
                    costs[thing != NOTHING].append(-sum(float(each.log_softmax(0)[d]) for each, d in parts))
    assert found == pytest.approx(sum(sum(each) / len(each) for each in costs.values()), abs=1e-4)


def test_a_few_scenes_are_memorized() -> None:
    scenes = Scenes("train", 3, speech=False)
    batch = collate([scenes[i] for i in range(3)], ENCODE)
    stage = VisionStage().eval()  # all patches
    optimizer = torch.optim.AdamW(stage.parameters(), lr=2e-3)
    first = {name: float(loss.detach()) for name, loss in stage.losses(batch).items()}
    stage.losses(batch)["contrastive"].backward()
    for part in (stage.vision.proj, stage.text.tok_emb, stage.picture_out, stage.text_out):
        assert part.weight.grad is not None and part.weight.grad.abs().sum() > 0
    stage.zero_grad()
    stage.losses(batch)["caption_slots"].backward()  # read off the caption, not the image
    assert stage.text.tok_emb.weight.grad.abs().sum() > 0
    assert all(each.grad is None or not each.grad.any() for each in stage.vision.parameters())
    for _ in range(15):
        loss, last = stage(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(float(last[name]) < 0.5 * first[name] for name in ("slots", "patches", "caption_slots")), (first, last)


def test_a_smoke_run_trains_and_its_weights_are_restored(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path, "smoke")
    job = prepare("vision", run_dir)
    assert job.train.scenes.easy == vision.EASY  # type: ignore[attr-defined]
    result = job.run(run_dir)
    assert result.steps == 4 and set(result.validation) == {"loss", "contrastive", "slots", "patches", "caption_slots"}
    assert result.validation["loss"] == result.validation["slots"]
    lines = [json.loads(line) for line in (tmp_path / "vision" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
    again = run_dir.trained(VisionStage())
    assert not again.training
    for name, weight in job.stage.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name
    assert any(name.startswith("text.") for name in again.state_dict())  # the text tower is saved too
