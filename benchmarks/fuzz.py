"""Hostile input to every fuzz target: made up or mutated, it is read or refused with our own error, in a few seconds.

    python benchmarks/fuzz.py --cases 200000 --minutes 60          all targets, evenly; the tests run a few
    python benchmarks/fuzz.py --targets image audio --cases 2000   of these targets only
    python benchmarks/fuzz.py --targets image --case 17            one case again, with its traceback

A case is made from the seed, its target and its number alone. It fails if another error is raised, if the process dies
or needs more than 4 GB above what it had, or if it takes more than 20 seconds of processor time or 10 minutes. Every
target runs in a fork of a process that has loaded all libraries, so that a crash costs one case. The result goes to
benchmarks/fuzz.json, and from there to docs/reliability.md; targets that are run alone, with the same seed, take their
place in it.
"""

import argparse
import contextlib
import io
import json
import math
import os
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image

from tinyomni.data.custom import open_data
from tinyomni.errors import InputError
from tinyomni.evaluation.registry import METRICS
from tinyomni.evaluation.report import Report, result
from tinyomni.io import load_audio, load_image
from tinyomni.io import weights as weights_io
from tinyomni.metrics import accuracy
from tinyomni.tokenizer import SHIPPED, BPETokenizer
from tinyomni.tracing import Spec, SpecError, Trace, trace
from tinyomni.training import checkpoint
from tinyomni.training.settings import Settings

TOP = Path(__file__).resolve().parents[1]
SECONDS, MEMORY = 20, 4 * 2**30
PATIENCE = 30  # times as long may pass by the clock: a busy machine is no fault
Case = Callable[[], object]
"""Calls the target. Its result is compared with nothing: only how it ends counts."""
TONE = np.sin(np.arange(3000) / 9) * 0.3


# ---- making hostile things ------------------------------------------------------------------------------------------


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A file with one to four changes: bits, bytes, numbers, pieces left out, doubled, moved, or cut off."""
    found = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        # the head is where formats keep what they promise
        end = len(found) if chance.random() < 0.5 else min(len(found), 200)
        at = chance.randrange(end) if end else 0
        size = chance.choice((1, 2, 4, 8, 40, 400))
        kind = chance.randrange(7)
        if kind == 0 and found:
            found[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            found[at : at + 1] = bytes([chance.choice((0, 1, 10, 34, 44, 127, 128, 255, chance.randrange(256)))])
        elif kind == 2:
            number = chance.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**16, chance.getrandbits(32)))
            found[at : at + 4] = number.to_bytes(4, chance.choice(("little", "big")))
        elif kind == 3:
            del found[at : at + size]
        elif kind == 4:
            found[at:at] = found[at : at + size]
        elif kind == 5:
            found[at:at] = chance.randbytes(size)
        else:
            del found[at + size :]
    return bytes(found)


def made(folder: Path, name: str, data: bytes) -> Path:
    """A file with this content."""
    (path := folder / name).write_bytes(data)
    return path


# ---- targets: folder, random numbers → a case -----------------------------------------------------------------------


def image_files() -> dict[str, bytes]:
    """One of each format and of some modes."""
    pixels = Image.fromarray(np.arange(40 * 30 * 3, dtype=np.uint8).reshape(40, 30, 3))
    exif, found = Image.Exif(), {}
    exif[0x0112], exif[0x010E] = 6, "words"
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "ICO", "TGA"):
        for mode in ("RGB", "P", "L") if kind in ("PNG", "GIF", "BMP", "TIFF", "TGA") else ("RGB",):
            more: dict[str, Any] = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}
            pixels.convert(mode).save(file := io.BytesIO(), kind, **more)
            found[f"{kind} {mode}"] = file.getvalue()
    return found


def audio_files() -> dict[str, bytes]:
    """One of each format and of some encodings."""
    kinds = ["WAV PCM_16", "WAV PCM_U8", "WAV FLOAT", "WAV IMA_ADPCM", "WAV GSM610", "WAVEX PCM_24", "FLAC PCM_16",
             "OGG VORBIS", "OGG OPUS", "MP3 MPEG_LAYER_III", "AIFF PCM_16", "AU ULAW", "W64 PCM_16", "RF64 PCM_16",
             "CAF PCM_16"]  # fmt: skip
    found = {}
    for kind in kinds:
        container, encoding = kind.split()
        soundfile.write(file := io.BytesIO(), TONE, 16_000, format=container, subtype=encoding)
        found[kind] = file.getvalue()
    found["OGG chained"] = 2 * found["OGG VORBIS"]
    return found


def image(folder: Path, chance: random.Random) -> Case:
    """A damaged image file."""
    path = made(folder, "image", mutated(chance.choice(list(SEEDS["image"].values())), chance))
    return lambda: load_image(path)


def audio(folder: Path, chance: random.Random) -> Case:
    """A damaged recording."""
    path = made(folder, "audio", mutated(chance.choice(list(SEEDS["audio"].values())), chance))
    return lambda: load_audio(path)


def arrays(folder: Path, chance: random.Random) -> Case:
    """Samples or pixels of any type, shape and size, finite or not, at any rate."""
    shape = [chance.choice((0, 1, 2, 3, 7, 40, 3000)) for _ in range(chance.choice((0, 1, 1, 2, 2, 3, 4)))]
    shape = shape if math.prod(max(size, 1) for size in shape) < 10**6 else shape[:1]
    kind = chance.choice(
        ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "c8", "?", "O", "U3", ">i2")
    )
    rng = np.random.default_rng(chance.getrandbits(32))
    scale = chance.choice((0, 1e-9, 0.3, 1, 3, 300, 30_000, 1e9, 1e30, float("nan"), float("inf")))
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = np.asarray(rng.normal(size=shape) * scale).astype(kind)
    source: Any = values
    if chance.random() < 0.3:
        source = values.tolist()
    elif shape and kind in ("f4", "f8", "i2", "i4", "i8", "u1") and chance.random() < 0.3:
        source = torch.from_numpy(values)
    rate = chance.choice((0, -1, 1, 8000, 16_000, 22_050, 44_101, 768_000, 10**9, 16e3, float("nan"), "16000", None))
    if chance.random() < 0.4:
        return lambda: load_image(source)
    return lambda: load_audio((source, rate))


def manifest(folder: Path, chance: random.Random) -> Case:
    """A damaged CSV or JSONL manifest, or text file."""
    name = chance.choice(list(SEEDS["manifest"]))
    path = made(folder, name, mutated(SEEDS["manifest"][name], chance))
    return lambda: read_rows(path)


def corpus(folder: Path, chance: random.Random) -> Case:
    """LJSpeech, LibriSpeech or COCO with a damaged index."""
    name = chance.choice(list(SEEDS["corpus"]))
    (place := folder / name).parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(mutated(SEEDS["corpus"][name], chance))
    return lambda: read_rows(place if name.endswith(".json") else place.parent)


def read_rows(path: Path) -> None:
    """All rows that can be used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = open_data(path, skip_bad=True, check="headers")
        for index in range(len(data)):
            data[index]


