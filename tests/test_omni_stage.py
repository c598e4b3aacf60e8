"""The omni stage: sequences as Omni makes them, loss on the answer only, frozen encoders, a small run, measures."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tinyomni.data import retrieval, unanswerable, world
from tinyomni.data.datasets import Scenes, Speech, pixels
from tinyomni.data.manifests import ManifestError
from tinyomni.data.rendering import picture
from tinyomni.omni import Omni, take_apart
from tinyomni.tokenizer import BOS, EOS, BPETokenizer
from tinyomni.training import recipe
from tinyomni.training.recipe import Place, train
from tinyomni.training.stages import audio, omni, thinker, vision
from tinyomni.training.stages.omni import (
    IGNORE,
    Mix,
    OmniStage,
    Row,
    collate,
)

TOKENIZER = BPETokenizer()


def louder(model: nn.Module) -> nn.Module:
    """Weights large enough that a mistake shows."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    return model


def row(prompt: str, answer: str, **senses: torch.Tensor) -> Row:
    return Row([BOS, *TOKENIZER.encode(prompt)], [*TOKENIZER.encode(answer), EOS], **senses)


@pytest.fixture
def stage() -> OmniStage:
    return louder(OmniStage()).eval()  # type: ignore[return-value]


@pytest.fixture
def rows() -> list[Row]:
    """One of each kind, as features: of different lengths."""
    return [
        row("What colour is the circle?", "Red.", picture=torch.randn(1, 128)),
        row("", "How many rings are there? Two.", picture=torch.randn(1, 128), sound=torch.randn(9, 192)),
        row("", "grey one heart", sound=torch.randn(23, 192)),
        row("", "Good morning."),
    ]


# ---- sequences ------------------------------------------------------------------------------------------------------


def test_a_sequence_is_what_omni_embeds(stage: OmniStage) -> None:
    whole = Omni()
    weights = {name: tensor for name, tensor in stage.state_dict().items() if name in whole.state_dict()}
    assert len(weights) == len(stage.state_dict())  # the names are Omni's
    whole.load_state_dict(weights, strict=False)
    image, wave = pixels(picture([], 3)), torch.randn(9000) * 0.1
    asked = row("Where is the ring?", "Here.", picture=image, sound=wave)
    want = whole.embed(text=asked.prompt, image=image, audio=(wave, 16_000))
    (batch,) = collate([[asked]])
    x, targets = stage.sequences(batch)
    torch.testing.assert_close(x[:, : want.shape[1]], want, atol=1e-5, rtol=1e-5)
    assert x.shape[1] == want.shape[1] + len(asked.answer) - 1
    assert targets[0].tolist() == [IGNORE] * (want.shape[1] - 1) + asked.answer
    said = whole.generate(text=asked.prompt, image=image, audio=(wave, 16_000), max_new_tokens=8)
    assert say(stage, [asked], TOKENIZER, most=8) == [said]


@torch.no_grad()
def test_the_loss_is_a_slow_loop_over_the_answers(stage: OmniStage, rows: list[Row]) -> None:
    total, count = 0.0, 0
    for each in rows:
        parts = [stage.thinker.embed(torch.tensor([each.prompt + each.answer]))]
        if each.sound is not None:
            parts.insert(0, stage.proj_a(each.sound[None]))
        if each.picture is not None:
            parts.insert(0, stage.proj_v(each.picture[None]))
        x = torch.cat(parts, dim=1)
        log_p = stage.thinker(embeddings=x).log_softmax(-1)[0]
        for place, token in enumerate(each.answer):
            total -= float(log_p[x.shape[1] - len(each.answer) + place - 1, token])
            count += 1
    batch = collate([rows])
    assert stage.weight(batch) == count
    loss, figures = stage(batch)
    assert float(loss) == pytest.approx(total / count, rel=1e-4)
    assert set(figures) == {"read", "heard"}


