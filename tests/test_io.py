"""Images and audio of every kind are read, or refused with a clear message."""

import array
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from tinyomni.data.manifests import Manifest
from tinyomni.dry_run import IMAGE
from tinyomni.errors import InputError
from tinyomni.io import check_not_silent, load_audio, load_image, load_speech
from tinyomni.io.audio_files import BLOCK, Sequential
from tinyomni.shapes import ShapeError


def save(image: Image.Image, path: Path, **how: object) -> Path:
    image.save(path, **how)
    return path


def test_an_image_of_the_right_size_passes_unchanged() -> None:
    want = torch.from_numpy(np.array(Image.open(IMAGE).convert("RGB"))).permute(2, 0, 1) / 255
    assert torch.equal(load_image(IMAGE), want)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "I;16", "F"]
)
@pytest.mark.parametrize("size", [(1, 1), (300, 77), (77, 300)])
def test_every_colour_mode_and_size_is_read(mode: str, size: tuple[int, int]) -> None:
    image = Image.new("L", size, 128).convert(mode) if mode not in ("PA", "LAB", "HSV") else Image.new(mode, size)
    pixels = load_image(image)
    assert pixels.shape == (3, 224, 224) and pixels.dtype == torch.float32
    assert 0 <= float(pixels.min()) <= float(pixels.max()) <= 1
    if mode in ("L", "RGB", "LA", "RGBA", "I", "F", "YCbCr"):
        torch.testing.assert_close(pixels, torch.full_like(pixels, 128 / 255), atol=0.02, rtol=0)


def test_sixteen_bits_are_scaled_alpha_is_put_on_white_and_exif_rotates(tmp_path: Path) -> None:
    grey = Image.fromarray(np.full((50, 50), 128 * 257, dtype=np.uint16))
    assert load_image(save(grey, tmp_path / "16.png")).mean().item() == pytest.approx(128 / 255, abs=0.01)
    assert load_image(save(Image.new("RGBA", (9, 9), (255, 0, 0, 0)), tmp_path / "clear.png")).min() == 1
    half = Image.new("RGB", (100, 100))
    half.paste((255, 255, 255), (0, 0, 100, 50))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    rotated = load_image(save(half, tmp_path / "rotated.jpg", exif=exif, quality=95))
    assert rotated[:, :90].mean() < 0.1 < 0.9 < rotated[:, -90:].mean()


def test_a_very_wide_image_is_read_and_a_bomb_is_not(tmp_path: Path) -> None:
    assert load_image(save(Image.new("RGB", (20_000, 20), "red"), tmp_path / "wide.png")).shape == (3, 224, 224)
    with pytest.raises(ValueError, match="more than 80,000,000"):
        load_image(save(Image.new("1", (20_000, 4_001)), tmp_path / "bomb.png"))


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 96_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_every_rate_and_number_of_channels_is_read(kind: str, rate: int, channels: int, tmp_path: Path) -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate) * 0.5
    soundfile.write(tmp_path / "a", np.tile(tone[:, None], (1, channels)), rate, format=kind)
    wave = load_audio(tmp_path / "a")
    assert wave.shape == (16_000,) and wave.dtype == torch.float32
    want = torch.sin(2 * torch.pi * 440 * torch.arange(16_000) / 16_000) * 0.5
    assert float((wave - want)[500:-500].abs().max()) < (0.12 if kind == "OGG" else 0.02)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_every_depth_has_the_same_loudness(subtype: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(1600, 0.5), 16_000, subtype=subtype)
    torch.testing.assert_close(load_audio(tmp_path / "a.wav"), torch.full((1600,), 0.5), atol=0.01, rtol=0)


def test_integers_are_scaled_and_channels_averaged() -> None:
    wave = torch.stack([torch.full((1600,), 16_384), torch.zeros(1600)]).to(torch.int16)
    torch.testing.assert_close(load_audio((wave, 16_000)), torch.full((1600,), 0.25))


TONE = np.sin(np.arange(1601) / 10).astype(np.float32) / 2
PIPE, ESPEAK = 0xFFFFFFFF, 0x7FFFF000


def wav(folder: Path, riff: int | None = None, data: int | None = None, cut: int = 0, more: bytes = b"") -> Path:
    """A WAV of 1,601 samples of 16 bits with other sizes in its headers, cut at its end, or with more behind it."""
    soundfile.write(folder / "a.wav", TONE, 16_000, subtype="PCM_16")
    content = bytearray((folder / "a.wav").read_bytes())
    assert content[36:40] == b"data" and len(content) == 44 + 3202
    if riff is not None:
        content[4:8] = riff.to_bytes(4, "little")
    if data is not None:
        content[40:44] = data.to_bytes(4, "little")
    (folder / "b.wav").write_bytes(content[: len(content) - cut] + more)
    return folder / "b.wav"


@pytest.mark.parametrize(
    "sizes",
    [
        {"riff": ESPEAK + 36, "data": ESPEAK}, {"riff": PIPE, "data": PIPE}, {"riff": 0, "data": 0},
        {"riff": 8, "data": 0}, {"riff": 36, "data": 0}, {"riff": ESPEAK + 36}, {"riff": 2**30}, {"riff": 3246},
        {"riff": 3247}, {"riff": 3230}, {"riff": 20}, {"riff": 0}, {"more": b"LIST\x04\0\0\0abcd"}, {"more": b"xx"},
    ],
)  # fmt: skip
def test_a_wav_is_what_its_data_is(sizes: dict[str, Any], tmp_path: Path) -> None:
    found = load_audio(wav(tmp_path, **sizes))
    torch.testing.assert_close(found[:1601], torch.from_numpy(TONE), atol=1e-4, rtol=0)
    assert len(found) - 1601 in (0, 1, 6)  # what follows may be taken for samples where no size was filled in


