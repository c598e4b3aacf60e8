"""Custom data, whatever its format: open it, split it into training and validation, and inspect it before training.

open_data                 path → data set
train_validation_split    data set → rows to train on, rows to validate on; the one rule of all stages
inspect                   path → rows, tokens, seconds, and everything that does not fit the model
"""

import re
import warnings
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Subset

from tinyomni.audio import CHARS
from tinyomni.config import SAMPLE_RATE, TINY
from tinyomni.data.corpora import TRANSCRIPTS, CocoCaptions, LibriSpeech, LJSpeech
from tinyomni.data.manifests import (
    BOM,
    COLUMNS,
    MAX_LISTED,
    RECORDINGS,
    TEXT,
    BadRow,
    Manifest,
    ManifestError,
    RowDataset,
    SkippedRows,
    TextFiles,
    count_reasons,
    files_below,
    is_mac_metadata,
)
from tinyomni.errors import InputError
from tinyomni.io.audio import SILENCE_PEAK
from tinyomni.tokenizer import BPETokenizer

HEADER = re.compile(rb'file_name|^(?:[^|]*[,;\t])?[\s"]*(?:image|audio)[\s"]*(?:[,;\t|]|$)', re.IGNORECASE)
"""What is found where the first line of a `metadata.csv` names columns. LJSpeech has the name of a file before `|`."""
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
VALIDATION_FRACTION = 1 / 20
MAX_VALIDATION_ROWS = 200


def open_data(path: str | Path, **options: Any) -> RowDataset | TextFiles:
    """By what is there: a manifest, text files, an ImageFolder or AudioFolder with metadata.csv or .jsonl, LJSpeech,
    LibriSpeech (or a part or a chapter of it), COCO's captions_*.json.
    """
    path = Path(path)
    metadata = path / "metadata.csv"
    if path.is_dir() and metadata.exists():
        with metadata.open("rb") as file:
            first = list(islice(filter(bytes.strip, file), 9))
        # most of them, because the first line of an LJSpeech may be a bad one
        if sum(b"|" in line for line in first) > len(first) / 2 and not HEADER.search(first[0].removeprefix(BOM)):
            return LJSpeech(path, **options)
        return Manifest(metadata, **options)
    if path.is_file() and path.match(TRANSCRIPTS):
        return LibriSpeech(path.parent, **options)
    if path.is_dir() and (path / "metadata.jsonl").exists():
        return Manifest(path / "metadata.jsonl", **options)
    if path.is_dir() and any(each.match(TRANSCRIPTS) for each in files_below(path, TRANSCRIPTS)):
        return LibriSpeech(path, **options)
    if path.is_dir():
        refuse_files_beside_text(path)
    if path.is_dir() or path.suffix.lower() == ".txt":
        return TextFiles(path, skip_bad=options.get("skip_bad", False))
    if path.suffix.lower() == ".json" and path.name.startswith("captions_"):
        return CocoCaptions(path, **options)
    return Manifest(path, **options)


def refuse_files_beside_text(folder: Path) -> None:
    """Raise ManifestError for a folder whose .txt files are not its data: a licence, a list of classes, a table."""
    metadata = next((each for each in files_below(folder, "metadata.*") if each.suffix in (".csv", ".jsonl")), None)
    if metadata:
        inside = f"{metadata.parent.relative_to(folder).as_posix()}/"
        fix = "Open that folder; or, for text alone, name a .txt file or a folder that holds nothing else."
        raise ManifestError(f"{folder}: expected metadata.csv or .jsonl in it, got {metadata.name} in {inside}. {fix}")
    suffixes = Counter(each.suffix.lower() for each in files_below(folder, "*.*"))
    media = sum(suffixes[suffix] for suffix in PICTURES | RECORDINGS)
    if media > suffixes[".txt"] > 0:
        got = f"{media} images or recordings, and {suffixes['.txt']} .txt"
        fix = "Name the manifest; or, for text alone, name a .txt file or a folder that holds nothing else."
        raise ManifestError(f"{folder}: expected a manifest or text alone, got {got}. {fix}")


# ---- training and validation ----------------------------------------------------------------------------------------


def train_validation_split(
    rows: RowDataset | TextFiles, max_validation: int = MAX_VALIDATION_ROWS
) -> tuple[Subset[Any], Subset[Any]]:
    """Rows to train on, and rows to validate on: a twentieth, at least one and about `max_validation` at most.

    No row is on both sides, and neither is a file: all rows of one image, or all copies of one line of text, stay
    together, unless there is no other. Which rows validate is decided by a hash of the line, or of the file's path
    from the folder of the data, so the split is the same on every machine, and adding rows hardly changes it. Raises
    InputError for a single row.
    """
    count = len(rows)
    if count < 2:
        raise InputError(f"{rows.name}: expected at least 2 rows, one to train on and one to validate on; got {count}")
    order = sorted(range(count), key=lambda row: (rows.groups[row], row))

    def splits_a_group(at: int) -> bool:
        return 0 < at < count and rows.groups[order[at]] == rows.groups[order[at - 1]]

    wanted = max(1, min(max_validation, int(count * VALIDATION_FRACTION)))
    end = next(at for at in range(wanted, count + 1) if not splits_a_group(at))
    if end == count:  # the last group reaches to the end: it is trained on
        end = next(at for at in range(wanted, -1, -1) if not splits_a_group(at))
    end = end or wanted  # all rows are of one group
    return Subset(rows, sorted(order[end:])), Subset(rows, sorted(order[:end]))


