"""Audio files: decoded by libsndfile, after a look at what their headers promise.

A header is a hint, the data is the truth. A WAV from a pipe says 2 GB, or 0, where its data is whole: it is read. Data
that ends before its own chunk or page does is truncated: refused, though libsndfile would read what there is. So are
data that go on behind the end that their header gives them. Metadata are not looked at: damaged, they cost no samples.
(RIFF: Microsoft and IBM, Multimedia Programming Interface 1.0, 1991; RF64: EBU Tech 3306; BW64: ITU-R BS.2088;
Wave64: Sony, 2006; AIFF and CAF: Apple, 1989 and 2011; AU: Sun, audio(4); Ogg: RFC 3533.)
"""

import io
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
import soundfile

from tinyomni.errors import InputError
from tinyomni.io.streams import STRAY, missing, streams

BLOCK = 2**18  # samples of all channels decoded at a time
UNKNOWN = 0x7FFF0000  # a size from here on was never filled in: the program wrote into a pipe
NEEDED = {b"fmt ", b"fact", b"ds64", b"data", b"COMM", b"FVER", b"SSND", b"VHDR", b"CHAN", b"BODY"}
"""Chunks of WAV, AIFF and SVX without which the samples cannot be read."""
NEEDED_IN_CAF = {b"desc", b"data", b"pakt", b"kuki", b"chan"}
PRINTABLE = rb"[ -~]{4}"  # as the names of chunks are, and the beginnings of tags


class Copy(mmap.mmap):
    """A file in memory, of which only what is read is loaded. What is written into it never reaches the file."""

    def seek(self, place: int, whence: int = 0) -> None:  # type: ignore[override]
        """As in a file, there is nothing to read behind the end; an mmap would raise a ValueError."""
        base = {0: 0, 1: self.tell(), 2: len(self)}[whence]
        super().seek(min(base + place, len(self)))


Source = Path | io.BytesIO | Copy
PCM, MP3 = 1, 0x55  # what a WAV may hold, by the number in its header
CODECS = {b"\x7fFLAC": ("FLAC", "flac"), b"Speex   ": ("Speex", "wav"), b"\x80theora": ("a film", "wav")}
"""What else than Vorbis and Opus may be inside Ogg, by the beginning of its first packet, and what to make of it."""


class Given(NamedTuple):
    """What libsndfile is given."""

    source: Source
    samples: int | None = None  # as the header of a FLAC says
    counted: bool = False  # does an MP3 say how many frames it has?


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
    problem = _goes_on(path)
    if problem:
        raise InputError(
            f"{where}: {path} {problem}. If they are samples, mend the size in the header "
            "(of a WAV: ffmpeg -ignore_length 1 -i OLD.wav NEW.wav); if not, cut them off."
        )
    problem = _padded(path)
    if problem:
        raise InputError(f"{where}: {problem} in {path}. Save it again with 16 or 32 bits.")
    try:
        parts = [_decode(where, path, given, max_seconds) for given in _sources(path)]
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: raw samples, without a header
        with path.open("rb") as file:
            first = file.read(128)[28:]
        for start, (codec, kind) in CODECS.items():
            if first.startswith(start):
                fix = f"ffmpeg -i {path.name} {path.with_suffix(f'.{kind}').name}"
                raise InputError(
                    f"{where}: expected Vorbis or Opus inside Ogg, got {codec} in {path}. {fix}"
                ) from error
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