@pytest.mark.parametrize("sizes", [{"cut": 900}, {"cut": 1}, {"cut": 900, "riff": ESPEAK + 36}, {"data": 5000}])
def test_a_wav_whose_data_ends_early_is_refused(sizes: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"b\.wav is truncated: its data chunk says"):
        load_audio(wav(tmp_path, **sizes))


def test_a_wav_without_samples_but_with_tags(tmp_path: Path) -> None:
    path = wav(tmp_path, riff=48, data=0, cut=3202, more=b"LIST\x04\0\0\0abcd")
    with pytest.raises(InputError, match="has no samples"):
        load_audio(path)


def test_ogg_files_that_are_chained_or_have_no_last_page(tmp_path: Path) -> None:
    for name, subtype in (("vorbis", "VORBIS"), ("opus", "OPUS")):
        soundfile.write(tmp_path / "a.ogg", np.tile(TONE, 9), 16_000, format="OGG", subtype=subtype)
        one = (tmp_path / "a.ogg").read_bytes()
        (tmp_path / f"{name}.ogg").write_bytes(one + one)
        (tmp_path / f"{name} cut.ogg").write_bytes(one + one[:-50])
        assert len(load_audio(tmp_path / f"{name}.ogg")) == 2 * len(load_audio(tmp_path / "a.ogg"))
        with pytest.raises(InputError, match=f"{name} cut.ogg is truncated: its last page is not whole"):
            load_audio(tmp_path / f"{name} cut.ogg")
        last = one.rfind(b"OggS")
        open_end = bytearray(one)
        open_end[last + 5] &= ~4  # this is not the last page of the stream
        open_end[last + 22 : last + 26] = bytes(4)
        open_end[last + 22 : last + 26] = checksum(open_end[last:]).to_bytes(4, "little")
        (tmp_path / "open.ogg").write_bytes(open_end)
        assert len(load_audio(tmp_path / "open.ogg")) >= 9 * 1601
    soundfile.write(tmp_path / "b.ogg", TONE, 8_000)
    (tmp_path / "two.ogg").write_bytes(one + (tmp_path / "b.ogg").read_bytes())
    with pytest.raises(InputError, match=r"two.ogg is a chain of streams at \[8000, 16000\] Hz"):
        load_audio(tmp_path / "two.ogg")


def test_ogg_pages_that_break_off_in_the_middle_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.ogg", TONE, 16_000)
    one = (tmp_path / "a.ogg").read_bytes()
    for content in (one[:-40] + one, one + b"junk" + one):
        (tmp_path / "b.ogg").write_bytes(content)
        with pytest.raises(InputError, match=r"b\.ogg is truncated: its pages break off at byte \d,\d+ and go on"):
            load_audio(tmp_path / "b.ogg")
    (tmp_path / "b.ogg").write_bytes(one + b"TAG" + bytes(125))
    assert len(load_audio(tmp_path / "b.ogg")) == 1601


