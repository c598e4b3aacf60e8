"""Audio files: decoded by libsndfile, after a look at what their headers promise.

A header is a hint, the data is the truth. A WAV from a pipe says 2 GB, or 0, where its data is whole: it is read. Data
that ends before its own chunk or page does is truncated: refused, though libsndfile would read what there is.
(RIFF: Microsoft and IBM, Multimedia Programming Interface 1.0, 1991; AIFF: Apple, 1989; Ogg: RFC 3533.)
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile

from tinyomni.errors import InputError

BLOCK = 2**18  # frames decoded at a time
UNKNOWN = 0x7FFF0000  # a size from here on was never filled in: the program wrote into a pipe
TAIL = 2**17  # more than the longest Ogg page, 65,307 bytes


class Recording(NamedTuple):
    """What a file holds."""

    mono: np.ndarray  # (samples,) float32, the mean of the channels
    rate: int
    peak: float  # of the loudest channel


def read_audio_file(where: str, path: Path, max_seconds: int) -> Recording:
    """Decode a file block by block. Raises InputError for what cannot be decoded, is truncated, or is too long."""
    problem = truncated(path)
    if problem:
        raise InputError(f"{where}: {path} is truncated: {problem}. Copy or download it again.")
    try:
        parts = [_decode(where, path, source, max_seconds) for source in _sources(path)]
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: raw samples, without a header
        raise InputError(f"{where}: cannot decode audio {path} (expected WAV, FLAC or OGG): {error}") from error
    rates = {part.rate for part in parts}
    if len(rates) > 1:
        raise InputError(f"{where}: {path} is a chain of streams at {sorted(rates)} Hz, expected one rate. Split it.")
    mono = np.concatenate([part.mono for part in parts])
    if len(mono) > max_seconds * parts[0].rate:
        raise too_long(where, str(path), max_seconds)
    return Recording(mono, parts[0].rate, max(part.peak for part in parts))


def too_long(where: str, name: str, max_seconds: int) -> InputError:
    """The error for a recording that would fill the memory."""
    return InputError(f"{where}: {name} is longer than {max_seconds // 60} minutes. Cut it into pieces.")


def _decode(where: str, path: Path, source: Path | BinaryIO, max_seconds: int) -> Recording:
    with soundfile.SoundFile(source) as file:
        rate, kind, promised = file.samplerate, file.format, file.frames
        blocks, count, peak = [np.zeros(0, dtype=np.float32)], 0, 0.0
        while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
            count += len(block)
            if count > max_seconds * rate:
                raise too_long(where, str(path), max_seconds)
            with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity are reported by the caller
                blocks.append(block.mean(axis=1))
                peak = max(peak, float(np.abs(block).max()))
    # an MP3's header only estimates the length; 2**62 stands for a stream whose length was never filled in
    if kind not in ("MP3", "MPEG") and count < promised < 2**62:
        detail = f"header says {promised} frames, file has {count}"
        raise InputError(f"{where}: {path} is truncated: {detail}. Copy or download it again.")
    return Recording(np.concatenate(blocks), rate, peak)


def _sources(path: Path) -> list[Path | BinaryIO]:
    """What libsndfile is given: the file, each link of a chained Ogg, or a WAV with the sizes that its header lacks."""
    with path.open("rb") as file:
        head = file.read(4)
        if head == b"OggS":
            starts = _links(file)
            file.seek(0)
            data = _with_last_page(file.read())
            return [io.BytesIO(data[a:b]) for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]
        if head == b"RIFF":
            chunk = _data_chunk(file)
            if chunk and not chunk.size and chunk.available:
                file.seek(0)
                mended = bytearray(file.read())
                mended[4:8] = (len(mended) - 8).to_bytes(4, "little")
                mended[chunk.start - 4 : chunk.start] = chunk.available.to_bytes(4, "little")
                return [io.BytesIO(mended)]
    return [path]


def truncated(path: Path) -> str:
    """Where the data ends too early, in words; empty if it does not, or if the format cannot tell."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4)
        if head in (b"RIFF", b"FORM"):
            chunk = _data_chunk(file)
            if chunk and chunk.available < chunk.size < UNKNOWN:
                return f"its data chunk says {chunk.size:,} bytes, the file has {chunk.available:,}"
        if head == b"OggS":
            file.seek(max(0, size - TAIL))
            tail = file.read()
            page = tail[tail.rfind(b"OggS") :]
            lengths = page[27 : 27 + page[26]] if len(page) > 26 else b""
            if not lengths or len(page) < 27 + page[26] + sum(lengths):
                return "its last page is not whole"
            if not page[5] & 4 and lengths[-1] == 255:  # bit 4 marks the last page of a stream
                return "its last packet is not whole"
    return ""


class Chunk(NamedTuple):
    """The samples of a WAV or AIFF file."""

    start: int  # in bytes
    size: int  # as its header says
    available: int  # to the end of the file


def _data_chunk(file: BinaryIO) -> Chunk | None:
    """Walk through the chunks of a RIFF or FORM file up to the samples."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    order = "big" if file.read(4) == b"FORM" else "little"
    place = 12
    while place + 8 <= size:
        file.seek(place)
        name = file.read(4)
        length = int.from_bytes(file.read(4), order)  # type: ignore[arg-type]
        if name in (b"data", b"SSND"):
            # nothing between here and other chunks that end where the file does: really no samples
            none = not length and _whole_chunks(file, place + 8, size)
            return Chunk(place + 8, length, 0 if none else size - place - 8)
        place += 8 + length + length % 2
    return None


def _whole_chunks(file: BinaryIO, place: int, size: int) -> bool:
    """Do chunks follow, the last of which ends with the file?"""
    while place + 8 <= size:
        file.seek(place)
        if not file.read(4).strip().isalnum():
            return False
        length = int.from_bytes(file.read(4), "little")
        place += 8 + length + length % 2
    return place == size


def _links(file: BinaryIO) -> list[int]:
    """Where the links of a chained Ogg file start: at a first page (bit 2) that follows other pages."""
    starts, first_before = [], False
    for place, flags in _pages(file):
        first = bool(flags & 2)
        if first and not first_before:  # several first pages side by side are streams of one link
            starts.append(place)
        first_before = first
    return starts


def _with_last_page(data: bytes) -> bytes:
    """The last page marked as the last one (bit 4), which libsndfile demands of Opus."""
    place = data.rfind(b"OggS")
    page = bytearray(data[place:])
    if page[5] & 4:
        return data
    page[5] |= 4
    page[22:26] = bytes(4)
    checksum = 0
    for byte in page:  # the CRC with the polynomial 0x04C11DB7
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1 ^ (0x04C11DB7 if checksum >> 31 else 0)) & 0xFFFFFFFF
    page[22:26] = checksum.to_bytes(4, "little")
    return data[:place] + bytes(page)


def _pages(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """(place, flags) of each Ogg page."""
    place = 0
    while True:
        file.seek(place)
        head = file.read(27)
        if len(head) < 27 or head[:4] != b"OggS":
            return
        yield place, head[5]
        place += 27 + head[26] + sum(file.read(head[26]))