def tokenizer(folder: Path, chance: random.Random) -> Case:
    """A damaged tokenizer, or any text for a good one."""
    if chance.random() < 0.02:  # it is large
        path = made(folder, "t.model", mutated(SEEDS["tokenizer"]["model"], chance))
        return lambda: BPETokenizer(path).decode(BPETokenizer(path).encode("Some words."))
    text = "".join(chr(chance.choice((32, 97, 233, 0x4E2D, 0x1F600, 0, 0xD800, chance.randrange(0x110000))))
                   for _ in range(chance.randrange(60)))  # fmt: skip
    return lambda: TOKENIZER.decode(TOKENIZER.encode(text))


def a_checkpoint(folder: Path, chance: random.Random) -> Case:
    """A checkpoint with a damaged file: it must not load, unless nothing in it differs."""
    name = chance.choice((checkpoint.METADATA, checkpoint.TENSORS))
    for each in (checkpoint.METADATA, checkpoint.TENSORS):
        made(folder, each, SEEDS["checkpoint"][each])
    good, bad = SEEDS["checkpoint"][name], mutated(SEEDS["checkpoint"][name], chance)
    made(folder, name, bad)

    def load() -> None:
        _, metadata = checkpoint.load(folder)
        same = bad == good or (name == checkpoint.METADATA and metadata == json.loads(good))
        if not same:
            raise AssertionError("a damaged checkpoint was loaded")

    return load


def weights(folder: Path, chance: random.Random) -> Case:
    """A damaged weights file: no changed bit may go unnoticed."""
    good = SEEDS["weights"]["w.safetensors"]
    bad = mutated(good, chance)
    path = made(folder, "w.safetensors", bad)

    def load() -> None:
        weights_io.read(path)
        if bad != good:
            raise AssertionError("damaged weights were loaded")

    return load


def specification(folder: Path, chance: random.Random) -> Case:
    """A damaged specification in TOML."""
    name = chance.choice(list(SEEDS["specification"]))
    path = made(folder, "spec.toml", mutated(SEEDS["specification"][name], chance))
    return lambda: Spec.load(path)


