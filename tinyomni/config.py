"""All sizes, checked when they are set. `TINY` is the model of the whole course.

Every configuration that these classes accept works from file to answer; any other is refused with the reason. Fields
are named once here: 224 pixels, 16,000 samples a second and 1280 samples a code frame occur nowhere else.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

IMAGE_SIZE = 224
MAX_IMAGE_SIZE = 8192
SAMPLE_RATE = 16_000
FRAME_HOP = 1280  # samples in one code frame: 80 ms
STYLES = ("plain", "wide")
"""How the data of training vary: within the closed world's own ways, or as people and programs draw, word and record.
"""

MIN_RATE, MAX_RATE = 1000, 768_000
"""Sample rates that recordings really have; the loaders accept the same."""


MAX_SIZE = 2**20
"""Of every integer field. A larger one is a slip, or a file that means harm: it would fill the memory."""


class Sizes:
    """What all configurations check: every integer field is in 1 … 2**20, every float a positive number."""

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            value = getattr(self, each.name)
            if each.type is int and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                self.refuse(f"{each.name} must be a positive integer, got {value!r}")
            if each.type is int and value > MAX_SIZE:
                self.refuse(f"{each.name} must be at most {MAX_SIZE:,}, got {value:,}")
            if each.type is float and not (isinstance(value, (int, float)) and 0 < value < math.inf):
                self.refuse(f"{each.name} must be a positive number, got {value!r}")

    def refuse(self, reason: str) -> None:
        """Raise a ValueError that names the class."""
        raise ValueError(f"{type(self).__name__}: {reason}")

    def check_heads(self, name: str, dim: int, heads: int, rope: bool) -> None:
        """The width must divide into heads; RoPE rotates pairs, so there each head must be even."""
        if dim % heads:
            self.refuse(f"{name} must be divisible by heads, got {name}={dim}, heads={heads}")
        if rope and dim // heads % 2:
            self.refuse(f"{name} / heads must be even, since RoPE rotates pairs; got {dim} / {heads} = {dim // heads}")


@dataclass(frozen=True)
class ThinkerConfig(Sizes):
    """The language model. `kv_heads` < `heads`: groups of heads share keys and values."""

    layers: int = 4
    d_model: int = 256
    heads: int = 4
    kv_heads: int = 4
    intermediate_size: int = 1024
    vocab: int = 5000
    ctx_len: int = 512
    rope_theta: float = 10_000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_heads("d_model", self.d_model, self.heads, rope=True)
        if self.heads % self.kv_heads:
            self.refuse(f"heads must be divisible by kv_heads, got heads={self.heads}, kv_heads={self.kv_heads}")
        if self.ctx_len < 4:
            self.refuse(f"ctx_len must be at least 4, so that a quarter holds an audio token; got {self.ctx_len}")


@dataclass(frozen=True)
class VisionConfig(Sizes):
    """The ViT."""

    image_size: int = IMAGE_SIZE
    patch: int = 16
    vision_dim: int = 128
    layers: int = 4
    heads: int = 2
    intermediate_size: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_heads("vision_dim", self.vision_dim, self.heads, rope=False)
        if self.image_size % self.patch:
            self.refuse(
                "image_size must be divisible by patch, or the border would be ignored; "
                f"got image_size={self.image_size}, patch={self.patch}"
            )
        if self.image_size > MAX_IMAGE_SIZE:
            self.refuse(f"image_size must be at most {MAX_IMAGE_SIZE:,}, got {self.image_size:,}")
        if self.vision_dim % 4:
            self.refuse(f"vision_dim must be divisible by 4: sine and cosine of row and column; got {self.vision_dim}")

    @property
    def side(self) -> int:
        """Patches in a row, and in a column."""
        return self.image_size // self.patch


@dataclass(frozen=True)
class AudioConfig(Sizes):
    """The mel front end and the audio encoder. An audio token is four hops long."""

    sample_rate: int = SAMPLE_RATE
    hop: int = 160
    n_fft: int = 1024
    n_mels: int = 128
    conv_channels: int = 64
    audio_dim: int = 192
    layers: int = 4
    heads: int = 3
    intermediate_size: int = 768

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_heads("audio_dim", self.audio_dim, self.heads, rope=False)
        if self.audio_dim % 2 or self.audio_dim < 4:
            self.refuse(f"audio_dim must be even and at least 4, half sines and half cosines; got {self.audio_dim}")
        if not MIN_RATE <= self.sample_rate <= MAX_RATE:
            self.refuse(f"sample_rate must lie in {MIN_RATE:,} … {MAX_RATE:,}, got {self.sample_rate}")
        if self.n_fft % 2 or self.hop > self.n_fft // 2:
            self.refuse(
                "n_fft must be even and at least 2 × hop, so that windows overlap by half; "
                f"got n_fft={self.n_fft}, hop={self.hop}"
            )
        if self.n_mels > self.n_fft // 2:
            self.refuse(f"n_mels must be at most n_fft // 2, got n_mels={self.n_mels}, n_fft={self.n_fft}")
        if empty := empty_mel_filters(self.sample_rate, self.n_fft, self.n_mels):
            n_fft = self.n_fft
            while empty_mel_filters(self.sample_rate, n_fft, self.n_mels):
                n_fft *= 2
            self.refuse(
                f"with n_fft={self.n_fft}, {empty} of {self.n_mels} mel filters hold no frequency bin. "
                f"Use n_fft={n_fft}, or fewer n_mels."
            )


@dataclass(frozen=True)
class CodecConfig(Sizes):
    """The speech codec: one vector of `codec_dim` numbers for each `hop` samples, as `codebooks` codes."""

    hop: int = FRAME_HOP
    codec_dim: int = 128
    code_dim: int = 64
    codebooks: int = 2
    codebook_size: int = 128


@dataclass(frozen=True)
class TalkerConfig(Sizes):
    """The model that writes codes. The last `voices` - 1 rows of its text table stand for voices, not for text."""

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
    voices: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_heads("talker_dim", self.talker_dim, self.heads, rope=True)
        if self.codebooks != 2:
            self.refuse(f"codebooks must be 2, since the outputs are a base and a residual code; got {self.codebooks}")
        if self.voices > self.vocab:
            self.refuse(f"each voice but the first needs a row of the text table; got {self.voices} > {self.vocab}")


@dataclass(frozen=True)
class OmniConfig:
    """The whole model: its parts, and what they have to agree on."""

    thinker: ThinkerConfig = field(default_factory=ThinkerConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    talker: TalkerConfig = field(default_factory=TalkerConfig)

    def __post_init__(self) -> None:
        for name in ("codebooks", "codebook_size"):
            ours, theirs = getattr(self.talker, name), getattr(self.codec, name)
            if ours != theirs:
                raise ValueError(
                    f"OmniConfig: talker.{name} must equal codec.{name}, since the Talker writes the codec's codes; "
                    f"got {ours} and {theirs}"
                )
        if self.codec.codec_dim != self.audio.n_mels:
            raise ValueError(
                "OmniConfig: codec.codec_dim must equal audio.n_mels, "
                "since the single-frame codec of the reference specification quantizes mel frames themselves; "
                f"got {self.codec.codec_dim} and {self.audio.n_mels}"
            )
        dct_size(self.codec, self.audio)

    @property
    def audio_limit(self) -> int:
        """Audio tokens that a prompt may hold: a quarter of the context."""
        return self.thinker.ctx_len // 4

    def least_parameters(self) -> int:
        """Parameters that a model of these sizes has at the very least: of its blocks, its tables and its codebooks."""
        thinker, vision, audio, talker, codec = self.thinker, self.vision, self.audio, self.talker, self.codec
        return (
            thinker.layers * 2 * thinker.d_model * (thinker.d_model + thinker.intermediate_size)
            + vision.layers * 2 * vision.vision_dim * (vision.vision_dim + vision.intermediate_size)
            + vision.vision_dim * 3 * vision.patch**2
            + audio.layers * 2 * audio.audio_dim * (audio.audio_dim + audio.intermediate_size)
            + audio.conv_channels * audio.n_mels
            + talker.layers * 2 * talker.talker_dim * (talker.talker_dim + talker.intermediate_size)
            + talker.vocab * talker.talker_dim
            + codec.codebooks * codec.codebook_size * codec.code_dim
        )

    @classmethod
    def from_dict(cls, data: dict[str, dict[str, Any]]) -> "OmniConfig":
        """The inverse of `dataclasses.asdict`. Raises KeyError and TypeError for other fields, ValueError for sizes."""
        kinds = {each.name: each.default_factory for each in dataclasses.fields(cls)}
        return cls(**{name: kind(**data[name]) for name, kind in kinds.items()})  # type: ignore[operator, misc, call-arg]


def dct_size(codec: CodecConfig, audio: AudioConfig) -> tuple[int, int]:
    """The DCT components over time and over mel bands from which the codec's numbers start: at most 4 over time.

    Raises ValueError where a code frame is no whole number of mel frames, or has too few mel values.
    """
    if codec.hop % audio.hop:
        raise ValueError(
            "OmniConfig: codec.hop must be a multiple of audio.hop, since a code frame is made of mel frames; "
            f"got {codec.hop} and {audio.hop}"
        )
    for times in range(min(4, codec.hop // audio.hop), 0, -1):
        if codec.codec_dim % times == 0 and codec.codec_dim // times <= audio.n_mels:
            return times, codec.codec_dim // times
    raise ValueError(
        f"OmniConfig: codec.codec_dim={codec.codec_dim} must be a product t × b, "
        f"with t ≤ 4 DCT components over the {codec.hop // audio.hop} mel frames of a code frame, "
        f"and b ≤ {audio.n_mels} over the mel bands. "
        "Use a smaller codec_dim, or more n_mels."
    )


def empty_mel_filters(sample_rate: int, n_fft: int, n_mels: int) -> int:
    """How many triangles of the Slaney mel scale lie between two frequency bins and so see nothing."""
    log_step, knee = math.log(6.4) / 27, 15.0  # linear up to 1000 Hz = 15 mel, logarithmic above

    def hz(mel: float) -> float:
        return mel * 200 / 3 if mel < knee else 1000 * math.exp(log_step * (mel - knee))

    top = sample_rate / 2
    most = top * 3 / 200 if top < 1000 else knee + math.log(top / 1000) / log_step
    edges = [hz(most * number / (n_mels + 1)) for number in range(n_mels + 2)]
    spacing = sample_rate / n_fft
    return sum((math.floor(low / spacing) + 1) * spacing >= high for low, high in zip(edges, edges[2:], strict=False))


TINY = OmniConfig()
