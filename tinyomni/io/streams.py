"""FLAC and MP3: chained streams are taken apart, and lengths that the decoder would believe are taken out.

libsndfile stops where the header of a FLAC says that it ends, and it guesses the length of an MP3 without a head from
the bit rate of its first frame. Both would cut a recording silently, so neither is told a length.
(FLAC: RFC 9639, section 8.2; MP3: ISO/IEC 11172-3 and 13818-3; its head: Xing, 2000.)
"""

import itertools
import re
from collections.abc import Iterator
from mmap import mmap
from typing import NamedTuple

FLAC_START = re.compile(rb"fLaC[\0\x80]\0\0\x22")  # with the head of the first block, whose size is fixed
MP3_FRAME = rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]"  # of layer III
MP3_START = re.compile(MP3_FRAME + rb".{2}(?:.{9}|.{17}|.{32})(?:Xing|Info)", re.DOTALL)
"""The frame that says how long a stream is; the decoder stops there, even if another stream follows."""
KBITS = {
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Bit rates of layer III in MPEG 1, and in MPEG 2 and 2.5."""
STRAY = 4096  # bytes of no known kind that may follow a file; more may be samples


class Stream(NamedTuple):
    """A FLAC or MP3 that says no length."""

    data: bytes
    samples: int | None  # as the header of a FLAC said; None if it did not
    counted: bool  # does the head of an MP3 say how many frames there are?


def streams(data: bytes | mmap) -> Iterator[Stream]:
    """The streams of a file, which is FLAC or MP3, with whatever stands before them and between them."""
    for start, end in itertools.pairwise([0, *_starts(data)[1:], len(data)]):
        part = data[start:end]
        head = MP3_START.match(part, _first_frame(part))
        counted = head is not None and bool(part[head.end() + 3] & 1)
        yield _without_length(part) if FLAC_START.search(part) else Stream(_with_head(part), None, counted)


def _starts(data: bytes | mmap) -> list[int]:
    """Where each stream of a chained FLAC or MP3 begins."""
    if flac := [found.start() for found in FLAC_START.finditer(data)]:
        return flac
    starts, heads = list[int](), list(MP3_START.finditer(data))
    for head, following in itertools.zip_longest(heads, heads[1:]):
        limit = following.start() if following else len(data)
        starts.append(head.start())
        # a stream without a head of its own may follow: where the head says that its own ends
        after = _behind_tag(data, head.start() + _size(data, head))
        if after > head.start() and limit - after > STRAY and re.match(MP3_FRAME, data[after : after + 2]):
            starts.append(after)
    return starts


def _size(data: bytes | mmap, head: re.Match[bytes]) -> int:
    """How many bytes an MP3 has by its head; 0 if that does not say."""
    flags = int.from_bytes(data[head.end() : head.end() + 4], "big")
    place = head.end() + 4 + 4 * (flags & 1)
    return int.from_bytes(data[place : place + 4], "big") if flags & 2 else 0


def missing(data: mmap) -> str:
    """What an MP3 lacks at its end, in words; "" if nothing, or nothing that could be known."""
    start = _first_frame(data)
    head = MP3_START.match(data, start)
    if head and _size(data, head) > len(data):  # of the file: some heads count the tags before them, others don't
        return f"its head says {_size(data, head):,} bytes, the file has {len(data):,}"
    while size := _frame_size(data[start : start + 4]):
        start += size
    return "its last frame is not whole" if start > len(data) else ""


def _first_frame(data: bytes | mmap) -> int:
    """Where the first frame of an MP3 begins that another follows; 0 if there is none."""
    for found in re.compile(MP3_FRAME + rb"..", re.DOTALL).finditer(data, _behind_tag(data, 0)):
        following = found.start() + _frame_size(found[0])
        if following > found.start() and re.match(MP3_FRAME, data[following : following + 2]):
            return found.start()
    return 0


def _frame_size(head: bytes) -> int:
    """How many bytes a frame of layer III has, by its first four; 0 for no frame, and for one of a free bit rate."""
    if not re.match(MP3_FRAME + rb"..", head, re.DOTALL) or head[2] >> 4 in (0, 15) or head[2] >> 2 & 3 == 3:
        return 0
    version = 1 if head[1] & 8 else 2
    rate = (44100, 48000, 32000)[head[2] >> 2 & 3] // (1 if version == 1 else 2 if head[1] & 16 else 4)
    return (144 if version == 1 else 72) * KBITS[version][head[2] >> 4] * 1000 // rate + (head[2] >> 1 & 1)


def _behind_tag(data: bytes | mmap, place: int) -> int:
    """Where the ID3 tag ends that begins at a place, or the place itself."""
    if data[place : place + 3] != b"ID3":
        return place
    return place + 10 + sum(byte << 7 * (3 - i) for i, byte in enumerate(data[place + 6 : place + 10]))


def _without_length(data: bytes) -> Stream:
    """A FLAC whose header says 0 samples, which means that nobody knows."""
    start = FLAC_START.search(data).end() + 13  # type: ignore[union-attr]
    value = int.from_bytes(data[start : start + 5], "big")  # 4 bits of another field, and 36 of this one
    samples = value % 2**36
    return Stream(data[:start] + (value - samples).to_bytes(5, "big") + data[start + 5 :], samples or None, False)


def _with_head(data: bytes) -> bytes:
    """An MP3 with a head: its own, or a frame in front that says more frames than any file has."""
    start = _first_frame(data)
    frame = data[start : start + 4]
    size = _frame_size(frame)
    if not size or MP3_START.match(data, start) or data[start + 36 : start + 40] == b"VBRI":
        return data
    mono = frame[3] >> 6 == 3
    side = (17 if mono else 32) if frame[1] & 8 else (9 if mono else 17)
    head = bytes([frame[0], frame[1] | 1, *frame[2:]]) + bytes(side)  # | 1: without a checksum
    head += b"Xing" + (1).to_bytes(4, "big") + (2**31 - 1).to_bytes(4, "big")
    return data[:start] + head.ljust(size, b"\0") + data[start:]
