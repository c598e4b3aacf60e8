"""Talking to the model in a terminal: one question, or a conversation.

Text appears as it is generated. With a trace, the shape table of that very run follows.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import soundfile
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tinyomni.io.files import SAMPLE_RATE, load_speech
from tinyomni.omni import DESCRIBE, NOTED, Omni, Reply, Transcript
from tinyomni.talker import max_frames

PAUSE = SAMPLE_RATE // 5  # between sentences
NAMES = {"heard": "spoken questions", "read": "typed questions", "ear": "transcripts"}
HELP = """a line of text        a question, about the picture if there is one
/image FILE           look at a picture; /image alone puts it away
/audio FILE           ask by a recording
/caption              describe the picture
/speak [FILE]         say the last answer into a WAV file (answer.wav)
/trace                show the shape table of each run, or no longer
/help                 this
/quit                 end"""


def sentences(text: str) -> list[str]:
    """Text cut behind . ? and !; the Talker has learned on single sentences."""
    return [each for each in re.split(r"(?<=[.?!])\s+", text.strip()) if each]


def spoken(omni: Omni, text: str, voice: int = 0) -> Iterator[tuple[Int[Tensor, "frames codebooks"], Tensor]]:
    """Codes and sound of each sentence, as soon as it is there."""
    for sentence in sentences(text) or [text]:
        codes = omni.speech_codes(sentence, voice)
        yield codes[0], omni.codec.decode(codes)[0].detach().cpu()


def with_pauses(waves: Iterable[Float[Tensor, "_"]]) -> Float[Tensor, "samples"]:
    """Sentences one after the other."""
    parts = [part for wave in waves for part in (torch.zeros(PAUSE), wave)]
    return torch.cat(parts[1:])


def wav_file(path: str | Path) -> Path:
    """The path, if a WAV file can be written there; asked before anything is spoken."""
    file = Path(path)
    if file.suffix.lower() != ".wav":
        raise ValueError(f"Writing the sound: {file} should end in .wav")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"Writing the sound: there is no folder {file.parent}. Make it first.")
    return file


def doubts(found: Reply | Transcript) -> str:
    """What there is to say of its certainty: nothing, where it is as certain as right answers are."""
    if not found.unsure:
        return ""
    kind = "ear" if isinstance(found, Transcript) else "heard" if found.spoken else "read"
    return (
        f"(not sure of this: certainty {found.certainty:.3f}; right {NAMES[kind]} hardly ever fall below "
        f"{found.omni.limits[kind]:.3f})"
    )


class Talk:
    """A model, the picture that it looks at, and where text goes: `write(text)` without an end of line."""

    def __init__(self, omni: Omni, write: Callable[[str], Any], traced: bool = False, voice: int = 0) -> None:
        self.omni, self.write, self.traced, self.voice = omni, write, traced, voice
        self.image: str | None = None
        self.answer = ""  # the last one

    def run(self, title: str, action: Callable[[], None]) -> None:
        """Do it, and show the shapes of it where they are wanted."""
        if not self.traced:
            return action()
        from tinyomni.tracing import trace  # it takes a while to import, and few want it

        with trace(title) as seen:
            action()
        self.write(f"\n{seen}\n")

    def show(self, pieces: Reply | Transcript) -> None:
        """Text as it comes, the answer on a line of its own, and then what there is to doubt."""
        empty = line_starts = True
        for piece in pieces:
            self.write(piece.lstrip() if line_starts else piece)
            empty = empty and not piece.strip()
            if line_starts := isinstance(pieces, Reply) and pieces.text.endswith(NOTED.strip()):
                self.write("\n")
        self.write("(nothing)\n" if empty else "\n")
        if isinstance(pieces, Reply) and not pieces.ended:
            self.write(f"(cut off after {len(pieces.ids)} tokens)\n")
        if doubt := doubts(pieces):
            self.write(doubt + "\n")

    def ask(self, question: str | None = None, audio: str | None = None, speak: str | None = None) -> None:
        """A question, typed or spoken, about the picture if there is one; the answer is spoken to a file if asked."""
        if not question and not audio:
            raise ValueError('Asking: there is no question. Type one, or give --audio: tinyomni ask "What is it?"')
        out = wav_file(speak) if speak else None

        def action() -> None:
            reply = self.omni.reply(question, self.image, load_speech(audio) if audio else None)
            if self.traced:
                self.count(question, reply)
            self.show(reply)
            self.answer = reply.answer
            if out:
                self._say(reply.answer, out)

        self.run("ask", action)

    def count(self, question: str | None, reply: Reply) -> None:
        """Tell the trace how many tokens each part of the prompt has."""
        from tinyomni.tracing import tokens

        text, image = 1 + len(self.omni.tokenizer.encode(question or "")), int(self.image is not None)
        parts = {"image": image, "audio": reply.prompt.shape[1] - image - text, "text": text}
        for name, number in parts.items():
            if number:
                tokens(name, number, of=self.omni.cfg.thinker.ctx_len)

    def caption(self, speak: str | None = None) -> None:
        """Describe the picture."""
        if self.image is None:
            raise ValueError("Captioning: there is no picture. First: /image FILE")
        self.ask(DESCRIBE, speak=speak)

    def transcribe(self, audio: str) -> None:
        """Write down what is said."""
        self.run("transcribe", lambda: self.show(self.omni.transcribe(audio)))

    def speak(self, text: str, file: str) -> None:
        """Say it."""
        out = wav_file(file)
        self.run("speak", lambda: self._say(text, out))

    def _say(self, text: str, file: Path) -> None:
        if not text.strip():
            raise ValueError("Speaking: there is nothing to say: the text is empty")
        waves = []
        for sentence, (codes, wave) in zip(sentences(text), spoken(self.omni, text, self.voice), strict=True):
            waves.append(wave)
            if len(codes) == max_frames(self.omni.speech_ids(sentence, self.voice).shape[1]):
                self.write(f"(did not come to an end by itself: {sentence})\n")
        wave = with_pauses(waves)
        soundfile.write(file, wave.numpy(), SAMPLE_RATE, subtype="PCM_16")
        self.write(f"{file}: {len(wave) / SAMPLE_RATE:.2f} s\n")

    # -- a conversation

    def chat(self, lines: Iterable[str]) -> None:
        """Line after line. What is wrong with one is said, and the next one is read."""
        for line in lines:
            try:
                if not self.obey(line.strip()):
                    return
            except (ValueError, TypeError, OSError) as error:
                self.write(f"{error}\n")

    def obey(self, line: str) -> bool:
        """One line; False ends the conversation."""
        command, _, rest = line.partition(" ")
        rest = rest.strip().strip("\"'")
        if command == "/quit":
            return False
        if command == "/help":
            self.write(HELP + "\n")
        elif command == "/image":
            if rest:
                with torch.no_grad():
                    self.omni.embed(image=rest)  # a picture that cannot be read is refused now
            self.image = rest or None
            self.write(f"looking at {rest}\n" if rest else "no picture\n")
        elif command == "/audio":
            if not rest:
                raise ValueError("/audio: name a recording: /audio question.wav")
            self.ask(audio=rest)
        elif command == "/caption":
            self.caption()
        elif command == "/speak":
            if not self.answer:
                raise ValueError("/speak: there is no answer yet to say")
            self.speak(self.answer, rest or "answer.wav")
        elif command == "/trace":
            self.traced = not self.traced
            self.write(f"shape tables: {'on' if self.traced else 'off'}\n")
        elif command.startswith("/"):
            raise ValueError(f"{command}: no such command; /help lists them")
        elif line:
            self.ask(line)
        return True
