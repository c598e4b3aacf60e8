"""The closed world: what is true in it, its splits, and that it is the same on every machine."""

import dataclasses
import functools
import itertools
import math
import multiprocessing
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, DistributedSampler

from tinyomni.audio import CHARS
from tinyomni.cli import main
from tinyomni.config import SAMPLE_RATE
from tinyomni.data import retrieval, tts, unanswerable, world
from tinyomni.data.datasets import Lines, Sample, Scenes, Speech, collate_speech, pixels
from tinyomni.data.preview import preview
from tinyomni.data.rendering import PLACE_OFFSETS, RGB, render
from tinyomni.data.tts import HELD_OUT_VOICE, TTS_VOICES, SpeechCache, SpeechUnavailable, trim, utter
from tinyomni.data.world import (
    COLOURS,
    HELD_OUT,
    PLACES,
    QUESTION_KINDS,
    SHAPES,
    SIZES,
    SPLITS,
    Question,
    QuestionKind,
    Thing,
)
from tinyomni.data.world.questions import Family, Line, Wording
from tinyomni.dry_run import AUDIO, IMAGE
from tinyomni.errors import InputError
from tinyomni.io.audio import load_audio
from tinyomni.tokenizer import BPETokenizer

TOK = BPETokenizer()


# ---- grammar --------------------------------------------------------------------------------------------------------


def test_every_line_occurs_once_and_the_entropy_is_that_of_the_draws() -> None:
    lines = [line.text for _, family in world.language().values() for line in family]
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
def test_the_loss_floor_is_the_loss_of_a_reader_who_knows_the_grammar(split: str) -> None:
    """A reader that gives every line its true probability, token by token, loses exactly this much for a token."""
    nats = tokens = 0.0
    for weight, texts in world.lines_of(split).values():
        for text in texts:
            nats += weight / len(texts) * world.surprisal(split)[text]
            tokens += weight / len(texts) * (len(TOK.encode(text)) + 1)
    assert math.isclose(world.loss_floor(TOK.encode, split), nats / tokens)
    assert nats / tokens < math.log(TOK.n_pieces) / 4


def test_such_a_reader_gives_all_lines_together_a_probability_of_one() -> None:
    """In a family that all splits have: a line of test is as likely as one of validation, or as any not held out."""
    p = {split: sum(math.exp(-nats) for nats in world.surprisal(split).values()) for split in SPLITS}
    assert math.isclose(p["train"], 1)
    assert set(world.surprisal("test")).isdisjoint(world.surprisal("train"))
    (weight, lines) = world.language()["there"]
    allowed = [line.text for line in lines if HELD_OUT.isdisjoint(line.pairs)]
    one = next(text for text in allowed if text in world.surprisal("test"))
    assert math.isclose(math.exp(-world.surprisal("test")[one]), weight / len(allowed))
    assert 0.03 < p["test"] + p["validation"] < 0.15 and 0.03 < p["compositional"] < 0.15
    # who takes all combinations for possible gives each line what it has in the whole grammar
    unknowing = {line: nats for split in SPLITS for line, nats in world.surprisal(split, knows_held_out=False).items()}
    assert math.isclose(sum(math.exp(-nats) for nats in unknowing.values()), 1)
    assert len(unknowing) == sum(len(family) for _, family in world.language().values())
    assert math.isclose(math.exp(-unknowing[one]), weight / len(lines))


