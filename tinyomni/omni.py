"""Omni: the only room that knows all the models.

    embed: picture, sound and text → one sequence (1, total, 256)   think: the Thinker reads it and answers
    say: the Talker turns the answer into codes, and the codec those into sound

Order in the sequence: picture (1 token), sound (25 a second), text (BOS first).
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tinyomni import config
from tinyomni.audio import AudioEncoderTiny, CTCHead, MelFrontend, audio_token_count
from tinyomni.codec import RVQ, SpeechCodec
from tinyomni.config import TINY, OmniConfig
from tinyomni.files import check_not_silent, load_audio, load_image
from tinyomni.generation import BOS, EOS, stream
from tinyomni.talker import TalkerTiny, generate_codes, max_frames
from tinyomni.thinker import ThinkerLM
from tinyomni.tokenizer import BPETokenizer
from tinyomni.vision import ViTTiny
from tinyomni.vocoder import GriffinLimVocoder

FORMAT = "tinyomni 1"
SHIPPED = Path(__file__).parent / "assets" / "omni.safetensors"


class Omni(nn.Module):
    """Sees, hears, reads, answers, speaks. `Omni(TINY)` has fresh weights, `from_pretrained(path)` trained ones."""

    def __init__(self, cfg: OmniConfig = TINY) -> None:
        super().__init__()
        self.cfg = cfg
        self.tokenizer = BPETokenizer()
        self.thinker = ThinkerLM(cfg.thinker)
        self.vision = ViTTiny(cfg.vision)
        self.mel = MelFrontend(cfg.audio.hop, cfg=cfg.audio)
        self.audio = AudioEncoderTiny(cfg.audio)
        self.ctc = CTCHead(cfg.audio.audio_dim)
        self.proj_v = nn.Linear(cfg.vision.vision_dim, cfg.thinker.d_model)
        self.proj_a = nn.Linear(cfg.audio.audio_dim, cfg.thinker.d_model)
        self.talker = TalkerTiny(cfg.talker)
        self.codec = SpeechCodec(cfg.codec)
        self.vocoder = GriffinLimVocoder()
        self.eval()

    @property
    def rvq(self) -> RVQ:
        """The codebooks of the codec that speaks."""
        return self.codec.rvq

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.proj_v.weight.device

    # -- embed ---------------------------------------------------------------------------------------------------

    def text_ids(self, text: str | Sequence[int] | Int[Tensor, "1 text_tokens"]) -> Int[Tensor, "1 text_tokens"]:
        """Text → BOS and ids, (1, text_tokens). Ids may be given instead; they must start with BOS."""
        if isinstance(text, str):
            if not text.strip():
                raise ValueError("Omni.embed: the text is empty. Leave it out (text=None), or write something.")
            return torch.tensor([[BOS, *self.tokenizer.encode(text)]], device=self.device)
        ids = torch.as_tensor(text, device=self.device)
        ids = ids[None] if ids.ndim == 1 and not isinstance(text, Tensor) else ids
        if ids.ndim != 2 or ids.shape[0] != 1 or ids.shape[1] == 0 or ids.is_floating_point():
            raise ValueError(
                f"Omni.embed: ids should be (1, text_tokens) whole numbers, got {tuple(ids.shape)} {ids.dtype}. "
                "`ids.unsqueeze(0)` adds a batch axis."
            )
        if int(ids.min()) < 0 or int(ids.max()) >= self.cfg.thinker.vocab:
            raise ValueError(
                f"Omni.embed: ids must lie in 0 … {self.cfg.thinker.vocab - 1}, got {int(ids.min())} … {int(ids.max())}"
            )
        if int(ids[0, 0]) != BOS:
            raise ValueError(
                f"Omni.embed: the text part starts with BOS (id {BOS}), this one starts with {int(ids[0, 0])}. Use "
                f"[{BOS}] + tokenizer.encode(text)."
            )
        return ids

    def embed_text(self, ids: Int[Tensor, "batch text_tokens"]) -> Float[Tensor, "batch text_tokens d_model"]:
        """Ids → vectors."""
        return self.thinker.embed(ids)

    def embed_image(self, img: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch 1 d_model"]:
        """Picture → CLS → one vector."""
        return self.proj_v(self.vision(img))

    def check_sound(self, wav: Float[Tensor, "batch samples"]) -> None:
        """The door for sound: raises ValueError for silence, and for more than a quarter of the context."""
        check_not_silent(wav)
        rate, hop, limit = self.cfg.audio.sample_rate, self.mel.hop, self.cfg.audio_limit
        audio_tokens = audio_token_count(wav.shape[1] // hop)
        if audio_tokens > limit:
            raise ValueError(
                f"Omni.embed: {wav.shape[1] / rate:.2f} s of sound are {audio_tokens} audio tokens > {limit}, its "
                "share of "
                f"the context (ctx_len {self.cfg.thinker.ctx_len} // 4). {limit * 4 * hop / rate:.2f} s fit: cut the "
                "recording."
            )

    def embed_audio(self, wav: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch audio_tokens d_model"]:
        """Sound → one vector for each 40 ms."""
        self.check_sound(wav)
        return self.proj_a(self.audio(self.mel(wav)))

    def embed(self, text: Any = None, image: Any = None, audio: Any = None) -> Float[Tensor, "1 total d_model"]:
        """One sequence for the Thinker: picture, sound, text, whichever there are.

        text: str, or ids that start with BOS. image: path, PIL image, or float (3, h, w) in 0…1. audio: path, or
        (samples, rate). Returns (1, total, 256). Raises ValueError when nothing is given or the sum exceeds ctx_len.
        """
        parts: dict[str, Tensor] = {}
        if image is not None:
            parts["image"] = self.embed_image(load_image(image)[None].to(self.device))
        if audio is not None:
            parts["audio"] = self.embed_audio(load_audio(audio)[None].to(self.device))
        if text is not None:
            parts["text"] = self.embed_text(self.text_ids(text))
        if not parts:
            raise ValueError("Omni.embed: give at least one of text=, image=, audio=")
        return fuse(parts, self.cfg.thinker.ctx_len)

    # -- think ---------------------------------------------------------------------------------------------------

    def generate(
        self,
        text: Any = None,
        image: Any = None,
        audio: Any = None,
        max_new_tokens: int = 64,
        stream: bool = False,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> str | Iterator[str]:
        """The answer as a string, or with `stream=True` as an iterator of its pieces. It ends at EOS by itself.

        Raises what `embed` raises, and ValueError when prompt + max_new_tokens > ctx_len.
        """
        with torch.no_grad():
            prompt = self.embed(text, image, audio)
        pieces = self._pieces(prompt, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        return pieces if stream else "".join(pieces)

    def _pieces(self, prompt: Float[Tensor, "1 total d_model"], max_new_tokens: int, **how: Any) -> Iterator[str]:
        ids: list[int] = []
        said = ""
        for new in stream(
            self.thinker,
            embeddings=prompt,
            max_new_tokens=max_new_tokens,
            allowed=self.tokenizer.n_pieces,
            **how,
        ):
            if int(new[0]) == EOS:
                break
            ids.append(int(new[0]))
            text = self.tokenizer.decode(ids)
            # a character may need several byte pieces: wait until it is whole
            if not text.endswith("\N{REPLACEMENT CHARACTER}"):
                yield text[len(said) :]
                said = text
        text = self.tokenizer.decode(ids)
        if text != said:
            yield text[len(said) :]

    # -- say -----------------------------------------------------------------------------------------------------

    def speech_ids(self, text: str) -> Int[Tensor, "1 text_tokens"]:
        """The text as the Talker reads it: without BOS."""
        if not text.strip():
            raise ValueError("Omni.speak: the text is empty: there is nothing to say")
        ids = torch.tensor([self.tokenizer.encode(text)], device=self.device)
        if ids.shape[1] > self.cfg.talker.max_text:
            raise ValueError(
                f"Omni.speak: the text has {ids.shape[1]} tokens > {self.cfg.talker.max_text}, all that the Talker "
                "reads at once. Speak it sentence by sentence."
            )
        return ids

    @torch.no_grad()
    def speak(self, text: str) -> Float[Tensor, "samples"]:
        """Text → float32 samples at 16 kHz, (frames × 1280,). It ends by itself, at the latest after `max_frames`."""
        ids = self.speech_ids(text)
        codes = generate_codes(self.talker, ids, max_frames(ids.shape[1]))
        return self.codec.decode(codes[:, 1:])[0].cpu()

    # -- keep ----------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write weights, sizes and the tokenizer's fingerprint to one safetensors file, in half precision."""
        weights = {name: tensor.half().contiguous().cpu() for name, tensor in self.state_dict().items()}
        about = {
            "format": FORMAT,
            "config": json.dumps(asdict(self.cfg)),
            "tokenizer": self.tokenizer.fingerprint,
        }
        save_file(weights, path, metadata=about)

    @classmethod
    def from_pretrained(cls, path: str | Path | None = None) -> "Omni":
        """Read what `save` wrote; without a path, the weights that ship with the package.

        Raises FileNotFoundError, and ValueError for a damaged file, one of another kind, or another tokenizer.
        """
        source = Path(path) if path is not None else SHIPPED
        if not source.is_file():
            fix = (
                "No trained weights ship with this version: use Omni(TINY) for fresh ones."
                if path is None
                else "Is the path right?"
            )
            raise FileNotFoundError(f"Omni.from_pretrained: there is no file {source.name}. {fix}")
        try:
            with safe_open(source, framework="pt") as file:
                about = file.metadata() or {}
                weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (not a dict)
        except SafetensorError as error:
            raise ValueError(
                f"Omni.from_pretrained: {source.name} is damaged or no safetensors file ({error})"
            ) from error
        if about.get("format") != FORMAT:
            raise ValueError(
                f"Omni.from_pretrained: {source.name} is of the format {about.get('format')!r}, expected {FORMAT!r}"
            )
        omni = cls(read_config(json.loads(about["config"])))
        if about["tokenizer"] != omni.tokenizer.fingerprint:
            raise ValueError(
                f"Omni.from_pretrained: {source.name} was trained with another tokenizer than the one that ships here"
            )
        try:
            omni.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(
                f"Omni.from_pretrained: {source.name} does not hold the weights of this model: {error}"
            ) from error
        return omni


def fuse(parts: dict[str, Float[Tensor, "batch _ d_model"]], ctx_len: int) -> Float[Tensor, "batch total d_model"]:
    """Put the parts one after the other along the token axis. Raises ValueError with the sum if they exceed ctx_len."""
    total = sum(part.shape[1] for part in parts.values())
    if total > ctx_len:
        counts = " + ".join(f"{name} {part.shape[1]}" for name, part in parts.items())
        raise ValueError(
            f"Omni.embed: {counts} = {total} tokens > ctx_len = {ctx_len}. Shorten the text or the recording."
        )
    return torch.cat(list(parts.values()), dim=1)


def read_config(data: dict[str, dict[str, Any]]) -> OmniConfig:
    """The sizes, as they stand in a weights file."""
    kinds = {"thinker": config.ThinkerConfig, "vision": config.VisionConfig, "audio": config.AudioConfig,
             "codec": config.CodecConfig, "talker": config.TalkerConfig}  # fmt: skip
    return OmniConfig(**{name: kind(**data[name]) for name, kind in kinds.items()})
