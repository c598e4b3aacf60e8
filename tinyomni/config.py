"""The sizes. `TINY` is the model of the whole course."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ThinkerConfig:
    """The language model."""

    layers: int = 4
    d_model: int = 256
    heads: int = 4
    kv_heads: int = 4
    intermediate_size: int = 1024
    vocab: int = 5000
    ctx_len: int = 512
    rope_theta: float = 10_000.0


@dataclass(frozen=True)
class VisionConfig:
    """The ViT."""

    image_size: int = 224
    patch: int = 16
    vision_dim: int = 128
    layers: int = 4
    heads: int = 2
    intermediate_size: int = 512


@dataclass(frozen=True)
class AudioConfig:
    """The mel front end and the audio encoder."""

    sample_rate: int = 16_000
    hop: int = 160
    n_fft: int = 1024
    n_mels: int = 128
    conv_channels: int = 64
    audio_dim: int = 192
    layers: int = 4
    heads: int = 3
    intermediate_size: int = 768


@dataclass(frozen=True)
class CodecConfig:
    """The speech codec: one vector of 128 numbers for each 80 ms, as two codes."""

    hop: int = 1280
    codec_dim: int = 128
    code_dim: int = 64
    codebooks: int = 2
    codebook_size: int = 128


@dataclass(frozen=True)
class TalkerConfig:
    """The model that writes codes."""

    talker_dim: int = 192
    layers: int = 4
    heads: int = 3
    intermediate_size: int = 768
    codebooks: int = 2
    codebook_size: int = 128
    vocab: int = 5000
    max_frames: int = 1000
    max_text: int = 512
    rope_theta: float = 10_000.0


@dataclass(frozen=True)
class OmniConfig:
    """All of it."""

    thinker: ThinkerConfig = field(default_factory=ThinkerConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    talker: TalkerConfig = field(default_factory=TalkerConfig)

    @property
    def audio_limit(self) -> int:
        """Audio tokens that a prompt may hold: a quarter of the context."""
        return self.thinker.ctx_len // 4


TINY = OmniConfig()
