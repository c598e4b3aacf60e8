"""Speech that is heard while it is written: the same spectrogram and words as the whole, piece by piece."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tinyomni import Omni, SpeechCodec
from tinyomni.cli import main
from tinyomni.codec import PostNet, stream_mel
from tinyomni.dry_run import AUDIO
from tinyomni.errors import InputError
from tinyomni.io import load_audio, playback
from tinyomni.vocoder import GAIN, GriffinLimVocoder, StreamingVocoder, from_log, soft_clip

TEXTS = ("Yes.", "I do not know.", "There is a small grey ring at the top.")


@pytest.fixture(scope="module")
def omni() -> Omni:
    return Omni.from_pretrained().eval()


def test_the_mel_spectrogram_is_that_of_the_whole() -> None:
    torch.manual_seed(0)
    codec = SpeechCodec()
    torch.nn.init.normal_(codec.neighbours.out.weight, std=0.3)
    codes = torch.randint(0, 128, (1, 9, 2))
    to_mel = lambda part: codec.to_mel(codec.rvq.decode(part))  # noqa: E731
    with torch.no_grad():
        whole, pieces = to_mel(codes)[0], torch.cat(list(stream_mel(codes[0], to_mel, PostNet.REACH)))
        torch.testing.assert_close(pieces, whole)
        short = torch.cat(list(stream_mel(codes[0], to_mel, PostNet.REACH - 1)))
    assert not torch.allclose(short, whole)  # the reach is what the post-net needs


def test_sound_is_there_four_frames_behind_the_codes(omni: Omni) -> None:
    codes, asked = omni.speech_codes(TEXTS[2])[0], 0

    def frames() -> Iterator[Tensor]:
        nonlocal asked
        for frame in codes:
            asked += 1
            yield frame

    pieces = omni.codec.stream(frames())
    assert len(next(pieces)) == 1280 and asked == 5
    assert len(next(pieces)) == 1280 and asked == 6
    assert [len(piece) for piece in pieces] == [1280] * (len(codes) - 2)


def test_a_codec_of_single_frames_waits_for_none_behind_them() -> None:
    codec, asked = SpeechCodec(single_frame=True), 0

    def frames() -> Iterator[Tensor]:
        nonlocal asked
        for frame in torch.randint(0, 128, (5, 2)):
            asked += 1
            yield frame

    pieces = codec.stream(frames())
    assert len(next(pieces)) == 1280 and asked == 2  # the vocoder's one
    assert sum(map(len, pieces)) == 4 * 1280 and asked == 5


@pytest.mark.parametrize("text", TEXTS)
def test_a_stream_is_as_good_as_the_whole(omni: Omni, text: str) -> None:
    whole, stream = omni.speak(text), torch.cat(list(omni.speak(text, stream=True)))
    assert stream.shape == whole.shape and stream.abs().max() <= 1
    assert (stream.abs() > 0.8).float().mean() < 1e-3  # hardly any sample is so loud that it is compressed
    with torch.no_grad():
        target = omni.codec.to_mel(omni.codec.rvq.decode(omni.speech_codes(text)))[0]
        audible = target > target.max() - 6

        def error(wave: Tensor) -> float:
            difference = omni.codec.mel(wave[None])[0] - target
            return float((difference - difference.median()).abs()[audible].mean())  # whatever the level

        assert error(stream) < 1.1 * error(whole)
    said = ["".join(omni.transcribe((wave.numpy(), 16_000))) for wave in (whole, stream)]
    assert said[0] == said[1]


def test_what_was_given_out_stays_and_ends_meet(omni: Omni) -> None:
    with torch.no_grad():
        mel = omni.codec.to_mel(omni.codec.rvq.decode(omni.speech_codes(TEXTS[2])))[0]
    vocoder = StreamingVocoder(omni.codec.vocoder)
    assert len(vocoder.push(mel[:3])) == 0 and vocoder.done == 0  # these wait for more
    assert len(vocoder.push(mel[3:8])) == 0 and len(vocoder.wave) == 0  # and nothing is estimated before it is needed
    vocoder = StreamingVocoder(omni.codec.vocoder)
    pieces = [vocoder.push(part) for part in mel.split(8)]
    wave = torch.cat([*pieces, vocoder.finish()])
    assert [len(piece) for piece in pieces] == [0] + [1280] * (len(pieces) - 1)  # eight mel frames behind
    assert len(wave) == len(mel) * 160 and vocoder.magnitudes.shape[1] == len(mel) + 1
    assert len(vocoder.push(mel[:0])) == 0
    jumps = (wave[1:] - wave[:-1]).abs()
    borders = jumps[1279::1280]
    assert borders.mean() < 2 * jumps.mean()  # no click where two pieces meet


def test_every_column_that_reaches_beyond_what_was_given_out_is_estimated(
    omni: Omni, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocoder, counts = StreamingVocoder(omni.codec.vocoder, iterations=1), list[int]()
    irfft = torch.fft.irfft
    monkeypatch.setattr(torch.fft, "irfft", lambda x, n: (counts.append(len(x)), irfft(x, n))[1])
    n_fft, hop, columns = vocoder.vocoder.n_fft, vocoder.vocoder.hop, 0
    for part in torch.zeros(64, 128).split(16):
        columns, given = columns + len(part), vocoder.done
        vocoder.push(part)
        # a column has its middle at column × hop, and reaches half a window to either side
        assert counts.pop() == sum(column * hop + n_fft // 2 > given for column in range(columns))


def test_the_gain_is_a_factor_and_faint_speech_becomes_the_same_wave_as_loud_speech() -> None:
    griffin_lim = GriffinLimVocoder(hop=160)
    magnitudes = griffin_lim.invert_mel(from_log(griffin_lim.mel(load_audio(AUDIO)[None])[0]))

    def wave(level: float = 1.0, gain: float = 0.125) -> Tensor:
        vocoder, parts = StreamingVocoder(griffin_lim, gain=gain), []
        for columns in (16, 32, 48):
            vocoder.magnitudes = level * magnitudes[:, :columns]
            parts.append(vocoder.give((columns - 8) * 160))
        return torch.cat(parts)

    assert wave().any() and torch.equal(wave(level=2.0**-12), wave() * 2.0**-12)
    assert torch.equal(wave(gain=0.25), wave() * 2)


def test_a_steady_tone_stays_audible_between_frames_that_hardly_overlap() -> None:
    griffin_lim = GriffinLimVocoder(hop=1280)
    mel = griffin_lim.mel(0.3 * torch.sin(2 * torch.pi * 440 * torch.arange(32_000) / 16_000)[None])[0]
    wave = torch.cat(list(StreamingVocoder(griffin_lim, lookahead=1).stream(mel[:, None])))
    level = wave[2560:-2560].unflatten(0, (-1, 8, 160)).square().mean(dim=(0, 2)).sqrt()  # in eight parts of the hop
    assert level.min() > 0.3 * level.max()


def test_levels_and_short_inputs(omni: Omni) -> None:
    loud = torch.linspace(-3, 3, 101)
    assert soft_clip(loud).abs().max() <= 1 and torch.equal(soft_clip(loud * 0.2), loud * 0.2)
    assert (soft_clip(loud).diff() >= 0).all() and GAIN > 1
    assert list(omni.codec.stream([])) == []
    one = list(omni.codec.stream(omni.speech_codes("Yes.")[0][:1]))
    assert [len(piece) for piece in one] == [1280]
    single = SpeechCodec(single_frame=True)
    assert sum(len(piece) for piece in single.stream(torch.zeros(5, 2, dtype=torch.long))) == 5 * 1280
    with pytest.raises(InputError, match="the text is empty"):
        omni.speak(" ", stream=True)


# ---- out of the program ---------------------------------------------------------------------------------------------


def fake_player(folder: Path, code: int = 0) -> Path:
    """A player that keeps what it is given."""
    script = folder / "aplay"
    script.write_text(f"#!/bin/sh\n/bin/cat > '{folder / 'played'}'\necho no device >&2\nexit {code}\n")
    script.chmod(script.stat().st_mode | stat.S_IEXEC)
    return script


def test_samples_are_played_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_player(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    pieces = [torch.tensor([0.0, 0.5, -1.0]), torch.tensor([1.0, 2.0])]
    assert playback.play(iter(pieces), 16_000) == 5
    played = np.frombuffer((tmp_path / "played").read_bytes(), "<i2")
    assert played.tolist() == [0, 16384, -32767, 32767, 32767]


def test_without_a_player_or_a_device_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"expected one of aplay, .*found none"):
        playback.play(iter([torch.zeros(3)]), 16_000)
    fake_player(tmp_path, code=1)
    with pytest.raises(InputError, match="aplay ended with 1: no device"):
        playback.play(iter([torch.zeros(3)]), 16_000)


def test_the_command_line_streams_raw_samples_and_plays(
    omni: Omni, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["speak", "Yes. A zebra.", "-o", "-"]) == 0
    pause = torch.zeros(3200)
    expected = [*omni.speak("Yes.", stream=True), pause, *omni.speak("A zebra.", stream=True)]
    assert capfdbinary.readouterr().out == playback.pcm16(torch.cat(expected))
    fake_player(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert main(["speak", "Yes.", "--play"]) == 0
    assert (tmp_path / "played").read_bytes() == playback.pcm16(torch.cat(list(omni.speak("Yes.", stream=True))))
