"""Codec, Talker and vocoder, compared with slow loops and librosa."""

import dataclasses
import inspect

import librosa
import numpy as np
import pytest
import torch

from tinyomni.codec import RVQ, PostNet, SpeechCodec, dct_basis
from tinyomni.config import TINY
from tinyomni.dry_run import AUDIO
from tinyomni.errors import InputError
from tinyomni.io import load_audio
from tinyomni.shapes import ShapeError
from tinyomni.talker import (
    TalkerTiny,
    align_right,
    generate_batch,
    generate_codes,
    max_frames,
    next_frame,
    previous,
    stream_codes,
    voice_token,
)
from tinyomni.vocoder import GriffinLimVocoder, detect_domain, from_log, soft_clip


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
    with pytest.raises(ShapeError, match=r"codec_dim=128\), got \(3, 64\) float32"):
        RVQ().encode(torch.randn(3, 64))
    with pytest.raises(ShapeError):
        RVQ().encode(torch.ones(3, 128, dtype=torch.long))
    with pytest.raises(ShapeError, match=r"codebooks=2\), got \(3, 3\) int64"):
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


@torch.no_grad()
def test_half_precision_chooses_the_same_entries() -> None:
    rvq, x = RVQ(), torch.randn(200, 128)
    with torch.autocast("cpu", torch.bfloat16):
        residual, got = rvq.in_proj(x).float(), rvq.encode(x)
    for number, book in enumerate(rvq.codebooks):
        nearest = torch.cdist(residual, book).argmin(dim=-1)
        assert torch.equal(got[:, number], nearest)
        residual = residual - book[nearest]


def test_the_cosine_transform_has_its_lowest_frequency_first() -> None:
    basis = dct_basis(4, 32)
    torch.testing.assert_close(basis[0], torch.full((32,), 32**-0.5))
    for number, row in enumerate(basis):
        assert int((row[1:].sign() != row[:-1].sign()).sum()) == number
        torch.testing.assert_close(row, (1 if number % 2 == 0 else -1) * row.flip(0), atol=1e-6, rtol=0)
    assert basis[1, 0] > 0


@torch.no_grad()
def test_a_frame_is_eight_mel_frames_near_zero_and_decodes_to_what_they_nearly_were() -> None:
    codec, wav = SpeechCodec(), load_audio(AUDIO)[None, :5000]
    mel = codec.mel(torch.nn.functional.pad(wav, (0, 5120 - 5000)))
    blocks = codec.mel_blocks(wav)
    assert blocks.shape == (1, 4, 1024) and mel.shape == (1, 32, 128)
    torch.testing.assert_close(blocks[0, 2, 3 * 128 : 4 * 128], (mel[0, 2 * 8 + 3] + 6) / 4)
    latents = torch.randn(1, 4, 128)
    torch.testing.assert_close(codec.down(codec.up(latents)), latents, atol=1e-4, rtol=1e-4)
    assert not codec.down.bias.any() and not codec.up.bias.any()
    found = codec.to_mel(latents)
    assert found.shape == (1, 32, 128)
    torch.testing.assert_close(found[0, 2 * 8 + 3], codec.up(latents)[0, 2, 3 * 128 : 4 * 128] * 4 - 6)
    single = SpeechCodec(single_frame=True)
    assert torch.equal(single.to_mel(latents), latents) and torch.equal(single.decode_frames(latents), latents)
    torch.testing.assert_close(single.encode_latents(wav), single.mel(torch.nn.functional.pad(wav, (0, 120))))


