"""Loaders of public data sets in their own formats on disk: LJSpeech, LibriSpeech, COCO captions."""

import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ijson

from tinyomni.data.manifests import ManifestError, RowDataset, RowError, TextFile
from tinyomni.errors import InputError, MissingFileError
from tinyomni.io.sources import existing_file


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
    """A part of LibriSpeech, such as the folder `LibriSpeech/train-clean-100`. Options: see RowDataset.

    Audio is `19/198/19-198-0000.flac` (reader, chapter, number) at 16 kHz; a line of `19/198/19-198.trans.txt` is
    `19-198-0000 TEXT IN CAPITALS`. torchaudio's data set finds the files; we read the audio.
    Panayotov, Chen, Povey & Khudanpur (2015), https://openslr.org/12
    """

    kind = "speech"

    def __init__(self, folder: str | Path, **options: Any) -> None:
        from torchaudio.datasets import LIBRISPEECH

        folder = Path(folder).absolute()
        if not folder.is_dir():
            raise MissingFileError(f"LibriSpeech: there is no folder {folder}. Is the path right?")
        try:
            self.found = LIBRISPEECH(folder.parent.parent, url=folder.name, folder_in_archive=folder.parent.name)
        except ValueError as error:
            raise InputError(f"LibriSpeech: expected one of its parts, got {folder.name} ({error})") from error
        # torchaudio lists the recordings only: a text without one would be dropped silently
        recorded = set(self.found._walker)
        texts = (path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.glob("*/*/*.trans.txt")))
        names = (line.split()[0] for text in texts for line in text.split("\n") if line.strip())
        self.unrecorded = [name for name in names if name not in recorded]
        super().__init__(folder.name, folder.parent, **options)

    def _scan(self) -> Iterator[tuple[int, int]]:
        return ((index, index + 1) for index in range(len(self.found) + len(self.unrecorded)))

    def _where(self, offset: int, line: int) -> str:
        return str(
            self.found._walker[offset] if offset < len(self.found) else self.unrecorded[offset - len(self.found)]
        )

    def _read(self, offset: int) -> dict[str, str]:
        if offset >= len(self.found):
            raise RowError("file missing", "expected a recording beside the text, got none")
        try:
            path, _, text, reader, chapter, _ = self.found.get_metadata(offset)
        except (ValueError, FileNotFoundError) as error:
            raise RowError(
                "text missing", f"expected a text in the .trans.txt of its chapter, got none ({error})"
            ) from error
        return {"audio": path, "text": text, "reader": str(reader), "chapter": str(chapter)}


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
        self._image, self._number, self._captions = array("q"), array("q"), list[str]()
        try:
            self._names = {entry["id"]: os.fspath(entry["file_name"]) for entry in entries(path, "images")}
            for entry in entries(path, "annotations"):
                self._image.append(entry["image_id"])
                self._number.append(entry["id"])
                self._captions.append(entry["caption"].strip())
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
        return {"image": self._names[image], "caption": self._captions[offset]}


def entries(path: Path, part: str) -> Iterator[dict[str, Any]]:
    """The entries of one list in a large JSON object."""
    with path.open("rb") as file:
        yield from ijson.items(file, f"{part}.item")