def test_all_text_is_in_the_recognisers_alphabet_and_the_tokenizers_vocabulary() -> None:
    known = set(world.vocabulary())
    for _, family in world.language().values():
        for line in family:
            assert set(line.text) <= set(CHARS)
            assert {word.strip(".,?") for word in line.text.split()} <= known


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
def test_every_question_has_one_right_answer_and_every_kind_is_equally_likely(hard: bool) -> None:
    kinds: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    for index in range(3000):
        things = world.draw_scene("train", index, hard=hard)
        for question in [*world.questions(things), world.draw_question(things, random.Random(index))]:
            assert truth(things, question.text) == question.answer.rstrip(".").lower(), (question, things)
            assert question.value == question.answer.rstrip(".").lower().split()[-1]
        assert set((question.key or "?").split()) <= set(question.text.rstrip("?").split())
        kinds[str(question.kind)] += 1
        answers[question.answer] += question.kind == "existence"
        assert len({thing.place for thing in things}) == len(things) == len({(t.colour, t.shape) for t in things})
    assert set(kinds) == set(QUESTION_KINDS) == {"colour", "shape", "count", "size", "place", "existence"}
    assert min(kinds.values()) > 0.7 * 3000 / 6 and 0.8 < answers["Yes."] / answers["No."] < 1.25


def test_hard_negatives_keep_colours_and_count_and_change_the_caption() -> None:
    found = 0
    for index in range(300):
        things = world.draw_scene("train", index)
        for other in world.hard_negatives(things):
            found += 1
            assert sorted(t.colour for t in other) == sorted(t.colour for t in things) and len(other) == len(things)
            assert sorted(t.shape for t in other) == sorted(t.shape for t in things)
            assert sorted(world.description(other).split()) != [] and world.scene_key(other) != world.scene_key(things)
            # the words of both captions are the same: only their order tells them apart
            words = [sorted(word.strip(",.") for word in world.description(each).split()) for each in (things, other)]
            assert [w for w in words[0] if w not in ("a", "an")] == [w for w in words[1] if w not in ("a", "an")]
    assert found > 500


# ---- splits ---------------------------------------------------------------------------------------------------------


