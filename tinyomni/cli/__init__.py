"""The `tinyomni` command. Wrong input: one clear message and exit status 2; --debug shows where it was raised."""

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

# what wrong input raises; anything else is a fault of ours and keeps its traceback
INPUT_ERRORS = (ValueError, TypeError, IndexError, OSError)


def say(text: str) -> None:
    """Print, also where the console has no ✔ or →."""
    encoding = sys.stdout.encoding or "ascii"
    for sign, plain in {"✔": "ok", "✘": "XX", "→": "->", "×": "x", "·": "-", "…": "..."}.items():
        try:
            sign.encode(encoding)
        except UnicodeEncodeError:
            text = text.replace(sign, plain)
    print(text.encode(encoding, errors="replace").decode(encoding))


def dry_run(args: argparse.Namespace) -> int:
    """All six pipelines on real input, held against their specifications."""
    import torch

    from tinyomni.dry_run import main as run
    from tinyomni.dry_run import write_docs

    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("dry run: --device cuda asked for, but torch sees no GPU. `tinyomni doctor` says more.")
    if args.docs:
        Path(args.docs).mkdir(parents=True, exist_ok=True)
        write_docs(Path(args.docs))
        return 0
    good = run(args.text, args.image, args.audio, args.pipeline, args.device, args.seed, args.json, say)
    return 0 if good else 1


def doctor(args: argparse.Namespace) -> int:
    """What is installed, what is wrong, how to mend it."""
    return int(import_module("tinyomni.cli.doctor").main(say))


def train(args: argparse.Namespace) -> int:
    """Train one stage, or all of them."""
    from tinyomni.training.recipe import STAGES, Place
    from tinyomni.training.recipe import train as run

    if args.stage == "all" and args.data:
        raise ValueError("train all: the stages read data of different kinds; --data belongs to one stage")
    wrong = [each for each in args.set if "=" not in each]
    if wrong:
        raise ValueError(f"train: --set wants KEY=VALUE, such as --set lr=1e-4; got {wrong[0]}")
    changes = dict(each.split("=", 1) for each in args.set)
    place = Place(
        Path(args.out or f"runs/{args.preset}"), args.preset, args.data and Path(args.data), args.skip_bad, changes
    )
    for stage in STAGES if args.stage == "all" else [args.stage]:
        result = run(stage, place)
        figures = ", ".join(f"{name} {value:.4g}" for name, value in result.validation.items()) if result else ""
        done = f"{result.steps} steps, {result.seconds:.0f} s, validation: {figures or 'none'}" if result else "done"
        if os.environ.get("RANK", "0") == "0":  # of several processes the first one speaks
            say(f"{place.of(result.stage if result else stage)}: {done}")
    return 0


def report(args: argparse.Namespace) -> int:
    """Measure what was trained; 1 if a limit is missed."""
    from tinyomni.evaluation.report import report as measure
    from tinyomni.training.recipe import Place

    folder = Path(args.folder or ("runs/shipped" if args.weights else f"runs/{args.preset}"))
    if args.weights:
        from tinyomni.evaluation.export import unpack

        unpack(None if args.weights == "shipped" else Path(args.weights), folder, args.preset)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}. First: tinyomni train all --preset {args.preset}")
    found = measure(Place(folder, args.preset), args.n, args.only)
    say(str(found))
    if args.json:
        found.save(Path(args.json))
    if args.picture:
        found.draw(Path(args.picture))
    return 0 if found.good else 1


def curves(args: argparse.Namespace) -> int:
    """Draw the losses of runs."""
    from tinyomni.training.curves import curves as draw

    draw([Path(run) for run in args.runs], Path(args.out))
    say(args.out)
    return 0


def trace(args: argparse.Namespace) -> int:
    """Run somebody's script inside a trace, and print or keep what was seen."""
    import runpy

    from tinyomni.tracing import ShapeError, Spec, SpecMismatch
    from tinyomni.tracing import trace as watch

    script = Path(args.script)
    if not script.is_file():
        raise FileNotFoundError(f"{script} is no file; a Python script is expected")
    spec = Spec.load(args.spec) if args.spec else None
    seen, failed = watch(script.name), ""
    argv, path = sys.argv, sys.path[:]
    sys.argv, sys.path[0] = [args.script, *args.rest], str(script.resolve().parent)
    try:
        with seen:
            runpy.run_path(args.script, run_name="__main__")
    except ShapeError as error:
        if args.debug:
            raise
        failed = str(error)
    except SystemExit as end:
        failed = f"{script.name} ended with {end.code}" if end.code else ""
    except Exception:
        failed = traceback.format_exc().strip()
    finally:
        sys.argv, sys.path[:] = argv, path
    say(str(seen))
    for keep, file in ((seen.to_html, args.html), (seen.save, args.json)):
        if file:
            keep(file)
    if args.svg and seen.steps:
        seen.to_svg(args.svg)
    if failed:
        print(failed, file=sys.stderr)
        return 1
    if spec is not None:
        try:
            say(str(seen.check(spec)))
        except SpecMismatch as error:
            print(error, file=sys.stderr)
            return 1
    return 0 if seen.steps else 1


