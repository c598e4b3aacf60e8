"""Stage omni: the Thinker learns to use what the image encoder and the recogniser's encoder give it, and to answer.

    [image] [audio …] BOS prompt … | answer … EOS
    proj_v  proj_a    tok_emb        ← the loss is on these tokens only

Both encoders are trained before; here they are frozen, and in eval mode, so their features of an image or a recording
never change and are cached. What is trained are the two projectors, into the Thinker's width, and the Thinker.

Sources: Liu et al., LLaVA (2023), arXiv:2304.08485, for a projector into a language model; Xu et al., Qwen2.5-Omni
(2025), arXiv:2503.20215, for the order of a sequence. What is trained on: `omni_mixture`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from tinyomni.audio import AudioEncoderTiny, MelFrontend
from tinyomni.config import TINY
from tinyomni.data import other_makers
from tinyomni.data.custom import train_validation_split
from tinyomni.data.datasets import Scenes, Speech, check_style
from tinyomni.data.tts import TTS_VOICES
from tinyomni.layers import init_weights
from tinyomni.thinker import ThinkerLM
from tinyomni.training.distributed import to_device
from tinyomni.training.omni_examples import OmniBatch, OmniExample, collate
from tinyomni.training.omni_mixture import TYPED, CustomExamples, OmniMixture
from tinyomni.training.recipe import Job, RunDir
from tinyomni.training.settings import MUON, Settings
from tinyomni.training.stage import Stage
from tinyomni.training.stages import StageSpec, register
from tinyomni.training.stages.audio import AudioStage
from tinyomni.training.stages.thinker import ThinkerStage
from tinyomni.training.stages.vision import EASY, VisionStage
from tinyomni.vision import ViTTiny


@dataclass(frozen=True)
class OmniSettings(Settings):
    """How to train the whole model, and on how much of the closed world."""

    scenes: int = 6_000  # images for typed questions
    spoken: int = 6_000  # spoken questions, and utterances to repeat
    validation_items: int = 32  # of OmniMixture
    unfreeze_encoders: bool = False
    from_scratch: bool = True  # a fresh Thinker; False: the one of the stage thinker
    style: str = "plain"  # "wide": images, wordings, conversations and recordings as those of people
    makers: str = ""  # of speech beside eSpeak NG, as for the stage audio

    def __post_init__(self) -> None:
        super().__post_init__()
        check_style(self.style)


PRESETS = {
    "smoke": OmniSettings(
        steps=3, batch_size=2, warmup=1, eval_every=3, scenes=32, spoken=8, validation_items=2, **MUON
    ),
    "laptop": OmniSettings(
        steps=2200, batch_size=4, lr=1.5e-3, warmup=60, eval_every=200, checkpoint_freq=200, scenes=16_000,
        style="wide", makers=other_makers.INSTALLED, **MUON,
    ),
    "quick": OmniSettings(
        steps=250, batch_size=4, lr=1.5e-3, warmup=30, eval_every=125, scenes=2000, spoken=1000, validation_items=16,
        **MUON,
    ),
    "gpu": OmniSettings(
        steps=8000, batch_size=32, lr=1e-3, warmup=200, eval_every=500, num_workers=12, scenes=200_000, spoken=100_000,
        validation_items=128, style="wide", makers=other_makers.INSTALLED, **MUON,
    ),
}  # fmt: skip
PRESETS["shipped"] = replace(PRESETS["laptop"], steps=5000, cycle=4000, restart_lr=1e-3, scenes=32_000)
WARMUP_STEPS = 300  # from scratch, with nothing but retrieval, but no more than a quarter of all steps
MAX_VALIDATION_ROWS = 128  # of custom data
IGNORE = -100  # a label that cross-entropy leaves out


class OmniStage(Stage):
    """Both encoders, the Thinker, and the projectors between them; the names are those of `Omni`."""

    name = "omni"
    weights_file = tuple((f"{part}.", f"{part}.") for part in ("thinker", "vision", "audio", "proj_v", "proj_a"))

    def __init__(self, unfreeze_encoders: bool = False, validation: Sequence[list[OmniExample]] = ()) -> None:
        super().__init__()
        self.thinker = ThinkerLM()
        self.vision = ViTTiny()
        self.mel = MelFrontend()
        self.audio = AudioEncoderTiny()
        self.proj_v = nn.Linear(TINY.vision.vision_dim, TINY.thinker.d_model)
        self.proj_a = nn.Linear(TINY.audio.audio_dim, TINY.thinker.d_model)
        self.unfreeze_encoders, self.validation = unfreeze_encoders, validation
        for encoder in (self.vision, self.audio):
            encoder.requires_grad_(unfreeze_encoders)

    def train(self, mode: bool = True) -> "OmniStage":
        """Frozen encoders stay in eval mode."""
        super().train(mode)
        if not self.unfreeze_encoders:
            self.vision.eval()
            self.audio.eval()
        return self

    # -- the encoders

    def encode_images(self, images: Float[Tensor, "images ..."]) -> Float[Tensor, "images 1 vision_dim"]:
        """Pixels → CLS; a CLS stays as it is."""
        return self.vision(images) if images.ndim == 4 else images

    def encode_audios(
        self, audios: Float[Tensor, "audios ..."], lengths: Int[Tensor, "audios"]
    ) -> tuple[Float[Tensor, "audios audio_tokens audio_dim"], Int[Tensor, "audios"]]:
        """Samples → audio tokens, and how many of them are no padding; audio tokens stay as they are."""
        if audios.ndim == 3:
            return audios, lengths
        frames = lengths // self.mel.hop
        return self.audio(self.mel(audios), frames), (frames + 3) // 4

    @torch.no_grad()
    def featurize(self, example: OmniExample) -> OmniExample:
        """The example with image and audio replaced by the encoders' features.

        These are copies: a CLS is a view of the tokens of all patches, which would stay in memory with it.
        """
        device = self.proj_v.weight.device
        image, audio = example.image, example.audio
        if image is not None and image.ndim == 3:
            image = self.encode_images(image[None].to(device))[0].cpu().clone()
        if audio is not None and audio.ndim == 1:
            audio = self.encode_audios(audio[None].to(device), torch.tensor([len(audio)], device=device))[0][0].cpu()
        return replace(example, image=image, audio=audio)

    # -- one sequence

    def sequences(self, batch: OmniBatch) -> tuple[Float[Tensor, "batch tokens d_model"], Int[Tensor, "batch tokens"]]:
        """Image, audio, text, in the order of `Omni.embed`, right-padded; and the label of each token: the next one.

        Where the loss mask is off the label is IGNORE.
        """
        text_labels = torch.where(batch.loss_mask, batch.ids, IGNORE)
        text = self.thinker.embed(batch.ids)
        images = None if batch.images is None else self.proj_v(self.encode_images(batch.images))
        audios = None
        if batch.audios is not None and batch.audio_lengths is not None:
            tokens, tokens_of = self.encode_audios(batch.audios, batch.audio_lengths)
            audios = self.proj_a(tokens)
        inputs, labels = [], []
        for row, length in enumerate(batch.lengths.tolist()):
            parts = [text[row, : length - 1]]  # the last token has no next one
            if audios is not None and (audio := int(batch.audio_of[row])) >= 0:
                parts.insert(0, audios[audio, : int(tokens_of[audio])])
            if images is not None and (image := int(batch.image_of[row])) >= 0:
                parts.insert(0, images[image])
            inputs.append(torch.cat(parts))
            labels.append(F.pad(text_labels[row, 1:length], (len(inputs[-1]) - (length - 1), 0), value=IGNORE))
        return (
            pad_sequence(inputs, batch_first=True),
            pad_sequence(labels, batch_first=True, padding_value=IGNORE),
        )

    def losses(self, batch: OmniBatch) -> tuple[Float[Tensor, "targets"], Bool[Tensor, "targets"]]:
        """The loss of each labelled token, and whether it would have been chosen."""
        x, labels = self.sequences(batch)
        for block in self.thinker.blocks:
            x = block(x)
        labelled = labels != IGNORE
        logits = self.thinker.lm_head(self.thinker.norm(x[labelled])).float()  # the rest does not count
        targets = labels[labelled]
        return F.cross_entropy(logits, targets, reduction="none"), logits.argmax(dim=-1) == targets

    def forward(self, batches: list[OmniBatch]) -> tuple[Float[Tensor, ""], dict[str, Any]]:
        """The mean over all labelled tokens; as metrics, that of examples without audio and of those with."""
        losses = [self.losses(batch)[0] for batch in batches]
        return torch.cat(losses).mean(), by_input(batches, [loss.detach() for loss in losses])

    def weight(self, batches: list[OmniBatch]) -> float:
        """Labelled tokens."""
        return sum(float(batch.loss_mask.sum()) for batch in batches)

    def exact_match(self, batch: OmniBatch) -> Float[Tensor, "batch"]:
        """1 where an example's whole answer would be said, token by token, else 0."""
        wrong = torch.zeros(len(batch.ids), device=batch.ids.device)
        row_of = torch.arange(len(wrong), device=wrong.device).repeat_interleave(batch.loss_mask.sum(dim=1))
        wrong.index_add_(0, row_of, (~self.losses(batch)[1]).float())
        return (wrong == 0).float()

    def validate(self) -> dict[str, float]:
        """The loss on held-out examples, and the exact match of those without audio and of those with."""
        if not self.validation:
            return {}
        batches = [to_device(batch, self.proj_v.weight.device) for batch in collate(self.validation)]
        loss = torch.cat([self.losses(batch)[0] for batch in batches]).mean()
        exact = by_input(batches, [self.exact_match(batch) for batch in batches])
        return {"loss": float(loss), **{name: float(accuracy) for name, accuracy in exact.items()}}


