"""Talking to the model in a terminal: one question, or a conversation.

Text appears as it is generated. With a trace, the shape table of that very run follows.
"""

import functools
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import soundfile
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tinyomni.config import SAMPLE_RATE
from tinyomni.data import unanswerable, wordings, world
from tinyomni.data.normalization import normalize_question, reading_note
from tinyomni.errors import InputError, MissingFileError
from tinyomni.files import whole
from tinyomni.io import AudioLike, ImageLike, load_image, playback
from tinyomni.io.spoken_text import spoken_text
from tinyomni.omni import DESCRIBE
from tinyomni.reply import Kind, Reply, Transcript
from tinyomni.tokenizer import BPETokenizer

HISTORY_TOKENS = 96  # of a prompt with the turns before the question
PAUSE = SAMPLE_RATE // 5  # samples between two sentences
NAMES: dict[Kind, str] = {"spoken": "spoken questions", "typed": "typed questions", "asr": "transcripts"}
HELP = """a line of text        a question, about the image if there is one
/image FILE           look at an image; /image alone removes it
/audio FILE           ask by a recording
/caption              describe the image
/speak [FILE]         write the last answer as speech to a WAV file (answer.wav)
/play                 play the last answer as speech
/trace                turn the shape table of each run on or off
/help                 show this list
/quit                 end"""


def split_sentences(text: str) -> list[str]:
    """Text split behind . ? and !; the Talker was trained on single sentences."""
    return [each for each in re.split(r"(?<=[.?!])\s+", text.strip()) if each]


@functools.cache
def learned_words(style: str = "plain") -> frozenset[str]:
    """The words of all lines that the Talker is trained on, in lower case."""
    texts = [*(line.text for _, family in world.language().values() for line in family), *unanswerable.ANSWERS]
    if style == "wide":
        texts += [*wordings.SMALL_TALK, *wordings.SMALL_TALK.values(), *wordings.DESCRIBE]
        texts += unanswerable.UNCLEAR_IMAGES.values()
    return frozenset(word for text in texts for word in re.findall(r"[a-z']+", text.lower()))


def unlearned_words(text: str, style: str = "plain") -> list[str]:
    """The words of a text that the Talker has not learned, in their order."""
    words = dict.fromkeys(re.findall(r"[a-z']+", text.lower()))
    return [word for word in words if word not in learned_words(style)]


def speak_sentences(
    omni: "Backend", text: str, voice: int = 0
) -> Iterator[tuple[Int[Tensor, "frames codebooks"], Float[Tensor, "samples"]]]:
    """Codes and audio of each sentence, as soon as it is generated."""
    text = spoken_text(text)  # before it is split: `Dr. Smith` is no end of a sentence
    for sentence in split_sentences(text) or [text]:
        codes = omni.speech_codes(sentence, voice)
        yield codes[0], omni.codec.decode(codes)[0].detach().cpu()


def stream_speech(
    omni: "Backend", text: str, voice: int = 0, codes: list[Int[Tensor, "codebooks"]] | None = None
) -> Iterator[Float[Tensor, "samples"]]:
    """A text as speech, 80 ms by 80 ms as it is generated, with a pause between two sentences.

    `codes` is a list that those of each frame are appended to.
    """
    text = spoken_text(text)
    for number, sentence in enumerate(split_sentences(text) or [text]):
        if number:
            yield torch.zeros(PAUSE)
        frames = omni.stream_codes(sentence, voice)
        for piece in omni.codec.stream(frames if codes is None else kept(frames, codes)):
            yield piece.cpu()


def kept(frames: Iterable[Tensor], into: list[Tensor]) -> Iterator[Tensor]:
    """The same frames, each of them appended to a list."""
    for frame in frames:
        into.append(frame)
        yield frame


def join_with_pauses(waves: Iterable[Float[Tensor, "_"]]) -> Float[Tensor, "samples"]:
    """Sentences one after the other, 0.2 s of silence between them."""
    parts = [part for wave in waves for part in (torch.zeros(PAUSE), wave)]
    return torch.cat(parts[1:])


def check_wav_path(path: str | Path) -> Path:
    """The path, if a WAV file can be written there; checked before anything is generated."""
    file = Path(path)
    if file.suffix.lower() != ".wav":
        raise InputError(f"speech: expected a file name that ends in .wav, got {file}")
    if not file.parent.is_dir():
        raise MissingFileError(f"speech: there is no folder {file.parent}. Make it first.")
    return file


