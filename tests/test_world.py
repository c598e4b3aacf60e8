"""The closed world: what is true in it, what is kept apart, and that everybody gets the same."""

import dataclasses
import functools
import itertools
import math
import multiprocessing
import random
import subprocess
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from tinyomni.audio import CHARS
from tinyomni.cli import main
from tinyomni.data import tts, unanswerable, world
from tinyomni.data.datasets import Lines, Scenes, Speech, collate_scenes, collate_speech
from tinyomni.data.preview import contact_sheet
from tinyomni.data.rendering import RGB, STEPS, picture
from tinyomni.data.tts import HELD_OUT_VOICE, VOICES, SpeechCache, SpeechUnavailable, phonemes, utter
from tinyomni.data.world import COLOURS, HELD_OUT, PLACES, SHAPES, SIZES, SPLITS, Thing
from tinyomni.tokenizer import EOS, PAD, BPETokenizer

TOK = BPETokenizer()


# ---- grammar --------------------------------------------------------------------------------------------------------


def test_every_line_stands_once_and_the_entropy_is_that_of_the_draws() -> None:
    lines = [text for _, family in world.language().values() for text, _ in family]
    assert len(lines) == len(set(lines)) > 30_000
    assert math.isclose(sum(weight for weight, _ in world.language().values()), 1)
    for split in SPLITS:
        families = world.lines_of(split)
        p = {text: weight / len(texts) for weight, texts in families.values() for text in texts}
        assert math.isclose(sum(p.values()), 1)
        assert math.isclose(-sum(q * math.log(q) for q in p.values()), world.entropy(split))
    # the surprise of drawn lines comes out at the entropy
    families = world.lines_of("train")
    p = {text: weight / len(texts) for weight, texts in families.values() for text in texts}
    drawn = [
        -math.log(p[line])
        for line in itertools.islice(map(functools.partial(world.draw_line, "train"), range(20_000)), 20_000)
    ]
    assert abs(np.mean(drawn) - world.entropy("train")) < 4 * np.std(drawn) / math.sqrt(len(drawn))


@pytest.mark.parametrize("split", SPLITS)
def test_the_loss_floor_is_what_who_knows_the_grammar_loses(split: str) -> None:
    """A reader that gives every line its true probability, token by token, loses exactly this much for a token."""
    nats = tokens = 0.0
    for weight, texts in world.lines_of(split).values():
        for text in texts:
            nats += weight / len(texts) * world.surprise(split)[text]
            tokens += weight / len(texts) * (len(TOK.encode(text)) + 1)
    assert math.isclose(world.loss_floor(TOK.encode, split), nats / tokens)
    assert nats / tokens < math.log(TOK.n_pieces) / 4


def test_such_a_reader_gives_all_lines_together_a_probability_of_one() -> None:
    """In a family that all splits have: a line of test is as likely as one of validation, or as any not held out."""
    p = {split: sum(math.exp(-nats) for nats in world.surprise(split).values()) for split in SPLITS}
    assert math.isclose(p["train"], 1)
    assert set(world.surprise("test")).isdisjoint(world.surprise("train"))
    (weight, lines) = world.language()["there"]
    allowed = [text for text, pairs in lines if HELD_OUT.isdisjoint(pairs)]
    one = next(text for text in allowed if text in world.surprise("test"))
    assert math.isclose(math.exp(-world.surprise("test")[one]), weight / len(allowed))
    assert 0.03 < p["test"] + p["validation"] < 0.15 and 0.03 < p["compositional"] < 0.15
    # who takes all combinations for possible gives each line what it has in the whole grammar
    unknowing = {line: nats for split in SPLITS for line, nats in world.surprise(split, exceptions=False).items()}
    assert math.isclose(sum(math.exp(-nats) for nats in unknowing.values()), 1)
    assert len(unknowing) == sum(len(family) for _, family in world.language().values())
    assert math.isclose(math.exp(-unknowing[one]), weight / len(lines))


def test_all_text_can_be_written_by_the_ear_and_read_by_the_tokenizer() -> None:
    known = set(world.vocabulary())
    for _, family in world.language().values():
        for text, _ in family:
            assert set(text) <= set(CHARS)
            assert {word.strip(".,?") for word in text.split()} <= known