@torch.no_grad()
def test_the_correction_is_zero_at_first_and_reaches_three_frames_to_each_side() -> None:
    net, x = PostNet(8, 4, channels=6), torch.randn(1, 15, 8)
    assert net(x).shape == (1, 15, 4) and not net(x).any()
    torch.nn.init.normal_(net.out.weight)
    changed = x.clone()
    changed[0, 7] += 1
    seen = (net(x) != net(changed)).any(-1)[0].nonzero().flatten().tolist()
    assert seen == [*range(7 - PostNet.REACH, 7 + PostNet.REACH + 1)]
    inner = torch.nn.functional.gelu(net.look(x.transpose(1, 2)))
    want = net.out((inner + torch.nn.functional.gelu(net.again(inner))).transpose(1, 2))
    torch.testing.assert_close(net(x), want)
    padded = x.clone()
    padded[0, 9:] = 0
    torch.testing.assert_close(net(padded, torch.tensor([9]))[:, :9], net(x[:, :9]))


def test_the_codec_refuses_what_does_not_fit() -> None:
    codec = SpeechCodec()
    with pytest.raises(InputError, match="at least one sample"):
        codec.encode(torch.zeros(1, 0))
    with pytest.raises(InputError, match="at least one code frame"):
        codec.decode_latents(torch.zeros(1, 0, 128))
    with pytest.raises(ShapeError):
        codec.decode_latents(torch.zeros(1, 3, 64))
    with pytest.raises(ValueError, match="codec_dim must equal n_mels; got 64 and 128"):
        SpeechCodec(dataclasses.replace(TINY.codec, codec_dim=64), single_frame=True)
    for bad in (torch.tensor(1.0), [1.0] * 128):
        with pytest.raises((ShapeError, TypeError)):
            codec.rvq.encode(bad)
    for bad in (torch.tensor(1), torch.zeros(3, 2), [[1, 2]]):
        with pytest.raises((ShapeError, TypeError)):
            codec.rvq.decode(bad)


# ---- Talker ---------------------------------------------------------------------------------------------------------


def test_the_talker_gives_exactly_two_logits() -> None:
    out = talker()(codes())
    assert isinstance(out, tuple) and [each.shape for each in out] == [(2, 7, 128)] * 2
    assert [each.shape for each in TalkerTiny()(codes(1, 3), text=torch.tensor([[7, 8]]))] == [(1, 3, 128)] * 2


def test_base_and_residual_codes_are_told_apart() -> None:
    model, one = talker(), codes()
    assert not torch.allclose(model(one)[0], model(one.flip(-1))[0], atol=1e-3)


def test_a_frame_is_the_sum_of_its_codes_embeddings() -> None:
    model, one = talker(), codes()
    base, residual = model.code_emb
    torch.testing.assert_close(model.embed_codes(one), base(one[..., 0]) + residual(one[..., 1]))


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
    torch.testing.assert_close(model(one[:, :1]), tuple(each[:, :1] for each in model(one)))  # a frame on its own


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


@torch.no_grad()
def test_speech_goes_on_from_frames_that_are_already_there() -> None:
    model, text, spoken = talker(), torch.tensor([[5, 6, 7]]), codes(1, 5)
    cache, longer = model.new_cache(), spoken
    for _ in range(3):
        base, residual, end = model(longer, text, with_end=True)
        longer, over = next_frame(model, longer, text, cache)
        assert longer[0, -1].tolist() == [int(base[0, -1].argmax()), int(residual[0, -1].argmax())]
        torch.testing.assert_close(over, end[:, -1].sigmoid())
    assert longer.shape == (1, 8, 2) and torch.equal(longer[:, :5], spoken)


def test_a_frame_behind_a_cache_may_take_the_fast_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model, positions = talker(), []
    monkeypatch.setattr("tinyomni.talker.fast_step", lambda model, x, cache: positions.append(cache.size))
    generate_codes(model, torch.tensor([[5, 6, 7]]), 4, stop=False)
    model(codes())  # not without a cache
    assert positions == [0, 4, 5, 6]  # asked each time; none is the answer before there is a past


