"""Custom data: a CSV or JSONL manifest that names images, recordings and texts, or plain text files.

    image,caption                an image and a description of it
    image,question,answer        an image, a question about it and the answer
    audio,text                   a recording and its transcript

Paths are relative to the manifest, texts are UTF-8, further columns are kept. Every row is validated before the first
one is used, and every error names its file and line. `skip_bad=True` continues without the rows that cannot be used,
warns how many they are and why, and keeps them in `bad`. In memory a row takes 32 bytes: its offset in the file, its
line, its length, and a hash of the file that it names.
"""

import csv
import fnmatch
import functools
import hashlib
import itertools
import json
import os
import sys
import unicodedata
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

from tinyomni.config import SAMPLE_RATE
from tinyomni.data.tts import SpeechCache
from tinyomni.errors import InputError, MissingFileError
from tinyomni.io.audio import MAX_SECONDS, load_audio
from tinyomni.io.images import load_image
from tinyomni.io.sources import existing_file

COLUMNS = {
    "caption": ("image", "caption"),
    "question": ("image", "question", "answer"),
    "speech": ("audio", "text"),
}
"""Kind of data → the columns that it needs. The first names a file."""
TEXT = "text"
"""The kind of data without columns: lines of text."""
RECORDINGS = {".wav", ".flac", ".ogg", ".mp3"}
BOM = b"\xef\xbb\xbf"
ARCHIVES = {
    b"PK\3\4": ("a ZIP archive or an Excel workbook", "Unpack it, or save it as CSV."),
    b"\xd0\xcf\x11\xe0": ("an old Excel workbook", "Save it as CSV."),
    b"\x1f\x8b": ("gzip", "Unpack it."),
    b"\xfd7zXZ": ("xz", "Unpack it."),
    b"\x28\xb5\x2f\xfd": ("Zstandard", "Unpack it."),
}
"""How files begin that are taken for text because of their names → what they are, and what to do."""
MAX_LISTED = 20  # bad rows in one error message
MAX_SHOWN = 200  # characters of what was found, in one error message


class RowError(InputError):
    """A row that cannot be used; `reason` is the short form, by which such rows are counted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: its `file:line`, and why."""

    where: str
    reason: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


def bad_row(where: str, error: Exception) -> BadRow:
    """The exception that reading a row raised, as an entry of the list."""
    reasons = (
        (RowError, getattr(error, "reason", "")),
        (FileNotFoundError, "file missing"),
        (IsADirectoryError, "not a file"),
        (PermissionError, "permission denied"),
        (Exception, "file not readable"),
    )
    return BadRow(where, next(reason for kind, reason in reasons if isinstance(error, kind)), str(error))


def count_reasons(bad: Sequence[BadRow]) -> str:
    """`2 × file missing, 1 × text missing`."""
    return ", ".join(f"{count} × {reason}" for reason, count in Counter(row.reason for row in bad).most_common())


class ManifestError(InputError):
    """Data that cannot be used; `bad` holds the rows, of which the message lists the first 20."""

    def __init__(self, text: str, bad: Sequence[BadRow] = ()) -> None:
        self.bad = list(bad)
        more = [f"… and {len(self.bad) - MAX_LISTED} more"] if len(self.bad) > MAX_LISTED else []
        super().__init__("\n  ".join([text, *map(str, self.bad[:MAX_LISTED]), *more]))


class SkippedRows(UserWarning):
    """Rows were left out, because `skip_bad` asked for it."""


def check_rows(name: str, good: int, bad: Sequence[BadRow], skip_bad: bool) -> None:
    """Raise ManifestError where no row is good, or where some are bad and may not be skipped; else warn about them."""
    count = f"{len(bad)} of {len(bad) + good} rows"
    if not good:
        raise ManifestError(f"{name}: expected at least one usable row, got none", bad)
    if bad and not skip_bad:
        fix = "Fix them, or continue without them: skip_bad=True (--skip-bad on the command line)."
        raise ManifestError(f"{name}: {count} cannot be used ({count_reasons(bad)}). {fix}", bad)
    if bad:
        warnings.warn(f"{name}: {count} were skipped ({count_reasons(bad)})", SkippedRows, stacklevel=3)


