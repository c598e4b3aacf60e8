"""Codec, Talker and vocoder, compared with slow loops and librosa."""

import dataclasses

import librosa
import numpy as np
import pytest
import torch

from tinyomni.codec import RVQ, SpeechCodec
from tinyomni.config import TINY
from tinyomni.dry_run import AUDIO
from tinyomni.io import load_audio
from tinyomni.shapes import ShapeError
from tinyomni.talker import TalkerTiny, generate_codes, max_frames, previous
from tinyomni.vocoder import GriffinLimVocoder, detect_domain


def talker() -> TalkerTiny:
    model = TalkerTiny(dataclasses.replace(TINY.talker, layers=2, vocab=50)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def codes(batch: int = 2, frames: int = 7) -> torch.Tensor:
    return torch.randint(0, 128, (batch, frames, 2))


# ---- codec ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_rvq_is_a_slow_loop() -> None:
    rvq, x = RVQ(), torch.randn(3, 5, 128)
    got = rvq.encode(x)
    for b in range(3):
        for t in range(5):
            residual = rvq.in_proj(x[b, t])
            total = torch.zeros(64)
            for book in range(2):
                distances = [float(((residual - entry) ** 2).sum()) for entry in rvq.codebooks[book]]
                nearest = distances.index(min(distances))
                assert got[b, t, book] == nearest
                residual = residual - rvq.codebooks[book, nearest]
                total = total + rvq.codebooks[book, nearest]
            torch.testing.assert_close(rvq.decode(got)[b, t], rvq.out_proj(total), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("leading", [(), (1,), (4,), (2, 3), (2, 3, 4)])
def test_rvq_takes_any_leading_axes(leading: tuple[int, ...]) -> None:
    rvq = RVQ()
    got = rvq.encode(torch.randn(*leading, 128))
    assert got.shape == (*leading, 2) and rvq.decode(got).shape == (*leading, 128)


def test_rvq_refuses_what_does_not_fit() -> None:
    for bad in (torch.randn(3, 64), torch.ones(3, 128, dtype=torch.long)):
        with pytest.raises(ShapeError):
            RVQ().encode(bad)
    with pytest.raises(ShapeError):
        RVQ().decode(torch.zeros(3, 3, dtype=torch.long))
    with pytest.raises(IndexError, match="0 … 127"):
        RVQ().decode(torch.tensor([[0, 128]]))


@pytest.mark.parametrize("single_frame", [False, True])
@pytest.mark.parametrize("samples", [1, 1279, 1280, 1281, 5000])
def test_the_codec_keeps_every_sample_in_whole_frames(single_frame: bool, samples: int) -> None:
    codec, wav = SpeechCodec(single_frame=single_frame), torch.randn(2, samples) * 0.1
    frames = -(-samples // 1280)
    assert codec.encode_latents(wav).shape == (2, frames, 128)
    assert codec.encode(wav).shape == (2, frames, 2)
    assert codec.decode(codec.encode(wav)).shape == (2, frames * 1280)


def test_latents_describe_the_recording_far_better_than_its_mean_or_the_single_frame_codec() -> None:
    wav = load_audio(AUDIO)[None]
    codec, single = SpeechCodec(), SpeechCodec(single_frame=True)
    mel = codec.mel(torch.nn.functional.pad(wav, (0, -wav.shape[1] % 1280)))

    def distance(wav: torch.Tensor) -> float:
        # the peak is normalized, so compare up to a constant factor
        other = codec.mel(wav)
        shift = (mel - other).mean()
        return float((mel - other - shift).abs().mean())

    mean = float((mel - mel.mean(dim=1, keepdim=True)).abs().mean())
    error = distance(codec.decode_latents(codec.encode_latents(wav)))
    assert error < 0.6 * mean
    assert error < distance(single.decode_latents(single.encode_latents(wav)))


# ---- Talker ---------------------------------------------------------------------------------------------------------


def test_the_talker_gives_exactly_two_logits() -> None:
    out = talker()(codes())
    assert isinstance(out, tuple) and [each.shape for each in out] == [(2, 7, 128)] * 2
    assert [each.shape for each in TalkerTiny()(codes(1, 3), text=torch.tensor([[7, 8]]))] == [(1, 3, 128)] * 2


def test_base_and_residual_codes_are_told_apart() -> None:
    model, one = talker(), codes()
    assert not torch.allclose(model(one)[0], model(one.flip(-1))[0], atol=1e-3)


def test_the_text_changes_the_logits() -> None:
    model, one = talker(), codes(1)
    text, other = torch.tensor([[5, 6, 7]]), torch.tensor([[5, 9, 7]])
    assert not torch.allclose(model(one, text=text)[0], model(one, text=other)[0], atol=1e-3)
    assert not torch.allclose(model(one, text=text)[0], model(one)[0], atol=1e-3)
    assert not torch.allclose(model(one, text=text)[0], model(one, text=text.flip(1))[0], atol=1e-3)


def test_the_talker_is_causal() -> None:
    model, one = talker(), codes()
    other = one.clone()
    other[:, 4:] = (other[:, 4:] + 1) % 128
    for a, b in zip(model(one, with_end=True), model(other, with_end=True), strict=True):
        torch.testing.assert_close(a[:, :4], b[:, :4])
        assert not torch.allclose(a[:, 4:], b[:, 4:])


def test_padding_of_texts_changes_nothing() -> None:
    model, both = talker(), codes()
    text = torch.tensor([[5, 6, 7, 0, 0], [9, 8, 7, 6, 5]])
    together = model(both, text, with_end=True)
    for row, length in enumerate((3, 5)):
        alone = model(both[row : row + 1], text[row : row + 1, :length], with_end=True)
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[row : row + 1], b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("chunks", [[1] * 7, [3, 4], [7]])
@pytest.mark.parametrize("with_text", [False, True])
def test_with_a_cache_the_logits_are_the_same(chunks: list[int], with_text: bool) -> None:
    model, both = talker(), codes()
    text = torch.tensor([[5, 6, 7, 0, 0], [9, 8, 7, 6, 5]]) if with_text else None
    cache = model.new_cache(2)
    parts = []
    for number, part in enumerate(both.split(chunks, dim=1)):
        parts.append(model(part, text if number == 0 else None, cache, with_end=True))
    for together, pieces in zip(model(both, text, with_end=True), zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(pieces, dim=1), together, atol=1e-5, rtol=1e-4)


def test_generated_codes_are_a_loop_without_cache() -> None:
    model, text = talker(), torch.tensor([[5, 6, 7]])
    slow = torch.zeros(1, 1, 2, dtype=torch.long)
    for _ in range(12):
        new = torch.stack([each[:, -1].argmax(-1) for each in model(slow, text=text)], dim=-1)
        slow = torch.cat([slow, new[:, None]], dim=1)
    assert torch.equal(generate_codes(model, text, 12, stop=False), slow)


def test_speech_stops_when_the_end_is_likely_and_else_at_the_cap() -> None:
    model, text = talker(), torch.tensor([[5, 6, 7]])
    model.end.weight.data.zero_()
    model.end.bias.data.fill_(9.0)
    assert generate_codes(model, text, 12).shape == (1, 2, 2)
    model.end.bias.data.fill_(-9.0)
    assert generate_codes(model, text, 12).shape == (1, 13, 2)


def test_the_shift_is_by_one_frame_and_the_cap_is_that_of_the_specification() -> None:
    one = codes()
    rolled = torch.roll(one, 1, dims=1)
    rolled[:, 0] = 0
    assert torch.equal(previous(one), rolled)
    assert [max_frames(n) for n in (0, 1, 2, 10, 33, 34, 512)] == [50, 50, 60, 300, 990, 1000, 1000]


def test_bad_codes_and_nan() -> None:
    model = talker()
    with pytest.raises(ShapeError):
        model(torch.zeros(1, 4, 3, dtype=torch.long))
    with pytest.raises(ShapeError):
        model(torch.zeros(4, 2, dtype=torch.long))
    with pytest.raises(IndexError, match="0 … 127"):
        model(torch.full((1, 4, 2), 128))
    with pytest.raises(IndexError, match="0 … 49"):
        model(codes(1), text=torch.tensor([[50]]))
    model.res.weight.data[0] = torch.nan
    with pytest.raises(RuntimeError, match=r"TalkerTiny: residual: NaN=14, Inf=0"):
        model(codes())


# ---- vocoder --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 2, 3, 7, 50, 301])
def test_samples_are_frames_times_the_hop(frames: int) -> None:
    mel = torch.randn(frames, 128)
    sound = GriffinLimVocoder(iterations=2).mel_to_audio(mel, domain="log")
    assert sound.shape == (frames * 1280,) and sound.dtype == torch.float32
    array = GriffinLimVocoder(iterations=2).mel_to_audio(mel.numpy(), domain="log")
    assert isinstance(array, np.ndarray) and np.array_equal(array, sound.numpy())
    assert abs(float(sound.abs().max()) - 0.95) < 1e-4


def test_silence_stays_silence() -> None:
    assert float(GriffinLimVocoder().mel_to_audio(torch.full((3, 128), -11.6), domain="log").abs().max()) < 1e-3


def test_the_rule_of_auto() -> None:
    magnitudes = torch.rand(6, 128)
    voc = GriffinLimVocoder(iterations=3)
    assert detect_domain(magnitudes) == "magnitude" and detect_domain(magnitudes - 0.5) == "log"
    assert torch.equal(voc.mel_to_audio(magnitudes), voc.mel_to_audio(magnitudes, domain="magnitude"))
    assert not torch.allclose(voc.mel_to_audio(magnitudes), voc.mel_to_audio(magnitudes, domain="log"))
    logs = (magnitudes + 1e-5).log()
    torch.testing.assert_close(voc.mel_to_audio(logs), voc.mel_to_audio(magnitudes), atol=1e-2, rtol=0)


def test_mel_inversion_gives_back_what_the_filters_saw() -> None:
    voc = GriffinLimVocoder(hop=160)
    magnitudes = voc.mel.magnitudes(load_audio(AUDIO)[None])[0, :, :100]
    mel = (voc.mel.filters.T @ magnitudes).T
    again = (voc.mel.filters.T @ voc.invert_mel(mel)).T
    assert float((again - mel).norm() / mel.norm()) < 0.1


def test_griffin_lim_converges_as_librosas_does() -> None:
    voc = GriffinLimVocoder(hop=160, n_fft=1024)
    wav = load_audio(AUDIO)
    spectrum = torch.stft(wav, 1024, 160, window=voc.mel.window, pad_mode="constant", return_complex=True).abs()

    def error(sound: torch.Tensor) -> float:
        other = torch.stft(sound, 1024, 160, window=voc.mel.window, pad_mode="constant", return_complex=True).abs()
        return float((other - spectrum).norm() / spectrum.norm())

    mine = error(voc.griffin_lim(spectrum, 16_000))
    theirs = librosa.griffinlim(
        spectrum.numpy(),
        n_iter=32,
        hop_length=160,
        n_fft=1024,
        momentum=0.99,
        pad_mode="constant",
        init=None,
        length=16_000,
    )
    assert mine < 1.1 * error(torch.from_numpy(theirs)) and mine < 0.3


def test_the_vocoder_refuses_what_does_not_fit() -> None:
    voc = GriffinLimVocoder()
    for bad in (torch.randn(1, 4, 128), torch.randn(4, 80), torch.randn(0, 128)):
        with pytest.raises(ShapeError):
            voc.mel_to_audio(bad)
    with pytest.raises(ValueError, match="2 NaN or infinite values"):
        voc.mel_to_audio(torch.tensor([[torch.nan, torch.inf] + [0.0] * 126]))
    with pytest.raises(ValueError, match="expected magnitudes of at least 0"):
        voc.mel_to_audio(torch.randn(4, 128), domain="magnitude")
