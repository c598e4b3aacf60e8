"""Data of your own: a CSV or JSONL file that names pictures, recordings and texts, or plain text.

    image,caption                a picture and what it shows
    image,question,answer        a picture, a question about it and the answer
    audio,text                   a recording and what is said in it

Paths are relative to the manifest, texts are UTF-8, other columns are kept beside them. Every row is looked at before
the first is used: what is wrong is listed with file and line. `skip_bad=True` goes on without those rows, says how many
they are and why, and keeps them in `bad`. In memory are 24 bytes a row: where it begins, its line, its length.
"""

import csv
import functools
import itertools
import json
import os
import warnings
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import soundfile
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from tinyomni.data.tts import SpeechCache
from tinyomni.io.files import MOST_SECONDS, SAMPLE_RATE, existing_file, load_audio, load_image

KINDS = {
    "caption": ("image", "caption"),
    "question": ("image", "question", "answer"),
    "speech": ("audio", "text"),
}
BOM = b"\xef\xbb\xbf"
SHOWN = 20  # bad rows in an error


class Unusable(ValueError):
    """Why a row cannot be used; `reason` is the short form, by which such rows are counted."""

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason = reason


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: where it stands (`file:line`), and why."""

    where: str
    reason: str
    why: str

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


def bad_row(where: str, error: Exception) -> BadRow:
    """What reading a row raised, as an entry of the list."""
    known: dict[type[Exception], str] = {
        FileNotFoundError: "file missing",
        IsADirectoryError: "folder, no file",
        PermissionError: "not permitted",
    }
    return BadRow(where, getattr(error, "reason", known.get(type(error), "file not readable")), str(error))


def count_reasons(bad: Sequence[BadRow]) -> str:
    """`2 × file missing, 1 × text missing`."""
    return ", ".join(f"{count} × {reason}" for reason, count in Counter(row.reason for row in bad).most_common())


class ManifestError(ValueError):
    """Data that cannot be used; `bad` holds the rows, of which the message lists the first 20."""

    def __init__(self, text: str, bad: Sequence[BadRow] = ()) -> None:
        self.bad = list(bad)
        more = [f"… and {len(self.bad) - SHOWN} more"] if len(self.bad) > SHOWN else []
        super().__init__("\n  ".join([text, *map(str, self.bad[:SHOWN]), *more]))


class LeftOut(UserWarning):
    """Rows were left out, because `skip_bad` asked for it."""


def settle(name: str, good: int, bad: Sequence[BadRow], skip_bad: bool) -> None:
    """What happens with bad rows: an error with the list, or a warning with the count."""
    of_all = f"{len(bad)} of {len(bad) + good} rows"
    if not good:
        raise ManifestError(f"{name}: there is no row in it that can be used", bad)
    if bad and not skip_bad:
        text = f"{name}: {of_all} cannot be used ({count_reasons(bad)}). Mend them, or go on without: skip_bad=True."
        raise ManifestError(text, bad)
    if bad:
        warnings.warn(f"{name}: {of_all} were left out ({count_reasons(bad)})", LeftOut, stacklevel=3)


# ---- lines on disk --------------------------------------------------------------------------------------------------


class TextFile:
    """A UTF-8 file, read from any place in it. Between opening and reading it has to stay the same."""

    def __init__(self, step: str, path: str | Path) -> None:
        self.path = existing_file(step, path)
        state = os.stat(self.path)
        self.state = (state.st_size, state.st_mtime_ns)
        with self.path.open("rb") as file:
            head = file.read(3)
        if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise ManifestError(f"{self.path.name} is written in UTF-16. Save it as UTF-8.")
        self.begin = len(BOM) if head == BOM else 0

    def at(self, place: int) -> BinaryIO:
        """The file, opened at this byte."""
        file = self.path.open("rb")
        state = os.fstat(file.fileno())
        if (state.st_size, state.st_mtime_ns) != self.state:
            file.close()
            raise ManifestError(f"{self.path.name} has changed since it was opened. Open it anew.")
        file.seek(place)
        return file

    def lines(self) -> Iterator[tuple[int, int]]:
        """(byte, line) of every line that is not blank."""
        with self.at(self.begin) as file:
            place = self.begin
            for number, raw in enumerate(file, 1):
                if raw.strip():
                    yield place, number
                place += len(raw)

    def line(self, place: int) -> str:
        """The line that begins at this byte. Raises Unusable if it is no UTF-8."""
        with self.at(place) as file:
            return decode(file.readline()).rstrip("\r\n")


def decode(raw: bytes) -> str:
    """UTF-8 → text."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        raise Unusable(
            "not UTF-8", f"byte {byte:#04x} is no UTF-8 ({error.reason}). Save the file as UTF-8."
        ) from error