def group_of(name: str) -> int:
    """A 64-bit hash of the file or text that a row is about; the train/validation split keeps equal ones together."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


# ---- lines on disk --------------------------------------------------------------------------------------------------


def is_mac_metadata(path: Path) -> bool:
    """`._name`, which macOS leaves beside `name` on other file systems and in archives: no data."""
    return path.name.startswith("._")


def files_below(folder: Path, pattern: str) -> Iterator[Path]:
    """The files with such names in a folder and its subfolders, behind links too.

    Each folder is entered once, and none that the first one lies in: a link may lead back. A broken link without a
    suffix is found as well, because it may stand for a folder.
    """
    entered = set(map(str, Path(os.path.realpath(folder)).parents))
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders.sort()
        for path in (Path(parent, name) for name in sorted(names)):
            if is_mac_metadata(path):
                continue
            if fnmatch.fnmatch(path.name, pattern) or ("." not in path.name and not path.exists()):
                yield path


class TextFile:
    """A UTF-8 file that is read from any offset. It must not change between opening and reading."""

    def __init__(self, step: str, path: str | Path) -> None:
        self.path = existing_file(step, path)
        state = os.stat(self.path)
        self.state = (state.st_size, state.st_mtime_ns)
        with self.path.open("rb") as file:
            head = file.read(2**16)
        refuse_other_formats(self.path.name, head)
        if b"\r" in head and b"\n" not in head:
            raise ManifestError(f"{self.path.name}: expected lines that end with LF, got CR alone. Save it with LF.")
        self.begin = len(BOM) if head.startswith(BOM) else 0

    def at(self, offset: int) -> BinaryIO:
        """The file, opened at this byte."""
        file = self.path.open("rb")
        state = os.fstat(file.fileno())
        if (state.st_size, state.st_mtime_ns) != self.state:
            file.close()
            raise ManifestError(f"{self.path.name} has changed since it was opened. Open the data set again.")
        file.seek(offset)
        return file

    def lines(self) -> Iterator[tuple[int, int]]:
        """(offset, line number) of every line that is not blank."""
        with self.at(self.begin) as file:
            offset = self.begin
            for number, raw in enumerate(file, 1):
                if raw.strip():
                    yield offset, number
                offset += len(raw)

    def line(self, offset: int) -> str:
        """The line that begins at this byte. Raises RowError if it is not UTF-8."""
        with self.at(offset) as file:
            return decode(file.readline()).rstrip("\r\n")


def refuse_other_formats(name: str, head: bytes) -> None:
    """Raise ManifestError if a file that begins with these bytes is an archive, or UTF-16 or UTF-32, with a byte order
    mark or without.
    """
    for start, (found, fix) in ARCHIVES.items():
        if head.startswith(start):
            raise ManifestError(f"{name}: expected UTF-8, got {found}. {fix}")
    # without a mark, every other byte of what these files begin with is NUL, and none of the others; in UTF-32, three
    # of four bytes are
    even, odd = (head[start:32:2] for start in (0, 1))
    few, many = sorted((even.count(0), odd.count(0)))
    fewest, *others = sorted(head[start:32:4].count(0) for start in range(4))
    if head[:4] in (b"\xff\xfe\0\0", b"\0\0\xfe\xff") or (fewest == 0 and min(others) > len(odd) * 3 / 8):
        raise ManifestError(f"{name}: expected UTF-8, got UTF-32. Save the file as UTF-8.")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or (few == 0 and many > len(odd) * 3 / 4):
        raise ManifestError(f"{name}: expected UTF-8, got UTF-16. Save the file as UTF-8.")


def check_surrogates(name: str, text: str) -> None:
    """Raise RowError for half of a surrogate pair, which JSON can write and UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError("not UTF-8", f"{name} contains an unpaired surrogate") from error


