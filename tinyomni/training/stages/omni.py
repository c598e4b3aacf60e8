"""The omni stage: the Thinker learns to read what the eye and the ear tell it, and to answer.

    [picture] [sound …] BOS prompt … | answer … EOS
    proj_v    proj_a    tok_emb        ← the loss is on these only

Eye and ear are trained; here they are frozen, and in eval mode, so what they make of a picture or a recording never
changes and is kept. What is learned are the two projectors, which translate into the Thinker's width, and the Thinker.

What is heard and what is seen is written down first, and then the answer, in one go:

    What colour is the star? There is a big red star on the left and a small grey ring at the top. Colour star red: Red.

The answer is then looked up in text, as a field, a key and the value right behind it (`data/retrieval.py`). Out of one
vector it has to be picked in a few layers, before a word is said; so learned, choosing among three things stayed near
to guessing. Looking up is learned first, from short lists, and goes on beside the pictures: from questions alone it
is hardly learned, since most of a row says nothing about it.

Sources: Liu et al., LLaVA (2023), arXiv:2304.08485, for a projector into a language model; Xu et al., Qwen2.5-Omni
(2025), arXiv:2503.20215, for the order of a sequence; Nye et al. (2021), arXiv:2112.00114, for writing down before
answering; Bengio et al., Curriculum Learning (2009), ICML, for what is easy first.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from tinyomni.audio import AudioEncoderTiny, MelFrontend, audio_token_count
from tinyomni.config import TINY
from tinyomni.data import manifests, retrieval, unanswerable, world
from tinyomni.data.datasets import Encode, Lines, Sample, Scenes, Speech, Utterance, pad, pixels
from tinyomni.layers import init_weights
from tinyomni.omni import NOTED
from tinyomni.thinker import ThinkerLM
from tinyomni.tokenizer import BOS, EOS, PAD
from tinyomni.training.distributed import to_device
from tinyomni.training.engine import MUON, Settings, Stage
from tinyomni.training.recipe import Job, Place
from tinyomni.training.stages.audio import AudioStage, in_a_room
from tinyomni.training.stages.thinker import ThinkerStage
from tinyomni.training.stages.vision import EASY, VisionStage
from tinyomni.vision import ViTTiny

SETTINGS = {
    "smoke": Settings(steps=3, batch_size=2, warmup=1, validate_freq=3, **MUON),
    "laptop": Settings(steps=1150, batch_size=4, lr=1.5e-3, warmup=60, validate_freq=200, checkpoint_freq=200, **MUON),
    "gpu": Settings(steps=8000, batch_size=32, lr=1e-3, warmup=200, validate_freq=500, workers=12, **MUON),
}
SCENES = {"smoke": 32, "laptop": 6_000, "gpu": 200_000}  # to look at
SPOKEN = {"smoke": 8, "laptop": 6_000, "gpu": 100_000}  # questions that are asked aloud, and utterances to repeat
HELD_OUT = {"smoke": 2, "laptop": 32, "gpu": 128}  # items of Mix
DESCRIBE = ("Describe the image.", "What do you see in this image?", "What do you see?")
REPEAT = ("", "What was said?", "What did you hear?", "Repeat what you heard.")
BOTH = ("Describe what you see and hear.", "Describe what you can see and hear.")
REPLIES = {
    "Hello, how are you?": "I am fine, thank you.",
    "How are you today?": "I am fine, thank you.",
    "Thank you very much.": "You are welcome.",
    "Can you help me?": "Of course I can.",
    "Good night.": "See you soon.",
    "What time is it?": unanswerable.DO_NOT_KNOW,
    "Where are we now?": unanswerable.DO_NOT_KNOW,
}
TYPED = 8  # typed questions in an item of Mix
SHORT, LONG = 2, 3  # texts in it in which much is looked up: lists, descriptions
FIRST = 16  # lists in an item that holds nothing else
FIRST_STEPS = 300  # of such items, but no more than a quarter of all steps
IGNORE = -100  # a target that cross-entropy leaves out


# ---- rows -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One sequence. Picture and sound are raw, (3, 224, 224) and (samples,), or what eye and ear made of them:
    (1, 128) and (audio_tokens, 192)."""

    prompt: list[int]  # BOS first
    answer: list[int]  # EOS last, where it comes to an end
    picture: Float[Tensor, "..."] | None = None
    sound: Float[Tensor, "..."] | None = None
    given: frozenset[int] = frozenset()  # places in the answer that are not to be learned

    @property
    def size(self) -> int:
        """Its tokens, about: picture, sound, text."""
        sound = 0 if self.sound is None else len(self.sound)
        if self.sound is not None and self.sound.ndim == 1:
            sound = audio_token_count(sound // TINY.audio.hop)
        return len(self.prompt) + len(self.answer) + (self.picture is not None) + sound


@dataclass(frozen=True)
class Rows:
    """Rows side by side; `picture_of` says which of the pictures is a row's, -1 for none, and `sound_of` likewise."""

    ids: Int[Tensor, "batch text_tokens"]
    lengths: Int[Tensor, "batch"]
    due: Bool[Tensor, "batch text_tokens"]  # which of the ids are to be learned
    pictures: Float[Tensor, "pictures ..."] | None
    picture_of: Int[Tensor, "batch"]
    sounds: Float[Tensor, "sounds ..."] | None
    sound_lengths: Int[Tensor, "sounds"] | None
    sound_of: Int[Tensor, "batch"]


def collate(items: Sequence[list[Row]]) -> list[Rows]:
    """Rows of about one length stand together, so that little is padding; those with sound apart from the others."""
    rows = sorted((row for item in items for row in item), key=lambda row: (row.sound is not None, row.size))
    groups: list[list[Row]] = []
    for row in rows:
        alike = groups and (groups[-1][0].sound is None) == (row.sound is None)
        if not alike or row.size > 1.3 * groups[-1][0].size:
            groups.append([])
        groups[-1].append(row)
    return [side_by_side(group) for group in groups]


def side_by_side(rows: Sequence[Row]) -> Rows:
    """A picture or sound that several rows share is in it once."""
    ids, lengths = pad([torch.tensor(row.prompt + row.answer) for row in rows], PAD)
    due, _ = pad([torch.tensor([False] * len(row.prompt) + [i not in row.given for i in range(len(row.answer))])
                  for row in rows], False)  # fmt: skip
    pictures, picture_of = shared([row.picture for row in rows])
    sounds, sound_of = shared([row.sound for row in rows])
    padded, sound_lengths = pad(sounds) if sounds else (None, None)
    return Rows(
        ids, lengths, due,
        torch.stack(pictures) if pictures else None, picture_of, padded, sound_lengths, sound_of,
    )  # fmt: skip


def by_sense(batch: Sequence[Rows], values: Sequence[Float[Tensor, "_"]]) -> dict[str, Float[Tensor, ""]]:
    """The mean of what rows without sound have, `read`, and of what those with sound have, `heard`."""
    kinds: dict[str, list[Tensor]] = {}
    for rows, each in zip(batch, values, strict=True):
        kinds.setdefault("read" if rows.sounds is None else "heard", []).append(each)
    return {sense: torch.cat(found).mean() for sense, found in kinds.items()}


def shared(tensors: Sequence[Tensor | None]) -> tuple[list[Tensor], Int[Tensor, "batch"]]:
    """The different tensors among these, and the number of each one's; -1 for None."""
    different: dict[int, Tensor] = {}
    numbers = []
    for tensor in tensors:
        if tensor is not None:
            different.setdefault(id(tensor), tensor)
        numbers.append(-1 if tensor is None else list(different).index(id(tensor)))
    return list(different.values()), torch.tensor(numbers)


# ---- the stage ------------------------------------------------------------------------------------------------------


class OmniStage(Stage):
    """Eye, ear, Thinker, and the projectors between them; the names are those of `Omni`."""

    name = "omni"

    def __init__(self, thaw: bool = False, validation: Sequence[list[Row]] = ()) -> None:
        super().__init__()
        self.thinker = ThinkerLM()
        self.vision = ViTTiny()
        self.mel = MelFrontend()
        self.audio = AudioEncoderTiny()
        self.proj_v = nn.Linear(TINY.vision.vision_dim, TINY.thinker.d_model)
        self.proj_a = nn.Linear(TINY.audio.audio_dim, TINY.thinker.d_model)
        self.thaw, self.validation = thaw, validation
        for encoder in (self.vision, self.audio):
            encoder.requires_grad_(thaw)

    def train(self, mode: bool = True) -> "OmniStage":
        """Frozen encoders stay as they are in use."""
        super().train(mode)
        if not self.thaw:
            self.vision.eval()
            self.audio.eval()
        return self

    # -- what eye and ear make of it

    def see(self, pictures: Float[Tensor, "pictures ..."]) -> Float[Tensor, "pictures 1 vision_dim"]:
        """Pixels → CLS; what is a CLS already stays."""
        return self.vision(pictures) if pictures.ndim == 4 else pictures

    def hear(
        self, sounds: Float[Tensor, "sounds ..."], lengths: Int[Tensor, "sounds"]
    ) -> tuple[Float[Tensor, "sounds audio_tokens audio_dim"], Int[Tensor, "sounds"]]:
        """Samples → audio tokens, and how many of them are a row's own; what are audio tokens already stay."""
        if sounds.ndim == 3:
            return sounds, lengths
        frames = lengths // self.mel.hop
        return self.audio(self.mel(sounds), frames), (frames + 3) // 4

    # -- one sequence

    def sequences(self, rows: Rows) -> tuple[Float[Tensor, "batch tokens d_model"], Int[Tensor, "batch tokens"]]:
        """Picture, sound, text, as `Omni.embed` puts them, padded at the right; and what is due after each token.

        Of what is not due the target is IGNORE.
        """
        due = torch.where(rows.due, rows.ids, IGNORE)
        text = self.thinker.embed(rows.ids)
        pictures = None if rows.pictures is None else self.proj_v(self.see(rows.pictures))
        sounds = None
        if rows.sounds is not None and rows.sound_lengths is not None:
            tokens, tokens_of = self.hear(rows.sounds, rows.sound_lengths)
            sounds = self.proj_a(tokens)
        inputs, targets = [], []
        for row, length in enumerate(rows.lengths.tolist()):
            parts = [text[row, : length - 1]]  # nothing is due after EOS
            if sounds is not None and (sound := int(rows.sound_of[row])) >= 0:
                parts.insert(0, sounds[sound, : int(tokens_of[sound])])
            if pictures is not None and (picture := int(rows.picture_of[row])) >= 0:
                parts.insert(0, pictures[picture])
            inputs.append(torch.cat(parts))
            targets.append(F.pad(due[row, 1:length], (len(inputs[-1]) - (length - 1), 0), value=IGNORE))
        return (
            pad_sequence(inputs, batch_first=True),
            pad_sequence(targets, batch_first=True, padding_value=IGNORE),
        )

    def losses(self, rows: Rows) -> tuple[Float[Tensor, "due"], Bool[Tensor, "due"]]:
        """The loss of each token that is due, and which of them would have been said."""
        x, targets = self.sequences(rows)
        for block in self.thinker.blocks:
            x = block(x)
        due = targets != IGNORE
        logits = self.thinker.lm_head(self.thinker.norm(x[due])).float()  # the rest says nothing that counts
        return F.cross_entropy(logits, targets[due], reduction="none"), logits.argmax(dim=-1) == targets[due]

    def forward(self, batch: list[Rows]) -> tuple[Float[Tensor, ""], dict[str, Any]]:
        """The mean over all tokens that are due; as figures, that of rows without sound and of those with."""
        losses = [self.losses(rows)[0] for rows in batch]
        return torch.cat(losses).mean(), by_sense(batch, [loss.detach() for loss in losses])

    def weight(self, batch: list[Rows]) -> float:
        """Tokens that are due."""
        return sum(float(rows.due.sum()) for rows in batch)

    def exact(self, rows: Rows) -> Float[Tensor, "batch"]:
        """1 where a row's whole answer would be said, token by token, else 0."""
        wrong = torch.zeros(len(rows.ids), device=rows.ids.device)
        due = rows.due.sum(dim=1)
        wrong.index_add_(0, torch.arange(len(wrong), device=wrong.device).repeat_interleave(due),
                         (~self.losses(rows)[1]).float())  # fmt: skip
        return (wrong == 0).float()

    def validate(self) -> dict[str, float]:
        """The loss on held-out scenes, and how many rows without sound and with sound are answered without a fault."""
        if not self.validation:
            return {}
        batch = [to_device(rows, self.proj_v.weight.device) for rows in collate(self.validation)]
        loss = torch.cat([self.losses(rows)[0] for rows in batch]).mean()
        exact = by_sense(batch, [self.exact(rows) for rows in batch])
        return {"loss": float(loss), **{sense: float(share) for sense, share in exact.items()}}

    # -- what is remembered

    @torch.no_grad()
    def features(self, row: Row) -> Row:
        """The row with what the encoders make of its picture and sound in their place."""
        device = self.proj_v.weight.device
        picture, sound = row.picture, row.sound
        if picture is not None and picture.ndim == 3:
            picture = self.see(picture[None].to(device))[0].cpu()
        if sound is not None and sound.ndim == 1:
            sound = self.hear(sound[None].to(device), torch.tensor([len(sound)], device=device))[0][0].cpu()
        return replace(row, picture=picture, sound=sound)


# ---- the data -------------------------------------------------------------------------------------------------------

Reader = Callable[[Row], Row]


def noted(seen: str, question: str, answer: str) -> str:
    """`There is a big red star on the left. Colour star red: Red.`: the answer behind what it follows from."""
    found = None if seen == unanswerable.SEE_NOTHING else retrieval.lookup(question, answer)
    before = f"{seen} {found}" if found else seen.removesuffix(".")
    return f"{before}{NOTED}{answer.capitalize()}"


class Mix(Dataset[list[Row]]):
    """Typed questions, each about a picture of its own; a caption; a spoken question; something to repeat; text alone;
    something outside the closed world (`data/unanswerable.py`); and texts in which much is looked up. The `first`
    items are lists to look up in, and nothing else.

    Questions about one picture teach little more than one of them does. Measured once, with an earlier eye, on 19,000
    typed questions: with eight about each picture 60% of some 700 held-out ones were answered right, with one 67%.

    `keep` makes features of a row that has a picture or sound; they stay in memory, so that what comes again costs
    nothing. The questions are others each time. The items of seed 1 are those that would come behind those of seed 0.
    """

    def __init__(
        self,
        encode: Encode,
        scenes: Scenes,
        size: int,
        asked: Scenes | None = None,
        speech: Speech | None = None,
        keep: Reader | None = None,
        first: int = 0,
        seed: int = 0,
    ) -> None:
        self.encode, self.scenes, self.size, self.asked, self.speech = encode, scenes, size, asked, speech
        self.keep, self.first, self.behind = keep, first, seed * size
        self.lines = Lines(scenes.split, size + self.behind)
        self.kept: dict[tuple[Scenes | Speech, int], Row] = {}

    def __len__(self) -> int:
        return self.size

    def row(self, prompt: str, answer: str, **senses: Any) -> Row:
        """Text → ids."""
        return Row([BOS, *self.encode(prompt)], [*self.encode(answer), EOS], **senses)

    def __getitem__(self, index: int) -> list[Row]:
        first = index < self.first
        index += self.behind
        rng = random.Random(f"{self.scenes.split} mix {index}")
        if first:
            return self.lists(rng, short=FIRST)
        numbers = [(TYPED * index + i) % len(self.scenes) for i in range(TYPED)]
        seen = [(self.scenes.things(number), self.once(self.scenes, number)) for number in numbers]
        typed = []
        for things, picture in seen:
            question, answer = world.ask(things, rng)
            typed.append(self.row(question, noted(world.in_order(things), question, answer), picture=picture.picture))
        things, picture = seen[0]
        caption = self.row(rng.choice(DESCRIBE), world.in_order(things), picture=picture.picture)
        sounding = self.sounding(index, caption, rng)
        return [*typed, caption, *sounding, self.text(index, rng), self.strange(index, things, picture),
                *self.lists(rng, SHORT, LONG)]  # fmt: skip

    def lists(self, rng: random.Random, short: int, long: int = 0) -> list[Row]:
        """Short lists and whole descriptions, of two things or three, in each of which much is looked up.

        To be learned are the values only: what is looked up is chosen at random, and nobody can know it.
        """
        rows = []
        for number in range(short + long):
            things: list[world.Thing] = []
            while len(things) < 2:
                things = self.scenes.things(rng.randrange(len(self.scenes)))
            text, found = retrieval.draw(things, rng, number < short)
            ids: list[int] = []
            given: set[int] = set()
            for each in found:
                for part, learned in ((f"{each.field} {each.key}", False), (each.value, True), (".", False)):
                    new = self.encode(part)
                    if not learned:
                        given |= set(range(len(ids), len(ids) + len(new)))
                    ids += new
            rows.append(Row([BOS, *self.encode(text)], ids, given=frozenset(given)))
        return rows

    def sounding(self, index: int, caption: Row, rng: random.Random) -> list[Row]:
        """A spoken question, and something to repeat, at times beside a picture that is to be described."""
        rows = [] if self.asked is None else [self.once(self.asked, index % len(self.asked))]
        if self.speech is None:
            return rows
        row = self.once(self.speech, index % len(self.speech))
        if rng.random() < 0.2:
            both = replace(caption, prompt=[BOS, *self.encode(rng.choice(BOTH))])
            return [*rows, replace(both, answer=[*caption.answer[:-1], *row.answer], sound=row.sound)]
        return [*rows, replace(row, prompt=[BOS, *self.encode(rng.choice(REPEAT))])]

    def text(self, index: int, rng: random.Random) -> Row:
        """Text alone: a line, or one that is replied to. To a question about a picture the answer is not to guess."""
        if rng.random() < 0.2:
            return self.row(*rng.choice(list(REPLIES.items())))
        line = self.lines[index]
        question, asks, _ = line.partition("? ")
        return self.row(f"{question}?", unanswerable.CANNOT_SEE) if asks else self.row("", line)

    def strange(self, index: int, things: list[world.Thing], seen: Row) -> Row:
        """A row to which the answer is that one does not know; every other time about the scene itself.

        What is seen is written down here too: whether a thing is there is known only then.
        """
        split = self.scenes.split
        rng = random.Random(f"{split} strange {index}")
        kind = rng.choice(("question", "question", "question", "picture", "picture", "sound"))
        if kind == "question":
            question = unanswerable.question(things, rng, split)
            answer = noted(world.in_order(things), question, unanswerable.DO_NOT_KNOW)
            return self.row(question, answer, picture=seen.picture)
        if kind == "sound":
            row = self.row("", unanswerable.HEARD_NOTHING, sound=unanswerable.sound(rng, split))
        else:
            question, answer = rng.choice(DESCRIBE), unanswerable.SEE_NOTHING
            if rng.random() < 0.7:
                question = world.ask(things, rng)[0]
                answer = noted(unanswerable.SEE_NOTHING, question, unanswerable.DO_NOT_KNOW)
            row = self.row(question, answer, picture=pixels(unanswerable.picture(rng, split)))
        return row if self.keep is None else self.keep(row)

    def once(self, source: Scenes | Speech, number: int) -> Row:
        """A record's row, out of memory where it is kept there."""
        found = self.kept.get((source, number))
        if found is None:
            found = self.read(source[number], torch.Generator().manual_seed(number))
            if self.keep is not None:
                self.kept[source, number] = found = self.keep(found)
        return found

    def read(self, record: Sample | Utterance, room: torch.Generator) -> Row:
        """Something said, to repeat; a question asked aloud about a picture; or a picture, to ask about."""
        if isinstance(record, Utterance):
            return self.row("", record.text, sound=in_a_room(record.wave, room))
        picture = pixels(record.picture)
        if record.question_wave is None:
            return Row([], [], picture=picture)
        answer = noted(world.in_order(record.things), record.question, record.answer)
        return self.row("", f"{record.question} {answer}", picture=picture, sound=in_a_room(record.question_wave, room))


class OwnRows(Dataset[list[Row]]):
    """A manifest: a picture and a question, a picture to describe, or speech to repeat."""

    def __init__(
        self, encode: Encode, rows: manifests.Rows, numbers: Sequence[int], keep: Reader | None = None
    ) -> None:
        self.encode, self.rows, self.numbers, self.keep = encode, rows, numbers, keep

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> list[Row]:
        item: manifests.Item = self.rows[self.numbers[index]]
        texts = item.texts
        prompt = {"caption": DESCRIBE[0], "question": texts.get("question", ""), "speech": ""}[self.rows.kind]
        answer = texts[manifests.KINDS[self.rows.kind][-1]]
        return [Row([BOS, *self.encode(prompt)], [*self.encode(answer), EOS], item.pixels, item.wave)]


def job(place: Place, thaw: bool = False, anew: bool = True) -> Job:
    """Starts from what the stages vision and audio have learned, and with `anew=False` thinker.

    A Thinker that has read for long hardly looks at a picture. Tried once, on typed questions alone (48 a step, lr
    1e-3): after 200 steps it named 11% of the colours, as many as by guessing; one that starts anew named 53%, and it
    learns to read on the way. What is learned first is hard to turn away from (Ash & Adams, 2020, arXiv:1910.08475).

    Where no worker processes read the data, features are made in this one and kept; on a GPU the stage makes them.
    """
    settings, encode = place.settings(SETTINGS), place.tokenizer().encode
    stage = OmniStage(thaw)
    if anew:
        init_weights(stage.thinker, TINY.thinker.layers, init="lecun")
    else:
        stage.thinker.load_state_dict(place.trained(ThinkerStage(encode)).thinker.state_dict())
    stage.vision.load_state_dict(place.trained(VisionStage()).vision.state_dict())
    stage.audio.load_state_dict(place.trained(AudioStage()).encoder.state_dict())
    keep = None if thaw or settings.workers else stage.features
    train: Dataset[Any]
    if place.data is None:
        cache = str(place.folder / "speech")
        held, aloud = HELD_OUT[place.preset], SPOKEN[place.preset]
        held_out: Dataset[Any] = Mix(encode, Scenes("validation", TYPED * held, speech=False), held,
                                     Scenes("validation", held, cache=cache), keep=keep)  # fmt: skip
        seen = Scenes("train", SCENES[place.preset], speech=False, easy=EASY)
        asked, said = Scenes("train", aloud, cache=cache, easy=EASY), Speech("train", aloud, cache=cache)
        first = min(FIRST_STEPS, settings.steps // 4)
        train = Mix(encode, seen, settings.steps * settings.batch_size, asked, said, keep,
                    first * settings.batch_size, settings.seed)  # fmt: skip
        stage.validation = [held_out[i] for i in range(held)]
    else:
        rows = place.own("caption", "question", "speech")
        train = OwnRows(encode, rows, [i for i in range(len(rows)) if i % 20 or len(rows) < 40])
        held_out = OwnRows(encode, rows, range(0, len(rows), 20))
        stage.validation = [held_out[i] for i in range(min(128, len(held_out)))]
    return Job(stage, train, collate, settings, in_order=place.data is None)