def test_speech_stops_when_the_end_is_likely_and_else_at_the_cap() -> None:
    model, text = talker(), torch.tensor([[5, 6, 7]])
    model.end.weight.data.zero_()
    model.end.bias.data.fill_(9.0)
    assert generate_codes(model, text, 12).shape == (1, 2, 2)
    assert generate_batch(model, text.expand(3, 3), 12)[0].shape == (3, 2, 2)  # nothing is written behind the last end
    model.end.bias.data.fill_(-9.0)
    assert generate_codes(model, text, 12).shape == (1, 13, 2)


def test_the_shift_is_by_one_frame_and_the_cap_is_that_of_the_specification() -> None:
    one = codes()
    rolled = torch.roll(one, 1, dims=1)
    rolled[:, 0] = 0
    assert torch.equal(previous(one), rolled)
    assert [max_frames(n) for n in (0, 1, 2, 10, 33, 34, 512)] == [50, 50, 60, 300, 990, 1000, 1000]


def test_a_voice_is_one_of_the_last_ids() -> None:
    assert voice_token(0) == [] and voice_token(1, 50) == [49] and voice_token(3, 50) == [47]
    assert voice_token(1) == [TINY.talker.vocab - 1]


def test_texts_end_where_the_codes_begin() -> None:
    text = torch.tensor([[5, 6, 7, 0, 0], [9, 8, 7, 6, 5], [4, 0, 0, 0, 0]])
    assert align_right(text).tolist() == [[0, 0, 5, 6, 7], [9, 8, 7, 6, 5], [0, 0, 0, 0, 4]]


def test_rows_of_a_batch_end_each_on_its_own_and_a_stream_is_the_same() -> None:
    model, texts = talker(), torch.tensor([[5, 6, 7], [9, 8, 7], [1, 2, 3]])
    alone = [generate_codes(model, row[None], 12) for row in texts]
    assert len({each.shape[1] for each in alone}) > 1, [each.shape for each in alone]
    together, frames = generate_batch(model, texts, 12)
    for row, each in enumerate(alone):
        assert int(frames[row]) == each.shape[1] - 1
        assert torch.equal(together[row, : int(frames[row]) + 1], each[0])
        assert torch.equal(torch.stack(list(stream_codes(model, texts[row][None], 12))), each[0, 1:])
        assert not each[0, 0].any()
    free, counts = generate_batch(model, None, 4, batch=3, stop=False)
    assert free.shape == (3, 5, 2) and counts.tolist() == [4] * 3
    assert generate_batch(model, None, 4, stop=False)[0].shape == (1, 5, 2)


def test_even_odds_are_no_end() -> None:
    model, text = talker(), torch.tensor([[5, 6, 7]])
    model.end.weight.data.zero_()
    model.end.bias.data.zero_()
    assert generate_codes(model, text, 6).shape == (1, 7, 2)
    assert len(list(stream_codes(model, text, 6))) == 6
    model.end.bias.data.fill_(0.01)
    assert generate_codes(model, text, 6).shape == (1, 2, 2)
    assert len(list(stream_codes(model, text, 6))) == 1


def test_the_talker_takes_as_many_positions_as_it_has() -> None:
    model = TalkerTiny(dataclasses.replace(TINY.talker, layers=1, vocab=50, max_text=4, max_frames=6)).eval()
    assert model.max_seq_len == 11 and model.new_cache().max_seq_len == 11
    text = torch.tensor([[5, 6, 7, 8]])
    assert model(codes(1, 7), text)[0].shape == (1, 7, 128)
    with pytest.raises(InputError, match="0 positions before \\+ 12 now = 12 > 11"):
        model(codes(1, 8), text)
    cache = model.new_cache()
    model(codes(1, 7), text, cache)
    with pytest.raises(InputError, match="11 positions before \\+ 1 now = 12 > 11"):
        model(codes(1, 1), cache=cache)
    with pytest.raises(ValueError, match="the text with the first call only"):
        model(codes(1, 1), text, cache)
    with pytest.raises(ShapeError, match="got 1"):
        model(codes(2, 3), text)
    with pytest.raises(ValueError, match="batch of 1"):
        model(codes(2, 3), cache=model.new_cache())


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