def truth(things: list[Thing], question: str) -> str:
    """The right answer, found from the scene in another way than the grammar does."""
    words = question.rstrip("?").split()[2:]
    shape = next((s for s in SHAPES if s in words or world.PLURALS[s] in words), None)
    colour = next((c for c in COLOURS if c in words), None)
    size = next((s for s in SIZES if s in words), None)
    fit = [t for t in things if shape in (None, t.shape) and colour in (None, t.colour) and size in (None, t.size)]
    if question.startswith("How many"):
        return world.NUMBERS[len(fit)]
    if question.startswith("Is there"):
        return "yes" if fit else "no"
    (thing,) = fit
    if question.startswith("Where"):
        return thing.place
    if question.startswith("What shape"):
        return f"a {thing.shape}"
    return thing.colour if question.startswith("What colour") else thing.size


@pytest.mark.parametrize("hard", [False, True])
def test_every_question_has_one_right_answer_and_every_kind_comes_as_often(hard: bool) -> None:
    kinds: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    for index in range(3000):
        things = world.draw_scene("train", index, hard=hard)
        for question, answer in [*world.questions(things), world.ask(things, random.Random(index))]:
            assert truth(things, question) == answer.rstrip("."), (question, things)
        kinds[" ".join(question.split()[:2])] += 1
        answers[answer] += question.startswith("Is there")
        assert len({thing.place for thing in things}) == len(things) == len({(t.colour, t.shape) for t in things})
    assert set(kinds) == {"What colour", "What shape", "How many", "How big", "Where is", "Is there"}
    assert min(kinds.values()) > 0.7 * 3000 / 6 and 0.8 < answers["yes."] / answers["no."] < 1.25


def test_hard_negatives_keep_colours_and_count_and_change_the_caption() -> None:
    found = 0
    for index in range(300):
        things = world.draw_scene("train", index)
        for other in world.hard_negatives(things):
            found += 1
            assert sorted(t.colour for t in other) == sorted(t.colour for t in things) and len(other) == len(things)
            assert sorted(t.shape for t in other) == sorted(t.shape for t in things)
            assert sorted(world.description(other).split()) != [] and world.key(other) != world.key(things)
            # the words of both captions are the same: only their order tells them apart
            words = [sorted(word.strip(",.") for word in world.description(each).split()) for each in (things, other)]
            assert [w for w in words[0] if w not in ("a", "an")] == [w for w in words[1] if w not in ("a", "an")]
    assert found > 500


# ---- splits ---------------------------------------------------------------------------------------------------------