def world(args: argparse.Namespace) -> int:
    """Show a part of the closed world."""
    from tinyomni.data.datasets import Scenes
    from tinyomni.data.preview import contact_sheet
    from tinyomni.data.tts import HELD_OUT_VOICE, VOICES
    from tinyomni.data.world import SPLITS, entropy, language, lines_of, loss_floor
    from tinyomni.tokenizer import BPETokenizer

    if args.show:
        voices = (HELD_OUT_VOICE,) if args.voice == "held-out" else VOICES
        scenes = Scenes(args.split, args.count, args.seed, not args.easy, not args.silent, voices)
        contact_sheet([scenes[index] for index in range(args.count)]).savefig(args.out, dpi=110)
        say(f"{args.out}: {args.count} scenes of the split {args.split}")
        return 0
    encode = BPETokenizer().encode
    say(f"{sum(len(lines) for _, lines in language().values()):,} lines in {len(language())} families")
    for split in SPLITS:
        count = sum(len(lines) for _, lines in lines_of(split).values())
        floor = loss_floor(encode, split)
        say(f"  {split:14} {count:7,} lines   {entropy(split):.4f} nats a line   loss floor {floor:.4f} nats a token")
    return 0


def data(args: argparse.Namespace) -> int:
    """Say what is in a manifest, before anyone trains on it."""
    from tinyomni.data.corpora import inspect

    found = inspect(args.path, allow_outside=args.allow_outside)
    say(str(found))
    return 0 if not found.bad else 1


def grade(args: argparse.Namespace) -> int:
    """Grade a learner's notebook; 1 unless every exercise passed."""
    import json

    from tinyomni.grade.notebook import grade as run
    from tinyomni.grade.notebook import report

    result = run(Path(args.notebook), args.timeout)
    say(report(result))
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0 if result["passed"] == result["of"] else 1


def progress(args: argparse.Namespace) -> int:
    """What is done, and the one thing to do next."""
    from tinyomni.grade.progress import table

    say(table())
    return 0


# ---- talking to it --------------------------------------------------------------------------------------------------


def stream(text: str) -> None:
    """Print a piece of a line at once, as far as the console has its letters."""
    encoding = sys.stdout.encoding or "ascii"
    sys.stdout.write(text.encode(encoding, errors="replace").decode(encoding))
    sys.stdout.flush()


def talk(args: argparse.Namespace) -> int:
    """ask, transcribe, caption, speak: one run."""
    from tinyomni.apps.chat import Talk
    from tinyomni.omni import Omni

    its = Talk(Omni.from_pretrained(args.weights), stream, args.trace, getattr(args, "voice", 1) - 1)
    its.image = getattr(args, "image", None)
    if args.command == "ask":
        its.ask(args.question, args.audio, args.speak)
    elif args.command == "caption":
        its.caption(args.speak)
    elif args.command == "transcribe":
        its.transcribe(args.audio)
    else:
        its.speak(args.text, args.out)
    return 0


def chat(args: argparse.Namespace) -> int:
    """A conversation; without a terminal, one line of the input after the other."""
    from tinyomni.apps.chat import HELP, Talk
    from tinyomni.omni import Omni

    its = Talk(Omni.from_pretrained(args.weights), stream, args.trace, args.voice - 1)

    def lines() -> Iterator[str]:
        with contextlib.suppress(EOFError):
            while True:
                yield input("> " if sys.stdin.isatty() else "")

    if sys.stdin.isatty():
        say(HELP)
    its.chat(lines())
    return 0


def demo(args: argparse.Namespace) -> int:
    """A page in the browser, from this machine only."""
    from tinyomni.apps.demo import main as run

    run(args.weights, args.port, not args.no_browser, say)
    return 0