def stored_json(folder: Path, chance: random.Random) -> Case:
    """A damaged report or trace."""
    name = chance.choice(list(SEEDS["json"]))
    path = made(folder, name, mutated(SEEDS["json"][name], chance))
    return lambda: Report.load(path) if name == "report.json" else Trace.load(path)


def settings(folder: Path, chance: random.Random) -> Case:
    """Any value for any setting."""
    name = chance.choice((*Settings.__dataclass_fields__, "unknown"))
    texts = [
        "nan",
        "inf",
        "-inf",
        "-1",
        "0",
        "1e308",
        "1e-320",
        "9" * 5000,
        "",
        " ",
        "None",
        "true",
        "1_0",
        "0x10",
        "٣",
    ]
    text = chance.choice([*texts, "\0", "1.5", "16", "../..", chance.randbytes(5).decode("latin1")])
    return lambda: Settings(10).override({name: text})


TARGETS: dict[str, tuple[Callable[[Path, random.Random], Case], tuple[type[Exception], ...]]] = {
    "image": (image, (InputError,)),
    "audio": (audio, (InputError,)),
    "arrays": (arrays, (InputError, TypeError)),  # TypeError: no array of numbers at all; ShapeError is an InputError
    "manifest": (manifest, (InputError,)),
    "corpus": (corpus, (InputError,)),
    "tokenizer": (tokenizer, (InputError,)),
    "checkpoint": (a_checkpoint, (checkpoint.CorruptCheckpoint,)),
    "weights": (weights, (InputError,)),
    "specification": (specification, (SpecError,)),
    "json": (stored_json, (InputError, ValueError)),
    "settings": (settings, (InputError,)),
}
"""Name → what makes a case, and the errors that mean: refused."""
SEEDS: dict[str, dict[str, bytes]] = {}
TOKENIZER: BPETokenizer


def load_seeds() -> None:
    """What is mutated; made once."""
    global TOKENIZER
    if SEEDS:
        return
    TOKENIZER = BPETokenizer()
    rows = {"rows.csv": 'audio,text\na.wav,"Hello, you."\na.wav,x\n', "text.txt": "One line.\nAnother line.\n",
            "rows.jsonl": '{"audio": "a.wav", "text": "Hello."}\n{"audio": "a.wav", "text": "x", "n": [1, 2.5e3]}\n',
            "pictures.csv": "image,question,answer\na.png,What is it?,A cube.\n"}  # fmt: skip
    coco = {
        "images": [{"id": 7, "file_name": "a.png"}],
        "annotations": [{"id": 1, "image_id": 7, "caption": "A cube."}, {"id": 2, "image_id": 7, "caption": "x"}],
    }
    corpora = {"lj/metadata.csv": "a|One.|One.\na|Two.|Two.\n",
               "libri/1/2/1-2.trans.txt": "1-2-0000 ONE\n1-2-0001 TWO\n",
               "coco/annotations/captions_x.json": json.dumps(coco)}  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stage = torch.nn.Linear(3, 2)
        tensors = {f"model.{key}": value for key, value in stage.state_dict().items()}
        path = checkpoint.save(folder, 3, tensors, {"result": {"steps": 3, "best": 0.5}, "random": [1, 2, [3, None]]})
        saved = {each: (path / each).read_bytes() for each in (checkpoint.METADATA, checkpoint.TENSORS)}
        weights_io.write(folder / "w.safetensors", {"a.weight": torch.ones(40, 30), "a.bias": torch.ones(7)},
                         {"d_model": 30}, TOKENIZER, thresholds={"typed": -0.1})  # fmt: skip
        metric = result(next(iter(METRICS)), accuracy([1, 0, 1]), 3, "smoke")
        Report("smoke", (metric,), {"vision": {"steps": 3}}, ()).save(folder / "report.json")
        with trace("a layer") as seen:
            stage(torch.zeros(1, 3))
        seen.save(folder / "trace.json")
        SEEDS.update(
            image=image_files(),
            audio=audio_files(),
            manifest={key: text.encode() for key, text in rows.items()},
            corpus={key: text.encode() for key, text in corpora.items()},
            tokenizer={"model": SHIPPED.read_bytes()},
            checkpoint=saved,
            weights={"w.safetensors": (folder / "w.safetensors").read_bytes()},
            specification={path.name: path.read_bytes() for path in (TOP / "tinyomni/dry_run/specs").glob("*.toml")},
            json={each: (folder / each).read_bytes() for each in ("report.json", "trace.json")},
        )


