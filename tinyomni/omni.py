"""Omni: the one module that knows all the models.

    embed: image, audio and text → one sequence (1, total, 256)   generate: the Thinker reads it and answers
    speak: the Talker turns the answer into codes, and the codec those into audio

Order in the sequence: image (1 token), audio (25 a second), text (BOS first).
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, SupportsIndex, Unpack, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tinyomni.audio import AudioEncoderTiny, CTCHead, MelFrontend, audio_token_count, ctc_greedy
from tinyomni.codec import RVQ, SpeechCodec
from tinyomni.config import TINY, OmniConfig
from tinyomni.errors import InputError
from tinyomni.generation import Sampling, stream
from tinyomni.io import AudioLike, ImageLike, load_audio, load_image
from tinyomni.io import weights as weights_file
from tinyomni.io.audio import check_not_silent, load_speech, trim_silence
from tinyomni.io.levels import normalize_level
from tinyomni.io.spoken_text import spoken_text
from tinyomni.reply import Reply, Transcript
from tinyomni.talker import TalkerTiny, generate_codes, max_frames, stream_codes, voice_token
from tinyomni.thinker import ThinkerLM
from tinyomni.tokenizer import BOS, BPETokenizer
from tinyomni.tracing import tokens
from tinyomni.vision import ViTTiny
from tinyomni.vocoder import GriffinLimVocoder

TextLike = str | Sequence[int] | Int[Tensor, "1 text_tokens"]
"""A text, or ids that start with BOS."""

DESCRIBE = "Describe the image."


class Omni(nn.Module):
    """Sees, hears, reads, answers, speaks. `Omni(TINY)` has fresh weights, `from_pretrained(path)` trained ones.

    `thresholds` says for `typed` and `spoken` questions and for transcripts (`asr`) below which certainty an answer is
    called unsure, and for which certainty of a `scene`; it is measured on validation data and stored with the weights.
    `style` is that of the data of the stage omni: with `wide`, a prompt may hold a conversation.
    """

    def __init__(self, cfg: OmniConfig = TINY, tokenizer: BPETokenizer | None = None) -> None:
        super().__init__()
        self.cfg = cfg
        self.tokenizer = tokenizer or BPETokenizer()
        check_vocab(cfg, self.tokenizer)
        self.thresholds: dict[str, float] = {}
        self.style = "plain"
        self.thinker = ThinkerLM(cfg.thinker)
        self.vision = ViTTiny(cfg.vision)
        self.mel = MelFrontend(cfg=cfg.audio)
        self.audio = AudioEncoderTiny(cfg.audio)
        self.ctc = CTCHead(cfg.audio.audio_dim)
        self.proj_v = nn.Linear(cfg.vision.vision_dim, cfg.thinker.d_model)
        self.proj_a = nn.Linear(cfg.audio.audio_dim, cfg.thinker.d_model)
        self.talker = TalkerTiny(cfg.talker)
        self.codec = SpeechCodec(cfg.codec, audio=cfg.audio)
        self.vocoder = GriffinLimVocoder(cfg.codec.hop, cfg=cfg.audio)
        self.eval()

    @property
    def rvq(self) -> RVQ:
        """The codebooks of the codec."""
        return self.codec.rvq

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.proj_v.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights; spectrograms and the vocoder compute in float32 in any case."""
        return self.proj_v.weight.dtype

    # -- embed ---------------------------------------------------------------------------------------------------

    def text_ids(self, text: TextLike) -> Int[Tensor, "1 text_tokens"]:
        """Text → BOS and ids, (1, text_tokens). Ids may be given instead; they must start with BOS."""
        if isinstance(text, str):
            if not text.strip():
                raise InputError("Omni.embed: the text is empty. Leave it out (text=None), or write something.")
            return torch.tensor([[BOS, *self.tokenizer.encode(text)]], device=self.device)
        try:
            ids = torch.as_tensor(text)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"Omni.embed: expected a text, or ids as integers, got {text!s:.80}") from error
        ids = ids.to(self.device)
        ids = ids[None] if ids.ndim == 1 and not isinstance(text, Tensor) else ids
        if ids.ndim != 2 or ids.shape[0] != 1 or ids.shape[1] == 0 or ids.dtype not in (torch.int32, torch.int64):
            raise InputError(
                f"Omni.embed: expected ids as integers (1, text_tokens), got {tuple(ids.shape)} {ids.dtype}. "
                "`ids.unsqueeze(0)` adds a batch axis, `ids.long()` makes int64 of another type."
            )
        if int(ids.min()) < 0 or int(ids.max()) >= self.cfg.thinker.vocab:
            raise InputError(
                f"Omni.embed: expected ids in 0 … {self.cfg.thinker.vocab - 1}, got {int(ids.min())} … {int(ids.max())}"
            )
        if int(ids[0, 0]) != BOS:
            raise InputError(
                f"Omni.embed: expected a text part that starts with BOS (id {BOS}), got {int(ids[0, 0])}. "
                f"Use [{BOS}] + tokenizer.encode(text)."
            )
        return ids

    def embed_text(self, ids: Int[Tensor, "batch text_tokens"]) -> Float[Tensor, "batch text_tokens d_model"]:
        """Ids → vectors, from the Thinker's token table."""
        return self.thinker.embed(ids)

    def embed_image(self, img: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch 1 d_model"]:
        """Image → CLS → one vector of the Thinker's width."""
        return self.proj_v(self.vision(img.to(self.dtype)))

    def check_audio(self, wav: Float[Tensor, "batch samples"]) -> None:
        """Raise an InputError for silence, and for audio that takes more than a quarter of the context."""
        check_not_silent(wav)
        rate, hop, limit = self.cfg.audio.sample_rate, self.mel.hop, self.cfg.audio_limit
        audio_tokens = audio_token_count(wav.shape[1] // hop)
        if audio_tokens > limit:
            raise InputError(
                f"Omni.embed: {wav.shape[1] / rate:.2f} s of audio are {audio_tokens} audio tokens > {limit}, "
                f"a quarter of ctx_len = {self.cfg.thinker.ctx_len}. At most {limit * 4 * hop / rate:.2f} s fit: "
                "cut the recording."
            )

    def embed_audio(self, wav: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch audio_tokens d_model"]:
        """Audio → one vector of the Thinker's width for each 40 ms."""
        self.check_audio(wav)
        return self.proj_a(self.audio(self.mel(wav).to(self.dtype)))

    def load_recording(self, audio: AudioLike, trim: bool) -> Float[Tensor, "samples"]:
        """A recording as `embed` takes it."""
        rate = self.cfg.audio.sample_rate
        wav = load_audio(audio, rate)
        return normalize_level(trim_silence(wav, rate), rate) if trim else wav

    def embed(
        self,
        text: TextLike | None = None,
        image: ImageLike | None = None,
        audio: AudioLike | None = None,
        trim: bool = False,
    ) -> Float[Tensor, "1 total d_model"]:
        """One sequence for the Thinker: image, audio, text, whichever there are: (1, total, 256).

        text: a string, or ids that start with BOS. image: path, PIL image, or float (3, h, w) in 0…1. audio: path, or
        (samples, rate); `trim` cuts off the silence around the speech and brings it to a usual level. Raises InputError
        when nothing is given or the sum exceeds ctx_len, and what the loaders raise.
        """
        parts: dict[str, Tensor] = {}
        if image is not None:
            parts["image"] = self.embed_image(load_image(image, self.cfg.vision.image_size)[None].to(self.device))
        if audio is not None:
            wav = self.load_recording(audio, trim)
            parts["audio"] = self.embed_audio(wav[None].to(self.device))
        if text is not None:
            parts["text"] = self.embed_text(self.text_ids(text))
        if not parts:
            raise InputError("Omni.embed: expected at least one of text=, image=, audio=")
        for name, part in parts.items():  # the ledger of a running trace
            tokens(name, part.shape[1], of=self.cfg.thinker.ctx_len)
        return fuse(parts, self.cfg.thinker.ctx_len)

    # -- generate ------------------------------------------------------------------------------------------------

    def reply(
        self,
        text: TextLike | None = None,
        image: ImageLike | None = None,
        audio: AudioLike | None = None,
        trim: bool = False,
        **sampling: Unpack[Sampling],
    ) -> Reply:
        """The reply while it is generated: an iterator of its pieces, which then knows how certain they were.

        The prompt is built as in training: the text part starts with BOS even where it is empty. A recording is taken
        as it is, or with `trim` without the silence around the speech, of which the audio encoder has learned little,
        and at a usual level.

        Transcript, description of the scene, lookup and answer are generated in one go; `Reply` has them apart.
        `sampling` is max_new_tokens, temperature, top_k, top_p and seed (`generation.stream`). Raises what `embed`
        raises, and InputError when prompt + max_new_tokens > ctx_len.
        """
        if text is None and image is None and audio is None:
            raise InputError("Omni.reply: expected at least one of text=, image=, audio=")
        read = None
        if audio is not None:
            wav = self.load_recording(audio, trim)
            audio = wav, self.cfg.audio.sample_rate
            read = (lambda: self.recognize(wav)[0]) if "asr" in self.thresholds else None
        with torch.no_grad():
            prompt = self.embed([BOS] if text is None else text, image, audio)
        steps = stream(self.thinker, embeddings=prompt, vocab_limit=self.tokenizer.n_pieces, **sampling)
        spoken = audio is not None
        threshold = self.thresholds.get("spoken" if spoken else "typed")
        scene = None if image is None else self.thresholds.get("scene")
        return Reply(steps, self.tokenizer, prompt.shape[1], spoken, threshold, self.style, scene, read)

    @overload
    def generate(
        self,
        text: TextLike | None = None,
        image: ImageLike | None = None,
        audio: AudioLike | None = None,
        *,
        stream: Literal[False] = False,
        trim: bool = False,
        **sampling: Unpack[Sampling],
    ) -> str: ...

    @overload
    def generate(
        self,
        text: TextLike | None = None,
        image: ImageLike | None = None,
        audio: AudioLike | None = None,
        *,
        stream: Literal[True],
        trim: bool = False,
        **sampling: Unpack[Sampling],
    ) -> Reply: ...

    def generate(
        self,
        text: TextLike | None = None,
        image: ImageLike | None = None,
        audio: AudioLike | None = None,
        *,
        stream: bool = False,
        trim: bool = False,
        **sampling: Unpack[Sampling],
    ) -> str | Reply:
        """The answer as a string, or with `stream=True` an iterator over the pieces of all that is generated, `Reply`.

        It stops at EOS. Arguments and errors are those of `reply`: `generate(text="What is it?", image="cat.jpg")`.
        """
        reply = self.reply(text, image, audio, trim, **sampling)
        return reply if stream else reply.finish().answer

    # -- transcribe ----------------------------------------------------------------------------------------------

    def transcribe(self, audio: AudioLike) -> Transcript:
        """The text of a recording, by the recogniser alone: an iterator of pieces of text.

        audio: path, or (samples, rate); silence around the speech is cut off. The recogniser was trained on sentences;
        a recording longer than the Thinker could take is split where it is quietest. Raises what `load_speech` raises.
        """
        wav, rate = load_speech(audio, self.cfg.audio.sample_rate)
        wav = normalize_level(wav, rate)
        longest = self.cfg.audio_limit * 4 * self.mel.hop
        window = max(self.mel.hop, min(rate // 10, longest // 4))
        return Transcript(map(self.recognize, split_audio(wav, longest, window)), self.thresholds.get("asr"))

    @torch.no_grad()
    def recognize(self, wav: Float[Tensor, "samples"]) -> tuple[str, float]:
        """The text of one part of a recording, and the mean log-probability of its likeliest characters."""
        log_probs = self.ctc(self.audio(self.mel(wav[None].to(self.device)).to(self.dtype)))
        return ctc_greedy(log_probs)[0].strip(), float(log_probs.max(dim=-1).values.mean())

    # -- speak ---------------------------------------------------------------------------------------------------

    def speech_ids(self, text: str, voice: int = 0) -> Int[Tensor, "1 text_tokens"]:
        """The Talker's input for a text, with numbers and symbols as words: ids without BOS, the voice in front."""
        if not isinstance(text, str):
            raise TypeError(f"Omni.speak: expected a text, got {type(text).__name__}")
        if not text.strip():
            raise InputError("Omni.speak: the text is empty")
        if not isinstance(voice, SupportsIndex) or voice not in range(self.cfg.talker.voices):
            raise InputError(f"Omni.speak: expected a voice in 0 … {self.cfg.talker.voices - 1}, got {voice!r}")
        ids = [*voice_token(voice, self.cfg.talker.vocab), *self.tokenizer.encode(spoken_text(text))]
        if len(ids) > self.cfg.talker.max_text:
            raise InputError(
                f"Omni.speak: the text has {len(ids)} tokens > max_text = {self.cfg.talker.max_text}. "
                "Speak it sentence by sentence."
            )
        return torch.tensor([ids], device=self.device)

    def frame_limit(self, text_tokens: int) -> int:
        """The most frames that the Talker generates for a text of so many tokens: the cap, as far as it has room."""
        return min(max_frames(text_tokens), self.cfg.talker.max_frames)

    def stream_codes(self, text: str, voice: int = 0) -> Iterator[Int[Tensor, "codebooks"]]:
        """Those of `speech_codes`, frame by frame."""
        ids = self.speech_ids(text, voice)
        return stream_codes(self.talker, ids, self.frame_limit(ids.shape[1]))

    @torch.no_grad()
    def speech_codes(self, text: str, voice: int = 0) -> Int[Tensor, "1 frames codebooks"]:
        """The codes that the Talker generates for a text, up to the end of speech, at most `frame_limit` frames."""
        ids = self.speech_ids(text, voice)
        return generate_codes(self.talker, ids, self.frame_limit(ids.shape[1]))[:, 1:]

    @overload
    def speak(self, text: str, voice: int = 0, stream: Literal[False] = False) -> Float[Tensor, "samples"]: ...

    @overload
    def speak(self, text: str, voice: int = 0, *, stream: Literal[True]) -> Iterator[Float[Tensor, "_"]]: ...

    def speak(
        self, text: str, voice: int = 0, stream: bool = False
    ) -> Float[Tensor, "samples"] | Iterator[Float[Tensor, "_"]]:
        """Text → float32 samples, (frames × 1280,), at the sample rate of the configuration (16 kHz).

        With `stream=True` an iterator over pieces of 80 ms, each there before the next frames are written. The mel
        spectrogram is the same; the level is a fixed one, where else the peak is 0.95 (`vocoder.StreamingVocoder`).
        """
        if not stream:
            with torch.no_grad():
                return self.codec.decode(self.speech_codes(text, voice))[0].cpu()
        return (piece.cpu() for piece in self.codec.stream(self.stream_codes(text, voice)))

    # -- weights -------------------------------------------------------------------------------------------------

    def save(self, path: str | Path, **metadata: Any) -> None:
        """Weights in half precision, with all that it takes to use them; `metadata` is kept beside them as JSON."""
        weights_file.write(
            path,
            self.state_dict(),
            asdict(self.cfg),
            self.tokenizer,
            thresholds=self.thresholds,
            style=self.style,
            **metadata,
        )

    @classmethod
    def from_pretrained(cls, path: str | Path | None = None) -> "Omni":
        """Read what `save` wrote, as float32; without a path, the weights that ship with the package.

        Raises InputError for a missing file, and for one that is damaged, of another format or does not fit.
        """
        tensors, metadata = weights_file.read(path)
        name = Path(path).name if path is not None else weights_file.SHIPPED.name
        cfg, thresholds = weights_file.sizes_of(tensors, metadata, name)
        omni = cls(cfg, weights_file.tokenizer_of(metadata))
        omni.thresholds, omni.style = thresholds, weights_file.style_of(metadata, name)
        own = omni.state_dict()
        try:
            omni.load_state_dict(
                {
                    key: weights_file.pad_table(key, tensor, own.get(key, tensor))
                    for key, tensor in tensors.items()
                    if not key.startswith(weights_file.TEACHER)
                }
            )
        except RuntimeError as error:
            raise InputError(
                f"{weights_file.WHERE}: the weights in {name} do not fit the sizes in it: {error}"
            ) from error
        return omni


def check_vocab(cfg: OmniConfig, tokenizer: BPETokenizer) -> None:
    """Raise an InputError unless the token tables of Thinker and Talker have a row for each piece, and each voice."""
    for name, vocab, needed in (
        ("thinker", cfg.thinker.vocab, tokenizer.n_pieces),
        ("talker", cfg.talker.vocab, tokenizer.n_pieces + cfg.talker.voices - 1),
    ):
        if vocab < needed:
            raise InputError(
                f"Omni: {name}.vocab must be at least {needed}, got {vocab}: "
                f"the tokenizer has {tokenizer.n_pieces} pieces, "
                "and each voice of the Talker but the first takes a row. Use a larger vocab, "
                "or train a smaller tokenizer: tinyomni train tokenizer"
            )


def split_audio(wav: Float[Tensor, "samples"], longest: int, window: int) -> Iterator[Float[Tensor, "_"]]:
    """Parts of at most `longest` samples; each ends in the quietest `window` of its second half."""
    while len(wav) > longest:
        half = wav[longest // 2 : longest]
        energy = half[: len(half) // window * window].unflatten(0, (-1, window)).square().mean(dim=1)
        end = longest // 2 + (int(energy.argmin()) * 2 + 1) * window // 2
        yield wav[:end]
        wav = wav[end:] if len(wav) >= end + window else wav[:0]  # a shorter rest holds no word
    if len(wav):
        yield wav


def fuse(parts: dict[str, Float[Tensor, "batch _ d_model"]], ctx_len: int) -> Float[Tensor, "batch total d_model"]:
    """Concatenate the parts along the token axis. Raises InputError with the sum if they exceed ctx_len."""
    total = sum(part.shape[1] for part in parts.values())
    if total > ctx_len:
        counts = " + ".join(f"{name} {part.shape[1]}" for name, part in parts.items())
        raise InputError(
            f"Omni.embed: {counts} = {total} tokens > ctx_len = {ctx_len}. Shorten the text or the recording."
        )
    return torch.cat(list(parts.values()), dim=1)
