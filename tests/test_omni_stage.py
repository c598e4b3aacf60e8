"""Stage omni: sequences as Omni makes them, loss on the answer only, frozen encoders, the mixture, a small run."""

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
from tinyomni.data.rendering import render
from tinyomni.errors import InputError
from tinyomni.evaluation.questions import generate_replies
from tinyomni.omni import Omni
from tinyomni.reply import parse_reply
from tinyomni.tokenizer import BOS, EOS, BPETokenizer
from tinyomni.training import omni_mixture, recipe
from tinyomni.training.omni_examples import OmniExample, collate
from tinyomni.training.omni_mixture import LONG, SHORT, TYPED, WARMUP_LISTS, OmniMixture
from tinyomni.training.recipe import RunDir
from tinyomni.training.stages import vision
from tinyomni.training.stages.omni import IGNORE, WARMUP_STEPS, OmniStage
from tinyomni.training.train import prepare, train

TOKENIZER = BPETokenizer()


def louder(model: nn.Module) -> nn.Module:
    """Weights large enough that a mistake shows."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    return model


def example(prompt: str, answer: str, **inputs: torch.Tensor) -> OmniExample:
    return OmniExample([BOS, *TOKENIZER.encode(prompt)], [*TOKENIZER.encode(answer), EOS], **inputs)


@pytest.fixture
def stage() -> OmniStage:
    return louder(OmniStage()).eval()  # type: ignore[return-value]


@pytest.fixture
def examples() -> list[OmniExample]:
    """One of each kind, as features: of different lengths."""
    return [
        example("What colour is the circle?", "Red.", image=torch.randn(1, 128)),
        example("", "How many rings are there? Two.", image=torch.randn(1, 128), audio=torch.randn(9, 192)),
        example("", "grey one heart", audio=torch.randn(23, 192)),
        example("", "Good morning."),
    ]


# ---- sequences ------------------------------------------------------------------------------------------------------


def test_a_sequence_is_what_omni_embeds(stage: OmniStage) -> None:
    whole = Omni()
    weights = {name: tensor for name, tensor in stage.state_dict().items() if name in whole.state_dict()}
    assert len(weights) == len(stage.state_dict())  # the names are Omni's
    whole.load_state_dict(weights, strict=False)
    image, wave = pixels(render([], 3)), torch.randn(9000) * 0.1
    asked = example("Where is the ring?", "Here.", image=image, audio=wave)
    want = whole.embed(text=asked.prompt, image=image, audio=(wave, 16_000))
    (batch,) = collate([[asked]])
    x, labels = stage.sequences(batch)
    torch.testing.assert_close(x[:, : want.shape[1]], want, atol=1e-5, rtol=1e-5)
    assert x.shape[1] == want.shape[1] + len(asked.answer) - 1
    assert labels[0].tolist() == [IGNORE] * (want.shape[1] - 1) + asked.answer
    said = whole.generate(text=asked.prompt, image=image, audio=(wave, 16_000), max_new_tokens=8)
    assert generate_replies(stage, [asked], TOKENIZER, max_new_tokens=8) == [said]


@torch.no_grad()
def test_the_loss_is_a_slow_loop_over_the_answers(stage: OmniStage, examples: list[OmniExample]) -> None:
    total, count = 0.0, 0
    for each in examples:
        parts = [stage.thinker.embed(torch.tensor([each.prompt + each.answer]))]
        if each.audio is not None:
            parts.insert(0, stage.proj_a(each.audio[None]))
        if each.image is not None:
            parts.insert(0, stage.proj_v(each.image[None]))
        x = torch.cat(parts, dim=1)
        log_p = stage.thinker(embeddings=x).log_softmax(-1)[0]
        for place, token in enumerate(each.answer):
            total -= float(log_p[x.shape[1] - len(each.answer) + place - 1, token])
            count += 1
    batch = collate([examples])
    assert stage.weight(batch) == count
    loss, metrics = stage(batch)
    assert float(loss) == pytest.approx(total / count, rel=1e-4)
    assert set(metrics) == {"typed", "spoken"}


def test_padding_and_other_examples_change_nothing(stage: OmniStage, examples: list[OmniExample]) -> None:
    with torch.no_grad():
        together = torch.cat([stage.losses(batch)[0] for batch in collate([examples])])
        alone = [torch.cat([stage.losses(batch)[0] for batch in collate([[each]])]) for each in examples]
    order = sorted(range(len(examples)), key=lambda i: (examples[i].audio is not None, examples[i].size))
    torch.testing.assert_close(together, torch.cat([alone[i] for i in order]), atol=1e-4, rtol=1e-4)


def test_examples_of_similar_length_form_a_batch(examples: list[OmniExample]) -> None:
    """A hundred examples of all lengths: hardly any padding, and none is lost."""
    many = [example("red " * (1 + i % 25), "Yes.", **({} if i % 3 else {"audio": torch.randn(i % 40 + 1, 192)}))
            for i in range(100)]  # fmt: skip
    groups = collate([many[:50], many[50:]])
    assert sum(len(each.ids) for each in groups) == 100 and len(groups) < 16
    for each in groups:
        sizes = each.lengths + (0 if each.audio_lengths is None else each.audio_lengths)
        assert sizes.max() <= 1.3 * sizes.min()
    assert sorted(len(r.prompt + r.answer) for r in many) == sorted(n for g in groups for n in g.lengths.tolist())


def test_nothing_of_the_prompt_has_a_label(stage: OmniStage) -> None:
    one, other = example("What shape is the red thing?", "A ring."), example("What shape is the big thing?", "A ring.")
    labels = [stage.sequences(collate([[each]])[0])[1][0] for each in (one, other)]
    assert torch.equal(*labels) and (labels[0] != IGNORE).sum() == len(one.answer)


def test_an_image_that_examples_share_is_encoded_once(stage: OmniStage) -> None:
    image = pixels(render([], 1))
    batch = collate(
        [
            [example("Hello?", "Yes.", image=image), example("Why?", "No.", image=image)],
            [example("Hello? How?", "Good.")],
        ]
    )
    (group,) = batch
    assert group.images is not None
    assert group.images.shape == (1, 3, 224, 224) and sorted(group.image_of.tolist()) == [-1, 0, 0]


def test_features_give_the_same_loss_as_pixels_and_waves(stage: OmniStage) -> None:
    raw = [example("Hello?", "Yes.", image=pixels(render([], 1))),
           example("", "Why? No.", image=pixels(render([], 2)), audio=torch.randn(7000) * 0.1),
           example("", "Good night.", audio=torch.randn(16_001) * 0.1)]  # fmt: skip
    kept = [stage.featurize(each) for each in raw]
    assert kept[1].image is not None and kept[1].image.shape == (1, 128)
    assert kept[1].image.untyped_storage().nbytes() == 128 * 4  # nothing else stays in memory with it
    assert kept[2].audio is not None and kept[2].audio.shape == (25, 192)
    with torch.no_grad():
        torch.testing.assert_close(stage(collate([raw]))[0], stage(collate([kept]))[0], atol=1e-4, rtol=1e-4)


# ---- what is learned ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unfreeze", [False, True])
def test_frozen_encoders_stay_in_eval_mode_and_unchanged(unfreeze: bool) -> None:
    stage = OmniStage(unfreeze).train()
    assert stage.thinker.training and stage.vision.training == stage.audio.training == unfreeze
    before = {name: tensor.clone() for name, tensor in stage.state_dict().items()}
    batch = collate([[example("Hello?", "Yes.", image=pixels(render([], 1))),
                      example("", "Good.", audio=torch.randn(7000) * 0.1)]])  # fmt: skip
    optimizer = torch.optim.SGD(stage.parameters(), lr=0.1)
    stage(batch)[0].backward()
    optimizer.step()
    changed = {
        name.split(".")[0] for name, tensor in stage.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == {"thinker", "proj_v", "proj_a", *(("vision", "audio") if unfreeze else ())}


def test_a_few_examples_are_memorized(examples: list[OmniExample]) -> None:
    stage = OmniStage()
    batch = collate([examples])
    optimizer = torch.optim.AdamW(stage.parameters(), lr=1e-3)
    for _ in range(30):
        loss, _ = stage(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1
    assert torch.cat([stage.exact_match(each) for each in batch]).tolist() == [1.0] * 4
    assert generate_replies(stage, examples, TOKENIZER) == [
        "Red.",
        "How many rings are there? Two.",
        "grey one heart",
        "Good morning.",
    ]
    wrong = replace(examples[0], answer=[*TOKENIZER.encode("Blue."), EOS])
    assert stage.exact_match(collate([[wrong]])[0]).tolist() == [0.0]


# ---- data -----------------------------------------------------------------------------------------------------------


def test_every_example_of_an_item_is_true(tmp_path: Path) -> None:
    scenes, cache = Scenes("train", 12, speech=False), str(tmp_path)
    spoken, speech = Scenes("train", 2, cache=cache), Speech("train", 3, cache=cache)
    data = OmniMixture(TOKENIZER.encode, scenes, 30, spoken, speech, featurize=lambda each: each)

    def question_of(each: OmniExample, things: list[world.Thing]) -> world.Question:
        """The question, one of those about the scene; between it and its answer is the right scratchpad."""
        text = f"{TOKENIZER.decode(each.prompt)} {TOKENIZER.decode(each.answer)}".strip()
        parts = parse_reply(text, spoken=True)
        assert f"{parts.description}." == world.ordered_description(things)
        (question,) = [q for q in world.questions(things) if (q.text, q.answer) == (parts.transcript, parts.answer)]
        assert parts.lookup == str(retrieval.lookup(question)) and each.loss_mask is None
        return question

    def contains(each: OmniExample, wave: torch.Tensor) -> bool:
        """Whether the audio is this recording with room noise: only noise is left when it is subtracted."""
        assert each.audio is not None
        at = int(F.conv1d(each.audio[None, None], wave[None, None]).argmax())
        noise = each.audio - F.pad(wave, (at, len(each.audio) - at - len(wave)))
        return len(each.audio) > len(wave) and float(noise.std()) < 10**-2.2

    prompts: list[str] = []
    for index in (0, 1, 2, 3, 21, 25):
        typed, (caption, aloud, repeat, text, odd, *many) = data[index][:TYPED], data[index][TYPED:]
        assert len(many) == SHORT + LONG
        for number, each in enumerate(typed, TYPED * index):
            assert question_of(each, scenes.things(number % 12)) and each.audio is None
            assert torch.equal(each.image, pixels(scenes[number % 12].image))
        things, seen = scenes.things(TYPED * index % 12), TOKENIZER.decode(caption.answer)
        places = [seen.index(place) for place in world.PLACES if place in seen]
        assert places == sorted(places) and len(places) == len(things) and caption.image is typed[0].image
        assert all(str(thing) in seen for thing in things)
        assert TOKENIZER.decode(caption.prompt) in omni_mixture.DESCRIBE
        question = question_of(aloud, spoken.things(index % 2))
        assert aloud.prompt == [BOS] and world.spoken_in_training(question.text)
        assert contains(aloud, spoken[index % 2].question_wave)
        assert torch.equal(aloud.image, pixels(spoken[index % 2].image))
        said, prompt = TOKENIZER.decode(repeat.answer), TOKENIZER.decode(repeat.prompt)
        utterance = speech[index % 3]
        prompts.append(prompt)
        assert contains(repeat, utterance.wave)
        both = prompt in omni_mixture.BOTH
        assert said == (f"{seen} {utterance.text}" if both else utterance.text)
        assert repeat.image is (caption.image if both else None) and (both or prompt in omni_mixture.REPEAT)
        assert text.image is None and text.audio is None and text.prompt[0] == BOS and text.answer[-1] == EOS
        answer = parse_reply(TOKENIZER.decode(odd.answer), spoken=False).answer
        assert answer in (unanswerable.DO_NOT_KNOW, unanswerable.SEE_NOTHING, unanswerable.HEARD_NOTHING)
    assert len(set(prompts)) > 1
    first, again = ([each.prompt for each in data[index][:TYPED]] for index in (0, 3))
    assert first != again and torch.equal(data[0][0].image, data[3][0].image)  # the same scene, other questions


def test_what_is_unanswerable_gets_an_answer_of_the_closed_world() -> None:
    data = OmniMixture(TOKENIZER.encode, Scenes("train", 40, speech=False), 40)
    counts = {"question": 0, "image": 0, "audio": 0}
    for index in range(40):
        things = data.scenes.things(TYPED * index % 40)
        text, odd = data[index][TYPED + 1 :][:2]
        prompt, answer = TOKENIZER.decode(odd.prompt), TOKENIZER.decode(odd.answer)
        if odd.audio is not None:
            counts["audio"] += 1
            assert (prompt, answer) == ("", unanswerable.HEARD_NOTHING) and odd.image is None
        elif torch.equal(odd.image, data[index][0].image):
            counts["question"] += 1  # none that could be asked of the scene
            assert prompt not in {question.text for question in world.questions(things)}
            parts = parse_reply(answer, spoken=False)
            assert f"{parts.description}." == world.ordered_description(things)
            assert parts.lookup is None or parts.lookup.endswith(" not")
            assert parts.answer == unanswerable.DO_NOT_KNOW
        else:
            counts["image"] += 1
            describe = prompt in omni_mixture.DESCRIBE
            assert answer == ("I can see nothing." if describe else "I can see nothing: I do not know.")
        prompt, answer = TOKENIZER.decode(text.prompt), TOKENIZER.decode(text.answer)
        assert not prompt or omni_mixture.REPLIES.get(prompt, unanswerable.CANNOT_SEE) == answer
        assert prompt or "? " not in answer  # no guess at an image that is not there
    assert min(counts.values()) >= 3


def test_of_a_list_only_the_values_are_learned() -> None:
    data = OmniMixture(TOKENIZER.encode, Scenes("train", 40, speech=False), 6, warmup_items=2)
    assert len(data[1]) == WARMUP_LISTS < len(data[1]) + len(data[2])
    assert all(each.image is None and not all(each.loss_mask) and len(each.prompt) < 20 for each in data[1])
    for each in [*data[1], *data.retrieval_examples(random.Random(1), 2, 3)]:
        text = TOKENIZER.decode([*each.prompt, *each.answer])
        assert TOKENIZER.encode(text) == [*each.prompt[1:], *each.answer]  # the pieces are those of the whole text
        words = map(TOKENIZER.decode, ([token] for token in each.answer))
        values = [word for word, learned in zip(words, each.loss_mask, strict=True) if learned]
        sentences = TOKENIZER.decode(each.answer).rstrip(".").split(". ")
        assert values == [word for s in sentences for word in s.split()[3 if s.startswith("Is ") else 2 :]]
    with torch.no_grad():
        stage, first = OmniStage(), data[0][0]
        (batch,) = collate([[first]])
        assert stage.weight([batch]) == sum(first.loss_mask) == len(stage.losses(batch)[0])
        _, labels = stage.sequences(batch)
        learned = [token for token, mask in zip(first.answer, first.loss_mask, strict=True) if mask]
        assert labels[labels != IGNORE].tolist() == learned


def test_another_seed_continues_where_the_items_of_the_first_end() -> None:
    scenes = Scenes("train", 40, speech=False)
    both, after = (
        OmniMixture(TOKENIZER.encode, scenes, size, warmup_items=1, seed=seed) for size, seed in ((6, 0), (3, 1))
    )
    answers = [[each.answer for each in item] for item in (after[2], both[5], after[0], both[0])]
    assert answers[0] == answers[1] and answers[2] != answers[3]
    assert len(after) == 3 and len(after[0]) == WARMUP_LISTS


def test_short_lists_come_first_for_a_quarter_of_the_steps(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    job = prepare("omni", run_dir, {"steps": "16"})
    seen = [any(each.image is not None for each in job.train[index]) for index in range(12)]
    assert seen == [False] * 8 + [True] * 4 and prepare("omni", run_dir).train.warmup_items == 0
    long = prepare("omni", run_dir, {"steps": "4000", "batch_size": "1"})
    assert long.train.warmup_items == WARMUP_STEPS
    monkeypatch.setattr(recipe, "fit", lambda *_, **how: how)
    assert job.run(run_dir)["in_order"]


def test_what_is_unanswerable_in_the_test_split_is_not_in_training() -> None:
    train_words, test_words = set(), set()
    for index in range(300):
        rng, things = random.Random(index), world.draw_scene("train", index)
        train_words |= set(unanswerable.question(things, rng).text.strip("?").split())
        test_words |= set(unanswerable.question(things, rng, "test").text.strip("?").split())
    nouns = set(unanswerable.NOUNS)
    assert nouns & test_words and not nouns & test_words & train_words
    for make in (unanswerable.image, unanswerable.audio):
        one, again, other = (make(random.Random(3), split) for split in ("train", "train", "test"))
        assert np.array_equal(one, again) and not np.array_equal(one, other)
    assert unanswerable.image(random.Random(1)).size == (224, 224)
    assert unanswerable.audio(random.Random(1)).dtype == torch.float32


def test_features_are_made_once() -> None:
    made = []
    scenes = Scenes("train", 2, speech=False)
    data = OmniMixture(TOKENIZER.encode, scenes, 6, featurize=lambda each: made.append(1) or each)
    for index in range(6):
        data.cached(data.scenes, index % 2)
    assert len(made) == 2


def test_custom_rows(run_dir: RunDir, tmp_path: Path) -> None:
    for name in "ab":
        render([], ord(name)).save(tmp_path / f"{name}.png")
    (tmp_path / "q.csv").write_text("image,question,answer\n" + "".join(f"{n}.png,What is {n}?,{n}.\n" for n in "ab"))
    (tmp_path / "c.csv").write_text("image,caption\na.png,a.\nb.png,b.\n")
    (tmp_path / "t.txt").write_text("Only words.\n")
    for name in ("q.csv", "c.csv"):
        job = prepare("omni", replace(run_dir, data=tmp_path / name))
        (one,), (other,) = job.train[0], job.stage.validation[0]
        assert len(job.train) == len(job.stage.validation) == 1
        assert {TOKENIZER.decode(each.answer) for each in (one, other)} == {"a.", "b."}
        asked = f"What is {TOKENIZER.decode(one.answer)[0]}?" if name == "q.csv" else omni_mixture.DESCRIBE[0]
        assert TOKENIZER.decode(one.prompt) == asked and one.image is not None
    with pytest.raises(ManifestError, match="this stage needs caption or question or speech, got text"):
        prepare("omni", replace(run_dir, data=tmp_path / "t.txt"))


# ---- a whole run ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """The stages before this one, each trained for a step."""
    run_dir = RunDir(tmp_path_factory.mktemp("runs"), "smoke")
    for stage in ("thinker", "vision", "audio"):
        train(stage, run_dir, {"steps": "1", "warmup": "0", "batch_size": "2"})
    return run_dir


def test_a_smoke_run_starts_from_the_other_stages_and_trains(run_dir: RunDir) -> None:
    job = prepare("omni", run_dir)
    trained = run_dir.trained(vision.VisionStage()).vision.state_dict()
    assert isinstance(job.train, OmniMixture) and job.train.spoken_questions is not None
    assert (job.train.scenes.easy, job.train.spoken_questions.easy) == (vision.EASY, vision.EASY)
    assert float(job.stage.thinker.tok_emb.weight.detach().std()) == pytest.approx(
        1, abs=0.05
    )  # LeCun's initialization
    result = job.run(run_dir)
    assert result.steps == 3 and set(result.validation) == {"loss", "typed", "spoken"}
    lines = [json.loads(line) for line in (run_dir.of("omni") / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
    again = run_dir.trained(OmniStage())
    for name, weight in trained.items():
        assert torch.equal(again.vision.state_dict()[name], weight), name


def test_encoders_learn_when_they_are_unfrozen(run_dir: RunDir, tmp_path: Path) -> None:
    for each in ("thinker", "vision", "audio"):
        shutil.copytree(run_dir.of(each), tmp_path / each)
    changes = {"unfreeze_encoders": "True", "from_scratch": "False", "steps": "1", "warmup": "0", "batch_size": "1"}
    train("omni", RunDir(tmp_path, "smoke"), changes)
    before, after = run_dir.trained(vision.VisionStage()).vision, RunDir(tmp_path).trained(OmniStage()).vision
    assert not torch.equal(before.proj.weight, after.proj.weight)


def test_without_the_stages_before_it_says_what_to_train(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tinyomni train vision"):
        prepare("omni", RunDir(tmp_path, "smoke"))
    with pytest.raises(InputError, match="tinyomni train thinker"):
        prepare("omni", RunDir(tmp_path, "smoke"), {"from_scratch": "False"})


def test_the_wide_style_trains(run_dir: RunDir) -> None:
    job = prepare("omni", run_dir, {"style": "wide", "steps": "8"})
    mixture = job.train
    assert isinstance(mixture, OmniMixture)
    assert mixture.style == mixture.scenes.style == mixture.spoken_questions.style == "wide"  # type: ignore[union-attr]
    loss, metrics = job.stage(job.collate([mixture[len(mixture) - 1]]))
    assert bool(torch.isfinite(loss)) and set(metrics) == {"typed", "spoken"}
