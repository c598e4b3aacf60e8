"""Public data sets in their own formats on disk: LJSpeech, LibriSpeech, COCO captions.

Beside them: batches of like lengths, and what is in all this data before anyone trains on it.
"""

import math
import os
import random
import re
import warnings
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import ijson
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Sampler

from tinyomni.audio import CHARS
from tinyomni.config import TINY
from tinyomni.data.manifests import (
    KINDS,
    SHOWN,
    BadRow,
    LeftOut,
    Manifest,
    ManifestError,
    Rows,
    TextFile,
    TextFiles,
    Unusable,
    count_reasons,
)
from tinyomni.io.files import QUIET, SAMPLE_RATE, existing_file
from tinyomni.tokenizer import BPETokenizer


class LJSpeech(Rows):
    """The folder `LJSpeech-1.1`: 13,100 sentences of one reader, 24 hours at 22,050 Hz. Options: see Rows.

    A line of `metadata.csv` is `LJ001-0001|as written|as spoken`, without quoting; the sound is `wavs/LJ001-0001.wav`.
    `text` is what is spoken, with numbers as words; `written` is kept beside it.
    Ito & Johnson (2017), https://keithito.com/LJ-Speech-Dataset/
    """

    kind = "speech"

    def __init__(self, folder: str | Path, **options: Any) -> None:
        self.file = TextFile("LJSpeech", Path(folder) / "metadata.csv")
        super().__init__("metadata.csv", Path(folder), **options)

    def _scan(self) -> Iterator[tuple[int, int]]:
        return self.file.lines()

    def _read(self, place: int) -> dict[str, str]:
        cells = self.file.line(place).split("|")
        if len(cells) != 3:
            raise Unusable("cells", f"3 parts between | are expected (name|written|spoken), {len(cells)} came")
        return {"audio": f"wavs/{cells[0]}.wav", "text": cells[2], "written": cells[1]}


class LibriSpeech(Rows):
    """A part of LibriSpeech, such as the folder `LibriSpeech/train-clean-100`. Options: see Rows.

    Sound is `19/198/19-198-0000.flac` (reader, chapter, number) at 16 kHz; a line of `19/198/19-198.trans.txt` is
    `19-198-0000 TEXT IN CAPITALS`. torchaudio's data set finds the files; the sound is read by us.
    Panayotov, Chen, Povey & Khudanpur (2015), https://openslr.org/12
    """

    kind = "speech"

    def __init__(self, folder: str | Path, **options: Any) -> None:
        from torchaudio.datasets import LIBRISPEECH

        folder = Path(folder).absolute()
        if not folder.is_dir():
            raise FileNotFoundError(f"LibriSpeech: there is no folder {folder}. Is the path right?")
        try:
            self.found = LIBRISPEECH(folder.parent.parent, url=folder.name, folder_in_archive=folder.parent.name)
        except ValueError as error:
            raise ValueError(f"LibriSpeech: {folder.name} is none of its parts ({error})") from error
        # torchaudio walks the recordings only: a text without one would be lost without a word
        recorded = set(self.found._walker)
        texts = (path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.glob("*/*/*.trans.txt")))
        names = (line.split()[0] for text in texts for line in text.split("\n") if line.strip())
        self.unrecorded = [name for name in names if name not in recorded]
        super().__init__(folder.name, folder.parent, **options)

    def _scan(self) -> Iterator[tuple[int, int]]:
        return ((place, place + 1) for place in range(len(self.found) + len(self.unrecorded)))

    def _where(self, place: int, line: int) -> str:
        return str(self.found._walker[place] if place < len(self.found) else self.unrecorded[place - len(self.found)])

    def _read(self, place: int) -> dict[str, str]:
        if place >= len(self.found):
            raise Unusable("file missing", "there is a text and no recording")
        try:
            path, _, text, reader, chapter, _ = self.found.get_metadata(place)
        except (ValueError, FileNotFoundError) as error:
            raise Unusable("text missing", f"no text in the .trans.txt of its chapter ({error})") from error
        return {"audio": path, "text": text, "reader": str(reader), "chapter": str(chapter)}