def export(args: argparse.Namespace) -> int:
    """Make one file of a trained run; 1 if it misses a limit."""
    from tinyomni.evaluation.export import CARD
    from tinyomni.evaluation.export import export as run
    from tinyomni.io.weights import SHIPPED
    from tinyomni.training.recipe import Place

    out, folder = Path(args.out or SHIPPED), Path(args.folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}. First: tinyomni train all --preset {args.preset}")
    measured = Path(args.report) if args.report else None
    found = run(Place(folder, args.preset), out, args.n, args.hardware, args.commit, measured)
    say(f"{found}\n\n{out}: {out.stat().st_size / 1e6:.1f} MB; {out.parent / CARD}")
    return 0 if found.good else 1


def talking(commands: Any) -> list[argparse.ArgumentParser]:
    """The commands that use trained weights, and the one that makes them."""
    ask = commands.add_parser("ask", help="a question, typed or spoken, about a picture or none")
    ask.add_argument("question", nargs="?", metavar="QUESTION")
    transcribe = commands.add_parser("transcribe", help="write down what is said in a recording")
    transcribe.add_argument("audio", metavar="SPEECH.wav")
    caption = commands.add_parser("caption", help="describe a picture")
    caption.add_argument("image", metavar="SCENE.png")
    speak = commands.add_parser("speak", help="say a text")
    speak.add_argument("text", metavar="TEXT")
    speak.add_argument("-o", "--out", default="speech.wav", metavar="FILE", help="default speech.wav")
    talks = commands.add_parser("chat", help="a conversation: /image /audio /caption /speak /trace /help /quit")
    page = commands.add_parser("demo", help="a page in the browser to draw, ask and listen")
    page.add_argument("--port", type=int, default=7860)
    page.add_argument("--no-browser", action="store_true", help="do not open one")
    ask.add_argument("--image", metavar="FILE", help="a picture (PNG, JPEG, …)")
    ask.add_argument("--audio", metavar="FILE", help="a spoken question, or speech to repeat (WAV, FLAC, OGG)")
    for each in (ask, caption):
        each.add_argument("--speak", metavar="FILE", help="speak the answer into this WAV file")
    for each in (ask, caption, speak, talks):
        each.add_argument("--voice", type=int, choices=[1, 2], default=1)
    for each in (ask, transcribe, caption, speak, talks):
        each.add_argument("--trace", action="store_true", help="show the shape of every call of this run")
        each.set_defaults(run=talk)
    talks.set_defaults(run=chat)
    page.set_defaults(run=demo)
    for each in (ask, transcribe, caption, speak, talks, page):
        each.add_argument("--weights", metavar="FILE", help="other weights than those that ship")

    out = commands.add_parser("export", help="make one weights file and a model card of a trained run")
    out.add_argument("folder", metavar="RUNS", help="such as runs/laptop, with vision, audio, codec, talker and omni")
    out.add_argument("-o", "--out", metavar="FILE", help="default: where the package keeps its weights")
    out.add_argument("--preset", choices=["laptop", "gpu", "smoke"], default="laptop", help="what it was trained with")
    out.add_argument("--report", metavar="FILE", help="figures of these weights, by `tinyomni report --json`")
    out.add_argument("--n", type=int, default=300, help="samples for each figure (default 300)")
    out.add_argument("--hardware", default="", help="for the card: what it was trained on")
    out.add_argument("--commit", default="", help="for the card, where it is not that of this checkout")
    out.set_defaults(run=export)
    return [ask, transcribe, caption, speak, talks, page, out]


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(prog="tinyomni", description="An omni model from nothing, with every shape checked.")
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    one = commands.add_parser("dry-run", help="run the six pipelines and check every shape")
    one.add_argument("--image", help="a picture of your own (PNG, JPEG, …)")
    one.add_argument("--audio", help="a recording of your own (WAV, FLAC, OGG)")
    one.add_argument("--text", help="a text of your own, for all pipelines")
    one.add_argument("--pipeline", action="append", metavar="NAME", help="only this one (may be repeated): "
                     "text, image, audio, multimodal, speech, training")  # fmt: skip
    one.add_argument("--device", default="cpu", help="cpu (default), cuda, mps")
    one.add_argument("--seed", type=int, default=0, help="of the fresh weights")
    one.add_argument("--json", metavar="FILE", help="write the reports there as well")
    one.add_argument("--docs", metavar="FOLDER", help="write shapes.md and the figures there, and nothing else")
    one.set_defaults(run=dry_run)

    two = commands.add_parser("doctor", help="check the installation")
    two.set_defaults(run=doctor)

    three = commands.add_parser("train", help="train a stage, or all; a run that was stopped goes on")
    three.add_argument("stage", choices=["all", "tokenizer", "thinker", "vision", "audio", "codec", "talker", "omni"])
    three.add_argument("--preset", choices=["laptop", "gpu", "smoke"], default="laptop")
    three.add_argument("--data", metavar="PATH", help="a manifest or texts of your own, instead of the closed world")
    three.add_argument("--skip-bad", action="store_true", help="go on without rows of it that cannot be used")
    three.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of the preset")
    three.add_argument("--out", metavar="FOLDER", help="where everything goes (default: runs/PRESET)")
    three.set_defaults(run=train)

    seven = commands.add_parser("curves", help="draw the losses of runs")
    seven.add_argument("runs", nargs="+", metavar="RUN", help="a stage's folder, such as runs/laptop/thinker")
    seven.add_argument("--out", default="curves.png", metavar="FILE", help="PNG, SVG or PDF (default curves.png)")
    seven.set_defaults(run=curves)

    four = commands.add_parser("trace", help="run a script and show the shape of every annotated call")
    four.add_argument("script", metavar="SCRIPT.py")
    four.add_argument("--spec", metavar="FILE", help="hold the run against this specification (TOML)")
    for kind in ("html", "svg", "json"):
        four.add_argument(f"--{kind}", metavar="FILE", help=f"write the trace as {kind.upper()}")
    four.add_argument("rest", nargs=argparse.REMAINDER, metavar="…", help="the script's own arguments")
    four.set_defaults(run=trace)

    five = commands.add_parser("world", help="the closed world: its size and entropy, or a sheet of scenes")
    five.add_argument("--show", action="store_true", help="draw scenes with what is said of them")
    five.add_argument("--out", default="world.png", metavar="FILE", help="the picture to write (default world.png)")
    five.add_argument("--count", type=int, default=8)
    five.add_argument("--split", default="train", help="train (default), validation, test, compositional")
    five.add_argument("--seed", type=int, default=0)
    five.add_argument("--easy", action="store_true", help="the easy pictures")
    five.add_argument("--silent", action="store_true", help="without speech")
    five.add_argument("--voice", choices=["training", "held-out"], default="training")
    five.set_defaults(run=world)

    six = commands.add_parser("data", help="look at data of your own")
    six.add_argument("what", choices=["inspect"])
    six.add_argument("path", help="a manifest (CSV, JSONL), text files, LJSpeech, a part of LibriSpeech, COCO captions")
    six.add_argument("--allow-outside", action="store_true", help="allow paths that leave the manifest's folder")
    six.set_defaults(run=data)
    eight = commands.add_parser("report", help="measure what was trained, beside its controls and its limits")
    eight.add_argument("folder", nargs="?", help="where everything was trained (default: runs/PRESET)")
    eight.add_argument("--preset", choices=["laptop", "gpu", "smoke"], default="laptop", help="whose limits")
    eight.add_argument("--n", type=int, default=300, help="samples for each figure (default 300)")
    eight.add_argument("--only", nargs="+", default=[], metavar="PART", help="text eye ear codec voice ears questions")
    eight.add_argument("--json", metavar="FILE", help="write the figures there as well")
    eight.add_argument("--picture", metavar="FILE", help="draw them")
    eight.add_argument("--weights", nargs="?", const="shipped", metavar="FILE", help="measure a weights file instead "
                       "(without FILE: the one that ships), unpacked into runs/shipped")  # fmt: skip
    eight.set_defaults(run=report)

    grading = commands.add_parser("grade", help="grade an exercise notebook; a copy of it is run")
    grading.add_argument("notebook", metavar="NOTEBOOK", help="such as exercises/03_attention.ipynb")
    grading.add_argument("--json", metavar="FILE", help="write the verdicts there as well")
    grading.add_argument("--timeout", type=float, default=120.0, metavar="S", help="seconds for all of it (120)")
    grading.set_defaults(run=grade)

    onward = commands.add_parser("progress", help="which exercises are done, and which one is next")
    onward.set_defaults(run=progress)

    for each in (one, two, three, four, five, six, seven, eight, grading, onward, *talking(commands)):
        # after the command as well as before it
        each.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 good, 1 a check failed, 2 wrong input."""
    args = parser().parse_args(argv)
    try:
        return int(args.run(args))
    except BrokenPipeError:  # whoever read along (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except INPUT_ERRORS as error:
        if args.debug:
            raise
        text = "\n".join([f"tinyomni {args.command}: {error}", *getattr(error, "__notes__", [])])
        encoding = sys.stderr.encoding or "ascii"
        print(text.encode(encoding, "replace").decode(encoding), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
