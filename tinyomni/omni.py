"""Omni: the only room that knows all the models.

    embed: picture, sound and text → one sequence (1, total, 256)   think: the Thinker reads it and answers
    say: the Talker turns the answer into codes, and the codec those into sound

Order in the sequence: picture (1 token), sound (25 a second), text (BOS first).
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tinyomni import config
from tinyomni.audio import AudioEncoderTiny, CTCHead, MelFrontend, audio_token_count, ctc_greedy
from tinyomni.codec import RVQ, SpeechCodec
from tinyomni.config import TINY, OmniConfig
from tinyomni.generation import BOS, EOS, stream
from tinyomni.io import weights as weights_file
from tinyomni.io.files import check_not_silent, load_audio, load_image, load_speech
from tinyomni.talker import TalkerTiny, generate_codes, max_frames, voice_token
from tinyomni.thinker import ThinkerLM
from tinyomni.tokenizer import BPETokenizer
from tinyomni.vision import ViTTiny
from tinyomni.vocoder import GriffinLimVocoder

DESCRIBE = "Describe the image."
NOTED = ": "  # between what is seen and the answer; no other text of the world has a colon
VOICES = 2  # that the Talker learns


class Omni(nn.Module):
    """Sees, hears, reads, answers, speaks. `Omni(TINY)` has fresh weights, `from_pretrained(path)` trained ones."""

    def __init__(self, cfg: OmniConfig = TINY, tokenizer: BPETokenizer | None = None) -> None:
        super().__init__()
        self.cfg = cfg
        self.tokenizer = tokenizer or BPETokenizer()
        self.limits: dict[str, float] = {}  # certainty below which an answer is called unsure; measured, not guessed
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

    def check_audio(self, wav: Float[Tensor, "batch samples"]) -> None:
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
        self.check_audio(wav)
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

    def reply(
        self,
        text: Any = None,
        image: Any = None,
        audio: Any = None,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> "Reply":
        """The answer while it is written: an iterator of its pieces, which then knows how certain they were.

        It is asked as it was trained: the text part starts with BOS even where it is empty. A recording is taken as it
        is; `load_speech` cuts off the silence around what is said, of which the ear has learned little.

        What is heard and seen is written down first, then what is looked up in it, and then the answer, in one go:
        `Reply.heard`, `seen`, `found` and `answer`. Raises what `embed` raises, and ValueError when
        prompt + max_new_tokens > ctx_len.
        """
        if text is None and image is None and audio is None:
            raise ValueError("Omni.embed: give at least one of text=, image=, audio=")
        with torch.no_grad():
            prompt = self.embed([BOS] if text is None else text, image, audio)
        ids = stream(
            self.thinker, embeddings=prompt, max_new_tokens=max_new_tokens, vocab_limit=self.tokenizer.n_pieces,
            temperature=temperature, top_k=top_k, top_p=top_p, seed=seed,
        )  # fmt: skip
        return Reply(self, prompt, ids, spoken=audio is not None)

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
        """The answer as a string, or with `stream=True` an iterator over the pieces of all that is written, `Reply`.

        It ends at EOS by itself. Raises what `reply` raises.
        """
        reply = self.reply(text, image, audio, max_new_tokens, temperature, top_k, top_p, seed)
        return reply if stream else reply.whole().answer

    @torch.no_grad()
    def log_probs(
        self, prompt: Float[Tensor, "1 total d_model"], ids: Int[Tensor, "1 new_tokens"]
    ) -> Float[Tensor, "1 new_tokens"]:
        """Log-probability of each of the ids, one after the other behind the prompt: one pass over all of it."""
        x = torch.cat([prompt, self.embed_text(ids[:, :-1])], dim=1)
        logits = self.thinker(embeddings=x)[:, prompt.shape[1] - 1 :, : self.tokenizer.n_pieces]
        return logits.float().log_softmax(dim=-1).gather(-1, ids[..., None]).squeeze(-1)

    # -- hear ----------------------------------------------------------------------------------------------------

    def transcribe(self, audio: Any) -> "Transcript":
        """What is said in a recording, by the ear alone: an iterator of pieces of text.

        The ear has learned on sentences; a recording longer than the Thinker could hear is cut where it is quietest.
        audio: path, or (samples, rate); silence around what is said is cut off. Raises what `load_speech` raises.
        """
        return Transcript(self, load_speech(audio)[0])

    # -- say -----------------------------------------------------------------------------------------------------

    def speech_ids(self, text: str, voice: int = 0) -> Int[Tensor, "1 text_tokens"]:
        """The text as the Talker reads it: without BOS, the voice in front."""
        if not text.strip():
            raise ValueError("Omni.speak: the text is empty: there is nothing to say")
        if voice not in range(VOICES):
            raise ValueError(f"Omni.speak: the voices are 0 … {VOICES - 1}, got {voice!r}")
        ids = torch.tensor([[*voice_token(voice), *self.tokenizer.encode(text)]], device=self.device)
        if ids.shape[1] > self.cfg.talker.max_text:
            raise ValueError(
                f"Omni.speak: the text has {ids.shape[1]} tokens > {self.cfg.talker.max_text}, all that the Talker "
                "reads at once. Speak it sentence by sentence."
            )
        return ids

    @torch.no_grad()
    def speech_codes(self, text: str, voice: int = 0) -> Int[Tensor, "1 frames codebooks"]:
        """What the Talker writes for a text. It ends by itself, at the latest after `max_frames`."""
        ids = self.speech_ids(text, voice)
        return generate_codes(self.talker, ids, max_frames(ids.shape[1]))[:, 1:]

    @torch.no_grad()
    def speak(self, text: str, voice: int = 0) -> Float[Tensor, "samples"]:
        """Text → float32 samples at 16 kHz, (frames × 1280,)."""
        return self.codec.decode(self.speech_codes(text, voice))[0].cpu()

    # -- keep ----------------------------------------------------------------------------------------------------

    def save(self, path: str | Path, **more: Any) -> None:
        """Write weights, sizes, tokenizer and limits to one safetensors file, in half precision; see `pretrained`."""
        weights_file.write(path, self.state_dict(), asdict(self.cfg), self.tokenizer, limits=self.limits, **more)

    @classmethod
    def from_pretrained(cls, path: str | Path | None = None) -> "Omni":
        """Read what `save` wrote, as float32; without a path, the weights that ship with the package.

        Raises FileNotFoundError, and ValueError for a file that is damaged, of another format or does not fit.
        """
        tensors, about = weights_file.read(path)
        name = Path(path).name if path is not None else weights_file.SHIPPED.name
        try:
            omni = cls(read_config(json.loads(about["config"])), weights_file.tokenizer_of(about))
            omni.limits = json.loads(about["limits"])
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{weights_file.STEP}: {name} has sizes of another version ({error!r})") from error
        if omni.tokenizer.n_pieces > omni.cfg.thinker.vocab:
            raise ValueError(
                f"{weights_file.STEP}: the tokenizer in {name} has {omni.tokenizer.n_pieces} pieces, its Thinker only "
                f"{omni.cfg.thinker.vocab} rows"
            )
        own = omni.state_dict()
        try:
            omni.load_state_dict({key: weights_file.fill(key, tensor, own.get(key, tensor))
                                  for key, tensor in tensors.items() if not key.startswith("eye.")})  # fmt: skip
        except RuntimeError as error:
            raise ValueError(
                f"{weights_file.STEP}: {name} does not hold the weights of a model of its sizes: {error}"
            ) from error
        return omni


class Reply(Iterator[str]):
    """An answer: its pieces one by one; then `text`, and how certain each token was, from the model's probabilities."""

    def __init__(
        self, omni: Omni, prompt: Float[Tensor, "1 total d_model"], new: Iterator[Int[Tensor, "1"]], spoken: bool
    ) -> None:
        self.omni, self.prompt, self.spoken = omni, prompt, spoken
        self.ids: list[int] = []  # with EOS, where it came
        self.text = ""
        self._pieces = self._write(new)

    def __next__(self) -> str:
        return next(self._pieces)

    def _write(self, new: Iterator[Int[Tensor, "1"]]) -> Iterator[str]:
        for number in new:
            self.ids.append(int(number[0]))
            if self.ended:
                break
            text = self.omni.tokenizer.decode(self.ids)
            # a character may need several byte pieces: wait until it is whole
            if not text.endswith("\N{REPLACEMENT CHARACTER}"):
                piece, self.text = text[len(self.text) :], text
                yield piece
        text = self.omni.tokenizer.decode(self.ids)
        if text != self.text:
            piece, self.text = text[len(self.text) :], text
            yield piece

    @property
    def ended(self) -> bool:
        """Whether it ended by itself, not because it had no more room."""
        return self.ids[-1:] == [EOS]

    def whole(self) -> "Reply":
        """This reply, when it is over."""
        for _ in self:
            pass
        return self

    @property
    def heard(self) -> str | None:
        """What was written down of a spoken question; None where nothing was spoken."""
        return take_apart(self.text, self.spoken).heard

    @property
    def seen(self) -> str | None:
        """What was written down of a picture that is asked about; None where nothing was."""
        return take_apart(self.text, self.spoken).seen

    @property
    def found(self) -> str | None:
        """What was looked up in what is seen, as field, key and value; None where nothing was."""
        return take_apart(self.text, self.spoken).found

    @property
    def answer(self) -> str:
        """The text without what was heard, seen and found."""
        return take_apart(self.text, self.spoken).answer

    @cached_property
    def certainty(self) -> float:
        """Mean log-probability of the tokens said: 0 is certain, -0.7 an even bet at each. Only once it is over."""
        ids = torch.tensor([self.ids], device=self.prompt.device)
        return float(self.omni.log_probs(self.prompt, ids).mean())

    @property
    def unsure(self) -> bool | None:
        """Less certain than all but a few right answers to validation questions were; None where nobody measured."""
        return below(self.certainty, self.omni.limits.get("spoken" if self.spoken else "typed"))