class CocoCaptions(Rows):
    """COCO captions: `annotations/captions_train2017.json`, and pictures in `train2017/`. Options: see Rows.

    One item for each caption; white space around it is left out. The file (92 MB) is read piece by piece; captions and
    names of pictures are kept. Pictures without a caption make no item. Chen et al. (2015), arXiv:1504.00325.
    """

    kind = "caption"

    def __init__(self, annotations: str | Path, pictures: str | Path | None = None, **options: Any) -> None:
        path = existing_file("COCO captions", annotations)
        if pictures is None:
            pictures = path.absolute().parent.parent / path.stem.removeprefix("captions_")
        if not Path(pictures).is_dir():
            raise FileNotFoundError(f"COCO captions: there is no folder of pictures {pictures}. Is the path right?")
        self._image, self._number, self._captions = array("q"), array("q"), list[str]()
        try:
            self._names = {entry["id"]: os.fspath(entry["file_name"]) for entry in entries(path, "images")}
            for entry in entries(path, "annotations"):
                self._image.append(entry["image_id"])
                self._number.append(entry["id"])
                self._captions.append(entry["caption"].strip())
        except ijson.JSONError as error:
            raise ManifestError(f"{path.name} is damaged or cut off: {str(error).splitlines()[0]}") from error
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ManifestError(
                f"{path.name}: an entry is not as in captions_*.json: images with id and file_name, annotations with "
                f"id, image_id and caption ({type(error).__name__}: {error})"
            ) from error
        super().__init__(path.name, Path(pictures), **options)

    def _scan(self) -> Iterator[tuple[int, int]]:
        return ((place, place + 1) for place in range(len(self._captions)))

    def _where(self, place: int, line: int) -> str:
        return f"{self.name}, annotation {self._number[place]}"

    def _read(self, place: int) -> dict[str, str]:
        image = self._image[place]
        if image not in self._names:
            raise Unusable("picture unknown", f"image_id {image} is not among the images")
        return {"image": self._names[image], "caption": self._captions[place]}


def entries(path: Path, part: str) -> Iterator[dict[str, Any]]:
    """The entries of one list in a large JSON object."""
    with path.open("rb") as file:
        yield from ijson.items(file, f"{part}.item")


def open_data(path: str | Path, **options: Any) -> Rows | TextFiles:
    """Whatever lies there: a manifest, text, LJSpeech's folder, a part of LibriSpeech, COCO's captions_*.json."""
    path = Path(path)
    if path.is_dir() and (path / "metadata.csv").exists():
        return LJSpeech(path, **options)
    if path.is_dir() and next(path.glob("*/*/*.trans.txt"), None):
        return LibriSpeech(path, **options)
    if path.is_dir() or path.suffix.lower() == ".txt":
        return TextFiles(path, skip_bad=options.get("skip_bad", False))
    if path.suffix.lower() == ".json" and path.name.startswith("captions_"):
        return CocoCaptions(path, **options)
    return Manifest(path, **options)


# ---- batches of like lengths ----------------------------------------------------------------------------------------