def test_padding_and_company_change_nothing(stage: OmniStage, rows: list[Row]) -> None:
    with torch.no_grad():
        together = torch.cat([stage.losses(batch)[0] for batch in collate([rows])])
        alone = [torch.cat([stage.losses(batch)[0] for batch in collate([[each]])]) for each in rows]
    order = sorted(range(len(rows)), key=lambda i: (rows[i].sound is not None, rows[i].size))
    torch.testing.assert_close(together, torch.cat([alone[i] for i in order]), atol=1e-4, rtol=1e-4)


def test_rows_of_one_length_stand_together(rows: list[Row]) -> None:
    """A hundred rows of all lengths: hardly any padding, and none is lost."""
    many = [row("red " * (1 + i % 25), "Yes.", **({} if i % 3 else {"sound": torch.randn(i % 40 + 1, 192)}))
            for i in range(100)]  # fmt: skip
    groups = collate([many[:50], many[50:]])
    assert sum(len(each.ids) for each in groups) == 100 and len(groups) < 16
    for each in groups:
        sounds = 0 if each.sound_lengths is None else each.sound_lengths
        sizes = each.lengths + sounds
        assert sizes.max() <= 1.3 * sizes.min()
    assert sorted(len(r.prompt + r.answer) for r in many) == sorted(n for g in groups for n in g.lengths.tolist())


def test_nothing_of_the_prompt_is_due(stage: OmniStage) -> None:
    one, other = row("What shape is the red thing?", "A ring."), row("What shape is the big thing?", "A ring.")
    targets = [stage.sequences(collate([[each]])[0])[1][0] for each in (one, other)]
    assert torch.equal(*targets) and (targets[0] != IGNORE).sum() == len(one.answer)


def test_a_picture_that_rows_share_is_encoded_once(stage: OmniStage) -> None:
    image = pixels(picture([], 1))
    batch = collate(
        [[row("Hello?", "Yes.", picture=image), row("Why?", "No.", picture=image)], [row("Hello? How?", "Good.")]]
    )
    (rows,) = batch
    assert rows.pictures is not None
    assert rows.pictures.shape == (1, 3, 224, 224) and sorted(rows.picture_of.tolist()) == [-1, 0, 0]


def test_features_give_the_same_loss_as_pixels_and_waves(stage: OmniStage) -> None:
    raw = [row("Hello?", "Yes.", picture=pixels(picture([], 1))),
           row("", "Why? No.", picture=pixels(picture([], 2)), sound=torch.randn(7000) * 0.1),
           row("", "Good night.", sound=torch.randn(16_001) * 0.1)]  # fmt: skip
    kept = [stage.features(each) for each in raw]
    assert kept[1].picture is not None and kept[1].picture.shape == (1, 128)
    assert kept[2].sound is not None and kept[2].sound.shape == (25, 192)
    with torch.no_grad():
        torch.testing.assert_close(stage(collate([raw]))[0], stage(collate([kept]))[0], atol=1e-4, rtol=1e-4)


