"""The model on onnxruntime: the same answers, transcripts and codes as `Omni`, without PyTorch's dispatch per step.

    model = OnnxOmni("out/onnx")
    model.reply(text="What colour is the star?", image="scene.png")

What is given is loaded and checked by `Omni`'s own methods. The tokenizer, the parsing of replies and Griffin-Lim are
the library's own too.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int

from tinyomni.audio import MelFrontend, ctc_greedy
from tinyomni.codec import PostNet, stream_mel
from tinyomni.config import FRAME_HOP, OmniConfig, TalkerConfig, ThinkerConfig
from tinyomni.errors import InputError
from tinyomni.files import read_json
from tinyomni.generation import Step
from tinyomni.io import AudioLike, ImageLike
from tinyomni.omni import Omni, TextLike
from tinyomni.reply import Reply, Transcript
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
        self.thresholds, self.style = self.about["thresholds"], self.about.get("style", "plain")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self.sessions = {
            name: ort.InferenceSession(self.folder / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
            for name in self.about["graphs"]
        }
        cfg = OmniConfig.from_dict(self.about["config"])
        # the exported token table has no spare rows
        self.cfg = replace(cfg, thinker=replace(cfg.thinker, vocab=self.tokenizer.n_pieces))
        self.device = torch.device("cpu")
        self.mel = MelFrontend(cfg=self.cfg.audio)
        self.vocoder = GriffinLimVocoder(self.about["vocoder"]["hop"], cfg=self.cfg.audio)

    @property
    def as_omni(self) -> Omni:
        """The same object, for those methods of `Omni` that need no weights, only what this class has too."""
        return cast(Omni, self)

    def run(self, name: str, **inputs: Array) -> list[Array]:
        """One graph."""
        return self.sessions[name].run(None, inputs)

    def empty_cache(self, config: ThinkerConfig | TalkerConfig, dim: int, heads: int) -> tuple[Array, Array]:
        """Keys and values of no tokens yet."""
        shape = (config.layers, 1, heads, 0, dim // config.heads)
        return np.zeros(shape, np.float32), np.zeros(shape, np.float32)

    # -- think ---------------------------------------------------------------------------------------------------

    def text_ids(self, text: TextLike) -> Int[torch.Tensor, "1 text_tokens"]:
        """As `Omni.text_ids`."""
        return Omni.text_ids(self.as_omni, text)

    def embed_text(self, ids: Int[torch.Tensor, "1 text_tokens"]) -> Float[torch.Tensor, "1 text_tokens d_model"]:
        """As `Omni.embed_text`."""
        return torch.from_numpy(self.run("embed", ids=ids.long().numpy())[0])

    def embed_image(self, img: Float[torch.Tensor, "1 channels height width"]) -> Float[torch.Tensor, "1 1 d_model"]:
        """As `Omni.embed_image`."""
        return torch.from_numpy(self.run("image", image=img.numpy())[0])

    def run_audio(self, wav: Float[torch.Tensor, "1 samples"]) -> list[Array]:
        """A recording → its vectors for the Thinker, and the log-probabilities of the recogniser."""
        self.mel(wav[:, : self.mel.hop])  # refuses a recording that is shorter than a frame
        return self.run("audio", mel=self.run("mel", wav=wav.numpy())[0])

    def embed_audio(self, wav: Float[torch.Tensor, "1 samples"]) -> Float[torch.Tensor, "1 audio_tokens d_model"]:
        """As `Omni.embed_audio`."""
        Omni.check_audio(self.as_omni, wav)
        return torch.from_numpy(self.run_audio(wav)[0])

    def load_recording(self, audio: AudioLike, trim: bool) -> Float[torch.Tensor, "samples"]:
        """As `Omni.load_recording`."""
        return Omni.load_recording(self.as_omni, audio, trim)

    def embed(
        self,
        text: TextLike | None = None,
        image: ImageLike | None = None,
        audio: AudioLike | None = None,
        trim: bool = False,
    ) -> Float[torch.Tensor, "1 total d_model"]:
        """As `Omni.embed`."""
        return Omni.embed(self.as_omni, text, image, audio, trim)

    def steps(self, x: Float[torch.Tensor, "1 total d_model"], max_new_tokens: int) -> Iterator[Step]:
        """Greedy decoding with the cache."""
        cfg = self.cfg.thinker
        keys, values = self.empty_cache(cfg, cfg.d_model, cfg.kv_heads)
        scale = np.ones((cfg.layers, cfg.heads), np.float32)
        for _ in range(max_new_tokens):
            logits, _, keys, values = self.run(
                "think", embeddings=x.numpy(), keys=keys, values=values, head_scale=scale
            )
            best = int(logits[0].argmax())
            shifted = logits[0] - logits[0].max()
            log_prob = float(shifted[best] - np.log(np.exp(shifted).sum()))
            yield Step(torch.tensor([best]), torch.tensor([log_prob]))
            if best == EOS:
                return
            x = self.embed_text(torch.tensor([[best]]))

    def reply(
        self,
        text: TextLike | None = None,
        image: ImageLike | None = None,
        audio: AudioLike | None = None,
        trim: bool = False,
        max_new_tokens: int = 64,
    ) -> Reply:
        """As `Omni.reply`, greedy."""
        if text is None and image is None and audio is None:
            raise InputError("OnnxOmni.reply: expected at least one of text=, image=, audio=")
        if not (isinstance(max_new_tokens, int) and max_new_tokens >= 1):
            raise InputError(f"OnnxOmni.reply: max_new_tokens must be an integer, at least 1, got {max_new_tokens!r}")
        read = None
        if audio is not None:
            wav = self.load_recording(audio, trim)
            audio = wav, self.cfg.audio.sample_rate
            read = (lambda: self.recognize(wav)[0]) if "asr" in self.thresholds else None
        prompt = self.embed([BOS] if text is None else text, image, audio)
        if prompt.shape[1] + max_new_tokens > self.cfg.thinker.ctx_len:
            raise InputError(
                f"OnnxOmni.reply: {prompt.shape[1]} prompt tokens + {max_new_tokens} new tokens = "
                f"{prompt.shape[1] + max_new_tokens} > ctx_len = {self.cfg.thinker.ctx_len}. "
                "Shorten the prompt or ask for fewer new tokens."
            )
        threshold = self.thresholds.get("spoken" if audio is not None else "typed")
        scene = None if image is None else self.thresholds.get("scene")
        steps = self.steps(prompt, max_new_tokens)
        return Reply(steps, self.tokenizer, prompt.shape[1], audio is not None, threshold, self.style, scene, read)

    def recognize(self, wav: Float[torch.Tensor, "samples"]) -> tuple[str, float]:
        """As `Omni.recognize`."""
        log_probs = torch.from_numpy(self.run_audio(wav[None])[1])
        return ctc_greedy(log_probs)[0].strip(), float(log_probs.max(dim=-1).values.mean())

    def transcribe(self, audio: AudioLike) -> Transcript:
        """As `Omni.transcribe`."""
        return Omni.transcribe(self.as_omni, audio)

    # -- speak ---------------------------------------------------------------------------------------------------

    def speech_ids(self, text: str, voice: int = 0) -> Int[torch.Tensor, "1 text_tokens"]:
        """As `Omni.speech_ids`."""
        return Omni.speech_ids(self.as_omni, text, voice)

    def frame_limit(self, text_tokens: int) -> int:
        """As `Omni.frame_limit`."""
        return Omni.frame_limit(self.as_omni, text_tokens)

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
        """As `Omni.stream_codes`."""
        return self.frames_of(self.speech_ids(text, voice).numpy())

    def frames_of(self, ids: Int[Array, "1 text_tokens"]) -> Iterator[Int[torch.Tensor, "codebooks"]]:
        """The likeliest code of each frame, until the end is likelier than not."""
        cfg = self.cfg.talker
        keys, values = self.empty_cache(cfg, cfg.talker_dim, cfg.heads)
        scale = np.ones((cfg.layers, cfg.heads), np.float32)
        codes = np.zeros((1, 1, cfg.codebooks), np.int64)
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