def uncertainty_note(result: Reply | Transcript) -> str:
    """A line that says how uncertain the model was; empty where it was as certain as it is of right answers."""
    if not result.unsure:
        return ""
    if isinstance(result, Reply) and result.doubts_scene:
        return (
            f"(not sure that this is a scene it can describe: certainty {result.scene_certainty:.3f}; "
            f"right descriptions rarely begin below {result.scene_threshold:.3f})"
        )
    if isinstance(result, Reply) and result.doubts_speech:
        return f"(not sure what was said: letter by letter it was heard as {str(result.reading)!r})"
    return (
        f"(not sure: certainty {result.certainty:.3f}; "
        f"right {NAMES[result.kind]} are rarely below {result.threshold:.3f})"
    )


class Backend(Protocol):
    """What a session needs of a model: `Omni`, or the same on another runtime."""

    @property
    def codec(self) -> Any:
        """What has `decode` and `stream`: codes → audio."""

    @property
    def style(self) -> str:
        """That of the data of its last stage: with `wide`, a prompt may hold a conversation."""

    @property
    def tokenizer(self) -> BPETokenizer:
        """Text → ids."""

    def reply(self, text: str | None, image: ImageLike | None, audio: AudioLike | None, *, trim: bool) -> Reply:
        """Answer a question."""
        ...

    def transcribe(self, audio: AudioLike) -> Transcript:
        """Write what is said."""
        ...

    def speech_ids(self, text: str, voice: int = 0) -> Int[Tensor, "1 text_tokens"]:
        """The Talker's input."""
        ...

    def frame_limit(self, text_tokens: int) -> int:
        """The most frames for a text of that length."""
        ...

    def speech_codes(self, text: str, voice: int = 0) -> Int[Tensor, "1 frames codebooks"]:
        """Text → speech codes."""
        ...

    def stream_codes(self, text: str, voice: int = 0) -> Iterator[Int[Tensor, "codebooks"]]:
        """The same, frame by frame."""
        ...


def history(backend: Backend, turns: Sequence[wordings.Turn], question: str) -> list[wordings.Turn]:
    """The last turns of a conversation that the prompt may hold: none where the model was not trained on any or the
    question stands alone, at most as many as training had, and in all no more than HISTORY_TOKENS.
    """
    kept = list(turns[-wordings.HISTORY :]) if backend.style == "wide" and wordings.refers_back(question) else []
    while kept and len(backend.tokenizer.encode(wordings.prompt(kept, question))) > HISTORY_TOKENS:
        kept.pop(0)
    return kept