def test_each_link_of_opus_may_lack_its_last_page(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.ogg", TONE, 16_000, format="OGG", subtype="OPUS")
    one = bytearray((tmp_path / "a.ogg").read_bytes())
    one[one.rfind(b"OggS") + 5] &= ~4
    (tmp_path / "b.ogg").write_bytes(one + one)
    assert len(load_audio(tmp_path / "b.ogg")) >= 2 * 1601


@pytest.mark.parametrize("kind", ["AU", "RF64", "W64", "SVX", "AIFF", "FLAC", "CAF"])
def test_other_formats_that_end_early_are_refused(kind: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=1601) * 0.1
    soundfile.write(tmp_path / "a", noise, 16_000, format=kind, subtype="PCM_16")
    assert len(load_audio(tmp_path / "a")) == 1601
    (tmp_path / "b").write_bytes((tmp_path / "a").read_bytes()[:-1500])
    with pytest.raises(InputError, match=rf"{tmp_path / 'b'}( is truncated| \(expected WAV).*") as caught:
        load_audio(tmp_path / "b")
    assert "object at" not in str(caught.value)


@pytest.mark.parametrize(("kind", "place", "size"), [("AU", 8, 4), ("W64", 16, 8), ("FLAC", 22, 4)])
def test_sizes_that_a_pipe_never_filled_in(kind: str, place: int, size: int, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a", TONE, 16_000, format=kind, subtype="PCM_16")
    content = bytearray((tmp_path / "a").read_bytes())
    content[place : place + size] = (b"\0" if kind == "FLAC" else b"\xff") * size
    (tmp_path / "a").write_bytes(content)
    assert len(load_audio(tmp_path / "a")) == 1601
    (tmp_path / "rows.csv").write_text("audio,text\na,x\n")
    assert len(Manifest(tmp_path / "rows.csv")) == len(Manifest(tmp_path / "rows.csv", check="headers")) == 1


@pytest.mark.parametrize("size", [0, 2**64 - 1, 2**63 - 1])
@pytest.mark.parametrize(("kind", "field", "width"), [("AU", 8, 4), ("RF64", 28, 8), ("CAF", -8, 8), ("RIFX", 40, 4)])
def test_sizes_that_were_left_open_are_read_to_the_end(
    kind: str, field: int, width: int, size: int, tmp_path: Path
) -> None:
    how = {"format": "WAV", "endian": "BIG"} if kind == "RIFX" else {"format": kind}
    soundfile.write(tmp_path / "a", TONE, 16_000, subtype="PCM_16", **how)
    content = bytearray((tmp_path / "a").read_bytes())
    place = content.find(b"data") + 4 if kind == "CAF" else field
    content[place : place + width] = (size >> 8 * (8 - width)).to_bytes(width, "big")
    (tmp_path / "b").write_bytes(content)
    torch.testing.assert_close(load_audio(tmp_path / "b"), load_audio(tmp_path / "a"), rtol=0, atol=0)


@pytest.mark.parametrize("size", [2000, 3000])
def test_samples_behind_the_end_that_their_header_gives_are_refused(size: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"has {size:,} bytes of samples by its header, and {3202 - size:,} bytes of"):
        load_audio(wav(tmp_path, data=size))
    for more in (bytes(9000), b"TAG" + bytes(125), b"\xff" * 100, b"LIST\xff\0\0\0abc"):  # none of them is in the RIFF
        assert len(load_audio(wav(tmp_path, more=more))) == 1601


@pytest.mark.parametrize("name", [b"PEAK", b"smpl", b"cue ", b"inst", b"LIST", b"bext"])
@pytest.mark.parametrize("place", [12, 36, 3246])
def test_damaged_metadata_of_a_wav_do_not_cost_its_samples(name: bytes, place: int, tmp_path: Path) -> None:
    content = wav(tmp_path).read_bytes()
    content = content[:place] + name + b"\x1c\0\0\0" + b"\1" * 28 + content[place:]
    (tmp_path / "c.wav").write_bytes(content[:4] + (len(content) - 8).to_bytes(4, "little") + content[8:])
    torch.testing.assert_close(load_audio(tmp_path / "c.wav"), torch.from_numpy(TONE), atol=1e-4, rtol=0)
    assert name in (tmp_path / "c.wav").read_bytes()  # the file stays as it is


def test_what_follows_a_flac_is_no_damage(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=16_000) * 0.1
    soundfile.write(tmp_path / "a.flac", noise, 16_000)
    one = (tmp_path / "a.flac").read_bytes()
    for tail in (b"TAG" + bytes(125), b"APETAGEX" + bytes(24), bytes(512), b"stray"):
        (tmp_path / "b.flac").write_bytes(one + tail)
        assert torch.equal(load_audio(tmp_path / "b.flac"), load_audio(tmp_path / "a.flac"))
        (tmp_path / "b.flac").write_bytes(one[:-900] + tail)
        with pytest.raises(InputError, match=r"truncated|lost sync"):
            load_audio(tmp_path / "b.flac")
    (tmp_path / "b.flac").write_bytes(one + one)
    assert len(load_audio(tmp_path / "b.flac")) == 2 * 16_000
    (tmp_path / "b.flac").write_bytes(one[:22] + bytes(4) + one[26:])  # from a pipe: its head says no length
    assert len(load_audio(tmp_path / "b.flac")) == 16_000


def test_every_stream_of_a_chained_mp3_is_read(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.mp3", np.tile(TONE, 20), 16_000, bitrate_mode="CONSTANT", compression_level=0.5)
    one = (tmp_path / "a.mp3").read_bytes()
    bare = one[one.find(one[:3], 1) :]  # without the frame that says how long it is
    tag = b"ID3\x04\0\0\0\0\7\x68" + bytes(1000)
    (tmp_path / "bare.mp3").write_bytes(bare)
    alone = len(load_audio(tmp_path / "bare.mp3"))
    for content, length in (
        (one + one, 2 * 32_020), (tag + one + tag + one + one, 3 * 32_020), (one + b"TAG" + bytes(125), 32_020),
        (one + bare, 32_020 + alone), (one + tag + bare, 32_020 + alone), (one + tag * 9, 32_020),
    ):  # fmt: skip
        (tmp_path / "b.mp3").write_bytes(content)
        assert len(load_audio(tmp_path / "b.mp3")) == length


def test_an_mp3_without_a_head_is_read_to_its_end(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=48_000) * 0.3
    wave = np.concatenate([noise, np.zeros(160_000), noise])  # the rate of the first frame is not that of the others
    for rate, channels in ((16_000, 1), (48_000, 2)):
        soundfile.write(tmp_path / "a.mp3", np.stack([wave] * channels, 1), rate, bitrate_mode="VARIABLE")
        one = (tmp_path / "a.mp3").read_bytes()
        bare = one[one.find(one[:2], 200) :]
        for content in (bare, b"ID3\x04\0\0\0\0\7\x68" + bytes(1000) + bare, bare + b"TAG" + bytes(125)):
            (tmp_path / "b.mp3").write_bytes(content)
            assert abs(len(load_audio(tmp_path / "b.mp3")) - len(wave) * 16_000 / rate) < 2_400  # and a coder's delay


def test_an_mp3_that_ends_early_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.mp3", np.tile(TONE, 20), 16_000)
    one = (tmp_path / "a.mp3").read_bytes()
    bare = one[one.find(one[:2], 200) :]
    for content in (one[:-500], one[: len(one) // 2], bare[: len(bare) // 2 + 7]):
        (tmp_path / "b.mp3").write_bytes(content)
        with pytest.raises(
            InputError, match=r"b\.mp3 is truncated: its (head says [\d,]+ bytes|last frame is not whole)"
        ):
            load_audio(tmp_path / "b.mp3")


@pytest.mark.parametrize("lost", [800, 9000])
def test_an_mp3_that_lacks_frames_in_its_middle_is_refused(lost: int, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.mp3", np.tile(TONE, 40), 16_000, bitrate_mode="CONSTANT", compression_level=0.5)
    content = bytearray((tmp_path / "a.mp3").read_bytes())
    half = len(content) // 2
    content[half : half + lost] = bytes(lost)
    (tmp_path / "b.mp3").write_bytes(content)
    with pytest.raises(InputError, match=r"b\.mp3 (is truncated or damaged: header says 64040 frames, file has|\(exp)"):
        load_audio(tmp_path / "b.mp3")


def riff(form: bytes, data: bytes, more: bytes = b"") -> bytes:
    """A WAV from the two chunks that it needs, and more behind its format."""
    chunks = [(b"fmt ", form + more), (b"data", data)]
    content = b"WAVE" + b"".join(name + struct.pack("<I", len(part)) + part for name, part in chunks)
    return b"RIFF" + struct.pack("<I", len(content)) + content


def test_an_mp3_inside_a_wav_is_read_to_its_end(tmp_path: Path) -> None:
    wave = np.concatenate([np.zeros(160_000), np.random.default_rng(0).normal(size=48_000) * 0.3])
    for samples in (wave, wave[::-1]):  # the rate of the first frame is not that of the others
        soundfile.write(tmp_path / "a.mp3", samples, 16_000, bitrate_mode="VARIABLE")
        one = (tmp_path / "a.mp3").read_bytes()
        bare = one[one.find(one[:2], 200) :]
        head = struct.pack("<HHIIHH", 0x55, 1, 16_000, 4000, 1, 0)
        (tmp_path / "b.wav").write_bytes(riff(head, bare, struct.pack("<HHIHHH", 12, 1, 2, 576, 1, 1393)))
        assert abs(len(load_audio(tmp_path / "b.wav")) - len(wave)) < 2_400  # a coder's delay
        (tmp_path / "b.wav").write_bytes((tmp_path / "b.wav").read_bytes()[:-100])
        with pytest.raises(InputError, match=r"b\.wav is truncated: its data chunk says"):
            load_audio(tmp_path / "b.wav")


@pytest.mark.parametrize(
    "name", [b".snd", b"dns.", b"RIFF", b"RF64", b"BW64", b"FORM", b"caff", b"fLaC", b"ID3\4", b"OggS"]
)
def test_the_beginning_of_a_header_is_refused(name: bytes, tmp_path: Path) -> None:
    for length in range(4, 30):
        (tmp_path / "a").write_bytes((name + bytes([0, 0, 0, 6]) + b"\xff" * 30)[:length])
        with pytest.raises(InputError, match=r"truncated|cannot decode"):
            load_audio(tmp_path / "a")


def test_a_text_that_is_too_long_for_a_path_is_refused() -> None:
    with pytest.raises(InputError, match="is too long for a path"):
        load_audio("a" * 5000)


def test_a_wav_whose_samples_are_padded_is_refused(tmp_path: Path) -> None:
    for channels in (1, 2):
        head = struct.pack("<HHIIHH", 1, channels, 16_000, 64_000 * channels, 4 * channels, 24)
        (tmp_path / "a.wav").write_bytes(riff(head, bytes(range(256)) * 8))
        with pytest.raises(InputError, match=r"expected 3 bytes for a sample of 24 bits, got 4 in .*a\.wav"):
            load_audio(tmp_path / "a.wav")


def test_bw64_is_read_as_rf64(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", TONE, 16_000, format="RF64")
    (tmp_path / "b.wav").write_bytes(b"BW64" + (tmp_path / "a.wav").read_bytes()[4:])
    assert torch.equal(load_audio(tmp_path / "b.wav"), load_audio(tmp_path / "a.wav"))
    (tmp_path / "b.wav").write_bytes((tmp_path / "b.wav").read_bytes()[:-900])
    with pytest.raises(InputError, match="is truncated"):
        load_audio(tmp_path / "b.wav")


@pytest.mark.parametrize(("first", "codec"), [(b"\x7fFLAC\1\0", "FLAC"), (b"Speex   1.2", "Speex")])
def test_ogg_with_a_codec_that_is_not_read_is_told_by_its_name(first: bytes, codec: str, tmp_path: Path) -> None:
    page = bytearray(b"OggS\0\6" + bytes(20) + bytes([1, 80]) + first.ljust(80, b"\0"))
    page[22:26] = checksum(page).to_bytes(4, "little")
    (tmp_path / "a.ogg").write_bytes(page)
    with pytest.raises(InputError, match=rf"expected Vorbis or Opus inside Ogg, got {codec} in .*ffmpeg -i a\.ogg a\."):
        load_audio(tmp_path / "a.ogg")


def test_large_finite_samples_are_not_called_infinite() -> None:
    with pytest.raises(InputError, match=r"expected samples in about -1…1, got a peak of 1e\+39"):
        load_audio((np.full(1600, 1e39), 16_000))


@pytest.mark.parametrize("samples", [1, 4096, 15_999])
def test_a_flac_whose_header_says_too_few_samples_is_read_to_its_end(samples: int, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", np.random.default_rng(0).normal(size=16_000) * 0.1, 16_000)
    one = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "b.flac").write_bytes(one[:22] + samples.to_bytes(4, "big") + one[26:])
    torch.testing.assert_close(load_audio(tmp_path / "b.flac"), load_audio(tmp_path / "a.flac"))
    (tmp_path / "b.flac").write_bytes((tmp_path / "b.flac").read_bytes()[:-900])
    with pytest.raises(InputError, match=r"b\.flac .*lost sync"):
        load_audio(tmp_path / "b.flac")


def test_many_channels_are_decoded_in_small_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, read = list[int](), Sequential.read

    def watched(file: Sequential, frames: int, **how: Any) -> np.ndarray:
        sizes.append(frames * file.channels)
        return read(file, frames, **how)

    monkeypatch.setattr(Sequential, "read", watched)
    soundfile.write(tmp_path / "a.wav", np.full((16, 1000), 0.5), 16_000)
    torch.testing.assert_close(load_audio(tmp_path / "a.wav"), torch.full((16,), 0.5), atol=1e-4, rtol=0)
    assert max(sizes) <= BLOCK


def checksum(page: bytes) -> int:
    """The CRC of an Ogg page, RFC 3533 section 6."""
    found = 0
    for byte in page:
        found ^= byte << 24
        for _ in range(8):
            found = (found << 1 ^ (0x04C11DB7 if found & 0x80000000 else 0)) & 0xFFFFFFFF
    return found


def test_a_compressed_wav_that_cannot_seek(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "gsm.wav", TONE, 8_000, subtype="GSM610")
    found = load_audio(tmp_path / "gsm.wav", 8_000)
    assert len(found) >= 1601 and np.corrcoef(found[:1601], TONE)[0, 1] > 0.95


SIXTEEN = [100, 2000, -3000, 32767, -32768] * 400


@pytest.mark.parametrize(
    "samples",
    [SIXTEEN, array.array("h", SIXTEEN), *[np.array(SIXTEEN, dtype=kind) for kind in ("i2", ">i2", "i4", "i8")],
     torch.tensor(SIXTEEN), np.array(SIXTEEN, dtype="i4") * 65536],
)  # fmt: skip
def test_integers_are_scaled_by_what_they_mean(samples: Any) -> None:
    torch.testing.assert_close(load_audio((samples, 16_000)), torch.tensor(SIXTEEN) / 32768)


def test_integers_that_may_mean_two_things_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"expected 16-bit or 32-bit samples, got torch.int32 with a peak of 2,000,000"
    ):
        load_audio((np.array([2_000_000, -5] * 400, dtype=np.int32), 16_000))
    with pytest.raises(InputError, match=r"peak of 5,000,000,000. Pass floats"):
        load_audio(([5_000_000_000, 1] * 400, 16_000))


@pytest.mark.parametrize("kind", ["uint16", "uint32", "uint64"])
def test_unsigned_integers_that_do_not_say_where_silence_is_are_refused(kind: str) -> None:
    with pytest.raises(ShapeError, match=rf"expected floats, signed integers or uint8, got .* {kind}\. Subtract"):
        load_audio((np.full(1600, 32_768, dtype=kind), 16_000))
    with pytest.raises(ShapeError, match="uint16"):
        load_audio((array.array("H", [32_768] * 1600), 16_000))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_raw_bytes_are_no_samples(kind: type) -> None:
    with pytest.raises(TypeError, match=r"got raw bytes\. numpy\.frombuffer"):
        load_audio((kind(np.full(1600, 100, dtype=np.int16).tobytes()), 16_000))


def test_tensors_that_nothing_can_be_computed_with_are_refused(recwarn: pytest.WarningsRecorder) -> None:
    one = torch.full((3, 40, 50), 0.1)
    for odd, fix in (
        (one.to(torch.float8_e4m3fn), r"float8_e4m3fn: pass x\.float"), (one.to_sparse(), r"sparse: pass x\.to_dense"),
        (torch.quantize_per_tensor(one, 0.1, 0, torch.qint8), r"quantized: pass x\.dequantize"),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=f"load_audio: expected an array of numbers, got Tensor .{fix}"):
            load_audio((odd[0], 16_000))
        with pytest.raises(TypeError, match=f"load_image: expected an array of numbers, got Tensor .{fix}"):
            load_image(odd)
    for odd, fix in (
        (torch.nested.nested_tensor([one, one]), "nested: pass one of"), (np.ma.masked_array(one), "its mask has no"),
    ):  # fmt: skip
        for load in (load_image, lambda each: load_audio((each, 16_000))):
            with pytest.raises(TypeError, match=f"expected an array of numbers, got .*{fix}"):
                load(odd)
    with pytest.raises(ShapeError, match=r"got \(\) float64"):
        load_audio((np.array(0.5), 16_000))


def test_channels_that_cancel_and_a_constant_have_their_own_message(tmp_path: Path) -> None:
    both = np.stack([TONE, -TONE])
    soundfile.write(tmp_path / "both.wav", both.T, 16_000)
    for source in ((both, 16_000), tmp_path / "both.wav"):
        with pytest.raises(InputError, match="cancel each other out"):
            load_audio(source)
    with pytest.raises(InputError, match=r"every sample of the recording is 0.3 \(a constant, DC\)"):
        load_speech((np.full(1600, 0.3), 16_000))
    soundfile.write(tmp_path / "still.wav", np.zeros(1600), 16_000)
    with pytest.raises(InputError, match=r"still\.wav is silent"):
        load_speech(tmp_path / "still.wav")


def test_what_is_not_audio_is_refused(tmp_path: Path) -> None:
    one = np.full(1600, 0.1)
    with pytest.raises(ValueError, match="rate"):
        load_audio((one, 16_000.5))
    with pytest.raises(ValueError, match="rate"):
        load_audio((one, 0))
    with pytest.raises(ValueError, match="no samples"):
        load_audio((one[:0], 16_000))
    with pytest.raises(ValueError, match="silent"):
        check_not_silent(torch.zeros(5))
    flac = io.BytesIO()
    soundfile.write(flac, np.random.default_rng(0).normal(size=16_000) * 0.1, 16_000, format="FLAC")
    (tmp_path / "cut.flac").write_bytes(flac.getvalue()[: len(flac.getvalue()) // 2])
    with pytest.raises(ValueError, match=r"truncated|decode"):
        load_audio(tmp_path / "cut.flac")


def test_silence_around_speech_is_cut_off() -> None:
    speech = torch.sin(torch.arange(8000) * 0.2) * torch.linspace(1, 0.02, 8000)
    speech[2000:4000] = 0  # a pause stays
    noise = torch.randn(8000 + 3000 + 5000, generator=torch.Generator().manual_seed(0)) * 0.0005
    for wav in (torch.nn.functional.pad(speech, (3000, 5000)), torch.nn.functional.pad(speech, (3000, 5000)) + noise):
        kept, rate = load_speech((wav, 16_000))
        assert rate == 16_000 and 8000 <= len(kept) <= 8000 + 4 * 160  # 10 ms at each end, and up to 10 ms of a window
        start = int(kept.abs().gt(0.1).nonzero()[0])
        assert 0 <= start <= 2 * 160 and torch.equal(kept, wav[3000 - start + 1 :][: len(kept)])
    assert torch.equal(load_speech((speech, 16_000))[0], speech)
    click = torch.zeros(1000)
    click[500] = 0.5
    assert len(load_speech((click, 16_000))[0]) == 3 * 160
    with pytest.raises(ValueError, match="silent"):
        load_speech((torch.zeros(16_000), 16_000))


def test_a_dark_image_of_sixteen_bits_stays_dark(tmp_path: Path) -> None:
    dark = Image.fromarray(np.full((224, 224), 200, dtype=np.uint16))
    assert float(load_image(save(dark, tmp_path / "dark.png")).max()) < 0.01
    bright = Image.fromarray(np.full((224, 224), 0.5, dtype=np.float32), mode="F")
    torch.testing.assert_close(load_image(bright), torch.full((3, 224, 224), 0.5), atol=0.01, rtol=0)
    with pytest.raises(ValueError, match="NaN"):
        load_image(Image.fromarray(np.full((224, 224), np.nan, dtype=np.float32), mode="F"))


def test_eight_bit_samples_have_their_silence_in_the_middle() -> None:
    wave = load_audio((np.array([0, 128, 255] * 600, dtype=np.uint8), 16_000))
    torch.testing.assert_close(wave[:3], torch.tensor([-1.0, 0.0, 127 / 128]))
    with pytest.raises(ValueError, match="Divide 16-bit samples by 32768"):
        load_audio((np.full(1600, 3000.0), 16_000))
    reversed_rows = np.arange(1600, dtype=">f4")[::-1] / 1600
    torch.testing.assert_close(load_audio((reversed_rows, 16_000)), torch.arange(1600).flip(0) / 1600)


def test_an_odd_rate_takes_neither_memory_nor_the_pitch() -> None:
    rate = 44_101
    tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate) * 0.5
    want = torch.sin(2 * torch.pi * 440 * torch.arange(16_000) / 16_000) * 0.5
    wave = load_audio((tone, rate))
    assert wave.shape == (16_000,) and float((wave - want)[500:-500].abs().max()) < 0.02


def test_files_that_lie_about_their_length(tmp_path: Path) -> None:
    whole = io.BytesIO()
    soundfile.write(whole, np.random.default_rng(0).normal(size=(16_000,)) * 0.1, 16_000, format="OGG")
    (tmp_path / "cut.ogg").write_bytes(whole.getvalue()[: len(whole.getvalue()) * 2 // 3])
    with pytest.raises(ValueError, match="truncated"):
        load_audio(tmp_path / "cut.ogg")
    # a stream's head says "as long as can be": what is there is what there is
    wav = io.BytesIO()
    soundfile.write(wav, np.full(1600, 0.1), 16_000, format="WAV", subtype="PCM_16")
    head = bytearray(wav.getvalue())
    head[4:8] = head[40:44] = b"\xff\xff\xff\xff"
    (tmp_path / "stream.wav").write_bytes(head)
    assert load_audio(tmp_path / "stream.wav").shape == (1600,)
    (tmp_path / "long.wav").write_bytes(b"")
    soundfile.write(tmp_path / "long.wav", np.zeros(1000 * 1801, dtype=np.int16), 1000)
    with pytest.raises(ValueError, match="longer than 30 minutes"):
        load_audio(tmp_path / "long.wav")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "TGA"])
def test_damage_anywhere_is_read_or_refused_with_our_message(format: str, tmp_path: Path) -> None:
    good = io.BytesIO()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(good, format)
    for trial in range(60):
        data = bytearray(good.getvalue())
        for place in rng.integers(0, len(data) if trial % 2 else 64, 4):
            data[place] = rng.integers(0, 256)
        (tmp_path / "damaged").write_bytes(data)
        try:
            assert load_image(tmp_path / "damaged").shape == (3, 224, 224)
        except ValueError as error:
            assert "load_image" in str(error)


def chunk(kind: bytes, data: bytes, damage: int = 0) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + (zlib.crc32(kind + data) ^ damage).to_bytes(4, "big")


BOMB = zlib.compress(bytes(100_000_000))
METADATA = {
    "EXIF of no kind": chunk(b"eXIf", b"garbage" * 5),
    "EXIF that points out of itself": chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 50),
    "EXIF with a wrong checksum": chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0", damage=1),
    "text that cannot be unpacked": chunk(b"zTXt", b"Comment\0\0not zlib"),
    "text that fills the memory": chunk(b"zTXt", b"Comment\0\0" + BOMB),
    "international text that fills the memory": chunk(b"iTXt", b"Comment\0\x01\0en\0x\0" + BOMB),
    "a profile that fills the memory": chunk(b"iCCP", b"name\0\0" + BOMB),
    "an empty profile": chunk(b"iCCP", b""),
    "70 MB of text": chunk(b"tEXt", b"Comment\0" + b"a" * 70_000_000),
    "text with a wrong checksum": chunk(b"tEXt", b"Comment\0hello", damage=1),
    "short chunks": b"".join(chunk(kind, b"\1") for kind in (b"gAMA", b"cHRM", b"pHYs", b"sRGB", b"acTL", b"tIME")),
}


@pytest.mark.parametrize("name", METADATA)
def test_damaged_metadata_of_a_png_does_not_cost_its_pixels(name: str, tmp_path: Path) -> None:
    stripes = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3))
    whole = save(stripes, tmp_path / "a.png").read_bytes()
    for place in (33, len(whole) - 12):  # behind IHDR, before IEND
        (tmp_path / "b.png").write_bytes(whole[:place] + METADATA[name] + whole[place:])
        torch.testing.assert_close(load_image(tmp_path / "b.png", 64), load_image(stripes, 64), rtol=0, atol=0)


def test_damaged_pixels_of_a_png_are_refused(tmp_path: Path) -> None:
    whole = save(Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)), tmp_path / "a.png")
    data = bytearray(whole.read_bytes())
    data[data.find(b"IDAT") + 20] ^= 255
    for content in (data, whole.read_bytes()[:-60]):
        (tmp_path / "b.png").write_bytes(content)
        with pytest.raises(InputError, match=r"b\.png: damaged or truncated"):
            load_image(tmp_path / "b.png")


def png(bits: int, kind: int, rows: bytes, *chunks: bytes, size: int = 64, interlaced: int = 0) -> bytes:
    """A PNG of size × size pixels from its unpacked rows."""
    head = size.to_bytes(4, "big") * 2 + bytes([bits, kind, 0, 0, interlaced])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(chunks) + chunk(b"IDAT", zlib.compress(rows)) + END


END = chunk(b"IEND", b"")


def test_what_a_png_lacks_is_not_black(tmp_path: Path) -> None:
    grey, passes = (b"\0" + b"\x80" * 64) * 64, [(8, 8), (8, 8), (16, 8), (16, 16), (32, 16), (32, 32), (64, 32)]
    adam7 = b"".join((b"\0" + b"\x80" * columns) * rows for columns, rows in passes)
    for rows, interlaced in ((grey, 0), (adam7, 1)):
        (tmp_path / "a.png").write_bytes(png(8, 0, rows, interlaced=interlaced))
        torch.testing.assert_close(load_image(tmp_path / "a.png", 64), torch.full((3, 64, 64), 128 / 255))
        (tmp_path / "a.png").write_bytes(png(8, 0, rows[:-65], interlaced=interlaced))
        with pytest.raises(InputError, match=rf"damaged or truncated \(its header says {len(rows):,} bytes of pixels"):
            load_image(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(png(1, 0, b"\0\xff" * 3, size=3, interlaced=0))
    assert load_image(tmp_path / "a.png", 3).min() == 1
    (tmp_path / "a.png").write_bytes(png(1, 0, b"\0\xff" * 6, size=3, interlaced=1))  # some passes are empty
    assert load_image(tmp_path / "a.png", 3).min() == 1
    (tmp_path / "a.png").write_bytes(png(8, 3, grey))
    with pytest.raises(InputError, match="it has no palette"):
        load_image(tmp_path / "a.png")


def test_a_transparent_colour_of_sixteen_bits(tmp_path: Path) -> None:
    half = (b"\0" + b"\x12\x34" * 32 + b"\x12\x35" * 32) * 64
    (tmp_path / "a.png").write_bytes(png(16, 0, half, chunk(b"tRNS", b"\x12\x34")))
    found = load_image(tmp_path / "a.png", 64)
    assert found[:, :, :32].min() == 1 and found[:, :, 32:].max() < 0.1
    (tmp_path / "a.png").write_bytes(png(16, 2, (b"\0" + b"\x12" * 384) * 64, chunk(b"tRNS", b"\x12" * 6)))
    with pytest.raises(InputError, match=r"got 16 bits in .*a\.png\. Save it with an alpha channel"):
        load_image(tmp_path / "a.png")


def test_what_follows_a_webp_is_not_read(tmp_path: Path) -> None:
    whole = save(Image.new("RGB", (64, 64), "red"), tmp_path / "a.webp", lossless=True).read_bytes()
    for tail in (b"j" * 8, b"junk" * 50, bytes(100)):
        (tmp_path / "b.webp").write_bytes(whole + tail)
        assert torch.equal(load_image(tmp_path / "b.webp", 64), load_image(tmp_path / "a.webp", 64))


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_damaged_exif_of_other_formats(kind: str, tmp_path: Path) -> None:
    for exif in (b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\xff\x06\0\0\0"):
        save(Image.new("RGB", (64, 64), "red"), tmp_path / "a", format=kind, exif=exif)
        assert load_image(tmp_path / "a", 64)[0].min() > 0.9


def segment(number: int, data: bytes) -> bytes:
    """An APP segment of JPEG."""
    return bytes([0xFF, 0xE0 + number]) + (len(data) + 2).to_bytes(2, "big") + data


SEGMENTS = {
    "a profile that is cut": segment(2, b"ICC_PROFILE\0"),
    "a short Adobe segment": segment(14, b"Adobe"),
    "a short JFIF segment": segment(0, b"JFIF\0"),
    "Photoshop": segment(13, b"Photoshop 3.0\0" + b"8BIM" + b"\xff" * 20),
    "several images": segment(2, b"MPF\0II*\0\xff\xff\xff\xff"),
    "XMP that is no XML": segment(1, b"http://ns.adobe.com/xap/1.0/\0<x"),
    "EXIF of no kind": segment(1, b"Exif\0\0" + b"\xff" * 100),
    "an empty comment": b"\xff\xfe\0\2",
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_damaged_metadata_of_a_jpeg_does_not_cost_its_pixels(name: str, tmp_path: Path) -> None:
    whole = save(Image.new("RGB", (64, 64), "red"), tmp_path / "a.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes(whole[:2] + SEGMENTS[name] + whole[2:])
    assert torch.equal(load_image(tmp_path / "b.jpg", 64), load_image(tmp_path / "a.jpg", 64))
    data = whole[:2] + SEGMENTS[name] + whole[2:]
    (tmp_path / "b.jpg").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(InputError, match=r"b\.jpg: damaged or truncated"):
        load_image(tmp_path / "b.jpg")


@pytest.mark.parametrize("damage", ["cut", "longer than the file"])
def test_damaged_metadata_of_a_webp_does_not_cost_its_pixels(damage: str, tmp_path: Path) -> None:
    stripes = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3))
    whole = bytearray(save(stripes, tmp_path / "a.webp", lossless=True, exif=b"Exif\0\0" + bytes(40)).read_bytes())
    place = whole.find(b"EXIF")
    if damage == "cut":
        del whole[place + 20 :]
    else:
        whole[place + 4 : place + 8] = b"\xff\xff\xff\x0f"
    (tmp_path / "b.webp").write_bytes(whole)
    assert torch.equal(load_image(tmp_path / "b.webp", 64), load_image(stripes, 64))
    (tmp_path / "b.webp").write_bytes(whole[: place - 30])
    with pytest.raises(InputError, match=r"b\.webp: damaged or truncated"):
        load_image(tmp_path / "b.webp")


@pytest.mark.parametrize("tag", [270, 305, 34675])
@pytest.mark.parametrize(("place", "value"), [(8, b"\xff\xff\xff\x7f"), (4, b"\xff\xff\xff\x7f"), (2, b"\x63\0")])
def test_damaged_metadata_of_a_tiff_does_not_cost_its_pixels(
    tag: int, place: int, value: bytes, tmp_path: Path
) -> None:
    stripes = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3))
    tags = {270: "a description" * 9, 305: "a program" * 9, 34675: b"a profile"}
    data = bytearray(save(stripes, tmp_path / "a.tiff", tiffinfo=tags).read_bytes())
    start = int.from_bytes(data[4:8], "little") + 2
    entry = next(at for at in range(start, len(data), 12) if int.from_bytes(data[at : at + 2], "little") == tag)
    data[entry + place : entry + place + len(value)] = value
    (tmp_path / "b.tiff").write_bytes(data)
    assert torch.equal(load_image(tmp_path / "b.tiff", 64), load_image(stripes, 64))


def tiff(bits: int, data: bytes, kind: int = 1, white: int = 1, channels: int = 1, packed: int = 1) -> bytes:
    """A TIFF of 64 × 64 pixels; 0 is white where `white` is 0."""
    tags = {
        256: 64,
        257: 64,
        258: bits,
        259: packed,
        262: white,
        273: 8,
        277: channels,
        278: 64,
        279: len(data),
        339: kind,
    }
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag == 279 else 3, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_whose_0_is_white(bits: int, tmp_path: Path) -> None:
    half = bytes(64 * 32 * bits // 8) + b"\xff" * (64 * 32 * bits // 8)
    for white in (0, 1):
        (tmp_path / "a.tif").write_bytes(tiff(bits, half, white=white))
        for found in (load_image(tmp_path / "a.tif", 64), load_image(Image.open(tmp_path / "a.tif"), 64)):
            assert found[:, :32].unique().tolist() == [1 - white] and found[:, 32:].unique().tolist() == [white]


@pytest.mark.parametrize(
    ("what", "said"),
    [({"bits": 12}, "12 bits, unsigned"), ({"bits": 16, "kind": 2}, "16 bits, signed"), ({"bits": 64}, "64 bits"),
     ({"bits": 32}, "32 bits, unsigned"), ({"bits": 32, "kind": 2}, "32 bits, signed"),
     ({"bits": 16, "kind": 3}, "16 bits, float"), ({"bits": 64, "kind": 3}, "64 bits, float"),
     ({"bits": 32, "kind": 3, "white": 0}, "32 bits, float, 0 as white"),
     ({"bits": 32, "channels": 3, "white": 2}, "32 bits"), ({"bits": 32, "kind": 3, "channels": 3}, "32 bits")],
)  # fmt: skip
def test_depths_of_a_tiff_that_would_be_read_wrongly_are_refused(
    what: dict[str, Any], said: str, tmp_path: Path
) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(data=bytes(64 * 64 * 8 * 3), **what))
    with pytest.raises(
        InputError, match=rf"expected 8 or 16 bits a channel, unsigned, got {said}.* in .*Save it as PNG"
    ):
        load_image(tmp_path / "a.tif")


def test_floats_of_a_tiff_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(32, struct.pack("<f", 0.5) * 64 * 64, kind=3))
    torch.testing.assert_close(load_image(tmp_path / "a.tif", 64), torch.full((3, 64, 64), 0.5), atol=0.01, rtol=0)


def test_a_deflated_tiff_with_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    packed = zlib.compress(bytes(range(64)) * 64)
    (tmp_path / "a.tif").write_bytes(tiff(8, packed, packed=8))
    assert load_image(tmp_path / "a.tif", 64).max() == 63 / 255
    (tmp_path / "a.tif").write_bytes(tiff(8, packed[:-1] + bytes([packed[-1] ^ 1]), packed=8))
    with pytest.raises(InputError, match=r"damaged or truncated .*incorrect data check"):
        load_image(tmp_path / "a.tif")


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff"])
def test_exif_says_which_side_is_up_in_every_format(kind: str, tmp_path: Path) -> None:
    halves = Image.new("RGB", (64, 64), "white")
    halves.paste("black", (0, 0, 64, 32))  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    exif[0x010E] = "a description"
    found = load_image(save(halves, tmp_path / "a", format=kind, exif=exif), 64)
    assert found[:, 40:].max() < 0.1 and found[:, :24].min() > 0.9


def test_an_image_of_a_known_kind_that_cannot_be_opened_is_damaged(tmp_path: Path) -> None:
    whole = bytearray(save(Image.new("P", (64, 64)), tmp_path / "a.png").read_bytes())
    broken = bytearray(whole)
    broken[29] ^= 1  # the checksum of the header
    place = whole.find(b"IDAT") - 4
    for content in (broken, whole[:place] + chunk(b"tRNS", b"\xff" * 999) + whole[place:]):
        (tmp_path / "b.png").write_bytes(content)
        with pytest.raises(InputError, match=r"cannot decode image .*b\.png: damaged or truncated"):
            load_image(tmp_path / "b.png")
    (tmp_path / "b.png").write_bytes(b"<svg/>")
    with pytest.raises(InputError, match=r"cannot decode image .*b\.png \(expected PNG"):
        load_image(tmp_path / "b.png")
