"""The model on onnxruntime: the same answers, transcripts and codes as `Omni`, without PyTorch's dispatch per step.

    model = OnnxOmni("out/onnx")
    model.reply(text="What colour is the star?", image="scene.png")

Only loading of files, the tokenizer, the parsing of replies and Griffin-Lim are the library's own.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from tinyomni.audio import ctc_greedy
from tinyomni.codec import PostNet, stream_mel
from tinyomni.config import FRAME_HOP, AudioConfig
from tinyomni.errors import InputError
from tinyomni.files import read_json
from tinyomni.generation import Step
from tinyomni.io import AudioLike, ImageLike, load_audio, load_image
from tinyomni.io.audio import check_not_silent, load_speech, trim_silence
from tinyomni.io.levels import normalize_level
from tinyomni.io.spoken_text import spoken_text
from tinyomni.reply import Reply, Transcript
from tinyomni.talker import max_frames, voice_token
from tinyomni.tokenizer import BOS, EOS, BPETokenizer
from tinyomni.vocoder import GriffinLimVocoder, StreamingVocoder

Array = np.ndarray[Any, Any]


class OnnxOmni:
    """The graphs of a folder that `tinyomni export-onnx` wrote, on the CPU."""

    def __init__(self, folder: str | Path, threads: int = 0, tokenizer: BPETokenizer | None = None) -> None:
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise InputError(f"the ONNX backend needs the extra `onnx`: pip install -e '.[onnx]' ({error})") from error
        self.folder = Path(folder)
        if not (self.folder / "model.json").is_file():
            raise InputError(f"expected model.json in {self.folder}. Make it: tinyomni export-onnx {self.folder}")
        self.about = read_json(self.folder / "model.json")
        self.tokenizer = tokenizer or BPETokenizer()
        if self.about["tokenizer"]["fingerprint"] != self.tokenizer.fingerprint:
            raise InputError(f"{self.folder} was exported with another tokenizer. Export it again from these weights.")
        self.style = self.about.get("style", "plain")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self.sessions = {
            name: ort.InferenceSession(self.folder / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
            for name in self.about["graphs"]
        }
        cfg = self.about["config"]
        self.thinker, self.talker, self.audio = cfg["thinker"], cfg["talker"], AudioConfig(**cfg["audio"])
        self.image_size = cfg["vision"]["image_size"]
        self.vocoder = GriffinLimVocoder(self.about["vocoder"]["hop"], cfg=self.audio)

    def run(self, name: str, **inputs: Array) -> list[Array]:
        """One graph."""
        return self.sessions[name].run(None, inputs)

    def empty_cache(self, config: dict[str, Any], dim: int, heads: int) -> tuple[Array, Array]:
        """Keys and values of no tokens yet."""
        shape = (config["layers"], 1, heads, 0, dim // config["heads"])
        return np.zeros(shape, np.float32), np.zeros(shape, np.float32)

    def usual(self, wav: Float[torch.Tensor, "samples"]) -> Float[torch.Tensor, "samples"]:
        """A recording at the level of training."""
        return normalize_level(wav, self.audio.sample_rate)

    def check_length(self, wav: Float[torch.Tensor, "samples"]) -> None:
        """Raise InputError for a recording that is too short for a frame, or longer than the Thinker's share of it."""
        tokens, limit = -(-(len(wav) // self.audio.hop) // 4), self.thinker["ctx_len"] // 4
        if tokens == 0:
            raise InputError(f"expected at least one frame of {self.audio.hop} samples, got {len(wav)} samples")
        if tokens > limit:
            raise InputError(
                f"the recording has {tokens} audio tokens > {limit}, a quarter of ctx_len = {self.thinker['ctx_len']}. "
                f"At most {limit * 4 * self.audio.hop / self.audio.sample_rate:.2f} s fit: cut the recording."
            )

    def load_recording(self, audio: AudioLike, trim: bool) -> Float[torch.Tensor, "samples"]:
        """As `Omni.load_recording`."""
        wav = load_audio(audio, self.audio.sample_rate)
        return self.usual(trim_silence(wav, self.audio.sample_rate)) if trim else wav

    # -- think ---------------------------------------------------------------------------------------------------

    def embed(
        self, text: str | None, image: ImageLike | None, audio: AudioLike | None, trim: bool = False
    ) -> Float[Array, "1 total d_model"]:
        """As `Omni.embed`."""
        parts = []
        if image is not None:
            parts.append(self.run("image", image=load_image(image, self.image_size)[None].numpy())[0])
        if audio is not None:
            wav = self.load_recording(audio, trim)
            check_not_silent(wav)
            self.check_length(wav)
            parts.append(self.run("audio", mel=self.run("mel", wav=wav[None].numpy())[0])[0])
        ids = [BOS, *(self.tokenizer.encode(text) if text else [])]
        parts.append(self.run("embed", ids=np.array([ids]))[0])
        return np.concatenate(parts, axis=1)

    def steps(self, x: Float[Array, "1 total d_model"], max_new_tokens: int) -> Iterator[Step]:
        """Greedy decoding with the cache."""
        keys, values = self.empty_cache(self.thinker, self.thinker["d_model"], self.thinker["kv_heads"])
        scale = np.ones((self.thinker["layers"], self.thinker["heads"]), np.float32)
        for _ in range(max_new_tokens):
            logits, _, keys, values = self.run("think", embeddings=x, keys=keys, values=values, head_scale=scale)
            best = int(logits[0].argmax())
            shifted = logits[0] - logits[0].max()
            log_prob = float(shifted[best] - np.log(np.exp(shifted).sum()))
            yield Step(torch.tensor([best]), torch.tensor([log_prob]))
            if best == EOS:
                return
            x = self.run("embed", ids=np.array([[best]]))[0]

    def reply(
        self,
        text: str | None = None,
        image: ImageLike | None = None,
        audio: AudioLike | None = None,
        trim: bool = False,
        max_new_tokens: int = 64,
    ) -> Reply:
        """As `Omni.reply`, greedy."""
        if text is None and image is None and audio is None:
            raise InputError("OnnxOmni.reply: expected at least one of text=, image=, audio=")
        read = None
        if audio is not None:
            wav = self.load_recording(audio, trim)
            audio = wav, self.audio.sample_rate
            read = (lambda: self.recognize(wav)[0]) if "asr" in self.about["thresholds"] else None
        prompt = self.embed(text, image, audio)
        if prompt.shape[1] + max_new_tokens > self.thinker["ctx_len"]:
            raise InputError(
                f"OnnxOmni.reply: {prompt.shape[1]} prompt tokens + {max_new_tokens} new tokens > "
                f"ctx_len = {self.thinker['ctx_len']}. Shorten the text or the recording."
            )
        threshold = self.about["thresholds"].get("spoken" if audio is not None else "typed")
        scene = None if image is None else self.about["thresholds"].get("scene")
        steps = self.steps(prompt, max_new_tokens)
        return Reply(steps, self.tokenizer, prompt.shape[1], audio is not None, threshold, self.style, scene, read)

    def recognize(self, wav: Float[torch.Tensor, "samples"]) -> tuple[str, float]:
        """As `Omni.recognize`."""
        log_probs = torch.from_numpy(self.run("audio", mel=self.run("mel", wav=wav[None].numpy())[0])[1])
        return ctc_greedy(log_probs)[0].strip(), float(log_probs.max(dim=-1).values.mean())

    def transcribe(self, audio: AudioLike) -> Transcript:
        """As `Omni.transcribe`, of a recording that fits the Thinker's share of the context."""
        wav = self.usual(load_speech(audio, self.audio.sample_rate)[0])
        self.check_length(wav)
        return Transcript(map(self.recognize, [wav]), self.about["thresholds"].get("asr"))

    # -- speak ---------------------------------------------------------------------------------------------------

    def speech_ids(self, text: str, voice: int = 0) -> Int[torch.Tensor, "1 text_tokens"]:
        """As `Omni.speech_ids`."""
        if not text.strip():
            raise InputError("OnnxOmni.speak: the text is empty")
        ids = [*voice_token(voice, self.talker["vocab"]), *self.tokenizer.encode(spoken_text(text))]
        if len(ids) > self.talker["max_text"]:
            raise InputError(f"OnnxOmni.speak: the text has {len(ids)} tokens > max_text = {self.talker['max_text']}")
        return torch.tensor([ids])

    def frame_limit(self, text_tokens: int) -> int:
        """As `Omni.frame_limit`."""
        return min(max_frames(text_tokens), self.talker["max_frames"])

    @property
    def codec(self) -> "OnnxOmni":
        """What has `decode` and `stream`, as `Omni.codec` has them."""
        return self

    def decode(self, codes: Int[torch.Tensor, "1 frames codebooks"]) -> Float[torch.Tensor, "1 samples"]:
        """As `SpeechCodec.decode`."""
        mel = torch.from_numpy(self.run("codec", codes=codes.numpy())[0])
        wav = self.vocoder.mel_to_audio(mel[0], domain="log")
        assert isinstance(wav, torch.Tensor)
        return wav[None]

    def stream(self, frames: Iterable[Int[torch.Tensor, "codebooks"]]) -> Iterator[Float[torch.Tensor, "samples"]]:
        """As `SpeechCodec.stream`."""
        vocoder = StreamingVocoder(self.vocoder, FRAME_HOP // self.vocoder.hop)

        def to_mel(codes: Int[torch.Tensor, "1 frames codebooks"]) -> Float[torch.Tensor, "1 mel_frames n_mels"]:
            return torch.from_numpy(self.run("codec", codes=codes.numpy())[0])

        return vocoder.stream(stream_mel(frames, to_mel, PostNet.REACH))

    def speech_codes(self, text: str, voice: int = 0) -> Int[torch.Tensor, "1 frames codebooks"]:
        """As `Omni.speech_codes`."""
        return torch.stack(list(self.stream_codes(text, voice)))[None]

    def stream_codes(self, text: str, voice: int = 0) -> Iterator[Int[torch.Tensor, "codebooks"]]:
        """As `Omni.stream_codes`: the likeliest code of each frame, until the end is likelier than not."""
        ids = self.speech_ids(text, voice).numpy()
        keys, values = self.empty_cache(self.talker, self.talker["talker_dim"], self.talker["heads"])
        scale = np.ones((self.talker["layers"], self.talker["heads"]), np.float32)
        codes = np.zeros((1, 1, self.talker["codebooks"]), np.int64)
        for written in range(self.frame_limit(ids.shape[1])):
            base, residual, end, _, keys, values = self.run(
                "talk", text=ids, codes=codes, keys=keys, values=values, head_scale=scale
            )
            if written and end[0] > 0:
                return
            codes = np.array([[[base[0].argmax(), residual[0].argmax()]]])
            yield torch.from_numpy(codes[0, 0])
            ids = ids[:, :0]

    def speak(self, text: str, voice: int = 0) -> Float[torch.Tensor, "samples"]:
        """As `Omni.speak`."""
        return self.decode(self.speech_codes(text, voice))[0]
