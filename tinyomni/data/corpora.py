"""Loaders of public data sets in their own formats on disk: LJSpeech, LibriSpeech, COCO captions."""

import json
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ijson

from tinyomni.data.manifests import BOM, ManifestError, RowDataset, RowError, TextFile, decode, is_mac_metadata
from tinyomni.errors import InputError, MissingFileError
from tinyomni.io.sources import existing_file

TRANSCRIPTS = "*.trans.txt"


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
        self._rows: dict[Path, str | RowError] = {}  # recording → its text, or what is wrong with that
        for chapter in sorted(folder.rglob(TRANSCRIPTS)):
            if not is_mac_metadata(chapter):
                self._rows |= {chapter.parent / f"{name}.flac": text for name, text in transcripts(chapter).items()}
        if not self._rows:
            raise InputError(f"LibriSpeech: expected {TRANSCRIPTS} files in {folder} or below, found none")
        missing = RowError("text missing", "expected a text in the .trans.txt of its chapter, got none")
        for recording in folder.rglob("*.flac"):
            if not is_mac_metadata(recording):
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
        if isinstance(text, RowError):
            raise text
        if not path.exists():
            raise RowError("file missing", "expected a recording beside the text, got none")
        reader, chapter = path.stem.split("-")[:2]
        return {"audio": str(path.relative_to(self.root)), "text": text, "reader": reader, "chapter": chapter}


def transcripts(path: Path) -> dict[str, str | RowError]:
    """The lines of a `.trans.txt`: name → text, or what is wrong with the line. Blank lines are skipped."""
    content = path.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ManifestError(f"{path.name}: expected UTF-8, got UTF-16. Save the file as UTF-8.")
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
        self._names = dict[int, str]()
        self._image, self._number, self._captions = array("q"), array("q"), list[str | RowError]()
        try:
            for entry in entries(path, "images"):
                if isinstance(entry, dict) and isinstance(entry.get("file_name"), str) and is_id(entry.get("id")):
                    self._names[entry["id"]] = entry["file_name"]
            for entry in entries(path, "annotations"):
                image, number, caption = annotation(entry)
                self._image.append(image)
                self._number.append(number)
                self._captions.append(caption)
        except ijson.JSONError as error:
            detail = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error)
            raise ManifestError(f"{path.name} is damaged or truncated: {detail.splitlines()[0]}") from error
        except UnicodeDecodeError as error:
            raise ManifestError(f"{path.name} is damaged: a text in it is not valid UTF-8 ({error.reason})") from error
        super().__init__(path.name, Path(images), **options)

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
        return {"image": self._names[image], "caption": caption.strip()}


def is_id(value: object) -> bool:
    """Whether it is a number that COCO may give to an image or a caption."""
    return isinstance(value, int) and 0 <= value < 2**63


def annotation(entry: Any) -> tuple[int, int, str | RowError]:
    """The image, the number and the caption of an annotation, -1 for what it lacks; or what is wrong with it."""
    if not isinstance(entry, dict):
        return -1, -1, RowError("not an object", f"expected id, image_id and caption, got {shown(entry)}")
    image, number = (entry[name] if is_id(entry.get(name)) else -1 for name in ("image_id", "id"))
    caption: object = entry.get("caption")
    if image < 0:
        return -1, number, RowError("not an id", f"image_id must be an integer, got {shown(entry.get('image_id'))}")
    if not isinstance(caption, str):
        return image, number, RowError("not a string", f"caption must be a string, got {shown(caption)}")
    return image, number, caption


def shown(value: object) -> str:
    """A value of a JSON file, for a message."""
    return json.dumps(value, default=str)[:60]


def entries(path: Path, part: str) -> Iterator[Any]:
    """The entries of one list in a large JSON object."""
    with path.open("rb") as file:
        file.seek(len(BOM) if file.read(len(BOM)) == BOM else 0)
        yield from ijson.items(file, f"{part}.item")