def test_levels_of_the_vocoder() -> None:
    assert from_log(torch.tensor([-20.0, -11.6, 0.0, 1.0])).tolist() == pytest.approx(
        [0, 0, 1 - 1e-5, torch.e - 1e-5], abs=1e-6
    )
    assert float(from_log(torch.tensor(1e30))) == pytest.approx(torch.e**20)
    wave = torch.tensor([-0.8, -0.3, 0.0, 0.79])
    assert torch.equal(soft_clip(wave), wave)
    loud = soft_clip(torch.tensor([0.85, -0.85, 1.0, 50.0]))
    assert loud.tolist() == pytest.approx([0.849, -0.849, 0.8 + 0.2 * 0.761594, 1.0], abs=1e-3)
    assert torch.equal(soft_clip(torch.tensor([0.5]), knee=0.6), torch.tensor([0.5]))
    voc = GriffinLimVocoder(iterations=2)
    assert (voc.hop, voc.momentum, voc.n_fft) == (1280, 0.99, 2048) and not voc.state_dict()
    assert GriffinLimVocoder().iterations == 32
    faint = voc.mel_to_audio(torch.full((3, 128), -11.5), domain="log")  # nearly the floor: it stays faint
    assert float(faint.abs().max()) < 1e-3
    low = voc.mel_to_audio(torch.full((3, 128), -6.0), domain="log")  # but what is only low is made as loud as all else
    assert float(low.abs().max()) == pytest.approx(0.95)
    assert torch.equal(voc.mel_to_audio(torch.zeros(3, 128)), torch.zeros(3 * 1280))  # zero is a magnitude
    assert detect_domain(torch.zeros(2, 2)) == "magnitude"
    mel = torch.randn(5, 128)
    assert torch.equal(voc.mel_to_audio(mel), voc.mel_to_audio(mel))  # the phases it begins with are the same


@pytest.mark.parametrize(
    ("shape", "hint"),
    [((1, 4, 128), "mel[0]"), ((128, 4), "mel.T"), ((4, 80), ""), ((128,), ""), ((128, 4, 2), "mel[0]")],
)
def test_the_vocoder_says_how_to_mend_a_shape_where_it_can(shape: tuple[int, ...], hint: str) -> None:
    plain = inspect.unwrap(GriffinLimVocoder.mel_to_audio)  # shape checks would come first
    with pytest.raises(ShapeError) as caught:
        plain(GriffinLimVocoder(), torch.zeros(shape))
    hints = str(caught.value).partition(f"got {shape}.")[2]
    assert hints.rstrip(".").endswith(hint) and bool(hint) == bool(hints)


def test_the_vocoder_refuses_what_does_not_fit() -> None:
    for momentum in (-0.1, 1.0):
        with pytest.raises(ValueError, match="momentum must lie in"):
            GriffinLimVocoder(momentum=momentum)
    assert GriffinLimVocoder(momentum=0).momentum == 0
    with pytest.raises(ValueError, match="domain"):
        GriffinLimVocoder().mel_to_audio(torch.zeros(2, 128), domain="loud")
    voc = GriffinLimVocoder()
    for bad in (torch.randn(1, 4, 128), torch.randn(4, 80), torch.randn(0, 128)):
        with pytest.raises(ShapeError):
            voc.mel_to_audio(bad)
    with pytest.raises(ShapeError, match="axes swapped"):
        voc.mel_to_audio(torch.randn(128, 4))
    with pytest.raises(ValueError, match="2 NaN or infinite values"):
        voc.mel_to_audio(torch.tensor([[torch.nan, torch.inf] + [0.0] * 126]))
    with pytest.raises(ValueError, match="expected magnitudes of at least 0"):
        voc.mel_to_audio(torch.randn(4, 128), domain="magnitude")