def bucketed(
    lengths: Sequence[float], batch_size: int, seed: int = 0, epoch: int = 0, window: int = 50
) -> list[list[int]]:
    """The batches of one epoch, in order: every index once, items of like length together, so that little is padded.

    The order is shuffled, cut into windows of `window` batches, sorted by length within each, cut into batches, and
    these are shuffled. It depends on nothing but the arguments. Only one batch may be smaller than the rest.
    """
    if batch_size < 1 or window < 1:
        raise ValueError(f"Bucketed batches: batch_size and window should be at least 1, got {batch_size} and {window}")
    if not all(math.isfinite(length) for length in lengths):
        raise ValueError("Bucketed batches: a length is NaN or infinite")
    rng = random.Random(f"{seed} {epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    span = window * batch_size
    order = [i for at in range(0, len(order), span) for i in sorted(order[at : at + span], key=lengths.__getitem__)]
    batches = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    rng.shuffle(batches)
    return batches


class BucketSampler(Sampler[list[int]]):
    """`bucketed` for `DataLoader(batch_sampler=…)`; call `set_epoch` before each epoch.

    `batch_size` counts over all processes: every process takes its share of each batch, so that all take equally many
    steps. A last batch too small for all of them lends an item of it twice.
    """

    def __init__(
        self,
        lengths: Sequence[float],
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        window: int = 50,
    ) -> None:
        if not 0 <= rank < world_size <= batch_size:
            raise ValueError(f"BucketSampler: rank {rank} of {world_size} with batches of {batch_size} is not possible")
        self.lengths, self.batch_size, self.seed, self.window = lengths, batch_size, seed, window
        self.rank, self.world_size, self.epoch = rank, world_size, 0

    def set_epoch(self, epoch: int) -> None:
        """Another order."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in bucketed(self.lengths, self.batch_size, self.seed, self.epoch, self.window):
            yield batch[self.rank :: self.world_size] or [batch[self.rank % len(batch)]]


# ---- what is in it? -------------------------------------------------------------------------------------------------


@dataclass
class Inspection:
    """What `tinyomni data inspect` says. `notes` holds, for each remark, the rows that it is about."""

    name: str
    kind: str = ""
    rows: int = 0
    seconds: float = 0.0
    longest_seconds: float = 0.0
    tokens: int = 0
    longest_tokens: int = 0
    unknown: Counter[str] = field(default_factory=Counter)
    notes: dict[str, list[str]] = field(default_factory=dict)
    bad: list[BadRow] = field(default_factory=list)

    def note(self, remark: str, where: str) -> None:
        """Remember a row."""
        self.notes.setdefault(remark, []).append(where)

    def __str__(self) -> str:
        kind = f"rows of {', '.join(KINDS[self.kind])}" if self.kind in KINDS else self.kind or "rows"
        lines = [f"{self.name}: {self.rows} {kind}" + f", and {len(self.bad)} that cannot be used" * bool(self.bad)]
        if self.seconds:
            average = self.seconds / self.rows
            lines.append(
                f"  sound: {self.seconds / 3600:,.2f} hours ({self.seconds:.1f} s), "
                f"{average:.1f} s on average, {self.longest_seconds:.1f} s at most"
            )
        if self.rows:
            average = self.tokens / self.rows
            lines.append(f"  text: {self.tokens} tokens, {average:.1f} a row on average, {self.longest_tokens} at most")
        if self.unknown:
            most = [f"{char!r} ({count} ×)" for char, count in self.unknown.most_common(10)]
            more = f" and {len(self.unknown) - 10} more" if len(self.unknown) > 10 else ""
            lines.append(f"  characters that the ear cannot write: {', '.join(most)}{more}")
        for remark, rows in self.notes.items():
            lines.append(f"  {remark}: {len(rows)} ({', '.join(rows[:3])}{', …' * (len(rows) > 3)})")
        if self.bad:
            lines.append(f"  cannot be used: {count_reasons(self.bad)}")
            lines += [f"  ✘ {row}" for row in self.bad[:SHOWN]]
            lines += [f"  … and {len(self.bad) - SHOWN} more"] * (len(self.bad) > SHOWN)
        return "\n".join(lines)


def inspect(path: str | Path, allow_outside: bool = False) -> Inspection:
    """Read everything that a manifest, a text or a public data set holds, and say what would not fit the model."""
    found = Inspection(Path(path).name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LeftOut)  # what is left out is said below
            data = open_data(path, skip_bad=True, check="heads", allow_outside=allow_outside)
    except ManifestError as error:
        if not error.bad:
            raise
        found.bad = error.bad
        return found
    encode, seen = BPETokenizer().encode, set[int]()
    found.kind, found.bad = data.kind, list(data.bad)
    for index in range(len(data)):
        where = data.where(index)
        try:
            item = data[index]
        except ManifestError as error:
            if not error.bad:
                raise
            found.bad += error.bad
            continue
        found.rows += 1
        texts = [item] if isinstance(item, str) else [item.texts[name] for name in KINDS[found.kind][1:]]
        tokens = sum(len(encode(text)) for text in texts)
        found.tokens, found.longest_tokens = found.tokens + tokens, max(found.longest_tokens, tokens)
        whole = tokens + 2 + (found.kind in ("caption", "question"))  # BOS and EOS, and one for a picture
        if whole > TINY.thinker.ctx_len:
            found.note(f"longer than the {TINY.thinker.ctx_len} tokens that fit, with BOS and EOS", where)
        if not isinstance(item, str) and item.wave is not None:
            look_at_sound(found, where, item.wave, texts[0])
        row = hash(item) if isinstance(data, TextFiles) else hash(tuple(data.row(index).items()))
        if row in seen:
            found.note("the same as an earlier one", where)
        seen.add(row)
    # what opening met and what reading met, in the order of their lines
    found.bad.sort(
        key=lambda bad: [int(part) if n % 2 else part for n, part in enumerate(re.split(r"(\d+)", bad.where))]
    )
    return found


def look_at_sound(found: Inspection, where: str, wave: Float[Tensor, "samples"], text: str) -> None:
    """Length, silence, and whether the ear can write this text while it hears this sound."""
    seconds = len(wave) / SAMPLE_RATE
    found.seconds, found.longest_seconds = found.seconds + seconds, max(found.longest_seconds, seconds)
    tokens = -(-(len(wave) // TINY.audio.hop) // 4)
    if tokens > TINY.audio_limit:
        found.note(f"longer than the {TINY.audio_limit} audio tokens ({TINY.audio_limit / 25:g} s) of a prompt", where)
    if float(wave.abs().max()) < QUIET:
        found.note("silent", where)
    # CTC writes at most one character in each audio token, and a blank between two that are the same
    if len(text) + sum(one == two for one, two in pairwise(text)) > tokens:
        found.note("more characters than the ear can write in that time (25 a second)", where)
    found.unknown.update(char for char in text if char not in CHARS[:-1])