# ---- what is learned ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("thaw", [False, True])
def test_frozen_encoders_stay_in_eval_mode_and_unchanged(thaw: bool) -> None:
    stage = OmniStage(thaw).train()
    assert stage.thinker.training and stage.vision.training == stage.audio.training == thaw
    before = {name: tensor.clone() for name, tensor in stage.state_dict().items()}
    batch = collate([[row("Hello?", "Yes.", picture=pixels(picture([], 1))),
                      row("", "Good.", sound=torch.randn(7000) * 0.1)]])  # fmt: skip
    optimiser = torch.optim.SGD(stage.parameters(), lr=0.1)
    stage(batch)[0].backward()
    optimiser.step()
    changed = {
        name.split(".")[0] for name, tensor in stage.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == {"thinker", "proj_v", "proj_a", *(("vision", "audio") if thaw else ())}


def test_it_learns_a_few_rows_by_heart(rows: list[Row]) -> None:
    stage = OmniStage()
    batch = collate([rows])
    optimiser = torch.optim.AdamW(stage.parameters(), lr=1e-3)
    for _ in range(30):
        loss, _ = stage(batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.1
    assert torch.cat([stage.exact(each) for each in batch]).tolist() == [1.0] * 4
    assert say(stage, rows, TOKENIZER) == ["Red.", "How many rings are there? Two.", "grey one heart", "Good morning."]
    wrong = replace(rows[0], answer=[*TOKENIZER.encode("Blue."), EOS])
    assert stage.exact(collate([[wrong]])[0]).tolist() == [0.0]


# ---- data -----------------------------------------------------------------------------------------------------------


def test_every_row_of_an_item_is_true(tmp_path: Path) -> None:
    scenes, cache = Scenes("train", 12, speech=False), str(tmp_path)
    asked, speech = Scenes("train", 2, cache=cache), Speech("train", 3, cache=cache)
    data = Mix(TOKENIZER.encode, scenes, 30, asked, speech, keep=lambda each: each)

    def true_of(things: list[world.Thing]) -> set[tuple[str, str]]:
        return {pair for halves in world.askable(things).values() for half in halves for pair in half}

    def parted(each: Row, things: list[world.Thing]) -> tuple[str, str]:
        """Question and answer; between them stands what is seen and what is looked up."""
        text = f"{TOKENIZER.decode(each.prompt)} {TOKENIZER.decode(each.answer)}".strip()
        heard, seen, found, answer = take_apart(text, spoken=True)
        assert f"{seen}." == world.in_order(things)
        assert found == str(retrieval.lookup(str(heard), answer.lower())) and not each.given
        return str(heard), answer.lower()

    def in_it(wave: torch.Tensor, each: Row) -> bool:
        """Whether the sound is this one, in a room: noise is left when it is taken away where it fits best."""
        at = int(F.conv1d(each.sound[None, None], wave[None, None]).argmax())
        rest = each.sound - F.pad(wave, (at, len(each.sound) - at - len(wave)))
        return len(each.sound) > len(wave) and float(rest.std()) < 10**-2.2

    heard: list[str] = []
    for index in (0, 1, 2, 3, 21, 25):
        typed, (caption, aloud, said_again, text, odd, *many) = data[index][: omni.TYPED], data[index][omni.TYPED :]
        assert len(many) == omni.SHORT + omni.LONG
        for number, each in enumerate(typed, omni.TYPED * index):
            shown = scenes.things(number % 12)
            assert parted(each, shown) in true_of(shown) and each.sound is None
            assert torch.equal(each.picture, pixels(scenes[number % 12].picture))
        things, seen = scenes.things(omni.TYPED * index % 12), TOKENIZER.decode(caption.answer)
        places = [seen.index(place) for place in world.PLACES if place in seen]
        assert places == sorted(places) and len(places) == len(things) and caption.picture is typed[0].picture
        assert all(str(thing) in seen for thing in things) and TOKENIZER.decode(caption.prompt) in omni.DESCRIBE
        things = asked.things(index % 2)
        question, answer = parted(aloud, things)
        assert aloud.prompt == [BOS] and world.heard(question) and (question, answer) in true_of(things)
        assert in_it(asked[index % 2].question_wave, aloud)
        assert torch.equal(aloud.picture, pixels(asked[index % 2].picture))
        said, prompt = TOKENIZER.decode(said_again.answer), TOKENIZER.decode(said_again.prompt)
        utterance = speech[index % 3]
        heard.append(prompt)
        assert in_it(utterance.wave, said_again)
        both = prompt in omni.BOTH
        assert said == (f"{seen} {utterance.text}" if both else utterance.text)
        assert said_again.picture is (caption.picture if both else None) and (both or prompt in omni.REPEAT)
        assert text.picture is None and text.sound is None and text.prompt[0] == BOS and text.answer[-1] == EOS
        answer = take_apart(TOKENIZER.decode(odd.answer), spoken=False).answer
        assert answer in (unanswerable.DO_NOT_KNOW, unanswerable.SEE_NOTHING, unanswerable.HEARD_NOTHING)
    assert len(set(heard)) > 1
    first, again = ([each.prompt for each in data[index][: omni.TYPED]] for index in (0, 3))
    assert first != again and torch.equal(data[0][0].picture, data[3][0].picture)  # the same scene, other questions


def test_what_cannot_be_known_is_said_in_the_worlds_own_words() -> None:
    data = Mix(TOKENIZER.encode, Scenes("train", 40, speech=False), 40)
    said = {"question": 0, "picture": 0, "sound": 0}
    for index in range(40):
        things = data.scenes.things(omni.TYPED * index % 40)
        text, odd = data[index][omni.TYPED + 1 :][:2]
        prompt, answer = TOKENIZER.decode(odd.prompt), TOKENIZER.decode(odd.answer)
        if odd.sound is not None:
            said["sound"] += 1
            assert (prompt, answer) == ("", unanswerable.HEARD_NOTHING) and odd.picture is None
        elif odd.picture is data[index][0].picture or (odd.picture == data[index][0].picture).all():
            said["question"] += 1  # nothing that could be asked of the scene
            right = {pair[0] for halves in world.askable(things).values() for half in halves for pair in half}
            assert prompt not in right
            assert answer == omni.noted(world.in_order(things), prompt, unanswerable.DO_NOT_KNOW)
        else:
            said["picture"] += 1
            assert answer == ("I can see nothing." if prompt in omni.DESCRIBE else "I can see nothing: I do not know.")
        prompt, answer = TOKENIZER.decode(text.prompt), TOKENIZER.decode(text.answer)
        assert not prompt or omni.REPLIES.get(prompt, unanswerable.CANNOT_SEE) == answer
        assert prompt or "? " not in answer  # no guess at a picture that is not there
    assert min(said.values()) >= 3


def test_what_is_to_be_learned_of_a_list_are_its_values() -> None:
    data = Mix(TOKENIZER.encode, Scenes("train", 40, speech=False), 6, first=2)
    assert len(data[1]) == omni.FIRST < len(data[1]) + len(data[2])
    assert all(each.picture is None and each.given and len(each.prompt) < 20 for each in data[1])
    for each in [*data[1], *data.lists(random.Random(1), 2, 3)]:
        text = TOKENIZER.decode([*each.prompt, *each.answer])
        assert TOKENIZER.encode(text) == [*each.prompt[1:], *each.answer]  # the pieces are those of the whole text
        values = [word for i, word in enumerate(map(TOKENIZER.decode, ([token] for token in each.answer)))
                  if i not in each.given]  # fmt: skip
        sentences = TOKENIZER.decode(each.answer).rstrip(".").split(". ")
        assert values == [word for s in sentences for word in s.split()[3 if s.startswith("Is ") else 2 :]]
    with torch.no_grad():
        stage = OmniStage()
        (rows,) = collate([[data[0][0]]])
        assert stage.weight([rows]) == len(data[0][0].answer) - len(data[0][0].given) == len(stage.losses(rows)[0])
        _, targets = stage.sequences(rows)
        due = [id for i, id in enumerate(data[0][0].answer) if i not in data[0][0].given]
        assert targets[targets != IGNORE].tolist() == due


def test_another_seed_goes_on_where_the_items_of_the_first_end() -> None:
    scenes = Scenes("train", 40, speech=False)
    both, behind = (Mix(TOKENIZER.encode, scenes, size, first=1, seed=seed) for size, seed in ((6, 0), (3, 1)))
    answers = [[row.answer for row in item] for item in (behind[2], both[5], behind[0], both[0])]
    assert answers[0] == answers[1] and answers[2] != answers[3]
    assert len(behind) == 3 and len(behind[0]) == omni.FIRST


def test_short_lists_come_first_for_a_quarter_of_the_steps(places: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    job = omni.job(replace(places, changes={"steps": "16"}))
    seen = [any(each.picture is not None for each in job.train[index]) for index in range(12)]
    assert seen == [False] * 8 + [True] * 4 and omni.job(places).train.first == 0
    assert omni.job(replace(places, changes={"steps": "4000", "batch_size": "1"})).train.first == omni.FIRST_STEPS
    monkeypatch.setattr(recipe, "fit", lambda *_, **how: how)
    assert job.run(places)["in_order"]


def test_what_is_strange_in_the_test_split_was_never_met_in_training() -> None:
    known, met = set(), set()
    for index in range(300):
        rng, things = random.Random(index), world.draw_scene("train", index)
        known |= set(unanswerable.question(things, rng).strip("?").split())
        met |= set(unanswerable.question(things, rng, "test").strip("?").split())
    assert set(unanswerable.NOUNS) & met and not set(unanswerable.NOUNS) & met & known
    for make in (unanswerable.picture, unanswerable.sound):
        one, again, other = (make(random.Random(3), split) for split in ("train", "train", "test"))
        assert np.array_equal(one, again) and not np.array_equal(one, other)
    assert unanswerable.picture(random.Random(1)).size == (224, 224)
    assert unanswerable.sound(random.Random(1)).dtype == torch.float32


def test_what_is_kept_is_made_once() -> None:
    made = []
    data = Mix(TOKENIZER.encode, Scenes("train", 2, speech=False), 6, keep=lambda each: made.append(1) or each)
    for index in range(6):
        data.once(data.scenes, index % 2)
    assert len(made) == 2


def test_rows_of_ones_own(places: Place, tmp_path: Path) -> None:
    picture([], 1).save(tmp_path / "a.png")
    (tmp_path / "q.csv").write_text("image,question,answer\na.png,What is it?,Nothing.\n")
    (tmp_path / "c.csv").write_text("image,caption\na.png,Nothing at all.\n")
    (tmp_path / "t.txt").write_text("Only words.\n")
    for name, prompt, answer in (("q.csv", "What is it?", "Nothing."), ("c.csv", omni.DESCRIBE[0], "Nothing at all.")):
        (each,) = omni.job(replace(places, data=tmp_path / name)).train[0]
        assert (TOKENIZER.decode(each.prompt), TOKENIZER.decode(each.answer)) == (prompt, answer)
        assert each.picture is not None
    with pytest.raises(ManifestError, match="this stage needs caption or question or speech"):
        omni.job(replace(places, data=tmp_path / "t.txt"))


# ---- a whole run ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The stages before this one, each trained for a step."""
    folder = tmp_path_factory.mktemp("runs")
    short = Place(folder, "smoke", changes={"steps": "1", "warmup": "0", "batch_size": "2"})
    for each in (thinker, vision, audio):
        each.job(short).run(short)
    return Place(folder, "smoke")


def test_a_smoke_run_starts_from_the_other_stages_and_trains(places: Place) -> None:
    job = omni.job(places)
    sees = places.trained(vision.VisionStage()).vision.state_dict()
    assert isinstance(job.train, omni.Mix) and job.train.asked is not None
    assert (job.train.scenes.easy, job.train.asked.easy) == (vision.EASY, vision.EASY)
    assert float(job.stage.thinker.tok_emb.weight.detach().std()) == pytest.approx(1, abs=0.05)  # the wide start
    result = job.run(places)
    assert result.steps == 3 and set(result.validation) == {"loss", "read", "heard"}
    lines = [json.loads(line) for line in (places.of("omni") / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
    again = places.trained(OmniStage())
    for name, weight in sees.items():
        assert torch.equal(again.vision.state_dict()[name], weight), name


def test_encoders_learn_when_they_are_thawed(places: Place, tmp_path: Path) -> None:
    for each in ("thinker", "vision", "audio"):
        shutil.copytree(places.of(each), tmp_path / each)
    changes = {"thaw": "True", "steps": "1", "warmup": "0", "batch_size": "1"}
    train("omni", Place(tmp_path, "smoke", changes=changes))
    before, after = places.trained(vision.VisionStage()).vision, Place(tmp_path).trained(OmniStage()).vision
    assert not torch.equal(before.proj.weight, after.proj.weight)


def test_without_the_stages_before_it_says_what_to_train(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="tinyomni train vision"):
        omni.job(Place(tmp_path, "smoke"))
    with pytest.raises(FileNotFoundError, match="tinyomni train thinker"):
        omni.job(Place(tmp_path, "smoke"), anew=False)