def test_splits_share_no_line_no_scene_and_no_held_out_pair() -> None:
    lines = {split: {text for _, texts in world.lines_of(split).values() for text in texts} for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not lines[one] & lines[other]
    scenes = {split: [world.draw_scene(split, i) for i in range(400)] for split in SPLITS}
    keys = {split: {world.scene_key(things) for things in found} for split, found in scenes.items()}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not keys[one] & keys[other]
    for split, found in scenes.items():
        for things in found:
            assert (not HELD_OUT.isdisjoint((t.colour, t.shape) for t in things)) == (split == "compositional")
    for split in ("train", "validation", "test"):
        for colour, shape in HELD_OUT:
            assert not any(f"{colour} {shape}" in line for line in lines[split])
    assert len(lines["train"]) > 0.7 * sum(map(len, lines.values())) and min(map(len, lines.values())) > 1000
    assert HELD_OUT_VOICE not in TTS_VOICES and len(HELD_OUT) == 8
    assert len({shape for _, shape in HELD_OUT}) == len({colour for colour, _ in HELD_OUT}) == 8


def test_training_never_names_a_held_out_pair() -> None:
    """Neither a swap nor a question, not even one whose answer is no, names a held-out combination or another split."""
    scenes = Scenes("train", 300, speech=False)
    asked = {scenes[index].question.text for index in range(300)}
    asked |= {question.text for index in range(300)
              for half in world.questions_by_kind(scenes.things(index))["existence"] for question in half}  # fmt: skip
    assert not any(f"{colour} {shape}" in question for colour, shape in HELD_OUT for question in asked)
    swapped = [sample for index in range(100) for sample in scenes.with_negatives(index)]
    assert len(swapped) > 250 and {world.split_of_scene(list(sample.things)) for sample in swapped} == {"train"}
    tested = [sample for index in range(60) for sample in Scenes("test", 60, speech=False).with_negatives(index)]
    assert "compositional" not in {world.split_of_scene(list(sample.things)) for sample in tested}
    # where a held-out combination is seen, it is asked about too, with both answers
    seen = [world.questions_by_kind(world.draw_scene("compositional", index))["existence"] for index in range(300)]
    about = Counter(question.answer for halves in seen for half in halves for question in half
                    if any(f"{c} {s}" in question.text for c, s in HELD_OUT))  # fmt: skip
    assert min(about["Yes."], about["No."]) > 20


def test_a_tenth_of_the_questions_is_never_spoken_in_training() -> None:
    spoken = world.spoken_in_training
    every = {question for index in range(2000) for question in world.questions(world.draw_scene("train", index))}
    texts = {question.text for question in every}
    never = {text for text in texts if not spoken(text)}
    assert 0.05 < len(never) / len(texts) < 0.15
    assert {question.kind for question in every if question.text in never} == set(QUESTION_KINDS)
    assert all(map(world.line_spoken_in_training, world.PHRASES))
    train, test = Scenes("train", 400), Scenes("test", 100, speech=False, spoken_in_training=False)
    drawn = [world.draw_question(train.things(i), random.Random(i), train.accepts) for i in range(400)]
    assert all(spoken(question.text) for question in drawn)
    assert not any(spoken(test[i].question.text) for i in range(100))
    typed = Scenes("train", 400, speech=False)
    assert {typed[i].question.text for i in range(400)} & never  # they are typed, also in training
    lines = [Speech("train", 3000).text(i)[0] for i in range(3000)]
    assert all(map(world.line_spoken_in_training, lines)) and not any(question in line for question in never
                                                                      for line in lines)  # fmt: skip
    assert world.question_of("How big is the star? Big.") == "How big is the star?"
    assert world.question_of("Hello, how are you?") is None
    with pytest.raises(InputError, match="never spoken in training"):
        Scenes("train", 5, spoken_in_training=False)
    with pytest.raises(InputError, match="no question was accepted"):
        world.draw_question(train.things(0), random.Random(0), lambda question: False)


def test_a_question_kind_is_added_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """One entry in the registry: it is drawn, asked, looked up and becomes lines of the language model."""

    class Most(QuestionKind):
        def questions(self, things: Sequence[Thing]) -> Iterator[Question]:
            shape, number = Counter(thing.shape for thing in things).most_common(1)[0]
            if number > 1:
                yield Question(self.id, "Which shape is there most?", f"A {shape}.", shape, shape)

        def families(self) -> dict[str, Family]:
            return {"most": (0.05, tuple(Line(f"Which shape is there most? A {shape}.") for shape in SHAPES))}

    before = {name: weight for name, (weight, _) in world.language().items()}
    monkeypatch.setitem(QUESTION_KINDS, "most", Most("most", "Most", frozenset(), (Wording("Which shape"),)))
    things = [Thing("big", "red", "star", PLACES[0]), Thing("big", "blue", "star", PLACES[1])]
    asked = {world.draw_question(things, random.Random(seed)).kind for seed in range(60)}
    assert "most" in asked and "most" not in world.questions_by_kind(things[:1])
    (question,) = QUESTION_KINDS["most"].questions(things)
    assert str(retrieval.lookup(question)) == "Most star star"
    drawn = [retrieval.draw(things, random.Random(seed), short=False)[1] for seed in range(20)]
    assert any(each.keyword == "Most" for found in drawn for each in found)
    weights = {name: weight for name, (weight, _) in world.language.__wrapped__().items()}
    assert math.isclose(weights.pop("most"), 0.05 / 1.05) and weights.keys() == before.keys()
    assert all(math.isclose(weights[name], before[name] / 1.05) for name in before)


def test_a_seed_gives_the_same_data_on_every_machine() -> None:
    code = (
        "from tinyomni.data import world\nfrom tinyomni.data.datasets import Scenes, Speech\nimport hashlib\n"
        "s = Scenes('test', 50, speech=False)[7]\n"
        "print(world.draw_line('train', 5), s.caption, s.question.text, Speech('test').text(9), "
        "hashlib.sha256(s.image.tobytes()).hexdigest())"
    )
    runs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                       env={"PYTHONHASHSEED": seed, "PATH": ""}).stdout for seed in ("0", "1")
    }  # fmt: skip
    assert len(runs) == 1
    # frozen: lessons quote these
    assert world.draw_line("train", 5) == "How big is the triangle? Big."
    assert world.description(world.draw_scene("train", 0)) == (
        "There is a big cyan star on the right, a big purple cross at the top and a big black cross at the bottom."
    )
    assert world.draw_scene("train", 0, seed=1) != world.draw_scene("train", 0)


