"""The commands that use trained weights: ask, caption, transcribe, speak, chat, demo."""

import argparse
import contextlib
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tinyomni.cli.console import Choices, say, stream
from tinyomni.errors import InputError

if TYPE_CHECKING:
    from tinyomni.apps.chat import Session


def voices() -> Iterable[str]:
    """The voices of the Talker, numbered from 1."""
    from tinyomni.config import TINY

    return map(str, range(1, TINY.talker.voices + 1))


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the six commands to the parser."""
    ask = commands.add_parser("ask", help="answer a question, typed or spoken, about an image or none")
    ask.add_argument("question", nargs="?", metavar="QUESTION")
    ask.add_argument("--image", metavar="FILE", help="an image (PNG, JPEG, …)")
    ask.add_argument("--audio", metavar="FILE", help="a spoken question, or speech to repeat (WAV, FLAC, OGG)")
    caption = commands.add_parser("caption", help="describe an image")
    caption.add_argument("image", metavar="SCENE.png")
    transcribe = commands.add_parser("transcribe", help="write what is said in a recording")
    transcribe.add_argument("audio", metavar="SPEECH.wav")
    speak = commands.add_parser("speak", help="say a text")
    speak.add_argument("text", metavar="TEXT")
    speak.add_argument("-o", "--out", default="speech.wav", metavar="FILE",
                       help="default speech.wav; - gives raw 16-bit samples at 16 kHz while they are made")  # fmt: skip
    chat = commands.add_parser("chat", help="a conversation: /image /audio /caption /speak /trace /help /quit")
    demo = commands.add_parser("demo", help="a page in the browser to draw, ask and listen")
    demo.add_argument("--port", type=int, default=7860, help="default 7860")
    demo.add_argument("--no-browser", action="store_true", help="do not open one")

    for each in (ask, caption):
        each.add_argument("--speak", metavar="FILE", help="speak the answer into this WAV file")
    for each in (ask, caption, speak, chat):
        each.add_argument("--play", action="store_true", help="play the speech while it is generated")
        each.add_argument("--voice", choices=Choices(voices), default="1", metavar="N", help="%(choices)s (default 1)")
    for each in (ask, caption, transcribe, speak, chat):
        each.add_argument("--trace", action="store_true", help="show the shape of every call of this run")
    for each in (ask, caption, transcribe, speak, chat):
        each.add_argument(
            "--backend", choices=["torch", "onnx"], default="torch",
            help="onnx: int8 graphs on onnxruntime, faster on a CPU; made at the first use (default torch)",
        )  # fmt: skip
        each.add_argument("--graphs", default="runs/onnx", metavar="DIR", help="where they are (default runs/onnx)")
    for each in (ask, caption, transcribe, speak, chat, demo):
        each.add_argument("--weights", metavar="FILE", help="weights other than the shipped ones")
    for each, run in ((ask, run_ask), (caption, run_caption), (transcribe, run_transcribe), (speak, run_speak),
                      (chat, run_chat), (demo, run_demo)):  # fmt: skip
        each.set_defaults(run=run)


def note(text: str) -> None:
    """Say it beside the answer, not in it."""
    say(text, sys.stderr)


def session(args: argparse.Namespace) -> "Session":
    """The model behind these commands, with its trained weights."""
    from tinyomni.apps.chat import Session
    from tinyomni.omni import Omni

    voice = int(getattr(args, "voice", 1)) - 1
    if args.backend == "torch":
        return Session(Omni.from_pretrained(args.weights), stream, args.trace, voice)
    if args.trace:
        raise InputError("--trace follows PyTorch's modules: leave out --backend onnx")
    from tinyomni.onnx.export import graphs_of
    from tinyomni.onnx.runtime import OnnxOmni

    return Session(OnnxOmni(graphs_of(args.weights, Path(args.graphs), note)), stream, False, voice)


def run_ask(args: argparse.Namespace) -> int:
    """Answer one question."""
    it = session(args)
    it.image, it.aloud = args.image, args.play
    it.ask(args.question, args.audio, args.speak)
    return 0


def run_caption(args: argparse.Namespace) -> int:
    """Describe an image."""
    it = session(args)
    it.image, it.aloud = args.image, args.play
    it.caption(args.speak)
    return 0


def run_transcribe(args: argparse.Namespace) -> int:
    """Write what is said in a recording."""
    session(args).transcribe(args.audio)
    return 0


def run_speak(args: argparse.Namespace) -> int:
    """Say a text."""
    it = session(args)
    if args.out == "-":
        from tinyomni.io.playback import write_raw

        it.write = partial(stream, file=sys.stderr)
        with open(sys.stdout.fileno(), "wb", buffering=0, closefd=False) as raw:
            write_raw(it.stream(args.text), raw.write)
    elif args.play:
        it.play(args.text)
    else:
        it.speak(args.text, args.out)
    return 0


def run_chat(args: argparse.Namespace) -> int:
    """A conversation in the terminal; without a terminal, one line of the input after the other."""
    from tinyomni.apps.chat import HELP

    def lines() -> Iterator[str]:
        with contextlib.suppress(EOFError):
            while True:
                yield input("> " if sys.stdin.isatty() else "")

    it = session(args)
    it.aloud = args.play
    if sys.stdin.isatty():
        say(HELP)
    it.chat(lines())
    return 0


def run_demo(args: argparse.Namespace) -> int:
    """A page in the browser, served to this machine only."""
    from tinyomni.apps.demo import main

    main(args.weights, args.port, not args.no_browser, say)
    return 0