def _decode(where: str, path: Path, given: Given, max_seconds: int) -> Recording:
    flac_samples = given.samples
    with Sequential(given.source) as file:
        rate, kind, promised = file.samplerate, file.subtype, flac_samples or file.frames
        step = max(1, BLOCK // file.channels)
        blocks, count, peak = [np.zeros(0, dtype=np.float32)], 0, 0.0
        while len(block := _read(file, step, flac_samples - count if flac_samples else None)):
            count += len(block)
            if count > max_seconds * rate:
                raise too_long(where, str(path), max_seconds)
            with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity are reported by the caller
                blocks.append(block.mean(axis=1))
                peak = max(peak, float(np.abs(block).max()))
    # without a count, the length of an MP3 is only estimated; 2**62 stands for one that was never filled in
    mp3 = kind.startswith("MPEG")
    spare = (1152 if rate >= 32_000 else 576) if mp3 else 0  # some coders count the frame that holds the count
    if (given.counted or not mp3) and count + spare < promised < 2**62:
        detail = f"header says {promised} frames, file has {count}"
        raise InputError(f"{where}: {path} is truncated or damaged: {detail}. Copy or download it again.")
    return Recording(np.concatenate(blocks), rate, peak)


def _read(file: Sequential, step: int, flac_rest: int | None) -> np.ndarray:
    """The next samples (samples, channels); of a FLAC it is known how many are left by its header."""
    step = 1 if flac_rest == 0 else min(step, flac_rest) if flac_rest and flac_rest > 0 else step
    try:
        return file.read(step, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        if flac_rest != 0:
            raise
        # behind the last frame, tags or stray bytes are taken for a damaged one
        return np.zeros((0, file.channels), dtype=np.float32)


def _sources(path: Path) -> list[Given]:
    """The file, each stream of a chain, the MP3 inside a WAV, or a file with mended sizes and without metadata."""
    with path.open("rb") as file:
        head = file.read(4)
        if head == b"OggS":
            links = _links(_pages(file))
            file.seek(0)
            data = file.read()
            return [Given(io.BytesIO(_with_last_page(data, link))) for link in links]
        copy = Copy(file.fileno(), 0, access=mmap.ACCESS_COPY)
        parts: bytes | Copy | None = copy if head == b"fLaC" or head[:3] == b"ID3" or head[:1] == b"\xff" else None
        form, data_chunk = _format(file), _data(file)
        if form and data_chunk and form.kind == MP3:  # libsndfile would guess its length
            end = len(copy) if data_chunk.is_open() else data_chunk.start + data_chunk.size
            parts = copy[data_chunk.start : end]
        if parts is not None:
            return [Given(io.BytesIO(part.data), part.samples, part.counted) for part in streams(parts)]
        return [Given(copy if _mend(file, copy) else path)]


def truncated(path: Path) -> str:
    """Where the data ends too early, in words; empty if it does not, or if the format cannot tell."""
    with path.open("rb") as file:
        head = file.read(4)
        if head == b"OggS":
            return _broken_pages(file)
        if head[:3] == b"ID3" or head[:1] == b"\xff":
            return missing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        data = _data(file)
    if data and data.available < data.size < UNKNOWN:
        return f"its data chunk says {data.size:,} bytes, the file has {data.available:,}"
    return ""


# ---- WAV, AIFF, AU, CAF ---------------------------------------------------------------------------------------------


class Chunk(NamedTuple):
    """A part of a file: samples or metadata."""

    name: bytes
    place: int  # where its header begins, in bytes
    start: int
    size: int  # as the header says
    field: slice  # where it says it


class Data(NamedTuple):
    """The samples of a file."""

    start: int  # in bytes
    size: int  # as the header says
    available: int  # to the end of the file
    field: slice  # where the header says it
    order: Literal["little", "big"]

    def is_open(self) -> bool:
        """Was the size never filled in?"""
        return self.available > 0 and (self.size == 0 or self.size >= max(UNKNOWN, self.available + 1))


def _order(head: bytes) -> Literal["little", "big"]:
    return "big" if head[:4] in (b"FORM", b"RIFX", b".snd", b"caff") else "little"


def _chunks(file: BinaryIO) -> Iterator[Chunk]:
    """The chunks of WAV, AIFF, SVX, Wave64 and CAF; none in other formats."""
    end = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(8)
    wave64 = head == b"riff\x2e\x91\xcf\x11"
    if wave64:  # sizes count the header, and chunks are aligned
        place, name_size, width, align = 40, 16, 8, 8
    elif head[:4] == b"caff":
        place, name_size, width, align = 8, 4, 8, 1
    elif head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM"):
        place, name_size, width, align = 12, 4, 4, 2
    else:
        return
    long = None
    while place + name_size + width <= end:
        file.seek(place)
        name, size = file.read(name_size)[:4], int.from_bytes(file.read(width), _order(head))
        start = place + name_size + width
        field = slice(start - width, start)
        size = max(0, size - name_size - width) if wave64 else size
        if name == b"ds64" and size >= 16:  # RF64 keeps its sizes here: of the file, of the samples
            long = slice(start + 8, start + 16)
        if name == b"data" and long and size in (0, 0xFFFFFFFF):
            file.seek(long.start)
            size, field = int.from_bytes(file.read(8), "little"), long
        yield Chunk(name, place, start, size, field)
        place = start + size + -size % align


class Format(NamedTuple):
    """What the header of a WAV says about its samples."""

    kind: int
    channels: int
    width: int  # of the samples of all channels at one moment, in bytes
    bits: int


def _format(file: BinaryIO) -> Format | None:
    """The header of a WAV; None for other formats."""
    file.seek(0)
    order = _order(file.read(4))
    for chunk in _chunks(file):
        if chunk.name == b"fmt ":
            file.seek(chunk.start)
            raw = file.read(16)
            return Format(*(int.from_bytes(raw[place : place + 2], order) for place in (0, 2, 12, 14)))
    return None


def _padded(path: Path) -> str:
    """In words, if samples of 3 bytes stand further apart in a WAV: libsndfile would read noise. Of samples of 1 or 2
    bytes nobody writes that, and a distance that says so is a slip of the header.
    """
    with path.open("rb") as file:
        found = _format(file)
    needed = (found.bits + 7) // 8 if found else 0
    if not found or found.kind != PCM or needed != 3 or found.width <= found.channels * needed:
        return ""
    return f"expected {needed} bytes for a sample of {found.bits} bits, got {found.width / max(1, found.channels):g}"


def _data(file: BinaryIO) -> Data | None:
    """Where the samples are, in formats that are made of chunks and in AU; None for others."""
    end = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(12)
    order = _order(head)
    if head[:4] in (b".snd", b"dns.") and len(head) == 12:
        start = int.from_bytes(head[4:8], order)
        return Data(start, int.from_bytes(head[8:], order), max(0, end - start), slice(8, 12), order)
    for chunk in _chunks(file):
        if chunk.name in (b"data", b"SSND", b"BODY"):
            # nothing between here and other chunks that end where the file does: really no samples
            none = not chunk.size and _whole_chunks(file, chunk.start, end, order)
            return Data(chunk.start, chunk.size, 0 if none else end - chunk.start, chunk.field, order)
    return None


def _whole_chunks(file: BinaryIO, place: int, end: int, order: Literal["little", "big"]) -> bool:
    """Do chunks follow, the last of which ends with the file?"""
    while place + 8 <= end:
        file.seek(place)
        if not file.read(4).strip().isalnum():
            return False
        length = int.from_bytes(file.read(4), order)
        place += 8 + length + length % 2
    return place == end


def _goes_on(path: Path) -> str:
    """What follows the samples, in words, if it may be samples too: no chunk, no tag, no padding; else empty."""
    with path.open("rb") as file:
        data = _data(file)
        if not data or data.is_open() or data.size + 8 > data.available:
            return ""
        file.seek(0)
        head = file.read(8)
        container = 8 + int.from_bytes(head[4:], data.order) if head[:4] in (b"RIFF", b"RIFX", b"FORM") else 0
        end = file.seek(data.start + data.size)
        rest = file.read()
    # a chunk, behind up to 7 bytes of padding, or a tag
    if not rest.strip(b"\0") or re.match(rb"\0{,7}" + PRINTABLE, rest) or re.match(rb"." + PRINTABLE, rest, re.DOTALL):
        return ""
    # what stands outside of the container that the header describes is no part of the recording, unless it is long
    if len(rest) <= STRAY and container <= end + 1:
        return ""
    return f"has {data.size:,} bytes of samples by its header, and {len(rest):,} bytes of no known kind behind them"


def _mend(file: BinaryIO, copy: Copy) -> bool:
    """Fill in a size of the samples that was left open, and rename metadata, so that nobody reads them. Any change?"""
    data = _data(file)
    if not data or copy[:4] == b"riff":  # libsndfile needs no help with Wave64
        return False
    needed, unread = (NEEDED_IN_CAF, b"free") if copy[:4] == b"caff" else (NEEDED, b"JUNK")
    renamed = copy[:4] == b"BW64"  # the same as RF64 under a later name, which libsndfile does not know
    if renamed:
        copy[:4] = b"RF64"
    metadata = []
    for chunk in _chunks(file):
        if chunk.start > data.start and (data.is_open() or not re.match(PRINTABLE, chunk.name)):
            break
        metadata += [chunk.place] if chunk.name not in needed else []
    for place in metadata:
        copy[place : place + 4] = unread
    if data.is_open():
        width = data.field.stop - data.field.start
        copy[data.field] = min(data.available, 2 ** (8 * width) - 1).to_bytes(width, data.order)
        if copy[:4] in (b"RIFF", b"RIFX"):
            copy[4:8] = min(len(copy) - 8, 2**32 - 1).to_bytes(4, data.order)
    return renamed or bool(metadata) or data.is_open()


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
