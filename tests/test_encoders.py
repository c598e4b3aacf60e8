"""Image and audio encoder: ViT, mel front end, audio encoder, CTC, compared with torch, torchaudio and librosa."""

import math
import string

import librosa
import numpy as np
import pytest
import torch
import torchaudio
from torch import nn

from tinyomni.audio import (
    CHARS,
    AudioEncoderTiny,
    CTCHead,
    MelFrontend,
    audio_token_count,
    char_ids,
    ctc_greedy,
    sinusoids,
    valid_positions,
    window_size,
)
from tinyomni.layers import EncoderBlock
from tinyomni.shapes import ShapeError
from tinyomni.vision import ViTTiny, grid_positions


def louder(model: nn.Module) -> nn.Module:
    """Weights large enough that a mistake shows."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.eval()


# ---- image encoder --------------------------------------------------------------------------------------------------


def test_patches_are_cut_in_reading_order_by_a_linear_map() -> None:
    vision, img = ViTTiny(), torch.rand(2, 3, 224, 224)
    rows = vision.flatten(vision.patchify(img))
    patch = img[1, :, 3 * 16 : 4 * 16, 5 * 16 : 6 * 16] * 2 - 1
    want = vision.proj.weight.reshape(128, -1) @ patch.reshape(-1) + vision.proj.bias
    torch.testing.assert_close(rows[1, 3 * 14 + 5], want, atol=1e-5, rtol=1e-5)


def test_cls_and_grid_come_from_197_tokens_and_positions_matter() -> None:
    vision = louder(ViTTiny())
    img = torch.rand(2, 3, 224, 224)
    cls, grid = vision.forward_features(img)
    assert cls.shape == (2, 1, 128) and grid.shape == (2, 196, 128)
    assert torch.equal(vision(img), cls)
    assert not torch.allclose(vision(img.flip(3)), cls, atol=1e-3)
    torch.testing.assert_close(vision(img[1:]), cls[1:], atol=1e-5, rtol=1e-5)


def torch_encoder(mine: nn.ModuleList, width: int, heads: int, hidden: int) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(width, heads, hidden, 0.0, "gelu", batch_first=True, norm_first=True)
    theirs = nn.TransformerEncoder(layer, len(mine), enable_nested_tensor=False).eval()
    for block, layer in zip(mine, theirs.layers, strict=True):
        assert isinstance(block, EncoderBlock)
        attn = block.attn
        layer.self_attn.in_proj_weight.data = torch.cat([attn.q_proj.weight, attn.k_proj.weight, attn.v_proj.weight])
        layer.self_attn.in_proj_bias.data = torch.cat([attn.q_proj.bias, attn.k_proj.bias, attn.v_proj.bias])
        pairs = [
            (layer.self_attn.out_proj, attn.o_proj),
            (layer.linear1, block.mlp.fc1),
            (layer.linear2, block.mlp.fc2),
        ]
        for one, other in [*pairs, (layer.norm1, block.norm1), (layer.norm2, block.norm2)]:
            one.weight.data, one.bias.data = other.weight.data, other.bias.data
    return theirs


def test_a_positions_first_half_is_its_row_and_its_second_half_its_column() -> None:
    side, dim = 3, 8
    found = grid_positions(side, dim).unflatten(0, (side, side))
    for row in range(side):
        for column in range(side):
            for at, number in ((row, 0), (column, dim // 2)):
                angles = [at / 100 ** (4 * p / dim) for p in range(dim // 4)]
                expected = torch.tensor([*map(math.sin, angles), *map(math.cos, angles)])
                torch.testing.assert_close(found[row, column, number : number + dim // 2], expected)


def test_vit_blocks_are_torchs() -> None:
    vision, x = louder(ViTTiny()), torch.randn(2, 197, 128)
    theirs = torch_encoder(vision.blocks, 128, 2, 512)
    torch.testing.assert_close(vision.encode(x), vision.norm(theirs(x)), atol=1e-4, rtol=1e-4)


def test_audio_blocks_are_torchs() -> None:
    audio, x = louder(AudioEncoderTiny()), torch.randn(2, 25, 192)
    for block in audio.blocks:
        theirs = torch_encoder(nn.ModuleList([block]), 192, 3, 768)
        torch.testing.assert_close(block(x), theirs(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(1, 224, 224, 3), (3, 224, 224), (1, 3, 200, 224), (1, 1, 224, 224)])
def test_an_image_of_the_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"expected `?img"):
        ViTTiny()(torch.rand(shape))


def test_nan_in_the_image_encoder_is_counted_apart() -> None:
    vision = ViTTiny()
    vision.norm.weight.data[0] = torch.nan
    with pytest.raises(RuntimeError, match=r"ViTTiny: cls: NaN=1, Inf=0, grid: NaN=196, Inf=0"):
        vision(torch.rand(1, 3, 224, 224))


def spread(tensor: torch.Tensor) -> float:
    return float(tensor.detach().std())


def test_the_image_encoder_begins_with_the_deviations_it_names() -> None:
    vision = ViTTiny()
    assert vision.cls.shape == (1, 1, 128) and vision.pos.shape == (1, 197, 128)
    assert spread(vision.cls) == pytest.approx(0.02, rel=0.4)
    assert spread(vision.pos[0, 1:] - grid_positions(14, 128)) == pytest.approx(0.02, rel=0.1)
    assert spread(vision.pos[0, 0]) == pytest.approx(0.02, rel=0.4)
    for block in vision.blocks:
        for layer, inputs in ((block.attn.q_proj, 128), (block.mlp.fc1, 128), (block.attn.o_proj, 128 * 8),
                              (block.mlp.fc2, 512 * 8)):  # fmt: skip
            assert spread(layer.weight) == pytest.approx(inputs**-0.5, rel=0.05)
            assert not layer.bias.any()


def test_tokens_are_the_cls_in_front_of_the_patches_plus_the_positions() -> None:
    vision, patches = ViTTiny(), torch.randn(2, 196, 128)
    tokens = vision.add_cls(patches)
    assert torch.equal(tokens[:, 1:], patches) and torch.equal(tokens[:, :1], vision.cls.expand(2, 1, 128))
    assert torch.equal(vision.add_positions(tokens), tokens + vision.pos)
    cls, grid = vision.split_cls(tokens)
    assert torch.equal(torch.cat([cls, grid], dim=1), tokens) and cls.shape == (2, 1, 128)


# ---- audio encoder --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hop", [160, 1280])
def test_mel_is_torchaudios_and_librosas(hop: int) -> None:
    wav, front = torch.randn(2, 16_000) * 0.1, MelFrontend(hop=hop)
    mine = front(wav).exp()
    frames = 16_000 // hop
    assert mine.shape == (2, frames, 128)
    theirs = torchaudio.transforms.MelSpectrogram(
        16_000,
        front.n_fft,
        hop_length=hop,
        n_mels=128,
        power=1.0,
        norm="slaney",
        mel_scale="slaney",
        pad_mode="constant",
    )(wav)
    torch.testing.assert_close(mine, theirs[..., :frames].transpose(1, 2), atol=1e-5, rtol=1e-4)
    also = librosa.feature.melspectrogram(
        y=wav[0].numpy(), sr=16_000, n_fft=front.n_fft, hop_length=hop, n_mels=128, power=1.0, pad_mode="constant"
    )
    np.testing.assert_allclose(mine[0].numpy(), also.T[:frames], atol=1e-4, rtol=1e-3)


def test_magnitudes_are_torchs_centred_stft_and_have_one_frame_more_than_the_spectrogram() -> None:
    front, wav = MelFrontend(), torch.randn(2, 800) * 0.1
    want = torch.stft(wav, front.n_fft, front.hop, window=front.window, pad_mode="constant", return_complex=True).abs()
    torch.testing.assert_close(front.magnitudes(wav), want)
    assert want.shape[2] == front(wav).shape[1] + 1


@pytest.mark.parametrize("samples", [160, 161, 319, 320, 1279, 1280, 15_999, 16_000, 16_159, 20_480, 20_640])
def test_mel_frames_are_samples_divided_by_the_hop_and_never_swapped(samples: int) -> None:
    assert MelFrontend()(torch.randn(1, samples)).shape == (1, samples // 160, 128)


def test_every_mel_filter_has_a_frequency_bin_and_too_short_a_window_is_refused() -> None:
    for hop in (160, 1280):
        assert (MelFrontend(hop=hop).filters.sum(0) > 0).all()
    with pytest.raises(ValueError, match="mel filters hold no frequency bin"):
        MelFrontend(n_fft=256)


def test_a_tone_lies_in_its_mel_band_and_time() -> None:
    wav = torch.zeros(1, 16_000)
    wav[0, 8000:] = torch.sin(2 * torch.pi * 1000 * torch.arange(8000) / 16_000)
    mel = MelFrontend()(wav)[0]
    centres = librosa.mel_frequencies(130, fmin=0, fmax=8000)[1:-1]
    assert abs(centres[int(mel[75].argmax())] - 1000) < 40
    assert mel[:45].max() < mel[60:].max() - 5


def test_silence_is_the_floor_and_the_tables_are_no_weights() -> None:
    front = MelFrontend()
    assert (front.hop, front.n_fft) == (160, 1024) and not front.state_dict()
    torch.testing.assert_close(front(torch.zeros(1, 800)), torch.full((1, 5, 128), math.log(1e-5)))
    with torch.autocast("cpu", torch.bfloat16):
        found = front(torch.randn(1, 800))
    assert found.dtype == torch.float32


def test_a_window_overlaps_by_half_or_is_doubled_until_it_overlaps_by_a_quarter() -> None:
    cases = {(160, 1024): 1024, (512, 1024): 1024, (513, 1024): 2048, (1280, 1024): 2048, (1536, 1024): 2048,
             (1537, 1024): 4096, (3072, 1024): 4096, (3073, 1024): 8192}  # fmt: skip
    assert {each: window_size(*each) for each in cases} == cases
    assert MelFrontend(n_fft=2048).n_fft == 2048 and MelFrontend(hop=80, n_fft=2048).hop == 80


def test_less_than_a_frame_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least one frame of 160 samples .* got 159"):
        MelFrontend()(torch.randn(1, 159))


@pytest.mark.parametrize("mel_frames", [1, 2, 3, 4, 5, 61, 99, 100, 101, 128])
def test_audio_tokens_are_a_quarter_rounded_up(mel_frames: int) -> None:
    tokens = AudioEncoderTiny()(torch.randn(1, mel_frames, 128)).shape
    assert tokens == (1, -(-mel_frames // 4), 192)
    assert audio_token_count(mel_frames) == -(-mel_frames // 4)


def test_audio_positions_are_sines_and_cosines_from_fast_to_slow() -> None:
    table = sinusoids(50, 8)
    for position in (0, 1, 49):
        angles = [position / 10_000 ** (pair / 3) for pair in range(4)]
        torch.testing.assert_close(table[position], torch.tensor([*map(math.sin, angles), *map(math.cos, angles)]))
    audio, x = louder(AudioEncoderTiny()), torch.randn(2, 25, 192)
    want = x + sinusoids(25, 192)
    for block in audio.blocks:
        want = block(want)
    torch.testing.assert_close(audio.encode(x), audio.norm(want))


def test_what_the_audio_encoder_does_to_a_spectrogram() -> None:
    audio, mel = louder(AudioEncoderTiny()), torch.randn(2, 21, 128)
    image = audio.normalize(mel)
    torch.testing.assert_close(image, (mel / 4 + 1).unsqueeze(1))
    first, second = (layer for layer in audio.down if isinstance(layer, nn.Conv2d))
    half = nn.functional.gelu(nn.functional.conv2d(image, first.weight, first.bias, stride=2, padding=1))
    quarter = nn.functional.gelu(nn.functional.conv2d(half, second.weight, second.bias, stride=2, padding=1))
    torch.testing.assert_close(audio.downsample(image), quarter)
    rows = audio.flatten(quarter)
    assert rows.shape == (2, 6, 2048) and torch.equal(rows[1, 3, 5 * 32 : 6 * 32], quarter[1, 5, 3])
    torch.testing.assert_close(audio(mel), audio.encode(audio.proj(rows)))
    assert torch.equal(valid_positions(torch.tensor([0, 2, 3]), 3).int(), torch.tensor([[0] * 3, [1, 1, 0], [1] * 3]))
    with pytest.raises(ValueError, match="at least one mel frame"):
        audio(torch.zeros(1, 0, 128))


def test_the_audio_encoder_begins_as_gpt2_does() -> None:
    audio = AudioEncoderTiny()
    assert spread(audio.proj.weight) == pytest.approx(0.02, rel=0.05)
    for block in audio.blocks:
        assert spread(block.attn.q_proj.weight) == pytest.approx(0.02, rel=0.05)
        assert spread(block.mlp.fc2.weight) == pytest.approx(0.02 / (2 * len(audio.blocks)) ** 0.5, rel=0.05)
        assert not block.mlp.fc2.bias.any()


def test_padding_changes_no_valid_token_and_a_batch_is_its_members() -> None:
    audio = louder(AudioEncoderTiny())
    lengths = torch.tensor([61, 100, 3, 42, 40])
    mel = torch.randn(5, 100, 128)
    together = audio(mel, lengths=lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = audio(mel[row : row + 1, :length])
        tokens = -(-length // 4)
        torch.testing.assert_close(together[row, :tokens], alone[0], atol=1e-5, rtol=1e-4)
        assert together[row, tokens:].abs().sum() == 0


def test_the_order_of_audio_matters() -> None:
    audio = louder(AudioEncoderTiny())
    mel = torch.randn(1, 40, 128)
    swapped = torch.cat([mel[:, 20:], mel[:, :20]], dim=1)
    # without positions the mean over time would hardly differ: only the seams would
    assert not torch.allclose(audio(mel)[:, 1:4], audio(swapped)[:, 6:9], atol=1e-2)


def test_ctc_collapse_is_a_slow_loop() -> None:
    log_probs = torch.randn(3, 40, 99)
    log_probs[:, ::3, 0] += 5
    log_probs[:, 1::3] = log_probs[:, 2::3][:, :1].expand(-1, log_probs[:, 1::3].shape[1], -1)
    lengths = torch.tensor([40, 17, 1])
    for row, text in enumerate(ctc_greedy(log_probs, lengths)):
        slow, before = "", 0
        for best in log_probs[row, : lengths[row]].argmax(-1).tolist():
            if best not in (0, before):
                slow += CHARS[best - 1]
            before = best
        assert text == slow


def test_ctc_has_98_characters_and_a_blank_and_decodes_what_was_encoded() -> None:
    assert list(CHARS) == [*sorted(string.printable[:95]), "\n", "\t", "\ufffd"]  # in the order of ASCII
    log_probs = CTCHead()(torch.randn(2, 5, 192))
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(2, 5))
    assert len(CHARS) == 98 and CTCHead()(torch.randn(2, 5, 192)).shape == (2, 5, 99)
    ids = char_ids("Hello!\tté\n")
    assert ids.count(98) == 1  # é is none of them
    one_hot = nn.functional.one_hot(torch.tensor([[i for each in char_ids("Hello") for i in (each, 0)]]), 99).float()
    assert ctc_greedy(one_hot) == ["Hello"]


def test_nan_in_the_audio_encoder_is_found() -> None:
    audio = AudioEncoderTiny()
    audio.norm.weight.data[0] = torch.nan
    with pytest.raises(RuntimeError, match=r"AudioEncoderTiny: embeddings: NaN=25"):
        audio(torch.randn(1, 100, 128))
