"""The six pipelines of the reference specification: plain calls of the library's own modules on real input.

A trace of a run shows every call with its shapes; `specs/*.toml` says, independently of this code, which calls there
must be and which shapes they must have. Parts 1 to 3 call the modules one by one, part 4 is `Omni.embed` as it is.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tinyomni.attention import attention, merge_heads
from tinyomni.config import TINY
from tinyomni.dry_run.inputs import AUDIO, IMAGE, NEW_TOKENS, Inputs
from tinyomni.generation import generate, sample
from tinyomni.io import load_audio, load_image
from tinyomni.io.spoken_text import spoken_text
from tinyomni.layers import DecoderBlock
from tinyomni.omni import Omni, fuse
from tinyomni.stability import check_gradient_explosion, clip_gradients, validate_loss
from tinyomni.talker import TalkerTiny, generate_codes, max_frames, previous
from tinyomni.tokenizer import BPETokenizer
from tinyomni.tracing import Spec, SpecReport, Trace, tokens, trace

SPECS = Path(__file__).parent / "specs"
BATCH_SAMPLES = 64_000  # a recording of the training batch: 4 s, 50 code frames


# ---- steps that are plain operations, with no method of the library to name -----------------------------------------


def decode_text(tokenizer: BPETokenizer, ids: Int[Tensor, "tokens"]) -> str:
    """Ids → text; the tokenizer itself knows lists, which have no shape to check."""
    return tokenizer.decode(ids.tolist())


def residual(
    x: Float[Tensor, "batch tokens d_model"], branch: Float[Tensor, "batch tokens d_model"]
) -> Float[Tensor, "batch tokens d_model"]:
    """The residual connection of a block."""
    return x + branch


def append_ids(
    ids: Int[Tensor, "batch text_tokens"], new: Int[Tensor, "batch new_tokens"]
) -> Int[Tensor, "batch text_tokens+new_tokens"]:
    """The prompt and what was generated."""
    return torch.cat([ids, new], dim=1)


def make_batch(wav: Float[Tensor, "samples"], length: int) -> Float[Tensor, "batch {length}"]:
    """A batch of two: the recording, repeated to `length` samples, and the same backwards."""
    wav = wav.repeat(-(-length // wav.shape[0]))[:length]
    return torch.stack([wav, wav.flip(0)])


def talker_loss(
    base_logit: Float[Tensor, "positions codebook_size"],
    res_logit: Float[Tensor, "positions codebook_size"],
    base_target: Int[Tensor, "positions"],
    res_target: Int[Tensor, "positions"],
) -> Float[Tensor, ""]:
    """Cross-entropy of the base codes plus that of the residual codes."""
    return F.cross_entropy(base_logit, base_target) + F.cross_entropy(res_logit, res_target)


def training_step(talker: TalkerTiny, optimizer: torch.optim.Optimizer, loss: Float[Tensor, ""]) -> float:
    """Validate the loss, backward, check the gradients, clip them, update. Returns their norm before clipping."""
    validate_loss(loss)
    loss.backward()
    norm, exploded = check_gradient_explosion(talker)
    if exploded:
        optimizer.zero_grad()
        raise RuntimeError(f"Talker training: gradient explosion, norm {norm:.1f}")
    clip_gradients(talker, 1.0, norm)
    optimizer.step()
    optimizer.zero_grad()
    return norm


# ---- the pipelines --------------------------------------------------------------------------------------------------


def text_only(omni: Omni, inputs: Inputs) -> None:
    """Part 1: text → text. The first block is taken apart, because only the readable attention has weights to show."""
    thinker, n_pieces = omni.thinker, omni.tokenizer.n_pieces
    ids = omni.text_ids(inputs.texts["text"])
    tokens("text", ids.shape[1], of=omni.cfg.thinker.ctx_len)
    x = thinker.embed(ids)
    first, *others = cast(Iterable[DecoderBlock], thinker.blocks)
    q, k, v = first.attn.qkv(first.norm1(x))
    q, k = first.attn.rotate(q, k)
    values, _ = attention(q, k, v, causal=True)
    x = residual(x, first.attn.o_proj(merge_heads(values)))
    x = residual(x, first.mlp(first.norm2(x)))
    for block in others:
        x = block(x)
    logits = thinker.lm_head(thinker.norm(x))
    next_id = sample(logits[:, -1, :n_pieces])
    new = generate(thinker, ids, max_new_tokens=NEW_TOKENS, eos=None, vocab_limit=n_pieces)
    if not torch.equal(new[:, 0], next_id):
        raise RuntimeError("text only: the modules one by one and ThinkerLM.forward chose different tokens")
    decode_text(omni.tokenizer, append_ids(ids, new)[0])


def answer(omni: Omni, prompt: Tensor) -> None:
    """Logits, one token, 64 tokens, text: the end of every pipeline that answers in text."""
    n_pieces = omni.tokenizer.n_pieces
    logits = omni.thinker(embeddings=prompt)
    sample(logits[:, -1, :n_pieces])
    new = generate(omni.thinker, embeddings=prompt, max_new_tokens=NEW_TOKENS, eos=None, vocab_limit=n_pieces)
    decode_text(omni.tokenizer, new[0])


def with_text(omni: Omni, name: str, embeddings: Tensor, text: str) -> Tensor:
    """An image or audio, then the text, in one sequence."""
    parts = {name: embeddings, "text": omni.thinker.embed(omni.text_ids(text))}
    for source, part in parts.items():
        tokens(source, part.shape[1], of=omni.cfg.thinker.ctx_len)
    return fuse(parts, omni.cfg.thinker.ctx_len)


def image_text(omni: Omni, inputs: Inputs) -> None:
    """Part 2: image + text → text."""
    vision = omni.vision
    img = load_image(inputs.image, omni.cfg.vision.image_size)[None].to(omni.device)
    x = vision.add_positions(vision.add_cls(vision.flatten(vision.patchify(img))))
    cls, _ = vision.split_cls(vision.encode(x))
    answer(omni, with_text(omni, "image", omni.proj_v(cls), inputs.texts["image"]))


def audio_text(omni: Omni, inputs: Inputs) -> None:
    """Part 3: audio + text → text."""
    audio = omni.audio
    wav = load_audio(inputs.audio, omni.cfg.audio.sample_rate)[None].to(omni.device)
    omni.check_audio(wav)
    x = audio.flatten(audio.downsample(audio.normalize(omni.mel(wav))))
    x = audio.encode(audio.proj(x))
    answer(omni, with_text(omni, "audio", omni.proj_a(x), inputs.texts["audio"]))


def image_audio_text(omni: Omni, inputs: Inputs) -> None:
    """Part 4: image + audio + text → text."""
    answer(omni, omni.embed(inputs.texts["multimodal"], inputs.image, inputs.audio))


def text_to_speech(omni: Omni, inputs: Inputs) -> None:
    """Part 5: text → speech. `stop=False`: with fresh weights the end-of-speech output would come at random."""
    ids = omni.speech_ids(inputs.texts["speech"])
    codes = generate_codes(omni.talker, ids, omni.frame_limit(ids.shape[1]), stop=False)
    omni.vocoder.mel_to_audio(omni.rvq.decode(codes)[0], domain="log")  # single-frame codec, start frame included
    omni.codec.decode(codes[:, 1:])


def train_talker(omni: Omni, inputs: Inputs) -> None:
    """Part 6: one training step of the Talker."""
    samples = min(BATCH_SAMPLES, omni.cfg.talker.max_frames * omni.cfg.codec.hop)
    wav = make_batch(load_audio(inputs.audio, omni.cfg.audio.sample_rate).to(omni.device), samples)
    with torch.no_grad():
        codes = omni.rvq.encode(omni.vocoder.mel(wav))
    base_logit, res_logit = omni.talker(previous(codes))
    base_target, res_target = codes.flatten(0, 1).unbind(dim=-1)
    loss = talker_loss(base_logit.flatten(0, 1), res_logit.flatten(0, 1), base_target, res_target)
    training_step(omni.talker, torch.optim.AdamW(omni.talker.parameters(), lr=1e-3), loss)


@dataclass(frozen=True)
class Pipeline:
    """A pipeline and its sentences: the one that it runs with, and the example of the reference specification."""

    run: Callable[[Omni, Inputs], None]
    text: str = ""  # has as many tokens as the specification says
    reference_text: str = ""
    reference_tokens: int = 0  # that the reference specification counts for it
    torch_modules: bool = False  # its specification names modules without annotations, such as Linear


PIPELINES: dict[str, Pipeline] = {
    "text": Pipeline(text_only, "How are you today?", "Hello, how are you?", 6, torch_modules=True),
    "image": Pipeline(
        image_text, "What colour is the big circle?", "What do you see in this image?", 8, torch_modules=True
    ),
    "audio": Pipeline(audio_text, "What was said?", "What did you hear?", 5, torch_modules=True),
    "multimodal": Pipeline(
        image_audio_text, "Describe what you can see and hear.", "Describe what you see and hear.", 9
    ),
    "speech": Pipeline(
        text_to_speech, "This is a short test of text to speech.", "This is a test of text to speech.", 10
    ),
    "training": Pipeline(train_talker),
}


# ---- running them ---------------------------------------------------------------------------------------------------


def build(seed: int = 0, device: str = "cpu") -> Omni:
    """An Omni at the sizes of TINY with fresh weights from a seed."""
    torch.manual_seed(seed)
    return Omni(TINY).to(device)


def default_inputs(text: str | None = None, image: Any = None, audio: Any = None) -> Inputs:
    """The files and sentences that ship with the course, replaced by custom ones where they are given."""
    custom = {name for name, value in (("text", text), ("image", image), ("audio", audio)) if value is not None}
    texts = {name: text if text is not None else each.text for name, each in PIPELINES.items() if each.text}
    return Inputs(texts, IMAGE if image is None else image, AUDIO if audio is None else audio, custom)


def load_spec(name: str) -> Spec:
    """The specification of a pipeline."""
    return Spec.load(SPECS / f"{name}.toml")


def input_axes(name: str, omni: Omni, inputs: Inputs) -> dict[str, int]:
    """The axes that custom input decides, measured before the run."""
    axes: dict[str, int] = {}
    if "audio" in inputs.custom and name in ("audio", "multimodal", "training"):
        axes["samples"] = load_audio(inputs.audio).shape[0]
    if "text" in inputs.custom and name in inputs.texts:
        # numbers and the like are spoken as words, and speech has no BOS
        text = spoken_text(inputs.texts[name]) if name == "speech" else inputs.texts[name]
        axes["text_tokens"] = len(omni.tokenizer.encode(text)) + (name != "speech")
    return axes


def traced(name: str, omni: Omni, inputs: Inputs) -> Trace:
    """Run one pipeline under the tracer. What raises, raises with the first line that does not hold."""
    spec, axes = load_spec(name), input_axes(name, omni, inputs)
    pipeline = PIPELINES[name]
    seen = trace(spec.title, modules=True if pipeline.torch_modules else None, strict=True, model=omni)
    try:
        with seen, torch.set_grad_enabled(name == "training"):
            pipeline.run(omni, inputs)
    except Exception as error:
        # a run often stops later than where it left its specification
        for problem in seen.report(spec, given=axes).problems[:1]:
            error.add_note(f"The first line that does not hold: {problem}")
        raise
    return seen


def run(name: str, omni: Omni, inputs: Inputs) -> SpecReport:
    """Run one pipeline and compare it with its specification."""
    return traced(name, omni, inputs).report(load_spec(name), given=input_axes(name, omni, inputs))


def lengths(omni: Omni) -> dict[str, Callable[[int], Any]]:
    """The subjects of the rules for all lengths, as functions of one length."""

    def wave(samples: int) -> Tensor:
        return torch.zeros(1, samples)

    return {
        "MelFrontend.forward": lambda samples: omni.mel(wave(samples)),
        "AudioEncoderTiny.forward": lambda mel_frames: omni.audio(torch.zeros(1, mel_frames, TINY.audio.n_mels)),
        # without its limit on the length and its look at the values
        "Omni.embed_audio": lambda samples: omni.proj_a(omni.audio(omni.mel(wave(samples)))),
        "max_frames": max_frames,
    }