def csv_record(file: BinaryIO) -> tuple[list[str], int]:
    """The cells of the CSV record that begins here, and how many lines it takes; ([], 0) at the end.

    Raises Unusable; the file then stands behind the first line, so that a quote that is never closed costs one row.
    """
    first = file.readline()
    after = file.tell()
    # the reader takes further lines only while a quote is open
    rows = csv.reader(map(decode, itertools.chain([first], iter(file.readline, b""))), strict=True)
    try:
        return (next(rows), rows.line_num) if first else ([], 0)
    except (Unusable, csv.Error) as error:
        file.seek(after)
        if isinstance(error, Unusable):
            raise
        fix = 'A quote is opened and never closed, or a quote within a text is not doubled ("")'
        raise Unusable("quotes", f"no CSV: {error}. {fix}.") from error


def json_object(line: str) -> dict[str, str]:
    """A line of JSONL → its texts. Numbers and the like in further columns stay as they are written."""
    example = '{"audio": "a.wav", "text": "Hello."}'

    def no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twins = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        if twins:
            raise Unusable("no JSON", f"{twins[0]!r} stands twice")
        return dict(pairs)

    def no_constant(name: str) -> None:
        raise Unusable("no JSON", f"no JSON: {name} is no value in it")

    try:
        found = json.loads(line, object_pairs_hook=no_twins, parse_constant=no_constant)
    except json.JSONDecodeError as error:
        where = f"{error.msg} at column {error.colno}"
        raise Unusable("no JSON", f"no JSON: {where}. One object on a line is expected, such as {example}") from error
    except RecursionError as error:
        raise Unusable("no JSON", "the JSON is nested too deeply") from error
    if not isinstance(found, dict):
        raise Unusable("no JSON", f"one object on a line is expected, such as {example}")
    needed = set(itertools.chain(*KINDS.values()))
    for name, value in found.items():
        if isinstance(value, str):
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as error:
                raise Unusable("not UTF-8", f"{name} holds half of a surrogate pair") from error
        elif name in needed:
            raise Unusable("no text", f"{name} should be a text in quotes, got {json.dumps(value)}")
        else:
            found[name] = json.dumps(value, ensure_ascii=False)
    return found


# ---- rows -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """One row with what it names, loaded: `pixels` or `wave`, and all its texts by column."""

    where: str
    texts: dict[str, str]
    pixels: Float[Tensor, "channels height width"] | None = None
    wave: Float[Tensor, "samples"] | None = None