def decode(raw: bytes) -> str:
    """Bytes → text. Raises RowError that names the byte."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        message = f"byte {byte:#04x} is not valid UTF-8 ({error.reason}). Save the file as UTF-8."
        raise RowError("not UTF-8", message) from error


def csv_record(file: BinaryIO) -> tuple[list[str], int]:
    """The cells of the CSV record that begins here, and how many lines it spans; ([], 0) at the end of the file.

    Raises RowError and leaves the file behind the first line, so that an unclosed quote costs one row only.
    """
    first = file.readline()
    after = file.tell()
    # the reader takes further lines only while a quote is open
    rows = csv.reader(map(decode, itertools.chain([first], iter(file.readline, b""))), strict=True)
    try:
        return (next(rows), rows.line_num) if first else ([], 0)
    except (RowError, csv.Error) as error:
        file.seek(after)
        if isinstance(error, RowError):
            raise
        problem, fix = str(error), 'Either a quote is never closed, or a quote inside a text is not doubled ("").'
        if "field larger" in problem:
            problem, fix = f"a cell has more than {csv.field_size_limit():,} characters", "Is a quote never closed?"
        elif "new-line character" in problem:
            problem, fix = "a line ends with CR alone", "Save it with LF, or put the text in quotes."
        raise RowError("invalid CSV", f"invalid CSV: {problem}. {fix}") from error


def json_object(line: str) -> dict[str, str]:
    """A line of JSONL → its texts. Values of further columns stay as they are written."""
    example = 'one object per line, such as {"audio": "a.wav", "text": "Hello."}'

    def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        if twice:
            raise RowError("invalid JSON", f"duplicate key {twice[0]!r}")
        return dict(pairs)

    def no_constant(name: str) -> None:
        raise RowError("invalid JSON", f"invalid JSON: {name} is not a JSON value")

    try:
        found = json.loads(line, object_pairs_hook=unique_keys, parse_constant=no_constant)
    except json.JSONDecodeError as error:
        where = f"{error.msg} at column {error.colno}"
        raise RowError("invalid JSON", f"invalid JSON: {where}. Expected {example}") from error
    except RecursionError as error:
        raise RowError("invalid JSON", "invalid JSON: nested too deeply") from error
    except RowError:
        raise
    except ValueError as error:  # Python reads no longer numbers
        limit = f"a number has more than {sys.get_int_max_str_digits():,} digits"
        raise RowError("invalid JSON", f"invalid JSON: {limit}") from error
    if not isinstance(found, dict):
        raise RowError("invalid JSON", f"expected {example}; got {type(found).__name__}")
    needed = set(itertools.chain(*COLUMNS.values()))
    for name, value in found.items():
        if isinstance(value, str):
            check_surrogates(name, value)
        elif name in needed:
            raise RowError("not a string", f"{name} must be a string, got {json.dumps(value)}")
        else:
            found[name] = json.dumps(value, ensure_ascii=False)
    return found


# ---- rows -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """One row with the file that it names, loaded: `pixels` or `wave`, and all its texts by column."""

    where: str
    texts: dict[str, str]
    pixels: Float[Tensor, "channels height width"] | None = None
    wave: Float[Tensor, "samples"] | None = None


class RowDataset(Dataset[Item]):
    """Rows that each name an image or a recording: the base of all loaders of custom data.

    skip_bad: continue without rows that cannot be used, and warn (SkippedRows). Else any of them raises ManifestError.
    check: "full" decodes every file once, so that a damaged one is found now and not in the third hour of training.
        "headers" only asks whether the files exist and whether audio has a header; for data that was inspected before.
        A damaged file then raises ManifestError when it is read.
    allow_outside: accept files outside the folder, by `..`, as absolute paths or behind links.
    cache: a folder for resampled audio, so that resampling is done once.

    `kind` is caption, question or speech. `lengths` are seconds of audio, or characters of the texts beside an image:
    for bucketed batches. `groups` are hashes of the files, however they are spelled: for the train/validation split.
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
        if check not in ("full", "headers"):
            raise InputError(f"{name}: check must be 'full' or 'headers', got {check!r}")
        self.name, self.root = name, Path(os.path.realpath(root))
        self.full, self.allow_outside, self.cache = check == "full", allow_outside, SpeechCache(cache)
        self.bad: list[BadRow] = []
        self.lengths, self.groups, self._offsets, self._lines = array("d"), array("Q"), array("Q"), array("Q")
        examine = functools.lru_cache(2**18)(self._examine)  # many rows may name one file
        for offset, line in self._scan():
            kind = self.kind
            try:
                row = self._read(offset)
                self._check_texts(row)
                length, group = examine(row[COLUMNS[self.kind][0]])
            except (ValueError, OSError) as error:
                self.kind = kind  # a bad row does not decide what the others are
                self.bad.append(bad_row(self._where(offset, line), error))
                continue
            self._offsets.append(offset)
            self._lines.append(line)
            self.lengths.append(length or sum(len(row[column]) for column in COLUMNS[self.kind][1:]))
            self.groups.append(group)
        check_rows(name, len(self), self.bad, skip_bad)

    # what each loader defines

    def _scan(self) -> Iterator[tuple[int, int]]:
        """(offset, line) of each row; `_read` finds the row again by its offset."""
        raise NotImplementedError

    def _read(self, offset: int) -> dict[str, str]:
        """The row at an offset: texts by column. Raises ValueError or OSError if it cannot be used."""
        raise NotImplementedError

    def _where(self, offset: int, line: int) -> str:
        """How a message names the row."""
        return f"{self.name}:{line}"

    # what they share

    def __len__(self) -> int:
        return len(self._offsets)

    def where(self, index: int) -> str:
        """`file:line` of a row."""
        return self._where(self._offsets[index], self._lines[index])

    def row(self, index: int) -> dict[str, str]:
        """The texts of a row by column; the path as it is written."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name}: index {index} is outside 0 … {len(self) - 1}")
        return self._read(self._offsets[index])

    def __getitem__(self, index: int) -> Item:
        row = self.row(index)
        column = COLUMNS[self.kind][0]
        texts = {name: text for name, text in row.items() if name != column}
        try:
            path = self._file(row[column])
            if self.kind == "speech":
                return Item(self.where(index), texts, wave=cached_audio(path, self.cache))
            return Item(self.where(index), texts, pixels=image_of(row[column], path))
        except (ValueError, OSError) as error:
            raise ManifestError(f"{self.name}: cannot read a row", [bad_row(self.where(index), error)]) from error

    def _check_texts(self, row: dict[str, str]) -> None:
        """Raise RowError if a column is missing or empty."""
        self.kind = self.kind or kind_of(tuple(row))
        for column in COLUMNS[self.kind]:
            if column not in row:
                raise RowError("text missing", f"expected the columns {', '.join(COLUMNS[self.kind])}; got no {column}")
            if not row[column].strip():
                raise RowError("text missing", f"{column} is empty")

    def _file(self, name: str) -> Path:
        """The file that a row names."""
        if is_mac_metadata(Path(name)):
            problem = "expected data, got a `._*` file, in which macOS keeps metadata. Delete the row."
            raise RowError("macOS metadata", f"{name}: {problem}")
        path = Path(os.path.realpath(self.root / name))
        if not path.exists():
            path = Path(os.path.realpath(in_another_form(self.root, name) or path))
        if not self.allow_outside and not path.is_relative_to(self.root):
            message = f"{name} is outside the folder {self.root}; allow_outside=True (--allow-outside) accepts it"
            raise RowError("outside the folder", message)
        if "\\" in name and not path.exists():
            raise MissingFileError(f"no such file: {name}. Use / as path separator.")
        return existing_file(name, path)

    def _group(self, path: Path) -> int:
        """The group of a file: the same wherever the folder lies."""
        same_drive = path.anchor == self.root.anchor
        name = Path(os.path.relpath(path, self.root)) if same_drive else path
        return group_of(unicodedata.normalize("NFC", name.as_posix()))

    def _examine(self, name: str) -> tuple[float, int]:
        """Seconds of a recording, 0 for an image; and the group. Raises ValueError or OSError if it cannot be used."""
        path = self._file(name)
        path.open("rb").close()  # libsndfile does not say that permission was denied
        if self.kind != "speech":
            if self.full:
                image_of(name, path)
            return 0.0, self._group(path)
        if self.full:
            cached_audio(path, self.cache)
        header = audio_header(path)
        if header.frames == 0:
            raise InputError(f"{name} has no samples")
        # the header of a stream claims the greatest length that it can hold
        return min(header.frames / header.samplerate, float(MAX_SECONDS)), self._group(path)


def in_another_form(root: Path, name: str) -> Path | None:
    """A path with accents whose parts are composed in the manifest and decomposed on the disk, or the reverse."""
    path = root
    for part in Path(name).parts:
        forms = (path / form for form in (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD"))))
        found = next((each for each in forms if each.exists()), None)
        if found is None:
            return None
        path = found
    return path


def kind_of(columns: Sequence[str]) -> str:
    """The kind of data that has these columns. Raises RowError if there is none, or two."""
    found = [kind for kind, needed in COLUMNS.items() if set(needed) <= set(columns)]
    got = ", ".join(map(repr, columns)) or "none"
    got = got if len(got) <= MAX_SHOWN else f"{got[:MAX_SHOWN]}…"
    if not found:
        wanted = "; or ".join(", ".join(needed) for needed in COLUMNS.values())
        raise RowError("columns", f"expected the columns {wanted}; got {got}")
    if "speech" in found and len(found) > 1:
        raise RowError("columns", f"expected either images or recordings, got the columns {got}. Use two manifests.")
    return found[-1]  # a question may have a caption beside it


def image_of(name: str, path: Path) -> Float[Tensor, "channels height width"]:
    """An image that a row names. Raises RowError for a recording."""
    try:
        return load_image(path)
    except InputError as error:
        if path.suffix.lower() not in RECORDINGS:
            raise
        fix = "Name the columns audio, text (in an AudioFolder file_name, transcription)."
        raise RowError("not an image", f"{name}: expected an image, got a recording. {fix}") from error


def audio_header(path: Path) -> Any:
    """What the header of an audio file says: frames, samplerate, channels."""
    try:
        return soundfile.info(path)
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: raw samples without a header
        raise InputError(f"{path.name}: cannot decode audio (expected WAV, FLAC or OGG)") from error


def cached_audio(path: Path, cache: SpeechCache) -> Float[Tensor, "samples"]:
    """A recording at 16 kHz. What has to be resampled is cached for as long as the file does not change."""
    if cache.folder is None or audio_header(path).samplerate == SAMPLE_RATE:
        return load_audio(path)
    state = os.stat(path)
    return cache.get(f"{path} {state.st_size} {state.st_mtime_ns}", lambda: load_audio(path))


class Manifest(RowDataset):
    """A CSV or JSONL file as a data set; the options are those of RowDataset.

    Its kind follows from its columns: those of CSV are named in the first line, those of JSONL in each row. Blank lines
    are skipped. Raises ManifestError for a file without rows, for CSV without the columns of a kind, and for bad rows.
    """

    def __init__(self, path: str | Path, **options: Any) -> None:
        self.file = TextFile("Manifest", path)
        self.csv = self.file.path.suffix.lower() == ".csv"
        if not self.csv and self.file.path.suffix.lower() != ".jsonl":
            raise ManifestError(f"{self.file.path.name}: expected a .csv or .jsonl file (one JSON object per line)")
        self.columns: tuple[str, ...] = ()
        self.unnamed = 0  # columns behind them without a name, as Excel writes them
        super().__init__(self.file.path.name, self.file.path.parent, **options)

    def _scan(self) -> Iterator[tuple[int, int]]:
        if not self.csv:
            yield from self.file.lines()
            return
        line = 1
        with self.file.at(self.file.begin) as file:
            while True:
                offset = file.tell()
                try:
                    cells, lines = csv_record(file)
                except RowError as error:
                    if not self.columns:
                        raise ManifestError(f"{self.name}:{line}: {error}") from error
                    cells, lines = ["?"], 1  # _read raises it again, and then it is counted
                if not lines:
                    return
                if len(cells) > 1 or "".join(cells).strip():  # else a blank line
                    if self.columns:
                        yield offset, line
                    else:
                        self._header(cells, line)
                line += lines

    def _header(self, cells: list[str], line: int) -> None:
        """The names of the columns."""
        where = f"{self.name}:{line}"
        named = list(cells)
        while named and not named[-1]:
            named.pop()
        self.unnamed = len(cells) - len(named)
        try:
            self.columns = folder_columns(named)
        except RowError as error:
            raise ManifestError(f"{where}: {error}") from error
        try:
            self.kind = kind_of(self.columns)
        except RowError as error:
            other = next((sign for sign in (";", "\t", "|") if len(named) == 1 and sign in named[0]), "")
            fix = "The first line must name the columns."
            plain = set(our_names([cell.strip().lower() for cell in named]))
            if any(plain >= set(needed) for needed in COLUMNS.values()):
                fix = "Write their names in small letters, without spaces around them."
            fix = f"The columns are separated by {other!r}: use commas." if other else fix
            fix = "Delete this line, which only Excel reads." if cells[0].startswith("sep=") else fix
            raise ManifestError(f"{where}: {error}. {fix}") from error

    def _read(self, offset: int) -> dict[str, str]:
        if not self.csv:
            row = json_object(self.file.line(offset))
            return dict(zip(folder_columns([*row]), row.values(), strict=True))
        with self.file.at(offset) as file:
            cells, _ = csv_record(file)
        wanted = len(self.columns)
        if not wanted <= len(cells) <= wanted + self.unnamed:
            fix = " Put a text that contains a comma in quotes." if len(cells) > wanted else ""
            raise RowError("cells", f"expected {wanted} cells, got {len(cells)}.{fix}")
        for number, cell in enumerate(cells[wanted:], wanted + 1):
            if cell.strip():
                fix = "Name the column in the first line, or put a text that contains a comma in quotes."
                raise RowError("cells", f"cell {number} is {cell[:60]!r}, and its column has no name. {fix}")
        return dict(zip(self.columns, cells, strict=False))


def folder_columns(cells: Sequence[str]) -> tuple[str, ...]:
    """The columns by our names (`our_names`). Raises RowError if two have the same."""
    names = our_names(cells)
    for name, count in Counter(names).items():
        if count > 1:
            first, second, *_ = (cell for cell, ours in zip(cells, names, strict=True) if ours == name)
            both = f": {first!r} and {second!r} both stand for it. Keep one of them." if first != second else ""
            raise RowError("columns", f"duplicate column {name!r}{both}")
    return names


def our_names(cells: Sequence[str]) -> tuple[str, ...]:
    """Our names for the columns of `metadata.csv` in ImageFolder and AudioFolder of Hugging Face's datasets.

    Those are file_name with text, or with transcription where the files are recordings. Others stay as they are.
    `metadata.jsonl` has the same.
    """
    if "file_name" not in cells or {"image", "audio"} & set(cells):
        return tuple(cells)
    recordings = "transcription" in cells
    ours = {"file_name": "audio", "transcription": "text"} if recordings else {"file_name": "image", "text": "caption"}
    return tuple(ours.get(cell, cell) for cell in cells)


# ---- plain text -----------------------------------------------------------------------------------------------------


class TextFiles(Dataset[str]):
    """The lines of a text file, or of every .txt file in a folder and its subfolders. Blank lines are skipped.

    Raises ManifestError for no line at all and, unless `skip_bad`, for lines that are not UTF-8 and for files of a
    folder that cannot be read.
    """

    kind = TEXT

    def __init__(self, path: str | Path, skip_bad: bool = False) -> None:
        path = Path(path)
        self.name, self.files = path.name, list[TextFile]()
        self.bad: list[BadRow] = []
        if not path.is_dir():
            self.files.append(TextFile("Text", path))
        for file in sorted(files_below(path, "*.txt")) if path.is_dir() else []:
            try:
                if not file.exists() or file.stat().st_size:  # empty files in a folder are ignored
                    self.files.append(TextFile(file.name, file))
            except (InputError, OSError) as error:
                self.bad.append(bad_row(self.name, error))
        if not self.files and not self.bad:
            raise ManifestError(f"{path}: expected .txt files or a known data set, got a folder with neither")
        self.lengths, self.groups = array("d"), array("Q")
        self._files, self._offsets, self._lines = array("L"), array("Q"), array("Q")
        for number, text_file in enumerate(self.files):
            for offset, line in text_file.lines():
                try:
                    text = text_file.line(offset)
                except RowError as error:
                    self.bad.append(bad_row(f"{text_file.path.name}:{line}", error))
                    continue
                self._files.append(number)
                self._offsets.append(offset)
                self._lines.append(line)
                self.lengths.append(len(text))
                self.groups.append(group_of(text))
        check_rows(self.name, len(self), self.bad, skip_bad)

    def __len__(self) -> int:
        return len(self._offsets)

    def where(self, index: int) -> str:
        """`file:line` of a line."""
        return f"{self.files[self._files[index]].path.name}:{self._lines[index]}"

    def __getitem__(self, index: int) -> str:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name}: index {index} is outside 0 … {len(self) - 1}")
        return self.files[self._files[index]].line(self._offsets[index])
