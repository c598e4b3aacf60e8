"""Loaders of public data sets in their own formats on disk: LJSpeech, LibriSpeech, COCO captions."""

import decimal
import json
import mmap
import os
import re
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ijson
import ijson.backends.python

from tinyomni.data.manifests import (
    BOM,
    ManifestError,
    RowDataset,
    RowError,
    TextFile,
    check_surrogates,
    decode,
    files_below,
    refuse_other_formats,
)
from tinyomni.errors import InputError, MissingFileError
from tinyomni.io.sources import existing_file

TRANSCRIPTS = "*.trans.txt"
MAX_DEPTH = 100  # nothing that is read lies deeper than 3
MAX_DIGITS = sys.int_info.str_digits_check_threshold  # Python's limit is never lower; yajl ends the process beyond it
TOKENS = re.compile(
    rb"""
    "[^"\\]*+ (?: \\ (?: [^u] | u(?![dD][89a-fA-F]) | u[dD][89abAB][\da-fA-F]{2}\\u[dD][c-fC-F] ) [^"\\]*+ )*+ "
    | (?P<half>" [^"\\]*+ (?: \\. [^"\\]*+ )*+ ")  # a string with half of a surrogate pair
    | ".*+  # a string that is cut off
    | (?P<open>[\[{]) | (?P<close>[\]}]) | (?P<number>\d{%d})
    """
    % (MAX_DIGITS + 1),
    re.DOTALL | re.VERBOSE,
)
"""What `check_json` looks at in a JSON file. Possessive, so that a string of any length is matched in linear time."""


class LJSpeech(RowDataset):
    """The folder `LJSpeech-1.1`: 13,100 sentences of one reader, 24 hours at 22,050 Hz. Options: see RowDataset.

    A line of `metadata.csv` is `LJ001-0001|as written|as spoken`, without quoting; the audio is `wavs/LJ001-0001.wav`.
    `text` is what is spoken, with numbers as words; `written` is kept as a further column.
    Ito & Johnson (2017), https://keithito.com/LJ-Speech-Dataset/
    """

    kind = "speech"

    def __init__(self, folder: str | Path, **options: Any) -> None:
        self.file = TextFile("LJSpeech", Path(folder) / "metadata.csv")
        super().__init__("metadata.csv", Path(folder), **options)

    def _scan(self) -> Iterator[tuple[int, int]]:
        return self.file.lines()

    def _read(self, offset: int) -> dict[str, str]:
        cells = self.file.line(offset).split("|")
        if len(cells) != 3:
            raise RowError("cells", f"expected 3 cells separated by | (name|written|spoken), got {len(cells)}")
        return {"audio": f"wavs/{cells[0]}.wav", "text": cells[2], "written": cells[1]}


class LibriSpeech(RowDataset):
    """LibriSpeech, Mini LibriSpeech, one part (`LibriSpeech/train-clean-100`) or one chapter. Options: see RowDataset.

    Audio is `19/198/19-198-0000.flac` (reader, chapter, number) at 16 kHz; a line of `19/198/19-198.trans.txt` is
    `19-198-0000 TEXT IN CAPITALS`. A recording without a text, or a text without a recording, is a bad row.
    Panayotov, Chen, Povey & Khudanpur (2015), https://openslr.org/12
    """

    kind = "speech"

    def __init__(self, folder: str | Path, **options: Any) -> None:
        folder = Path(os.path.realpath(folder))
        if not folder.is_dir():
            raise MissingFileError(f"LibriSpeech: there is no folder {folder}. Is the path right?")
        self._rows: dict[Path, str | Exception] = {}  # recording → its text, or what is wrong with that
        for chapter in files_below(folder, TRANSCRIPTS):
            try:
                self._rows |= {chapter.parent / f"{name}.flac": text for name, text in transcripts(chapter).items()}
            except (InputError, OSError) as error:
                self._rows[chapter] = error
        if not self._rows:
            raise InputError(f"LibriSpeech: expected {TRANSCRIPTS} files in {folder} or below, found none")
        missing = RowError("text missing", "expected a text in the .trans.txt of its chapter, got none")
        for recording in files_below(folder, "*.flac"):
            self._rows.setdefault(recording, missing)
        self._recordings = sorted(self._rows)
        super().__init__(folder.name, folder, **options)

    def _scan(self) -> Iterator[tuple[int, int]]:
        return ((index, index + 1) for index in range(len(self._recordings)))

    def _where(self, offset: int, line: int) -> str:
        return self._recordings[offset].stem

    def _read(self, offset: int) -> dict[str, str]:
        path = self._recordings[offset]
        text = self._rows[path]
        if isinstance(text, Exception):
            raise text
        if not path.exists():
            raise RowError("file missing", "expected a recording beside the text, got none")
        parts = path.stem.split("-")
        if len(parts) < 3:
            raise RowError("name", f"expected a name such as 19-198-0000 (reader, chapter, number), got {path.stem}")
        return {"audio": str(path.relative_to(self.root)), "text": text, "reader": parts[0], "chapter": parts[1]}