def test_splits_share_no_line_no_scene_and_no_held_out_combination() -> None:
    lines = {split: {text for _, texts in world.lines_of(split).values() for text in texts} for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not lines[one] & lines[other]
    scenes = {split: [world.draw_scene(split, i) for i in range(400)] for split in SPLITS}
    keys = {split: {world.key(things) for things in found} for split, found in scenes.items()}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not keys[one] & keys[other]
    for split, found in scenes.items():
        for things in found:
            assert (not HELD_OUT.isdisjoint((t.colour, t.shape) for t in things)) == (split == "compositional")
    for split in ("train", "validation", "test"):
        for colour, shape in HELD_OUT:
            assert not any(f"{colour} {shape}" in line for line in lines[split])
    assert len(lines["train"]) > 0.7 * sum(map(len, lines.values())) and min(map(len, lines.values())) > 1000
    assert HELD_OUT_VOICE not in VOICES and len(HELD_OUT) == 8
    assert len({shape for _, shape in HELD_OUT}) == len({colour for colour, _ in HELD_OUT}) == 8


def test_training_says_nothing_of_what_is_held_out() -> None:
    """Neither a swap nor a question, not even one whose answer is no, names a held-out combination or another split."""
    scenes = Scenes("train", 300, speech=False)
    asked = {scenes[index].question for index in range(300)}
    asked |= {question for index in range(300) for half in world.askable(scenes.things(index))["Is there"]
              for question, _ in half}  # fmt: skip
    assert not any(f"{colour} {shape}" in question for colour, shape in HELD_OUT for question in asked)
    swapped = [sample for index in range(100) for sample in scenes.with_negatives(index)]
    assert len(swapped) > 250 and {world.split_of_scene(list(sample.things)) for sample in swapped} == {"train"}
    tested = [sample for index in range(60) for sample in Scenes("test", 60, speech=False).with_negatives(index)]
    assert "compositional" not in {world.split_of_scene(list(sample.things)) for sample in tested}
    # where a held-out combination is seen, it is asked about too, with both answers
    seen = [world.askable(world.draw_scene("compositional", index))["Is there"] for index in range(300)]
    about = Counter(answer for halves in seen for half in halves for question, answer in half
                    if any(f"{c} {s}" in question for c, s in HELD_OUT))  # fmt: skip
    assert min(about["yes."], about["no."]) > 20


def test_a_tenth_of_the_questions_is_never_spoken_in_training() -> None:
    every = {question for index in range(2000) for question, _ in world.questions(world.draw_scene("train", index))}
    unheard = {question for question in every if not world.heard(question)}
    assert 0.05 < len(unheard) / len(every) < 0.15
    kinds = {" ".join(question.split()[:2]) for question in every}
    assert {" ".join(question.split()[:2]) for question in unheard} == kinds
    assert all(map(world.heard, world.PHRASES))
    train, test = Scenes("train", 400), Scenes("test", 100, speech=False, heard=False)
    assert all(world.heard(world.ask(train.things(i), random.Random(i), train.wanted)[0]) for i in range(400))
    assert not any(world.heard(test[i].question) for i in range(100))
    typed = Scenes("train", 400, speech=False)
    assert {typed[i].question for i in range(400)} & unheard  # typed they are, also in training
    assert all(world.heard(Speech("train", 3000).text(i)[0]) for i in range(3000))
    with pytest.raises(ValueError, match="never heard in training"):
        Scenes("train", 5, heard=False)
    with pytest.raises(ValueError, match="no question that is wanted"):
        world.ask(train.things(0), random.Random(0), lambda question: False)


def test_everybody_gets_the_same_from_a_seed() -> None:
    code = (
        "from tinyomni.data import world\nfrom tinyomni.data.datasets import Scenes, Speech\nimport hashlib\n"
        "s = Scenes('test', 50, speech=False)[7]\n"
        "print(world.draw_line('train', 5), s.caption, s.question, Speech('test').text(9), "
        "hashlib.sha256(s.picture.tobytes()).hexdigest())"
    )
    runs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                       env={"PYTHONHASHSEED": seed, "PATH": ""}).stdout for seed in ("0", "1")
    }  # fmt: skip
    assert len(runs) == 1
    # for ever: these stand in lessons
    assert world.draw_line("train", 5) == "How big is the triangle? Big."
    assert world.description(world.draw_scene("train", 0)) == (
        "There is a big cyan star on the right, a big purple cross at the top and a big black cross at the bottom."
    )
    assert world.draw_scene("train", 0, seed=1) != world.draw_scene("train", 0)


# ---- pictures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hard", [False, True])
def test_what_a_picture_shows_can_be_read_from_it(hard: bool) -> None:
    """At each place the nearest colour and the extent of what stands there are right; elsewhere there is nothing."""
    names = [*RGB, "edge"]
    table = np.array([*RGB.values(), (90, 90, 90)])
    for index in range(150):
        things = {thing.place: thing for thing in world.draw_scene("train", index, hard=hard)}
        image = np.asarray(picture(list(things.values()), index, hard)).astype(int)
        assert image.shape == (224, 224, 3)
        darkest = image.min(-1)
        drawn = (darkest <= 190) | (darkest >= 248)  # the ground is light, and never quite white
        for place, (right, down) in STEPS.items():
            x, y = 112 + 67 * right, 112 + 67 * down
            cell = drawn[y - 36 : y + 36, x - 36 : x + 36]
            if place not in things:
                assert cell[8:-8, 8:-8].sum() == 0, (place, things)
                continue
            thing = things[place]
            pixels = image[y - 36 : y + 36, x - 36 : x + 36][cell]
            nearest = Counter(names[i] for i in ((pixels[:, None] - table) ** 2).sum(-1).argmin(1))
            assert max(RGB, key=lambda name: nearest[name]) == thing.colour, (thing, nearest)
            rows, columns = np.nonzero(drawn[y - 29 : y + 29, x - 29 : x + 29])
            assert (max(np.ptp(rows), np.ptp(columns)) > 36) == (thing.size == "big"), thing