# ---- inspection -----------------------------------------------------------------------------------------------------


@dataclass
class Inspection:
    """The result of `tinyomni data inspect`. `notes` holds, for each remark, the rows that it is about."""

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
    mac_metadata: int = 0  # files that were ignored

    def note(self, remark: str, where: str) -> None:
        """Add a row to a remark."""
        self.notes.setdefault(remark, []).append(where)

    def __str__(self) -> str:
        kind = "lines of text" if self.kind == TEXT else "rows"
        kind = f"rows of {', '.join(COLUMNS[self.kind])}" if self.kind in COLUMNS else kind
        lines = [f"{self.name}: {self.rows} {kind}" + f", and {len(self.bad)} that cannot be used" * bool(self.bad)]
        if self.seconds:
            lines.append(
                f"  audio: {self.seconds / 3600:,.2f} hours ({self.seconds:.1f} s), "
                f"mean {self.seconds / self.rows:.1f} s, longest {self.longest_seconds:.1f} s"
            )
        if self.rows:
            mean = self.tokens / self.rows
            lines.append(f"  text: {self.tokens} tokens, mean {mean:.1f} per row, longest {self.longest_tokens}")
        if self.unknown:
            most = [f"{char!r} ({count} ×)" for char, count in self.unknown.most_common(10)]
            more = f" and {len(self.unknown) - 10} more" if len(self.unknown) > 10 else ""
            lines.append(f"  characters outside the recogniser's alphabet: {', '.join(most)}{more}")
        for remark, rows in self.notes.items():
            lines.append(f"  {remark}: {len(rows)} ({', '.join(rows[:3])}{', …' * (len(rows) > 3)})")
        if self.mac_metadata:
            lines.append(f"  ignored: {self.mac_metadata} `._*` files, in which macOS keeps metadata")
        if self.bad:
            lines.append(f"  cannot be used: {count_reasons(self.bad)}")
            lines += [f"  ✘ {row}" for row in self.bad[:MAX_LISTED]]
            lines += [f"  … and {len(self.bad) - MAX_LISTED} more"] * (len(self.bad) > MAX_LISTED)
        return "\n".join(lines)


def inspect(path: str | Path, allow_outside: bool = False) -> Inspection:
    """Read everything that a manifest, text files or a public data set hold, and list what does not fit the model."""
    found = Inspection(Path(path).name)
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    found.mac_metadata = sum(map(is_mac_metadata, folder.rglob("._*")))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SkippedRows)  # the inspection lists them
            data = open_data(path, skip_bad=True, check="headers", allow_outside=allow_outside)
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
        texts = [item] if isinstance(item, str) else [item.texts[name] for name in COLUMNS[found.kind][1:]]
        tokens = sum(len(encode(text)) for text in texts)
        found.tokens, found.longest_tokens = found.tokens + tokens, max(found.longest_tokens, tokens)
        total = tokens + 2 + (found.kind in ("caption", "question"))  # BOS and EOS, and one for an image
        if total > TINY.thinker.ctx_len:
            found.note(f"longer than ctx_len = {TINY.thinker.ctx_len} tokens, with BOS and EOS", where)
        if not isinstance(item, str) and item.wave is not None:
            inspect_audio(found, where, item.wave, texts[0])
        row = hash(item) if isinstance(data, TextFiles) else hash(tuple(data.row(index).items()))
        if row in seen:
            found.note("duplicate of an earlier row", where)
        seen.add(row)
    # rows that failed on opening and rows that failed on reading, in the order of their lines
    found.bad.sort(
        key=lambda bad: [int(part) if n % 2 else part for n, part in enumerate(re.split(r"(\d+)", bad.where))]
    )
    return found


def inspect_audio(found: Inspection, where: str, wave: Float[Tensor, "samples"], text: str) -> None:
    """Length, silence, and whether the recogniser can write this text within this duration."""
    seconds = len(wave) / SAMPLE_RATE
    found.seconds, found.longest_seconds = found.seconds + seconds, max(found.longest_seconds, seconds)
    tokens = -(-(len(wave) // TINY.audio.hop) // 4)
    if tokens > TINY.audio_limit:
        limit = f"{TINY.audio_limit} audio tokens ({TINY.audio_limit / 25:g} s)"
        found.note(f"longer than the {limit} of a prompt", where)
    if float(wave.abs().max()) < SILENCE_PEAK:
        found.note("silent", where)
    # CTC emits at most one character per audio token, and needs a blank between two equal ones
    if len(text) + sum(one == two for one, two in pairwise(text)) > tokens:
        found.note("more characters than CTC can emit in that time (25 per second)", where)
    found.unknown.update(char for char in text if char not in CHARS[:-1])