def transcripts(path: Path) -> dict[str, str | RowError]:
    """The lines of a `.trans.txt`: name → text, or what is wrong with the line. Blank lines are skipped."""
    if not path.exists():
        raise MissingFileError(f"{path.name}: expected data, got a link to {os.readlink(path)}, which is not there")
    content = path.read_bytes()
    refuse_other_formats(path.name, content)
    found: dict[str, str | RowError] = {}
    for line in content.removeprefix(BOM).splitlines():
        name, *rest = line.split(maxsplit=1) or [b""]
        try:
            text: str | RowError = decode(rest[0]).strip() if rest else ""
        except RowError as error:
            text = error
        if not text:
            text = RowError("text missing", f"expected a text behind the name in {path.name}, got none")
        key = name.decode("utf-8", errors="replace")
        if key in found:
            text = RowError("duplicate", f"two lines of {path.name} have this name")
        if key:
            found[key] = text
    return found


class CocoCaptions(RowDataset):
    """COCO captions: `annotations/captions_train2017.json`, and images in `train2017/`. Options: see RowDataset.

    One item per caption; white space around it is stripped. The file (92 MB) is parsed incrementally; captions and
    names of images are kept. Images without a caption give no item. Chen et al. (2015), arXiv:1504.00325.
    """

    kind = "caption"

    def __init__(self, annotations: str | Path, images: str | Path | None = None, **options: Any) -> None:
        path = existing_file("COCO captions", annotations)
        if images is None:
            images = path.absolute().parent.parent / path.stem.removeprefix("captions_")
        if not Path(images).is_dir():
            raise MissingFileError(f"COCO captions: there is no image folder {images}. Is the path right?")
        self._names = dict[int, str | RowError]()
        self._image, self._number, self._captions = array("q"), array("q"), list[str | RowError]()
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as content:
                # yajl, which is faster, writes ? for half of a surrogate pair
                parser = ijson.backends.python if check_json(path.name, content) else ijson
                for entry in entries(parser, content, "images"):
                    if isinstance(entry, Entry) and isinstance(entry.get("file_name"), str) and is_id(entry.get("id")):
                        self._add_image(entry, entry["id"], entry["file_name"])
                for entry in entries(parser, content, "annotations"):
                    image, number, caption = annotation(entry)
                    self._image.append(image)
                    self._number.append(number)
                    self._captions.append(caption)
        except (ijson.JSONError, json.JSONDecodeError) as error:
            detail = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error)
            raise ManifestError(f"{path.name} is damaged or truncated: {detail.splitlines()[0]}") from error
        except UnicodeDecodeError as error:
            raise ManifestError(f"{path.name} is damaged: a text in it is not valid UTF-8 ({error.reason})") from error
        except decimal.InvalidOperation as error:
            raise ManifestError(f"{path.name}: expected exponents of at most 18 digits, got a longer one") from error
        super().__init__(path.name, Path(images), **options)

    def _add_image(self, entry: "Entry", number: int, name: str) -> None:
        """The name of an image; or what is wrong with it, for the captions that belong to it."""
        if entry.twice:
            self._names[number] = RowError("duplicate", f"image {number}: duplicate key {entry.twice!r}")
        elif self._names.setdefault(number, name) != name:
            self._names[number] = RowError("duplicate", f"two images have the id {number}")

    def _scan(self) -> Iterator[tuple[int, int]]:
        return ((index, index + 1) for index in range(len(self._captions)))

    def _where(self, offset: int, line: int) -> str:
        number = self._number[offset]
        return f"{self.name}, annotation {number}" if number >= 0 else f"{self.name}, annotations[{offset}]"

    def _read(self, offset: int) -> dict[str, str]:
        image, caption = self._image[offset], self._captions[offset]
        if isinstance(caption, RowError):
            raise caption
        if image not in self._names:
            raise RowError("unknown image", f"image_id {image} is not among the images")
        name = self._names[image]
        if isinstance(name, RowError):
            raise name
        row = {"image": name, "caption": caption.strip()}
        for column, text in row.items():
            check_surrogates(column, text)
        return row


