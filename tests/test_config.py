"""Every configuration works from file to answer, with shape checks on, or is refused when it is built."""

import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from PIL import Image
from torchaudio.functional import melscale_fbanks

from tinyomni import TINY, BPETokenizer, MelFrontend, Omni, SpeechCodec
from tinyomni.config import (
    AudioConfig,
    CodecConfig,
    OmniConfig,
    TalkerConfig,
    ThinkerConfig,
    VisionConfig,
    empty_mel_filters,
)
from tinyomni.dry_run.inputs import Inputs
from tinyomni.dry_run.pipelines import PIPELINES
from tinyomni.talker import previous

VOCAB = BPETokenizer().n_pieces + 9
THINKER = ThinkerConfig(layers=1, d_model=16, heads=2, kv_heads=2, intermediate_size=24, vocab=VOCAB, ctx_len=128)
VISION = VisionConfig(image_size=32, patch=8, vision_dim=12, layers=1, heads=2, intermediate_size=20)
AUDIO = AudioConfig(n_mels=16, n_fft=512, conv_channels=3, audio_dim=12, layers=1, heads=2, intermediate_size=20)
CODEC = CodecConfig(codec_dim=16, code_dim=5, codebook_size=11)
TALKER = TalkerConfig(
    talker_dim=12, layers=1, heads=2, intermediate_size=20, codebook_size=11, vocab=VOCAB, max_frames=60, max_text=30
)
SMALL = OmniConfig(THINKER, VISION, AUDIO, CODEC, TALKER)

