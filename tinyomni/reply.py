"""What the model says: replies and transcripts as they are generated, how certain they are, and their parts.

A Thinker that was trained in the closed world writes before its answer: the transcript of a spoken question, the
description of the scene, and what it looks up there (the scratchpad; `training/omni_mixture.py`).

    What shape is the red thing? There is a big red star on the left. Shape red star: A star.
    transcript                   description                          lookup          answer

Special tokens stand between these parts (`tokenizer.Separators`), so that no text can be mistaken for the end of one.
Weights from before they were there are told apart by their text alone.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from statistics import fmean
from typing import Literal, NamedTuple

from tinyomni.generation import Step
from tinyomni.metrics import cer
from tinyomni.tokenizer import EOS, BPETokenizer, StreamDecoder

Kind = Literal["typed", "spoken", "asr"]
"""What certainty is measured for: answers to typed and to spoken questions, and transcripts of the recogniser."""

SCRATCHPAD_END = ": "
OBJECT = r"an? \w+ \w+ \w+ (?:on|at|in) the \w+"
DESCRIBES = "There is a"
UNCLEAR = "I can see nothing|I can count only to three|I do not know what I see"
# the answer behind the colon may be still to come
SCRATCHPAD = re.compile(
    rf"(?P<description>There is {OBJECT}(?:, {OBJECT})*(?: and {OBJECT})?|{UNCLEAR})"
    r"(?:\. (?P<lookup>[A-Z]\w*(?: \w+)+))?:(?: (?P<answer>.*))?",
    re.DOTALL,
)
SENTENCE = re.compile(r".+?[.?!] ", re.DOTALL)
HEARD_NOTHING = "I heard nothing."
MOST_APART = 0.3  # of the letters, that the recogniser may read otherwise in a recording that was understood


class ReplyParts(NamedTuple):
    """The parts of a reply; None for each that it does not have."""

    transcript: str | None
    description: str | None
    lookup: str | None
    answer: str


def parse_reply(text: str, spoken: bool) -> ReplyParts:
    """Split the scratchpad from the answer; a text without one is an answer as a whole, and nothing of it is lost.

    A scratchpad is a description exactly as the closed world writes it (`There is a big red star on the left`, up to
    `and`), perhaps one lookup, and a colon. In the reply to a recording (`spoken`) the transcript is the sentence, or
    sentences, before it; a reply without a scratchpad repeats what was said, or answers, which cannot be told apart:
    there the transcript is None.

    What remains ambiguous: an answer of a model trained on custom data that is itself such a description with a colon
    behind it. Only special tokens between the parts tell that apart: `split_reply`.
    """
    start, scratchpad = 0, SCRATCHPAD.fullmatch(text)
    while spoken and scratchpad is None and (sentence := SENTENCE.match(text, start)):
        start = sentence.end()
        scratchpad = SCRATCHPAD.fullmatch(text, start)
    if scratchpad is None:
        return ReplyParts(None, None, None, text)
    return ReplyParts(
        text[:start].rstrip() or None, scratchpad["description"], scratchpad["lookup"], scratchpad["answer"] or ""
    )


def split_reply(ids: Sequence[int], tokenizer: BPETokenizer) -> ReplyParts | None:
    """Split a reply, also one that is not yet whole, at its special tokens; None where it has none of them."""
    separators = tokenizer.separators
    if separators is None or separators.scratchpad not in ids:
        return None
    start = ids.index(separators.scratchpad)
    end = ids.index(separators.answer, start) if separators.answer in ids[start:] else len(ids)
    transcript, scratchpad, answer = (
        tokenizer.decode(part).strip() for part in (ids[:start], ids[start + 1 : end], ids[end + 1 :])
    )
    description, _, lookup = scratchpad.partition(". ")
    return ReplyParts(transcript or None, description or None, lookup or None, answer)


def disagreement(reading: str, parts: ReplyParts) -> float:
    """How far the recogniser's reading of a recording is from what a reply takes it for: the character error rate.

    That is its transcript; a reply without one repeats what was said, and ends with it. Infinite for one without a
    letter, 0 for a reply that heard nothing.
    """
    if parts.answer == HEARD_NOTHING and not parts.transcript:
        return 0.0
    whole = parts.transcript or parts.answer
    starts = [0] if parts.transcript else [0, *(found.end() for found in SENTENCE.finditer(whole))]
    taken_for = [letters for start in starts if (letters := letters_of(whole[start:]))]
    return min((cer([letters_of(reading)], [each]).rate for each in taken_for), default=math.inf)


def letters_of(text: str) -> str:
    """Without capitals and punctuation."""
    return " ".join(re.findall(r"[a-z]+", text.lower()))


class GeneratedText(Iterator[str]):
    """Text piece by piece; then `text`, the whole of it, and how certain the model was.

    `threshold` is the certainty that nearly all right texts of this `kind` have; None where it was not measured.
    """

    def __init__(self, kind: Kind, threshold: float | None, style: str = "plain") -> None:
        self.kind, self.threshold, self.style = kind, threshold, style
        self.text = ""
        self.log_probs: list[float] = []
        self._pieces = self._generate()

    def _generate(self) -> Iterator[str]:
        raise NotImplementedError

    def __next__(self) -> str:
        piece = next(self._pieces)
        self.text += piece
        return piece

    @property
    def certainty(self) -> float:
        """Mean log-probability of what was generated so far: 0 is certain, -0.7 a coin flip at each step.

        Of weights of the style `wide` it is that of the least certain token: one doubt, about one colour, makes an
        answer wrong, and the mean over a long scratchpad hides it.
        """
        return min(self.log_probs) if self.style == "wide" else fmean(self.log_probs)

    @property
    def unsure(self) -> bool | None:
        """Whether the certainty is below the threshold; None where that was not measured."""
        return None if self.threshold is None else self.certainty < self.threshold


class Reply(GeneratedText):
    """The reply to a prompt of `prompt_tokens` tokens; `spoken` says whether a recording was in it.

    `scene_threshold` is what nearly all right descriptions begin with (`scene_certainty`); None where that was not
    measured, or no image is in the prompt. `read` has the recogniser read the recording; None where there is none, or
    the recogniser is untrained.
    """

    def __init__(
        self,
        steps: Iterator[Step],
        tokenizer: BPETokenizer,
        prompt_tokens: int,
        spoken: bool,
        threshold: float | None,
        style: str = "plain",
        scene_threshold: float | None = None,
        read: Callable[[], str] | None = None,
    ) -> None:
        super().__init__("spoken" if spoken else "typed", threshold, style)
        self.scene_threshold, self._read = scene_threshold, read
        self.steps, self.decoder = steps, StreamDecoder(tokenizer)
        self.prompt_tokens, self.spoken = prompt_tokens, spoken
        self.ids: list[int] = []  # with EOS, where there is one

    def _generate(self) -> Iterator[str]:
        for step in self.steps:
            self.ids.append(int(step.ids))
            self.log_probs.append(float(step.log_probs))
            if piece := self.decoder.decode(self.ids[-1:]):
                yield piece
        if piece := self.decoder.decode([], final=True):
            yield piece

    @property
    def scene_certainty(self) -> float | None:
        """Log-probability of the first token of the description, `There`: that the image shows a scene that the model
        can describe. None where it described none. In a spoken reply, special tokens tell where the description begins.
        """
        if not (self.description or self.answer).startswith(DESCRIBES):
            return None
        separators = self.decoder.tokenizer.separators
        asked = separators is not None and separators.scratchpad in self.ids
        return self.log_probs[self.ids.index(separators.scratchpad) + 1 if separators and asked else 0]

    @property
    def doubts_scene(self) -> bool:
        """Whether it described an image that may show no scene: too many things, overlapping ones, foreign shapes."""
        certainty = self.scene_certainty
        return certainty is not None and self.scene_threshold is not None and certainty < self.scene_threshold

    @cached_property
    def reading(self) -> str | None:
        """What the recogniser reads in the recording, when this is asked for; None without one."""
        return None if self._read is None else self._read()

    @property
    def doubts_speech(self) -> bool:
        """Whether the recogniser, which hears with the same encoder but spells letter by letter, reads something else
        than the reply took the recording for: of speech that neither has learned, they rarely make the same words.
        """
        return self.reading is not None and disagreement(self.reading, self.parts) > MOST_APART

    @property
    def unsure(self) -> bool | None:
        """Whether the certainty, of all tokens or of the scene, is below its threshold, or the speech was read
        otherwise; None if none of it was measured.
        """
        return self.doubts_scene or self.doubts_speech or super().unsure

    def finish(self) -> "Reply":
        """Generate the rest; the reply itself is returned."""
        for _ in self:
            pass
        return self

    @property
    def ended(self) -> bool:
        """Whether it ended with EOS, not because `max_new_tokens` was reached."""
        return self.ids[-1:] == [EOS]

    @property
    def parts(self) -> ReplyParts:
        """Transcript, description, lookup and answer, as far as they are generated."""
        return split_reply(self.ids, self.decoder.tokenizer) or parse_reply(self.text, self.spoken)

    @property
    def transcript(self) -> str | None:
        """What was said, as written in front of a scratchpad."""
        return self.parts.transcript

    @property
    def description(self) -> str | None:
        """The description of the scene, from the scratchpad."""
        return self.parts.description

    @property
    def lookup(self) -> str | None:
        """What was looked up in the description, as field, key and value."""
        return self.parts.lookup

    @property
    def answer(self) -> str:
        """The text without transcript and scratchpad."""
        return self.parts.answer

    @property
    def at_answer(self) -> bool:
        """Whether the scratchpad has just ended, so that what comes next is the answer."""
        return self.text.endswith(SCRATCHPAD_END.rstrip()) and not self.answer

    @property
    def before_answer(self) -> str:
        """Transcript and scratchpad, as they were written; "" where there are none, or not yet all of it."""
        return self.text.removesuffix(self.answer).rstrip().removesuffix(SCRATCHPAD_END.rstrip())


class Transcript(GeneratedText):
    """What the recogniser reads in a recording: the text of each part, with its mean log-probability."""

    def __init__(self, parts: Iterator[tuple[str, float]], threshold: float | None) -> None:
        super().__init__("asr", threshold)
        self.parts = parts

    def _generate(self) -> Iterator[str]:
        for piece, log_prob in self.parts:
            self.log_probs.append(log_prob)
            yield f" {piece}" if self.text and piece else piece
