"""Loaders of public data sets in their own formats on disk: LJSpeech, LibriSpeech, COCO captions."""

import json
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ijson

from tinyomni.data.manifests import BOM, ManifestError, RowDataset, RowError, TextFile, is_mac_metadata
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
        chapters = sorted(path for path in folder.rglob(TRANSCRIPTS) if not is_mac_metadata(path))
        if not chapters:
            raise InputError(f"LibriSpeech: expected {TRANSCRIPTS} files in {folder} or below, found none")
        self._rows: list[tuple[Path, str | None]] = []  # (recording, its text)
        for chapter in chapters:
            texts = transcripts(chapter)
            recorded = {path.stem for path in chapter.parent.glob("*.flac") if not is_mac_metadata(path)}
            self._rows += [
                (chapter.parent / f"{name}.flac", texts.get(name)) for name in sorted(texts.keys() | recorded)
            ]
        super().__init__(folder.name, folder, **options)

    def _scan(self) -> Iterator[tuple[int, int]]:
        return ((index, index + 1) for index in range(len(self._rows)))

    def _where(self, offset: int, line: int) -> str:
        return self._rows[offset][0].stem

    def _read(self, offset: int) -> dict[str, str]:
        path, text = self._rows[offset]
        if not text:
            raise RowError("text missing", "expected a text in the .trans.txt of its chapter, got none")
        if not path.exists():
            raise RowError("file missing", "expected a recording beside the text, got none")
        reader, chapter = path.stem.split("-")[:2]
        return {"audio": str(path.relative_to(self.root)), "text": text, "reader": reader, "chapter": chapter}


def transcripts(path: Path) -> dict[str, str]:
    """The lines of a `.trans.txt`: name → text, empty where a name stands alone. Blank lines are skipped."""
    text = path.read_bytes().decode("utf-8-sig", errors="replace")
    cells = (line.split(maxsplit=1) for line in text.splitlines() if line.strip())
    return {name: rest[0].strip() if rest else "" for name, *rest in cells}


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
        self._image, self._number, self._captions = array("q"), array("q"), list[Any]()
        try:
            self._names = {entry["id"]: os.fspath(entry["file_name"]) for entry in entries(path, "images")}
            for entry in entries(path, "annotations"):
                self._image.append(entry["image_id"])
                self._number.append(entry["id"])
                self._captions.append(entry.get("caption"))
        except ijson.JSONError as error:
            raise ManifestError(f"{path.name} is damaged or truncated: {str(error).splitlines()[0]}") from error
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ManifestError(
                f"{path.name}: expected the format of captions_*.json: images with id and file_name, "
                f"annotations with id, image_id and caption ({type(error).__name__}: {error})"
            ) from error
        super().__init__(path.name, Path(images), **options)

    def _scan(self) -> Iterator[tuple[int, int]]:
        return ((index, index + 1) for index in range(len(self._captions)))

    def _where(self, offset: int, line: int) -> str:
        return f"{self.name}, annotation {self._number[offset]}"

    def _read(self, offset: int) -> dict[str, str]:
        image = self._image[offset]
        if image not in self._names:
            raise RowError("unknown image", f"image_id {image} is not among the images")
        caption = self._captions[offset]
        if not isinstance(caption, str):
            raise RowError("not a string", f"caption must be a string, got {json.dumps(caption, default=str)}")
        return {"image": self._names[image], "caption": caption.strip()}


def entries(path: Path, part: str) -> Iterator[dict[str, Any]]:
    """The entries of one list in a large JSON object."""
    with path.open("rb") as file:
        file.seek(len(BOM) if file.read(len(BOM)) == BOM else 0)
        yield from ijson.items(file, f"{part}.item")