def by_input(batches: Sequence[OmniBatch], values: Sequence[Float[Tensor, "_"]]) -> dict[str, Float[Tensor, ""]]:
    """The mean of the values of examples without audio, `typed`, and of those with audio, `spoken`."""
    kinds: dict[str, list[Tensor]] = {}
    for batch, each in zip(batches, values, strict=True):
        kinds.setdefault("typed" if batch.audios is None else "spoken", []).append(each)
    return {kind: torch.cat(found).mean() for kind, found in kinds.items()}


def build(run_dir: RunDir, settings: OmniSettings) -> Job:
    """Starts from what the stages vision and audio have learned, and with `from_scratch=False` the stage thinker.

    A Thinker that has read for long hardly looks at an image. Tried once, on typed questions alone (48 a step, lr
    1e-3): after 200 steps it named 11% of the colours, as many as by guessing; one trained from scratch named 53%, and
    it learns to read on the way. What is learned first is hard to turn away from (Ash & Adams, 2020, arXiv:1910.08475).

    Where no worker processes read the data, features are made in this one and cached; on a GPU the stage makes them.
    """
    tokenizer = run_dir.tokenizer()
    encode, separators = tokenizer.encode, tokenizer.separators if settings.style == "wide" else None
    stage = OmniStage(settings.unfreeze_encoders)
    if settings.from_scratch:
        init_weights(stage.thinker, TINY.thinker.layers, init="lecun")
    else:
        stage.thinker.load_state_dict(run_dir.trained(ThinkerStage(encode)).thinker.state_dict())
    stage.vision.load_state_dict(run_dir.trained(VisionStage(), settings.init_from).vision.state_dict())
    stage.audio.load_state_dict(run_dir.trained(AudioStage(), settings.init_from).encoder.state_dict())
    if run_dir.data is not None:
        rows = run_dir.custom_data("caption", "question", "speech")
        own, own_held_out = (
            CustomExamples(encode, part, rows.kind) for part in train_validation_split(rows, MAX_VALIDATION_ROWS)
        )
        stage.validation = [own_held_out[index] for index in range(len(own_held_out))]
        return Job(stage, own, collate, settings)
    featurize = None if settings.unfreeze_encoders or settings.num_workers else stage.featurize
    settings = replace(settings, makers=other_makers.resolve(settings.makers))
    voices = TTS_VOICES + other_makers.voices_of(settings.makers)
    cache, held = str(run_dir.folder / "speech"), settings.validation_items
    held_out: Dataset[list[OmniExample]] = OmniMixture(
        encode,
        Scenes("validation", TYPED * held, speech=False, style=settings.style),
        held,
        Scenes("validation", held, cache=cache, voices=voices, style=settings.style),
        featurize=featurize,
        style=settings.style,
        separators=separators,
    )
    train = OmniMixture(
        encode,
        Scenes("train", settings.scenes, speech=False, easy=EASY, style=settings.style),
        settings.steps * settings.batch_size,
        Scenes("train", settings.spoken, cache=cache, voices=voices, easy=EASY, style=settings.style),
        Speech("train", settings.spoken, cache=cache, voices=voices, style=settings.style),
        featurize,
        0 if settings.init_from else min(WARMUP_STEPS, settings.steps // 4) * settings.batch_size,
        settings.seed,
        settings.style,
        separators,
    )
    stage.validation = [held_out[index] for index in range(held)]
    return Job(stage, train, collate, settings, in_order=True)


SPEC = register(
    StageSpec("omni", PRESETS, build, requires=("tokenizer", "thinker", "vision", "audio"), untrained=OmniStage)
)