def test_easy_pictures_fill_whole_patches_and_hard_ones_vary() -> None:
    square = [Thing("big", "black", "circle", "on the left")]
    easy = np.asarray(picture(square, 1, hard=False))
    assert np.array_equal(easy, np.asarray(picture(square, 2, hard=False)))
    rows, columns = np.nonzero((easy < 80).all(-1))
    assert (columns.min() // 16, columns.max() // 16, rows.min() // 16, rows.max() // 16) == (1, 4, 5, 8)
    hard = [np.asarray(picture(square, seed)) for seed in range(3)]
    assert not np.array_equal(hard[0], hard[1]) and not np.array_equal(hard[1], hard[2])


# ---- samples and batches --------------------------------------------------------------------------------------------


def test_some_pictures_can_be_easy_ones_with_all_else_as_it_was() -> None:
    mixed, hard = Scenes("train", 15, speech=False, easy=7), Scenes("train", 15, speech=False)
    for index in range(15):
        ours, theirs = mixed[index], hard[index]
        due = theirs.picture if index % 7 else picture(list(theirs.things), hard=False)
        assert ours.picture.tobytes() == due.tobytes()
        assert dataclasses.replace(ours, picture=theirs.picture) == theirs
    with pytest.raises(ValueError, match=r"easy should be 1 or more .*, got 0"):
        Scenes("train", 15, easy=0)


def test_a_record_is_whole_and_about_one_scene() -> None:
    scenes = Scenes("validation", 20)
    for index in (0, 7):
        sample = scenes[index]
        things = list(sample.things)
        assert sample.caption == world.description(things) and sample.statement in set(world.captions(things))
        assert truth(things, sample.question) == sample.answer[0].lower() + sample.answer[1:].rstrip(".")
        how = (sample.speaker.voice, sample.speaker.rate, sample.speaker.pitch)
        assert torch.equal(sample.question_wave, utter(sample.question, *how))
        assert torch.equal(sample.answer_wave, utter(sample.answer, *how))
        assert np.array_equal(np.asarray(sample.picture), np.asarray(scenes[index].picture))
    batch = Scenes("train", 50, speech=False).with_negatives(3)
    assert len({sample.caption for sample in batch}) == len(batch)


def test_batches_are_padded_and_carry_their_lengths() -> None:
    collate = functools.partial(collate_scenes, encode=TOK.encode)
    scenes = Scenes("train", 12)
    batch = collate([scenes[i] for i in range(3)])
    assert batch.pixels.shape == (3, 3, 224, 224) and 0 <= float(batch.pixels.min()) <= float(batch.pixels.max()) <= 1
    for ids, lengths, texts in (
        (batch.caption, batch.caption_lengths, [scenes[i].caption for i in range(3)]),
        (batch.answer, batch.answer_lengths, [scenes[i].answer for i in range(3)]),
    ):
        for row, length, text in zip(ids, lengths, texts, strict=True):
            assert row[:length].tolist() == [*TOK.encode(text), EOS] and (row[length:] == PAD).all()
    assert batch.question_wave.shape == (3, int(batch.question_samples.max()))
    assert not batch.question_wave[0, int(batch.question_samples[0]) :].any()
    assert batch.to("meta").pixels.is_meta
    assert collate([Scenes("train", 3, speech=False)[0]]).question_wave is None


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_distributed_samplers(workers: int) -> None:
    scenes = Scenes("train", 16, speech=False)
    collate = functools.partial(collate_scenes, encode=TOK.encode)
    parts = []
    for rank in range(2):
        sampler = DistributedSampler(scenes, num_replicas=2, rank=rank, shuffle=True, seed=1)
        loader = DataLoader(scenes, batch_size=4, sampler=sampler, num_workers=workers, collate_fn=collate)
        parts.append(torch.cat([batch.pixels for batch in loader]))
    alone = torch.stack([collate([scenes[i]]).pixels[0] for i in range(16)])
    both = torch.cat(parts)
    assert sorted(both.flatten(1).sum(1).tolist()) == sorted(alone.flatten(1).sum(1).tolist())
    lines = DataLoader(Lines("train", 10), batch_size=5, num_workers=workers)
    assert [line for batch in lines for line in batch] == [world.draw_line("train", i) for i in range(10)]


def test_a_quarter_of_the_speech_is_words_in_random_order() -> None:
    said = Speech("train", 4000)
    texts = [said.text(i) for i in range(4000)]
    assert 0.22 < sum(not in_order for _, in_order in texts) / 4000 < 0.28
    known = {word.lower() for word in world.vocabulary()}
    assert all(set(text.split()) <= known for text, in_order in texts if not in_order)
    assert not any(Speech("train", 50, order=False).text(i)[1] for i in range(50))
    half = Speech("train", 2000, shuffled=0.5)
    assert abs(sum(half.text(i)[1] for i in range(2000)) / 2000 - 0.5) < 0.05
    assert all(Speech("train", 50, order=True).text(i)[1] for i in range(50))
    bare = [text for text, _ in texts if text.lower().strip(".") in {*world.COLOURS, *world.NUMBERS, "yes", "no"}]
    assert 0.05 < len(bare) / 4000 < 0.15 and sum(text in unanswerable.ANSWERS for text, _ in texts) > 4000 * 0.02
    assert not any(text in bare for text, _ in map(Speech("train", 500, order=True).text, range(500)))
    batch = collate_speech([said[0], said[1]])
    assert batch.wave.shape == (2, int(batch.samples.max())) and batch.texts[1] == texts[1][0]


@pytest.mark.parametrize("make", [Lines, functools.partial(Scenes, speech=False), Speech])
def test_wrong_splits_sizes_and_indices(make: type) -> None:
    with pytest.raises(ValueError, match="no split 'training'"):
        make("training")
    with pytest.raises(ValueError, match="at least 1"):
        make("train", 0)
    with pytest.raises(IndexError, match="outside 0 … 4"):
        make("train", 5)[5]
    assert len(make("train", 5)) == 5 and make("train", 5)[-1] is not None


# ---- speech ---------------------------------------------------------------------------------------------------------


def say(arguments: tuple[str, str, int, int]) -> bytes:
    return utter(*arguments).numpy().tobytes()


def test_the_same_call_gives_the_same_samples_in_any_order_and_process() -> None:
    calls = [
        (text, voice, 150, 50) for voice in (*VOICES[1:3], HELD_OUT_VOICE) for text in ("Yes.", "What shape is it?")
    ]
    forward = [say(call) for call in calls]
    backward = [say(call) for call in reversed(calls)][::-1]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        elsewhere = list(pool.map(say, calls))
    assert forward == backward == elsewhere and len(set(forward)) == len(calls)


@pytest.mark.parametrize("voice", [*VOICES, HELD_OUT_VOICE])
def test_every_voice_speaks_without_clipping(voice: str) -> None:
    for rate, pitch in ((140, 35), (190, 65)):
        wave = utter("There is a big black square at the top.", voice, rate, pitch)
        assert 1.2 < len(wave) / 16_000 < 4 and 0.1 < float(wave.abs().max()) < 0.95 and wave.dtype == torch.float32


def test_what_espeak_makes_of_a_text() -> None:
    assert phonemes("25 cats") == phonemes("twenty five cats") and "kˈæts" in phonemes("25 cats")
    assert phonemes("tomato", "en-us") != phonemes("tomato", "en-gb-x-rp")


def test_wrong_speech() -> None:
    for arguments, words in (
        (("Hello.", "en-gb"), "no voice 'en-gb'"),
        (("Hello.", "en-us", 20), "rate"),
        ((" ",), "empty"),
        (("\N{ZERO WIDTH SPACE}",), "says nothing"),
    ):
        with pytest.raises(ValueError, match=words):
            utter(*arguments)


def test_without_espeak_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tts.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SpeechUnavailable, match=r"pip install espeakng-loader\. Lessons on text and pictures run"):
        utter("Hello.")


