"""Images: a file, a PIL image or an array becomes (3, size, size) floats in 0…1, or a clear error."""

import io
import os
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

from tinyomni.config import IMAGE_SIZE
from tinyomni.errors import InputError
from tinyomni.io.sources import as_tensor, existing_file
from tinyomni.shapes import ShapeError, describe

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor
"""A path, a PIL image, or a float array (3, height, width) in 0…1."""

WHERE = "load_image"
MAX_PIXELS = 80_000_000
PNG = b"\x89PNG\r\n\x1a\n"
MAX_TIFF = 2**28  # bytes that are read at once; a larger file is left as it is
TIFF_METADATA = {269, 270, 271, 272, 285, 305, 306, 315, 316, 333, 337, 700,
                 33432, 33723, 34377, 34665, 34675, 34853, 37724, 42112}  # fmt: skip
"""Tags of TIFF: texts, who made it when and with what, XMP, IPTC, Photoshop, EXIF, colour profiles, places."""
BITS, PHOTOMETRIC, CHANNELS, SAMPLE_FORMAT = 258, 262, 277, 339  # tags of TIFF
PACKED_BY, BIT_ORDER, PLACES, SIZES = 259, 266, (273, 324), (279, 325)  # of strips, of tiles
DEFLATE = (8, 32946)
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF's orientation → what undoes it
# no EPS: Pillow would start another program for it
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "ICO", "TGA")


