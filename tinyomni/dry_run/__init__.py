"""The dry run: six pipelines on real input, every step held against its specification.

Each step is a small annotated function, marked with `@step`. A pipeline calls its steps one after the other on real
tensors; the tracer notes what went in and out; `specs/*.toml` says, independently of this code, what must come.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tinyomni.attention import attention, merge_heads
from tinyomni.audio import AudioEncoderTiny, MelFrontend
from tinyomni.codec import RVQ, SpeechCodec
from tinyomni.config import TINY
from tinyomni.generation import BOS, generate, sample
from tinyomni.io.files import load_audio, load_image
from tinyomni.layers import DecoderBlock
from tinyomni.omni import Omni, fuse
from tinyomni.stability import check_gradient_explosion, clip_gradients, validate_loss
from tinyomni.talker import TalkerTiny, max_frames, next_frame, previous
from tinyomni.thinker import ThinkerLM
from tinyomni.tokenizer import BPETokenizer
from tinyomni.tracing import Spec, SpecReport, step, tokens, trace
from tinyomni.tracing.formula import evaluate, split
from tinyomni.vision import ViTTiny
from tinyomni.vocoder import GriffinLimVocoder

HERE = Path(__file__).parent
IMAGE = HERE.parent / "assets" / "scene.png"
AUDIO = HERE.parent / "assets" / "speech.wav"
NEW_TOKENS = 64
TRAIN_SAMPLES = 64_000  # two recordings of 4 s: 50 code frames each


# ---- text -----------------------------------------------------------------------------------------------------------


@step("Tokenize, BOS first")
def tokenize(tokenizer: BPETokenizer, text: str) -> Int[Tensor, "text_tokens"]:
    """Text → ids."""
    return torch.tensor([BOS, *tokenizer.encode(text)])


@step("Token embedding")
def embed_text(thinker: ThinkerLM, ids: Int[Tensor, "batch text_tokens"]) -> Float[Tensor, "batch text_tokens d_model"]:
    """One vector for each id."""
    return thinker.tok_emb(ids)


@step("RMSNorm")
def normalise(block: DecoderBlock, x: Float[Tensor, "batch tokens d_model"]) -> Float[Tensor, "batch tokens d_model"]:
    """Before attention."""
    return block.norm1(x)


@step("Queries, keys, values")
def queries_keys_values(
    block: DecoderBlock, x: Float[Tensor, "batch tokens d_model"]
) -> tuple[
    Float[Tensor, "batch heads tokens head_dim"],
    Float[Tensor, "batch kv_heads tokens head_dim"],
    Float[Tensor, "batch kv_heads tokens head_dim"],
]:
    """Three views of each token, cut into heads."""
    return block.attn.qkv(x)


@step("RoPE turns queries and keys")
def rotate(
    block: DecoderBlock,
    q: Float[Tensor, "batch heads tokens head_dim"],
    k: Float[Tensor, "batch kv_heads tokens head_dim"],
) -> tuple[Float[Tensor, "batch heads tokens head_dim"], Float[Tensor, "batch kv_heads tokens head_dim"]]:
    """Positions 0, 1, 2, … as angles."""
    return block.attn.rotate(q, k)


@step("Attention weights")
def attention_weights(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch heads keys head_dim"],
    v: Float[Tensor, "batch heads keys head_dim"],
) -> Float[Tensor, "batch heads queries keys"]:
    """Who looks at whom: each token at itself and at those before it."""
    return attention(q, k, v, causal=True)[1]


@step("Weighted values, heads merged")
def weighted_values(
    block: DecoderBlock,
    weights: Float[Tensor, "batch heads queries keys"],
    v: Float[Tensor, "batch heads keys head_dim"],
) -> Float[Tensor, "batch queries d_model"]:
    """What was looked at, mixed by the weights."""
    return block.attn.o_proj(merge_heads(weights @ v))


@step("SwiGLU MLP")
def mlp(block: DecoderBlock, x: Float[Tensor, "batch tokens d_model"]) -> Float[Tensor, "batch tokens d_model"]:
    """Each token by itself."""
    return block.mlp(block.norm2(x))


@step("Transformer block")
def layer(block: DecoderBlock, x: Float[Tensor, "batch tokens d_model"]) -> Float[Tensor, "batch tokens d_model"]:
    """All of the above in one call."""
    return block(x)


@step("Final norm")
def final_norm(thinker: ThinkerLM, x: Float[Tensor, "batch tokens d_model"]) -> Float[Tensor, "batch tokens d_model"]:
    """RMSNorm once more."""
    return thinker.norm(x)


@step("LM head")
def lm_head(thinker: ThinkerLM, x: Float[Tensor, "batch tokens d_model"]) -> Float[Tensor, "batch tokens vocab"]:
    """A score for each token that could follow."""
    return thinker.lm_head(x)


@step("Next token")
def next_token(logits: Float[Tensor, "batch tokens vocab"], pieces: int) -> Int[Tensor, "batch"]:
    """The likeliest one after the last position; rows of the table that no text piece uses are left out."""
    return sample(logits[:, -1, :pieces])


@step("Generate with the KV cache")
def generate_from_ids(
    thinker: ThinkerLM, ids: Int[Tensor, "batch text_tokens"], new_tokens: int, pieces: int
) -> Int[Tensor, "batch text_tokens+{new_tokens}"]:
    """The prompt at once, then one token at a time."""
    new = generate(thinker, ids, max_new_tokens=new_tokens, eos=None, vocab_limit=pieces)
    return torch.cat([ids, new], dim=1)


@step("Generate with the KV cache")
def generate_from_embeddings(
    thinker: ThinkerLM, x: Float[Tensor, "batch total d_model"], new_tokens: int, pieces: int
) -> Int[Tensor, "batch {new_tokens}"]:
    """The same behind a picture or a sound: only the new ids come back."""
    return generate(thinker, embeddings=x, max_new_tokens=new_tokens, eos=None, vocab_limit=pieces)


@step("Decode")
def decode(tokenizer: BPETokenizer, ids: Int[Tensor, "tokens"]) -> str:
    """Ids → text."""
    return tokenizer.decode(ids.tolist())


@step("Think")
def think(thinker: ThinkerLM, x: Float[Tensor, "batch total d_model"]) -> Float[Tensor, "batch total vocab"]:
    """The whole Thinker on one sequence."""
    return thinker(embeddings=x)


# ---- picture --------------------------------------------------------------------------------------------------------


@step("Read the picture")
def read_image(source: Any) -> Float[Tensor, "channels height width"]:
    """File → values in 0…1."""
    return load_image(source)


@step("Patch embedding")
def patches(
    vision: ViTTiny, img: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch vision_dim rows columns"]:
    """A convolution whose stride is its size."""
    return vision.patchify(img)


@step("Patches in a row")
def in_a_row(
    vision: ViTTiny, grid: Float[Tensor, "batch vision_dim rows columns"]
) -> Float[Tensor, "batch n_patches vision_dim"]:
    """Reading order."""
    return vision.flatten(grid)


@step("CLS in front")
def with_cls(
    vision: ViTTiny, x: Float[Tensor, "batch n_patches vision_dim"]
) -> Float[Tensor, "batch n_patches+1 vision_dim"]:
    """One token for the whole."""
    return vision.add_cls(x)


@step("Positions")
def with_positions(
    vision: ViTTiny, x: Float[Tensor, "batch tokens vision_dim"]
) -> Float[Tensor, "batch tokens vision_dim"]:
    """Learned, one for each place."""
    return vision.add_positions(x)


@step("ViT blocks")
def look(vision: ViTTiny, x: Float[Tensor, "batch tokens vision_dim"]) -> Float[Tensor, "batch tokens vision_dim"]:
    """Every patch looks at every patch."""
    return vision.encode(x)


@step("Take CLS, leave the grid")
def take_cls(
    x: Float[Tensor, "batch tokens vision_dim"],
) -> tuple[Float[Tensor, "batch 1 vision_dim"], Float[Tensor, "batch tokens-1 vision_dim"]]:
    """197 tokens → 1, and 196 that the Thinker never sees."""
    return x[:, :1], x[:, 1:]


@step("Project to the Thinker")
def project_image(
    proj: nn.Linear, cls: Float[Tensor, "batch image_tokens vision_dim"]
) -> Float[Tensor, "batch image_tokens d_model"]:
    """128 → 256."""
    return proj(cls)


@step("Picture → 1 token")
def image_token(omni: Omni, img: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch 1 d_model"]:
    """All of the picture's steps in one call."""
    return omni.embed_image(img)