def fill(folder: str) -> int:
    return len(SpeechCache(folder).utter("Where is the red thing?"))


def test_the_cache_gives_the_same_and_is_safe_under_several_processes(tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        lengths = list(pool.map(fill, [str(tmp_path)] * 6))
    assert len(set(lengths)) == 1 and len(list(tmp_path.iterdir())) == 1
    cache = SpeechCache(tmp_path)
    assert torch.equal(cache.utter("Where is the red thing?"), utter("Where is the red thing?"))
    cache.utter("Where is the red thing?", pitch=40)
    assert len(list(tmp_path.iterdir())) == 2
    next(tmp_path.iterdir()).write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"damaged; delete it"):
        [cache.utter("Where is the red thing?", pitch=pitch) for pitch in (40, 50)]


# ---- the command ----------------------------------------------------------------------------------------------------


def test_a_sheet_shows_itself_in_a_notebook() -> None:
    shown = contact_sheet([Scenes("test", 1, speech=False)[0]])._repr_png_()
    assert shown.startswith(b"\x89PNG") and len(shown) > 5000


def test_the_world_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["world"]) == 0
    assert f"loss floor {world.loss_floor(TOK.encode, 'test'):.4f}" in capsys.readouterr().out
    sheet = tmp_path / "sheet.png"
    assert main(["world", "--show", "--count", "3", "--split", "compositional", "--out", str(sheet)]) == 0
    assert sheet.stat().st_size > 20_000 and len(PLACES) == 5
    assert main(["world", "--show", "--count", "0", "--out", str(sheet)]) == 2
    assert main(["world", "--show", "--split", "nowhere"]) == 2
    assert "no split 'nowhere'" in capsys.readouterr().err