class Parts(NamedTuple):
    """The parts of a reply's text."""

    heard: str | None
    seen: str | None
    found: str | None
    answer: str


def take_apart(text: str, spoken: bool) -> Parts:
    """`What shape is the red thing? There is a red star. Shape red star: A star.` → its parts.

    Where nothing is looked up there is no second sentence: `There is a red star: I do not know.`
    """
    heard, rest = None, text
    if spoken:
        question, mark, after = text.partition("? ")
        heard, rest = (f"{question}?", after) if mark else (text, text)
    before, mark, answer = rest.rpartition(NOTED)
    seen, _, found = before.partition(". ")
    return Parts(heard, seen if mark else None, found or None, answer)


class Transcript(Iterator[str]):
    """What the ear writes: a piece of text for each part of the recording; then `text`, and how certain it was."""

    def __init__(self, omni: Omni, wav: Float[Tensor, "samples"]) -> None:
        self.omni, self.text = omni, ""
        self.scores: list[Tensor] = []
        self._pieces = self._write(wav)

    def __next__(self) -> str:
        return next(self._pieces)

    def _write(self, wav: Float[Tensor, "samples"]) -> Iterator[str]:
        omni = self.omni
        for part in cut(wav, omni.cfg.audio_limit * 4 * omni.mel.hop):
            with torch.no_grad():
                log_probs = omni.ctc(omni.audio(omni.mel(part[None].to(omni.device))))
            self.scores.append(log_probs.max(dim=-1).values.mean())
            piece = ctc_greedy(log_probs)[0].strip()
            piece = f" {piece}" if self.text and piece else piece
            self.text += piece
            yield piece

    @property
    def certainty(self) -> float:
        """Mean log-probability of the likeliest character at each moment: 0 is certain."""
        return float(torch.stack(self.scores).mean())

    @property
    def unsure(self) -> bool | None:
        """As that of `Reply`."""
        return below(self.certainty, self.omni.limits.get("asr"))


def below(certainty: float, limit: float | None) -> bool | None:
    """Whether it is too low, where there is a limit."""
    return None if limit is None else certainty < limit


def cut(wav: Float[Tensor, "samples"], most: int, window: int = 1600) -> Iterator[Float[Tensor, "_"]]:
    """Parts of at most `most` samples; each ends at the quietest tenth of a second of its second half."""
    while len(wav) > most:
        half = wav[most // 2 : most]
        loud = half[: len(half) // window * window].unflatten(0, (-1, window)).square().mean(dim=1)
        end = most // 2 + (int(loud.argmin()) * 2 + 1) * window // 2
        yield wav[:end]
        wav = wav[end:] if len(wav) >= end + window else wav[:0]  # a shorter rest holds no word
    if len(wav):
        yield wav


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