# ---- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hard", [False, True])
def test_an_image_shows_its_scene(hard: bool) -> None:
    """At each place the nearest colour and the extent of the thing are right; elsewhere there is nothing."""
    names = [*RGB, "edge"]
    table = np.array([*RGB.values(), (90, 90, 90)])
    for index in range(150):
        things = {thing.place: thing for thing in world.draw_scene("train", index, hard=hard)}
        image = np.asarray(render(list(things.values()), index, hard)).astype(int)
        assert image.shape == (224, 224, 3)
        darkest = image.min(-1)
        drawn = (darkest <= 190) | (darkest >= 248)  # the background is light, and never quite white
        for place, (right, down) in PLACE_OFFSETS.items():
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


def test_easy_images_fill_whole_patches_and_hard_ones_vary() -> None:
    square = [Thing("big", "black", "circle", "on the left")]
    easy = np.asarray(render(square, 1, hard=False))
    assert np.array_equal(easy, np.asarray(render(square, 2, hard=False)))
    rows, columns = np.nonzero((easy < 80).all(-1))
    assert (columns.min() // 16, columns.max() // 16, rows.min() // 16, rows.max() // 16) == (1, 4, 5, 8)
    hard = [np.asarray(render(square, seed)) for seed in range(3)]
    assert not np.array_equal(hard[0], hard[1]) and not np.array_equal(hard[1], hard[2])


# ---- samples and batches --------------------------------------------------------------------------------------------


def test_some_images_can_be_easy_with_all_else_unchanged() -> None:
    mixed, hard = Scenes("train", 15, speech=False, easy=7), Scenes("train", 15, speech=False)
    for index in range(15):
        ours, theirs = mixed[index], hard[index]
        expected = theirs.image if index % 7 else render(theirs.things, hard=False)
        assert ours.image.tobytes() == expected.tobytes()
        assert dataclasses.replace(ours, image=theirs.image) == theirs
    with pytest.raises(ValueError, match=r"easy must be at least 1 .*, got 0"):
        Scenes("train", 15, easy=0)


def test_a_sample_is_complete_and_about_one_scene() -> None:
    scenes = Scenes("validation", 20)
    for index in (0, 7):
        sample = scenes[index]
        things = list(sample.things)
        assert sample.caption == world.description(things) and sample.statement in set(world.captions(things))
        assert truth(things, sample.question.text) == sample.answer.lower().rstrip(".")
        how = (sample.speaker.voice, sample.speaker.rate, sample.speaker.pitch)
        assert torch.equal(sample.question_wave, utter(sample.question.text, *how))
        assert torch.equal(sample.answer_wave, utter(sample.answer, *how))
        assert np.array_equal(np.asarray(sample.image), np.asarray(scenes[index].image))
    batch = Scenes("train", 50, speech=False).with_negatives(3)
    assert len({sample.caption for sample in batch}) == len(batch)


def stack_images(samples: Sequence[Sample]) -> torch.Tensor:
    return torch.stack([pixels(sample.image) for sample in samples])


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_distributed_samplers(workers: int) -> None:
    scenes = Scenes("train", 16, speech=False)
    parts = []
    for rank in range(2):
        sampler = DistributedSampler(scenes, num_replicas=2, rank=rank, shuffle=True, seed=1)
        loader = DataLoader(scenes, batch_size=4, sampler=sampler, num_workers=workers, collate_fn=stack_images)
        parts.append(torch.cat(list(loader)))
    alone = stack_images([scenes[i] for i in range(16)])
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
def test_unknown_splits_sizes_and_indices_are_refused(make: type) -> None:
    with pytest.raises(ValueError, match=r"expected one of the splits .*; got 'training'"):
        make("training")
    with pytest.raises(ValueError, match="size must be at least 1"):
        make("train", 0)
    with pytest.raises(IndexError, match="outside 0 … 4"):
        make("train", 5)[5]
    assert len(make("train", 5)) == 5 and make("train", 5)[-1] is not None


# ---- speech ---------------------------------------------------------------------------------------------------------


def say(arguments: tuple[str, str, int, int]) -> bytes:
    return utter(*arguments).numpy().tobytes()


def test_the_same_call_gives_the_same_samples_in_any_order_and_process() -> None:
    calls = [
        (text, voice, 150, 50) for voice in (*TTS_VOICES[1:3], HELD_OUT_VOICE) for text in ("Yes.", "What shape is it?")
    ]
    forward = [say(call) for call in calls]
    backward = [say(call) for call in reversed(calls)][::-1]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        elsewhere = list(pool.map(say, calls))
    assert forward == backward == elsewhere and len(set(forward)) == len(calls)


@pytest.mark.parametrize("voice", [*TTS_VOICES, HELD_OUT_VOICE])
def test_every_voice_speaks_without_clipping(voice: str) -> None:
    for rate, pitch in ((140, 35), (190, 65)):
        wave = utter("There is a big black square at the top.", voice, rate, pitch)
        assert 1.2 < len(wave) / 16_000 < 4 and 0.1 < float(wave.abs().max()) < 0.95 and wave.dtype == torch.float32


def test_speech_with_wrong_arguments() -> None:
    for arguments, words in (
        (("Hello.", "en-gb"), "no voice 'en-gb'"),
        (("Hello.", "en-us", 20), "rate must be within 80 … 450"),
        ((" ",), "empty"),
        (("\N{ZERO WIDTH SPACE}",), "gives no audio"),
    ):
        with pytest.raises(ValueError, match=words):
            utter(*arguments)


def test_without_espeak_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tts.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SpeechUnavailable, match=r"pip install espeakng-loader\. Lessons on text and images run"):
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


