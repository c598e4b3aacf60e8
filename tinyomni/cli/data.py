"""`tinyomni world` and `tinyomni data`."""

import argparse
from collections.abc import Iterable

from tinyomni.cli.console import Choices, say
from tinyomni.files import whole


def splits() -> Iterable[str]:
    """The splits of the closed world."""
    from tinyomni.data.world import SPLITS

    return SPLITS


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add both commands to the parser."""
    world = commands.add_parser("world", help="the closed world: its size and entropy, or a sheet of scenes")
    world.add_argument("--show", action="store_true", help="draw scenes with their captions, questions and speech")
    world.add_argument("--out", default="world.png", metavar="FILE", help="the image to write (default world.png)")
    world.add_argument("--count", type=int, default=8, help="how many scenes (default 8)")
    world.add_argument("--split", choices=Choices(splits), default="train", metavar="NAME", help="%(choices)s")
    world.add_argument("--seed", type=int, default=0)
    world.add_argument("--easy", action="store_true", help="images without variation")
    world.add_argument("--silent", action="store_true", help="without speech")
    world.add_argument("--voice", choices=["training", "held-out"], default="training")
    world.set_defaults(run=run_world)

    data = commands.add_parser("data", help="inspect custom data before anyone trains on it")
    data.add_argument("what", choices=["inspect"])
    data.add_argument("path", help="a manifest (CSV, JSONL), text files, LJSpeech, LibriSpeech or COCO captions")
    data.add_argument("--allow-outside", action="store_true", help="allow paths that leave the manifest's folder")
    data.set_defaults(run=run_data)


def run_world(args: argparse.Namespace) -> int:
    """Show a part of the closed world, or its sizes."""
    from tinyomni.data.datasets import Scenes
    from tinyomni.data.preview import preview
    from tinyomni.data.tts import HELD_OUT_VOICE, TTS_VOICES
    from tinyomni.data.world import SPLITS, entropy, language, lines_of, loss_floor
    from tinyomni.tokenizer import BPETokenizer

    if args.show:
        voices = (HELD_OUT_VOICE,) if args.voice == "held-out" else TTS_VOICES
        scenes = Scenes(args.split, args.count, args.seed, not args.easy, not args.silent, voices)
        with whole(args.out) as out:
            preview([scenes[index] for index in range(args.count)]).savefig(out, dpi=110)
        say(f"{args.out}: {args.count} scenes of the split {args.split}")
        return 0
    encode = BPETokenizer().encode
    say(f"{sum(len(lines) for _, lines in language().values()):,} lines in {len(language())} families")
    for split in SPLITS:
        count = sum(len(lines) for _, lines in lines_of(split).values())
        floor = loss_floor(encode, split)
        say(f"  {split:14} {count:7,} lines   {entropy(split):.4f} nats a line   loss floor {floor:.4f} nats a token")
    return 0


def run_data(args: argparse.Namespace) -> int:
    """Say what is in a manifest; 1 if rows of it cannot be used."""
    from tinyomni.data.custom import inspect

    found = inspect(args.path, allow_outside=args.allow_outside)
    say(str(found))
    return 0 if not found.bad else 1
