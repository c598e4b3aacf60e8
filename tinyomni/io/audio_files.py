"""Audio files: decoded by libsndfile, after a look at what their headers promise.

A header is a hint, the data is the truth. A WAV from a pipe says 2 GB, or 0, where its data is whole: it is read. Data
that ends before its own chunk or page does is truncated: refused, though libsndfile would read what there is.
(RIFF: Microsoft and IBM, Multimedia Programming Interface 1.0, 1991; RF64: EBU Tech 3306; Wave64: Sony, 2006;
AIFF and CAF: Apple, 1989 and 2011; AU: Sun, audio(4); Ogg: RFC 3533.)
"""

import io
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
import soundfile

from tinyomni.errors import InputError

BLOCK = 2**18  # frames decoded at a time
UNKNOWN = 0x7FFF0000  # a size from here on was never filled in: the program wrote into a pipe


class Sequential(soundfile.SoundFile):
    """A file that is read from its beginning to its end: a FLAC from a pipe, which says no length, cannot seek."""

    def seekable(self) -> bool:
        """If it were, a seek would follow every block that is read."""
        return False


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
        detail = getattr(error, "error_string", error)
        raise InputError(f"{where}: cannot decode audio {path} (expected WAV, FLAC or OGG): {detail}") from error
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
    with Sequential(source) as file:
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
            links = _links(_pages(file))
            file.seek(0)
            data = file.read()
            return [io.BytesIO(_with_last_page(data, link)) for link in links]
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
    with path.open("rb") as file:
        if file.read(4) == b"OggS":
            return _broken_pages(file)
        chunk = _data_chunk(file)
    if chunk and chunk.available < chunk.size < UNKNOWN:
        return f"its data chunk says {chunk.size:,} bytes, the file has {chunk.available:,}"
    return ""


# ---- WAV, AIFF, AU, CAF ---------------------------------------------------------------------------------------------


class Chunk(NamedTuple):
    """The samples of a file."""

    start: int  # in bytes
    size: int  # as the header says
    available: int  # to the end of the file


def _data_chunk(file: BinaryIO) -> Chunk | None:
    """Where the samples are, in formats that are made of chunks and in AU; None for others."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(8)
    order: Literal["little", "big"] = "big" if head[:4] in (b"FORM", b"RIFX", b".snd") else "little"
    if head[:4] in (b".snd", b"dns."):
        start = int.from_bytes(head[4:], order)
        return Chunk(start, int.from_bytes(file.read(4), order), size - start)
    if head == b"riff\x2e\x91\xcf\x11":  # Wave64
        return _long_chunk(file, 40, 16, "little")
    if head[:4] == b"caff":
        return _long_chunk(file, 8, 4, "big")
    if head[:4] not in (b"RIFF", b"RIFX", b"RF64", b"FORM"):
        return None
    place, long = 12, UNKNOWN
    while place + 8 <= size:
        file.seek(place)
        name = file.read(4)
        length = int.from_bytes(file.read(4), order)
        if name == b"ds64":  # RF64 keeps its sizes here: of the file, of the samples
            long = int.from_bytes(file.read(16)[8:], "little") or UNKNOWN
        if name in (b"data", b"SSND", b"BODY"):
            # nothing between here and other chunks that end where the file does: really no samples
            none = not length and _whole_chunks(file, place + 8, size)
            length = long if head[:4] == b"RF64" and length == 0xFFFFFFFF else length
            return Chunk(place + 8, length, 0 if none else size - place - 8)
        place += 8 + length + length % 2
    return None


def _long_chunk(file: BinaryIO, place: int, name_size: int, order: Literal["little", "big"]) -> Chunk | None:
    """In formats whose chunks have sizes of 8 bytes: CAF, and Wave64, where they count the header and are aligned."""
    header, wave64, end = name_size + 8, name_size == 16, file.seek(0, io.SEEK_END)
    while place + header <= end:
        file.seek(place)
        name, length = file.read(name_size), int.from_bytes(file.read(8), order)
        length = max(0, length - header) if wave64 else length
        place += header
        if name[:4] == b"data":
            return Chunk(place, length, end - place)
        place += length + (-length % 8 if wave64 else 0)
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


# ---- Ogg ------------------------------------------------------------------------------------------------------------


class Page(NamedTuple):
    """A page of an Ogg file: its first byte, its flags, the last of its lengths, the byte behind it."""

    start: int
    flags: int
    last_length: int
    end: int


def _pages(file: BinaryIO) -> list[Page]:
    """The pages, up to the end of the file or to what is no page."""
    pages, place = list[Page](), 0
    while True:
        file.seek(place)
        head = file.read(27)
        if len(head) < 27 or head[:4] != b"OggS":
            return pages
        lengths = file.read(head[26])
        pages.append(Page(place, head[5], lengths[-1] if lengths else 0, place + 27 + head[26] + sum(lengths)))
        place = pages[-1].end


def _broken_pages(file: BinaryIO) -> str:
    """Where a page or a packet of an Ogg file is not whole, in words; "" if all are. Tags may stand behind them."""
    pages = _pages(file)
    end = pages[-1].end if pages else 0
    rest = file.seek(0, io.SEEK_END) - end
    if not pages or rest < 0:
        return "its last page is not whole"
    file.seek(end)
    if b"OggS" in file.read():
        return f"its pages break off at byte {end:,} and go on behind it"
    if not pages[-1].flags & 4 and pages[-1].last_length == 255:  # bit 4 marks the last page of a stream
        return "its last packet is not whole"
    return ""


def _links(pages: list[Page]) -> list[list[Page]]:
    """The pages of each link of a chained Ogg file, which starts at a first page (bit 2) that follows other pages."""
    links, first_before = list[list[Page]](), False
    for page in pages:
        first = bool(page.flags & 2)
        if not links or (first and not first_before):  # several first pages side by side are streams of one link
            links.append([])
        links[-1].append(page)
        first_before = first
    return links


def _with_last_page(data: bytes, pages: list[Page]) -> bytes:
    """One link, its last page marked as the last one (bit 4), which libsndfile demands of Opus."""
    last = pages[-1]
    page = bytearray(data[last.start : last.end])
    if not page[5] & 4:
        page[5] |= 4
        page[22:26] = bytes(4)
        checksum = 0
        for byte in page:  # the CRC with the polynomial 0x04C11DB7
            checksum ^= byte << 24
            for _ in range(8):
                checksum = (checksum << 1 ^ (0x04C11DB7 if checksum >> 31 else 0)) & 0xFFFFFFFF
        page[22:26] = checksum.to_bytes(4, "little")
    return data[pages[0].start : last.start] + bytes(page)