# ---- sound ----------------------------------------------------------------------------------------------------------


@step("Read the recording")
def read_audio(source: Any) -> Float[Tensor, "samples"]:
    """File → 16,000 values a second."""
    return load_audio(source)


@step("Mel spectrogram")
def hear(mel: MelFrontend, wav: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch mel_frames n_mels"]:
    """A frame for each 10 ms."""
    return mel(wav)


@step("As a picture of one channel")
def as_picture(
    audio: AudioEncoderTiny, mel: Float[Tensor, "batch mel_frames n_mels"]
) -> Float[Tensor, "batch 1 mel_frames n_mels"]:
    """Time down, frequency across."""
    return audio.picture(mel)


@step("First convolution")
def first_convolution(
    audio: AudioEncoderTiny, x: Float[Tensor, "batch 1 mel_frames n_mels"]
) -> Float[Tensor, "batch channels (mel_frames+1)//2 n_mels//2"]:
    """Half the frames, half the bins."""
    return audio.down[:2](x)


@step("Second convolution")
def second_convolution(
    audio: AudioEncoderTiny, x: Float[Tensor, "batch channels half_frames half_mels"]
) -> Float[Tensor, "batch channels audio_tokens bands"]:
    """Half again."""
    return audio.down[2:](x)


@step("Channels and bands in one vector")
def flatten_bands(
    audio: AudioEncoderTiny, x: Float[Tensor, "batch channels audio_tokens bands"]
) -> Float[Tensor, "batch audio_tokens channels*bands"]:
    """64 × 32 = 2048."""
    return audio.flatten(x)


@step("Project to the encoder")
def project_bands(
    audio: AudioEncoderTiny, x: Float[Tensor, "batch audio_tokens features"]
) -> Float[Tensor, "batch audio_tokens audio_dim"]:
    """2048 → 192."""
    return audio.proj(x)


@step("Encoder blocks")
def listen(
    audio: AudioEncoderTiny, x: Float[Tensor, "batch audio_tokens audio_dim"]
) -> Float[Tensor, "batch audio_tokens audio_dim"]:
    """Every moment looks at every moment."""
    return audio.encode(x)


@step("Project to the Thinker")
def project_audio(
    proj: nn.Linear, x: Float[Tensor, "batch audio_tokens audio_dim"]
) -> Float[Tensor, "batch audio_tokens d_model"]:
    """192 → 256."""
    return proj(x)


@step("Sound → audio tokens")
def audio_embedding(omni: Omni, wav: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch audio_tokens d_model"]:
    """All of the sound's steps in one call."""
    return omni.embed_audio(wav)


@step("One sequence")
def combine(
    image: Float[Tensor, "batch image_tokens d_model"] | None,
    audio: Float[Tensor, "batch audio_tokens d_model"] | None,
    text: Float[Tensor, "batch text_tokens d_model"],
) -> Float[Tensor, "batch total d_model"]:
    """Picture, sound, text, whichever there are."""
    parts = {"image": image, "audio": audio, "text": text}
    present = {name: part for name, part in parts.items() if part is not None}
    for name, part in present.items():
        tokens(name, part.shape[1], of=TINY.thinker.ctx_len)
    return fuse(present, TINY.thinker.ctx_len)


# ---- speech ---------------------------------------------------------------------------------------------------------


@step("Tokenize, without BOS")
def tokenize_speech(tokenizer: BPETokenizer, text: str) -> Int[Tensor, "text_tokens"]:
    """Text → ids."""
    return torch.tensor(tokenizer.encode(text))


@step("Longest duration in frames")
def longest(text_tokens: int) -> int:
    """30 frames a token, at least 50, at most 1000."""
    return max_frames(text_tokens)


@step("Start frame")
def start_codes(device: torch.device) -> Int[Tensor, "batch frames codebooks"]:
    """Zeros: nothing was said yet."""
    return torch.zeros(1, 1, TINY.codec.codebooks, dtype=torch.long, device=device)


@step("Write the next frame")
def write_frame(
    talker: TalkerTiny, codes: Int[Tensor, "batch frames codebooks"], text: Int[Tensor, "batch text_tokens"], cache: Any
) -> Int[Tensor, "batch frames+1 codebooks"]:
    """Base and residual code of 80 ms; here it never stops by itself."""
    return next_frame(talker, codes, text, cache)[0]


@step("Codes → mel")
def codes_to_mel(rvq: RVQ, codes: Int[Tensor, "1 frames codebooks"]) -> Float[Tensor, "frames n_mels"]:
    """Look up, add, project."""
    return rvq.decode(codes)[0]


@step("Mel → sound")
def mel_to_sound(
    vocoder: GriffinLimVocoder, mel: Float[Tensor, "frames n_mels"]
) -> Float[Tensor, "frames*{vocoder.hop}"]:
    """Griffin-Lim, the document's own path: the start frame is decoded as well."""
    return torch.as_tensor(vocoder.mel_to_audio(mel, domain="log"))


@step("Codes → speech")
def codes_to_speech(
    codec: SpeechCodec, codes: Int[Tensor, "batch frames codebooks"]
) -> Float[Tensor, "batch frames*{codec.cfg.hop}"]:
    """The codec that speaks, without the start frame."""
    return codec.decode(codes)


# ---- training -------------------------------------------------------------------------------------------------------


@step("Two recordings")
def two_recordings(wav: Float[Tensor, "samples"], length: int) -> Float[Tensor, "batch {length}"]:
    """The recording, repeated to 4 s, and the same backwards."""
    wav = wav.repeat(-(-length // wav.shape[0]))[:length]
    return torch.stack([wav, wav.flip(0)])


@step("Mel, one frame for each 80 ms")
def coarse_mel(mel: MelFrontend, wav: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frames n_mels"]:
    """Hop 1280."""
    return mel(wav)


@step("RVQ encode")
def encode_codes(rvq: RVQ, x: Float[Tensor, "batch frames n_mels"]) -> Int[Tensor, "batch frames codebooks"]:
    """What the Talker should write."""
    return rvq.encode(x)


@step("Shift by one frame")
def shift(codes: Int[Tensor, "batch frames codebooks"]) -> Int[Tensor, "batch frames codebooks"]:
    """What it has seen before each frame."""
    return previous(codes)


@step("Talker")
def talk(
    talker: TalkerTiny, codes: Int[Tensor, "batch frames codebooks"]
) -> tuple[Float[Tensor, "batch frames codebook_size"], Float[Tensor, "batch frames codebook_size"]]:
    """A guess for each code of each frame."""
    return talker(codes)


@step("Logits in a row")
def flatten_logits(logits: Float[Tensor, "batch frames codebook_size"]) -> Float[Tensor, "batch*frames codebook_size"]:
    """One guess a row."""
    return logits.reshape(-1, logits.shape[-1])


@step("Targets in a row")
def flatten_targets(codes: Int[Tensor, "batch frames"]) -> Int[Tensor, "batch*frames"]:
    """One answer a row."""
    return codes.reshape(-1)


@step("Loss")
def talker_loss(
    base: Float[Tensor, "positions codebook_size"],
    res: Float[Tensor, "positions codebook_size"],
    base_target: Int[Tensor, "positions"],
    res_target: Int[Tensor, "positions"],
) -> Float[Tensor, ""]:
    """Cross-entropy of both codes, one number."""
    return F.cross_entropy(base, base_target) + F.cross_entropy(res, res_target)


@step("Backward, check, clip, update")
def update(talker: TalkerTiny, optimizer: torch.optim.Optimizer, loss: Float[Tensor, ""]) -> float:
    """The norm of the gradients before clipping."""
    validate_loss(loss)
    loss.backward()
    norm, exploded = check_gradient_explosion(talker)
    if exploded:
        optimizer.zero_grad()
        raise RuntimeError(f"Talker training: gradients exploded, norm {norm:.1f}")
    clip_gradients(talker, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return norm


# ---- the six pipelines ----------------------------------------------------------------------------------------------


@dataclass
class Inputs:
    """What the pipelines read. `own` names the inputs that are the user's: for those only formulas are checked."""

    texts: dict[str, str]
    image: Any = IMAGE
    audio: Any = AUDIO
    own: set[str] = field(default_factory=set)


def text_only(omni: Omni, given: Inputs) -> None:
    """Part 1: text → text."""
    thinker, pieces = omni.thinker, omni.tokenizer.n_pieces
    ids = tokenize(omni.tokenizer, given.texts["text"])[None].to(omni.device)
    tokens("text", ids.shape[1], of=TINY.thinker.ctx_len)
    x = embed_text(thinker, ids)
    # the first block in pieces, the others whole
    blocks: list[Any] = list(thinker.blocks)
    first, others = blocks[0], blocks[1:]
    q, k, v = queries_keys_values(first, normalise(first, x))
    q, k = rotate(first, q, k)
    x = x + weighted_values(first, attention_weights(q, k, v), v)
    x = x + mlp(first, x)
    for block in others:
        x = layer(block, x)
    new = next_token(lm_head(thinker, final_norm(thinker, x)), pieces)
    ids = generate_from_ids(thinker, ids, NEW_TOKENS, pieces)
    if not torch.equal(ids[:, -NEW_TOKENS], new):
        raise RuntimeError("text only: the block in pieces and the whole Thinker chose different tokens")
    decode(omni.tokenizer, ids[0])


def answer(omni: Omni, x: Tensor) -> None:
    """Think, choose, go on, and write it out: the end of every pipeline that answers in text."""
    pieces = omni.tokenizer.n_pieces
    next_token(think(omni.thinker, x), pieces)
    decode(omni.tokenizer, generate_from_embeddings(omni.thinker, x, NEW_TOKENS, pieces)[0])


def image_text(omni: Omni, given: Inputs) -> None:
    """Part 2: picture + text → text."""
    vision = omni.vision
    img = read_image(given.image)[None].to(omni.device)
    x = with_positions(vision, with_cls(vision, in_a_row(vision, patches(vision, img))))
    cls, _ = take_cls(look(vision, x))
    image = project_image(omni.proj_v, cls)
    ids = tokenize(omni.tokenizer, given.texts["image"])[None].to(omni.device)
    answer(omni, combine(image, None, embed_text(omni.thinker, ids)))


def audio_text(omni: Omni, given: Inputs) -> None:
    """Part 3: sound + text → text."""
    audio = omni.audio
    wav = read_audio(given.audio)[None].to(omni.device)
    omni.check_audio(wav)
    x = second_convolution(audio, first_convolution(audio, as_picture(audio, hear(omni.mel, wav))))
    x = listen(audio, project_bands(audio, flatten_bands(audio, x)))
    sound = project_audio(omni.proj_a, x)
    ids = tokenize(omni.tokenizer, given.texts["audio"])[None].to(omni.device)
    answer(omni, combine(None, sound, embed_text(omni.thinker, ids)))


def image_audio_text(omni: Omni, given: Inputs) -> None:
    """Part 4: picture + sound + text → text."""
    image = image_token(omni, read_image(given.image)[None].to(omni.device))
    sound = audio_embedding(omni, read_audio(given.audio)[None].to(omni.device))
    ids = tokenize(omni.tokenizer, given.texts["multimodal"])[None].to(omni.device)
    answer(omni, combine(image, sound, embed_text(omni.thinker, ids)))


def text_to_speech(omni: Omni, given: Inputs) -> None:
    """Part 5: text → speech."""
    ids = tokenize_speech(omni.tokenizer, given.texts["speech"])[None].to(omni.device)
    frames = longest(ids.shape[1])
    codes, cache = start_codes(omni.device), omni.talker.new_cache()
    for _ in range(frames):
        codes = write_frame(omni.talker, codes, ids, cache)
    mel_to_sound(omni.vocoder, codes_to_mel(omni.rvq, codes))
    codes_to_speech(omni.codec, codes[:, 1:])


def train_talker(omni: Omni, given: Inputs) -> None:
    """Part 6: one training step of the Talker."""
    wav = two_recordings(read_audio(given.audio).to(omni.device), TRAIN_SAMPLES)
    with torch.no_grad():
        codes = encode_codes(omni.rvq, coarse_mel(omni.vocoder.mel, wav))
    base, res = talk(omni.talker, shift(codes))
    loss = talker_loss(
        flatten_logits(base), flatten_logits(res), flatten_targets(codes[..., 0]), flatten_targets(codes[..., 1])
    )
    update(omni.talker, torch.optim.AdamW(omni.talker.parameters(), lr=1e-3), loss)


@dataclass(frozen=True)
class Pipeline:
    """A pipeline, its specification, the document's prompt for it and the sentence that has the document's length."""

    run: Callable[[Omni, Inputs], None]
    spec: str
    text: str  # has as many tokens as the specification's default says
    prompt: str  # the document's own example
    document: int  # the tokens that the document names for it


PIPELINES: dict[str, Pipeline] = {
    "text": Pipeline(text_only, "text", "How are you today?", "Hello, how are you?", 6),
    "image": Pipeline(image_text, "image", "What colour is the big circle?", "What do you see in this image?", 8),
    "audio": Pipeline(audio_text, "audio", "What was said?", "What did you hear?", 5),
    "multimodal": Pipeline(
        image_audio_text, "multimodal", "Describe what you can see and hear.", "Describe what you see and hear.", 9
    ),
    "speech": Pipeline(
        text_to_speech, "speech", "This is a short test of text to speech.", "This is a test of text to speech.", 10
    ),
    "training": Pipeline(train_talker, "training", "", "", 0),
}


def given_axes(name: str, omni: Omni, given: Inputs) -> dict[str, int]:
    """The axes that the user's own input decides, measured before the run."""
    axes: dict[str, int] = {}
    if "audio" in given.own and name in ("audio", "multimodal", "training"):
        axes["samples"] = load_audio(given.audio).shape[0]
    if "text" in given.own and name in given.texts:
        axes["text_tokens"] = len(omni.tokenizer.encode(given.texts[name])) + (name != "speech")
    return axes


def run(name: str, omni: Omni, given: Inputs) -> SpecReport:
    """Run one pipeline under the tracer and hold it against its specification."""
    pipeline = PIPELINES[name]
    axes = given_axes(name, omni, given)
    spec = Spec.load(HERE / "specs" / f"{pipeline.spec}.toml")
    seen = trace(name)
    try:
        with seen, torch.set_grad_enabled(name == "training"):
            pipeline.run(omni, given)
    except Exception as error:
        # where a run stops is often later than where it left its specification
        for problem in seen.report(spec, given=axes).problems[:1]:
            error.add_note(f"The first line that is not as specified: {problem}")
        raise
    return seen.report(spec, given=axes)


def build(seed: int = 0, device: str = "cpu") -> Omni:
    """An Omni at the sizes of TINY with fresh weights from a seed."""
    torch.manual_seed(seed)
    return Omni(TINY).to(device)


def default_inputs(text: str | None = None, image: Any = None, audio: Any = None) -> Inputs:
    """The files and sentences that ship with the course, replaced by the user's own where there are some."""
    own = {name for name, value in (("text", text), ("image", image), ("audio", audio)) if value is not None}
    texts = {name: text if text is not None else each.text for name, each in PIPELINES.items() if each.text}
    return Inputs(texts, IMAGE if image is None else image, AUDIO if audio is None else audio, own)


# ---- the documentation: tables and figures from the specifications --------------------------------------------------


def cells(axes: dict[str, int], text: str) -> str:
    """`(1, mel_frames, n_mels)` with the numbers under the names: `1, mel_frames = 100, n_mels = 128`."""
    return ", ".join(part if part.isdigit() else f"{part} = {evaluate(part, axes)}" for part in split(text))


def shape_table(spec: Spec) -> str:
    """One pipeline as a table: every line of its specification, with formulas and numbers."""
    axes = {**spec.axes({}), "i": 0}
    rows = [f"## {spec.title}", "", "| | step | in | out | tokens |", "|---|---|---|---|---|"]
    for each in spec.steps:
        came = "; ".join(f"{name}: ({cells(axes, text)})" for name, text in each.get("in", {}).items())
        outs = each.get("out", [])
        gone = "; ".join(f"({cells(axes, text)})" for text in (outs if isinstance(outs, list) else [outs]))
        often = f" × {evaluate(each['times'], axes)}" if "times" in each else ""
        count = str(evaluate(each["tokens"], axes)) if "tokens" in each else ""
        rows.append(
            f"| {each.get('number', '')} | {each.get('title', each['call'])}{often} | {came} | {gone} | {count} |"
        )
    if spec.ledger:
        parts = {source: evaluate(formula, axes) for source, formula in spec.ledger.items()}
        told = " + ".join(f"{source} {count}" for source, count in parts.items())
        rows += ["", f"Tokens: {told} = {sum(parts.values())} of {spec.limit}."]
    rows += ["", *(f"- {each['name']}: `{each['formula']}` = {each['equals']:,}" for each in spec.quantities)]
    rows += [f"- for every {each['over']}: `{each['want']}` (`{each['call']}`)" for each in spec.rules]
    return "\n".join(rows)


def write_docs(folder: Path) -> None:
    """`shapes.md` from the specifications, and a figure of each pipeline from a run that was held against its own."""
    omni, given = build(), default_inputs()
    parts = [
        "# Every shape of the six pipelines\n\n"
        "Written by `tinyomni dry-run --docs docs` from `tinyomni/dry_run/specs/*.toml`; the figures are drawn "
        "from\nruns that were held against them. Do not edit it by hand."
    ]
    for name, each in PIPELINES.items():
        spec = Spec.load(HERE / "specs" / f"{each.spec}.toml")
        seen = trace(spec.title)
        with seen, torch.set_grad_enabled(name == "training"):
            each.run(omni, given)
        seen.check(spec)
        seen.to_svg(folder / f"{name}.svg")
        parts.append(f"{shape_table(spec)}\n\n![{spec.title}]({name}.svg)")
    (folder / "shapes.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def lengths(omni: Omni) -> dict[str, Callable[[int], Any]]:
    """What the specifications' rules for all lengths are about, as functions of one length."""

    def wave(samples: int) -> Tensor:
        return torch.zeros(1, samples)

    return {
        "hear": lambda samples: hear(omni.mel, wave(samples)),
        "listen": lambda mel_frames: omni.audio(torch.zeros(1, mel_frames, TINY.audio.n_mels)),
        "audio_embedding": lambda samples: omni.proj_a(omni.audio(omni.mel(wave(samples)))),
        "longest": longest,
    }


# ---- the command ----------------------------------------------------------------------------------------------------


def example_prompts(omni: Omni) -> str:
    """The document's five prompts, its token counts and the real ones (BOS counted, but not for speech)."""
    rows = ["The document's prompts: what it says, and what this tokenizer makes of them"]
    for name, each in PIPELINES.items():
        if each.prompt:
            count = len(omni.tokenizer.encode(each.prompt)) + (name != "speech")
            rows.append(f"    {each.prompt:40} document {each.document:>2}   here {count:>2}")
    return "\n".join(rows)


def quick_reference(reports: dict[str, SpecReport]) -> str:
    """The document's summary table, filled from this run."""
    rows = [("pipeline", "input", "tokens", "output")]
    for name, report in reports.items():
        axes = report.axes
        if report.ledger:
            counts = " + ".join(f"{count} {source}" for source, count in report.ledger)
            total = sum(count for _, count in report.ledger)
            rows.append((name, counts, f"{total} → {total} → {total} → 1 new", "text"))
        elif name == "speech":
            frames, positions = axes["max_frames"], axes["positions"]
            flow = f"{axes['text_tokens']} → {frames} codes → {positions} mel → {positions * axes['hop']:,} samples"
            rows.append((name, f"{axes['text_tokens']} text", flow, "sound"))
        else:
            rows.append(
                (name, f"{axes['batch']} × {axes['frames']} frames", "2 × 50 → 2 × 50 codes → 1 loss", "new weights")
            )
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join(["Quick reference", *lines])


@torch.no_grad()
def check_inputs(omni: Omni, given: Inputs) -> None:
    """Send the user's own inputs through the doors, so that a wrong one is met before anything is printed."""
    if "text" in given.own:
        omni.speech_ids(given.texts["speech"])
    text = given.texts["multimodal"] if "text" in given.own else None
    total = omni.embed(text or "Hello.", given.image, given.audio).shape[1]
    ctx_len = omni.cfg.thinker.ctx_len
    if total + NEW_TOKENS > ctx_len:
        raise ValueError(
            f"dry run: {total} prompt tokens + {NEW_TOKENS} new tokens = {total + NEW_TOKENS} > ctx_len = {ctx_len}. "
            "Shorten the text or the recording."
        )


def main(
    text: str | None = None,
    image: str | None = None,
    audio: str | None = None,
    names: list[str] | None = None,
    device: str = "cpu",
    seed: int = 0,
    json_file: str | None = None,
    out: Callable[[str], None] = print,
) -> bool:
    """Run the pipelines and print each report; True if every line of every one holds."""
    names = list(dict.fromkeys(names or PIPELINES))
    unknown = [name for name in names if name not in PIPELINES]
    if unknown:
        raise ValueError(f"dry run: unknown pipeline {', '.join(unknown)}; there are {', '.join(PIPELINES)}")
    given = default_inputs(text, image, audio)
    omni = build(seed, device)
    check_inputs(omni, given)
    reports: dict[str, SpecReport] = {}
    for name in names:
        reports[name] = run(name, omni, given)
        out(f"{reports[name]}\n")
    out(quick_reference(reports) + "\n")
    out(example_prompts(omni) + "\n")
    good = all(report.ok for report in reports.values())
    checked = sum(
        len(report.steps) + sum(expected is not None for _, _, expected in report.quantities)
        for report in reports.values()
    )
    wrong = sum(len(report.problems) for report in reports.values())
    out(f"✔ all {checked} lines hold" if good else f"✘ {wrong} of {checked} lines do not hold")
    if json_file is not None:
        data = {
            "ok": good,
            "seed": seed,
            "device": device,
            "pipelines": {name: each.data() for name, each in reports.items()},
        }
        Path(json_file).write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return good