def load_image(source: ImageLike, size: int = IMAGE_SIZE) -> Float[Tensor, "channels height width"]:
    """A path, a PIL image or a float array (3, h, w) in 0…1 → (3, size, size) float32 in 0…1.

    The largest centred square is resized, as CLIP does, so that nothing is stretched; an image that already has the
    size passes unchanged. EXIF orientation is applied, alpha is put on white, of an animation the first frame is taken.
    A JPEG that was cut, and closed again by an end marker, cannot be recognised: what it lacks is grey. Nor can damage
    to the pixels of a TIFF, unless they are packed by Deflate, which has a checksum: what libtiff notices (in Group 3
    and 4, LZW, Zstandard) it tells nobody but the terminal.

    Raises InputError for a missing file, for what cannot be decoded, for more than 80 million pixels, NaN, or values
    outside 0…1; ShapeError for wrong axes, TypeError for another kind of object.
    """
    if isinstance(source, (np.ndarray, Tensor)):
        return crop(check_pixels(as_tensor(WHERE, source)), size)
    if isinstance(source, (str, os.PathLike)):
        name, image = str(source), open_image(source)
    elif isinstance(source, Image.Image):
        name = "the image"
        check_size(name, source)
        image = upright(name, source)
    else:
        raise TypeError(
            f"{WHERE}: expected a path, a PIL image or a float array (3, height, width), got {type(source).__name__}"
        )
    if 0 in image.size:
        raise InputError(f"{WHERE}: {name} has no pixels ({image.width} × {image.height})")
    try:
        image = to_rgb(name, image)
    except InputError:
        raise
    except ValueError as error:  # such as a palette that is shorter than its transparency
        raise damaged(name, error) from error
    # a very large image is first reduced by a whole factor, which is quick and takes little memory
    image = image.reduce(max(1, min(image.size) // (8 * size)))
    return crop(torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255, size)


def check_pixels(pixels: Tensor) -> Float[Tensor, "channels height width"]:
    """Refuse an array that is not (3, height, width) with floats in 0…1."""
    if pixels.ndim != 3 or pixels.shape[0] != 3 or 0 in pixels.shape:
        fix = " The channels come first: permute(2, 0, 1)." if pixels.ndim == 3 and pixels.shape[-1] == 3 else ""
        fix = " One image at a time: image[0]." if pixels.ndim == 4 else fix
        raise ShapeError(f"{WHERE}: expected an array (channels=3, height, width), got {describe(pixels)}.{fix}")
    if not pixels.is_floating_point():
        raise ShapeError(f"{WHERE}: expected floats in 0…1, got {describe(pixels)}. Divide by 255.")
    if not bool(torch.isfinite(pixels).all()):
        raise InputError(f"{WHERE}: the array holds {int((~torch.isfinite(pixels)).sum())} NaN or infinite values")
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or high > 1:
        raise InputError(
            f"{WHERE}: expected values in 0…1, got {low:g} … {high:g}. "
            "Divide by 255, or pass the image before it was normalized."
        )
    return pixels.float()


def check_size(name: str, image: Image.Image) -> None:
    """Refuse an image that would fill the memory; its size is known before it is decoded."""
    if image.width * image.height > MAX_PIXELS:
        raise InputError(
            f"{WHERE}: {name} has {image.width} × {image.height} pixels, more than {MAX_PIXELS:,}. Make it smaller."
        )


def open_image(source: str | os.PathLike[str]) -> Image.Image:
    """Read and decode an image file completely, with its EXIF orientation applied."""
    path = existing_file(WHERE, source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # damaged metadata does not touch the pixels
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(pixels_of(path) or path, formats=FORMATS)
        except UnidentifiedImageError as error:
            if is_known(path):
                hint = "its header cannot be read; if another program shows it, save it there as PNG"
                raise damaged(str(path), hint) from error
            raise InputError(
                f"{WHERE}: cannot decode image {path} (expected {', '.join(FORMATS)}). "
                "Save an image of another kind, such as HEIC, as JPEG or PNG first."
            ) from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise InputError(f"{WHERE}: {path} has more than {MAX_PIXELS:,} pixels. Make it smaller.") from error
        except (PermissionError, InputError):
            raise
        except Exception as error:  # a decoder raises anything at all for malformed bytes: it always means the same
            raise damaged(str(path), error) from error
        with image:
            check_size(str(path), image)
            return upright(str(path), image)


def damaged(name: str, error: object) -> InputError:
    """The error for an image of a known format whose data cannot be decoded."""
    return InputError(f"{WHERE}: cannot decode image {name}: damaged or truncated ({error})")


def upright(name: str, image: Image.Image) -> Image.Image:
    """Decode, and apply the EXIF orientation."""
    inverted = False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        check_depth(name, image.tag_v2)
        inverted = image.mode.startswith("I;16") and not image.tag_v2.get(PHOTOMETRIC, 0)
    try:
        image.load()
    except Exception as error:  # see open_image
        raise damaged(name, error) from error
    turned = turn(image)
    # 0 is white, which Pillow minds in 8 bits only
    return Image.fromarray(65535 - np.asarray(turned, dtype=np.uint16)) if inverted else turned


def turn(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # malformed metadata raises anything at all; the pixels are whole, and stay as they are stored
        return image
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def is_known(path: Path) -> bool:
    """Does the file begin as one of FORMATS does?"""
    with path.open("rb") as file:
        head = file.read(16)
    accepts = (Image.OPEN[name][1] for name in FORMATS if name in Image.OPEN)
    return any(accept is not None and accept(head) is True for accept in accepts)


# ---- files without their metadata -----------------------------------------------------------------------------------


def pixels_of(path: Path) -> io.BytesIO | None:
    """The file without its metadata, since damage there would stop Pillow; None where nothing need be left out.

    EXIF data stay where they are whole: they may say which side is up.
    """
    with path.open("rb") as file:
        head = file.read(12)
        file.seek(0)
        if head[:8] == PNG:
            content = b"".join(png_pixels(file))
            check_png(path, content)
            return io.BytesIO(content)
        if head[:2] == b"\xff\xd8":
            return io.BytesIO(b"".join(jpeg_pixels(file)))
        if head[:4] == b"RIFF" and head[8:] == b"WEBP":
            return io.BytesIO(webp_pixels(file))
        if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):  # with * as it was, with + for large files
            simple = b"*" in head[2:4] and path.stat().st_size <= MAX_TIFF
            cleaned = io.BytesIO(tiff_pixels(file)) if simple else None
            check_tiff(path, cleaned or file)
            return cleaned
    return None


def png_pixels(file: BinaryIO) -> Iterator[bytes]:
    """The chunks that the pixels need, and EXIF data whose checksum is right (PNG specification, section 5)."""
    yield file.read(8)
    while len(head := file.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind[0] & 32 and kind not in (b"tRNS", b"eXIf"):  # a small first letter: not critical
            file.seek(length + 4, io.SEEK_CUR)
            continue
        data = file.read(length + 4)
        if kind != b"eXIf" or zlib.crc32(kind + data[:-4]).to_bytes(4, "big") == data[-4:]:
            yield head + data


def check_png(path: Path, content: bytes) -> None:
    """Refuse what Pillow would fill up with black: rows that are missing, a palette that is; and what it would lose."""
    width, height = (int.from_bytes(content[place : place + 4], "big") for place in (16, 20))
    if len(content) < 33 or content[12:16] != b"IHDR" or width * height > MAX_PIXELS:
        return  # refused elsewhere
    bits, kind, interlaced = content[24], content[25], content[28] == 1
    chunks, place = list[tuple[bytes, bytes]](), 8
    while place + 8 <= len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += length + 12
    names = {name for name, _ in chunks}
    if kind == 3 and b"PLTE" not in names:
        raise damaged(str(path), "it has no palette")
    if kind == 2 and bits == 16 and b"tRNS" in names:  # Pillow keeps 8 bits, which cannot tell the colour from others
        raise InputError(
            f"{WHERE}: expected 8 bits or an alpha channel where a colour is transparent, got 16 bits in {path}. "
            "Save it with an alpha channel."
        )
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(kind, 0)
    # (first column, first row, step, step) of each pass of Adam7
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    expected = 0
    for left, top, across, down in passes if interlaced else [(0, 0, 1, 1)]:
        columns, rows = -((left - width) // across), -((top - height) // down)
        expected += rows * (1 + (columns * channels * bits + 7) // 8) if columns > 0 else 0
    unpack, found = zlib.decompressobj(), 0
    packed = memoryview(b"".join(data for name, data in chunks if name == b"IDAT"))
    for place in range(0, len(packed), 2**16):
        if found < expected:  # what follows is not looked at; it may fill the memory
            found += len(unpack.decompress(packed[place : place + 2**16]))
    if found < expected:
        raise damaged(str(path), f"its header says {expected:,} bytes of pixels, the file has {found:,}")


def jpeg_pixels(file: BinaryIO) -> Iterator[bytes]:
    """All but comments and APP segments that do not say how colours are stored (JFIF, Adobe) or which side is up."""
    yield file.read(2)
    while len(head := file.read(4)) == 4 and head[0] == 0xFF and head[1] not in (0xDA, 0xFF):  # SOS: the pixels follow
        length = int.from_bytes(head[2:], "big") - 2
        data = file.read(max(0, length))
        needed = {0xE0: data[:5] == b"JFIF\0" and length >= 14, 0xE1: data[:6] == b"Exif\0\0",
                  0xEE: data[:5] == b"Adobe" and length >= 12}.get(head[1])  # fmt: skip
        if needed or (head[1] & 0xF0 != 0xE0 and head[1] != 0xFE):
            yield head + data
    yield head + file.read()


def webp_pixels(file: BinaryIO) -> bytes:
    """All but colour profiles, XMP, EXIF data that are not whole, and what follows the image (RFC 9649)."""
    file.seek(4)
    end = 8 + (int.from_bytes(file.read(4), "little") or 2**32)  # 0 was never filled in
    file.seek(12)
    chunks, flags = list[tuple[bytes, bytes, bytes]](), 0
    while len(head := file.read(8)) == 8:
        if file.tell() > end and any(kind in (b"VP8 ", b"VP8L", b"ANMF") for kind, _, _ in chunks):
            break
        kind, length = head[:4], int.from_bytes(head[4:], "little")
        data = file.read(length + length % 2)
        if kind == b"EXIF" and len(data) >= length:
            flags = 8
        elif kind in (b"ICCP", b"XMP ", b"EXIF"):
            continue
        chunks.append((kind, head[4:], data))
    # the first chunk announces the others: colour profile 32, EXIF 8, XMP 4
    parts = [kind + length + (bytes([data[0] & ~44 | flags]) + data[1:] if kind == b"VP8X" and data else data)
             for kind, length, data in chunks]  # fmt: skip
    content = b"WEBP" + b"".join(parts)
    return b"RIFF" + len(content).to_bytes(4, "little") + content


def tiff_pixels(file: BinaryIO) -> bytes:
    """All, but texts and profiles of the first image are empty."""
    data = bytearray(file.read())
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    start = int.from_bytes(data[4:8], order)
    for place in range(start + 2, start + 2 + 12 * int.from_bytes(data[start : start + 2], order), 12):
        if int.from_bytes(data[place : place + 2], order) in TIFF_METADATA:
            data[place + 2 : place + 12] = (7).to_bytes(2, order) + (1).to_bytes(4, order) + bytes(4)  # one byte, 0
    return bytes(data)


def check_tiff(path: Path, file: BinaryIO) -> None:
    """Refuse depths that Pillow cannot read or reads wrongly, and Deflate's strips and tiles with a wrong checksum."""
    file.seek(0)
    head = file.read(8)
    tags = TiffImagePlugin.ImageFileDirectory_v2(head + file.read(8) if b"+" in head[2:4] else head)
    file.seek(tags.next)
    tags.load(file)
    check_depth(str(path), tags)
    if tags.get(PACKED_BY) not in DEFLATE or tags.get(BIT_ORDER, 1) != 1:
        return
    left = 8 * MAX_PIXELS  # bytes; what follows is not looked at, it may fill the memory
    for tag_places, tag_sizes in zip(PLACES, SIZES, strict=True):
        for place, size in zip(tags.get(tag_places, ()), tags.get(tag_sizes, ()), strict=False):
            file.seek(place)
            unpack, packed = zlib.decompressobj(), file.read(size)
            while packed and left > 0:
                left -= len(unpack.decompress(packed, 2**20))
                packed = unpack.unconsumed_tail


def check_depth(name: str, tags: TiffImagePlugin.ImageFileDirectory_v2) -> None:
    """Refuse a TIFF whose samples are not unsigned with up to 16 bits; in one channel, floats of 32 bits are read."""
    bits, kinds = set(tags.get(BITS, (1,))), set(tags.get(SAMPLE_FORMAT, (1,)))
    one, white = tags.get(CHANNELS, 1) == 1, "" if tags.get(PHOTOMETRIC, 0) else ", 0 as white"
    if kinds == {1} and bits <= ({1, 2, 4, 8, 16} if one else {8, 16}):
        return
    if one and kinds == {3} and bits == {32} and not white:
        return
    depth = " or ".join(map(str, sorted(bits)))
    names = {1: "unsigned", 2: "signed", 3: "float"}
    found = f"{depth} bits, {' or '.join(names.get(kind, f'format {kind}') for kind in sorted(kinds))}{white}"
    raise InputError(f"{WHERE}: expected 8 or 16 bits a channel, unsigned, got {found}, in {name}. Save it as PNG.")


def to_rgb(name: str, image: Image.Image) -> Image.Image:
    """Any colour mode → RGB: transparent parts on white, 16 bits scaled to 8.

    Mode I;16 is 0 … 65535. Mode I (32 bits) does not say what its white is: 65535 where a value is above 255. Mode F
    does not either: 1 where no value is above it, else 255.
    """
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image).astype(np.float32)
        if not np.isfinite(values).all():
            raise InputError(f"{WHERE}: {name} holds {int((~np.isfinite(values)).sum())} NaN or infinite pixels")
        peak = values.max(initial=0)
        if image.mode == "F":
            white = 1.0 if peak <= 1 else 255.0
        else:
            white = 65535.0 if image.mode != "I" or peak > 255 else 255.0
        if isinstance(image.info.get("transparency"), int):
            values[values == image.info["transparency"]] = white
        return Image.fromarray((values / white * 255).clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("La", "RGBa"):  # premultiplied alpha
        image = image.convert(image.mode.upper())
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def crop(
    pixels: Float[Tensor, "channels source_height source_width"], size: int
) -> Float[Tensor, "channels height width"]:
    """The largest centred square, resized to size × size with antialiasing."""
    height, width = pixels.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = pixels[:, top : top + side, left : left + side]
    if side == size:
        return square.contiguous()
    resized = torch.nn.functional.interpolate(square[None], size=(size, size), mode="bilinear", antialias=True)
    return resized[0].clamp(0, 1)
