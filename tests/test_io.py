"""Images and audio of every kind are read, or refused with a clear message."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from tinyomni.dry_run import IMAGE
from tinyomni.io import check_not_silent, load_audio, load_image, load_speech


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