class Entry(dict[str, Any]):
    """A JSON object; `twice` is a key that it has more than once."""

    twice = ""

    def __setitem__(self, key: str, value: Any) -> None:
        if key in self:
            self.twice = key
        super().__setitem__(key, value)


def is_id(value: object) -> bool:
    """Whether it is a number that COCO may give to an image or a caption."""
    return isinstance(value, int) and 0 <= value < 2**63


def annotation(entry: Any) -> tuple[int, int, str | RowError]:
    """The image, the number and the caption of an annotation, -1 for what it lacks; or what is wrong with it."""
    if not isinstance(entry, Entry):
        return -1, -1, RowError("not an object", f"expected id, image_id and caption, got {shown(entry)}")
    image, number = (entry[name] if is_id(entry.get(name)) else -1 for name in ("image_id", "id"))
    caption: object = entry.get("caption")
    if entry.twice:
        return image, number, RowError("duplicate", f"duplicate key {entry.twice!r}")
    if image < 0:
        return -1, number, RowError("not an id", f"image_id must be an integer, got {shown(entry.get('image_id'))}")
    if not isinstance(caption, str):
        return image, number, RowError("not a string", f"caption must be a string, got {shown(caption)}")
    return image, number, caption


def shown(value: object) -> str:
    """A value of a JSON file, for a message."""
    return json.dumps(value, default=str)[:60]


def check_json(name: str, content: mmap.mmap) -> bool:
    """Whether a string in it may hold half of a surrogate pair. What is nested too deeply becomes 0, in memory only.

    ijson's time and memory for nested values grow with the square of their depth. Nothing that is read lies so deep: a
    caption of 100 lists in each other is a bad row, whatever is in them.

    Raises ManifestError for UTF-16, and for long integers, which ijson does not refuse itself: they end the process.
    """
    depth, start, half = 0, 0, False
    refuse_other_formats(name, content[:32])
    for token in TOKENS.finditer(content):
        kind = token.lastgroup
        if kind == "number":
            limit = f"numbers of at most {MAX_DIGITS:,} digits, got a longer one at byte {token.start():,}"
            raise ManifestError(f"{name}: expected {limit}. Is it COCO's file?")
        half = half or kind == "half"
        if kind == "open":
            depth += 1
            start = token.start() if depth == MAX_DEPTH + 1 else start
        elif kind == "close":
            if depth == MAX_DEPTH + 1:
                content[start : token.end()] = b"0".ljust(token.end() - start)
            depth -= 1
    if depth > MAX_DEPTH:  # cut off there
        content[start:] = b"".ljust(len(content) - start)
    return half


def entries(parser: Any, content: mmap.mmap, part: str) -> Iterator[Any]:
    """The entries of one list in a large JSON object; `parser` is ijson or one of its backends."""
    content.seek(len(BOM) if content[: len(BOM)] == BOM else 0)
    yield from parser.items(content, f"{part}.item", map_type=Entry)