class Rows(Dataset[Item]):
    """Rows that each name a picture or a recording: what all doors share.

    skip_bad: go on without rows that cannot be used, and warn (LeftOut). Else any of them raises a ManifestError.
    check: "full" decodes every file once, so that a damaged one is met now and not in the third hour of training.
        "heads" only asks whether files are there and sound has a head; for data that `inspect` has been through.
        What is damaged then raises a ManifestError when it is read.
    allow_outside: take files that lie outside the folder, by `..`, as absolute paths or behind links.
    cache: a folder where sound that has to be resampled is kept, so that this is done once.

    `kind` is caption, question or speech; `lengths` are the seconds of sound, or the characters of text with a picture:
    batches of like lengths need them.
    """

    kind = ""

    def __init__(
        self,
        name: str,
        root: Path,
        skip_bad: bool = False,
        check: str = "full",
        allow_outside: bool = False,
        cache: str | Path | None = None,
    ) -> None:
        if check not in ("full", "heads"):
            raise ValueError(f"{name}: check should be 'full' or 'heads', got {check!r}")
        self.name, self.root = name, Path(os.path.realpath(root))
        self.full, self.allow_outside, self.cache = check == "full", allow_outside, SpeechCache(cache)
        self.bad: list[BadRow] = []
        self.lengths, self._places, self._lines = array("d"), array("Q"), array("Q")
        seconds = functools.lru_cache(2**18)(self._seconds)  # many rows may name one file
        for place, line in self._scan():
            try:
                row = self._read(place)
                self._look(row)
                length = seconds(row[KINDS[self.kind][0]])
            except (ValueError, OSError) as error:
                self.bad.append(bad_row(self._where(place, line), error))
                continue
            self._places.append(place)
            self._lines.append(line)
            self.lengths.append(length or sum(len(row[column]) for column in KINDS[self.kind][1:]))
        settle(name, len(self), self.bad, skip_bad)

    # what each door says for itself

    def _scan(self) -> Iterator[tuple[int, int]]:
        """(place, line) of each row; by its place a row is found again."""
        raise NotImplementedError

    def _read(self, place: int) -> dict[str, str]:
        """The row at a place: texts by column. Raises ValueError or OSError if it cannot be used."""
        raise NotImplementedError

    def _where(self, place: int, line: int) -> str:
        """What a person looks for to find the row."""
        return f"{self.name}:{line}"

    # what they share

    def __len__(self) -> int:
        return len(self._places)

    def where(self, index: int) -> str:
        """`file:line` of a row."""
        return self._where(self._places[index], self._lines[index])

    def row(self, index: int) -> dict[str, str]:
        """The texts of a row by column, the path as it is written."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name}: index {index} is outside 0 … {len(self) - 1}")
        return self._read(self._places[index])

    def __getitem__(self, index: int) -> Item:
        row = self.row(index)
        column = KINDS[self.kind][0]
        texts = {name: text for name, text in row.items() if name != column}
        try:
            path = self._file(row[column])
            if self.kind == "speech":
                return Item(self.where(index), texts, wave=cached_audio(path, self.cache))
            return Item(self.where(index), texts, pixels=load_image(path))
        except (ValueError, OSError) as error:
            raise ManifestError(f"{self.name}: a row cannot be read", [bad_row(self.where(index), error)]) from error

    def _look(self, row: dict[str, str]) -> None:
        """Raise Unusable if a text is missing."""
        self.kind = self.kind or kind_of(tuple(row))
        for column in KINDS[self.kind]:
            if column not in row:
                raise Unusable("text missing", f"{column} is missing; these are rows of {', '.join(KINDS[self.kind])}")
            if not row[column].strip():
                raise Unusable("text missing", f"{column} is empty")

    def _file(self, name: str) -> Path:
        """The file that a row names."""
        path = Path(os.path.realpath(self.root / name))
        if not self.allow_outside and not path.is_relative_to(self.root):
            raise Unusable("outside the folder", f"{name} leaves the folder {self.root}; allow_outside=True takes it")
        if "\\" in name and not path.exists():
            raise FileNotFoundError(f"there is no file {name}. The signs between folders should be /")
        return existing_file(name, path)

    def _seconds(self, name: str) -> float:
        """Seconds of a recording, 0 for a picture. Raises ValueError or OSError if the file cannot be used."""
        path = self._file(name)
        path.open("rb").close()  # libsndfile does not say whether reading is forbidden
        if self.kind != "speech":
            if self.full:
                load_image(path)
            return 0.0
        if self.full:
            cached_audio(path, self.cache)
        found = head_of(path)
        if found.frames == 0:
            raise ValueError(f"{name} holds no samples")
        # the head of a stream says "as long as can be"
        return min(found.frames / found.samplerate, float(MOST_SECONDS))


def kind_of(columns: Sequence[str]) -> str:
    """Which kind of rows these columns make. Raises Unusable if none or two."""
    found = [kind for kind, needed in KINDS.items() if set(needed) <= set(columns)]
    have = ", ".join(map(repr, columns)) or "none"
    if not found:
        wanted = "; or ".join(", ".join(needed) for needed in KINDS.values())
        raise Unusable("columns", f"the columns are {have}; needed are {wanted}")
    if "speech" in found and len(found) > 1:
        raise Unusable("columns", f"the columns are {have}: pictures or recordings? Make two files of it.")
    return found[-1]  # a question may have a caption beside it


def head_of(path: Path) -> Any:
    """What the head of a sound file says: frames, samplerate, channels."""
    try:
        return soundfile.info(path)
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: raw samples, without a head
        raise ValueError(f"{path.name} is no recording that can be decoded (WAV, FLAC, OGG expected)") from error


def cached_audio(path: Path, cache: SpeechCache) -> Float[Tensor, "samples"]:
    """A recording at 16 kHz. What has to be resampled is kept in the cache, for as long as the file stays the same."""
    if cache.folder is None or head_of(path).samplerate == SAMPLE_RATE:
        return load_audio(path)
    state = os.stat(path)
    return cache.get(f"{path} {state.st_size} {state.st_mtime_ns}", lambda: load_audio(path))


class Manifest(Rows):
    """A CSV or JSONL file as a data set; the options are those of Rows.

    Its kind comes from its columns: those of CSV stand in the first line, those of JSONL in each row. Blank lines are
    passed over. Raises ManifestError for a file without rows, for CSV without the columns of a kind, and for bad rows.
    """

    def __init__(self, path: str | Path, **options: Any) -> None:
        self.file = TextFile("Manifest", path)
        self.csv = self.file.path.suffix.lower() == ".csv"
        if not self.csv and self.file.path.suffix.lower() != ".jsonl":
            raise ManifestError(f"{self.file.path.name}: a manifest is a file .csv or .jsonl (one JSON object a line)")
        self.columns: tuple[str, ...] = ()
        super().__init__(self.file.path.name, self.file.path.parent, **options)

    def _scan(self) -> Iterator[tuple[int, int]]:
        if not self.csv:
            yield from self.file.lines()
            return
        line = 1
        with self.file.at(self.file.begin) as file:
            while True:
                place = file.tell()
                try:
                    cells, lines = csv_record(file)
                except Unusable as error:
                    if not self.columns:
                        raise ManifestError(f"{self.name}:{line}: {error}") from error
                    cells, lines = ["?"], 1  # _read will meet it again
                if not lines:
                    return
                if len(cells) > 1 or "".join(cells).strip():  # else a blank line
                    if self.columns:
                        yield place, line
                    else:
                        self._header(cells, line)
                line += lines

    def _header(self, cells: list[str], line: int) -> None:
        """The names of the columns."""
        where = f"{self.name}:{line}"
        twins = [name for name, count in Counter(cells).items() if count > 1]
        if twins:
            raise ManifestError(f"{where}: the column {twins[0]!r} stands twice")
        try:
            self.kind, self.columns = kind_of(cells), tuple(cells)
        except Unusable as error:
            other = next((sign for sign in (";", "\t", "|") if len(cells) == 1 and sign in cells[0]), "")
            fix = "The first line should hold the names of the columns."
            fix = f"They are separated by {other!r}: save the file with commas." if other else fix
            raise ManifestError(f"{where}: {error}. {fix}") from error

    def _read(self, place: int) -> dict[str, str]:
        if not self.csv:
            return json_object(self.file.line(place))
        with self.file.at(place) as file:
            cells, _ = csv_record(file)
        if len(cells) != len(self.columns):
            fix = " A text with a comma needs quotes, right behind the comma before it." * (
                len(cells) > len(self.columns)
            )
            raise Unusable("cells", f"{len(self.columns)} cells are expected, {len(cells)} came.{fix}")
        return dict(zip(self.columns, cells, strict=True))


# ---- plain text -----------------------------------------------------------------------------------------------------


class TextFiles(Dataset[str]):
    """The lines of a text file, or of every .txt file in a folder and its folders. Blank lines are passed over.

    Raises ManifestError for no line at all and, unless `skip_bad`, for lines that are no UTF-8.
    """

    kind = "lines of text"

    def __init__(self, path: str | Path, skip_bad: bool = False) -> None:
        path = Path(path)
        # a folder's empty files hold no line; one that is named has to hold some
        names = sorted(name for name in path.rglob("*.txt") if name.stat().st_size) if path.is_dir() else [path]
        if not names:
            raise ManifestError(f"{path} holds neither text (.txt) nor a data set that is known")
        self.name, self.files = path.name, [TextFile("Text", name) for name in names]
        self.bad: list[BadRow] = []
        self.lengths, self._files, self._places, self._lines = array("d"), array("L"), array("Q"), array("Q")
        for number, file in enumerate(self.files):
            for place, line in file.lines():
                try:
                    text = file.line(place)
                except Unusable as error:
                    self.bad.append(bad_row(f"{file.path.name}:{line}", error))
                    continue
                self._files.append(number)
                self._places.append(place)
                self._lines.append(line)
                self.lengths.append(len(text))
        settle(self.name, len(self), self.bad, skip_bad)

    def __len__(self) -> int:
        return len(self._places)

    def where(self, index: int) -> str:
        """`file:line` of a line."""
        return f"{self.files[self._files[index]].path.name}:{self._lines[index]}"

    def __getitem__(self, index: int) -> str:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name}: index {index} is outside 0 … {len(self) - 1}")
        return self.files[self._files[index]].line(self._places[index])