VALID = {
    "small": SMALL,
    "one patch": replace(SMALL, vision=replace(VISION, image_size=48, patch=48)),
    "other image, deeper, wider": replace(
        SMALL, vision=VisionConfig(image_size=60, patch=10, vision_dim=24, layers=3, heads=3, intermediate_size=7)
    ),
    "8 kHz": replace(SMALL, audio=replace(AUDIO, sample_rate=8000, hop=80)),
    "22.05 kHz": replace(
        SMALL,
        audio=replace(AUDIO, sample_rate=22_050, hop=220, n_fft=1024, n_mels=40),
        codec=replace(CODEC, hop=1760, codec_dim=40),
    ),
    "48 kHz": replace(
        SMALL, audio=replace(AUDIO, sample_rate=48_000, hop=480, n_fft=2048), codec=replace(CODEC, hop=3840)
    ),
    "mel bands not a multiple of 4": replace(
        SMALL, audio=replace(AUDIO, n_mels=21, layers=2, heads=1), codec=replace(CODEC, codec_dim=21)
    ),
    "one key and value head": replace(SMALL, thinker=replace(THINKER, d_model=24, heads=4, kv_heads=1, layers=2)),
    "two key and value heads for four": replace(SMALL, thinker=replace(THINKER, d_model=40, heads=4, kv_heads=2)),
    "short context": replace(SMALL, thinker=replace(THINKER, ctx_len=56)),
    "code frames of 40 ms": replace(SMALL, codec=replace(CODEC, hop=640)),
    "a code frame is one mel frame": replace(SMALL, codec=replace(CODEC, hop=160)),
    "three mel frames in a code frame": replace(SMALL, codec=replace(CODEC, hop=480)),
    "other codes": replace(
        SMALL, codec=replace(CODEC, codebook_size=3, code_dim=2), talker=replace(TALKER, codebook_size=3)
    ),
    "few frames, many voices": replace(
        SMALL, talker=replace(TALKER, talker_dim=30, heads=3, layers=2, max_frames=4, max_text=6, voices=5)
    ),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An image and half a second of stereo noise, of sizes that no configuration has."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(folder / "image.png")
    soundfile.write(folder / "audio.wav", rng.normal(size=(5512, 2)) * 0.1, 11_025)
    return folder / "image.png", folder / "audio.wav"


@pytest.mark.parametrize("name", VALID)
def test_a_configuration_works_from_file_to_answer(name: str, files: tuple[Path, Path], tmp_path: Path) -> None:
    cfg, (image, audio) = VALID[name], files
    Omni(cfg).save(tmp_path / "omni.safetensors")
    omni = Omni.from_pretrained(tmp_path / "omni.safetensors")
    assert omni.cfg == cfg and OmniConfig.from_dict(asdict(cfg)) == cfg

    resampled = math.ceil(5512 * cfg.audio.sample_rate / 11_025)
    audio_tokens = math.ceil(resampled // cfg.audio.hop / 4)
    with torch.no_grad():
        assert omni.embed("Hello.", image, audio).shape == (1, 1 + audio_tokens + 3, cfg.thinker.d_model)
    for parts in ({"text": "Hello."}, {"image": image}, {"audio": audio}, {"image": image, "audio": audio}):
        reply = omni.reply(**({"text": "Hello."} | parts), max_new_tokens=5)
        assert isinstance(reply.finish().answer, str) and 1 <= len(reply.ids) <= 5
    assert isinstance("".join(omni.transcribe(audio)), str)

    for voice in (0, cfg.talker.voices - 1):
        wav = omni.speak("Red.", voice)
        assert 0 < len(wav) <= omni.frame_limit(3) * cfg.codec.hop and len(wav) % cfg.codec.hop == 0
        assert bool(torch.isfinite(wav).all())

    codes = omni.codec.encode(torch.randn(2, 3 * cfg.codec.hop + 1) * 0.1)
    assert codes.shape == (2, 4, 2) and int(codes.max()) < cfg.codec.codebook_size
    base, res, end = omni.talker(previous(codes), torch.tensor([[4, 5], [6, 0]]), with_end=True)
    loss = F.cross_entropy(base.flatten(0, 1), codes[..., 0].flatten()) + F.cross_entropy(
        res.flatten(0, 1), codes[..., 1].flatten()
    )
    (loss + end.sigmoid().mean()).backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in omni.talker.parameters())


@pytest.mark.parametrize("name", ["8 kHz", "22.05 kHz", "mel bands not a multiple of 4", "code frames of 40 ms"])
def test_the_dry_runs_pipelines_run_at_other_sizes(name: str, files: tuple[Path, Path]) -> None:
    omni = Omni(VALID[name])
    inputs = Inputs(dict.fromkeys(PIPELINES, "Hello."), *files)
    for pipeline in PIPELINES.values():
        pipeline.run(omni, inputs)


def test_a_second_is_25_audio_tokens_at_any_rate_of_which_a_hop_is_10_ms() -> None:
    wav = torch.randn(16_000) * 0.1
    for name in ("8 kHz", "small", "48 kHz"):
        with torch.no_grad():
            assert Omni(VALID[name]).embed(audio=(wav, 16_000)).shape[1] == 25


REFUSED = [
    (lambda: ThinkerConfig(layers=0), "ThinkerConfig: layers must be a positive integer, got 0"),
    (lambda: ThinkerConfig(vocab=5000.0), "vocab must be a positive integer, got 5000.0"),  # type: ignore[arg-type]
    (lambda: ThinkerConfig(heads=True), "heads must be a positive integer, got True"),
    (lambda: ThinkerConfig(rope_theta=0.0), "rope_theta must be a positive number, got 0.0"),
    (lambda: ThinkerConfig(rope_theta=math.nan), "rope_theta must be a positive number, got nan"),
    (lambda: ThinkerConfig(d_model=250), "d_model must be divisible by heads, got d_model=250, heads=4"),
    (lambda: ThinkerConfig(d_model=20), "d_model / heads must be even, since RoPE rotates pairs; got 20 / 4 = 5"),
    (lambda: ThinkerConfig(kv_heads=3), "heads must be divisible by kv_heads, got heads=4, kv_heads=3"),
    (lambda: ThinkerConfig(kv_heads=8), "heads must be divisible by kv_heads"),
    (lambda: ThinkerConfig(ctx_len=3), "ctx_len must be at least 4"),
    (lambda: VisionConfig(image_size=112, patch=15), "image_size must be divisible by patch"),
    (lambda: VisionConfig(patch=300), "image_size must be divisible by patch"),
    (lambda: VisionConfig(vision_dim=126), "vision_dim must be divisible by 4"),
    (lambda: VisionConfig(heads=3), "vision_dim must be divisible by heads"),
    (lambda: AudioConfig(heads=5), "audio_dim must be divisible by heads"),
    (lambda: AudioConfig(audio_dim=9), "audio_dim must be even"),
    (lambda: AudioConfig(sample_rate=100), "sample_rate must lie in 1,000 … 768,000, got 100"),
    (lambda: AudioConfig(hop=600), "n_fft must be even and at least 2 × hop.*got n_fft=1024, hop=600"),
    (lambda: AudioConfig(n_fft=1023), "n_fft must be even"),
    (
        lambda: AudioConfig(hop=80, n_fft=256),
        "13 of 128 mel filters hold no frequency bin. Use n_fft=512, or fewer n_mels",
    ),
    (lambda: TalkerConfig(codebooks=3), "codebooks must be 2, since the outputs are a base and a residual code; got 3"),
    (lambda: TalkerConfig(talker_dim=15), "talker_dim / heads must be even"),
    (lambda: TalkerConfig(voices=5001), "each voice but the first needs a row"),
    (lambda: CodecConfig(codebook_size=-1), "codebook_size must be a positive integer"),
    (lambda: replace(TINY, codec=CodecConfig(codebooks=3)), "talker.codebooks must equal codec.codebooks.*got 2 and 3"),
    (lambda: replace(TINY, talker=TalkerConfig(codebook_size=64)), "talker.codebook_size must equal .*got 64 and 128"),
    (lambda: replace(TINY, codec=CodecConfig(hop=1000)), "codec.hop must be a multiple of audio.hop.*got 1000 and 160"),
    (lambda: replace(TINY, codec=CodecConfig(codec_dim=64)), "codec.codec_dim must equal audio.n_mels.*got 64 and 128"),
    (lambda: Omni(replace(SMALL, thinker=replace(THINKER, vocab=100))), r"thinker.vocab must be at least \d+, got 100"),
    (
        lambda: Omni(replace(SMALL, talker=replace(TALKER, vocab=VOCAB - 9, voices=2))),
        r"talker.vocab must be at least \d+, got \d+: the tokenizer has",
    ),
    (
        lambda: SpeechCodec(CodecConfig(codec_dim=600)),
        "codec_dim=600 must be a product t × b, with t ≤ 4 .* b ≤ 128 over the mel",
    ),
    (lambda: SpeechCodec(CodecConfig(codec_dim=64), single_frame=True), "codec_dim must equal n_mels; got 64 and 128"),
]


@pytest.mark.parametrize(("build", "reason"), REFUSED)
def test_any_other_is_refused_with_the_reason(build: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        build()  # type: ignore[operator]


def test_empty_mel_filters_are_those_of_torchaudio() -> None:
    for rate in (1000, 8000, 11_025, 16_000, 44_100):
        for n_fft in (64, 400, 512, 1024):
            for n_mels in (1, 16, 40, 80, 128):
                with pytest.warns() if empty_mel_filters(rate, n_fft, n_mels) else torch.no_grad():
                    filters = melscale_fbanks(n_fft // 2 + 1, 0.0, rate / 2, n_mels, rate, "slaney", "slaney")
                assert empty_mel_filters(rate, n_fft, n_mels) == int((filters.sum(dim=0) == 0).sum())


def test_the_single_frame_window_overlaps_for_every_hop() -> None:
    assert MelFrontend().n_fft == 1024 and MelFrontend(hop=1280).n_fft == 2048
    for hop in (100, 512, 513, 1600, 5000):
        assert hop <= 0.75 * MelFrontend(hop=hop).n_fft