# ---- assets ---------------------------------------------------------------------------------------------------------


def test_the_assets_of_the_course_can_be_made_again() -> None:
    """Their recipe: an easy image of three things, and a sentence in the middle of one second of silence."""
    things = [Thing("big", "red", "circle", "on the left"), Thing("small", "blue", "star", "at the top"),
              Thing("big", "yellow", "triangle", "on the right")]  # fmt: skip
    with Image.open(IMAGE) as image:
        assert np.array_equal(np.asarray(image), np.asarray(render(things, hard=False)))
    spoken = trim(utter("There is a red circle.", rate=200))
    before = (SAMPLE_RATE - len(spoken)) // 2
    expected = torch.nn.functional.pad(spoken, (before, SAMPLE_RATE - len(spoken) - before))
    torch.testing.assert_close(load_audio(AUDIO), expected, atol=2**-14, rtol=0)


# ---- the command ----------------------------------------------------------------------------------------------------


def test_a_preview_shows_itself_in_a_notebook() -> None:
    shown = preview([Scenes("test", 1, speech=False)[0]])._repr_png_()
    assert shown.startswith(b"\x89PNG") and len(shown) > 5000


def test_the_world_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["world"]) == 0
    assert f"loss floor {world.loss_floor(TOK.encode, 'test'):.4f}" in capsys.readouterr().out
    out = tmp_path / "preview.png"
    assert main(["world", "--show", "--count", "3", "--split", "compositional", "--out", str(out)]) == 0
    assert out.stat().st_size > 20_000 and len(PLACES) == 5
    assert main(["world", "--show", "--count", "0", "--out", str(out)]) == 2
    with pytest.raises(SystemExit):
        main(["world", "--show", "--split", "nowhere"])
    assert "invalid choice: 'nowhere'" in capsys.readouterr().err