def furnish(folder: Path) -> None:
    """The good files that manifests and corpora name."""
    recordings = ("a.wav", "lj/wavs/a.wav", "libri/1/2/1-2-0000.flac", "libri/1/2/1-2-0001.flac")
    for name in (*recordings, "a.png", "coco/x/a.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        kind = {"png": "PNG RGB", "wav": "WAV PCM_16", "flac": "FLAC PCM_16"}[name.rsplit(".")[-1]]
        made(folder, name, SEEDS["image" if kind.startswith("PNG") else "audio"][kind])


# ---- running --------------------------------------------------------------------------------------------------------


def one(target: str, number: int, seed: int, folder: Path, traceback: bool = False) -> str:
    """How one case ends: "read", "refused", or what went wrong."""
    make, refusals = TARGETS[target]
    case = make(folder, random.Random(f"{seed} {target} {number}"))
    try:
        case()
    except refusals:
        return "refused"
    except Exception as error:
        if traceback:
            raise
        return f"{type(error).__name__}: {error}"[:200]
    return "read"


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Memory for a process of cases, and an alarm for each of them."""

    def late(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    signal.signal(signal.SIGPROF, late)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
    yield


def batch(target: str, first: int, last: int, seed: int) -> tuple[Counter[str], list[str], int]:
    """Cases in a fork, up to the first crash: how many were read and refused, what failed, how many were run."""
    reading, writing = os.pipe()
    with tempfile.TemporaryDirectory() as name:  # of this process: one that is killed clears nothing away
        furnish(Path(name))
        child = os.fork()
        if child == 0:
            os.close(reading)
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 2)  # decoders complain of every file
            with os.fdopen(writing, "w", buffering=1) as results, limits():
                for number in range(first, last):
                    signal.setitimer(signal.ITIMER_PROF, SECONDS)
                    signal.alarm(PATIENCE * SECONDS)
                    results.write(json.dumps(one(target, number, seed, Path(name))) + "\n")
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.alarm(0)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as results:
            outcomes = [json.loads(line) for line in results if line.endswith("\n")]
        ended = os.waitpid(child, 0)[1]
    status = os.waitstatus_to_exitcode(ended)
    if status and len(outcomes) < last - first:
        outcomes.append(f"the process ended with status {status}")
    failed = [f"{first + at}: {each}" for at, each in enumerate(outcomes) if each not in ("read", "refused")]
    return Counter(each for each in outcomes if each in ("read", "refused")), failed, len(outcomes)


def main(arguments: Sequence[str] | None = None) -> int:
    """All targets; 1 if a case failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=2000, help="of all targets together (default 2000)")
    parser.add_argument("--minutes", type=float, default=60, help="none begins after this time (default 60)")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS), metavar="TARGET")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, metavar="NUMBER", help="only this one, with its traceback")
    parser.add_argument("--out", default=str(TOP / "benchmarks" / "fuzz.json"), metavar="FILE")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    load_seeds()
    if args.case is not None:
        with tempfile.TemporaryDirectory() as folder:
            furnish(Path(folder))
            print(one(args.targets[0], args.case, args.seed, Path(folder), traceback=True))
        return 0
    deadline = time.monotonic() + 60 * args.minutes
    out = Path(args.out)
    stored = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    others = stored["targets"] if stored.get("seed") == args.seed else {}
    found = {target: {"cases": 0, "read": 0, "refused": 0, "failed": list[str]()} for target in args.targets}
    each_target = -(-args.cases // len(args.targets))
    while time.monotonic() < deadline and any(row["cases"] < each_target for row in found.values()):
        for target, row in found.items():
            if row["cases"] < each_target:
                counts, failed, run = batch(target, row["cases"], min(row["cases"] + 500, each_target), args.seed)
                row["cases"], row["failed"] = row["cases"] + run, row["failed"] + failed
                row["read"], row["refused"] = row["read"] + counts["read"], row["refused"] + counts["refused"]
                print(
                    f"{target:14} {row['cases']:7,} cases {row['read']:7,} read {len(row['failed'])} failed", flush=True
                )
                for line in failed:
                    print(f"  {line}", flush=True)
        # after each round: a run that is stopped has what it measured
        text = json.dumps({"seed": args.seed, "targets": others | found}, indent=1, ensure_ascii=False)
        out.write_text(text + "\n", encoding="utf-8")
    return int(any(row["failed"] for row in found.values()))


if __name__ == "__main__":
    sys.exit(main())