class Session:
    """A model, the image it looks at, and where text goes: `write(text)`, which adds no line break."""

    def __init__(self, omni: Backend, write: Callable[[str], object], traced: bool = False, voice: int = 0) -> None:
        self.omni, self.write, self.traced, self.voice = omni, write, traced, voice
        self.image: str | None = None
        self.answer = ""  # the last one, for /speak
        self.aloud = False  # whether answers are played as speech
        self.turns: list[wordings.Turn] = []  # of the conversation about this image

    def run(self, title: str, action: Callable[[], None]) -> None:
        """Run it, and show its shape table where that is wanted."""
        if not self.traced:
            return action()
        from tinyomni.tracing import trace  # its import takes a while, and few runs are traced

        with trace(title) as seen:
            action()
        self.write(f"\n{seen}\n")

    def show(self, result: Reply | Transcript) -> None:
        """Write the text as it is generated, the answer on a line of its own, then what is uncertain about it."""
        empty = line_starts = True
        for piece in result:
            self.write(piece.lstrip() if line_starts else piece)
            empty = empty and not piece.strip()
            if line_starts := isinstance(result, Reply) and result.at_answer:
                self.write("\n")
        self.write("(nothing)\n" if empty else "\n")
        if isinstance(result, Reply) and not result.ended:
            self.write(f"(cut off after {len(result.ids)} tokens)\n")
        if note := uncertainty_note(result):
            self.write(note + "\n")

    def ask(self, question: str | None = None, audio: str | None = None, speak: str | None = None) -> None:
        """Answer a question, typed or spoken, about the image if there is one; `speak` names a WAV file for it."""
        if not question and not audio:
            raise InputError('there is no question. Type one, or give --audio: tinyomni ask "What is it?"')
        out = check_wav_path(speak) if speak else None
        typed, question = question or "", normalize_question(question) if question else None
        if question and (note := reading_note(typed, question)):
            self.write(note + "\n")

        def action() -> None:
            prompt = wordings.prompt(history(self.omni, self.turns, question), question) if question else None
            reply = self.omni.reply(prompt, self.image, audio, trim=True)
            self.show(reply)
            self.answer = reply.answer
            if asked := question or reply.transcript:
                self.turns.append(wordings.Turn(asked, reply.answer))
            if out:
                self.write_speech(reply.answer, out)
            if self.aloud and reply.answer.strip():
                self.play(reply.answer)

        self.run("ask", action)

    def caption(self, speak: str | None = None) -> None:
        """Describe the image."""
        if self.image is None:
            raise InputError("caption: there is no image. First: /image FILE")
        self.ask(DESCRIBE, speak=speak)

    def transcribe(self, audio: str) -> None:
        """Write what is said in a recording."""
        self.run("transcribe", lambda: self.show(self.omni.transcribe(audio)))

    def speak(self, text: str, file: str) -> None:
        """Write a text as speech to a WAV file."""
        out = check_wav_path(file)
        self.run("speak", lambda: self.write_speech(text, out))

    def play(self, text: str) -> None:
        """Play a text as speech while it is generated."""
        playback.play(self.stream(text), SAMPLE_RATE)

    def stream(self, text: str) -> Iterator[Float[Tensor, "samples"]]:
        """A text as speech, piece by piece."""
        if not text.strip():
            raise InputError("speech: the text is empty")
        self.warn_unlearned(spoken_text(text))
        return stream_speech(self.omni, text, self.voice)

    def warn_unlearned(self, text: str) -> None:
        """Name the words that the voice has not learned."""
        if unknown := unlearned_words(text, self.omni.style):
            self.write(f"(the voice has not learned, and may garble: {', '.join(unknown)})\n")

    def write_speech(self, text: str, file: Path) -> None:
        """Generate the sentences one by one and write them to one file."""
        if not text.strip():
            raise InputError("speech: the text is empty")
        text, waves = spoken_text(text), []
        self.warn_unlearned(text)
        for sentence, (codes, wave) in zip(
            split_sentences(text), speak_sentences(self.omni, text, self.voice), strict=True
        ):
            waves.append(wave)
            if len(codes) == self.omni.frame_limit(self.omni.speech_ids(sentence, self.voice).shape[1]):
                self.write(f"(reached the longest duration without an end of speech: {sentence})\n")
        wave = join_with_pauses(waves)
        soundfile.write(content := io.BytesIO(), wave.numpy(), SAMPLE_RATE, format="WAV", subtype="PCM_16")
        try:
            with whole(file) as out:
                out.write_bytes(content.getvalue())
        except OSError as error:
            raise InputError(f"speech: cannot write {file} ({error.strerror})") from error
        self.write(f"{file}: {len(wave) / SAMPLE_RATE:.2f} s\n")

    # -- a conversation

    def chat(self, lines: Iterable[str]) -> None:
        """Handle line after line. What is wrong with one is said, and the next one is read."""
        for line in lines:
            try:
                if not self.handle_line(line.strip()):
                    return
            except InputError as error:
                self.write(f"{error}\n")

    def handle_line(self, line: str) -> bool:
        """Handle one line, a question or a command; False ends the conversation."""
        command, _, rest = line.partition(" ")
        rest = rest.strip().strip("\"'")
        if command == "/quit":
            return False
        if command == "/help":
            self.write(HELP + "\n")
        elif command == "/image":
            if rest:
                load_image(rest)  # refuses now what cannot be read
            self.image, self.turns = rest or None, []
            self.write(f"image: {rest or 'none'}\n")
        elif command == "/audio":
            if not rest:
                raise InputError("/audio: name a recording, such as /audio question.wav")
            self.ask(audio=rest)
        elif command == "/caption":
            self.caption()
        elif command == "/speak":
            if not self.answer:
                raise InputError("/speak: there is no answer yet")
            self.speak(self.answer, rest or "answer.wav")
        elif command == "/play":
            if not self.answer:
                raise InputError("/play: there is no answer yet")
            self.play(self.answer)
        elif command == "/trace":
            self.traced = not self.traced
            self.write(f"shape tables: {'on' if self.traced else 'off'}\n")
        elif command.startswith("/"):
            raise InputError(f"{command}: no such command; /help lists them")
        elif line:
            self.ask(line)
        return True
